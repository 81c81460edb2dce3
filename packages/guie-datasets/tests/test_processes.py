"""Reading by worker processes: the same as by threads, whatever becomes of a worker or of the program."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError, UsageError
from guie_datasets import BadImage, ImageRef, decode, read_images
from guie_datasets.images.reading import image_seed

COUNT = 12


def photo(number: int) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def refs(tmp_path: Path) -> list[ImageRef]:
    for number in range(COUNT):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    return [ImageRef(str(tmp_path / f"{number}.jpg")) for number in range(COUNT)]


# --- transforms, which processes import from this module


def noise(image: np.ndarray, seed: int) -> tuple[int, np.ndarray]:
    return seed, image[:, :4, :4] + np.random.default_rng(seed).random((3, 4, 4), np.float32)


def environment(image: np.ndarray) -> tuple[int, str | None, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENCV_FOR_THREADS_NUM")


def die_at_25(image: np.ndarray) -> int:
    if image.shape[1] == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


class Odd(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_at_25(image: np.ndarray) -> int:
    if image.shape[1] == 25:
        raise UsageError("not 25")
    return 0


def fail_oddly(image: np.ndarray) -> int:
    raise Odd(1, 2)


def unpicklable(image: np.ndarray) -> Any:
    return lambda: image


def slow(image: np.ndarray) -> int:
    time.sleep(0.05)
    return os.getpid()


# --- the same as by threads


def children() -> set[int]:
    """Processes of this one that multiprocessing has started and that are alive, but for its own tracker."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state != "Z" and b"spawn_main" in command:
            found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # this module's name, as pytest chose it, must mean it to the processes as well
    monkeypatch.syspath_prepend(str(Path(__file__).parents[__name__.count(".")]))
    yield
    assert not children()


def test_images_are_those_of_threads_in_memory_too(refs: list[ImageRef]) -> None:
    for image, number in zip(read_images(refs, workers=2, processes=True), range(COUNT), strict=True):
        full = decode(photo(number))
        assert np.array_equal(image, full)
        assert image.strides == full.strides
        assert image.flags.writeable


def test_random_choices_are_the_images_own(refs: list[ImageRef]) -> None:
    results = []
    for workers, processes in ((0, False), (1, False), (3, False), (2, True)):
        read = read_images(refs, workers=workers, transform=noise, seed=7, processes=processes)
        results.append(list(read))
    for result in results[1:]:
        for (seed, values), (first_seed, first_values) in zip(result, results[0], strict=True):
            assert seed == first_seed
            assert np.array_equal(values, first_values)
    seeds = [seed for seed, _ in results[0]]
    assert seeds == [image_seed(7, index) for index in range(COUNT)]
    assert len({*seeds, *(image_seed(8, index) for index in range(COUNT))}) == 2 * COUNT
    assert all(0 <= image_seed(seed, 3) < 2**63 for seed in range(1000))
    # uniform: of 4000 numbers half have each bit, within five standard deviations
    bits = np.array([[image_seed(1, index) >> bit & 1 for bit in range(63)] for index in range(4000)]).mean(0)
    assert np.abs(bits - 0.5).max() < 0.04


def test_each_worker_has_one_thread_and_this_process_is_as_before(refs: list[ImageRef]) -> None:
    before = dict(os.environ)
    seen = set(read_images(refs, workers=2, transform=environment, processes=True))
    assert dict(os.environ) == before
    assert {rest for _, *both in seen for rest in [tuple(both)]} == {("1", "1")}
    assert os.getpid() not in {pid for pid, *_ in seen}


@pytest.mark.parametrize("processes", [False, True])
def test_bad_images_are_named_in_their_place(refs: list[ImageRef], tmp_path: Path, processes: bool) -> None:
    (tmp_path / "3.jpg").write_bytes(b"no image")
    (tmp_path / "7.jpg").write_bytes(photo(7)[:-99])
    calls: list[tuple[int, BadImage, int]] = []
    images: list[Any] = []
    for image in read_images(
        refs, workers=2, processes=processes, on_bad=lambda index, error: calls.append((index, error, len(images)))
    ):
        images.append(image)
    assert [index for index, image in enumerate(images) if image is None] == [3, 7]
    assert [(index, given) for index, _, given in calls] == [(3, 3), (7, 7)]
    assert calls[0][1].reason.startswith("not an image: 8 bytes")
    assert [error.place for _, error, _ in calls] == [str(refs[3]), str(refs[7])]
    read = read_images(refs, workers=2, processes=processes)
    for _ in range(3):
        next(read)
    with pytest.raises(BadImage, match=r"3\.jpg: not an image"):
        next(read)


@pytest.mark.parametrize("processes", [False, True])
def test_files_that_cannot_be_read_are_no_bad_images(refs: list[ImageRef], processes: bool) -> None:
    os.unlink(refs[2].path)
    read = read_images(refs, workers=2, processes=processes, on_bad=lambda index, error: None)
    with pytest.raises(GuieError, match=r"2\.jpg: cannot be read: No such file"):
        list(read)


def test_scaled_decoding_reaches_the_workers(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(photo(300))
    refs = [ImageRef(str(tmp_path / "large.jpg"))]
    for workers, processes in ((0, False), (1, True)):
        read = read_images(refs, workers=workers, processes=processes, method="scaled", target=10)
        assert next(read).shape == (3, 160, 15)
        read.close()
    with pytest.raises(UsageError, match="needs a target"):
        read_images(refs, workers=0, method="scaled")


# --- what goes wrong


def test_a_worker_that_is_killed_is_named_with_its_image(refs: list[ImageRef]) -> None:
    read = read_images(refs, workers=2, transform=die_at_25, processes=True)
    first = [next(read) for _ in range(5)]
    with pytest.raises(GuieError, match=r"5\.jpg: the process that was reading it was killed; .* memory was full"):
        next(read)
    assert os.getpid() not in first


def test_errors_of_transforms_are_passed_on(refs: list[ImageRef]) -> None:
    with pytest.raises(UsageError, match="not 25") as caught:
        list(read_images(refs, workers=1, transform=fail_at_25, processes=True))
    assert "in fail_at_25" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        list(read_images(refs, workers=1, transform=fail_oddly, processes=True))
    with pytest.raises((AttributeError, RuntimeError), match=r"(?i)can't (get|pickle) local object"):
        list(read_images(refs, workers=1, transform=unpicklable, processes=True))


def test_a_transform_that_cannot_be_sent(refs: list[ImageRef]) -> None:
    with pytest.raises(GuieError, match="processes need a transform that can be pickled"):
        next(read_images(refs, workers=1, transform=lambda image: 0, processes=True))


def test_closing_early_ends_the_processes(refs: list[ImageRef]) -> None:
    read = read_images(refs, workers=2, transform=slow, processes=True)
    assert next(read) in children()
    read.close()
    assert not children()


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
from test_processes import slow
from guie_datasets import ImageRef, read_images

def main():
    refs = [ImageRef({image!r})] * 10_000
    for pid in read_images(refs, workers=2, transform=slow, processes=True):
        print(pid, flush=True)

{guard}
"""


def program(folder: Path, image: str, guard: str) -> subprocess.Popen[str]:
    script = folder / "program.py"
    script.write_text(PROGRAM.format(tests=str(Path(__file__).parent), image=image, guard=guard))
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans(refs: list[ImageRef], tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the whole group; SIGKILL the program alone."""
    running = program(tmp_path, refs[0].path, 'if __name__ == "__main__":\n    main()')
    assert running.stdout is not None
    workers = {int(running.stdout.readline()) for _ in range(8)}
    assert len(workers) == 2
    (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    _, errors = running.communicate(timeout=30)
    assert running.returncode != 0
    if number == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1  # its own, none of the workers'
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def test_a_script_without_a_guard_is_told(refs: list[ImageRef], tmp_path: Path) -> None:
    _, errors = program(tmp_path, refs[0].path, "main()").communicate(timeout=60)
    assert 'A script that uses processes needs `if __name__ == "__main__":`' in errors


def test_seeds_are_for_any_generator() -> None:
    assert random.Random(image_seed(0, 0)).random() != random.Random(image_seed(0, 1)).random()
