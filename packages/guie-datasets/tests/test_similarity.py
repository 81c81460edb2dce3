"""Images that are there twice: hashes that survive what happens to copies, an exact search, a strict second look."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from guie_core import GuieError, Interrupted
from guie_core.interrupt import interruptible
from guie_datasets import ClassFolders, Manifest, prepare
from guie_datasets.inspecting import similarity
from guie_datasets.inspecting.similarity import (
    KINDS,
    close_pairs,
    contents,
    distinct,
    find_leaks,
    fingerprints,
    perceptual_hashes,
    same_picture,
    thumbnail,
)


def photos() -> list[Image.Image]:
    """Parts of two photos; neighbours overlap by half, and are other pictures."""
    return [
        Image.fromarray(photo[top : top + 200, left : left + 220])
        for photo in load_sample_images().images
        for top in (0, 113, 227)
        for left in (0, 140, 280, 420)
    ]


def drawings() -> list[Image.Image]:
    """Flat and symmetric, as emoji are: faces of one outline and colour that differ in eyes and mouth alone."""
    found = []
    for number in range(12):
        image = Image.new("RGB", (128, 128), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((4, 4, 124, 124), fill="#ffcc33")
        eye = (4, 10, 17)[number % 3]
        for x in (42, 86):
            draw.ellipse((x - eye, 48 - eye, x + eye, 48 + eye), fill="#553311")
        box = [(40, 66, 88, 100), (34, 60, 94, 108), (52, 76, 76, 100), (36, 86, 92, 94)][number // 3]
        draw.ellipse(box, fill="#aa2222")
        found.append(image)
    return found


def jpeg(image: Image.Image, quality: int = 90) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image: Image.Image, by: float) -> Image.Image:
    return jpeg(image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without that share of width and height, more of it left and above."""
    x, y = share * image.width, share * image.height
    return jpeg(
        image.crop((round(0.7 * x), round(0.6 * y), round(image.width - 0.3 * x), round(image.height - 0.4 * y)))
    )


# what happens to copies, and the share that must be found: of photos and of drawings
CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], float, float]] = {
    "quality 30": (lambda image: jpeg(image, 30), 1, 1),
    "quality 60": (lambda image: jpeg(image, 60), 1, 1),
    "x 0.3": (lambda image: scaled(image, 0.3), 1, 1),
    "x 2": (lambda image: scaled(image, 2), 1, 1),
    "squashed": (lambda image: jpeg(image.resize((90, 90), Image.Resampling.BILINEAR)), 1, 1),
    "cropped 2 %": (lambda image: cropped(image, 0.02), 1, 1),
    "cropped 5 %": (lambda image: cropped(image, 0.05), 0.75, 0.75),
    "brighter": (lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)), 0.85, 1),
    "darker": (lambda image: jpeg(ImageEnhance.Brightness(image).enhance(0.75)), 1, 1),
    "less contrast": (lambda image: jpeg(ImageEnhance.Contrast(image).enhance(0.7)), 1, 1),
}


def small(images: list[Image.Image]) -> NDArray[np.uint8]:
    return np.stack([thumbnail(np.asarray(image).transpose(2, 0, 1)) for image in images])


def found(a: NDArray[np.uint8], b: NDArray[np.uint8], distance: int = 8) -> NDArray[np.bool_]:
    """Whether pairs are near by hash and by the second look."""
    near = np.bitwise_count(perceptual_hashes(a) ^ perceptual_hashes(b)) <= distance
    return np.asarray(near & same_picture(a, b))


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found(change: str) -> None:
    make, of_photos, of_drawings = CHANGES[change]
    for images, expected in ((photos(), of_photos), (drawings(), of_drawings)):
        assert found(small(images), small([make(image) for image in images])).mean() >= expected


def test_other_pictures_are_not_even_where_their_hashes_agree() -> None:
    for images in (photos(), drawings()):
        one, other = np.triu_indices(len(images), 1)
        small_ones = small(images)
        assert not found(small_ones[one], small_ones[other], distance=20).any()
    hashes = perceptual_hashes(small(drawings()))
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= 8
    assert near.sum() > 3 * len(hashes)  # the drawings are a trap for hashes


def test_colours_and_mirrors_tell_pictures_apart() -> None:
    images = drawings()
    red = [Image.merge("RGB", image.split()[::-1]) for image in images]
    assert not found(small(images), small(red)).any()
    one = small(photos())
    assert not found(one, small([ImageOps.mirror(image) for image in photos()])).any()


def test_bits_of_a_flat_image_are_not_chance() -> None:
    flat = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 7, 128, 255)])
    assert perceptual_hashes(flat).tolist() == [0, 0, 0, 0]
    assert not same_picture(flat[:1], flat[3:]).any()
    assert same_picture(flat, flat).all()
    assert perceptual_hashes(np.empty((0, 32, 32, 3), np.uint8)).shape == (0,)


# --- the search


def related(rng: np.random.Generator, count: int, others: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes, and others of which half are a few bits away from them."""
    a = rng.integers(0, 2**64, count, dtype=np.uint64)
    b = rng.integers(0, 2**64, others, dtype=np.uint64)
    half = others // 2
    b[:half] = rng.choice(a, half)
    changed = rng.random(half)
    for _ in range(20):
        b[:half] ^= np.where(rng.random(half) < changed, np.uint64(1) << rng.integers(0, 64, half, dtype=np.uint64), 0)
    return a, b


def pairs(a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int) -> list[tuple[int, int]]:
    blocks = [(i, j) for i, j, _ in close_pairs(a, b, distance)]
    return sorted((int(i), int(j)) for block in blocks for i, j in zip(*block, strict=True))


def by_text(a: NDArray[np.uint64], b: NDArray[np.uint64], distance: int) -> list[tuple[int, int]]:
    """All with all, bit by bit."""
    bits = [((hashes[:, None] >> np.arange(64, dtype=np.uint64)) & 1).astype(np.float32) for hashes in (a, b)]
    differ = bits[0] @ (1 - bits[1].T) + (1 - bits[0]) @ bits[1].T
    return sorted(map(tuple, np.argwhere(np.round(differ) <= distance).tolist()))


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 7, 8, 10, 20])
def test_the_search_finds_all_pairs_once(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = related(np.random.default_rng(distance), 4500, 4000)  # over the limit below which all are compared
    calls: list[int] = []
    look_up = similarity._look_up
    monkeypatch.setattr(similarity, "_look_up", lambda *given: calls.append(1) or look_up(*given))
    monkeypatch.setattr(similarity, "_BLOCK", 1000)
    expected = by_text(a, b, distance)
    assert pairs(a, b, distance) == expected
    assert expected
    assert calls == ([1] if distance < 20 else [])


@pytest.mark.parametrize(("count", "others"), [(0, 5), (5, 0), (1, 1), (300, 70)])
def test_small_sides_and_large_distances(count: int, others: int) -> None:
    a, b = related(np.random.default_rng(1), max(count, 1), others)
    a = a[:count]
    for distance in (0, 8, 30, 64):
        assert pairs(a, b, distance) == (by_text(a, b, distance) if count and others else [])


def test_equal_hashes_by_the_thousand_are_found() -> None:
    a = np.repeat(np.array([5, 2**63], np.uint64), 3000)
    b = np.array([4, 5, 2**63, 2**40 + 7] * 1000, np.uint64)
    assert sum(len(i) for i, _, _ in close_pairs(a, b, 1)) == 3000 * 1000 * 3
    assert [share for _, _, share in close_pairs(a, b, 1)] == sorted(share for _, _, share in close_pairs(a, b, 1))


def test_distinct_agrees_with_a_dictionary() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(0, 6, (500, 2)).astype(np.uint64)
    first, number = distinct(words)
    seen: dict[tuple[int, ...], int] = {}
    assert number.tolist() == [seen.setdefault(tuple(word), len(seen)) for word in words.tolist()]
    assert first.tolist() == [number.tolist().index(each) for each in range(len(seen))]
    assert distinct(np.empty((0, 2), np.uint64))[0].tolist() == []


# --- manifests


def save(folder: Path, images: dict[str, tuple[Image.Image, dict[str, object]]]) -> Manifest:
    for name, (image, options) in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **options)  # type: ignore[arg-type]
    return prepare([ClassFolders(folder)], keep_duplicates=True)[0]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Of b, one image has the bytes of one of a, three are changed, one is mirrored, the others are others."""
    all_of = photos()
    a = {f"甲/{number}.png": (image, {}) for number, image in enumerate(all_of[:6])}
    b = {
        "x/0.png": (all_of[0], {}),
        "x/1.jpg": (all_of[1], {"quality": 40}),
        "x/2.webp": (scaled(all_of[2], 0.5), {}),
        "x/2b.png": (ImageEnhance.Brightness(all_of[2]).enhance(0.8), {}),
        "x/3.png": (ImageOps.mirror(all_of[3]), {}),
        **{f"y/{number}.png": (image, {}) for number, image in enumerate(all_of[12:18])},
    }
    return save(tmp_path / "a", dict(a)), save(tmp_path / "b", dict(b))


def names(side: similarity.Found) -> dict[str, str]:
    """File -> kind."""
    paths = [Path(ref.path).name for ref in side.prints.manifest.select(side.rows).images()]
    return dict(zip(paths, (KINDS[kind] for kind in side.kinds), strict=True))


def test_leaks_between_manifests(two: tuple[Manifest, Manifest]) -> None:
    a, b = (fingerprints(manifest) for manifest in two)
    leaks = find_leaks(a, b)
    assert names(leaks.a) == {"0.png": "exact", "1.png": "near", "2.png": "near"}
    assert names(leaks.b) == {"0.png": "exact", "1.jpg": "near", "2.webp": "near", "2b.png": "near"}
    assert leaks.a.groups.tolist() == [0, 1, 2]
    assert leaks.b.groups.tolist() == [0, 1, 2, 2]
    assert len(leaks) == 3
    assert leaks.b.distances[0] == 0
    assert leaks.b.distances.max() <= 8
    mirrored = find_leaks(a, b, flipped=True)
    assert names(mirrored.b) == {**names(leaks.b), "3.png": "flipped"}
    back = find_leaks(b, a)
    assert names(back.a) == names(leaks.b)
    assert names(back.b) == names(leaks.a)


def test_the_same_against_itself_and_against_nothing(two: tuple[Manifest, Manifest]) -> None:
    a = fingerprints(two[0])
    leaks = find_leaks(a, a)
    assert leaks.a.kinds.tolist() == leaks.b.kinds.tolist() == [0] * 6
    assert leaks.a.groups.tolist() == list(range(6))
    nothing = a.select(np.zeros(6, bool))
    for empty in (find_leaks(a, nothing), find_leaks(nothing, a), find_leaks(nothing, nothing)):
        assert len(empty) == len(empty.a.rows) == len(empty.b.rows) == 0


def test_many_that_look_the_same_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty copies on each side would be 2,500 pairs; one each is compared."""
    image = photos()[0]
    sides = [
        fingerprints(save(tmp_path / side, {f"x/{q}.jpg": (image, {"quality": q}) for q in range(first, first + 25)}))
        for side, first in (("a", 40), ("b", 70))
    ]
    compared: list[int] = []
    look = similarity.same_picture

    def counted(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
        compared.append(len(one))
        return look(one, other)

    monkeypatch.setattr(similarity, "same_picture", counted)
    leaks = find_leaks(*sides)
    assert len(leaks) == 1
    assert len(leaks.a.rows) == len(leaks.b.rows) == 25
    assert sum(compared) < 250


def test_hashes_are_kept_and_used_again(two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    kept = tmp_path / "hashes.npy"
    first = fingerprints(two[1], kept)
    for ref in two[1].images():
        Path(ref.path).unlink()
    again = fingerprints(two[1].select(np.arange(len(two[1]))[::-1]), kept)
    assert np.array_equal(again.hashes[::-1], first.hashes)
    assert np.array_equal(again.mirrored[::-1], first.mirrored)
    assert again.readable.all()
    assert np.array_equal(again.contents, contents(two[1])[::-1])


@pytest.mark.parametrize("damage", [b"", b"not numpy", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_of_hashes_is_made_again(damage: bytes, two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    kept = tmp_path / "hashes.npy"
    kept.write_bytes(damage)
    first = fingerprints(two[0], kept)
    assert first.readable.all()
    assert np.load(kept).shape == (6,)


def test_hashes_that_cannot_be_kept_are_no_failure(
    two: tuple[Manifest, Manifest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert fingerprints(two[0], tmp_path / "file" / "hashes.npy").readable.all()
    assert "warning: the hashes are not kept" in capsys.readouterr().err


def test_images_that_are_gone_are_counted_against_the_limit(two: tuple[Manifest, Manifest]) -> None:
    gone = two[1].images()[1].path
    Path(gone).unlink()
    with pytest.raises(GuieError, match=r"1 of 11 images cannot be read \(9.09%.*\n  .*1.jpg: cannot be read: No such"):
        fingerprints(two[1])
    prints = fingerprints(two[1], max_bad=0.1)
    assert [finding.place for finding in prints.bad] == [gone]
    assert prints.readable.tolist() == [True, False] + [True] * 9
    leaks = find_leaks(fingerprints(two[0]), prints)
    assert "1.jpg" not in names(leaks.b)
    assert len(leaks.b.rows) == 3
    # its bytes are known still
    assert len(find_leaks(prints, prints).a.rows) == 11


@pytest.mark.parametrize("damaged", ["a", "b", "ab"])
def test_images_that_are_damaged_after_they_were_hashed_are_not_the_same(damaged: str, tmp_path: Path) -> None:
    """Black ones look as what cannot be read is kept."""
    black = Image.new("RGB", (64, 64))
    a = fingerprints(save(tmp_path / "a", {"x/0.png": (black, {})}))
    b = fingerprints(save(tmp_path / "b", {"x/0.bmp": (black, {})}))
    assert names(find_leaks(a, b).a) == {"0.png": "near"}
    for side in damaged:
        for path in (tmp_path / side / "x").iterdir():
            path.write_bytes(b"none")
    assert len(find_leaks(a, b)) == 0


def test_what_was_hashed_before_an_interrupt_is_kept(two: tuple[Manifest, Manifest], tmp_path: Path) -> None:
    kept = tmp_path / "hashes.npy"
    with interruptible() as stop:
        stop.request()
        with pytest.raises(Interrupted, match="The same command goes on from there"):
            fingerprints(two[1], kept)
    assert len(np.load(kept)) > 0
