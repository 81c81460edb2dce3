"""Backbones of timm."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
from timm.data.config import resolve_model_data_config

from guie_core import UsageError
from guie_models.backbones import weights as _weights
from guie_models.backbones.backbone import Backbone


class TimmBackbone(Backbone):
    """A model of timm without its classifier: pooled features, of `features` = the width the classifier would read.

    `name` is timm's "architecture" or "architecture.tag". `weights`: "hub" (the published ones of the tag), "none"
    (random, the same each time), "file:<path>" or "package:<import name>", whose tensors are taken by name, or else in
    their order if every shape agrees; a classifier among them is left out. `image_size` in pixels: where the
    architecture has position embeddings they are interpolated; convolutional networks take any size.

    Raises UsageError for an unknown name or size, GuieError where weights are missing, damaged, of another
    architecture, or can't be had from the hub.
    """

    def __init__(self, name: str, weights: str = "hub", image_size: int | None = None) -> None:
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
        network = _build(name, weights, published, where)
        if image_size is not None:
            _resize(network, image_size, where)
        config = _data_config(network)
        licences = {"hub": getattr(published, "license", None) or "", "package": _weights.package_licence(weights)}
        super().__init__(
            network,
            name=where,
            architecture=where.partition(".")[0],
            config={"image_size": image_size},
            features=int(getattr(network, "head_hidden_size", None) or network.num_features),
            image_size=image_size or int(config["input_size"][-1]),
            mean=config["mean"],
            std=config["std"],
            licence=licences.get(weights.partition(":")[0], ""),
        )


def _build(name: str, weights: str, published: Any, where: str) -> Any:
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
    patches: Any = getattr(network, "patch_embed", None)
    if not (getattr(patches, "strict_img_size", True) or getattr(patches, "dynamic_img_pad", False)):
        patch = int(patches.patch_size[0])
        if image_size % patch:
            raise UsageError(f"{where}: image_size is {image_size}; it has to be a multiple of the patch's {patch} px.")
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
