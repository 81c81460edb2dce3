"""Backbones of open_clip."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import nn

from guie_core import UsageError
from guie_models.backbones import weights as _weights
from guie_models.backbones.backbone import Backbone


class OpenClipBackbone(Backbone):
    """The visual tower of an open_clip model: the projected features, not normalised (5th place, point 3).

    `name` is "<model>/<tag>", the tag naming published weights and their mean and std; with weights from elsewhere the
    tag may be left out (mean and std are then OpenAI's). Only the visual tower is built. `weights` as for
    `TimmBackbone`; of the file of a whole model the tower's tensors are taken. `image_size` in pixels interpolates the
    position embeddings.

    Raises UsageError for an unknown name, tag or size, GuieError where weights are missing, damaged, of another
    architecture, or can't be had from the hub.
    """

    def __init__(
        self, name: str = "ViT-H-14/laion2b_s32b_b79k", weights: str = "hub", image_size: int | None = None
    ) -> None:
        where = f"open_clip/{name}"
        _weights.check_weights(weights, where)
        model, _, tag = name.partition("/")
        config = open_clip.get_model_config(model) if ":" not in model else None
        if config is None:
            close = difflib.get_close_matches(model, open_clip.list_models(), n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(f"{where}: open_clip {open_clip.__version__} has no model {model!r}.{hint}")
        published = open_clip.get_pretrained_cfg(model, tag) if tag else {}
        if not published and (tag or weights == "hub"):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
            raise UsageError(
                f"{where}: open_clip {open_clip.__version__} has no weights of the tag {tag!r}. It has: {tags}."
            )
        native = _side(config["vision_cfg"]["image_size"])
        network = _build(config, weights, published, image_size or native, where)
        super().__init__(
            network,
            name=where,
            architecture=f"open_clip/{model}",
            config={"image_size": image_size},
            features=int(config["embed_dim"]),
            image_size=image_size or native,
            mean=published.get("mean") or OPENAI_DATASET_MEAN,
            std=published.get("std") or OPENAI_DATASET_STD,
            licence="",  # open_clip doesn't record them
        )


def _build(config: dict[str, Any], weights: str, published: dict[str, Any], image_size: int, where: str) -> nn.Module:
    if image_size < 1:
        raise UsageError(f"{where}: image_size is {image_size}; it is a side in pixels, 1 or more.")
    vision = {**config["vision_cfg"], "output_tokens": False}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # the tower's own weights come below
    else:
        vision["image_size"] = image_size
    quick_gelu = bool(config.get("quick_gelu", False) or published.get("quick_gelu", False))
    path = _file(weights, published, where)  # first, since it is what fails
    tower = _weights.random_weights(lambda: _tower(config["embed_dim"], vision, quick_gelu))
    if path is not None:
        _load(tower, path, f"{where}, weights={weights!r}")
    if image_size != _side(vision["image_size"]):
        tower.set_input_size(image_size)  # type: ignore[operator]
    return tower


def _file(weights: str, published: dict[str, Any], where: str) -> Path | None:
    if weights == "none":
        return None
    if weights != "hub":
        return _weights.local_file(weights, where)
    with _weights.hub(published.get("hf_hub") or published.get("url", ""), where):
        return Path(open_clip.download_pretrained(published))


def _tower(embed_dim: int, vision: dict[str, Any], quick_gelu: bool) -> nn.Module:
    # the public factories build the text tower too, which is a third of ViT-H-14
    from open_clip.model import _build_vision_tower

    tower: nn.Module = _build_vision_tower(embed_dim, vision, quick_gelu)
    return tower


def _load(tower: nn.Module, path: Path, where: str) -> None:
    from open_clip.model import resize_pos_embed

    state = _weights.read_state(path, where)
    if any(name.startswith("visual.") for name in state):
        state = {name: value for name, value in state.items() if name.startswith("visual.")}
    else:
        state = {f"visual.{name}": value for name, value in state.items()}
    resize_pos_embed(state, SimpleNamespace(visual=tower))
    _weights.load_matching(tower, state, (), where)


def _side(image_size: int | tuple[int, int] | list[int]) -> int:
    return int(image_size if isinstance(image_size, int) else image_size[0])
