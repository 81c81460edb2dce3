"""What runs have written of themselves, for those who look back."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import UsageError
from .wording import shown

SCHEMA = 1
RECORD, LOG, LOCK = "run.json", "run.log", "run.lock"


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says. Made by :meth:`read`."""

    path: Path  #: the run's folder
    experiment: dict[str, Any]  #: name, path, overrides, digest and resolved settings
    records: dict[str, Any]  #: what was recorded with `Run.record`
    executions: list[dict[str, Any]]  #: the first one first; each has status, times, versions, plugins, machine, git

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read the record of the run in the folder `path`.

        Raises:
            UsageError: there is none, it is damaged, or a later guie wrote it.
        """
        path = Path(path)
        file = path / RECORD
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if (schema := found["schema"]) != SCHEMA:
                raise UsageError(f"{shown(file)} is of format {schema}; this guie knows format {SCHEMA}.")
            experiment, executions = found["experiment"], found["executions"]
            experiment["name"], experiment["digest"], experiment["resolved"]["recipe"]  # they have to be there
            record = cls(path, experiment, dict(found.get("records", {})), [dict(each) for each in executions])
            if not record.executions:
                raise ValueError("it has no executions")
        except FileNotFoundError:
            raise UsageError(f"{shown(path)} is not a run: it has no {RECORD}.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{shown(file)} cannot be read ({type(error).__name__}: {error}).") from None
        return record

    @property
    def last(self) -> dict[str, Any]:
        """The last execution."""
        return self.executions[-1]

    @property
    def status(self) -> str:
        """How the last execution ended: "finished", "failed" or "interrupted"; "running" while it does, and "killed"
        if it had no time to say."""
        status = str(self.last.get("status", "killed"))
        return "killed" if status == "running" and not holder(self.path) else status

    @property
    def started(self) -> str:
        """When the first execution began, ISO 8601 in UTC."""
        return str(self.executions[0].get("started", ""))

    @property
    def seconds(self) -> float:
        """What all executions took, but for those that were killed."""
        return sum(_seconds(each) for each in self.executions)


def _seconds(execution: dict[str, Any]) -> float:
    try:
        start, end = (datetime.fromisoformat(str(execution[key])) for key in ("started", "finished"))
    except (KeyError, ValueError):
        return 0.0
    return max(0.0, (end - start).total_seconds())  # a clock may have been set back


def find_runs(folder: str | os.PathLike[str]) -> tuple[list[RunRecord], dict[Path, str]]:
    """The runs in `folder` and below it, by the time they began; and the folders of those whose record cannot be read,
    with what is wrong."""
    found, damaged = [], {}
    for path in run_folders(Path(folder)):
        try:
            found.append(RunRecord.read(path))
        except UsageError as error:
            damaged[path] = str(error)
    return sorted(found, key=lambda record: (record.started, str(record.path))), damaged


def run_folders(folder: Path) -> Iterator[Path]:
    """The folders of runs in `folder` and below it; links aren't followed, and hidden folders are left out."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if RECORD in files:
            folders.clear()  # what is in a run is its own
            yield Path(path)
        elif Path(path).name == "store":
            folders.clear()  # outputs of stages, any number of them


def holder(path: str | os.PathLike[str]) -> str:
    """Who is using the run in the folder `path`, such as "process 12 on host since ..."; "" for nobody."""
    try:
        handle = os.open(Path(path) / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 1000, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)
    return ""


__all__ = ["LOCK", "LOG", "RECORD", "SCHEMA", "RunRecord", "find_runs", "holder", "run_folders"]
