"""A measurement in words, and two of them beside each other."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from guie_core.experiment import differences
from guie_core.tables import table
from guie_core.wording import listing, size
from guie_train.bench import PARTS
from guie_train.bench.results import Bench, Part

WIDTH = 100  # columns

Named = tuple[str, Bench]


def report(bench: Bench) -> str:
    """What was measured, on what."""
    machine = bench.machine
    about = [machine.processor, f"{machine.processors} of {machine.cores} cores", size(machine.memory), _gpus(bench)]
    rows = [("", "rate", "slowest - fastest", "memory")]
    rows += [(name, _rate(part), _spread(part), _memory(part)) for name, part in bench.parts.items()]
    lines = [
        _filled(
            f"{', '.join(filter(None, about))}; profile {bench.profile}; torch {bench.versions.get('torch', 'missing')}"
        ),
        table(rows, width=WIDTH),
        table([(name, _facts(part)) for name, part in bench.parts.items()], width=WIDTH),
    ]
    if machine.busy:
        lines.append(_filled(f"The machine was busy: {_others(bench)}. Measure again when it is quiet."))
    return "\n".join(lines)


def comparison(a: Named, b: Named) -> str:
    """Rates and memory side by side, with B's ratio to A's, and what differs between the two.

    A difference is beyond the spread if every round of one was faster than every round of the other. Parts that did
    other work aren't compared: it is said what differs.
    """
    (_, first), (_, second) = a, b
    rows: list[tuple[str, ...]] = [("", "A", "B", "B / A", "")]
    for part in PARTS:
        if part in first.parts or part in second.parts:
            rows += _rows(part, first.parts.get(part), second.parts.get(part))
    lines = [
        _filled(f"{letter} is {name}, of {bench.made}{_unfinished(bench)}")
        for letter, (name, bench) in (("A", a), ("B", b))
    ]
    lines.append(table(rows, width=WIDTH))
    differing = list(_circumstances(first, second))
    lines.append(table(differing, width=WIDTH) if differing else "Machine, versions and profile are the same.")
    for letter, bench in (("A", first), ("B", second)):
        if bench.machine.busy:
            lines.append(_filled(f"{letter} was measured on a busy machine, which explains much: {_others(bench)}."))
    return "\n".join(lines)


def _unfinished(bench: Bench) -> str:
    """Which parts it was stopped before."""
    return f", which was stopped before {listing(bench.missing)}" if bench.missing else ""


def _others(bench: Bench) -> str:
    """How busy its machine was."""
    return f"others kept {bench.machine.busy_cores:g} of its {bench.machine.cores} cores at work"


def _gpus(bench: Bench) -> str:
    """ "8 x H9, 80 GB, driver 1"; "" for none."""
    return ", ".join(f"{count} x {gpu}" if count > 1 else gpu for gpu, count in Counter(bench.machine.gpus).items())


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _rate(part: Part) -> str:
    """A rate for people: "212.4 images/s"."""
    return f"{_number(part.rate.median)} {_plural(part.unit)}/s"


def _memory(part: Part) -> str:
    """The memory for people: "38.0 MB", "38.0 MB, GPU 1.2 GB"."""
    parts = [] if part.memory.machine is None else [size(part.memory.machine)]
    parts += [] if part.memory.device is None else [f"GPU {size(part.memory.device)}"]
    return ", ".join(parts) or "not known"


def _spread(part: Part) -> str:
    """The slowest and the fastest round: "205.1 - 214.0"."""
    return f"{_number(part.rate.least)} - {_number(part.rate.most)}"


def _facts(part: Part) -> str:
    """What was done, and how: "timm/vit_small_patch16_224, image size 224, cpu"."""
    told = [
        str(value) if key in ("images", "backbone", "device", "dtype") else f"{key.replace('_', ' ')} {_value(value)}"
        for key, value in {**part.work, **part.settings}.items()
        if not isinstance(value, Mapping) and key != "flops_per_image"
    ]
    if flops := part.flops_per_second:
        told.append(f"{flops / 1e9:,.0f} GFLOP/s")
    return ", ".join(told)


def _rows(name: str, first: Part | None, second: Part | None) -> Iterator[tuple[str, ...]]:
    if first is None or second is None:
        there = first or second
        assert there is not None
        rates = [_rate(each) if each else "-" for each in (first, second)]
        yield (name, *rates, "", f"only in {'A' if first else 'B'}")
        return
    other = _different(first.work, second.work)
    if first.unit != second.unit or other:
        yield (name, _rate(first), _rate(second), "", f"not compared, since the work differs: {other or 'its unit'}")
        return
    ratio = second.rate.median / first.rate.median
    settings = _different(first.settings, second.settings)
    told = _verdict(first, second) + (f"; other settings: {settings}" if settings else "")
    yield (name, _rate(first), _rate(second), f"{ratio:.2f}", told)
    for what, held, holds in (
        ("memory", first.memory.machine, second.memory.machine),
        ("GPU memory", first.memory.device, second.memory.device),
    ):
        if held is not None or holds is not None:
            sizes = ["-" if each is None else size(each) for each in (held, holds)]
            yield (f"  {what}", *sizes, f"{holds / held:.2f}" if held and holds else "", "")


def _verdict(first: Part, second: Part) -> str:
    if second.rate.least > first.rate.most:
        return "B is faster, beyond the spread"
    if second.rate.most < first.rate.least:
        return "B is slower, beyond the spread"
    return "no difference beyond the spread"


def _circumstances(first: Bench, second: Bench) -> Iterator[tuple[str, str]]:
    """What differs around the parts, by aspect."""
    machines = [
        {key: value for key, value in asdict(bench.machine).items() if key != "busy_cores"} | {"gpus": _gpus(bench)}
        for bench in (first, second)
    ]
    versions, profiles = (first.versions, second.versions), ({"": first.profile}, {"": second.profile})
    for what, (a, b) in {"machine": machines, "versions": versions, "profile": profiles}.items():
        if told := _different(a, b):
            yield what, told


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """ "dtype float32 in A, bfloat16 in B"; "" for equals."""
    found = differences(first, second, where="")
    return "; ".join(f"{key.strip('.')} {_bare(a)} in A, {_bare(b)} in B".strip() for key, a, b in found)


def _bare(value: str) -> str:
    return "missing" if value in ("-", "''") else value.strip("'")


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"


def _plural(unit: str) -> str:
    return {"query": "queries"}.get(unit, f"{unit}s")
