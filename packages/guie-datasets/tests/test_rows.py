"""References to bytes in files, and what every data set has without doing anything."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guie_core import GuieError
from guie_datasets import Dataset, ImageRef, Row
from guie_datasets.images.reading import Reader


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    assert ImageRef(str(path)).read() == b"0123456789"
    assert ImageRef(str(path), 3, 4).read() == b"3456"
    assert ImageRef(str(path), 7).read() == b"789"
    assert ImageRef(str(path), 10, 0).read() == b""


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    with pytest.raises(GuieError, match=r"a.bin@8\+4: only 2 of 4 bytes are there"):
        ImageRef(str(path), 8, 4).read()
    with pytest.raises(GuieError, match=r"b.bin: cannot be read: No such file"):
        ImageRef(str(tmp_path / "b.bin")).read()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    with Reader() as reader:
        for ref in (ImageRef(str(tmp_path / "x.jpg")), ImageRef(str(tmp_path / "x.jpg"), 0, 5), ImageRef("/dev/zero")):
            for read in (ref.read, lambda ref=ref: reader.read(ref)):
                with pytest.raises(GuieError, match="cannot be read: it is a pipe, a device or the like, not a file"):
                    read()


def test_more_than_an_image_can_have_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with open(path, "wb") as file:
        file.truncate(1500 << 20)  # a hole, which takes no room
    with Reader() as reader:
        for ref in (ImageRef(str(path)), ImageRef(str(path), 5, 1 << 30)):
            for read in (ref.read, lambda ref=ref: reader.read(ref)):
                tracemalloc.start()
                with pytest.raises(GuieError, match=r"cannot be read: it has 1\.. GB; images up to 268.4 MB are read"):
                    read()
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
                tracemalloc.stop()
        assert ImageRef(str(path), 7, 3).read() == reader.read(ImageRef(str(path), 7, 3)) == bytes(3)


def test_places_are_named() -> None:
    assert str(ImageRef("/a/b.jpg")) == "/a/b.jpg"
    assert str(ImageRef("/a/b.tfrec", 10, 20)) == "/a/b.tfrec@10+20"


class Two(Dataset):
    def __init__(self, root: Path, **more: Any) -> None:
        self.root = root
        self.more = more
        self.sizes = (1, 2.5, "x", None, [True])
        self.function = print
        self._hidden = 1

    def rows(self) -> Iterator[Row]:
        for label in (0, 1, 1):
            yield Row(ImageRef(f"/data/{label}.jpg"), label, "two")


def test_a_data_set_needs_rows_and_no_more() -> None:
    dataset = Two(Path("/data"))
    assert dataset.left_out() == ()
    assert dataset.count() is None
    assert dataset.sources() == [Path("/data/0.jpg"), Path("/data/1.jpg")]
    assert dataset.provenance() == {
        "type": f"{Two.__module__}:Two",
        "root": "/data",
        "sizes": [1, 2.5, "x", None, [True]],
        "more": {},
    }
    said = {"category": {"a": "x", "b": ("y", Path("/z"))}}
    assert Two(Path("/data"), **said).provenance()["more"] == {"category": {"a": "x", "b": ["y", "/z"]}}
    assert "more" not in Two(Path("/data"), reader=print).provenance()
    assert "more" not in Two(Path("/data"), **{"by": {1: "x"}}).provenance()
    with pytest.raises(TypeError, match="abstract"):
        Dataset()  # type: ignore[abstract]
