"""Bytes and images by reference, read ahead by threads, in order."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, TypeVar, overload

from guie_core import GuieError

from .compressed import PackedFiles
from .decoding import BadImage, decode
from .rows import ImageRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")

#: Shards that a thread keeps open.
OPEN_FILES = 16


@overload
def read_images(
    refs: Sequence[ImageRef], *, workers: int, window: int | None = None
) -> Generator[NDArray[np.uint8], None, None]: ...
@overload
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    transform: Callable[[NDArray[np.uint8]], R],
    window: int | None = None,
) -> Generator[R, None, None]: ...
def read_images(
    refs: Sequence[ImageRef],
    *,
    workers: int,
    transform: Callable[[NDArray[np.uint8]], Any] | None = None,
    window: int | None = None,
) -> Generator[Any, None, None]:
    """The decoded images, uint8 [3, H, W] each, in the order of `refs`; or what `transform` makes of each.

    `workers` threads read, decode and transform ahead. They run in parallel: Pillow lets go of the interpreter while it
    decodes, and numpy while it copies. At most `window` images (default: 4 for each worker) are held at a time.
    0 workers: everything happens in the calling thread. Closing the generator stops the threads and closes the files.

    Raises BadImage, with the place, for an image that cannot be decoded, and GuieError for one that cannot be read;
    the images before it have been given by then.
    """
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    return _read_images(refs, workers, transform, window or 4 * max(workers, 1))


def _read_images(
    refs: Sequence[ImageRef], workers: int, transform: Callable[[NDArray[np.uint8]], Any] | None, window: int
) -> Generator[Any, None, None]:
    with Reader() as reader:

        def read(ref: ImageRef) -> Any:
            data = reader.read(ref)
            try:
                image = decode(data)
            except BadImage as error:
                raise BadImage(error.reason, str(ref)) from error
            return image if transform is None else transform(image)

        yield from ordered_map(read, refs, workers, window)


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
            file = self._file(ref.path)
            file.seek(ref.offset)
            data = file.read(ref.length)
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
            files[path] = open(path, "rb")  # noqa: SIM115  closed above or in __exit__
        return files[path]
