"""What a measurement was made on."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie_core.processors import processors
from guie_core.profiles import gpus

BUSY = 0.25  # of all cores at work before anything is measured


@dataclass(frozen=True)
class Machine:
    """A machine as it was when a measurement began.

    processors: those that this process may run on, of `cores` in all. memory: in bytes. gpus: name, memory and driver
    of each. load: how many processes wanted to run in the last minute, on the whole machine.
    """

    processor: str
    processors: int
    cores: int
    memory: int
    gpus: list[str]
    system: str
    load: float

    @property
    def busy(self) -> bool:
        """Whether others were at work, so that the figures are lower than they could be."""
        return self.load > BUSY * self.cores

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
            load=float(values["load"]),
        )


def this_machine() -> Machine:
    """The machine at hand, as it is now."""
    load = os.getloadavg()[0]
    return Machine(
        processor=_processor(),
        processors=processors(),
        cores=os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=[f"{gpu.name}, {gpu.memory_gb:.0f} GB, driver {gpu.driver}" for gpu in gpus()],
        system=platform.platform(),
        load=round(load, 2),
    )


def _processor() -> str:
    """The maker's name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
