"""From an experiment to a run: the stages in order, what became of them, and the report."""

from __future__ import annotations

import math
import os
import platform
import shlex
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from guie_core import Interrupted, UsageError
from guie_core.experiment import Experiment
from guie_core.interrupt import interruptible
from guie_core.registry import build
from guie_core.run import Run, versions
from guie_train.device import device_of
from guie_train.report import Report, StageLine, render
from guie_train.stage import Stage, StageRecord, Workspace


def default_folder(experiment: Experiment) -> Path:
    """`runs/<name>`; with overrides a folder of their own, so that variants lie beside each other."""
    variant = f"-{experiment.digest[:6]}" if experiment.overrides else ""
    return Path("runs") / f"{experiment.name}{variant}"


def train(
    experiment: Experiment,
    *,
    work_dir: Path | None = None,
    stage: str | None = None,
    start: str | None = None,
    fresh: bool = False,
) -> Path:
    """Run the stages of `experiment` and write its report; returns the run's folder.

    Args:
        experiment: loaded, hence checked.
        work_dir: the run's folder. Outputs of stages go to `store/` beside it, which runs share.
        stage: stop after this stage; no report is written.
        start: run this stage and all that follow again.
        fresh: set an earlier run in the folder aside, and begin unfinished stages from their start. Finished ones are
            reused all the same, since their outputs would be the same.

    Raises:
        UsageError: no stage has that name, or the folder holds a run of another experiment.
        Interrupted: after Ctrl-C; the same call goes on from there.
        GuieError: what the stages raise.
    """
    folder = work_dir or default_folder(experiment)
    recipe = build("recipes", experiment.recipe, where="recipe")
    stages = recipe.stages(experiment.profile)
    if stage is not None:
        stages = stages[: _position(stages, stage) + 1]
    first = len(stages) if start is None else _position(stages, start)
    again = frozenset(s.key for s in stages[first:])

    device_of(experiment.profile)  # before anything is done for it
    begin = time.monotonic()
    with Run.open(folder, experiment, fresh=fresh) as run, interruptible() as stop:
        click.echo(f"{experiment.name} on {experiment.profile.name} -> {folder}")
        width = max(len(s.name) for s in stages)
        digits = len(str(len(stages)))
        order = {s.name: number for number, s in enumerate(stages, 1)}

        def show(record: StageRecord) -> None:
            number = order.get(record.name, 0)
            took = "reused" if record.reused else f"{record.seconds:.1f} s"
            line = f" {number:{digits}}/{len(stages)} {record.name:{width}}  {took:>8}  {record.summary}"
            click.echo(line)
            run.log.debug("stage %s %s: %s, %s", record.name, record.key, took, record.summary)
            _link(record, folder)

        workspace = Workspace(folder.parent / "store", experiment.profile, stop, again, fresh, on_record=show)
        try:
            for each in stages:
                workspace.get(each)
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}. The same command goes on from there") from None
        run.record(stages=[_as_dict(record) for record in workspace.records.values()])
        if stage is None:
            report = replace(
                recipe.report(workspace),
                name=experiment.name,
                summary=experiment.doc.partition("\n")[0],
                command=_command(experiment),
                stages=[StageLine(r.name, r.seconds, r.reused, r.summary) for r in workspace.records.values()],
                profile=experiment.profile.name,
                machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
                finished=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
                versions=versions(),
                seconds=time.monotonic() - begin,
            )
            run.record(scores=_scores(report))
            page = render(report, folder / "report.html")
            click.echo(f"\n{_table(report)}\n\nreport: {page}")
    return folder


def show_plan(experiment: Experiment, *, work_dir: Path | None = None) -> None:
    """Print the stages of `experiment` and which of them an earlier run has done; runs none."""
    folder = work_dir or default_folder(experiment)
    stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
    click.echo(f"{experiment.name} on {experiment.profile.name} -> {folder} (dry run)")
    with interruptible() as stop:
        workspace = Workspace(folder.parent / "store", experiment.profile, stop)
        width = max(len(s.name) for s in stages)
        done: set[str] = set()
        for number, stage in enumerate(stages, 1):
            # looked at in order: whether a stage's outputs are there is only known once its inputs' are
            there = all(source.name in done for source in stage.inputs()) and workspace.complete(stage)
            if there:
                done.add(stage.name)
            state = "done before" if there else "to do"
            click.echo(f" {number:2}/{len(stages)} {stage.name:{width}}  {state:11}  {workspace.folder(stage)}")


def _command(experiment: Experiment) -> str:
    overrides = [part for override in experiment.overrides for part in ("--set", override)]
    return shlex.join(["guie-train", str(experiment.path), *overrides])


def _scores(report: Report) -> list[dict[str, Any]]:
    """The means of each system, as run.json keeps them; None where no query can be answered."""
    return [
        {"system": s.name, "augmented": s.augmented, "dimension": s.dimension}
        | {name: None if math.isnan(value) else round(value, 6) for name, value in s.result.overall.items()}
        for s in report.systems
    ]


def _table(report: Report) -> str:
    """The first metric of each system, one view beside switched augmentation."""
    metric = next(iter(report.systems[0].result.per_query))
    queries = report.systems[0].result
    classes = len(np.unique(report.images.labels[queries.pairs.queries]))
    augmented = any(system.augmented for system in report.systems)
    lines = [f"{metric} of {len(queries.pairs.queries):,} queries of {classes:,} unseen classes"]
    header = f"{'one view':>10}" + (f"  {'switched augmentation':>21}" if augmented else "")
    lines.append(f" {'':22}{header}")
    for name in dict.fromkeys(system.name for system in report.systems):
        found = {s.augmented: s.result.overall[metric] for s in report.systems if s.name == name}
        dimension = next(s.dimension for s in report.systems if s.name == name)
        row = f" {f'{name} ({dimension}-d)':22}{found[False]:>10.3f}"
        lines.append(row + (f"  {found[True]:>21.3f}" if True in found else ""))
    return "\n".join(lines)


def _position(stages: list[Stage[Any]], name: str) -> int:
    for number, stage in enumerate(stages):
        if stage.name == name:
            return number
    raise UsageError(f"this recipe has no stage {name!r}; its stages are: {', '.join(repr(s.name) for s in stages)}")


def _link(record: StageRecord, folder: Path) -> None:
    """Point `stages/<name>` of the run at the stage's outputs, by a relative link so that both can be moved."""
    link = folder / "stages" / record.name.replace(" ", "-")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("../..") / record.folder.relative_to(folder.parent))


def _as_dict(record: StageRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "key": record.key,
        "seconds": round(record.seconds, 2),
        "reused": record.reused,
        "summary": record.summary,
    }
