"""An embedder as one safetensors file, which holds its tensors and how it is put together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guie_core import Config, ExperimentError, GuieError, build
from guie_core.files import atomic_write
from guie_core.plugins import plugins
from guie_core.signature import signature
from guie_models.augmentation import SwitchedAugmentation
from guie_models.backbones import Backbone
from guie_models.checkpoints import escaped
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
        """The embedder, its weights yet to be loaded. Raises GuieError, which names the entry, for a component that
        isn't installed or can't be built from its arguments."""
        if any(value != "none" for value in _weights(self.backbone)):
            # they are in the file; a source of others would be opened, or fetched, because a file says so
            raise GuieError("backbone: it names weights, which the description of an embedder never does")
        with _entry("backbone"):
            backbone: Backbone = build("backbones", self.backbone, where="backbone", weights="none")
        with _entry("backbone_about"):
            for name, value in _about(self.backbone_about).items():
                setattr(backbone, name, value)
        with _entry("view"):
            view = build("views", self.view, where="view")
        with _entry("head"):
            head = build("heads", self.head, where="head")
        with _entry("classifier"):
            classifier = None if self.classifier is None else build("heads", self.classifier, where="classifier")
        with _entry("augmentation"):
            augmentation = None if self.augmentation is None else SwitchedAugmentation(**self.augmentation)
        with _entry("its parts together"):
            return Embedder(backbone, head, view, augmentation, classifier)


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
    """The embedder of a file that `save` or the exporter Safetensors wrote, on the CPU, in evaluation mode, in the
    dtypes that it was saved in.

    A file from a stranger may be loaded: it chooses among the components that are installed, and neither imports
    anything else nor opens another file. Raises GuieError: no such file, not an embedder of guie's or one of a newer
    guie, damaged, a component that isn't installed, or tensors that don't fit (names, shapes and types are told, and
    nothing is returned half loaded).
    """
    path = Path(path).expanduser()
    about, tensors = _read(path)
    try:
        design = Design(**{name: about[name] for name in Design.__slots__})
    except KeyError as error:
        raise GuieError(f"{path}: the description of the embedder lacks {error}. Export it again") from error
    try:
        _compare(_heads(design, tensors), tensors, about, ("head.", "classifier."))
        embedder = design.build()
        _compare(embedder.state_dict(), tensors, about)
    except GuieError as error:
        raise GuieError(f"{path}: {error}") from error
    embedder.load_state_dict(tensors, assign=True)  # so that what was saved in half precision stays so
    return embedder.eval()


def _compare(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    start: str | tuple[str, ...] = "",
) -> None:
    """Raises GuieError unless `tensors` are the wanted ones, by name, shape and kind of number; of those whose names
    begin with one of `start`."""
    there = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
    wrong = [name for name, tensor in wanted.items() if name not in there or not _alike(there[name], tensor)]
    wrong += [name for name in there if name not in wanted]
    if wrong:
        shown = ", ".join(
            f"{escaped(name)} {_shape(there.get(name))}, wanted {_shape(wanted.get(name))}" for name in wrong[:4]
        )
        raise GuieError(
            f"{len(wrong)} of its tensors don't fit the components that are installed: {shown}. It was written"
            f" with guie-models {escaped(about.get('guie-models', '?'))}; this is {version('guie-models')}"
        )


def _heads(design: Design, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that head and classifier would have, by their names in the embedder; no memory is taken for them,
    since a description can ask for any amount."""
    wanted = {}
    values = sum(tensor.numel() for tensor in tensors.values())
    parts: dict[str, Any] = {"head": design.head}
    if design.classifier is not None:
        parts["classifier"] = design.classifier
    for entry, config in parts.items():
        if isinstance(config, Mapping):
            for name, value in config.items():
                if isinstance(value, int) and value > values:  # layers too are counted by such numbers
                    raise GuieError(f"{entry}.{escaped(name)}: {value:.3g} is more than the {values:,} values it holds")
        try:
            with torch.device("meta"):
                part = build("heads", config, where=entry)
        except GuieError:
            raise
        except Exception:  # one that can't be built without numbers: the whole is compared, when it is built
            wanted.update({name: tensor for name, tensor in tensors.items() if name.startswith(f"{entry}.")})
            continue
        wanted.update({f"{entry}.{name}": tensor for name, tensor in part.state_dict().items()})
    return wanted


@contextlib.contextmanager
def _entry(name: str) -> Iterator[None]:
    """Around what is built from an entry of a description: whatever it leads to becomes a GuieError that names it."""
    try:
        yield
    except ExperimentError:  # it names the place itself
        raise
    except GuieError as error:
        raise GuieError(f"{name}: {error}") from error
    except Exception as error:  # a description may hold anything
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise GuieError(f"{name}: no embedder's can be made of it: {type(error).__name__}: {reason}") from error


def _weights(config: Any) -> Iterator[Any]:
    """Every value of a key "weights" in `config`, at any depth: backbones may hold others."""
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            yield from (value["weights"] for _ in range("weights" in value))
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value


def _about(about: Any) -> dict[str, Any]:
    """What is known of the backbone's weights, checked: it becomes attributes."""
    if not isinstance(about, Mapping) or set(about) != {"mean", "std", "licence", "digest"}:
        raise GuieError("it has mean, std, licence and digest, and nothing else")
    for name in ("mean", "std"):
        if not isinstance(about[name], list | tuple) or len(about[name]) != 3:
            raise GuieError(f"{name} has three numbers")
    numbers = {name: tuple(float(value) for value in about[name]) for name in ("mean", "std")}
    return {**numbers, "licence": str(about["licence"]), "digest": str(about["digest"])}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise GuieError(f"{path}: no such file. `load` reads what the exporter Safetensors writes")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise GuieError(f"{path}: tensors, but no embedder of guie's; weights of a backbone are 'file:{path}'")
            about: Any = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise GuieError(f"{path}: not a safetensors file, or a damaged one: {error}") from error
    if not isinstance(about, dict):
        raise GuieError(f"{path}: its description {_KEY!r} is no JSON object. Export it again")
    if about.get("format") != FORMAT:
        raise GuieError(f"{path}: an embedder of format {about.get('format')}; this guie-models reads {FORMAT}")
    return about, tensors


def _alike(found: Tensor, wanted: Tensor) -> bool:
    """Of one shape, and both of real numbers (of whatever precision), or of one other type."""
    if found.shape != wanted.shape:
        return False
    floating = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return found.dtype in floating if wanted.is_floating_point() else found.dtype == wanted.dtype


def _shape(tensor: Tensor | None) -> str:
    if tensor is None:
        return "absent"
    plain = tensor.dtype == torch.float32
    return f"{list(tensor.shape)}" if plain else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


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
