"""Bytes and images by reference, read ahead by threads or processes, in order."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeVar, overload

from guie_core import GuieError, UsageError
from guie_datasets.compressed import PackedFiles
from guie_datasets.images.decoding import BadImage, Method, check_method, decode
from guie_datasets.images.processes import Processes
from guie_datasets.rows import ImageRef, open_file, read_part

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")

#: Shards that a thread keeps open.
OPEN_FILES = 16


@overload
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    window: int | None = None,
    method: Method = "full",
    target: int | None = None,
    processes: bool = False,
) -> Generator[NDArray[np.uint8], None, None]: ...
@overload
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    window: int | None = None,
    method: Method = "full",
    target: int | None = None,
    on_bad: Callable[[int, BadImage], object],
    processes: bool = False,
) -> Generator[NDArray[np.uint8] | None, None, None]: ...
@overload
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    transform: Callable[..., R],
    seed: int | None = None,
    window: int | None = None,
    method: Method = "full",
    target: int | None = None,
    processes: bool = False,
) -> Generator[R, None, None]: ...
@overload
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    transform: Callable[..., R],
    seed: int | None = None,
    window: int | None = None,
    method: Method = "full",
    target: int | None = None,
    on_bad: Callable[[int, BadImage], object],
    processes: bool = False,
) -> Generator[R | None, None, None]: ...
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    transform: Callable[..., Any] | None = None,
    seed: int | None = None,
    window: int | None = None,
    method: Method = "full",
    target: int | None = None,
    on_bad: Callable[[int, BadImage], object] | None = None,
    processes: bool = False,
) -> Generator[Any, None, None]:
    """The decoded images, uint8 [3, H, W] each, in the order of `refs`; or what `transform` makes of each.

    `workers` threads read, decode and transform ahead; at most `window` images (default: 4 for each worker) are held at
    a time. 0 workers: everything happens in the calling thread. Closing the generator ends them and closes the files.

    Args:
        refs: where the images are.
        workers: how many work at a time; a core each is what pays.
        transform: image -> anything; with a seed, (image, number) -> anything.
        seed: what is random in a transform follows from the number that it gets: `image_seed(seed, index)`, the same
            whoever works and however many there are.
        window: images ahead.
        method, target: how images are decoded, see `decode`.
        on_bad: called with the index and the error for an image that can't be decoded, in its place in the order and in
            the calling thread; None stands for the image then.
        processes: a process for each worker, with one thread inside, see `guie_datasets.images.processes`. Threads are
            the default: they start at once, and are as fast where decoders and torch do the work, which let go of the
            interpreter (332 photos of 1024 x 768 and their views of 224 a second on two cores, 327 by processes:
            `benchmarks/decoding.py`). Processes take a second or more to start, and pay where a transform is Python
            code. `transform` must be picklable then, and give numpy arrays to be fast.

    Raises BadImage, with the place, for an image that cannot be decoded, unless there is `on_bad`; GuieError for one
    that cannot be read, and for a process that was killed; the images before it have been given by then. UsageError as
    `decode` does.
    """
    if workers < 0:
        raise UsageError(f"workers is {workers}; it is how many work at a time, or 0 for the calling thread")
    check_method(method, target)
    work = _Work(transform, seed, method, target)
    return _read_images(refs, workers, work, window or 4 * max(workers, 1), on_bad, processes and workers > 0)


def image_seed(seed: int, index: int) -> int:
    """A number in 0..2^63-1 for the image at `index`: independent of its neighbours', and the same everywhere."""
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class _Work:
    """What happens to an image, wherever it happens."""

    transform: Callable[..., Any] | None
    seed: int | None
    method: Method
    target: int | None

    def __call__(self, stack: ExitStack) -> Callable[[int, ImageRef], Any]:
        """A function of an image's index and reference, whose files the stack closes."""
        return functools.partial(self._read, stack.enter_context(Reader()))

    def _read(self, reader: Reader, index: int, ref: ImageRef) -> Any:
        data = reader.read(ref)
        try:
            image = decode(data, self.method, self.target)
        except BadImage as error:
            return BadImage(error.reason, str(ref))
        if self.transform is None:
            return image.transpose(1, 2, 0)  # as it lies in memory
        return self.transform(image) if self.seed is None else self.transform(image, image_seed(self.seed, index))


def _read_images(
    refs: Sequence[ImageRef],
    workers: int,
    work: _Work,
    window: int,
    on_bad: Callable[[int, BadImage], object] | None,
    processes: bool,
) -> Generator[Any, None, None]:
    with ExitStack() as stack:
        if processes:
            pool = stack.enter_context(Processes(work, workers))
            read: Callable[[int, ImageRef], Any] = lambda index, ref: pool.call(str(ref), index, ref)  # noqa: E731
        else:
            read = work(stack)
        results = ordered_map(lambda item: read(*item), enumerate(refs), workers, window)
        stack.callback(results.close)
        for index, result in enumerate(results):
            if isinstance(result, BadImage):
                if on_bad is None:
                    raise result
                on_bad(index, result)
                yield None
            else:
                yield result.transpose(2, 0, 1) if work.transform is None else result


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int, window: int) -> Generator[R, None, None]:
    """`map` by `workers` threads, with at most `window` results ahead; order and errors are those of `map`."""
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="guie-read")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Reader:
    """Reads references from any thread; each thread keeps the last shards open that it read from."""

    def __init__(self, open_files: int = OPEN_FILES) -> None:
        self._open_files = open_files
        self._local = threading.local()
        self._all: list[OrderedDict[str, IO[bytes]]] = []
        self._packed = PackedFiles()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        for files in self._all:
            while files:
                files.popitem()[1].close()

    def read(self, ref: ImageRef) -> bytes:
        """As `ref.read()`."""
        if ref.compression:
            return self._packed.read(ref)
        if ref.length is None:
            return ref.read()  # a file of its own: nothing to keep open
        try:
            data = read_part(self._file(ref.path), ref.offset, ref.length)
        except OSError as error:
            raise GuieError(f"{ref}: cannot be read: {error.strerror or error}") from error
        return data if len(data) == ref.length else ref.read()  # which says what is missing

    def _file(self, path: str) -> IO[bytes]:
        files: OrderedDict[str, IO[bytes]] | None = getattr(self._local, "files", None)
        if files is None:
            files = self._local.files = OrderedDict()
            self._all.append(files)
        if path in files:
            files.move_to_end(path)
        else:
            if len(files) >= self._open_files:
                files.popitem(last=False)[1].close()
            files[path] = open_file(path)  # closed above or in __exit__
        return files[path]
