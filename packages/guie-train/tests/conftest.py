"""What several tests share."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from guie_core import GuieError
from guie_core.interrupt import Stop
from guie_train.processes import Processes, joined


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files end after 2 kB, as they would on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class _StopAfter(Stop):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def stop_after() -> Callable[[int], Stop]:
    """Asks to stop once it was looked at so many times, as Ctrl-C during that step would."""
    return _StopAfter


def _one(rank: int, count: int, port: int, do: Callable[[Processes], Any], found: Any) -> None:
    torch.set_num_threads(1)  # a forked process has none of the threads that its parent had
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with joined() as processes:
            found.put(pickle.dumps((rank, do(processes))))
    except GuieError as error:
        found.put(pickle.dumps((rank, error)))


def _in_processes(count: int, do: Callable[[Processes], Any]) -> list[Any]:
    """What `do` gives, or the GuieError that it raises, in each of `count` processes; None of one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()
    started = [context.Process(target=_one, args=(rank, count, port, do, found)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert not process.is_alive()
    results: dict[int, Any] = {}
    while not found.empty():
        rank, result = pickle.loads(found.get())  # tensors by value, not as memory of a process that has ended
        results[rank] = result
    return [results.get(rank) for rank in range(count)]


@pytest.fixture
def in_processes() -> Callable[[int, Callable[[Processes], Any]], list[Any]]:
    """Runs a function in so many processes, connected to each other; gives what `_in_processes` says."""
    return _in_processes
