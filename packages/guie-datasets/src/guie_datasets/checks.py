"""What several functions ask of the same arguments. Each raises UsageError, and names the argument."""

from __future__ import annotations

import math

from guie_core import UsageError

MOST_SEED = 2**32 - 1  #: what numpy's older generator takes, which pandas and scikit-learn choose with


def check_seed(seed: int, who: str = "") -> None:
    """A seed of any random choice: a whole number from 0 to `MOST_SEED`. who: whose it is, for the message."""
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"{who}{': ' * bool(who)}seed is {seed}; it is a whole number from 0 to {MOST_SEED}")


def check_max_bad(share: float) -> None:
    """The share of images that may be bad."""
    if not 0 <= share <= 1:  # also for nan, with which nothing would be too much
        raise UsageError(f"max_bad is {share}; it is a share of the images, from 0 to 1")


def enough_max_bad(bad: int, of: int) -> float:
    """The next `max_bad` with two digits, for people, that lets `bad` > 0 of so many images pass."""
    scale = 10.0 ** (1 - math.floor(math.log10(bad / of)))
    steps = math.ceil(bad / of * scale)
    while steps / scale * of < bad:  # by a rounding error
        steps += 1
    return float(steps / scale)
