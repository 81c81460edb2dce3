"""Near duplicates: the search among hashes beside all with all, and how many changed copies are found.

    python benchmarks/near_duplicates.py [--distance 8] [--rounds 3] [--images 600]

1. Search: 10^5 x 10^5 and 10^6 x 10^4 random hashes of 64 bits, by multi-index hashing and by numpy's popcount over
   all pairs in blocks that stay in the cache; both take one core, in turn within each round, and the best round counts.
   All with all is timed on a tenth of the rows and multiplied by 10. A thousand of the hashes are copies with up to
   `distance` bits changed, so that there is something to find.
2. Recall: emoji drawings and parts of two photographs, changed as copies on the web are; how many of them are near by
   hash, and near by hash and second look. False alarms: pairs of different emoji of one style, and of different parts
   of the photographs, that are taken for the same picture. Several emoji are one drawing under two names (white small
   square, white medium square); those count as false alarms here.

Needs guie-datasets, guie-emoji and scikit-learn, whose two photographs it takes.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from guie_datasets import decode
from guie_datasets.inspecting.similarity import close_pairs, perceptual_hashes, same_picture, thumbnail
from guie_emoji.dataset import Emoji

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("distance", 8), ("rounds", 3), ("images", 600)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"search, distance {options.distance}")
    for count, others in ((100_000, 100_000), (1_000_000, 10_000)):
        search(count, others, options.distance, options.rounds)
    print(f"\nrecall, distance {options.distance}: by hash, by hash and second look")
    recall("photographs", photographs(), options.distance)
    drawings = Emoji()
    rows, styles = list(drawings.rows()), [drawing.style for drawing in drawings.drawings()]
    chosen = np.random.default_rng(0).permutation(len(rows))[: options.images]
    recall("emoji", [Image.fromarray(read(rows[row].image)) for row in chosen], options.distance)
    print("\nfalse alarms: pairs, near by hash, near by hash and second look")
    false_alarms("photographs", small(photographs()), options.distance)
    for style in sorted(set(styles)):
        of_style = [Image.fromarray(read(row.image)) for row, its in zip(rows, styles, strict=True) if its == style]
        false_alarms(f"emoji, {style}", small(of_style), options.distance)


def search(count: int, others: int, distance: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**64, size, dtype=np.uint64) for size in (count, others))
    copies = b[:1000] = a[rng.permutation(count)[:1000]]
    for _ in range(distance):
        copies ^= np.uint64(1) << rng.integers(0, 64, 1000, dtype=np.uint64)
    b[:1000] = copies
    times: dict[str, list[float]] = {"multi-index": [], "all with all": []}
    tenth = b[: others // 10]
    for _ in range(rounds):
        begun = time.perf_counter()
        found = sum(len(i) for i, _, _ in close_pairs(a, b, distance))
        times["multi-index"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        there = all_with_all(a, tenth, distance)
        times["all with all"].append(10 * (time.perf_counter() - begun))
        assert there == sum(len(i) for i, _, _ in close_pairs(a, tenth, distance))
    fast, slow = (min(values) for values in times.values())
    print(
        f"  {count:>9,} x {others:>7,}: multi-index {fast:6.2f} s, all with all {slow:6.2f} s, "
        f"ratio {slow / fast:5.1f}, {found:,} pairs"
    )


def all_with_all(a: np.ndarray, b: np.ndarray, distance: int) -> int:
    """Pairs of at most that distance, as a plain user of numpy would count them."""
    found = 0
    for start in range(0, len(a), 8192):
        part = a[start : start + 8192]
        for row in range(0, len(b), 32):
            found += int((np.bitwise_count(b[row : row + 32, None] ^ part) <= distance).sum())
    return found


def recall(name: str, images: list[Image.Image], distance: int) -> None:
    before = small(images)
    hashes = perceptual_hashes(before)
    print(f"  {len(images)} {name}")
    for change, make in CHANGES.items():
        rng = np.random.default_rng(1)
        after = small([make(image, rng) for image in images])
        near = np.bitwise_count(hashes ^ perceptual_hashes(after)) <= distance
        note = "  (not to be found)" if change == "mirrored" else ""
        print(f"    {change:<14} {near.mean():7.1%} {(near & same_picture(before, after)).mean():7.1%}{note}")


def false_alarms(name: str, images: np.ndarray, distance: int) -> None:
    hashes = perceptual_hashes(images)
    one, other = np.nonzero(np.triu(np.bitwise_count(hashes[:, None] ^ hashes) <= distance, 1))
    wrong = int(same_picture(images[one], images[other]).sum())
    print(f"  {name:<20} {len(images) * (len(images) - 1) // 2:>10,} {len(one):>7,} {wrong:>5,}")


def read(ref: object) -> np.ndarray:
    return np.ascontiguousarray(decode(ref.read()).transpose(1, 2, 0))  # type: ignore[attr-defined]


def small(images: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnail(np.asarray(image).transpose(2, 0, 1)) for image in images])


def photographs() -> list[Image.Image]:
    """Parts of two photographs that overlap by half."""
    return [
        Image.fromarray(photo[top : top + 140, left : left + 150])
        for photo in load_sample_images().images
        for top in range(0, 427 - 140, 71)
        for left in range(0, 640 - 150, 80)
    ]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def scaled(image: Image.Image, by: float) -> Image.Image:
    size = (max(1, round(image.width * by)), max(1, round(image.height * by)))
    return jpeg(image.resize(size, Image.Resampling.BICUBIC), 90)


def cropped(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Without that share of width and height, divided between the two ends at random."""
    x, y = rng.random(2) * share
    box = (x * image.width, y * image.height, (1 - share + x) * image.width, (1 - share + y) * image.height)
    return jpeg(image.crop(tuple(map(round, box))), 90)  # type: ignore[arg-type]


CHANGES: dict[str, Change] = {
    "quality 30": lambda image, rng: jpeg(image, 30),
    "quality 60": lambda image, rng: jpeg(image, 60),
    "quality 90": lambda image, rng: jpeg(image, 90),
    "x 0.3": lambda image, rng: scaled(image, 0.3),
    "x 2": lambda image, rng: scaled(image, 2),
    "100 x 100": lambda image, rng: jpeg(image.resize((100, 100), Image.Resampling.BILINEAR), 90),
    "cropped 2 %": lambda image, rng: cropped(image, 0.02, rng),
    "cropped 5 %": lambda image, rng: cropped(image, 0.05, rng),
    "brighter": lambda image, rng: jpeg(ImageEnhance.Brightness(image).enhance(1.25), 85),
    "darker": lambda image, rng: jpeg(ImageEnhance.Brightness(image).enhance(0.75), 85),
    "less contrast": lambda image, rng: jpeg(ImageEnhance.Contrast(image).enhance(0.7), 85),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
}


if __name__ == "__main__":
    main()
