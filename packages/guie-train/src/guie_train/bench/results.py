"""The file of a measurement: JSON, with a format number.

::

    {"format": "guie bench", "schema": 1, "made": ..., "machine": {...}, "versions": {...}, "profile": "cpu",
     "asked": {"backbone": ..., "dtype": ..., "images": null, "seconds": 3.0}, "missing": ["search"],
     "parts": {"backbone": {"unit": "image",
                            "rate": {"median": ..., "least": ..., "most": ..., "rounds": ...},
                            "memory": {"machine": bytes, "device": bytes or null},
                            "work": {"backbone": ..., "image_size": ..., "flops_per_image": ...},
                            "settings": {"device": ..., "dtype": ..., "batch": ..., "threads": ...}}}}

A measurement has a file of its own until it is complete (`partial_of`): `missing` are the parts that it was stopped
before. `asked` is how parts were to be measured. `work` is what was done, and must be the same for two rates to be
compared; `settings` are how.
`flops_per_image` are the operations of the backbone's products, an addition and a multiplication each: times the rate
of the part "backbone", they are what it reaches on this device in this dtype.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from guie_core import UsageError
from guie_core.files import atomic_write
from guie_core.wording import shown
from guie_train.bench import PARTS
from guie_train.bench.machine import Machine
from guie_train.bench.memory import Memory
from guie_train.bench.meter import Rate

FORMAT, SCHEMA = "guie bench", 1
UNITS = ("image", "step", "query")


@dataclass(frozen=True)
class Part:
    """What was measured of one part. unit: what `rate` counts, "image"."""

    unit: str
    rate: Rate
    memory: Memory
    work: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def flops_per_second(self) -> float | None:
        """Operations a second, where they were counted."""
        flops = self.work.get("flops_per_image")
        return None if flops is None else self.rate.median * float(flops)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Part:
        """What `asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        if values["unit"] not in UNITS:
            raise ValueError(f"nothing is counted in {values['unit']!r}")
        rate, memory = Rate(**values["rate"]), Memory(**values["memory"])
        if not all(math.isfinite(each) and each > 0 for each in (rate.median, rate.least, rate.most)):
            raise ValueError("a rate is a number above 0")
        if not all(each is None or each >= 0 for each in (memory.machine, memory.device)):
            raise ValueError("memory is a number of bytes")
        return cls(values["unit"], rate, memory, dict(values["work"]), dict(values["settings"]))


@dataclass(frozen=True)
class Bench:
    """A measurement.

    made: when it began, ISO 8601. profile: its name. parts: by name, in the order of PARTS. asked: options of the
    command that go for all parts. missing: parts that were asked for and are still to be measured.
    """

    made: str
    machine: Machine
    versions: Mapping[str, str]
    profile: str
    parts: Mapping[str, Part]
    asked: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Raises GuieError: the file cannot be written."""
        with atomic_write(path, "w") as file:
            json.dump({"format": FORMAT, "schema": SCHEMA} | asdict(self), file, indent=1, allow_nan=False)
            file.write("\n")

    @classmethod
    def read(cls, path: Path) -> Bench:
        """Raises UsageError: it isn't there, was not written by `guie bench`, or is damaged or of another format."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, thousands of brackets
            raise UsageError(f"{shown(path)} is damaged, or was not written by guie bench: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UsageError(f"{shown(path)} was not written by guie bench")
        if values.get("schema") != SCHEMA:
            raise UsageError(
                f"{shown(path)} is of format {values.get('schema')}; this guie knows format {SCHEMA}. "
                "Measure again with this one, or compare with the guie that wrote it"
            )
        try:
            return cls(
                datetime.datetime.fromisoformat(values["made"]).isoformat(),
                Machine.from_dict(values["machine"]),
                dict(values["versions"]),
                str(values["profile"]),
                {name: Part.from_dict(values["parts"][name]) for name in PARTS if name in values["parts"]},
                dict(values.get("asked", {})),
                tuple(name for name in PARTS if name in values.get("missing", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{shown(path)} is damaged ({type(error).__name__}: {error}). Measure again with guie bench"
            ) from error


def partial_of(path: Path) -> Path:
    """Where the measurement that is to be the file `path` is until it is complete: "bench.partial.json"."""
    return path.with_suffix(f".partial{path.suffix}")


def is_bench(path: Path) -> bool:
    """Whether `guie bench` wrote the file, by its first bytes."""
    try:
        with open(path, "rb") as file:
            return file.read(100).startswith(f'{{\n "format": "{FORMAT}"'.encode())
    except OSError:
        return False
