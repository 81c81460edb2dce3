"""experiments/3rd_place.py and experiments/unifex.py on small sets: every stage, by --set alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from guie_datasets import Manifest, decode

from .layout import FiveSets, lay_out

ROOT = Path(__file__).resolve().parent.parent.parent
SIDE = 64
Array = NDArray[Any]


def small(name: str, data: Path) -> Iterator[str]:
    """Arguments that make an experiment small enough for two cores, on the sets below `data`."""
    settings = [
        *(f"recipe.data.{number}.root={data}" for number in range(2)),
        "recipe.splits.0.folds=5",
        f"recipe.backbone=dict(type='timm/test_vit', weights='none', image_size={SIDE})",
        "recipe.arcface.batch_size=64",
    ]
    if name == "3rd_place":
        settings += [
            "recipe.arcface.epochs=12",
            "recipe.arcface.warmup_epochs=4",
            "recipe.arcface.epoch_parts=2",
            "recipe.finetune.training.batch_size=30",
            "recipe.finetune.training.epochs=4",
            "recipe.finetune.training.epoch_parts=4",
            "recipe.finetune.training.optimizer.lr=1e-5",
            "recipe.finetune.training.lr_min=1e-5",
            "recipe.finetune.every=2",
            "profile.batch.finetune=16",
        ]
    for setting in settings:
        yield from ("--set", setting)


def command(name: str, data: Path, work_dir: Path, *more: str) -> list[str]:
    experiment = ROOT / "experiments" / f"{name}.py"
    start = [sys.executable, "-m", "guie_train", str(experiment), "--profile", "cpu", "--work-dir", str(work_dir)]
    return [*start, *small(name, data), *more]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def finish(name: str, data: Path, work_dir: Path, *more: str) -> Path:
    done = subprocess.run(
        command(name, data, work_dir, *more), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> FiveSets:
    return lay_out(tmp_path_factory.mktemp("others") / "data")


@pytest.fixture(scope="module")
def third(sets: FiveSets) -> Path:
    return finish("3rd_place", sets.folder, sets.folder.parent / "third" / "small")


@pytest.fixture(scope="module")
def unifex(sets: FiveSets) -> Path:
    return finish("unifex", sets.folder, sets.folder.parent / "unifex" / "small")


def images(run: Path) -> list[Tensor]:
    """Some raw images [3, H, W] of the run, square and not."""
    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    found = [decode(manifest.images()[row].read()) for row in range(0, len(manifest), 150)]
    assert len({image.shape[1] == image.shape[2] for image in found}) == 2
    return [torch.from_numpy(image) for image in found]


def network() -> Any:
    """timm's own, with the random weights of guie's."""
    from guie_core import build

    model: Any = timm.create_model("test_vit", num_classes=0, img_size=SIDE).eval()
    built = build("backbones", {"type": "timm/test_vit", "weights": "none", "image_size": SIDE})
    model.load_state_dict(built.network.state_dict())
    return model


def squashed(image: Tensor, model: Any, interpolation: tv.InterpolationMode, antialias: bool) -> Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    seen = tv.resize(image.float(), [SIDE, SIDE], interpolation, antialias=antialias)
    view: Tensor = ((seen / 255 - mean) / std)[None]
    return view


@torch.inference_mode()
def test_the_3rd_places_export_embeds_with_the_tuned_weights(third: Path) -> None:
    """They are put by hand into timm's network; the twenty layers are averaged by hand."""
    tensors = load_file(third / "stages" / "finetune" / "chosen.safetensors")
    start = "backbone.network."
    model = network()
    pretrained = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    assert tuned.keys() == dict(model.named_parameters()).keys()  # all of it was trained
    model.load_state_dict(tuned)
    moved = [(value - pretrained[name]).abs().max().item() for name, value in tuned.items()]
    assert 0 < max(moved) < 28 * 1.1e-5  # 28 steps of Adam at 1e-5
    weight, bias = tensors["head.weight"].mean(0), tensors["head.bias"].mean(0)
    assert tensors["head.weight"].shape == (20, 64, 64)
    export = torch.jit.load(third / "stages" / "export" / "saved_model.pt")
    for image in images(third):
        features = model(squashed(image, model, tv.InterpolationMode.BILINEAR, antialias=False))
        wanted = nn.functional.normalize(features @ weight.T + bias)
        torch.testing.assert_close(export(image[None].float()), wanted, rtol=0, atol=2e-5)


def test_the_3rd_places_two_stages(third: Path) -> None:
    head, tuned = (third / "stages" / name for name in ("head", "finetune"))
    before, after = load_file(head / "chosen.safetensors"), load_file(tuned / "chosen.safetensors")
    assert before["loss.centres"].shape == (3, 40, 64)  # sub-centres; classes left by the split
    # the second stage goes on from the first one's head and centres
    for name in ("head.weight", "head.bias", "loss.centres"):
        assert 0 < (after[name] - before[name]).abs().max() < 28 * 1.1e-5, name
    rates = [curve["lr"] for curve in json.loads((head / "curves.json").read_text())["curves"]]
    up = np.linspace(1e-6, 4.096e-3, 5)[:4]
    assert rates == pytest.approx([*up, *(4.096e-3 * 0.93**epoch for epoch in range(8))])
    about = json.loads((tuned / "curves.json").read_text())
    assert [curve["lr"] for curve in about["curves"]] == [pytest.approx(1e-5)] * 4
    assert [curve["epoch"] for curve in about["curves"] if "MRR@5" in curve] == [2, 4]
    assert about["chosen"] == 4
    assert not (tuned / "state.pt").exists()


def test_fine_tuning_on_its_own_computes_no_features_and_no_head_again(third: Path, sets: FiveSets) -> None:
    changed = ["recipe.finetune.blocks=2", "recipe.finetune.head_lr=1e-3", "recipe.finetune.training.epochs=1"]
    more = [part for setting in changed for part in ("--set", setting)]
    run = finish("3rd_place", sets.folder, third.with_name("other"), *more, "--stage", "finetune")
    record = json.loads((run / "run.json").read_text())
    reused = {stage["name"]: stage["reused"] for stage in record["records"]["stages"]}
    assert {name for name, again in reused.items() if not again} == {"finetune"}
    tensors = load_file(run / "stages" / "finetune" / "chosen.safetensors")
    network_ = [name for name in tensors if name.startswith("backbone.network.")]
    assert network_
    assert not [name for name in network_ if name.startswith(("backbone.network.blocks.0", "backbone.network.patch"))]


@torch.inference_mode()
def test_unifexs_export_embeds_by_the_formula(unifex: Path) -> None:
    tensors = load_file(unifex / "stages" / "head" / "chosen.safetensors")
    assert tensors["loss.centres"].shape == (3, 40, 64)
    model = network()
    export = torch.jit.load(unifex / "stages" / "export" / "saved_model.pt")
    for image in images(unifex):
        features = model(squashed(image, model, tv.InterpolationMode.BICUBIC, antialias=True))
        wanted = nn.functional.normalize(features @ tensors["head.linear.weight"].T + tensors["head.linear.bias"])
        torch.testing.assert_close(export(image[None].float()), wanted, rtol=0, atol=2e-5)
    about = json.loads((unifex / "stages" / "head" / "curves.json").read_text())
    assert about["chosen"] == len(about["curves"]) == 10
    assert {path.stem for path in (unifex / "stages" / "head").glob("epoch-*")} == {
        f"epoch-{epoch:04d}" for epoch in range(1, 11)
    }
    assert (unifex / "stages" / "submission" / "submission.zip").is_file()
