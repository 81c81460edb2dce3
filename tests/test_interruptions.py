"""A run that is stopped, killed, or out of disk: nothing is lost, and it ends with the same bits."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# the quickstart, smaller: two styles, a backbone of toy size with random weights, few epochs, no exports
SMALL = [
    "recipe.data.0.styles=['google', 'twitter']",
    "recipe.splits.0.classes=100",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
    "recipe.arcface.epochs=6",
    "recipe.classifier.training.epochs=4",
    "recipe.exports=[]",
]


# one thread: the same bits on every machine, and quick where processes share the cores
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(work_dir: Path) -> list[str]:
    overrides = [part for override in SMALL for part in ("--set", override)]
    experiment = ROOT / "experiments" / "quickstart.py"
    return [sys.executable, "-u", "-m", "guie_train", str(experiment), "--work-dir", str(work_dir), *overrides]


def finish(work_dir: Path) -> dict[str, str]:
    """Run to the end; digests of everything that was learnt."""
    done = subprocess.run(command(work_dir), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return {
        str(path.relative_to(work_dir.parent / "store")): hashlib.sha256(path.read_bytes()).hexdigest()
        for slug in ("head", "classifier")
        for path in sorted((work_dir.parent / "store" / slug).rglob("*"))
        if path.name in ("chosen.safetensors", "last.safetensors", "curves.json")
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what a run learns that nobody disturbs."""
    learnt = finish(tmp_path_factory.mktemp("whole") / "runs" / "small")
    assert len(learnt) == 5
    return learnt


@pytest.mark.parametrize("stage", ["split", "features valid"])  # in features, in the head
def test_ctrl_c_in_the_stage_after(stage: str, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    work_dir = tmp_path / "runs" / "small"
    with subprocess.Popen(
        command(work_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if f" {stage} " in line:
                process.send_signal(signal.SIGINT)
        errors = process.stderr.read() if process.stderr else ""
    assert process.returncode == 130, errors
    assert "stopped: " in errors
    assert "Go on with: guie-train" in errors
    assert "Traceback" not in errors
    assert finish(work_dir) == uninterrupted


@pytest.mark.parametrize("stage", ["features train", "features valid"])
def test_killed_in_the_stage_after(stage: str, tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    work_dir = tmp_path / "runs" / "small"
    with subprocess.Popen(
        command(work_dir), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if f" {stage} " in line:
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert finish(work_dir) == uninterrupted


def test_a_full_disk_is_one_message_and_nothing_is_lost(tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    work_dir = tmp_path / "runs" / "small"

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # a shard of features is larger

    done = subprocess.run(
        command(work_dir), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, preexec_fn=no_large_files
    )
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert ".features could not be written" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert finish(work_dir) == uninterrupted


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        work_dir = Path("/proc/guie/runs")  # which not even root can make
    else:
        tmp_path.chmod(0o500)
        work_dir = tmp_path / "runs"
    done = subprocess.run(command(work_dir), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "--work-dir" in done.stderr
    assert "Traceback" not in done.stderr
