"""C's allocator, told that what is freed will be asked for again."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 32 << 20  # bytes; the largest threshold that glibc takes, and comes to by itself

_lock = threading.Lock()
_users = 0


@contextmanager
def caching_allocator() -> Iterator[None]:
    """Within, memory that is freed stays with the process for what is allocated next; then the system has it back.

    Left to itself, glibc asks the system anew for each block of more than 32 MB, such as the activations of a batch
    on the CPU, and the system clears all of its pages: with EfficientNet-lite0 that takes three quarters of the time
    of the model itself (docs/benchmarks.md). The process holds as much as it has held at once, and what lies between
    blocks of other sizes. So this is for loops that allocate the same again and again. May be nested, and used by
    several threads. Other C libraries are left as they are.
    """
    global _users
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    with _lock:
        _users += 1
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                libc.mallopt(_MMAP_MAX, 65536)
                # what glibc comes to by itself, until it is told anything, in programs with blocks as large as ours
                libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
                libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
                libc.malloc_trim(0)
