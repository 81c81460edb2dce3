"""Backbones of timm, which takes seconds to import and is, hence, imported where a network is built or asked about: an
experiment is checked, and a head trained on features that are there, without it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.backbones import weights as _weights
from guie_models.backbones.backbone import Backbone


class TimmBackbone(Backbone):
    """A model of timm without its classifier: pooled features, of `features` = the width the classifier would read.

    `name` is timm's "architecture" or "architecture.tag". `weights`: "hub" (the published ones of the tag), "none"
    (random, the same each time), "file:<path>" or "package:<import name>", whose tensors are taken by name (timm's or
    EfficientNet-PyTorch's), or in the order of their names where these are numbers; a classifier among them is left
    out. `image_size` in pixels: where the architecture has position embeddings they are interpolated, and patches must
    fill it, if it isn't the published size; convolutional networks take any.

    stride: pixels from one patch to the next, where it is not the patch's own side; patches then overlap, and position
    embeddings are interpolated to their number, (image_size - patch) // stride + 1 a side (1st place: patch 14, stride
    12, 290 px; arXiv 2210.08473). Vision transformers with learned position embeddings only. output: "pooled" gives
    [B, D], "tokens" [B, N, D], the places of the last layer before pooling, without class and register tokens. Where
    timm doesn't tell an architecture's blocks (PoolFormer, PiT), the whole network is one.

    Raises UsageError for an unknown name or size, or an option that the architecture doesn't have, GuieError where
    weights are missing, damaged, of another architecture, or can't be had from the hub.
    """

    def __init__(
        self,
        name: str,
        weights: str = "hub",
        image_size: int | None = None,
        stride: int | None = None,
        output: Literal["pooled", "tokens"] = "pooled",
    ) -> None:
        import timm

        where = f"timm/{name}"
        _weights.check_weights(weights, where)
        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(f"{where}: timm {timm.__version__} has no model {architecture!r}.{hint}")
        try:
            published: Any = timm.get_pretrained_cfg(name)
        except RuntimeError:
            tags = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*"))
            raise UsageError(f"{where}: timm {timm.__version__} has no weights of that tag. It has: {tags}.") from None
        if output not in ("pooled", "tokens"):
            raise UsageError(f"{where}: output is {output!r}; it is 'pooled' or 'tokens'.")
        network = _build(name, weights, published, where)
        config = _data_config(network)
        if stride is not None:
            set_stride(network, stride, image_size or int(config["input_size"][-1]), where)
        elif image_size is not None:
            _resize(network, image_size, where)
        features = int(getattr(network, "head_hidden_size", None) or network.num_features)
        if output == "tokens":
            features = int(network.num_features)
        options = "".join(f" {key}={value}" for key, value in (("stride", stride), ("output", output)) if value)
        licences = {"hub": getattr(published, "license", None) or "", "package": _weights.package_licence(weights)}
        super().__init__(
            _Tokens(network) if output == "tokens" else network,
            name=where,
            architecture=where.partition(".")[0] + options.replace(" output=pooled", ""),
            config={"image_size": image_size, "stride": stride, "output": output},
            features=features,
            image_size=image_size or int(config["input_size"][-1]),
            mean=config["mean"],
            std=config["std"],
            licence=licences.get(weights.partition(":")[0], ""),
            view=_view(config),
        )
        if output == "tokens":
            _check_tokens(network, self.image_size, where)

    @classmethod
    def sources(cls, name: str, weights: str = "hub", **settings: Any) -> list[_weights.Source]:
        """Where the weights come from: see `guie_models.backbones.weights.sources`."""
        where = f"timm/{name}"
        _weights.check_weights(weights, where)
        if weights != "hub":
            return _weights.local_sources(weights, where, _weights.package_licence(weights))
        import timm
        from timm.models._hub import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, get_cache_dir

        published: Any = timm.get_pretrained_cfg(name)
        licence = getattr(published, "license", None) or ""
        repository, _, revision = (published.hf_hub_id or "").partition("@")
        if repository:
            files = (
                [published.hf_hub_filename] if published.hf_hub_filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
            )
            what, page = f"{repository}: {' or '.join(files)}", f"{_weights.HUB}/{repository}"
            path = _weights.cached(repository, *files, revision=revision or None)
        else:
            what = page = published.url or ""
            kept = Path(get_cache_dir()) / page.rpartition("/")[2]
            path = kept if page and kept.is_file() else None
        return [_weights.Source(where, what, page, licence, path, 0 if path else _parameters(name))]

    def blocks(self) -> list[list[str]]:
        network: Any = self.network
        prefix = "network." if isinstance(network, _Tokens) else ""
        network = network.network if prefix else network
        if not hasattr(network, "group_matcher"):  # which not every architecture of timm has
            return super().blocks()
        from timm.models import group_parameters

        named = group_parameters(network, network.group_matcher(coarse=False))
        return [[prefix + name for name in named[depth]] for depth in sorted(named)]


def _parameters(name: str) -> int:
    """Of the network with its classifier, as its published file holds it."""
    import timm

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, pretrained=False).parameters())


class _Tokens(nn.Module):
    """What a network of timm pools, as [B, N, D]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.prefix = int(getattr(network, "num_prefix_tokens", 0))
        self.channels_first = getattr(network, "output_fmt", "NCHW") != "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.network.forward_features(images)
        if tokens.dim() == 3:
            return tokens[:, self.prefix :]
        return tokens.flatten(2).transpose(1, 2) if self.channels_first else tokens.flatten(1, 2)


@torch.no_grad()
def _check_tokens(network: Any, image_size: int, where: str) -> None:
    """Raises UsageError for an architecture whose last layer isn't one tensor of places: timm has no list of those, so
    an image is run through."""
    found = network.forward_features(torch.zeros(1, 3, image_size, image_size))
    if not isinstance(found, Tensor) or found.dim() not in (3, 4):
        what = f"{len(found)} tensors" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
        raise UsageError(
            f"{where}: it has no tokens: its last layer gives {what}, not one of places. Use output='pooled'."
        )


def _view(config: dict[str, Any]) -> dict[str, Any]:
    """The view that the model's own data configuration describes."""
    interpolation = config["interpolation"] if config["interpolation"] in ("bicubic", "bilinear") else "bicubic"
    part = float(config["crop_pct"])
    if config["crop_mode"] == "squash":
        return {"type": "Squash", "interpolation": interpolation, **({"part": part} if part != 1.0 else {})}
    return {"type": "CenterCrop", "part": part, "interpolation": interpolation}


def set_stride(network: Any, stride: int, image_size: int, where: str) -> None:
    """Lets the patches of a vision transformer of timm start every `stride` pixels, on images of `image_size`."""
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    position = getattr(network, "pos_embed", None)
    if not isinstance(network, VisionTransformer) or position is None:
        raise UsageError(
            f"{where}: stride is for vision transformers with learned position embeddings; this is a"
            f" {type(network).__name__}."
        )
    patches: Any = network.patch_embed
    patch = int(patches.patch_size[0])
    if not 1 <= stride <= patch or image_size < patch:
        raise UsageError(
            f"{where}: stride is {stride} on images of {image_size} px; it is from 1 to the patch's {patch} px, and an"
            " image has one patch at least."
        )
    side = (image_size - patch) // stride + 1
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    network.pos_embed = nn.Parameter(
        resample_abs_pos_embed(position.detach(), [side, side], list(patches.grid_size), num_prefix_tokens=prefix),
        requires_grad=False,
    )
    patches.proj.stride = (stride, stride)
    patches.img_size, patches.grid_size, patches.num_patches = (image_size, image_size), (side, side), side * side
    patches.strict_img_size, patches.dynamic_img_pad = True, False


def check_patches(patches: Any, image_size: int, where: str) -> None:
    """Raises UsageError where the patches of a vision transformer of timm don't fill images of `image_size`.

    timm passes over what is left at the right and the bottom, without a word, where it doesn't pad.
    """
    from timm.layers import PatchEmbed

    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad:
        check_filled(int(patches.patch_size[0]), image_size, where)


def check_filled(patch: int, image_size: int, where: str) -> None:
    """Raises UsageError where patches of so many pixels side by side don't fill a side of `image_size`."""
    if left := image_size % patch:
        fewer, more = image_size - left, image_size - left + patch
        sizes = f"{fewer} or {more}" if fewer else f"{more}"
        raise UsageError(
            f"{where}: image_size is {image_size}; it has to be a multiple of the patch's {patch} px, or {left} px of "
            f"each side would not be seen. Set image_size to {sizes}."
        )


def _build(name: str, weights: str, published: Any, where: str) -> Any:
    import timm

    with _quiet():
        if weights == "hub":
            if published is None or not published.has_weights:
                raise UsageError(f"{where}: no weights are published for it. Use weights='file:<path>' or 'none'.")
            with _weights.hub(str(published.hf_hub_id or published.url), where):
                return timm.create_model(name, pretrained=True, num_classes=0)
        if weights == "none":
            return _weights.random_weights(lambda: timm.create_model(name, pretrained=False, num_classes=0))
        state = _weights.read_state(_weights.local_file(weights, where), where)
        # with its classifier, since the file may be without names and have one
        network: Any = _weights.random_weights(lambda: timm.create_model(name, pretrained=False))
        _weights.load_matching(network, state, _classifier(network), f"{where}, weights={weights!r}")
        network.reset_classifier(0)
        return network


def _data_config(network: Any) -> dict[str, Any]:
    from timm.data.config import resolve_model_data_config

    config: dict[str, Any] = resolve_model_data_config(network)
    return config


def _classifier(network: Any) -> set[str]:
    named = network.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{part}." for part in ([named] if isinstance(named, str) else named))
    return {name for name in network.state_dict() if prefixes and name.startswith(prefixes)}


def _resize(network: Any, image_size: int, where: str) -> None:
    if image_size < 1:
        raise UsageError(f"{where}: image_size is {image_size}; it is a side in pixels, 1 or more.")
    native = int(_data_config(network)["input_size"][-1])
    if image_size == native or not network.pretrained_cfg.get("fixed_input_size", False):
        return
    if not hasattr(network, "set_input_size"):
        raise UsageError(f"{where}: it takes images of {native} px only; image_size is {image_size}.")
    check_patches(getattr(network, "patch_embed", None), image_size, where)
    try:
        with _quiet():
            network.set_input_size(img_size=(image_size, image_size))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise UsageError(f"{where}: it can't take images of {image_size} px: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """timm warns of what is done here on purpose, such as a model without its classifier."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
