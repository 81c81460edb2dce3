"""Runs that fail at a counted moment: killed, stopped, or refused by the disk.

`python FILE FOLDER`, with this file, is a server: it imports what a run needs once, then makes each run a fork
of itself, which costs the run and not the imports. A request is one line of JSON, and so is the answer.

A moment is a change of the disk below FOLDER, just before it happens: a file opened to be written, a flush to the disk,
a rename, a folder or a link made, something removed. With the clock "calls" it is a call of a Python function, which
comes between any two steps of the work as well. The n-th moment is the same one in every run, so nothing depends on how
fast this machine is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

Clock = Literal["disk", "calls"]
Action = Literal["nothing", "kill", "ctrl-c", "ctrl-c twice", "no room", "refuse"]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the same bits on every machine
_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.truncate"}
_CHANCE = re.compile(r"\.[a-z0-9_]{8}\.tmp")  # of temporary names, which differ from run to run
_MAKES = {"open", "fsync", "os.rename", "os.mkdir", "os.symlink"}  # what a disk may have no room for


@dataclass(frozen=True)
class Fault:
    """What happens at a moment.

    Attributes:
        action: "kill": SIGKILL. "ctrl-c": SIGINT, once or twice. "refuse": the system refuses this one change, with
            the error `number`. "no room": so it does from here on with all that needs room, and what is written to
            files that are open fails as well, by whatever library.
        at: the moment, from 0; -1: never.
        within: only moments count whose path holds this.
        but: names of moments that don't count (`Outcome.failed`).
        clock: what is counted.
        number: of the error, such as errno.ENOSPC.
    """

    action: Action = "nothing"
    at: int = -1
    within: str = ""
    but: tuple[str, ...] = ()
    clock: Clock = "disk"
    number: int = errno.ENOSPC


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `code` as subprocess tells it, what it printed, how many moments it had, and the name of the one
    that failed: what it did, to which path below FOLDER, for which time."""

    code: int
    out: str
    err: str
    moments: int
    failed: str


class _Armed:
    """A process that is going to fail."""

    def __init__(self, fault: Fault, folder: str, tell: Callable[[int, str], None]) -> None:
        self.fault, self.folder, self.tell = fault, folder, tell
        self.count = 0
        self.times: Counter[str] = Counter()  # of a change, which may come again
        self.but = frozenset(fault.but)
        self.full = False
        self.failed = ""

    def start(self) -> None:
        if self.fault.clock == "calls":
            sys.setprofile(self._called)
            return
        fsync = os.fsync

        def flush(handle: int) -> None:
            self._change("fsync", _place(handle))
            fsync(handle)

        os.fsync = flush  # type: ignore[assignment]  # guie passes numbers
        sys.addaudithook(self._audited)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.count += 1
            if self.count == self.fault.at:
                place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                self._fail(f"call {place}", place, "call")

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if os.path.isdir(path):  # read, or asked for a file without a name, which need not be to be had
                return
            if flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+"):
                self._change(event, _place(path))
        elif event in _CHANGES:
            place = arguments[1] if event in ("os.rename", "os.symlink") else arguments[0]
            # removals of whole folders name what is removed within a folder that is open
            within = arguments[1] if event in ("os.remove", "os.rmdir") else -1
            self._change(event, os.path.join(_place(within) if within >= 0 else "", _place(place)))

    def _change(self, event: str, path: str) -> None:
        if not os.path.abspath(path).startswith(self.folder):
            return
        if self.full and event in _MAKES:
            raise OSError(self.fault.number, os.strerror(self.fault.number), path)
        if self.fault.within not in path:
            return
        change = f"{event} {_CHANCE.sub('.*.tmp', path.removeprefix(self.folder))}"
        self.times[change] += 1
        if (name := f"{change} {self.times[change]}") in self.but:
            return
        number, self.count = self.count, self.count + 1
        if number == self.fault.at:
            self._fail(name, path, event)

    def _fail(self, name: str, path: str, event: str) -> None:
        self.failed = name
        self.tell(self.count, self.failed)
        match self.fault.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "ctrl-c":
                signal.raise_signal(signal.SIGINT)
            case "ctrl-c twice":
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            case "refuse":
                raise OSError(self.fault.number, os.strerror(self.fault.number), path)
            case "no room":
                self.full = True
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # writes of any library fail, as on a full disk
                if event in _MAKES:
                    raise OSError(self.fault.number, os.strerror(self.fault.number), path)


def _place(path: str | bytes | os.PathLike[str] | int) -> str:
    return os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fsdecode(path)


def run(fault: Fault, folder: str, arguments: Sequence[str], tell: Callable[[int, str], None]) -> None:
    """`guie-train ARGUMENTS` in this process, failing as it was asked to. Does not return."""
    from guie_train.__main__ import main

    armed = _Armed(fault, folder, tell)
    sys.argv = ["guie-train", *arguments]
    armed.start()
    try:
        main()
    finally:
        sys.setprofile(None)
        if not armed.failed:
            tell(armed.count, "")


# --- the server's side


def _serve(folder: str) -> None:
    import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        # what a run says comes through pipes, which take it when its disk takes nothing
        pipes = {name: os.pipe() for name in ("out", "err", "told")}
        for _, writing in pipes.values():
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)  # so that nobody has to read meanwhile
        child = os.fork()
        if child == 0:
            _child(request, folder, **{name: writing for name, (_, writing) in pipes.items()})
        for _, writing in pipes.values():
            os.close(writing)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = {name: _drained(reading) for name, (reading, _) in pipes.items()}
        moments, _, failed = said.pop("told").partition(" ")
        outcome = Outcome(code, **said, moments=int(moments or -1), failed=failed)
        print(json.dumps(asdict(outcome)), flush=True)


def _drained(handle: int) -> str:
    with open(handle, encoding="utf-8") as pipe:
        return pipe.read()


def _child(request: dict[str, Any], folder: str, out: int, err: int, told: int) -> None:
    """One run, in a fork of the server."""
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(out, 1)
        os.dup2(err, 2)

        def tell(count: int, failed: str) -> None:
            os.write(told, f"{count} {failed}".encode())

        run(Fault(**request["fault"]), folder, request["arguments"], tell)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def import_all() -> None:
    """What runs import, some of it as late as they can."""
    import matplotlib.backends.backend_svg  # noqa: F401
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import timm  # noqa: F401

    import guie_train.recipes.arcface_then_classifier
    import guie_train.runner  # noqa: F401


# --- the tests' side


class Server:
    """Makes runs that fail. A context manager."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds all that is counted."""
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        assert self._answer() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, arguments: Sequence[str], fault: Fault | None = None) -> Outcome:
        """`guie-train ARGUMENTS` in a process that was forked."""
        assert self._process.stdin is not None
        request = {"fault": asdict(fault or Fault()), "arguments": list(arguments)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")


def command(fault: Fault, folder: Path, arguments: Sequence[str]) -> list[str]:
    """The same run as a program of its own."""
    return [sys.executable, __file__, str(folder), json.dumps(asdict(fault)), *arguments]


if __name__ == "__main__":
    if len(sys.argv) > 2:
        import_all()  # so that calls are counted as the server counts them
        run(Fault(**json.loads(sys.argv[2])), sys.argv[1], sys.argv[3:], lambda count, failed: None)
    else:
        _serve(sys.argv[1])
