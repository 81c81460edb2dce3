"""What a measurement was made on."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie_core.processors import processors
from guie_core.profiles import gpus

BUSY = 0.25  # of all cores at work for others before anything is measured
MOMENT = 0.5  # seconds over which that is looked at, which are some fifty ticks of the system's clock for each core

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # of the times in its first line, those without work: idle, and waiting for a disk
_TIMES = 8  # what comes after these is counted among them already: guests


@dataclass(frozen=True)
class Machine:
    """A machine as it was when a measurement began.

    processors: those that this process may run on, of `cores` in all. memory: in bytes. gpus: name, memory and driver
    of each. busy_cores: how many others kept at work in the moment before, on the whole machine; None where the system
    doesn't tell.
    """

    processor: str
    processors: int
    cores: int
    memory: int
    gpus: list[str]
    system: str
    busy_cores: float | None

    @property
    def busy(self) -> bool:
        """Whether others were at work, so that the figures are lower than they could be."""
        return (self.busy_cores or 0) > BUSY * self.cores

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Machine:
        """What `asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            processor=str(values["processor"]),
            processors=int(values["processors"]),
            cores=int(values["cores"]),
            memory=int(values["memory"]),
            gpus=[str(each) for each in values["gpus"]],
            system=str(values["system"]),
            # the "load" of older files was that of the minute before, hence mostly of guie itself
            busy_cores=None if (busy := values.get("busy_cores")) is None else float(busy),
        )


def this_machine() -> Machine:
    """The machine at hand, as it is now; it takes a moment, in which this process does nothing."""
    return Machine(
        processor=_processor(),
        processors=processors(),
        cores=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=[f"{gpu.name}, {gpu.memory_gb:.0f} GB, driver {gpu.driver}" for gpu in gpus()],
        system=platform.platform(),
        busy_cores=_busy_cores(),
    )


def _busy_cores() -> float | None:
    """Cores that others keep at work. A load average won't do: it is of the minute before, when a measurement that has
    just ended was at work itself."""
    before, own = _times(), time.process_time()
    time.sleep(MOMENT)
    after, own = _times(), time.process_time() - own
    passed = [end - start for start, end in zip(before, after, strict=False)]
    if not sum(passed):
        return None
    idle = sum(passed[number] for number in _IDLE)
    cores = os.cpu_count() or 1
    of_others = (sum(passed) - idle) / sum(passed) * cores - own / MOMENT
    return round(max(of_others, 0.0), 2)


def _times() -> list[int]:
    """What all cores together have spent their time on since the system began, in ticks; [] where it doesn't tell."""
    with contextlib.suppress(OSError, ValueError):
        name, *ticks = _STAT.read_text().partition("\n")[0].split()
        return [int(each) for each in ticks[:_TIMES]] if name == "cpu" else []
    return []


def _processor() -> str:
    """The maker's name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
