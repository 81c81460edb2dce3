"""What several tests share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator

import pytest

from guie_core.interrupt import Stop


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
