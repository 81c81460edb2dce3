"""Runs that are killed go on and end with the same bits, whatever they were at."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from .chain import ALL, PLACES, Chain, arguments
from .faults import ENVIRONMENT, ROOT, Fault, command

SEED = 20221009
KILLED = -signal.SIGKILL


def test_in_every_stage(chain: Chain, work_dir: Path) -> None:
    for within, moment in PLACES:
        killed = chain.run(work_dir, Fault("kill", moment, within))
        assert killed.code == KILLED, (within, killed)
    chain.check_finishes(work_dir)


def test_between_any_two_steps(chain: Chain, work_dir: Path) -> None:
    seeded = random.Random(SEED)
    codes = [
        chain.run(work_dir, Fault("kill", seeded.randrange(chain.calls // 2), clock="calls")).code
        for _ in range(40 if ALL else 3)
    ]
    assert codes.count(KILLED) >= 2
    chain.check_finishes(work_dir)


@pytest.mark.skipif(not ALL, reason="takes minutes; GUIE_ALL_MOMENTS=1 asks for it")
@pytest.mark.parametrize("number", range(20))
def test_a_program_at_random(number: int, chain: Chain, work_dir: Path) -> None:
    moment = random.Random(f"{SEED} {number}").randrange(chain.calls)
    program = command(Fault("kill", moment, clock="calls"), chain.server.folder, arguments(chain.data, work_dir))
    killed = subprocess.run(program, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert killed.returncode == KILLED, killed
    chain.check_finishes(work_dir)


def test_whatever_the_clock_says(chain: Chain, work_dir: Path) -> None:
    killed = chain.run(work_dir, Fault("kill", 20, "/store/head/"))
    assert killed.code == KILLED
    for path in work_dir.parent.rglob("*"):  # written tomorrow, by a clock that was set back since
        os.utime(path, (path.stat().st_atime + 86_400, path.stat().st_mtime + 86_400), follow_symlinks=False)
    chain.check_finishes(work_dir)


def test_outputs_that_are_made_again(chain: Chain, work_dir: Path) -> None:
    """With --from what was there stays until the new is whole; a run that is killed leaves no half of it to be read."""
    chain.check_finishes(work_dir)
    for moment in range(2):
        fault = Fault("kill", moment, "/store/head/")
        killed = chain.server.run([*arguments(chain.data, work_dir), "--from", "head"], fault)
        assert killed.code == KILLED
        chain.check_finishes(work_dir)
