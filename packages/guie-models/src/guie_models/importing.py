"""Heads and classifiers out of checkpoints that others have trained, the 5th place's published ones first."""

from __future__ import annotations

import hashlib
import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from guie_core import Config, GuieError, UsageError, build, lookup
from guie_core.wording import listing
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import Backbone
from guie_models.backbones.weights import load_matching
from guie_models.checkpoints import Checkpoint, escaped, read_checkpoint
from guie_models.embedder import Embedder
from guie_models.views import Squash

Part = Literal["head", "classifier"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a kind of checkpoint keeps a part, and what that part is.

    mapping: beginnings of places in the file -> beginnings of names in the component, as `Checkpoint.take` reads it.
    config: the component. besides: places that belong to training alone, and what they are.
    """

    name: str
    part: Part
    mapping: Mapping[str, str]
    config: Config
    besides: Mapping[str, str]


#: The 5th place's published files (recipes, point 11), by what they hold.
FIFTH_PLACE = (
    Layout(
        "the 5th place's head",
        "head",
        {"model.neck.0.": "norm.", "model.neck.1.": "linear."},
        {"type": "BatchNormLinear"},
        {"model.arc.weight": "class centres"},
    ),
    Layout(
        "the 5th place's classifier",
        "classifier",
        {"state_dict.model.classifier.0.": "linear."},
        {"type": "Linear"},
        {},
    ),
)

#: SHA-256 of the files in the original's public repository (models/), under Apache-2.0.
PUBLISHED = {
    "b25eb27c948a823a24fac59ed4081b32c187519809af4745daad4d8aac1272a9": "the published head, epoch 650",
    "e0c2255fc4aac302da504c8eeabb4a9749747ca495cf5fb72be01014b12ce968": "the published classifier, last epoch",
}

#: Of the 130k images' set, in the classifier's order (recipes, point 9).
FIFTH_PLACE_CATEGORIES = (
    *("apparel", "artwork", "cars", "dishes", "furniture", "illustrations", "landmark", "meme", "packaged"),
    *("storefronts", "toys"),
)


@dataclass(frozen=True, slots=True)
class Imported:
    """A part that was read from a checkpoint.

    found: what is in the file, for people. centres: class centres [C, E] to train on with, where it has them.
    categories: names of a classifier's outputs, where its layout tells them.
    """

    part: Part
    module: nn.Module
    found: tuple[str, ...]
    centres: Tensor | None = None
    categories: tuple[str, ...] = ()


def import_part(
    path: str | Path,
    part: Part | None = None,
    *,
    mapping: Mapping[str, str] | None = None,
    config: Config | None = None,
) -> Imported:
    """Reads a head or a classifier from a checkpoint, of which nothing is executed (`read_checkpoint`).

    Files laid out as the 5th place's are known: `import_part(path)` is enough. Others (plain torch, Lightning,
    mmengine, safetensors) need `part`, a `mapping` from beginnings of places in the file to names of the component,
    such as {"state_dict.neck.fc.": "linear."}, and `config`, such as dict(type="Linear"). The sizes of one linear layer
    are told by its weight; of a component with more of them `config` has to say them. A known layout's component takes
    further arguments from `config`.

    Raises GuieError where the file is damaged, holds no such part, or its tensors don't fit the component (which keys,
    which shapes), and UsageError for a mapping without a part or component.
    """
    checkpoint = read_checkpoint(path, mmap=True)  # a part is a small one of many a file
    if mapping is None:
        layout = _layout(checkpoint, part)
    else:
        if part is None or config is None or "type" not in config:
            raise UsageError("a mapping needs the part it is of ('head' or 'classifier') and its component, type=...")
        layout = Layout("a part by its mapping", part, mapping, config, {})
    state = checkpoint.take(layout.mapping)
    settings = {**layout.config, **(config or {})}
    settings = {**_sizes(state, layout, settings), **settings}
    module: nn.Module = build("heads", settings, where=layout.part)
    load_matching(module, state, (), f"{checkpoint.path}, as {settings['type']}", numbered=False)
    kept = [place for place, what in layout.besides.items() if what == "class centres" and place in checkpoint.tensors]
    centres = checkpoint.tensors[kept[0]].clone() if kept else None
    found = tuple(_found(checkpoint, layout, module, centres))
    known = layout in FIFTH_PLACE and layout.part == "classifier"
    categories = FIFTH_PLACE_CATEGORIES if known and _outputs(module) == len(FIFTH_PLACE_CATEGORIES) else ()
    return Imported(layout.part, module.eval(), found, centres, categories)


def fifth_place_embedder(
    backbone: Backbone,
    head: nn.Module,
    classifier: nn.Module | None,
    categories: Sequence[str] = FIFTH_PLACE_CATEGORIES,
    view: Config | None = None,
) -> Embedder:
    """The embedder of the 5th place (recipes, point 10) with the given parts; without a classifier a single view, the
    squashed image that its validation used (point 3).

    view: settings of another view than that, dict(type="CenterCrop") for example.
    categories: names of the classifier's outputs, in their order; images of apparel, packaged goods and toys get the
    padded view. Where they are unknown, (), none does. Raises UsageError where the classifier has another number.
    """
    data: dict[str, Any] = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
    single: Any = Squash(**data, interpolation="bilinear", antialias=False)
    if view:
        single = build("views", {"type": "Squash", **view}, where="view", **data)
    if classifier is None:
        return Embedder(backbone, head, single)
    if categories and _outputs(classifier) not in (None, len(categories)):
        raise UsageError(
            f"The classifier tells {_outputs(classifier)} categories apart; {len(categories)} names are given"
            f" ({listing(categories)}). Give its own, or none: categories=()."
        )
    padded_for = [number for number, name in enumerate(categories) if name in ("apparel", "packaged", "toys")]
    return Embedder(backbone, head, single, SwitchedAugmentation(**data, padded_for=padded_for), classifier)


def _outputs(classifier: nn.Module) -> Any:
    return getattr(classifier, "out_features", None)


def _layout(checkpoint: Checkpoint, part: Part | None) -> Layout:
    for layout in FIFTH_PLACE:
        there = all(any(place.startswith(start) for place in checkpoint.tensors) for start in layout.mapping)
        if there and part in (None, layout.part):
            return layout
    wanted = " or ".join(f"{layout.name} ({', '.join(layout.mapping)})" for layout in FIFTH_PLACE)
    part = part or "head"
    linear = _last_linear(checkpoint) or "neck.fc."
    raise GuieError(
        f"{checkpoint.path}: this is not laid out as {wanted}. It holds: {listing(map(escaped, checkpoint.tensors))}.\n"
        f"Say what is what by a mapping, such as {{{linear!r}: 'linear.'}} and dict(type='Linear'); to guie models "
        f"import: --map-{part} {shlex.quote(escaped(linear))}=linear. --set {part}.type=Linear"
    )


def _last_linear(checkpoint: Checkpoint) -> str:
    """Where a linear layer with a bias begins, the last one, which a head most often is; "" if there is none."""
    tensors = checkpoint.tensors
    places = [place.removesuffix("weight") for place, tensor in tensors.items() if tensor.dim() == 2]
    return next((place for place in reversed(places) if place.endswith(".") and f"{place}bias" in tensors), "")


def _sizes(state: Mapping[str, Tensor], layout: Layout, settings: Config) -> dict[str, int]:
    """in_features, out_features and size_features as the weight of a component's one linear layer tells them."""
    weight = state.get("linear.weight")
    takes = inspect.signature(lookup("heads", settings["type"]).load()).parameters
    if weight is None or weight.dim() != 2 or not {"in_features", "out_features"} <= takes.keys():
        return {}
    sizes = {"out_features": weight.shape[0]}
    size_features = 0
    if "size_features" in takes:
        by_layout = (
            {"head": 3, "classifier": 0}[layout.part] if layout in FIFTH_PLACE else takes["size_features"].default
        )
        size_features = sizes["size_features"] = settings.get("size_features", by_layout)
    return {**sizes, "in_features": weight.shape[1] - size_features}


def _found(checkpoint: Checkpoint, layout: Layout, module: nn.Module, centres: Tensor | None) -> list[str]:
    with checkpoint.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = f", {PUBLISHED[sha256]} (Apache-2.0)" if sha256 in PUBLISHED else ""
    lines = [f"{layout.name}{known}", f"sha256 {sha256}"]
    taken = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in module.state_dict().items())
    lines.append(f"{layout.part}: {type(module).__name__} with {taken}")
    if centres is not None:
        lines.append(f"class centres {list(centres.shape)}: for training on, no part of an embedder")
    plain = [_short(f"{place} {value}") for place, value in checkpoint.values.items()]
    if plain:
        lines.append(f"besides: {listing(plain)}")
    if checkpoint.objects:
        lines.append(f"not executed: {listing(map(_short, checkpoint.objects))}")
    return lines


def _short(text: str, most: int = 80) -> str:
    return escaped(text if len(text) <= most else f"{text[:most]}...")
