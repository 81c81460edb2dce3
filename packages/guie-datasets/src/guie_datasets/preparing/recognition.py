"""What `guie data prepare` is given, as settings of data sets: names, and paths that tell by what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guie_core import ExperimentError, GuieError, Problem, UsageError, build, check, lookup
from guie_core.experiment import apply_override
from guie_core.plugins import plugins
from guie_core.signature import convert, signature
from guie_core.wording import did_you_mean, listing
from guie_datasets.rows import Dataset
from guie_datasets.tfrecord import images_in_name

_PLAIN = (".tfrec", ".tfrecord", ".tfrecs", ".tfrecords")
_TFRECORD = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN))
_TABLE = (".csv", ".tsv", ".parquet")
_PACKED = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def settings(argument: str) -> dict[str, Any]:
    """`dict(type=...)` of the data set that an argument names: one by its name, or a path by what is there.

    A folder of shards is `tfrecord` or `webdataset`, another one `folder`; a table is `table`, a manifest `manifest`.

    Raises UsageError: neither a data set nor a path, or a file of another kind.
    """
    names = [entry.name for entry in plugins().entries("datasets")]
    path = Path(argument).expanduser().absolute()
    if argument in names or (not path.exists() and _family(argument)):
        return {"type": argument}
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path)
    if os.sep in argument:  # it has a folder in it: a path was meant
        raise UsageError(f"{argument}: no such file or folder")
    near = did_you_mean(argument, names) or f" Data sets: {listing(names)}."
    raise UsageError(f"{argument!r} is neither a data set nor a file or folder here.{near}")


def _family(name: str) -> bool:
    try:
        return bool(lookup("datasets", name).family)
    except UsageError:
        return False


def _of_folder(path: Path) -> dict[str, Any]:
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{path}: cannot be listed: {error.strerror or error}") from error
    if shards := [path / name for name in names if name.endswith(_TFRECORD)]:
        return _tfrecord(path, shards)
    if shards := [path / name for name in names if name.endswith(".tar")]:
        return {"type": "webdataset", "files": [str(shard) for shard in shards]}
    return {"type": "folder", "root": str(path)}


def _of_file(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if path.name.endswith(_TFRECORD):
        return {"type": "tfrecord", "files": [str(path)], "source": path.name.partition(".")[0]}
    if suffix == ".tar":
        return {"type": "webdataset", "files": [str(path)]}
    if suffix == ".parquet":
        from guie_datasets.manifest import is_manifest  # pyarrow

        if is_manifest(path):
            return {"type": "manifest", "path": str(path)}
    if suffix in _TABLE:
        return {"type": "table", "file": str(path)}
    if suffix in _PACKED:
        raise UsageError(f"{path} is an archive. Unpack it and name the folder that holds the class folders")
    raise UsageError(
        f"{path}: a file of unknown kind. Name a folder of class folders, a table "
        f"({', '.join(_TABLE)}), TFRecord files (.tfrec), tar shards (.tar), or a manifest"
    )


def _tfrecord(folder: Path, shards: Sequence[Path]) -> dict[str, Any]:
    source = folder.resolve().name
    suffixes = {suffix for shard in shards for suffix in _TFRECORD if shard.name.endswith(suffix)}
    if len(suffixes) == 1 and all(images_in_name(shard) is not None for shard in shards):  # gaps can be told
        return {"type": "tfrecord", "folder": str(folder), "source": source, "pattern": f"*{suffixes.pop()}"}
    return {"type": "tfrecord", "files": [str(shard) for shard in shards], "source": source}


def named_settings(arguments: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The settings of each argument, by the name that messages and overrides give it, with the overrides applied.

    The name is the data set's, or that of the file or folder; what would come twice is called by its number, from 0.
    An override is "name.key=value" or "number.key=value", with one data set "key=value" too; the value as for an
    experiment's `--set`. Where a list is expected, a text stands for a list of one.

    Raises ExperimentError, with all problems of names, keys and types; UsageError as `settings`.
    """
    named: dict[str, dict[str, Any]] = {}
    for number, argument in enumerate(arguments):
        name = Path(argument).expanduser().resolve().stem if os.path.exists(Path(argument).expanduser()) else argument
        named[str(number) if name in named or "." in name else name] = settings(argument)
    problems: list[Problem] = []
    for override in overrides:
        apply_override(named, _addressed(override, list(named)), problems, list(named))
    for name, values in named.items():
        if isinstance(values, dict):
            named[name] = values = _listed(values)
        problems += check("datasets", values, name)
    if problems:
        raise ExperimentError(problems, "the data sets" if len(named) > 1 else "the data set")
    return named


def _addressed(override: str, names: Sequence[str]) -> str:
    """An override with the name of the data set that it concerns."""
    key, equals, value = override.partition("=")
    first, dot, rest = key.strip().partition(".")
    if dot and first in names:
        return override
    if dot and first.isdecimal() and int(first) < len(names):
        return f"{names[int(first)]}.{rest}{equals}{value}"
    return f"{names[0]}.{override}" if len(names) == 1 and equals else override


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with [text] for a text where a list is taken and no text: a shell would eat the quotes."""
    try:
        hints = signature(lookup("datasets", values["type"]).load()).hints
    except (GuieError, ValueError, TypeError):
        return dict(values)  # for `check` to say

    def fits(name: str, value: Any) -> bool:
        return not convert(hints.get(name), value, name, lambda slot, config, where: [])[1]

    return {
        name: [value] if isinstance(value, str) and not fits(name, value) and fits(name, [value]) else value
        for name, value in values.items()
    }


def datasets(settings: Mapping[str, Mapping[str, Any]]) -> list[Dataset]:
    """The data sets of `named_settings`. Raises GuieError as their classes do."""
    return [build("datasets", values, where=name) for name, values in settings.items()]
