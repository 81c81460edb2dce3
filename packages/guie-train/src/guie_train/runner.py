"""From an experiment to a run: the stages in order, what became of them, and the report."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import numpy as np

from guie_core import ExperimentError, GuieError, Interrupted, UsageError
from guie_core.experiment import Experiment
from guie_core.files import digest, replace_link
from guie_core.interrupt import interruptible
from guie_core.processors import processors
from guie_core.run import Run, refuse_within_run, typed, versions
from guie_core.wording import did_you_mean, shown, size
from guie_datasets import Manifest
from guie_train.device import device_of, free_memory
from guie_train.planning.known import known
from guie_train.planning.page import page
from guie_train.planning.plan import Plan, full_disk, make_plan, states_of
from guie_train.processes import Processes, joined
from guie_train.recipes import recipe_of
from guie_train.report import Report, StageLine, render
from guie_train.runs.outputs import LINKS, SWEEP, is_point, store_of, sweep_around
from guie_train.stage import Stage, StageRecord, Workspace, blamed, blaming
from guie_train.trackers import Tracking

TERMINAL = 79  # columns of the narrowest terminal in use, less one: a longer line could not be erased


def default_folder(experiment: Experiment) -> Path:
    """`runs/<name>`; with overrides a folder of their own, so that variants lie beside each other.

    Those of the profile, which changes no result, make no variant.
    """
    variant = any(override.partition("=")[0].split(".")[0].strip() != "profile" for override in experiment.overrides)
    return Path("runs") / (f"{experiment.name}-{experiment.digest[:6]}" if variant else experiment.name)


def train(
    experiment: Experiment,
    *,
    work_dir: Path | None = None,
    stage: str | None = None,
    start: str | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
) -> Path:
    """Run the stages of `experiment` and write its report; returns the run's folder.

    Args:
        experiment: loaded, hence checked.
        work_dir: the run's folder. Outputs of stages go to `store/` beside it, or beside the folder of the sweep that
            it is a point of; runs share it.
        stage: stop after this stage; no report is written.
        start: run this stage and all that follow again.
        fresh: set an earlier run in the folder aside, and begin unfinished stages from their start. Finished ones are
            reused all the same, since their outputs would be the same.
        command: what goes on where this was interrupted, if that isn't `guie-train` with the same experiment.

    Raises:
        UsageError: no stage has that name, `start` comes after `stage`, the folder holds a run of another experiment,
            or it lies in that of another run or of a sweep.
        Interrupted: after Ctrl-C; the same call goes on from there.
        GuieError: what the stages raise.
    """
    folder = (work_dir or default_folder(experiment)).absolute()
    recipe = recipe_of(experiment)
    stages, again = _chosen(recipe.stages(experiment.profile), stage, start)
    device_of(experiment.profile)  # before anything is done for it
    _check_place(folder, experiment)
    begin = time.monotonic()
    options = [("--work-dir", work_dir), ("--stage", stage)]
    go_on = command or [*_command(experiment), *(str(part) for each in options if each[1] for part in each)]
    with joined(on_gpus=experiment.profile.device == "cuda") as processes, ExitStack() as held, _told_of(experiment):
        stop = held.enter_context(interruptible())
        workspace = Workspace(
            store_of(folder), experiment.profile, stop, stages=stages, fresh=fresh, processes=processes
        )
        if not processes.first:
            processes.receive()
            workspace.again = _keys(again)
            for _ in _outputs(stages, workspace):
                pass
            return folder
        with processes.broadcasting():
            if processes.count > 1:
                go_on = [*processes.launcher(), "-m", "guie_train", *go_on[1:]]
            held.enter_context(_resumable(go_on))
            run = held.enter_context(Run.open(folder, experiment, fresh=fresh, command=_started(processes)))
            run.record(failed=None)  # it may be what an earlier execution failed in
            track = held.enter_context(closing(Tracking(folder / "trackers", getattr(recipe, "trackers", ()))))
            crew = f", {processes.count} processes" * (processes.count > 1)
            click.echo(f"{experiment.name} on {experiment.profile.name}{crew} -> {shown(folder)}")
            _check_sources(stages)
            workspace.again = _keys(again)
            workspace.on_record = partial(_show, run, [each.name for each in stages])
            workspace.on_epoch = track
            _check_room(stages, again, workspace)
            # what is unfinished in the store is this run's as well
            run.record(planned=[{"name": each.name, "key": each.key} for each in stages])
            held.enter_context(_noting(run, stages))
        told = False  # whether a stage has told scores
        for each, output in _outputs(stages, workspace):
            track(each.name, getattr(output, "curves", ()))  # also of a stage that another run has trained
            if isinstance(output, Manifest):
                run.record(manifest=output.digest, splits=digest("\n".join(output.column("split"))))
            if (selected := each.selected(output)) is not None:
                run.record(selected=selected)
            if (scores := each.scores(output)) is not None:
                run.record(scores=scores)
                told = True
        report = None if stage else recipe.report(workspace)
        if report is not None:
            if not told:
                run.record(scores=[system.scores for system in report.systems])
            report = replace(
                report,
                name=experiment.name,
                summary=experiment.doc.partition("\n")[0],
                command=shlex.join(_command(experiment)),
                stages=[StageLine(r.name, r.made_in, r.reused, r.summary) for r in workspace.records.values()],
                profile=experiment.profile.name,
                machine=f"{platform.system()} {platform.machine()}, {processors()} processors",
                finished=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
                versions=versions(),
                seconds=time.monotonic() - begin,
            )
            written = render(report, folder / "report.html")
            click.echo(f"\n{_table(report)}")
            if report.worse:
                click.echo(f"\n{report.worse}.")
            click.echo(f"\nreport: {shown(written)}")
            for export in report.exports:
                path = shown(folder / "stages" / "export" / export.path.name)
                lacks = "; one view, without the test-time augmentation" * bool(export.note)
                click.echo(f"model:  {path}  {size(export.bytes)}, {export.speed} on the CPU{lacks}")
        elif stage is None:
            click.echo(f"\nresults: {shown(folder / 'stages')}")
    return folder


def check(experiment: Experiment, *, work_dir: Path, stage: str | None = None, command: Sequence[str] = ()) -> None:
    """Find what would stop `train`, with the same arguments, before its first long stage.

    What is cheap is done for that, and lies in the store for the run; there is no record of it. Raises as `train` does.
    """
    stages, _ = _chosen(recipe_of(experiment).stages(experiment.profile), stage, None)
    device_of(experiment.profile)
    with interruptible() as stop, _resumable(command), _told_of(experiment):
        workspace = Workspace(store_of(work_dir.absolute()), experiment.profile, stop)
        _check_sources(stages)
        for each in takewhile(lambda each: each.cheap, stages):
            workspace.get(each)
        _check(stages, workspace)


def _check_place(folder: Path, experiment: Experiment) -> None:
    """Raise UsageError if `folder` is that of a sweep, or lies in that of a run, or of a sweep whose point it isn't."""
    if (folder / SWEEP).exists():
        raise UsageError(f"{shown(folder)} is the folder of a sweep. Choose another with --work-dir.")
    refuse_within_run(folder)
    if (sweep := sweep_around(folder)) is None:
        return
    if folder.resolve().parent != sweep or not is_point(folder, experiment):
        raise UsageError(
            f"{shown(folder)} lies in {shown(sweep)}, which is the folder of a sweep, and is no point of it: it would "
            "be removed with that sweep.\nNothing was changed. Choose a folder outside with --work-dir."
        )


def _keys(stages: list[Stage[Any]]) -> frozenset[str]:
    return frozenset(each.key for each in stages)


def _outputs(stages: list[Stage[Any]], workspace: Workspace) -> Iterator[tuple[Stage[Any], Any]]:
    """Each stage with its outputs. Once the cheap ones are done, all others are checked."""
    checked = False
    for each in stages:
        if not checked and not each.cheap:
            workspace.processes.from_first(lambda: _check(stages, workspace))
            checked = True
        yield each, workspace.get(each)


def _check(stages: list[Stage[Any]], workspace: Workspace) -> None:
    for each in stages:
        with blaming(each):
            each.check(workspace)


@contextmanager
def _resumable(command: Sequence[str]) -> Iterator[None]:
    """Tell by which command what is stopped goes on, whether it was asked to stop once or twice."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise Interrupted(f"{str(stopped) or 'at once'}. Go on with: {shlex.join(command)}") from None


def _check_sources(stages: list[Stage[Any]]) -> None:
    """Raise GuieError with all that is wrong with what the recipe reads, before the first stage has worked an hour."""
    problems = []
    for each in stages:
        if not each.inputs():
            try:
                with blaming(each):
                    each.key  # noqa: B018  it looks at the files
            except GuieError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise GuieError("\n\n".join(map(str, problems))) from problems[0]


def _show(run: Run, names: list[str], record: StageRecord) -> None:
    """Print a line for a stage that is done, and keep it in the run."""
    took = "reused" if record.reused else f"{record.seconds:.1f} s"
    width, digits = max(map(len, names)), len(str(len(names)))
    number = names.index(record.name) + 1 if record.name in names else 0
    click.echo(f" {number:{digits}}/{len(names)} {record.name:{width}}  {took:>8}  {record.summary}")
    run.log.debug("stage %s %s: %s, %s", record.name, record.key, took, record.summary)
    about = {
        "name": record.name,
        "key": record.key,
        "seconds": round(record.seconds, 2),
        "reused": record.reused,
        "summary": record.summary,
    }
    earlier = [each for each in run.records.get("stages", []) if each["name"] != record.name]
    run.record(stages=[*earlier, about])
    # a relative link, so that run and store can be moved together
    link = run.path / LINKS / record.name.replace(" ", "-")
    replace_link(link, os.path.relpath(record.folder, link.parent))


def show_plan(
    experiment: Experiment, *, work_dir: Path | None = None, stage: str | None = None, start: str | None = None
) -> None:
    """Print the stages that `train` would go through, what each takes and what is missing; nothing is run or written.

    Neither data nor weights nor a GPU are needed.

    Raises:
        UsageError: no stage has that name, components refuse their settings, or `train` would refuse the folder for
            where it lies.
        GuieError: a stage does not fit into the memory of the profile's GPU.
    """
    folder = (work_dir or default_folder(experiment)).absolute()
    _check_place(folder, experiment)
    recipe = recipe_of(experiment)
    stages, again = _chosen(recipe.stages(experiment.profile), stage, start)
    with interruptible() as stop, _passing_line() as tell, _told_of(experiment):
        workspace = Workspace(store_of(folder), experiment.profile, stop, stages=stages)
        plan = make_plan(stages, again, workspace, lambda name: tell(f"plan: {name}"))
    click.echo(f"{experiment.name} on {experiment.profile.name} -> {shown(folder)} (dry run: nothing is written)")
    click.echo(f"{experiment.profile.summary}\n\n{page(plan, store_of(folder))}")
    with _told_of(experiment):
        _check_plan(plan, stages, workspace)


def check_ahead(experiment: Experiment, *, work_dir: Path, stage: str | None = None) -> None:
    """Raise what `show_plan` would, with the same arguments; nothing is printed, run or written."""
    folder = work_dir.absolute()
    _check_place(folder, experiment)
    stages, again = _chosen(recipe_of(experiment).stages(experiment.profile), stage, None)
    with interruptible() as stop, _told_of(experiment):
        workspace = Workspace(store_of(folder), experiment.profile, stop, stages=stages)
        _check_plan(make_plan(stages, again, workspace), stages, workspace)


def _check_plan(plan: Plan, stages: list[Stage[Any]], workspace: Workspace) -> None:
    """Raise GuieError if a stage would be refused, or has no room in the memory of the profile's GPU."""
    to_do = {step.name for step in plan.to_do}
    if not any(each.cheap and each.name in to_do for each in stages):  # else it shows when those are done
        _check(stages, workspace.look())
    if plan.profile.device == "cuda" and (refusal := plan.refusal(plan.memory, f"profile {plan.profile.name}")):
        raise GuieError(refusal)


@contextmanager
def _told_of(experiment: Experiment) -> Iterator[None]:
    """Mistakes in its settings are told with its file."""
    try:
        yield
    except ExperimentError as error:
        raise ExperimentError(error.problems, error.source or shown(experiment.path)) from error


@contextmanager
def _passing_line() -> Iterator[Callable[[str], None]]:
    """Tells what is being done in one line of the terminal, which is gone afterwards; nothing where there is none."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    erase = "\r\x1b[K"
    try:
        yield lambda text: click.echo(f"{erase}{text[:TERMINAL]}", nl=False, err=True)
    finally:
        click.echo(erase, nl=False, err=True)


def _check_room(stages: list[Stage[Any]], again: list[Stage[Any]], workspace: Workspace) -> None:
    """Warn of a disk that is too small, and of a stage that is to do and may not fit into the GPU's memory: hours may
    be saved. It is an estimate, and stops nothing; extraction makes do with smaller batches by itself.

    Where no long stage is to do, nothing is said: to find out, the backbone has to be built without its numbers, which
    takes longer than training a head up to the point where it would fail.
    """
    states = states_of(stages, again, workspace.look())
    if not any(each.long and states[each.name] != "done before" for each in stages):
        return
    plan = make_plan(stages, again, workspace)
    if workspace.profile.device == "cuda":
        where, memory = free_memory()
        if refusal := plan.refusal(memory, where):
            click.echo(f"warning: as far as it can be told ahead, {refusal}", err=True)
    if full := full_disk(plan, workspace.store):
        click.echo(f"warning: {full}", err=True)


def _chosen(stages: list[Stage[Any]], last: str | None, start: str | None) -> tuple[list[Stage[Any]], list[Stage[Any]]]:
    """The stages up to `last`, and those to run again: `start`, what depends on it, and what adds to the same outputs.

    Features are found by the image's content, so they are computed again only if `start` names them, or others that
    share their store, or the fine-tuning of their backbone is run again.

    Raises UsageError: there is no such stage, or `start` comes after `last`.
    """
    chosen = stages if last is None else stages[: _position(stages, last) + 1]
    again: list[Stage[Any]] = []
    if start is not None:
        again.append(stages[_position(stages, start)])
        if again[0] not in chosen:
            raise UsageError(
                f"--from {start!r} comes after --stage {last!r}, so that nothing would be run again.\n"
                f"Begin with {last!r} or a stage before it, or stop after {start!r} or later."
            )
        for each in stages:
            if any(source in again for source in each.inputs(keyed=True)):
                again.append(each)
        shared = {known(partial(_key, each)) for each in again if each.incremental} - {None}
        again += [
            each for each in stages if each.incremental and each not in again and known(partial(_key, each)) in shared
        ]
    return chosen, again


def _key(stage: Stage[Any]) -> str:
    return stage.key


def _command(experiment: Experiment) -> list[str]:
    overrides = [part for override in experiment.overrides for part in ("--set", override)]
    return ["guie-train", shown(experiment.path), "--profile", experiment.profile.name, *overrides]


@contextmanager
def _noting(run: Run, stages: list[Stage[Any]]) -> Iterator[None]:
    """Where a stage fails, the run keeps which."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted) and (work := blamed(error)):
            with suppress(GuieError):  # the disk; and of a stage whose files aren't there, nobody knows what it does
                run.record(failed=next((each.name for each in stages if each.work == work), None))
        raise


def _started(processes: Processes) -> list[str]:
    """The command that started the run, with what launched its processes."""
    if processes.count == 1:
        return typed()
    program, *arguments = typed()
    if program != "python":  # a script, which torchrun would read as Python
        arguments = ["-m", "guie_core.cli" if program == "guie" else "guie_train", *arguments]
    return [*processes.launcher(), *arguments]


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
    names = [each.name for each in stages]
    listed = ", ".join(map(repr, names))
    raise UsageError(f"this recipe has no stage {name!r}.{did_you_mean(name, names)} Its stages are: {listed}")
