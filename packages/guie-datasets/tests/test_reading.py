"""Reading by reference: order, bounds on memory, threads and files that go away, errors that say where."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError, UsageError
from guie_datasets import BadImage, ImageRef, decode, read_images, tfrecord
from guie_datasets.images.reading import Reader, ordered_map


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1 + number % 7, 1 + number % 5), (number, 0, 255 - number)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def refs(tmp_path: Path) -> list[ImageRef]:
    """Images in three shards and in files, taking turns."""
    found: list[list[ImageRef]] = []
    for shard in range(3):
        path = tmp_path / f"{shard}.tfrec"
        tfrecord.write(path, [(png(number), number) for number in range(shard, 60, 4)])
        found.append([record.image for record in tfrecord.scan(path)])
    files = []
    for number in range(3, 60, 4):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        files.append(ImageRef(str(tmp_path / f"{number}.png")))
    return [ref for turn in zip(*found, files, strict=True) for ref in turn]


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("guie-read")]


def open_files(folder: Path) -> list[str]:
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [target for link in links if os.path.exists(link) and (target := os.readlink(link)).startswith(str(folder))]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_images_come_in_order(refs: list[ImageRef], tmp_path: Path, workers: int) -> None:
    for image, number in zip(read_images(refs, workers=workers), range(60), strict=True):
        assert np.array_equal(image, decode(png(number)))
    assert our_threads() == open_files(tmp_path) == []


@pytest.mark.parametrize("workers", [0, 3])
def test_transform_takes_place_of_the_image(refs: list[ImageRef], workers: int) -> None:
    seen = set()

    def first_value(image: np.ndarray) -> int:
        seen.add(threading.current_thread() is threading.main_thread())
        return int(image[0, 0, 0])

    assert list(read_images(refs, workers=workers, transform=first_value)) == list(range(60))
    assert seen == {workers == 0}


def test_closing_early_ends_threads_and_closes_files(refs: list[ImageRef], tmp_path: Path) -> None:
    images = read_images(refs, workers=2)
    next(images)
    assert our_threads()
    assert open_files(tmp_path)
    images.close()
    assert our_threads() == open_files(tmp_path) == []


def test_an_error_comes_in_its_place_and_says_where(refs: list[ImageRef], tmp_path: Path) -> None:
    inside = ImageRef(refs[0].path, 3, 40)
    for bad, error, message in [
        (inside, BadImage, f"{refs[0].path}@3+40: not an image"),
        (ImageRef(str(tmp_path / "none.png")), GuieError, "none.png: cannot be read: No such file"),
        (ImageRef(str(tmp_path / "none.tfrec"), 1, 2), GuieError, r"none.tfrec@1\+2: cannot be read: No such file"),
        (ImageRef(refs[0].path, 10, 10**6), GuieError, "of 1000000 bytes are there"),
    ]:
        images = read_images([*refs[:5], bad, *refs[5:]], workers=2)
        for _ in range(5):
            next(images)
        with pytest.raises(error, match=message.replace("+40", r"\+40")):
            next(images)
        assert our_threads() == open_files(tmp_path) == []


def test_negative_workers() -> None:
    with pytest.raises(UsageError, match="workers is -1; it is how many"):
        read_images([], workers=-1)


@pytest.mark.parametrize("window", [1, 3, 10])
def test_no_more_than_the_window_is_taken_ahead(window: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    results = ordered_map(lambda item: item * item, items(), workers=4, window=window)
    for given in range(1, 50):
        assert next(results) == given * given
        assert taken <= given + window
    results.close()
    assert taken <= 50 + window
    assert our_threads() == []


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3)  # breaks unless three calls are inside at once
    assert list(ordered_map(lambda item: together.wait(30) >= 0, range(6), workers=3, window=6)) == [True] * 6


def test_few_files_stay_open(tmp_path: Path) -> None:
    refs = []
    for number in range(9):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(bytes([number]) * 10)
        refs += [ImageRef(str(path), 2, 3)]
    with Reader(open_files=4) as reader:
        assert [reader.read(ref) for ref in refs * 3] == [bytes([number]) * 3 for number in range(9)] * 3
        assert len(open_files(tmp_path)) == 4
    assert open_files(tmp_path) == []
