"""A run by the name that people call it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from guie_core import UsageError
from guie_core.record import RECORD, RunRecord, run_folders
from guie_core.wording import did_you_mean, listing, shown


def name_of(run: Path, folder: Path) -> str:
    """How a run is called in lists of the runs below `folder`: its path from there."""
    try:
        name = str(run.absolute().relative_to(folder.absolute()))
    except ValueError:
        return shown(run)
    return shown(run) if name == "." else name


def find_run(name: str, folder: Path) -> RunRecord:
    """The run called `name`: a path, or as `name_of` gives it for runs below `folder`.

    Raises UsageError: there is none, or its record cannot be read.
    """
    return RunRecord.read(folder_of(name, folder))


def folder_of(name: str, folder: Path) -> Path:
    """The folder of the run called `name`, as for `find_run`. Raises UsageError: there is none."""
    for path in (folder / name, Path(name).expanduser()):
        if (path / RECORD).exists():
            return path
    raise no_run(name, folder, run_folders(folder))


def no_run(name: str, folder: Path, runs: Iterable[Path]) -> UsageError:
    """What is said of a name that no run has."""
    names = [name_of(path, folder) for path in runs]
    if not names:
        return UsageError(f"there is no run {name!r}, and none at all below {shown(folder)}; --folder names another.")
    near = did_you_mean(name, names) or f" Runs: {listing(names)}."
    return UsageError(f"there is no run {name!r} below {shown(folder)}.{near}")
