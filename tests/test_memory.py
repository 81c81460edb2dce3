"""Memory that is too small: every path says what to lower, and extraction goes on with less."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it

from guie_core.cli import main, run_command
from guie_models import Embedder
from guie_models.exporters import Safetensors
from guie_train import extraction
from guie_train.cli import train
from guie_train.fitting.micro_batches import MicroBatches
from guie_train.heads import HeadWithLoss
from guie_train.stages.classifier import LinearClassifier

ROOT = Path(__file__).resolve().parent.parent
TORCH = "CUDA out of memory. Tried to allocate 20.00 GiB."
SMALL = [
    "recipe.data.0.styles=['google', 'twitter']",
    "recipe.splits.0.classes=700",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
    "recipe.arcface.epochs=1",
    "recipe.classifier.training.epochs=1",
    "recipe.exports=[dict(type='Safetensors')]",
    "recipe.selection.every=1",
]
FINE_TUNE = "recipe.finetune=dict(training=dict(epochs=1,batch_size=16,optimizer=dict(type='AdamW',lr=1e-3)),blocks=1)"
Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases share: features, head and classifier are made once."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "experiments", home / "experiments")
    return home


@pytest.fixture
def guie(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(home)

    def call(command: str, *arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            run_command(train, command, arguments) if command == "guie-train" else main([command, *arguments])
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return int(ended.value.code or 0), err

    return call


def trained(*options: str, folder: str = "runs/one") -> list[str]:
    command = ["guie-train", "experiments/quickstart.py", "--profile", "cpu", "--work-dir", folder]
    return [*command, *(part for each in SMALL for part in ("--set", each)), *options]


def full(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(f"{TORCH} GPU 0 has a total capacity of 8 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("owner", "method", "options", "told"),
    [
        (HeadWithLoss, "forward", [], "head: the memory is too small. A lower recipe.arcface.batch_size "),
        (LinearClassifier, "forward", [], "classifier: .* A lower recipe.classifier.training.batch_size "),
        (Safetensors, "export", [], "export: .* Leave formats out of recipe.exports; "),
        (MicroBatches, "__call__", ["--set", FINE_TUNE], "--set profile.batch.finetune=2 or --set profile.checkpoint"),
    ],
    ids=["head", "classifier", "export", "finetune"],
)
def test_stages(
    owner: type, method: str, options: list[str], told: str, guie: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, full)
    code, err = guie(*trained(*options, folder=f"runs/{owner.__name__}"))
    assert code == 1, err
    assert re.search(told, err), err
    assert f"\ntorch: {TORCH} GPU 0" in err
    assert "See documentation" not in err


def test_features_go_on_with_halves(guie: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, most = extraction.Extractor._batch, 2

    def narrow(self: extraction.Extractor, images: torch.Tensor) -> torch.Tensor:
        return full() if self.batch_size > most else batch(self, images)

    monkeypatch.setattr(extraction.Extractor, "_batch", narrow)
    code, err = guie(*trained("--stage", "features train", "--set", "recipe.backbone.image_size=40", folder="runs/40"))
    assert code == 0, err
    assert "going on with 2 (profile setting batch.features)" in err
    most = 0
    code, err = guie(*trained("--stage", "features train", "--set", "recipe.backbone.image_size=48", folder="runs/48"))
    assert code == 1
    assert "features train: the memory is too small for one image at once" in err
    assert "recipe.features.compute='profile'" in err


def test_predict(guie: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert guie(*trained())[0] == 0
    for name in ("embed", "embed_preprocessed"):
        monkeypatch.setattr(Embedder, name, full)
    code, err = guie("predict", "runs/one", "emoji", "--profile", "cpu", "--batch-size", "8", "--output", "e.npy")
    assert code == 1, err
    assert "the memory is too small for 8 images at once; add --batch-size 4" in err
    code, err = guie("predict", "runs/one", "emoji", "--profile", "cpu", "--batch-size", "1", "--output", "e.npy")
    assert "for 1 image at once; close what else takes memory here" in err
