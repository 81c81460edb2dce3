"""experiments/5th_place.py --dry-run: the plan, on a machine with neither data nor weights nor a GPU."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from guie_core.cli import run_command
from guie_core.experiment import Experiment
from guie_core.interrupt import Stop
from guie_core.registry import build
from guie_core.wording import duration, size
from guie_train.cli import train
from guie_train.planning.plan import Plan, make_plan
from guie_train.stage import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent
EXPERIMENT = ROOT / "experiments" / "5th_place.py"
PAGE = ROOT / "docs" / "how-to" / "reproduce-5th-place.md"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a disk with 500 GB free: no data, no weights, no network, no GPU."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUIE_DATA", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments: pytest.fail("a plan needs no network"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=500e9))
    return tmp_path


@pytest.fixture
def guie_train(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `guie-train experiments/5th_place.py`; gives the exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            run_command(train, "guie-train", ["experiments/5th_place.py", *arguments])
        told = capsys.readouterr()
        return int(caught.value.code or 0), told.out, told.err

    return run


def plan(name: str, bare: Path, *overrides: str) -> Plan:
    experiment = Experiment.load(EXPERIMENT, overrides, name)
    recipe: Any = build("recipes", experiment.recipe)
    return make_plan(recipe.stages(experiment.profile), [], Workspace(bare / "store", experiment.profile, Stop()))


def test_the_page_shows_the_plan_as_it_is(guie_train: Run, bare: Path) -> None:
    before = sorted(bare.rglob("*"))
    code, out, err = guie_train("--profile", "rtx3090-24g", "--dry-run")
    assert (code, err) == (0, "")  # that data and weights are missing is what a plan is for
    assert sorted(bare.rglob("*")) == before
    page = PAGE.read_text()
    shown = re.search(r"(?<=--profile rtx3090-24g --dry-run\n)5th_place on .*?(?=\n```)", page, re.DOTALL)
    assert shown is not None
    if os.environ.get("GUIE_UPDATE_PAGES"):
        PAGE.write_text(page.replace(shown[0], out.rstrip()))
    else:
        assert shown[0] == out.rstrip(), "if that is intended, run this test with GUIE_UPDATE_PAGES=1"
    assert max(map(len, out.splitlines())) <= 100


def test_a_data_set_that_is_there_in_part_is_missing(guie_train: Run, bare: Path) -> None:
    folder = bare / "data" / "products10k"
    folder.mkdir(parents=True)
    (folder / "guie-products10k-train-00-7097.tfrec").touch()
    code, out, _ = guie_train("--dry-run")
    assert code == 0
    told = f"{folder}: the set is not complete:\n        1 of the set's 20 shards are there"
    assert told in out
    assert "set recipe.data.0.complete to False" in out  # three of the sets have that setting
    code, out, _ = guie_train("--set", "recipe.data.0.complete=False", "--dry-run")
    assert code == 0
    assert "not complete" not in out


def test_all_that_is_missing_is_named_with_where_it_is_to_be_had(guie_train: Run) -> None:
    out = guie_train("--profile", "v100-32g", "--dry-run")[1]
    missing = out[out.index("\nMissing\n") :]
    for name, page in {
        "products10k": "https://www.kaggle.com/datasets/motono0223/guie-products10k-tfrecords-label-1000-10690",
        "glr2021": "https://www.kaggle.com/datasets/motono0223/guie-glr2021mini-tfrecords-label-10691-17690",
        "gpr1200": "https://github.com/Visual-Computing/GPR1200",
        "food101": "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "universal130k": "https://www.kaggle.com/datasets/rhtsingh/130k-images-512x512-universal-image-embeddings",
    }.items():
        assert re.search(
            rf"data set {name}, about .*\n      {re.escape(page)}\n      guie data download {name}", missing
        )
    assert "https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in missing
    assert "(about 3.9 GB, MIT)" in missing
    assert "--set recipe.backbone.weights=file:<path>" in missing


@pytest.mark.parametrize("name", ["rtx3090-24g", "v100-32g"])
def test_the_experiment_tells_the_figures_of_the_plan(name: str, bare: Path) -> None:
    doc = " ".join(Experiment.load(EXPERIMENT, (), name).doc.split())

    def total(found: Plan, kind: str) -> str:
        steps = [step for step in found.steps if step.name.startswith(kind)]
        seconds = sum(step.forecast.seconds or 0 for step in steps)
        return f"{'at least' if any(step.forecast.at_least for step in steps) else 'about'} {duration(seconds)}"

    exact, reduced = plan(name, bare), plan(name, bare, "recipe.features.compute=profile")
    steps = {step.name: step.forecast for step in exact.steps}
    assert total(exact, "features") in doc
    assert total(reduced, "features") in doc
    assert total(exact, "head") in doc
    for stage in ("features train", "head", "classifier"):
        assert size(steps[stage].device or 0) in doc
    assert size(reduced.steps[3].forecast.device or 0) in doc
    assert size(steps["export"].host or 0) in doc
    assert size(sum(step.disk or 0 for step in exact.steps)) in doc


def test_a_gpu_that_is_too_small(guie_train: Run) -> None:
    small = ("--dry-run", "--profile", "rtx3090-24g", "--set", "profile.memory_gb=8")
    code, out, err = guie_train(*small)
    assert code == 1
    assert "Missing" in out  # the plan is told all the same
    lines = err.splitlines()
    assert lines[0] == "error: profile rtx3090-24g has 8.0 GB for a stage, which is too small:"
    assert lines[1] == "  features train takes 10.9 GB"
    assert lines[4] == (
        "features train, features valid, features classifier: fits with --set recipe.features.compute=profile"
    )
    assert "fits with --set profile.batch.features=256" in lines[5]
    assert "--profile v100-32g" in lines[6]
    for option in ("recipe.features.compute=profile", "profile.batch.features=256"):
        assert guie_train(*small, "--set", option)[0] == 0  # as it is told, so it can be typed


def test_training_warns_of_a_gpu_that_is_too_small_before_the_first_stage(
    guie_train: Run, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 3090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_86"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3_000_000_000, 25_300_000_000))
    monkeypatch.setattr("guie_train.runner._check_sources", lambda stages: None)  # of which none is there
    code, _, err = guie_train("--profile", "rtx3090-24g")
    assert code == 1  # the data are not there
    told = "NVIDIA GeForce RTX 3090, of whose 25.3 GB 3.0 GB are free, has 3.0 GB for a stage, which is too small:"
    assert err.startswith(f"warning: as far as it can be told ahead, {told}\n  features train takes 10.9 GB\n")
    assert not (bare / "runs" / "store").exists()
