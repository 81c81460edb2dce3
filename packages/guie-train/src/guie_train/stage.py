"""Stages, the steps of a recipe, and the workspace in which each is run once for each key."""

from __future__ import annotations

import fcntl
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from guie_core import Config, GuieError, Interrupted, Slot
from guie_core.files import atomic_write, digest, explain_os_errors, remove_directory, replace_directory, sweep
from guie_core.plugins import plugins
from guie_core.registry import lookup
from guie_core.signature import signature
from guie_train.device import within_memory
from guie_train.planning.known import NotKnown
from guie_train.processes import ALONE, Processes

if TYPE_CHECKING:
    from guie_core.interrupt import Stop
    from guie_core.profiles import Profile
    from guie_train.planning.forecast import Forecast, Outlook

T = TypeVar("T")
NOT_IN_KEY = {"key": False}  # metadata of the fields on which the outputs do not depend
_BLAMED = "guie_stage_work"  # attribute of errors


@dataclass(frozen=True, kw_only=True)
class Stage(ABC, Generic[T]):
    """One step of a recipe: a frozen dataclass whose `run` writes a folder and whose `load` reads it.

    Fields that hold stages are its inputs, all others its arguments. The key of a stage is a digest of the keys of its
    inputs, its arguments, the versions of the distributions that own it and the components it names, and its
    `fingerprint`. A stage whose key is in the workspace is not run again.
    """

    slug: ClassVar[str]  # the stage's folder in the store
    incremental: ClassVar[bool] = False  # outputs are added to in place instead of being renamed when all are there
    together: ClassVar[bool] = False  # all processes of a run run it at once, each its part; else the first alone does
    cheap: ClassVar[bool] = False  # takes seconds, so that it runs ahead of the checks of the others
    long: ClassVar[bool] = False  # may take hours, so that what stands in the way of a run is looked for before it
    needs: ClassVar[tuple[str, ...]] = ()  # distributions whose versions matter, besides those of the components
    name: str = field(metadata=NOT_IN_KEY)  # how people call it

    @abstractmethod
    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write the outputs to `folder`; what an interrupted run left there may be used to go on."""

    @abstractmethod
    def load(self, folder: Path) -> T:
        """Read the outputs back."""

    def complete(self, folder: Path, workspace: Workspace) -> bool:
        """Whether `folder` holds all outputs."""
        return (folder / "stage.json").exists()

    def fingerprint(self) -> object:
        """What the outputs depend on besides inputs and arguments, such as files on disk; JSON-able."""
        return None

    def check(self, workspace: Workspace) -> None:
        """Raise what would stop this stage, as far as it shows once the cheap stages are done; hours may be saved."""

    def lower(self, profile: Profile) -> str:
        """What to change, in words with keys, where memory is too small for this stage."""
        if profile.device == "cuda":
            return "--profile cpu computes it in the memory of the machine"
        return "Close what else takes memory on this machine, or use one with more"

    def forecast(self, outlook: Outlook) -> Forecast:
        """What this stage takes, told ahead of time, without data, weights or a GPU.

        Raises:
            NotKnown: it can't say; the plan goes on without it.
            GuieError: what would stop it, such as settings that a component refuses.
        """
        raise NotKnown("it doesn't say")

    def inputs(self, keyed: bool = False) -> list[Stage[Any]]:
        """The stages in the fields, or in those alone on which the outputs that are there already depend."""
        chosen = [f for f in fields(self) if not keyed or f.metadata.get("key", True)]
        return [source for f in chosen for source in _stages(getattr(self, f.name))]

    def summary(self, output: T) -> str:
        """What came out, in a few words."""
        return ""

    def selected(self, output: T) -> dict[str, Any] | None:
        """The figure by which the outputs were chosen among others: metric, value, epoch.

        It is of images that are not reported on, so that runs may be chosen by it as well.
        """
        return None

    def scores(self, output: T) -> list[dict[str, Any]] | None:
        """The figures that this stage reports, of each system: system, augmented, dimension, and metrics by name.

        A mean over no query is None. Where no stage of a recipe tells any, they are those of its report.
        """
        return None

    @property
    def selects(self) -> bool:
        """Whether `selected` tells a figure."""
        return type(self).selected is not Stage.selected

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The fields as plain JSON-able values, with keys in place of stages."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata.get("key", True)}

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that stand for everything the outputs depend on."""
        parts = [self.slug, self.arguments, self.versions, self.fingerprint()]
        return digest(json.dumps(parts, sort_keys=True))[:16]

    @cached_property
    def work(self) -> str:
        """What this stage does, and on what: where it is the same, so is what goes wrong, whatever other stages do.

        Unlike the key it has every field, and is there although files that are to be read aren't.
        """
        every = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return digest(json.dumps([self.slug, every], sort_keys=True, default=repr))

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the distributions that own this stage and the components its arguments name."""
        target = f"{type(self).__module__}:{type(self).__qualname__}"
        owners = [entry.owner for entry in plugins().entries("stages") if entry.target == target]
        hints = get_type_hints(type(self), include_extras=True)
        for f in (f for f in fields(self) if f.metadata.get("key", True)):
            for kind, config in _components(hints[f.name], getattr(self, f.name)):
                owners.append(lookup(kind, config["type"]).owner)
        found = {owner.distribution: owner.version for owner in owners if owner is not None}
        return found | {distribution: version(distribution) for distribution in self.needs}


def _plain(value: Any) -> Any:
    """`value` as JSON can write it: stages become their keys, dataclasses dictionaries."""
    if isinstance(value, Stage):
        return {"stage": value.key}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Path):
        return str(value)
    return value


def _components(hint: Any, value: Any) -> Iterator[tuple[str, Config]]:
    """The (kind, config) pairs in a field's value, found by the Slots in its type hint."""
    if get_origin(hint) is Annotated:
        slots = [extra for extra in hint.__metadata__ if isinstance(extra, Slot)]
        if slots and isinstance(value, Mapping):
            kind = slots[0].kind
            yield kind, value
            inner = signature(lookup(kind, value["type"]).load()).hints  # SAM's base is a component as well
            for name in value.keys() & inner.keys():
                yield from _components(inner[name], value[name])
        return
    if hasattr(hint, "__dataclass_fields__") and isinstance(value, hint):
        nested = get_type_hints(hint, include_extras=True)
        for f in fields(value):
            yield from _components(nested[f.name], getattr(value, f.name))
        return
    if get_origin(hint) in (Union, UnionType):
        items: Iterable[Any] = [value]
    else:
        items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for argument in get_args(hint):
        for item in items:
            yield from _components(argument, item)


@contextmanager
def blaming(stage: Stage[Any]) -> Iterator[None]:
    """An error that leaves this block is of `stage`, unless it is of another one within; `blamed` tells."""
    try:
        yield
    except Exception as error:
        with suppress(GuieError):  # files that an input reads aren't there
            setattr(error, _BLAMED, blamed(error) or stage.work)
        raise


def blamed(error: BaseException | None) -> str:
    """The `Stage.work` in which an error arose, or the one that it was told for; "" where that was in no stage."""
    while error is not None:
        if work := getattr(error, _BLAMED, ""):
            return str(work)
        error = error.__cause__ or error.__context__
    return ""


@dataclass(frozen=True)
class StageRecord:
    """What happened to one stage in this run."""

    name: str
    key: str
    seconds: float  # in this run
    made_in: float  # seconds that making the outputs took, in whichever run it was
    reused: bool
    summary: str
    folder: Path


@dataclass
class Workspace:
    """Where stages keep their outputs (`store/<slug>/<key>/`), and what they run on.

    The store is shared by runs: an experiment that changes one stage finds the outputs of all others there.
    """

    store: Path
    profile: Profile
    stop: Stop
    stages: Sequence[Stage[Any]] = ()  # those that are made in turn, of which several may add to the same outputs
    again: frozenset[str] = frozenset()  # keys of the stages to run although their outputs are there
    fresh: bool = False  # what unfinished runs of a stage have left is not gone on from
    wait: bool = False  # for another process that makes the same outputs, instead of refusing
    processes: Processes = ALONE  # this one among those that make the run
    on_record: Callable[[StageRecord], None] = lambda record: None
    on_epoch: Callable[[str, Sequence[Mapping[str, float]]], None] = lambda name, curves: None  # of a stage that trains
    records: dict[str, StageRecord] = field(default_factory=dict)  # by stage name
    _outputs: dict[tuple[str, str], Any] = field(default_factory=dict)
    _made: set[str] = field(default_factory=set)  # keys that were run in this workspace

    def look(self) -> Workspace:
        """The same store, for one process to look at by itself; what it sees there is no part of the run."""
        return Workspace(self.store, self.profile, self.stop, stages=self.stages, wait=self.wait)

    def folder(self, stage: Stage[Any]) -> Path:
        """Where the outputs of `stage` are, or will be."""
        return self.store / stage.slug / stage.key

    def complete(self, stage: Stage[Any]) -> bool:
        """Whether all outputs of `stage` are there, and are not being made again (`again`)."""
        return not self._partial(stage).exists() and stage.complete(self.folder(stage), self)

    def begun(self, stage: Stage[Any]) -> bool:
        """Whether a run that did not end has left a part of the outputs of `stage`."""
        return self._partial(stage).exists()

    def _partial(self, stage: Stage[Any]) -> Path:
        """Where the outputs of `stage` grow that are renamed when all are there."""
        return self.folder(stage).with_name(f"{stage.key}.partial")

    def get(self, stage: Stage[T]) -> T:
        """The outputs of `stage`, which is run first if they are not there (and its inputs before it).

        Raises:
            GuieError: another process is making the same outputs, or whatever the stage itself raises.
            Interrupted: the user asked to stop; what is done is kept and the next call goes on from there.
        """
        known = (stage.name, stage.key)
        if known not in self._outputs:
            with blaming(stage):
                self._outputs[known] = self._make(stage)
        return cast(T, self._outputs[known])

    def _make(self, stage: Stage[T]) -> T:
        folder = self.folder(stage)
        start = time.monotonic()
        if self.processes.count > 1:  # else whether it is complete would be a question among many at once
            self._get_inputs(stage)
        reused = self.processes.from_first(lambda: self._reusable(stage))
        if reused and stage.incremental:
            self.processes.from_first(lambda: self._tidy(folder))
        if not reused:
            self._get_inputs(stage)  # first, so that their time isn't counted as this stage's
            if self.processes.any(bool(self.stop)):
                raise Interrupted(f"before stage {stage.name!r}")
            start = time.monotonic()
            reused = self._make_outputs(stage, folder)
        with damage_told(folder):
            output = stage.load(folder)
            made_in = json.loads((folder / "stage.json").read_text())["seconds"]
        took = time.monotonic() - start
        record = StageRecord(stage.name, stage.key, took, made_in, reused, stage.summary(output), folder)
        self.records[stage.name] = record
        self.on_record(record)
        return output

    def _get_inputs(self, stage: Stage[Any]) -> None:
        for source in stage.inputs():
            self.get(source)

    def _reusable(self, stage: Stage[Any]) -> bool:
        return not self._again(stage) and self.complete(stage)

    def _tidy(self, folder: Path) -> None:
        """Take away what a killed run has left in outputs that others had completed, unless somebody is at work there:
        that run goes on elsewhere, since they are whole."""
        if any(folder.glob(".*.tmp")):
            with suppress(OSError, GuieError), self._lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                sweep(folder)

    def _again(self, stage: Stage[Any]) -> bool:
        return stage.key in self.again and stage.key not in self._made

    def _make_outputs(self, stage: Stage[Any], folder: Path) -> bool:
        """Run `stage`; False if that turned out to be needless, since another run has made its outputs meanwhile."""

        with ExitStack() as held:

            def begin() -> Path | None:
                held.enter_context(explain_os_errors(folder))
                held.enter_context(self._lock(folder))
                if self._reusable(stage):
                    return None
                staging = self._begin(stage, folder)
                held.callback(_remove_empty, staging)
                return staging

            start, staging = time.monotonic(), self.processes.from_first(begin)
            if staging is None:
                return True
            self._made.add(stage.key)
            if stage.together:
                self._run(stage, staging)
                self.processes.barrier()
            else:
                self.processes.from_first(lambda: self._run(stage, staging))
            self.processes.from_first(lambda: self._finish(stage, staging, folder, start))
            return False

    def _run(self, stage: Stage[Any], staging: Path) -> None:
        with within_memory(lambda: f"{stage.name}: the memory is too small. {stage.lower(self.profile)}."):
            stage.run(staging, self)

    def _begin(self, stage: Stage[Any], folder: Path) -> Path:
        """The folder that `stage` is to write to."""
        staging = self._partial(stage)
        if self._again(stage) or self.fresh:
            remove_directory(staging)
        # what is made again doesn't touch the outputs that are there, which other runs have, before its own are whole
        if stage.incremental and not self._again(stage) and not staging.exists():
            staging = folder
        for place in (folder, staging):
            sweep(place)
        staging.mkdir(parents=True, exist_ok=True)
        return staging

    def _finish(self, stage: Stage[Any], staging: Path, folder: Path, start: float) -> None:
        """What `stage` has written to `staging` becomes its outputs."""
        about = {
            "stage": stage.name,
            "key": stage.key,
            "arguments": stage.arguments,
            "versions": stage.versions,
            "seconds": round(time.monotonic() - start, 2),
        }
        with atomic_write(staging / "stage.json", "w") as file:
            json.dump(about, file, indent=2)
        if staging != folder:
            replace_directory(staging, folder)

    @contextmanager
    def sharing(self, stage: Stage[Any]) -> Iterator[Path]:
        """The folder of an incremental stage, for one of several processes that add to it; nobody makes it meanwhile.

        Raises:
            GuieError: another process is making the outputs, and this doesn't `wait`.
        """
        folder = self.folder(stage)
        with explain_os_errors(folder), self._lock(folder, fcntl.LOCK_SH):
            yield folder

    @contextmanager
    def _lock(self, folder: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
            try:
                fcntl.flock(file, kind | (0 if self.wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise GuieError(
                    f"another process is making {folder} at this moment; "
                    "wait for it and run this again, which then reuses its result, or choose another --work-dir"
                ) from None
            yield


def _remove_empty(folder: Path) -> None:
    """Take a folder away in which a stage was stopped before it had written anything."""
    with suppress(OSError):  # there is something in it, or it was renamed
        folder.rmdir()


@contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """While a stage's outputs are read: they were written whole, so what cannot be read was damaged since.

    Raises:
        GuieError: which says what to delete, or as whatever is read raises it.
        OutOfMemory: nothing is known to be damaged.
    """
    more = "Close what else takes memory on this machine, or use one with more"
    try:
        with within_memory(lambda: f"{folder}: the memory is too small to read it. {more}."):
            yield
    except GuieError:
        raise
    except Exception as error:  # JSON, NumPy's, safetensors and zip files fail in a dozen ways
        what = f"{type(error).__name__}: {error}"
        raise GuieError(
            f"{folder} is damaged ({what}); delete it and run the same command again, which makes it anew"
        ) from error


def _stages(value: Any) -> Iterator[Stage[Any]]:
    if isinstance(value, Stage):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _stages(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _stages(item)
