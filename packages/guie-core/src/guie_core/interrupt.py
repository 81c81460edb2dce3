"""Ctrl-C that lets work stop at a point from which it can go on."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Stop:
    """False until the user asks to stop."""

    def __init__(self) -> None:
        self._requested = False

    def __bool__(self) -> bool:
        return self._requested

    def request(self) -> None:
        """Ask to stop, as the first Ctrl-C does."""
        self._requested = True


_active: list[Stop] = []


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Work that looks now and then whether it should stop.

    ::

        with interruptible() as stop:
            for batch in batches:
                ...
                if stop:
                    save()
                    raise Interrupted("stopped after epoch 3; the same command goes on from there")

    The first Ctrl-C (or SIGTERM, which batch systems send) makes `stop` true; a second one raises KeyboardInterrupt at
    once. An inner block shares the `stop` of the outer one. Outside the main thread, where Python gives no signals,
    `stop` is simply never true unless :meth:`Stop.request` is called.
    """
    if _active:
        yield _active[-1]
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.request()
        print("\nstopping at the next safe point; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    signals = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        signal.signal(number, handle)
    _active.append(stop)
    try:
        yield stop
    finally:
        _active.pop()
        for number, handler in before.items():
            # None: a handler that wasn't set from Python and cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
