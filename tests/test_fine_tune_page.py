"""The experiment of docs/how-to/fine-tune.md: its stages as it stands there, and its results at small scale."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

import guie_models
from guie_core import build
from guie_core.experiment import Experiment
from guie_datasets import Manifest, decode
from guie_models import size_values
from guie_train.runner import _chosen, train

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "fine-tune.md").read_text()


def test_the_pages_experiment(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    path = tmp_path / "experiments" / "tuned.py"
    path.write_text(block)
    experiment = Experiment.load(path)
    stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    tuned = stages[names.index("finetune")]
    assert [stage.name for stage in tuned.inputs()] == ["split", "features train", "features valid", "head"]
    # what comes later works with the tuned backbone
    later = [stage for stage in stages[names.index("finetune") + 1 :] if stage.slug == "features"]
    assert len(later) > 1
    assert all(tuned in stage.inputs() for stage in later)
    assert tuned in stages[names.index("evaluate")].inputs()
    assert tuned in stages[names.index("export")].inputs()
    # and what comes before is the quickstart's own
    plain = Experiment.load(ROOT / "experiments" / "quickstart.py")
    before = build("recipes", plain.recipe, where="recipe").stages(plain.profile)
    keys = {stage.name: stage.key for stage in before}
    for name in names[: names.index("finetune")]:
        assert stages[names.index(name)].key == keys[name], name


def test_when_it_is_tuned_again_so_are_the_features_of_what_was_tuned() -> None:
    recipe = ["recipe.finetune=dict(training=dict(epochs=1, batch_size=8, optimizer=dict(type='AdamW')))"]
    experiment = Experiment.load(ROOT / "experiments" / "quickstart.py", recipe)
    stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
    _, again = _chosen(stages, None, "finetune")
    names = [stage.name for stage in stages]
    assert [stage.name for stage in again] == names[names.index("finetune") :]
    _, again = _chosen(stages, None, "split")
    assert {stage.name for stage in again} == {
        *("split", "head", "finetune", "classifier", "evaluate", "export"),
        *(name for name in names[names.index("finetune") :] if name.startswith("features")),
    }


def test_what_is_said_in_another_way_is_not_trained_again() -> None:
    def finetune(*more: str) -> Any:
        training = "recipe.finetune=dict(training=dict(epochs=1, batch_size=8, optimizer=dict(type='AdamW')))"
        experiment = Experiment.load(ROOT / "experiments" / "quickstart.py", [training, *more])
        stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
        return next(stage for stage in stages if stage.name == "finetune")

    plain = finetune()
    for alike in ("compute=float32", "every=1", f"loss={dict(plain.loss)}", "layer_decay=1.0"):
        assert finetune(f"recipe.finetune.{alike}").key == plain.key, alike
    for other in ("every=2", "loss=dict(type='CosFace')", "layer_decay=0.5", "blocks=1"):
        assert finetune(f"recipe.finetune.{other}").key != plain.key, other


SMALL = [
    "recipe.data.0.styles=['google', 'twitter', 'emojione']",
    "recipe.splits.0.classes=60",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
    "recipe.features.dtype=float32",
    "recipe.arcface.epochs=2",
    "recipe.finetune.blocks=2",
    "recipe.finetune.training.epochs=1",
    "recipe.finetune.training.optimizer.lr=1e-2",
    "recipe.classifier=None",
    "recipe.augmentation=None",
    "recipe.exports=[dict(type='Safetensors')]",
]


def mean_precision(features: NDArray[Any], labels: NDArray[Any]) -> float:
    """mP@5 of every image among all others, by its definition."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    far = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(far, np.inf)
    scores = []
    for row, label in enumerate(labels):
        most = min(5, int((labels == label).sum()) - 1)
        scores.append(np.mean(labels[np.argsort(far[row], kind="stable")[:most]] == label))
    return float(np.mean(scores))


def test_what_is_reported_is_of_the_tuned_backbone_beside_the_pretrained(tmp_path: Path) -> None:
    """Its features by timm with the tuned weights put in by hand; mP@5 in numpy; the same model is exported."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "experiments" / "tuned.py").write_text(block)
    run = train(Experiment.load(tmp_path / "experiments" / "tuned.py", SMALL), work_dir=tmp_path / "runs" / "tuned")
    scores = {s["system"]: s["mP@5"] for s in json.loads((run / "run.json").read_text())["records"]["scores"]}

    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    rows = np.flatnonzero(manifest.column("split") == "test")
    labels = manifest.column("label")[rows]
    config = {"type": "timm/test_resnet", "weights": "none", "image_size": 32}
    backbone = build("backbones", config)
    view = build("views", {"type": "Squash"}, size=32, mean=backbone.mean, std=backbone.std)
    images = [torch.from_numpy(decode(manifest.images()[row].read())) for row in rows.tolist()]
    seen = torch.stack([view(image) for image in images])
    network = timm.create_model("test_resnet", num_classes=0).eval()
    tensors = load_file(run / "stages" / "finetune" / "chosen.safetensors")
    with torch.inference_mode():
        network.load_state_dict(backbone.network.state_dict())
        raw = network(seen)
        start = "backbone.network."
        tuned = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        assert not network.load_state_dict(tuned, strict=False).unexpected_keys
        head = build("heads", {"type": "BatchNormLinear", "out_features": 64}, in_features=96)
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
        sizes = torch.stack([size_values(image.shape[1], image.shape[2], 32) for image in images])
        trained = head.eval()(torch.cat([network(seen), sizes], 1))
    assert scores["raw features"] == pytest.approx(mean_precision(raw.numpy(), labels), abs=2e-3)
    assert scores["trained"] == pytest.approx(mean_precision(trained.numpy(), labels), abs=2e-3)
    frozen_head = head(torch.cat([raw, sizes], 1)).detach()
    before = build("heads", {"type": "BatchNormLinear", "out_features": 64}, in_features=96)
    begun = load_file(run / "stages" / "head" / "chosen.safetensors")
    before.load_state_dict({k.removeprefix("head."): v for k, v in begun.items() if k.startswith("head.")})
    untuned = before.eval()(torch.cat([raw, sizes], 1)).detach()
    assert scores["before tuning"] == pytest.approx(mean_precision(untuned.numpy(), labels), abs=2e-3)
    assert (frozen_head - trained).abs().max() > 0.01  # what it would be with the wrong backbone
    embedder = guie_models.load(run / "stages" / "export" / "embedder.safetensors")
    with torch.inference_mode():
        found = torch.cat([embedder(image[None].float()) for image in images[:5]])
    torch.testing.assert_close(found, nn.functional.normalize(trained[:5]), rtol=0, atol=1e-5)


def test_afresh_each_image_is_looked_at_once_before() -> None:
    """Several views of an image are for a head that is trained on frozen features."""

    def features(*settings: str) -> Any:
        training = "recipe.finetune=dict(training=dict(epochs=1, batch_size=8, optimizer=dict(type='AdamW')))"
        crops = "recipe.views.train=dict(type='RandomSquareCrop')"
        experiment = Experiment.load(ROOT / "experiments" / "quickstart.py", [training, crops, *settings])
        stages = build("recipes", experiment.recipe, where="recipe").stages(experiment.profile)
        (tuned,) = (stage for stage in stages if stage.name == "finetune")
        return tuned.train

    assert features("recipe.features.views=4").views == 4
    afresh = features("recipe.features.views=4", "recipe.finetune.start=afresh")
    assert afresh.views == 1
    assert afresh.key == features().key


def test_the_pages_settings_exist() -> None:
    from dataclasses import fields

    from guie_train.stages.finetune import FineTuning

    table = PAGE.partition("## Settings")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)", " ".join(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))))
    assert named == {field.name for field in fields(FineTuning)} - {"blocks", "compute"}  # which stand elsewhere
    assert "`blocks`" in PAGE
    assert "recipe.finetune.compute" in PAGE
