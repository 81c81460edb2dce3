"""Progress of long work: rate, time left, and how long the work waited for its data.

On a terminal it is a bar; elsewhere (a log file, a batch system) a plain line now and then. Both go to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from .wording import plural

#: Seconds between two lines when stderr is not a terminal.
LINE_INTERVAL = 30.0


class Bar:
    """Made by :func:`bar`; a context manager."""

    def __init__(
        self,
        total: int | None,
        description: str,
        unit: str,
        initial: int = 0,
        *,
        rated: bool = True,
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.description = description
        self.unit = unit
        self.count = initial
        self._rated = rated
        self._initial = initial
        self._file = file or sys.stderr
        self._clock = clock
        self._waited = 0.0
        self._started = self._last_line = clock()
        self._bar: Any = None
        if self._file.isatty():
            self._bar = tqdm(
                total=total,
                desc=description,
                unit=f" {unit}",
                initial=initial,
                file=self._file,
                **_width(self._file),
                leave=False,  # what came out is said by whoever shows the bar
                smoothing=0.1,
                bar_format=(
                    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{remaining} left"
                    if total
                    else "{desc}: {n_fmt} [{elapsed}"
                )
                + (", {rate_fmt}{postfix}]" if rated else "{postfix}]"),
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(complete=kind is None)

    def advance(self, count: int = 1) -> None:
        """Say that `count` more units are done."""
        self.count += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._wait_text(), refresh=False)
            self._bar.update(count)
        elif self.count != self.total and self._clock() - self._last_line >= LINE_INTERVAL:
            self._last_line = self._clock()
            print(self.line(), file=self._file, flush=True)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        begun = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begun

    @property
    def wait(self) -> float:
        """The share of the time so far that went into waiting for data, 0..1."""
        elapsed = self._clock() - self._started
        return self._waited / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        """The state as a line of text."""
        elapsed = self._clock() - self._started
        done = self.count - self._initial
        rate = done / elapsed if elapsed > 0 else 0.0
        of = f"/{self.total:,}" if self.total else ""
        parts = [f"{self.count:,}{of} {self.unit}s" if of else plural(self.count, self.unit)]
        if self.total:
            parts.append(f"{100 * self.count / self.total:.0f} %")
        if self._rated:
            parts.append(f"{rate:,.1f} {self.unit}s/s" if rate >= 1 or not rate else f"{1 / rate:,.1f} s/{self.unit}")
        if self.total and rate and self.count < self.total:
            parts.append(f"{tqdm.format_interval((self.total - self.count) / rate)} left")
        if wait := self._wait_text():
            parts.append(wait)
        return f"{self.description}: {', '.join(parts)}"

    def close(self, complete: bool = True) -> None:
        """End the bar; without a terminal, a last line tells the totals."""
        if self._bar is not None:
            self._bar.close()
            return
        took = tqdm.format_interval(self._clock() - self._started)
        print(f"{self.line()}, {'took' if complete else 'stopped after'} {took}", file=self._file, flush=True)

    def _wait_text(self) -> str:
        return f"data wait {100 * self.wait:.0f} %" if self._waited else ""


def _width(file: TextIO) -> dict[str, Any]:
    """How wide a bar may be: as the terminal, as it is now, or 80 where a terminal doesn't know its width."""
    try:
        known = os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def bar(total: int | None, description: str, unit: str = "image", initial: int = 0, *, rated: bool = True) -> Bar:
    """Show the progress of `total` units of work (None: unknown), `initial` of which were done before.

    rated: whether units a second are shown, which say nothing where a unit is a share of the whole.

    ::

        with bar(len(images), "features valid") as progress:
            while ...:
                with progress.waiting():
                    batch = next(batches)
                ...
                progress.advance(len(batch))
    """
    return Bar(total, description, unit, initial, rated=rated)


def write(text: str) -> None:
    """Print a line to stderr without tearing a bar."""
    tqdm.write(text, file=sys.stderr)
