"""Rates: counted work over measured time, in rounds, so that their spread shows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 8  # that the time is divided into; few, so that what disturbs a moment doesn't make a round of its own
LEAST_ROUNDS = 3  # where a single piece of work takes longer than a round


@dataclass(frozen=True)
class Rate:
    """Units a second: the median of the rounds, the slowest and the fastest round, and how many there were."""

    median: float
    least: float
    most: float
    rounds: int


class Meter:
    """Tells the rate of work that reports to it.

    ::

        meter = Meter(seconds=3)
        while not meter(work()):
            pass
        meter.rate

    Args:
        seconds: how long to measure; longer where three pieces of work take longer.
        warm: units that are done before the clock starts. The first report is never counted, since what was begun
            before it can't be timed.
        clock: seconds since some moment.
    """

    def __init__(self, seconds: float, *, warm: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = seconds
        self._warm = warm
        self._clock = clock
        self._begun = self._round = -1.0  # of the measurement, of this round
        self._count = 0  # units of this round, or of what isn't counted
        self._rates: list[float] = []

    def __call__(self, count: int) -> bool:
        """Takes down that `count` more units are done; whether that is enough."""
        now = self._clock()
        self._count += count
        if self._begun < 0:
            if count and self._count > self._warm:
                self._begun, self._round, self._count = now, now, 0
            return False
        took = now - self._round
        if count and took > 0 and took >= self.seconds / ROUNDS:
            self._rates.append(self._count / took)
            self._round, self._count = now, 0
        return len(self._rates) >= LEAST_ROUNDS and now - self._begun >= self.seconds

    @property
    def rate(self) -> Rate:
        """Of the rounds so far; ValueError if there is none."""
        if not self._rates:
            raise ValueError("nothing was measured")
        return Rate(statistics.median(self._rates), min(self._rates), max(self._rates), len(self._rates))
