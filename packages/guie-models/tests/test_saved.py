from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import guie_models
from guie_core import GuieError
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import OpenClipBackbone, TimmBackbone
from guie_models.embedder import Embedder
from guie_models.exporters import Safetensors
from guie_models.heads import PCA, BatchNormLinear, Linear
from guie_models.saved import load, save
from guie_models.views import Squash


@pytest.fixture(scope="module")
def embedder(backbone: TimmBackbone) -> Embedder:
    torch.manual_seed(0)
    head = BatchNormLinear(backbone.features, 16, dropout=0.25)
    head(torch.randn(64, backbone.features + 3))
    augmentation = SwitchedAugmentation(96, backbone.mean, backbone.std, crop=0.8, padded_for=(0, 2))
    view = Squash(96, backbone.mean, backbone.std, interpolation="bilinear", antialias=False)
    return Embedder(backbone, head, view, augmentation, Linear(backbone.features, 4))


@torch.no_grad()
def test_one_line_reads_it_back(embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    save(embedder, tmp_path / "e.safetensors")
    again = guie_models.load(tmp_path / "e.safetensors")
    assert torch.equal(again.embed(photos), embedder.embed(photos))
    assert not again.training
    assert again.head.dropout.p == 0.25
    assert (again.view.interpolation, again.view.antialias) == ("bilinear", False)
    assert (again.backbone.digest, again.backbone.licence) == (embedder.backbone.digest, embedder.backbone.licence)
    assert again.backbone.mean == embedder.backbone.mean


@torch.no_grad()
def test_other_parts(backbone: TimmBackbone, photos: list[Tensor], tmp_path: Path) -> None:
    """No classifier, no augmentation, a PCA for a head; an open_clip tower at another size than its own."""
    pca = PCA.fit(torch.randn(50, backbone.features), 8)
    tower = OpenClipBackbone("ViT-S-32-alt", weights="none", image_size=64)
    for network, head in ((backbone, pca), (tower, Linear(tower.features, 5))):
        embedder = Embedder(network, head, Squash(network.image_size, network.mean, network.std))
        save(embedder, tmp_path / "e.safetensors")
        again = load(tmp_path / "e.safetensors")
        assert torch.equal(again.embed(photos[:4]), embedder.embed(photos[:4]))
        assert again.classifier is None
        assert again.augmentation is None


@torch.no_grad()
def test_export_writes_a_card(embedder: Embedder, photos: list[Tensor], tmp_path: Path) -> None:
    exporter = Safetensors(("food", "animals", "toys", "rest"), about="Trained on photographs (CC0-1.0).")
    report = exporter.export(embedder, tmp_path / "model", photos)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["README.md", "embedder.safetensors"]
    assert (report.path.name, report.max_difference, report.top5_agreement) == ("embedder.safetensors", 0.0, 1.0)
    card = (tmp_path / "model" / "README.md").read_text()
    for fact in ("16 dimensions", "timm/test_vit, 96 px", "padded view for food, toys", "CC0-1.0", "guie_models.load"):
        assert fact in card
    with safe_open(report.path, framework="pt") as file:
        assert json.loads(file.metadata()["guie.embedder"])["categories"] == ["food", "animals", "toys", "rest"]


def test_a_part_that_plugins_do_not_offer(backbone: TimmBackbone, tmp_path: Path) -> None:
    head = nn.Linear(backbone.features, 4)
    head.out_features = 4
    embedder = Embedder(backbone, head, Squash(96, backbone.mean, backbone.std))
    with pytest.raises(GuieError, match="Linear is none of the heads that plugins offer"):
        save(embedder, tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    with pytest.raises(GuieError, match="no such file"):
        load(path)
    save_file({"weight": torch.ones(1)}, path)
    with pytest.raises(GuieError, match="tensors, but no embedder of guie's"):
        load(path)
    save(embedder, path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(GuieError, match=r"e\.safetensors: not a safetensors file, or a damaged one"):
            load(path)
    path.write_bytes(whole)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    about, tensors = json.loads(metadata["guie.embedder"]), load_file(path)

    def written(changed: dict[str, object], state: dict[str, Tensor]) -> Path:
        save_file(state, path, {"guie.embedder": json.dumps(about | changed)})
        return path

    with pytest.raises(GuieError, match="an embedder of format 2; this guie-models reads 1"):
        load(written({"format": 2}, tensors))
    with pytest.raises(GuieError, match=r"head\.linear\.weight \[5, 67\], wanted \[16, 67\]"):
        load(written({}, tensors | {"head.linear.weight": torch.ones(5, 67)}))
    fewer = {name: value for name, value in tensors.items() if name != "head.linear.bias"}
    with pytest.raises(GuieError, match=r"1 of its tensors don't fit .*: head\.linear\.bias absent, wanted \[16\]"):
        load(written({}, fewer))
    save_file(tensors, path, {"guie.embedder": json.dumps({k: v for k, v in about.items() if k != "head"})})
    with pytest.raises(GuieError, match="lacks 'head'"):
        load(path)
    with pytest.raises(GuieError, match="BatchNormLinaer"):
        load(written({"head": about["head"] | {"type": "BatchNormLinaer"}}, tensors))
