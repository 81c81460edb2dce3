"""Worker processes that a thread each talks to: one thread inside each, arrays sent as they are.

Nothing heavy is imported here, so that a worker's libraries find the environment that `_start` made for them.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from guie_core import GuieError

#: What keeps libraries from starting threads of their own in a worker.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM", "TF_NUM_INTRAOP_THREADS"),
    "1",
)
_SECONDS_TO_END = 5.0
_environment = threading.Lock()

Maker = Callable[[contextlib.ExitStack], Callable[..., Any]]


class Processes:
    """`function(*arguments)` in one of `count` processes, called from at most as many threads at a time.

    make: gives the function, in each process once; picklable, and so must be the function's arguments and results. What
    it opens it leaves to the stack.

    Results go through a pipe, the values of contiguous numpy arrays without being pickled. A view of 224 pixels takes
    .09 ms so, a photo of 2.4 MB .5 ms. Shared memory takes .04 and .12 ms, but has a name that a killed program leaves
    behind, and a limit in containers that ends in a bus error.

    The processes are started afresh, not forked: a script that uses them keeps its main part under
    `if __name__ == "__main__":`. They take no notice of Ctrl-C, and end when this object is closed or its process ends,
    in whatever way.
    """

    def __init__(self, make: Maker, count: int) -> None:
        """Raises GuieError if `make` can't be pickled."""
        try:
            pickled = pickle.dumps(make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise GuieError(
                f"processes need a transform that can be pickled, and this one can't: {error}. Make it a function of a "
                "module, or use threads"
            ) from error
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        atexit.register(self.close)  # ahead of multiprocessing's own, which would wait for them
        for _ in range(count):
            self._all.append(_Worker(pickled))
            self._idle.put(self._all[-1])

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, what: str, *arguments: Any) -> Any:
        """The function's result, or what it raised. Raises GuieError, naming `what`, if the process ends meanwhile."""
        worker = self._idle.get()
        try:
            return worker.call(what, arguments)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends the processes."""
        atexit.unregister(self.close)
        for worker in self._all:
            worker.connection.close()
        while self._all:
            self._all.pop().end()


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, pickled: bytes) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, pickled), name="guie-read", daemon=True
        )
        self.calls = 0
        with _environment, _changed(os.environ, _ONE_THREAD):
            self.process.start()
        theirs.close()

    def call(self, what: str, arguments: tuple[Any, ...]) -> Any:
        try:
            self.connection.send(arguments)
            failed, result = _receive(self.connection)
        except (EOFError, OSError) as error:
            raise GuieError(f"{what}: {self._ending()}") from error
        self.calls += 1
        if failed:
            raise result
        return result

    def _ending(self) -> str:
        self.process.join(_SECONDS_TO_END)
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return "the process that was reading it was killed; most often that means that the memory was full"
        if code < 0:
            return f"the process that was reading it was ended by signal {signal.Signals(-code).name}"
        hint = "" if self.calls else '. A script that uses processes needs `if __name__ == "__main__":`'
        return f"the process that was to read it has ended (exit code {code}){hint}"

    def end(self) -> None:
        self.process.join(_SECONDS_TO_END)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()


@contextlib.contextmanager
def _changed(environment: Any, values: dict[str, str]) -> Iterator[None]:
    before = {name: environment.get(name) for name in values}
    environment.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del environment[name]
            else:
                environment[name] = value


def _work(connection: Connection, pickled: bytes) -> None:
    """The life of a worker: it ends when its parent has closed the pipe, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both are sent to whole groups; the parent decides
        signal.signal(number, signal.SIG_IGN)
    with contextlib.ExitStack() as stack, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function: Callable[..., Any] | None = None
        while True:
            arguments = connection.recv()
            try:
                if function is None:
                    function = pickle.loads(pickled)(stack)
                reply = _pickled((False, function(*arguments)))
            except Exception as error:
                reply = _pickled((True, _portable(error)))
            _send(connection, *reply)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note; one that doesn't survive pickling as another that says the same."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
    try:
        same = type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        same = False
    return error if same else RuntimeError(f"{type(error).__name__}: {error}")


def _pickled(value: Any) -> tuple[bytes, list[memoryview]]:
    """The value, and the memory of the arrays in it, which is left out of the former."""
    buffers: list[pickle.PickleBuffer] = []
    return pickle.dumps(value, protocol=5, buffer_callback=buffers.append), [buffer.raw() for buffer in buffers]


def _send(connection: Connection, pickled: bytes, views: list[memoryview]) -> None:
    connection.send((pickled, [view.nbytes for view in views]))
    for view in views:
        while view.nbytes:
            view = view[os.write(connection.fileno(), view) :]


def _receive(connection: Connection) -> Any:
    import numpy as np

    pickled, sizes = connection.recv()
    buffers = [np.empty(size, np.uint8) for size in sizes]
    for buffer in buffers:
        view = buffer.data
        while view.nbytes:
            count = os.readv(connection.fileno(), [view])
            if not count:
                raise EOFError
            view = view[count:]
    return pickle.loads(pickled, buffers=buffers)
