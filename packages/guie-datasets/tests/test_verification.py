"""Manifests whose images have changed since."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError, Interrupted
from guie_core.interrupt import interruptible
from guie_datasets import ClassFolders, Manifest, TFRecordDataset, prepare, tfrecord, verify_manifest


def jpeg(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(70):
        path = tmp_path / "images" / f"class{number // 10}" / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(20 + number, 30, number))
    return tmp_path / "images"


@pytest.fixture
def manifest(folder: Path, tmp_path: Path) -> Manifest:
    prepare([ClassFolders(folder)])[0].write(tmp_path / "m.parquet")
    return Manifest.read(tmp_path / "m.parquet")


@pytest.mark.parametrize("decode", [False, True])
def test_nothing_has_changed(manifest: Manifest, decode: bool) -> None:
    found = verify_manifest(manifest, decode=decode, workers=3)
    assert list(found) == []
    assert found.images == 70


def gone(path: Path) -> None:
    path.unlink()


def other(path: Path) -> None:
    path.write_bytes(jpeg(20, 30, 1000))


def one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGED = "its bytes are not those that were prepared"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (gone, "cannot be read: No such file or directory"),
        (a_folder, "cannot be read: Is a directory"),
        (other, CHANGED),
        (one_bit, CHANGED),
        (cut, CHANGED),
    ],
)
def test_what_has_changed_is_named(
    manifest: Manifest, folder: Path, change: Callable[[Path], None], reason: str
) -> None:
    paths = [folder / "class0" / "07.jpg", folder / "class6" / "65.jpg"]
    for path in paths:
        change(path)
    found = verify_manifest(manifest, workers=2)
    assert [(each.kind, each.place, each.reason, each.source, each.label) for each in found] == [
        ("bad", str(paths[0]), reason, "images", 0),
        ("bad", str(paths[1]), reason, "images", 6),
    ]
    assert str(found) == "2 bad"


def test_sizes_that_the_manifest_has_wrong(manifest: Manifest) -> None:
    widths = manifest.column("width").copy()
    widths[3] += 1
    found = verify_manifest(manifest.with_column("width", widths))
    assert [each.reason for each in found] == ["it is 23 x 30, and not 24 x 30 as the manifest says"]


def test_damage_from_the_start_shows_in_decoding(tmp_path: Path) -> None:
    data = bytearray(jpeg(200, 100, 1))
    data[data.index(b"\xff\xc0") + 12] = 3  # the first component's quantisation table, which there is not
    (tmp_path / "a" / "1").mkdir(parents=True)
    (tmp_path / "a" / "1" / "1.jpg").write_bytes(data)
    manifest, _ = prepare([ClassFolders(tmp_path / "a")])
    assert len(verify_manifest(manifest)) == 0
    assert verify_manifest(manifest, decode=True).count("bad") == 1


def test_shards(tmp_path: Path) -> None:
    path = tmp_path / "x-train-00-6.tfrec"
    images = [jpeg(10 + number, 12, number) for number in range(6)]
    tfrecord.write(path, [(data, 3) for data in images])
    manifest, _ = prepare([TFRecordDataset(tmp_path, source="x")])
    assert len(verify_manifest(manifest)) == 0
    data = path.read_bytes()
    path.write_bytes(data.replace(images[2], images[2][:-9] + bytes(9)))
    assert [each.reason for each in verify_manifest(manifest)] == [CHANGED]
    path.write_bytes(data[: data.index(images[4]) + 10])
    reasons = [each.reason for each in verify_manifest(manifest)]
    assert len(reasons) == 2
    assert all("bytes are there; the file was cut or replaced" in reason for reason in reasons)


def test_an_interrupt_says_how_far_it_came(manifest: Manifest) -> None:
    with interruptible() as stop:
        stop.request()
        with pytest.raises(Interrupted, match="stopped after 32 of 70 images, of which 0 are bad"):
            verify_manifest(manifest)


def test_a_decoder_that_fails_in_its_own_way(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError("no pixels")

    monkeypatch.setattr("guie_datasets.inspecting.verification.header_size", fail)
    found = verify_manifest(manifest.select([4]))
    assert [each.reason for each in found] == ["ZeroDivisionError: no pixels"]
    assert not issubclass(ZeroDivisionError, GuieError)
