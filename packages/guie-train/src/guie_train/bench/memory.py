"""How much memory a piece of work takes above what was held when it began."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, above the start; None where they aren't known. device: of a GPU, as torch allocates it."""

    machine: int | None = None
    device: int | None = None


class Peak:
    """Filled in by :func:`peak`."""

    memory = Memory()


@contextlib.contextmanager
def peak(device: torch.device | None = None) -> Iterator[Peak]:
    """The peak of this process's resident memory during the block, and of the GPU's if `device` is one.

    Imports belong before the block: their memory is no part of the work.
    """
    found = Peak()
    on_gpu = device is not None and device.type == "cuda"
    held = 0
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        _RESET.write_text("5")  # the peak begins anew; where that isn't allowed, it may be that of the imports
    start = _resident("VmRSS")
    try:
        yield found
    finally:
        most = _resident("VmHWM")
        machine = None if start is None or most is None else max(most - start, 0)
        found.memory = Memory(machine, torch.cuda.max_memory_allocated(device) - held if on_gpu else None)


def _resident(name: str) -> int | None:
    """A line of this process's status, in bytes; None where the system has no such thing."""
    with contextlib.suppress(OSError, ValueError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
