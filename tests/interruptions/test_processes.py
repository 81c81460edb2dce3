"""Two processes under torchrun: what one alone gives; and what becomes of them when one dies, or is asked to stop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from .chain import arguments, draw, learnt

ROOT = Path(__file__).resolve().parent.parent.parent
# at the fourth step of the head, once: what RANK and ACT say
FAULT = """
import os, signal
from pathlib import Path

from guie_core import hookimpl

from guie_train.fitting import Fit

step = Fit._step

def disturbed(self, *batch):
    done = Path(os.environ["ONCE"])
    if self.name == "head" and (self.epoch, self.step) == (0, 3) and os.environ["RANK"] == os.environ["WHO"]:
        if not done.exists():
            done.touch()
            {act}
    return step(self, *batch)

Fit._step = disturbed

@hookimpl
def guie_datasets():
    return []
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
# to torchrun, which hands it on; the step waits for that, whichever thread the system gives it to
CTRL_C = (
    "read, write = os.pipe(); os.set_blocking(write, False); signal.set_wakeup_fd(write); "
    "os.kill(os.getppid(), signal.SIGINT); os.read(read, 1); signal.set_wakeup_fd(-1)"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder)
    return folder


def torchrun(data: Path, work_dir: Path, *more: str, fault: str = "", restarts: int = 0, who: int = 1) -> str:
    """Two processes up to the head; all that they print."""
    work_dir.parent.mkdir(parents=True, exist_ok=True)
    plugin = []
    if fault:
        file = work_dir.parent / "fault.py"
        file.write_text(FAULT.format(act=fault))
        plugin = ["--plugin", str(file)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), "-m", "guie_train"]
    done = subprocess.run(
        [*launcher, *arguments(data, work_dir), "--stage", "head", *plugin, *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ONCE": str(work_dir.parent / "once"), "WHO": str(who)},
        timeout=300,
    )
    return f"exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def together(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two processes."""
    work_dir = tmp_path_factory.mktemp("together") / "run"
    told = torchrun(data, work_dir)
    assert "exit code 0" in told
    assert " on cpu, 2 processes -> " in told
    assert re.search(r"^features( \w+)? 1/2: ", told, re.MULTILINE), told
    assert told.count("head: ") == 1  # the bar's last line, of the first process alone
    return work_dir


def head(work_dir: Path) -> dict[str, NDArray[np.float32]]:
    return load_file(work_dir / "stages" / "head" / "last.safetensors")


def check_same_head(work_dir: Path, other: Path) -> None:
    """But for rounding."""
    expected = head(other)
    for name, value in head(work_dir).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_one_process_gives_the_same(data: Path, together: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guie_train", *arguments(data, tmp_path / "run"), "--stage", "head"]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    check_same_head(tmp_path / "run", together)
    alone, shared = learnt(tmp_path / "run"), learnt(together)
    assert alone.keys() == shared.keys()
    features = [name for name in alone if name.startswith("features/")]
    assert len(features) == 1
    assert [alone[name] for name in features] == [shared[name] for name in features]  # to the bit


def test_after_a_process_has_died_torchrun_s_restart_goes_on(data: Path, together: Path, tmp_path: Path) -> None:
    told = torchrun(data, tmp_path / "run", fault=KILL, restarts=1)
    assert "exit code 0" in told
    assert told.count("error: ") == 1
    assert "error: another process of this run has ended" in told
    assert "Traceback" not in told
    assert learnt(tmp_path / "run") == learnt(together)


def test_divided_classes_give_the_same_also_when_a_process_has_died(data: Path, together: Path, tmp_path: Path) -> None:
    told = torchrun(data, tmp_path / "run", "--set", "profile.divide=classes", fault=KILL, restarts=1)
    assert "exit code 0" in told
    assert "error: another process of this run has ended" in told
    assert "Traceback" not in told
    check_same_head(tmp_path / "run", together)


def test_ctrl_c_saves_and_one_process_can_go_on(data: Path, together: Path, tmp_path: Path) -> None:
    told = torchrun(data, tmp_path / "run", fault=CTRL_C, who=0)
    assert "exit code 0" not in told
    assert told.count("stopped: head: saved at epoch 0, step 4. Go on with: torchrun --nproc-per-node 2") == 1
    command = [sys.executable, "-m", "guie_train", *arguments(data, tmp_path / "run"), "--stage", "head"]
    done = subprocess.run(
        command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert "going on in" in done.stderr
    check_same_head(tmp_path / "run", together)


def test_a_mistake_is_told_once(data: Path, tmp_path: Path) -> None:
    told = torchrun(data, tmp_path / "run", "--set", "recipe.head.droput=1")
    assert told.count("has no argument 'droput'") == 1
