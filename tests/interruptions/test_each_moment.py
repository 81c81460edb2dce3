"""Each change that a run makes to its disk fails once, in each way; in the end the bits are those of no failure."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from .chain import ALL, Chain
from .faults import Action, Outcome
from .test_disk import FULL, REFUSED, check_told
from .test_stopped import check_stopped

MOMENTS = 550  # at least, in the recipe of `chain`

pytestmark = pytest.mark.skipif(not ALL, reason="takes minutes each; GUIE_ALL_MOMENTS=1 asks for it")


def check(outcome: Outcome, action: Action, folder: Path) -> None:
    """That a run which failed in this way ended as it should."""
    if action == "kill":
        assert outcome.code == -signal.SIGKILL, outcome
    elif action in ("no room", "refuse"):
        check_told(outcome, folder, FULL if action == "no room" else REFUSED[errno.ENOSPC])
    else:
        check_stopped(outcome)


@pytest.mark.parametrize("action", ["kill", "no room", "refuse", "ctrl-c", "ctrl-c twice"])
def test_each_moment(action: Action, chain: Chain, work_dir: Path) -> None:
    moments = 0
    for outcome in chain.each_moment(work_dir, action):
        moments += 1
        # a removal of what isn't needed any more may be refused, and a run may end before it was asked to
        if outcome.code or action in ("kill", "no room"):
            check(outcome, action, work_dir.parent)
    assert moments >= MOMENTS
