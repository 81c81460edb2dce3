"""An embedder as one safetensors file, which holds its tensors and how it is put together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from guie_core import Config, GuieError, build
from guie_core.files import atomic_write
from guie_core.plugins import plugins
from guie_core.signature import signature
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import Backbone
from guie_models.embedder import Embedder

FORMAT = 1
_KEY = "guie.embedder"


@dataclass(frozen=True, slots=True)
class Design:
    """How an embedder is put together: what its tensors have to be loaded into.

    Each part is a dict(type=..., **arguments) as in an experiment, without weights. backbone_about: licence and digest
    of the backbone's weights. augmentation: crop and padded_for, or None. categories: names of the classifier's
    outputs, where they are known.
    """

    backbone: Config
    backbone_about: Mapping[str, Any]
    view: Config
    head: Config
    classifier: Config | None
    augmentation: Mapping[str, Any] | None
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, embedder: Embedder, categories: tuple[str, ...] = ()) -> Design:
        """The design of `embedder`. Raises GuieError for a part that is no component, or forgets its arguments."""
        backbone, augmentation = embedder.backbone, embedder.augmentation
        if not isinstance(backbone, Backbone):
            raise GuieError(f"the backbone is a {type(backbone).__name__}; only a guie_models.Backbone can be saved.")
        about = {name: getattr(backbone, name) for name in ("mean", "std", "licence", "digest")}
        return cls(
            backbone=dict(backbone.config),
            backbone_about=about,
            view=_config("views", embedder.view),
            head=_config("heads", embedder.head),
            classifier=None if embedder.classifier is None else _config("heads", embedder.classifier),
            augmentation=None if augmentation is None else _augmentation(augmentation),
            categories=categories,
        )

    def build(self) -> Embedder:
        """The embedder, its weights yet to be loaded. Raises GuieError for a component that isn't installed."""
        backbone: Backbone = build("backbones", self.backbone, where="backbone", weights="none")
        for name, value in self.backbone_about.items():
            setattr(backbone, name, tuple(value) if isinstance(value, list) else value)
        view = build("views", self.view, where="view")
        return Embedder(
            backbone,
            build("heads", self.head, where="head"),
            view,
            None if self.augmentation is None else SwitchedAugmentation(**self.augmentation),
            None if self.classifier is None else build("heads", self.classifier, where="classifier"),
        )


def save(embedder: Embedder, path: str | Path, categories: tuple[str, ...] = ()) -> None:
    """Writes `embedder` to one safetensors file; the file appears only when it is complete.

    `categories` names the classifier's outputs, for people. Raises GuieError as `Design.of` does, or as the disk.
    """
    from safetensors.torch import save as to_bytes

    design = Design.of(embedder, categories)
    about = {
        "format": FORMAT,
        "guie-models": version("guie-models"),
        **{name: getattr(design, name) for name in Design.__slots__},
    }
    # a copy of each: safetensors refuses tensors that share memory, and buffers of views may
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in embedder.state_dict().items()}
    with atomic_write(path) as file:
        file.write(to_bytes(tensors, metadata={_KEY: json.dumps(about)}))


def load(path: str | Path) -> Embedder:
    """The embedder of a file that `save` or the exporter Safetensors wrote, on the CPU, in evaluation mode.

    Raises GuieError: no such file, not an embedder of guie's or one of a newer guie, damaged, a component that isn't
    installed, or tensors that don't fit (names and shapes are told, and nothing is returned half loaded).
    """
    path = Path(path).expanduser()
    about, tensors = _read(path)
    try:
        design = Design(**{name: about[name] for name in Design.__slots__})
    except KeyError as error:
        raise GuieError(f"{path}: the description of the embedder lacks {error}. Export it again") from error
    embedder = design.build()
    wanted = embedder.state_dict()
    wrong = [name for name in wanted if name not in tensors or tensors[name].shape != wanted[name].shape]
    wrong += [name for name in tensors if name not in wanted]
    if wrong:
        shown = ", ".join(
            f"{name} {_shape(tensors.get(name))}, wanted {_shape(wanted.get(name))}" for name in wrong[:4]
        )
        raise GuieError(
            f"{path}: {len(wrong)} of its tensors don't fit the components that are installed: {shown}. It was written"
            f" with guie-models {about.get('guie-models', '?')}; this is {version('guie-models')}"
        )
    embedder.load_state_dict(tensors)
    return embedder.eval()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise GuieError(f"{path}: no such file. `load` reads what the exporter Safetensors writes")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise GuieError(f"{path}: tensors, but no embedder of guie's; weights of a backbone are 'file:{path}'")
            about: dict[str, Any] = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except (SafetensorError, ValueError, OSError) as error:
        raise GuieError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if about.get("format") != FORMAT:
        raise GuieError(f"{path}: an embedder of format {about.get('format')}; this guie-models reads {FORMAT}")
    return about, tensors


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


def _config(kind: str, part: nn.Module) -> Config:
    """dict(type=..., **arguments) that builds `part` again: its arguments are read from attributes of their names."""
    for entry in plugins().entries(kind):
        if not entry.family and _is_target(entry, part):
            break
    else:
        raise GuieError(
            f"{type(part).__name__} is none of the {kind} that plugins offer, so it can't be saved by name."
        )
    arguments = {}
    for name in signature(type(part)).hints:
        if not hasattr(part, name):
            raise GuieError(
                f"{entry.label} can't be saved: it keeps no attribute {name!r}. A component that is to be saved keeps"
                " its arguments as attributes"
            )
        arguments[name] = _plain(getattr(part, name))
    return {"type": entry.name, **arguments}


def _is_target(entry: Any, part: nn.Module) -> bool:
    try:
        return entry.load() is type(part)
    except GuieError:  # a plugin that can't be imported is not what made this part
        return False


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it; tensors as lists, dropout as its rate."""
    if isinstance(value, nn.Dropout):
        return value.p
    if isinstance(value, Tensor):
        return value.flatten().tolist() if value.dim() else value.item()
    return list(value) if isinstance(value, tuple) else value


def _augmentation(augmentation: SwitchedAugmentation) -> dict[str, Any]:
    square = augmentation.square
    return {
        "size": augmentation.size,
        "mean": square.mean.flatten().tolist(),
        "std": square.std.flatten().tolist(),
        "crop": square.center_crop,
        "padded_for": augmentation.padded_for.tolist(),
    }
