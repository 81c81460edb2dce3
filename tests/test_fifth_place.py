"""The recipe's own path, every component as `_base_/fifth_place.py` names it, on subgroups of emoji as classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from guie_datasets import Manifest

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = '''"""The 5th place's recipe, small."""
from mmengine.config import read_base

with read_base():
    from ._base_.fifth_place import recipe

recipe.update(
    data=[dict(type="emoji", classes="subgroup", styles=["google", "twitter"], root=None)],
    backbone=dict(type="timm/test_resnet", weights="none", image_size=32),
    arcface=dict(epochs=4, batch_size=64, keep_every=2),
    selection=dict(every=2),
    classifier=dict(training=dict(epochs=4), every=2),
    augmentation=dict(padded_for=["Objects"]),
    exports=[dict(type="TorchScript")],
)
profile = "cpu"
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("fifth")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    (folder / "experiments" / "small.py").write_text(EXPERIMENT)
    command = [sys.executable, "-m", "guie_train", "experiments/small.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "small"


def test_splits_are_scikit_learns(run: Path) -> None:
    """Point 2, by scikit-learn alone."""
    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    split, label = manifest.column("split"), manifest.column("label")
    category = manifest.column("category").astype(str)
    unseen = StratifiedGroupKFold(20, shuffle=True, random_state=0)
    _, select = next(unseen.split(label, category, label))
    assert np.flatnonzero(split == "select").tolist() == select.tolist()
    rest = np.setdiff1d(np.arange(len(label)), select)
    counts = np.bincount(label[rest])
    large = rest[counts[label[rest]] >= 20]
    _, valid = next(StratifiedKFold(20, shuffle=True, random_state=0).split(large, label[large]))
    assert np.flatnonzero(split == "valid").tolist() == sorted(large[valid].tolist())


def test_curves_have_what_the_original_logs(run: Path) -> None:
    about = json.loads((run / "stages" / "head" / "curves.json").read_text())
    measured = [curve for curve in about["curves"] if "MRR@5" in curve]
    assert [curve["epoch"] for curve in measured] == [2, 4]
    for curve in measured:
        assert curve.keys() >= {"lr", "loss", "mP@5", "MRR@5", "valid loss", "valid accuracy"}
        assert 0 <= curve["valid accuracy"] <= 1
    assert about["chosen"] == max(measured, key=lambda curve: curve["mP@5"])["epoch"]


def test_checkpoints_are_those_of_the_original(run: Path) -> None:
    names = {path.stem for path in (run / "stages" / "head").glob("*.safetensors")}
    assert names == {"chosen", "last", "best-valid-loss", "best-valid-accuracy", "epoch-0002", "epoch-0004"}


def test_without_an_evaluation_there_is_an_export_but_no_report(run: Path) -> None:
    assert (run / "stages" / "export" / "saved_model.pt").is_file()
    assert not (run / "report.html").exists()
