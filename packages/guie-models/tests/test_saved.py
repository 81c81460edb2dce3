from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import guie_models
from guie_core import GuieError
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import Concatenated, OpenClipBackbone, TimmBackbone
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
    with pytest.raises(GuieError, match=r"e\.safetensors: (.|\n)*BatchNormLinaer"):
        load(written({"head": about["head"] | {"type": "BatchNormLinaer"}}, tensors))
    with pytest.raises(GuieError, match=r"head\.linear\.weight \[16, 67\] int64, wanted \[16, 67\]"):
        load(written({}, tensors | {"head.linear.weight": tensors["head.linear.weight"].long()}))
    with pytest.raises(GuieError, match=r"num_batches_tracked \[\], wanted \[\] int64"):
        load(written({}, tensors | {"head.norm.num_batches_tracked": torch.tensor(1.5)}))


@pytest.fixture
def rewrite(embedder: Embedder, tmp_path: Path) -> Any:
    """rewrite(**changed): the file of `embedder`, with entries of its description replaced."""
    path = tmp_path / "e.safetensors"
    save(embedder, path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["guie.embedder"])
    tensors = load_file(path)

    def written(whole: Any = None, **changed: Any) -> Path:
        save_file(tensors, path, {"guie.embedder": json.dumps(about | changed if whole is None else whole)})
        return path

    return written


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("weights", ["hub", "package:guie_trap.x", "package:guie_trap", "file:/etc/hostname"])
def test_a_file_names_no_other_weights(
    rewrite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, nested: bool
) -> None:
    (tmp_path / "guie_trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    backbone: dict[str, Any] = {"type": "timm/test_vit", "weights": weights}
    if nested:
        backbone = {"type": "concat", "backbones": [{"type": "concat", "backbones": [backbone]}]}
    with pytest.raises(GuieError, match=r"e\.safetensors: backbone: it names weights"):
        load(rewrite(backbone=backbone))


@torch.no_grad()
def test_several_backbones_are_loaded_without_asking_for_weights(photos: list[Tensor], tmp_path: Path) -> None:
    inner = {"type": "concat", "backbones": [{"type": "timm/test_vit", "weights": "none"}]}
    both = Concatenated([inner, {"type": "timm/test_resnet", "weights": "none"}])
    embedder = Embedder(both, Linear(both.features, 4), Squash(both.image_size, both.mean, both.std))
    save(embedder, tmp_path / "e.safetensors")
    assert torch.equal(load(tmp_path / "e.safetensors").embed(photos[:3]), embedder.embed(photos[:3]))


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        *(
            ("backbone", f"{family}/{name}")
            for family in ("timm", "open_clip")
            for name in ("hf-hub:a/b", "local-dir:/")
        ),
        ("backbone", "torch.nn.Linear"),
        ("head", "torch.nn.Linear"),
        ("head", "Squash"),
        ("view", "os:system"),
    ],
)
def test_a_file_chooses_among_registered_components_alone(rewrite: Any, entry: str, name: str) -> None:
    said = r"e\.safetensors: (.|\n)*(has no model '(hf-hub|local-dir):|is not among the)"
    with pytest.raises(GuieError, match=said):
        load(rewrite(**{entry: {"type": name}}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"whole": []}, "'guie.embedder' is no JSON object"),
        ({"whole": "x"}, "'guie.embedder' is no JSON object"),
        ({"head": None}, "head: expects dict"),
        ({"head": {"type": "Linear", "in_features": 64, "out_features": "x"}}, "head.out_features"),
        ({"head": {"type": "Linear", "in_features": 64, "out_features": 10**12}}, r"head.out_features: 1e\+12 is more"),
        ({"head": {"type": "Linear", "in_features": 64, "out_features": 30_000}}, r"wanted \[30000, 64\]"),
        ({"head": {"type": "ParallelLinears", "in_features": 64, "linears": 10**9}}, r"head.linears: 1e\+09 is more"),
        ({"backbone": []}, "backbone: expects dict"),
        ({"backbone_about": [1]}, "backbone_about: it has mean, std, licence and digest"),
        ({"backbone_about": {"network": None}}, "backbone_about: it has mean, std, licence and digest"),
        (
            {"backbone_about": {"mean": [1, 2, "x"], "std": [1, 1, 1], "licence": "", "digest": ""}},
            "backbone_about: no embedder's can be made of it: ValueError",
        ),
        (
            {"backbone_about": {"mean": 5, "std": [1, 1, 1], "licence": "", "digest": ""}},
            "backbone_about: mean has three numbers",
        ),
        ({"augmentation": {"size": "x"}}, "augmentation: no embedder's can be made of it: TypeError"),
        ({"augmentation": [1]}, "augmentation: no embedder's can be made of it: TypeError"),
        ({"classifier": "Linear"}, "classifier: expects dict"),
        ({"view": {"type": "Squash", "size": 96, "mean": [0, 0], "std": [1, 1, 1]}}, "view: mean of a view has 2"),
    ],
)
def test_descriptions_that_are_none(rewrite: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(GuieError, match=rf"e\.safetensors: (.|\n)*{said}"):
        load(rewrite(**changed))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(embedder: Embedder, tmp_path: Path, dtype: torch.dtype) -> None:
    cast = copy.deepcopy(embedder)
    cast.backbone.to(dtype)
    save(cast, tmp_path / "e.safetensors")
    again = load(tmp_path / "e.safetensors")
    for name, value in cast.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype
        assert torch.equal(again.state_dict()[name], value), name
    assert not any(parameter.requires_grad for parameter in again.backbone.parameters())
