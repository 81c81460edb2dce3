"""Outputs of stages in the store: whose they are, and taking away what is nobody's."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie_core import UsageError
from guie_core.files import explain_os_errors, meant_for, remove_directory
from guie_core.record import LOCK, RunRecord, find_runs, run_folders
from guie_core.run import acquire

if TYPE_CHECKING:
    from guie_core.experiment import Experiment

STORE = "store"
LINKS = "stages"  # in a run's folder: links to its outputs, by the stages' names
SWEEP = "sweep.json"  # in a sweep's folder, whose points are runs
FEATURES = "features"  # the stage whose outputs take longest, and which runs to come may find useful
PARTIAL = ".partial"


def store_of(run: Path) -> Path:
    """Where the outputs of a run's stages are: `store/` beside its folder, or beside its sweep's folder."""
    beside = run.parent
    return (beside.parent if (beside / SWEEP).exists() else beside) / STORE


def sweep_around(folder: Path) -> Path | None:
    """The folder of the sweep that `folder` lies in, at whatever depth; None where there is none.

    Something else may have a file of that name: a sweep's folder has a lock as well.
    """
    parents = folder.resolve().parents
    return next((around for around in parents if (around / SWEEP).exists() and (around / LOCK).exists()), None)


def name_of_point(values: str, experiment: Experiment) -> str:
    """The name of the folder of a sweep's point, whose `values` are in words that a path can have."""
    return f"{values}-{experiment.digest[:6]}"


def is_point(folder: Path, experiment: Experiment) -> bool:
    """Whether a folder in a sweep's is that of the point which `experiment` is."""
    return folder.name.endswith(name_of_point("", experiment))


@dataclass(frozen=True)
class Output:
    """The folder of a stage's outputs in a store."""

    path: Path

    @property
    def stage(self) -> str:
        """The stage's folder in the store, such as "head"."""
        return self.path.parent.name

    @property
    def key(self) -> str:
        """The stage's key."""
        return (meant_for(self.path.name) or self.path.name).removesuffix(PARTIAL)

    @property
    def left_behind(self) -> bool:
        """Whether it is what a process that was killed has left, and nobody goes on with."""
        return meant_for(self.path.name) is not None

    @property
    def whole(self) -> bool:
        """Whether the stage came to its end, as far as the folder's name tells."""
        return self.path.name == self.key


def keys_of(record: RunRecord) -> set[str]:
    """Keys of the stages that a run has done or set out to do."""
    stages: list[dict[str, Any]] = [*record.records.get("stages", ()), *record.records.get("planned", ())]
    return {str(stage["key"]) for stage in stages}


def referred(store: Path, without: Collection[Path] = ()) -> set[str]:
    """Keys of the outputs in `store` that a run refers to, other than the runs in the folders `without`."""
    keys: set[str] = set()
    for folder in run_folders(store.parent):
        if folder in without or store_of(folder) != store:
            continue
        links = folder / LINKS
        keys |= {Path(os.readlink(link)).name for link in links.glob("*") if link.is_symlink()}
        with contextlib.suppress(UsageError):  # of a damaged record there are the links at least
            keys |= keys_of(RunRecord.read(folder))
    return keys


def users(output: Path) -> dict[Path, list[str]]:
    """The runs that have outputs in the folder `output` of a store, the oldest first, and the stages they are of."""
    output = output.resolve()
    found: dict[Path, list[str]] = {}
    for record in find_runs(output.parent.parent.parent)[0]:
        names = [str(stage["name"]) for stage in record.records.get("stages", ()) if stage["key"] == output.name]
        if names and store_of(record.path.resolve()) == output.parent.parent:
            found[record.path] = names
    return found


def unused(store: Path, without: Collection[Path] = ()) -> list[Output]:
    """The outputs in `store` that no run refers to, other than the runs in the folders `without`."""
    keys = referred(store, without)
    found = [Output(path) for path in sorted(store.glob("*/*")) if path.is_dir() and not path.is_symlink()]
    return [output for output in found if output.key not in keys or output.left_behind]


def remove_outputs(outputs: Iterable[Output]) -> list[Output]:
    """Take outputs away; returns those that stay, because a process is making them at this moment."""
    kept = []
    for output in outputs:
        with _locked(output) as free:
            if free:
                remove_directory(output.path)
            else:
                kept.append(output)
    return kept


def remove_run(folder: Path) -> None:
    """Take a run away, but for its outputs in the store. Raises UsageError: another process is using it."""
    lock = acquire(folder)
    try:
        remove_directory(folder)
    finally:
        os.close(lock)


def left_behind(folder: Path) -> list[Path]:
    """What is left in `folder`, and in the sweeps in it, of runs whose removal was cut short."""
    found = [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]
    return sorted(path for path in found if path.is_dir() and path.parent.name != STORE)


def bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder and below it; links count as such."""
    return sum(os.lstat(os.path.join(path, name)).st_size for path, folders, names in os.walk(folder) for name in names)


@contextlib.contextmanager
def _locked(output: Output) -> Iterator[bool]:
    """Hold the lock under which a stage is run (`Workspace`); gives whether it was free."""
    with explain_os_errors(output.path), open(output.path.with_name(f".{output.key}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
