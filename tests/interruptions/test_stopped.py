"""Ctrl-C in every stage: the run says how to go on, and ends with the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .chain import PLACES, Chain, arguments
from .faults import ENVIRONMENT, ROOT, Action, Fault, Outcome


def check_stopped(stopped: Outcome) -> None:
    assert stopped.code == 130, stopped
    *_, last = stopped.err.splitlines()
    assert last.startswith("stopped: ")
    assert ". Go on with: guie-train experiments/quickstart.py --profile cpu --set " in last
    assert "Traceback" not in stopped.err


@pytest.mark.parametrize("action", ["ctrl-c", "ctrl-c twice"])
def test_in_every_stage(action: Action, chain: Chain, work_dir: Path) -> None:
    for within, moment in PLACES:
        stopped = chain.run(work_dir, Fault(action, moment, within))
        assert stopped.failed, (within, stopped)
        if action == "ctrl-c" and within == "/store/submission/":
            assert stopped.code == 0, stopped  # nothing is left that could be stopped
            break
        check_stopped(stopped)
        assert ("stopped: at once. " in stopped.err) == (action == "ctrl-c twice")
    chain.check_finishes(work_dir)


def test_a_program(chain: Chain, work_dir: Path) -> None:
    """Signals from outside, at lines that a person sees: one Ctrl-C, then the end of the session."""
    command = [sys.executable, "-u", "-m", "guie_train", *arguments(chain.data, work_dir)]
    codes = {"split": (signal.SIGINT, 130), "features valid": (signal.SIGKILL, -signal.SIGKILL)}
    for stage, (number, code) in codes.items():
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if f" {stage} " in line:
                    process.send_signal(number)
                    break
            out, errors = process.communicate()
        assert process.returncode == code, errors
        if number == signal.SIGINT:
            check_stopped(Outcome(code, out, errors, 0, ""))
    chain.check_finishes(work_dir)
