"""Memory that plans foretell, beside what stages take: each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_datasets import Manifest
from guie_train.feature_store import FeatureStore
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook
from guie_train.planning.forecast import Features as StoredFeatures
from guie_train.stage import Stage, Workspace

DIMENSION, CLASSES = 512, 100


@dataclass(frozen=True, kw_only=True)
class Rows(Stage[Manifest]):
    """A manifest of images that don't exist: `images` to train on, and 200 to select by."""

    slug: ClassVar[str] = "rows"
    images: int

    def run(self, folder: Path, workspace: Workspace) -> None:
        count = self.images + 200
        columns: dict[str, Any] = {
            "path": [f"{number}.jpg" for number in range(count)],
            "label": [*(np.arange(self.images) % CLASSES), *(CLASSES + np.arange(200) // 10)],
            "category": [f"kind {number % 4}" for number in range(count)],
            "split": ["train"] * self.images + ["select"] * 200,
            "width": np.full(count, 640),
            "height": np.full(count, 480),
            "hash": [f"{number:032x}" for number in range(count)],
        }
        Manifest.from_columns(columns).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        return Manifest.read(folder / "manifest.parquet")


@dataclass(frozen=True, kw_only=True)
class Stored(Stage[FeatureStore]):
    """Random features of them."""

    slug: ClassVar[str] = "stored"
    manifest: Rows

    def run(self, folder: Path, workspace: Workspace) -> None:
        store = FeatureStore(folder, {"dimension": DIMENSION, "dtype": "float16", "image_size": 224})
        hashes, generator = workspace.get(self.manifest).column("hash"), np.random.default_rng(0)
        for start in range(0, len(hashes), 10_000):
            part = hashes[start : start + 10_000]
            store.append(part, generator.standard_normal((len(part), DIMENSION), np.float32))

    def load(self, folder: Path) -> FeatureStore:
        return FeatureStore(folder)

    def forecast(self, outlook: Outlook) -> Forecast:
        return Forecast(gives=StoredFeatures(DIMENSION))


def stage(kind: str, images: int) -> Stage[Any]:
    from guie_train.fitting import Training
    from guie_train.stages.classifier import FitClassifier
    from guie_train.stages.head import FitHead
    from guie_train.stages.selection import Selection

    rows = Rows(name="rows", images=images)
    stored = Stored(name="stored", manifest=rows)
    adam: dict[str, Any] = {"type": "AdamW", "lr": 1e-3}
    if kind == "classifier":
        training = Training(epochs=1, batch_size=512, optimizer=adam)
        return FitClassifier(name=kind, manifest=rows, features=stored, training=training, reported=None)
    return FitHead(
        name=kind,
        manifest=rows,
        train=stored,
        valid=stored,
        head={"type": "BatchNormLinear", "out_features": 16},
        loss={"type": "ArcFace", "scale": 30.0, "margin": 0.5},
        training=Training(epochs=1, batch_size=512, optimizer={"type": "SAM", "rho": 0.05, "base": adam}),
        selection=Selection(protocol={"type": "LeaveOneOut", "split": "select"}),
    )


def workspace(folder: str) -> Workspace:
    return Workspace(Path(folder) / "store", profile("cpu"), Stop())


def measure(kind: str, folder: str, images: int) -> None:
    """Print what the stage takes beyond what a small one like it has loaded: bytes."""
    from guie_train.bench.memory import peak

    workspace(folder).get(stage(kind, 2000))
    space, large = workspace(folder), stage(kind, images)
    for source in large.inputs():
        space.get(source)
    with peak() as found:
        space.get(large)
    print(json.dumps(found.memory.machine))


@pytest.mark.parametrize("kind", ["head", "classifier"])
def test_trainings_take_what_is_foretold(kind: str, tmp_path: Path) -> None:
    images = 100_000  # 205 MB of features in float32
    large, space = stage(kind, images), workspace(str(tmp_path))
    for source in large.inputs():
        space.get(source)
    # the manifest is counted, as it is where it is there
    outlook = Outlook(space, lambda each: isinstance(each, Rows))
    forecast = outlook.forecast(large)
    foretold = (forecast.host or 0) + (forecast.device or 0) - LIBRARIES
    assert foretold > images * DIMENSION * 4
    program = f"import {Path(__file__).stem} as it; it.measure({kind!r}, {str(tmp_path)!r}, {images})"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(ran.stdout.splitlines()[-1]) == pytest.approx(foretold, rel=0.2)
