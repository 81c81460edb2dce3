"""A plan as text, 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from guie_core.wording import duration, size
from guie_train.planning.plan import Plan, Step, free_space, obstacles

WIDTH = 100
SHORT = 24  # of a reason that there is room for in the column of times


def page(plan: Plan, folder: Path) -> str:
    """All there is to say of `plan`, whose outputs go below `folder`."""
    parts = ["\n".join(_table(plan)), "\n".join(_sums(plan, folder))]
    if plan.missing:
        parts.append("\n".join(_missing(plan)))
    if problems := list(obstacles(plan, folder)):
        parts.append("\n".join(["In the way", *_wrapped(problems)]))
    return "\n\n".join(parts)


def _table(plan: Plan) -> Iterator[str]:
    digits = len(str(len(plan.steps)))
    width = max(len(step.name) for step in plan.steps)
    gpu = plan.profile.device == "cuda"
    indent = 2 * digits + 3
    told: set[str] = set()
    head = ["disk", *(["GPU"] if gpu else []), "memory"]
    yield f"{'':{indent}}{'stage':{width}}  {'':11}{''.join(f'{name:>10}' for name in head)}  time"
    for number, step in enumerate(plan.steps, 1):
        figures = [step.disk]
        if step.state == "done before":
            figures += [None] * (len(head) - 1)
        else:
            figures += [*([plan.device(step)] if gpu else []), plan.host(step)]
        cells = "".join(f"{_size(figure):>10}" for figure in figures)
        row = f" {number:{digits}}/{len(plan.steps)} {step.name:{width}}  {step.state:11}{cells}  {_time(step)}"
        yield row.rstrip()
        # of stages that are alike, only what differs
        details = [line for line in _details(step) if line not in told]
        told.update(details)
        yield from _wrapped(details, " " * indent)


def _details(step: Step) -> Iterator[str]:
    found = step.forecast
    if found.does:
        yield found.does
    if found.parameters:
        part = {None: "", 0: ", none trained", found.parameters: ", all trained"}
        yield f"{found.parameters:,} parameters{part.get(found.trained, f', {found.trained or 0:,} trained')}"
    if found.seconds is not None:
        yield f"time: {found.basis}"
    elif found.basis != _time(step):
        yield found.basis


def _time(step: Step) -> str:
    found = step.forecast
    if step.state == "done before":
        return ""
    if found.seconds is None:
        return found.basis if 0 < len(found.basis) <= SHORT else "not known"
    return _lasting(found.seconds, found.at_least)


def _lasting(seconds: float, at_least: bool) -> str:
    """A foretold time: "about 3 min", "at least 2 h 05 min", or what is honest to say of parts of a second."""
    if seconds < 1:
        return "seconds" if at_least else "under a second"
    return f"{'at least' if at_least else 'about'} {duration(seconds)}"


def _size(count: float | None) -> str:
    return "-" if not count else size(count)


def _sums(plan: Plan, folder: Path) -> Iterator[str]:
    steps = plan.to_do
    if not steps:
        where = " on a machine with a GPU" if plan.profile.device == "cuda" else ""
        yield f"All is done: the same command without --dry-run reuses it{where}."
        return
    yield "In all"
    more = " at least" if any(step.disk is None for step in steps) else ""
    disk = f"{size(plan.to_write)} to be written{more}" if plan.to_write or not more else "not known yet"
    stays = f", {size(plan.to_stay)} of them to stay" if plan.to_stay < plan.to_write else ""
    yield f"  disk    {disk}{stays}, of {size(free_space(folder))} that are free"
    if plan.profile.device == "cuda":
        device = max(plan.device(step) or 0 for step in steps)
        yield f"  GPU     {size(device)} at the peak, of {size(plan.memory)} that a stage can have"
    yield f"  memory  {size(max(plan.host(step) or 0 for step in steps))} at the peak"
    known = [step.forecast for step in steps if step.forecast.seconds is not None]
    if known:
        lasting = _lasting(sum(found.seconds or 0 for found in known), any(found.at_least for found in known))
        yield f"  time    {lasting}, and stages without a figure"


def _missing(plan: Plan) -> Iterator[str]:
    yield "Missing"
    for each in plan.missing:
        yield from _wrapped([each.what], "  ")
        for line in filter(None, (*each.where.splitlines(), each.command)):
            yield f"      {line}"


def _wrapped(texts: Iterable[str], indent: str = "  ") -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(
            text,
            WIDTH,
            initial_indent=indent,
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
