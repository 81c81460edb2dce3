"""Hashes of what a data set was made from: they change when it does, and not otherwise."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guie_datasets import ClassFolders, Dataset, ImageRef, Row, TFRecordDataset, prepare, tfrecord
from guie_datasets.preparing import sources


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def recorded(dataset: Dataset) -> dict[str, Any]:
    provenance = prepare([dataset], keep_duplicates=True, max_bad=0.5)[0].provenance
    record: dict[str, Any] = provenance["datasets"][0]["sources"]
    return record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "own" / f"class{number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "own"


def test_a_folder_is_one_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = recorded(ClassFolders(folder))
    paths = sorted(folder.glob("*/*"))
    assert set(first) == {"files", "images"}
    assert first["files"] == []
    assert (first["images"]["files"], first["images"]["bytes"]) == (6, sum(path.stat().st_size for path in paths))
    monkeypatch.setattr("guie_datasets.preparing.preparation._CHUNK", 2)
    assert recorded(ClassFolders(folder)) == first  # in whatever pieces it is gathered
    paths[0].touch()
    assert recorded(ClassFolders(folder)) == first
    data = paths[0].read_bytes()
    paths[0].write_bytes(png(100))
    changed = recorded(ClassFolders(folder))["images"]["hash"]
    paths[0].write_bytes(data)
    paths[0].rename(paths[0].with_name("00.png"))
    renamed = recorded(ClassFolders(folder))["images"]["hash"]
    assert len({first["images"]["hash"], changed, renamed}) == 3


def test_a_shard_has_the_hash_of_its_images(tmp_path: Path) -> None:
    images = [png(number) for number in range(5)]
    tfrecord.write(tmp_path / "x-train-00-3.tfrec", [(data, 0) for data in images[:3]])
    tfrecord.write(tmp_path / "x-train-01-2.tfrec", [(data, 1) for data in images[3:]])
    record = recorded(TFRecordDataset(tmp_path, source="x"))
    expected = [
        {
            "path": str(tmp_path / f"x-train-0{number}-{len(part)}.tfrec"),
            "size": (tmp_path / f"x-train-0{number}-{len(part)}.tfrec").stat().st_size,
            "hash": blake2b(b"".join(hashlib.blake2b(data, digest_size=16).digest() for data in part)),
            "of": "images",
        }
        for number, part in enumerate((images[:3], images[3:]))
    ]
    assert record == {"files": expected}


class Listed(Dataset):
    """Images that a table names; some have no suffix, and one is not used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self) -> Iterator[Row]:
        names = (self.folder / "table.csv").read_text().split()
        return (Row(ImageRef(str(self.folder / name)), 0, "s") for name in names)

    def sources(self) -> Sequence[Path]:
        return sorted(self.folder.iterdir())


def test_tables_count_by_their_bytes_and_unused_images_not_at_all(tmp_path: Path) -> None:
    for number, name in enumerate(["a.png", "b", "unused.png"]):
        (tmp_path / name).write_bytes(png(number))
    table = tmp_path / "table.csv"
    table.write_text("a.png b\n")
    record = recorded(Listed(tmp_path))
    assert record["files"] == [
        {"path": str(table), "size": 8, "hash": blake2b(table.read_bytes()), "of": "bytes"},
    ]
    assert record["images"]["files"] == 2


def test_many_files_are_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        tfrecord.write(tmp_path / f"x-train-0{number}-1.tfrec", [(png(number), 0)])
    dataset = TFRecordDataset(tmp_path, source="x")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(sources, "_LISTED", 3)
    record = recorded(dataset)
    assert record["files"] == []
    assert (record["more"]["files"], record["more"]["bytes"]) == (4, size)
    tfrecord.write(tmp_path / "x-train-02-1.tfrec", [(png(7), 0)])
    assert recorded(dataset)["more"]["hash"] != record["more"]["hash"]
