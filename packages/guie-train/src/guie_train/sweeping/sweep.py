"""A sweep: its points one after the other, each a run of its own, and what came of them."""

from __future__ import annotations

import json
import logging
import os
import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from guie_core import ExperimentError, GuieError, Interrupted, UsageError
from guie_core.files import atomic_write, explain, explain_os_errors, of_the_disk
from guie_core.interrupt import Stop, interruptible
from guie_core.record import RECORD, RunRecord
from guie_core.run import acquire, refuse_within_run
from guie_core.tables import table
from guie_core.wording import listing, plural, shown
from guie_train.device import OutOfMemory
from guie_train.recipes import recipe_of
from guie_train.runner import check, check_ahead, train
from guie_train.runs.outputs import SWEEP, sweep_around
from guie_train.runs.scores import NOT_COMPARABLE, data_of, same_data, selected
from guie_train.stage import blamed

from .points import Point, labels
from .study import Study

LOG = "sweep.log"  # in a sweep's folder: where errors came from that no run's log has


@dataclass(frozen=True)
class Outcome:
    """What came of a point: its score in selection, or why it has none; `data` is that of `data_of`."""

    point: Point
    metric: str = ""
    score: float | None = None
    epoch: int = 0
    error: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    outcomes: of its points, each once. total: how many points, or trials, there are with those that were asked for.
    failed, left: how many of them have no score, and how many were not tried.
    """

    outcomes: list[Outcome]
    total: int
    failed: int = 0
    left: int = 0


@dataclass(frozen=True)
class Sweep:
    """Points in a folder, each a run in a folder of its own.

    Outputs of stages are in the store beside the sweep's folder, so that points and other runs share them.

    Args:
        folder: the sweep's.
        command: what the user typed, which goes on where it was interrupted.
        full: whether points run to their report; else they stop at the stage whose score they are ranked by, and
            nothing looks at what is reported on.
        retry: whether points that failed before are tried again.

    Where two points fail by the same error in a stage that is the same for both, what it does and on what, the error
    isn't of the values in which they differ: points that have this stage as well are left out.
    """

    folder: Path
    command: Sequence[str]
    full: bool = False
    retry: bool = False
    left_out: dict[str, str] = field(default_factory=dict, init=False)  # points by their folders: the stage's name
    _told: list[str] = field(default_factory=list, init=False)  # what points failed by, each once
    _failures: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)  # by `Stage.work` and error

    def look_over(self, points: Sequence[Point], every: str = "point") -> int:
        """Tell which points would be refused, each called one of `every`, as far as it shows without writing anything.
        Returns their number.

        Raises:
            UsageError: the folder is something else.
            Interrupted: after Ctrl-C.
        """
        self._check_folder()
        refused = 0
        with interruptible() as stop:
            for number, point in enumerate(points, 1):
                if stop:
                    raise Interrupted("the points are being checked; nothing was written")
                try:
                    with _unwarned():
                        check_ahead(point.experiment, work_dir=self.folder / point.folder, stage=self._last(point))
                except Interrupted:
                    raise
                except Exception as error:
                    refused += 1
                    self._failed(point, error, f"{every} {number}/{len(points)}: {point.words}: ")
        return refused

    def over(self, points: Sequence[Point]) -> Swept:
        """Run the points that aren't done yet, after all of them were checked; of `left_out` there is no outcome.

        Raises:
            UsageError: the folder is something else, or in use.
            Interrupted: after Ctrl-C; the same call goes on from there.
            GuieError: the disk is full or read-only; so it does then.
        """
        outcomes: dict[int, Outcome] = {}
        every = {number: (point, f"point {number}/{len(points)}") for number, point in enumerate(points, 1)}
        with self._opened({"points": [dict(point.values) for point in points]}) as stop:
            for number, (point, which) in every.items():
                self._go_on(stop, "the points are being checked")
                if self._before(point) is None and (refused := self._refused(point, which)) is not None:
                    outcomes[number] = refused
            for number, (point, which) in every.items():
                self._go_on(stop, f"{len(outcomes)} of {plural(len(points), 'point')} are done")
                if number not in outcomes and (outcome := self._run(point, which)) is not None:
                    outcomes[number] = outcome
        found = [outcomes[number] for number in sorted(outcomes)]
        return Swept(found, len(points), sum(each.score is None for each in found), len(points) - len(found))

    def by(self, study: Callable[[], Study], trials: int, load: Callable[[Mapping[str, str]], Point]) -> Swept:
        """Run what a study suggests until it has `trials` points; `load` makes a point of its values.

        The study is opened once the folder is. Where a point is left out, nothing more is suggested. A combination of
        values that the experiment refuses is told, and counts as a trial that failed. Raises as `over` does, and what
        opening the study raises.
        """
        outcomes: dict[str, Outcome] = {}  # by digest, since a point may be suggested more than once
        failed = left = 0

        def tried(params: Mapping[str, Any], which: str, score: float | None = None) -> float | None:
            nonlocal failed, left
            try:
                point = load(opened.values(params))
            except ExperimentError as error:
                click.echo(f"{which}: {error}", err=True)
                failed += 1
                return None
            # of a trial that was scored, the run may have been removed since
            known = None if score is None else self._before(point) or Outcome(point, score=score)
            outcome = known or self._run(point, which)
            if outcome is None:
                left += 1
                return None
            failed += outcome.score is None
            outcomes[point.experiment.digest] = outcome
            return outcome.score

        with self._opened({"trials": trials}) as stop:
            opened = study()
            earlier = opened.trials
            scored = [trial.params for trial in earlier if trial.score is not None]
            for number, trial in enumerate(earlier, 1):
                self._go_on(stop, f"{opened.count} of {plural(trials, 'trial')} are done")
                if trial.score is not None:
                    tried(trial.params, f"trial {number}", trial.score)
                elif trial.params not in scored:
                    score = tried(trial.params, f"trial {number}")
                    if score is not None:
                        opened.add(trial.params, score, again=True)
            while (number := opened.count) < trials and not self.left_out:
                self._go_on(stop, f"{number} of {plural(trials, 'trial')} are done")
                params = opened.suggest()
                score = tried(params, f"trial {number + 1}/{trials}")
                if self.left_out:  # it is one of those that are still to be tried
                    left -= 1
                else:
                    opened.add(params, score)
            count = opened.count
        return Swept(list(outcomes.values()), max(trials, count), failed, left + max(trials - count, 0))

    def _go_on(self, stop: Stop, done: str) -> None:
        if stop:
            raise Interrupted(f"{done}. Go on with: {shlex.join(self.command)}")

    @contextmanager
    def _opened(self, about: dict[str, Any]) -> Iterator[Stop]:
        """The folder, made if need be, for this process alone."""
        self._check_folder()
        lock = acquire(self.folder)
        try:
            with atomic_write(self.folder / SWEEP, "w") as file:
                json.dump({"schema": 1, "command": list(self.command), **about}, file, indent=2)
            with interruptible() as stop:
                yield stop
        finally:
            os.close(lock)

    def _check_folder(self) -> None:
        """Raise UsageError if the folder is something else than a sweep's, or lies in a run's or another sweep's."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{shown(self.folder)} is a file; a sweep needs a folder. Choose another with --work-dir.")
        if (self.folder / RECORD).exists():
            raise UsageError(f"{shown(self.folder)} is a run; choose another folder for the sweep with --work-dir.")
        refuse_within_run(self.folder)
        if (around := sweep_around(self.folder)) is not None:
            raise UsageError(
                f"{shown(self.folder)} lies in {shown(around)}, which is the folder of another sweep: it would be "
                "removed with that.\nNothing was changed. Choose a folder outside with --work-dir."
            )
        if self.folder.is_dir() and not (self.folder / SWEEP).exists():
            strange = sorted(path.name for path in self.folder.iterdir() if path.name != "run.lock")
            if strange:
                raise UsageError(
                    f"{shown(self.folder)} is not a sweep: it holds {listing(strange, 4)}.\n"
                    "Nothing was changed. Choose another folder with --work-dir."
                )

    def _refused(self, point: Point, which: str) -> Outcome | None:
        """What comes of a point that would fail before its first long stage; None for others, and those left out."""
        if self._leaves_out(point):
            return None
        folder, last = self.folder / point.folder, self._last(point)
        try:
            with _unwarned():
                check(point.experiment, work_dir=folder, stage=last, command=self.command)
        except Interrupted:
            raise
        except Exception as error:
            self._end_if_of_the_disk(error)
            place = ""
            if not isinstance(error, GuieError):  # there is no run whose log could keep it
                place = f"\nWhere it came from is in {shown(self._keep(error, f'{which}: {point.words}'))}"
            return self._failed(point, error, f"{which}: {point.words}: ", place)
        return None

    def _run(self, point: Point, which: str) -> Outcome | None:
        """What comes of a point; it is run unless an earlier call did, or it is left out."""
        if (outcome := self._before(point)) is not None:
            if outcome.error:
                click.echo(f"{which}: {point.words} failed before: {self._once(outcome.error)}", err=True)
            else:
                click.echo(f"{which}: {point.words} was done before: {outcome.metric} {outcome.score:.4f}")
            return outcome
        if self._leaves_out(point):
            return None
        click.echo(f"\n{which}: {point.words}")
        folder = self.folder / point.folder
        try:
            train(point.experiment, work_dir=folder, stage=self._last(point), command=self.command)
        except Interrupted:
            raise
        except Exception as error:  # of one point; where it came from is in its run.log
            self._end_if_of_the_disk(error)
            return self._failed(point, error)
        return self._outcome(point, RunRecord.read(folder))

    def _end_if_of_the_disk(self, error: Exception) -> None:
        """Raise GuieError if an error of one point would be that of all others, since the disk takes nothing more."""
        if (said := of_the_disk(error)) is None:
            return
        if isinstance(error, GuieError):
            raise error
        raise GuieError(explain(said, said.filename if isinstance(said.filename, str) else self.folder)) from error

    def _keep(self, error: Exception, who: str) -> Path:
        """Add where an error came from to the sweep's log, and return that."""
        path = self.folder / LOG
        with explain_os_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {who}\n")
            file.writelines(traceback.format_exception(error))
        return path

    def _failed(self, point: Point, error: Exception, who: str = "", place: str = "") -> Outcome:
        """Tells what a point failed by, and `place`, where more is to be found."""
        message = str(error) if isinstance(error, GuieError) else f"{type(error).__name__}: {error}"
        click.echo(f"error: {who}{self._once(message)}{place}", err=True)
        if not isinstance(error, OutOfMemory):  # how much memory there is may be another process's doing
            self._failures[blamed(error), message] += 1
        return Outcome(point, error=message)

    def _leaves_out(self, point: Point) -> bool:
        """Whether the point has a stage that has failed in two others by the same error."""
        works = {work for (work, _), count in self._failures.items() if work and count > 1}
        for stage in _stages(point) if works else ():
            with suppress(GuieError):  # what it reads isn't there
                if stage.work in works:
                    self.left_out[point.folder] = str(stage.name)
        return point.folder in self.left_out

    def _once(self, error: str) -> str:
        """What a point failed by; of what was told of another point, that it is the same."""
        if error in self._told:
            return "the same as above"
        self._told.append(error)
        return error

    def _before(self, point: Point) -> Outcome | None:
        """What earlier calls made of a point; None where it is to be run."""
        folder = self.folder / point.folder
        if not (folder / RECORD).exists():
            return None
        record = RunRecord.read(folder)
        if record.status == "failed":
            again = self.retry or "errno" in record.last  # of the disk
            return None if again else Outcome(point, error=str(record.last.get("error", "")))
        done = {stage["name"] for stage in record.records.get("stages", ())}
        wanted = [stage.name for stage in _stages(point)]
        last = self._last(point)
        whole = set(wanted if last is None else wanted[: wanted.index(last) + 1]) <= done
        return self._outcome(point, record) if record.status == "finished" and whole else None

    def _outcome(self, point: Point, record: RunRecord) -> Outcome:
        choice = selected(record)
        assert choice is not None, "the stages up to the one that selects have been run"
        return Outcome(point, choice.metric, choice.value, choice.epoch, data=data_of(record))

    def _last(self, point: Point) -> str | None:
        return None if self.full else selecting(point)


@contextmanager
def _unwarned() -> Iterator[None]:
    """While a point is checked: its run will warn of the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _stages(point: Point) -> list[Any]:
    stages: list[Any] = recipe_of(point.experiment).stages(point.experiment.profile)
    return stages


def selecting(point: Point) -> str:
    """The name of the last stage that chooses by a score. Raises UsageError: there is none to rank points by."""
    names = [stage.name for stage in _stages(point) if stage.selects]
    if not names:
        raise UsageError("no stage of this recipe chooses by a score, so there is nothing to rank points by.")
    return str(names[-1])


def lines(outcomes: Sequence[Outcome], folder: Path) -> list[str]:
    """A table of the points, best in selection first, those that failed last; and how to report on the best."""
    done = sorted((each for each in outcomes if each.score is not None), key=lambda each: -(each.score or 0.0))
    failed = [each for each in outcomes if each.score is None]
    keys = list(dict.fromkeys(key for each in outcomes for key in each.point.values))
    metric = next((each.metric for each in done if each.metric), "score")
    ranking = f"by {metric} in selection" if done else "without a score"
    rows = [("", f"{metric:>8}", "epoch", *labels(keys), "run")]
    for number, each in enumerate(done, 1):
        values = [each.point.values.get(key, "") for key in keys]
        rows.append((f"{number:>3}", f"{each.score:8.4f}", f"{each.epoch or '-':>5}", *values, each.point.folder))
    for each in failed:
        values = [each.point.values.get(key, "") for key in keys]
        ran = (folder / each.point.folder / RECORD).exists()  # else it was refused before
        rows.append(("  -", f"{'failed':>8}", "", *values, each.point.folder if ran else "-"))
    text = [f"\n{plural(len(outcomes), 'point')} {ranking}"]
    text.append(table(rows, indent="", width=1000))
    if not same_data(each.data for each in done):
        text.append(f"\n{NOT_COMPARABLE}.")
    elif done:
        best = done[0].point
        if (equal := sum(each.score == done[0].score for each in done)) > 1:
            text.append(f"\nThe first {equal} are equal: their scores don't tell which is best.")
        overrides = [part for override in best.experiment.overrides for part in ("--set", override)]
        profile = ["--profile", best.experiment.profile.name]
        place = ["--work-dir", shown(folder / best.folder)]
        command = ["guie-train", shown(best.experiment.path), *profile, *overrides, *place]
        text += ["", f"To report on the best: {shlex.join(command)}"]
    return text
