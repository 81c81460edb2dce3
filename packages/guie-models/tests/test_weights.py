"""Which tensors of a file become which of a network; the files' other troubles are in test_backbones.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from guie_core import GuieError
from guie_models.backbones import TimmBackbone
from guie_models.backbones.weights import load_matching, read_state


def _state(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(timm.create_model("test_vit", num_classes=0).state_dict())


def test_unknown_names_are_not_taken_by_their_order(tmp_path: Path) -> None:
    """With each norm's bias before its weight all shapes would agree, and all features be wrong."""
    swapped: dict[str, Tensor] = {}
    for name, value in _state().items():
        if name.endswith("norm1.weight"):
            swapped["x." + name.replace("weight", "beta")] = _state()[name.replace("weight", "bias")]
        swapped[f"x.{name}y"] = value
    swapped = {name: value for name, value in swapped.items() if not name.endswith("norm1.biasy")}
    torch.save(swapped, tmp_path / "x.pth")
    with pytest.raises(
        GuieError, match=r"another architecture(.|\n)*Missing: cls_token(.|\n)*Not wanted: x\.cls_tokeny"
    ):
        TimmBackbone("test_vit", weights=f"file:{tmp_path / 'x.pth'}")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_numbers_for_names_are_an_order(tmp_path: Path, suffix: str) -> None:
    """Of the numbers: a safetensors file is sorted by text, 10 before 2."""
    state = _state()
    numbered = {str(i): value for i, value in enumerate(state.values())}
    path = tmp_path / f"x{suffix}"
    torch.save(numbered, path) if suffix == ".pth" else save_file(numbered, path)
    network = TimmBackbone("test_vit", weights=f"file:{path}").network
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(GuieError, match="Not wanted: 0; 1"):
        load_matching(timm.create_model("test_vit", num_classes=0), numbered, (), "here", numbered=False)


def _theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of timm's network under EfficientNet-PyTorch's names, from what each block has, in timm's order."""
    blocks = list(dict.fromkeys(tuple(name.split(".")[1:3]) for name in state if name.startswith("blocks.")))
    renamed = {}
    for name, value in state.items():
        place, _, last = name.rpartition(".")
        parts = place.split(".")
        if parts[0] == "blocks":
            number = blocks.index((parts[1], parts[2]))
            expands = f"blocks.{parts[1]}.{parts[2]}.conv_pwl.weight" in state
            theirs = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
            theirs |= (
                {"conv_pw": "_expand_conv", "conv_pwl": "_project_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
                if expands
                else {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
            )
            place = f"_blocks.{number}.{theirs['.'.join(parts[3:])]}"
        else:
            outer = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            place = (outer | {"classifier": "_fc"})[place]
        renamed[f"{place}.{last}"] = value
    return renamed


@pytest.mark.parametrize("architecture", ["efficientnet_lite0", "efficientnet_b0"])
def test_efficientnets_names_in_any_order(architecture: str) -> None:
    torch.manual_seed(2)
    source: Any = timm.create_model(architecture)
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in source.state_dict().items()
    }
    theirs = _theirs(state)
    module: nn.Module = timm.create_model(architecture)
    assert load_matching(module, dict(reversed(theirs.items())), (), "") == len(state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    theirs["_blocks.3._unknown.weight"] = torch.ones(1)
    with pytest.raises(GuieError, match="another architecture"):
        load_matching(module, theirs, (), "")


class Settings:
    """An object beside the tensors."""


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_with_objects_give_their_tensors(tmp_path: Path, key: str) -> None:
    state = _state()
    content = {key: state, "hyper_parameters": Settings(), "optimizer": {"state": {0: torch.ones(3)}}}
    torch.save(content, tmp_path / "x.ckpt")
    found = read_state(tmp_path / "x.ckpt", "here")
    assert found.keys() == state.keys()
    network = TimmBackbone("test_vit", weights=f"file:{tmp_path / 'x.ckpt'}").network
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    torch.save({"weights": state, "hyper_parameters": Settings()}, tmp_path / "x.ckpt")
    with pytest.raises(GuieError, match="holds Python objects besides, which are never unpickled"):
        read_state(tmp_path / "x.ckpt", "here")
