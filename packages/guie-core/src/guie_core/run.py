"""Runs: the directory of one execution of an experiment, or of several that go on from each other.

It holds ``run.json`` (the experiment as resolved, and for every execution its versions, plugins, machine, git state,
times and outcome), ``run.log``, ``run.lock``, and whatever the stages put there.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import GuieError, Interrupted, UsageError
from .experiment import Experiment, differences
from .files import atomic_write, explain, explain_os_errors, of_the_disk, sweep
from .logs import is_wanted
from .plugins import plugins
from .processors import processors
from .record import LOCK, LOG, RECORD, SCHEMA, RunRecord
from .wording import listing, plural, shown

#: Packages whose versions decide what comes out.
_RELEVANT = frozenset(
    {"mmengine", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "open-clip-torch", "pandas", "pillow", "pluggy"}
    | {"pyarrow", "safetensors", "scikit-learn", "timm", "torch", "torchvision"}
)


class Run:
    """An open run directory. A context manager: leaving it writes how the execution ended."""

    def __init__(self, path: Path, record: dict[str, Any], lock: int) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.log = logging.getLogger("guie.run")
        self._record = record
        self._lock = lock
        self._execution: dict[str, Any] = record["executions"][-1]
        self._root_level = logging.getLogger().level
        self._handler: logging.Handler | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        experiment: Experiment,
        *,
        fresh: bool = False,
        command: Sequence[str] | None = None,
    ) -> Run:
        """Open the directory of a run, making it if need be; go on in one of the same experiment.

        The profile may differ from the last time, since it doesn't change the result.

        Args:
            path: the directory.
            experiment: what is run.
            fresh: begin anew; a former run is not deleted but renamed to "<path>.1" (or .2, ...).
            command: what was typed, if that isn't what this process was started with.

        Raises:
            UsageError: the directory holds a run of another experiment or of other settings (the message tells which),
                or something that is no run; or it lies in the folder of another run; or another process is using it.
            GuieError: it cannot be written.
        """
        path = Path(path)
        refuse_within_run(path)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{shown(path)} is a file; a run needs a folder. Choose another with --work-dir.")
        if path.is_dir() and not (path / RECORD).exists() and not (path / LOCK).exists() and any(path.iterdir()):
            raise UsageError(
                f"{shown(path)} is not a run: it holds {listing(sorted(p.name for p in path.iterdir()), 4)}.\n"
                "Nothing was changed. Choose another folder with --work-dir."
            )
        lock = acquire(path)
        try:
            if fresh and (path / RECORD).exists():
                aside = _set_aside(path)
                os.close(lock)
                lock = acquire(path)
                logging.getLogger("guie.run").info("the former run is kept in %s", shown(aside))
            sweep(path)
            former = _former(path, experiment)
            record: dict[str, Any] = {
                "schema": SCHEMA,
                "experiment": {
                    "name": experiment.name,
                    "path": shown(experiment.path),
                    "overrides": list(experiment.overrides),
                    "digest": experiment.digest,
                    "resolved": experiment.resolved,
                },
                "records": former.records if former else {},
                "executions": [*(former.executions if former else []), _execution(experiment, command)],
            }
            run = cls(path, record, lock)
            run._write()
        except BaseException:
            os.close(lock)
            raise
        run._attach()
        if record["executions"][:-1]:
            before = len(record["executions"]) - 1
            run.log.info("going on in %s, after %s", shown(path), plural(before, "execution"))
        return run

    @property
    def records(self) -> Mapping[str, Any]:
        """What was recorded so far, by this and former executions."""
        records: Mapping[str, Any] = self._record["records"]
        return records

    def record(self, **facts: Any) -> None:
        """Write facts into run.json, such as ``run.record(metrics={"mP@5": 0.48}, manifest=digest)``.

        Raises:
            TypeError: a fact is not plain JSON.
        """
        json.dumps(facts, allow_nan=False)
        self._record["records"].update(facts)
        self._write()

    def close(self, status: str = "finished", error: str = "") -> None:
        """End the execution: "finished", "failed" or "interrupted". A second call does nothing.

        Raises:
            GuieError: the record of a finished execution cannot be written; of others, what ended them is to be told.
        """
        if self._closed:
            return
        self._closed = True
        self._execution.update(status=status, finished=_now())
        if error:
            self._execution["error"] = error
        try:
            self._write()
        except GuieError:
            if status == "finished":
                raise
        finally:
            root = logging.getLogger()
            if self._handler is not None:
                root.removeHandler(self._handler)
                self._handler.close()
            root.setLevel(self._root_level)
            self.log.setLevel(logging.NOTSET)
            logging.captureWarnings(False)
            os.close(self._lock)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            self.close("interrupted", str(error))
        else:
            # the screen shows the message; where it came from is kept here
            if self._handler is not None:
                shown_error = logging.LogRecord("guie.run", logging.ERROR, __file__, 0, "%s", (error,), None)
                assert kind is not None
                shown_error.exc_info = (kind, error, traceback)
                self._handler.handle(shown_error)
            if (said := of_the_disk(error)) is not None:
                self._execution["errno"] = errno.errorcode[said.errno or 0]
            self.close("failed", str(error) if isinstance(error, GuieError) else f"{type(error).__name__}: {error}")

    def _write(self) -> None:
        with atomic_write(self.path / RECORD, "w") as file:
            json.dump(self._record, file, indent=2, allow_nan=False)
            file.write("\n")

    def _attach(self) -> None:
        with explain_os_errors(self.path / LOG):
            self._handler = _LogFile(self.path / LOG, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        # what a run says of itself at level DEBUG is for its file alone
        self._handler.addFilter(lambda record: record.name == self.log.name or is_wanted(record))
        self.log.setLevel(logging.DEBUG)
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(min(root.level, logging.INFO) or logging.INFO)
        logging.captureWarnings(True)


class _LogFile(logging.FileHandler):
    """A log that goes without what the disk refuses, and says so once: the work is worth more than its log."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            what = explain(error, self.baseFilename).partition("\n")[0]
            with contextlib.suppress(OSError):
                print(f"warning: {what} The log has a gap.", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            super().close()


def _now(precision: str = "milliseconds") -> str:  # runs of less than a second are listed in the order of their starts
    return datetime.datetime.now(datetime.UTC).isoformat(timespec=precision)


def refuse_within_run(path: Path) -> None:
    """Raise UsageError if `path` lies in the folder of a run: nobody would find it there, and it would go with that."""
    for around in path.resolve().parents:
        if (around / RECORD).exists() and (around / LOCK).exists():
            raise UsageError(
                f"{shown(path)} lies in {shown(around)}, which is the folder of a run: it would be listed nowhere, and "
                "removed with that run.\nNothing was changed. Choose a folder outside with --work-dir."
            )


def acquire(path: Path) -> int:
    """Lock the directory of a run against other processes until the descriptor is closed.

    Raises UsageError if another process is using it.
    """
    with explain_os_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below /proc, for one
            raise GuieError(
                f"the folder {shown(path)} cannot be made ({error.strerror}).\nChoose another with --work-dir."
            ) from error
        while True:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(lock, 1000, 0).decode(errors="replace").strip()
                os.close(lock)
                raise UsageError(
                    f"{shown(path)} is in use{f' by {holder}' if holder else ''}.\n"
                    "Wait until that is done, or choose another folder with --work-dir."
                ) from None
            try:
                current = os.stat(path / LOCK).st_ino == os.fstat(lock).st_ino
            except FileNotFoundError:  # renamed between the two steps, by a fresh run
                path.mkdir(parents=True, exist_ok=True)
                current = False
            if current:
                break
            os.close(lock)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {platform.node()} since {_now('seconds')}\n".encode(), 0)
    return lock


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    with explain_os_errors(aside):
        path.rename(aside)
    return aside


def _former(path: Path, experiment: Experiment) -> RunRecord | None:
    """The record of earlier executions in `path`, provided that they were of the same experiment."""
    if not (path / RECORD).exists():
        return None
    choices = "Choose another folder with --work-dir, or begin anew with --fresh: the former run is kept beside it."
    try:
        former = RunRecord.read(path)
    except UsageError as error:
        raise UsageError(f"{error}\n{choices}") from None
    old = former.experiment
    changes = differences(old["resolved"]["recipe"], experiment.resolved["recipe"])
    if old["digest"] != experiment.digest and changes:
        width = max(len(key) for key, _, _ in changes[:20])
        lines = [f"  {key:<{width}}  {_short(was)} there, {_short(now)} now" for key, was, now in changes[:20]]
        if len(changes) > 20:
            lines.append(f"  and {len(changes) - 20} more")
        same = old["name"] == experiment.name  # its file was changed, or a setting is another
        whose = f"{experiment.name} with other settings" if same else f"another experiment ({old['name']})"
        raise UsageError(
            f"{shown(path)} holds a run of {whose}; {plural(len(changes), 'setting')} "
            f"differ{'s' if len(changes) == 1 else ''}:\n" + "\n".join(lines) + f"\n{choices}"
        )
    return former


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def typed() -> list[str]:
    """What this process was started with, as it can be typed again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = [Path(sys.argv[0]).name] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]
    return [*program, *sys.argv[1:]]


def _execution(experiment: Experiment, command: Sequence[str] | None) -> dict[str, Any]:
    return {
        "status": "running",
        "started": _now(),
        "command": shlex.join(typed() if command is None else command),
        "profile": experiment.profile.as_dict(),
        "python": platform.python_version(),
        "versions": versions(),
        "plugins": [
            {"plugin": owner.plugin, "distribution": owner.distribution, "version": owner.version}
            for owner in plugins().loaded
        ],
        "failed_plugins": [str(failure) for failure in plugins().failures],
        "machine": {"host": platform.node(), "system": platform.platform(), "processors": processors()},
        "git": git_state(experiment.path.absolute().parent),
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages that decide what comes out; nothing is imported."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = (distribution.name or "").lower().replace("_", "-")
        if name.startswith("guie-") or name in _RELEVANT:
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that `folder` is at, and whether tracked files were changed since; None outside a repository."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


__all__ = ["Run", "acquire", "git_state", "refuse_within_run", "typed", "versions"]
