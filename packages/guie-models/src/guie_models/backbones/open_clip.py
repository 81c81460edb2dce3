"""Backbones of open_clip, which is imported where a network is built or asked about, as timm is."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.backbones import weights as _weights
from guie_models.backbones.backbone import Backbone
from guie_models.backbones.timm import check_filled, check_patches, set_stride

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

Output = Literal["projected", "pooled", "tokens"]
DEFAULT = "ViT-H-14/laion2b_s32b_b79k"

#: Of published weights, by the beginning of their tag, of which the first counts, as the model cards of their
#: publishers say.
LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacompdr": "LicenseRef-Apple-AMLR",  # MobileCLIP's
    "datacomp": "MIT",
    "commonpool": "MIT",
    "webli": "Apache-2.0",
    "v2_webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
    "dfn": "LicenseRef-Apple-AMLR",
}


class OpenClipBackbone(Backbone):
    """The visual tower of an open_clip model: the projected features, not normalised (5th place, point 3).

    `name` is "<model>/<tag>", the tag naming published weights and their mean and std; with weights from elsewhere the
    tag may be left out (mean and std are then OpenAI's). Only the visual tower is built. `weights` as for
    `TimmBackbone`; of the file of a whole model the tower's tensors are taken. `image_size` in pixels interpolates the
    position embeddings, and so does `stride`, as for `TimmBackbone` (1st place).

    output: "projected" gives [B, D] as the contrastive loss saw them; "pooled" what the projection reads (2nd place:
    1280 of ViT-H-14); "tokens" the places of the last layer, [B, N, D], without the class token.

    Raises UsageError for an unknown name, tag or size, or an option that the tower doesn't have, GuieError where
    weights are missing, damaged, of another architecture, or can't be had from the hub.
    """

    def __init__(
        self,
        name: str = DEFAULT,
        weights: str = "hub",
        image_size: int | None = None,
        stride: int | None = None,
        output: Output = "projected",
    ) -> None:
        import open_clip
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

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
        if output not in ("projected", "pooled", "tokens"):
            raise UsageError(f"{where}: output is {output!r}; it is 'projected', 'pooled' or 'tokens'.")
        tower = _build(config, weights, published, image_size or native, stride, where)
        network, features = _output(tower, output, int(config["embed_dim"]), where)
        options = f" stride={stride}" if stride else ""
        options += f" output={output}" if output != "projected" else ""
        mode = published.get("resize_mode", "shortest")
        interpolation = published.get("interpolation", "bicubic")
        super().__init__(
            network,
            name=where,
            architecture=f"open_clip/{model}{options}",
            config={"image_size": image_size, "stride": stride, "output": output},
            features=features,
            image_size=image_size or native,
            mean=published.get("mean") or OPENAI_DATASET_MEAN,
            std=published.get("std") or OPENAI_DATASET_STD,
            licence=_licence(tag) if weights == "hub" else "",
            view={"type": "Squash" if mode == "squash" else "CenterCrop", "interpolation": interpolation},
        )

    @classmethod
    def sources(cls, name: str = DEFAULT, weights: str = "hub", **settings: Any) -> list[_weights.Source]:
        """Where the weights come from: see `guie_models.backbones.weights.sources`."""
        where = f"open_clip/{name}"
        _weights.check_weights(weights, where)
        if weights != "hub":
            return _weights.local_sources(weights, where)
        import open_clip
        from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

        model, _, tag = name.partition("/")
        published = open_clip.get_pretrained_cfg(model, tag)
        repository, _, file = published.get("hf_hub", "").rpartition("/")
        if repository:
            files = [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
            what, page = f"{repository}: {' or '.join(files)}", f"{_weights.HUB}/{repository}"
            path = _weights.cached(repository, *files)
        else:
            what = page = published.get("url", "")
            kept = Path("~/.cache/clip").expanduser() / page.rpartition("/")[2]  # where open_clip keeps it
            path = kept if kept.is_file() else None
        return [_weights.Source(where, what, page, _licence(tag), path, 0 if path else _parameters(model))]

    def blocks(self) -> list[list[str]]:
        prefix, tower = ("tower.", self.network.tower) if isinstance(self.network, _Tokens) else ("", self.network)
        return [[prefix + name for name in block] for block in _blocks(tower)]


class _Tokens(nn.Module):
    """The places of a tower's last layer, [B, N, D]."""

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        tower.output_tokens = True
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.tower(images)[1]
        return tokens


def _licence(tag: str) -> str:
    """Of published weights, which open_clip doesn't record; a file of one's own may have any."""
    return next((licence for start, licence in LICENCES.items() if tag.startswith(start)), "")


def _parameters(model: str) -> int:
    """Of a whole model, both towers, as its published files hold it; 0 where its text tower is somebody else's."""
    import open_clip

    config = dict(open_clip.get_model_config(model) or {})
    custom = config.pop("custom_text", False)
    if not config or "multimodal_cfg" in config or any(key.startswith("hf_") for key in config["text_cfg"]):
        return 0
    with torch.device("meta"):
        whole = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return sum(parameter.numel() for parameter in whole.parameters())


def _output(tower: Any, output: Output, projected: int, where: str) -> tuple[nn.Module, int]:
    """The network that gives `output`, and its number of features."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if output == "projected":
        return tower, projected
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None:
        width = int(tower.ln_post.weight.shape[0])
        tower.proj = None
        return (_Tokens(tower), width) if output == "tokens" else (tower, width)
    if isinstance(tower, TimmModel) and output == "pooled":
        tower.head = nn.Identity()
        return tower, int(tower.trunk.num_features)
    raise UsageError(f"{where}: its tower, a {type(tower).__name__}, gives projected features only, no {output} ones.")


def _blocks(tower: Any) -> list[list[str]]:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer
    from timm.models import group_parameters

    names = [name for name, _ in tower.named_parameters()]
    if isinstance(tower, TimmModel):
        if not hasattr(tower.trunk, "group_matcher"):
            return [names]
        named = group_parameters(tower.trunk, tower.trunk.group_matcher(coarse=False))
        groups = [[f"trunk.{name}" for name in named[depth]] for depth in sorted(named)]
        groups[-1] += [name for name in names if not name.startswith("trunk.")]
        return groups
    blocks = "transformer.resblocks." if isinstance(tower, VisionTransformer) else "layer"
    depth = [int(name[len(blocks) :].partition(".")[0]) if name.startswith(blocks) else None for name in names]
    numbers = sorted({number for number in depth if number is not None})
    groups = [[name for name, number in zip(names, depth, strict=True) if number == wanted] for wanted in numbers]
    last = ("ln_post", "proj", "attn_pool", "attnpool")
    groups[-1] += [name for name in names if name.startswith(last)]
    inside = {name for group in groups for name in group}
    return [[name for name in names if name not in inside], *groups]


def _build(
    config: dict[str, Any], weights: str, published: dict[str, Any], image_size: int, stride: int | None, where: str
) -> nn.Module:
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

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
    resized = image_size != _side(config["vision_cfg"]["image_size"])
    if stride is None and resized and isinstance(tower, VisionTransformer):
        check_filled(_side(tower.patch_size), image_size, where)
    if stride is not None and isinstance(tower, VisionTransformer):
        _set_stride(tower, stride, image_size, where)
    if path is not None:
        _load(tower, path, f"{where}, weights={weights!r}")
    if stride is not None and isinstance(tower, TimmModel):
        set_stride(tower.trunk, stride, image_size, where)
    elif stride is not None and not isinstance(tower, VisionTransformer):
        raise UsageError(f"{where}: stride is for vision transformers; this tower is a {type(tower).__name__}.")
    elif resized and isinstance(tower, TimmModel):
        check_patches(getattr(tower.trunk, "patch_embed", None), image_size, where)
        tower.set_input_size(image_size)
    return tower


def _set_stride(tower: Any, stride: int, image_size: int, where: str) -> None:
    """Before the weights come, whose position embeddings are interpolated to the tower's grid as they are loaded."""
    from open_clip.model import resize_pos_embed

    patch = _side(tower.patch_size)
    if not 1 <= stride <= patch or image_size < patch:
        raise UsageError(
            f"{where}: stride is {stride} on images of {image_size} px; it is from 1 to the patch's {patch} px, and an"
            " image has one patch at least."
        )
    side = (image_size - patch) // stride + 1
    tower.conv1.stride = (stride, stride)
    tower.grid_size = (side, side)
    state = {"visual.positional_embedding": tower.positional_embedding.detach()}
    resize_pos_embed(state, SimpleNamespace(visual=tower))
    tower.positional_embedding = nn.Parameter(state["visual.positional_embedding"])


def _file(weights: str, published: dict[str, Any], where: str) -> Path | None:
    if weights == "none":
        return None
    if weights != "hub":
        return _weights.local_file(weights, where)
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    what = published.get("hf_hub") or published.get("url", "")
    if what.endswith("/"):  # a repository, of which open_clip takes the first of these that it has
        what = f"{what.rstrip('/')}: {HF_SAFE_WEIGHTS_NAME} or {HF_WEIGHTS_NAME}"
    with _weights.hub(what, where):
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
