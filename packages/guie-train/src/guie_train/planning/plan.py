"""A plan: the stages of an experiment, what each takes, and what stands in the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from guie_core import GuieError
from guie_core.plugins import plugins
from guie_core.profiles import Profile
from guie_core.wording import shown, size
from guie_train.planning.forecast import Forecast, Missing, Outlook
from guie_train.stage import Stage, Workspace

State = Literal["done before", "again", "begun", "to do"]
CONTEXT = 0.6e9
"""Bytes of a GPU's memory that CUDA and its libraries keep to themselves."""


@dataclass(frozen=True)
class Step:
    """A stage of a plan.

    begun: a run that did not end has left a part of the outputs. on_disk: bytes of outputs that are whole, which stay
    until what is made again is.
    """

    name: str
    state: State
    on_disk: int
    forecast: Forecast

    @property
    def disk(self) -> float | None:
        """Bytes of its outputs."""
        return self.on_disk if self.state == "done before" else self.forecast.disk


@dataclass(frozen=True)
class Plan:
    """What an experiment takes on a profile."""

    profile: Profile
    steps: Sequence[Step]

    @property
    def to_do(self) -> list[Step]:
        """The steps that are not done."""
        return [step for step in self.steps if step.state != "done before"]

    @property
    def to_write(self) -> float:
        """Bytes of the disk that will be taken at the most, as far as they are known: a stage may give back a part of
        what it takes before the next one begins."""
        peak = kept = 0.0
        for step in self.to_do:
            peak = max(peak, kept + (step.forecast.disk or 0))
            kept += _stays(step)
        return peak

    @property
    def to_stay(self) -> float:
        """Bytes of the disk that are taken when all is done, besides those that are now."""
        return sum(map(_stays, self.to_do))

    @property
    def missing(self) -> list[Missing]:
        """What isn't there, each once."""
        return list(dict.fromkeys(each for step in self.to_do for each in step.forecast.missing))

    def device(self, step: Step) -> float | None:
        """Bytes of the GPU's memory at a step's peak; 0 without a GPU."""
        return step.forecast.device if self.profile.device == "cuda" else 0

    def host(self, step: Step) -> float | None:
        """Bytes of the machine's memory at a step's peak; without a GPU, what would be in its memory as well."""
        host, device = step.forecast.host, step.forecast.device
        if self.profile.device == "cuda" or host is None:
            return host
        return None if device is None else host + device

    @property
    def memory(self) -> float:
        """Bytes that the profile has on its device for the tensors of a stage."""
        return self.profile.memory_gb * 2**30 - CONTEXT

    def refusal(self, memory: float, where: str) -> str:
        """Why the steps do not fit into so many bytes of a GPU's memory, and what does; "" if they fit.

        Nothing that is proposed changes the effective batch or the schedule.
        """
        large = [step for step in self.to_do if (self.device(step) or 0) > memory]
        if not large:
            return ""
        lines = [f"{where} has {size(memory)} for a stage, which is too small:"]
        fitting: dict[str, list[str]] = {}
        for step in large:
            lines.append(f"  {step.name} takes {size(self.device(step) or 0)}")
            for option in step.forecast.lighter(memory):
                fitting.setdefault(option, []).append(step.name)
        lines += [f"{', '.join(names)}: fits with {option}" for option, names in fitting.items()]
        if larger := list(self._larger(max(self.device(step) or 0 for step in large))):
            lines.append(f"A GPU that has room for it as it is: {', '.join(larger)}")
        return "\n".join(lines)

    def _larger(self, needed: float) -> Iterator[str]:
        """Options for the profiles whose memory is enough."""
        for entry in plugins().entries("profiles"):
            found = entry.load()
            if isinstance(found, Profile) and found.memory_gb * 2**30 - CONTEXT >= needed:
                yield f"--profile {entry.name}"


def make_plan(
    stages: Sequence[Stage[Any]],
    again: Sequence[Stage[Any]],
    workspace: Workspace,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Plan:
    """Look at what is there, and ask each stage that is not done what it takes. Nothing is written or fetched.

    Args:
        stages: each after its inputs.
        again: those to run although their outputs are there.
        on_stage: told the name of each stage before it is asked.

    Raises:
        GuieError: components refuse their settings.
    """
    look = workspace.look()
    states = states_of(stages, again, look)
    ready = {name for name, state in states.items() if state == "done before"}
    outlook = Outlook(look, lambda stage: stage.name in ready, workspace.processes.count, lambda stage: stage in again)
    steps = []
    for stage in stages:
        on_stage(stage.name)
        state = states[stage.name]
        on_disk = _bytes(look.folder(stage)) if state in ("done before", "again") else 0
        found = Forecast() if state == "done before" else outlook.forecast(stage)
        steps.append(Step(stage.name, state, on_disk, found))
    return Plan(workspace.profile, steps)


def states_of(stages: Sequence[Stage[Any]], again: Sequence[Stage[Any]], workspace: Workspace) -> dict[str, State]:
    """What there is of each stage's outputs, by its name.

    Args:
        stages: each after its inputs.
        again: those to run although their outputs are there.
        workspace: one to look at (`Workspace.look`).
    """
    found: dict[str, State] = {}
    for stage in stages:
        # in order: whether a stage's outputs are there is known once its inputs' are
        if all(found.get(source.name) == "done before" for source in stage.inputs()) and _seen(
            workspace.complete, stage
        ):
            found[stage.name] = "again" if stage in again else "done before"
        else:
            found[stage.name] = "begun" if _seen(workspace.begun, stage) else "to do"
    return found


def _stays(step: Step) -> float:
    found = step.forecast
    return (found.disk if found.stays is None else found.stays) or 0


def _seen(look: Callable[[Stage[Any]], bool], stage: Stage[Any]) -> bool:
    try:
        return look(stage)
    except GuieError:  # of what it reads, something is not there
        return False


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_space(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def full_disk(plan: Plan, folder: Path) -> str:
    """That the disk has no room for what is still to be written below `folder`; "" if it has."""
    free = free_space(folder)
    if plan.to_write <= free:
        return ""
    return f"disk: {size(plan.to_write)} are to be written, and {size(free)} are free where {shown(folder)} is"


def obstacles(plan: Plan, folder: Path) -> Iterator[str]:
    """What stands in the way besides what is missing: room on the disk, and in this machine's memory."""
    if full := full_disk(plan, folder):
        yield full
    memory = max((plan.host(step) or 0 for step in plan.to_do), default=0)
    if plan.profile.device == "cpu" and memory > machine_memory():
        yield f"memory: {size(memory)} are needed, and this machine has {size(machine_memory())}"
