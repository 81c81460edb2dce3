"""What `guie data prepare` is given, as settings of data sets: names, and paths that tell by what is in them."""

from __future__ import annotations

import glob
import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guie_core import ExperimentError, GuieError, Problem, UsageError, build, check, lookup
from guie_core.experiment import apply_override
from guie_core.plugins import plugins
from guie_core.signature import convert, signature
from guie_core.wording import did_you_mean, listing
from guie_datasets.places import absolute, printable
from guie_datasets.rows import Dataset
from guie_datasets.sets.folders import IMAGE_SUFFIXES, is_folder
from guie_datasets.tfrecord import shard_suffix

_TARS = (".tar", ".tar.gz", ".tgz")
_TABLE = (".csv", ".tsv", ".parquet")
_PACKED = (".zip", ".gz", ".bz2", ".xz", ".7z", ".rar")


class UnknownKindError(UsageError):
    """A file that none of the data sets reads, by its name."""


def settings(argument: str) -> dict[str, Any]:
    """`dict(type=...)` of the data set that an argument names: one by its name, or a path by what is there.

    A folder of shards is `tfrecord` or `webdataset`, another one `folder`; a table is `table`, a manifest `manifest`.

    Raises UsageError: neither a data set nor a path, a file of another kind, or a folder that may be two things.
    """
    names = [entry.name for entry in plugins().entries("datasets")]
    path = absolute(argument)
    if argument in names or (not os.path.exists(path) and _family(argument)):
        return {"type": argument}
    if os.path.isdir(path):
        return _of_folder(path)
    if os.path.isfile(path):
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
        entries = sorted((e for e in os.scandir(path) if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{path}: cannot be listed: {error.strerror or error}") from error
    folders = [entry.name for entry in entries if is_folder(entry)]
    files = [entry.name for entry in entries if not is_folder(entry)]
    records, tars = ([name for name in files if is_shard(name)] for is_shard in (shard_suffix, _tar_suffix))
    classes = [name for name in folders if records or tars if _holds_images(path / name)]
    of_kind = {"TFRecord shards": records, "tar shards": tars, "class folders": classes}
    kinds = {kind: names for kind, names in of_kind.items() if names}
    if len(kinds) > 1:
        what = " and ".join(f"{kind} ({listing(map(printable, names), 3)})" for kind, names in kinds.items())
        raise UsageError(f"{path} holds {what}. Say which are meant:\n{_ways(path, kinds)}\nor move the others away")
    if records:
        return {"type": "tfrecord", "folder": str(path), "source": path.resolve().name, "pattern": _one(records)}
    if tars:
        patterns = sorted({f"*{_tar_suffix(name)}" for name in tars})
        if glob.has_magic(str(path)) or "{" in str(path):  # which would stand for something else
            return {"type": "webdataset", "files": [str(path / name) for name in tars]}
        return {"type": "webdataset", "files": [str(path / each) for each in patterns], "source": _source(path, tars)}
    return {"type": "folder", "root": str(path)}


def _ways(path: Path, kinds: Mapping[str, Sequence[str]]) -> str:
    """How to name each of the kinds of data in a folder."""
    pattern = next(iter(_patterns(kinds)), "")
    ways = {
        "TFRecord shards": ("tfrecord", f"folder={path}", f"pattern={pattern}", "source=..."),
        "tar shards": ("webdataset", f"files={path}/*.tar"),
        "class folders": ("folder", f"root={path}"),
    }
    return "\n".join(f"  {kind}: guie data prepare {' --set '.join(map(shlex.quote, ways[kind]))}" for kind in kinds)


def _patterns(kinds: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted({f"*{shard_suffix(name)}" for name in kinds.get("TFRecord shards", ())})


def _one(names: Sequence[str]) -> str | list[str]:
    """The pattern of these TFRecord files, or patterns."""
    patterns = _patterns({"TFRecord shards": names})
    return patterns[0] if len(patterns) == 1 else patterns


def _source(folder: Path, names: Sequence[str]) -> str:
    from guie_datasets.sets.webdataset import common_name

    return common_name(folder / names[0])


def _tar_suffix(name: str) -> str:
    return next((suffix for suffix in _TARS if name.endswith(suffix)), "")


def _holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries)
    except OSError:
        return True  # nobody can tell


def _of_file(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if shard_suffix(path.name):
        return {"type": "tfrecord", "files": [str(path)], "source": path.name.partition(".")[0]}
    if _tar_suffix(path.name):
        return {"type": "webdataset", "files": [str(path)]}
    if suffix == ".parquet":
        from guie_datasets.manifest import is_manifest  # pyarrow

        if is_manifest(path):
            return {"type": "manifest", "path": str(path)}
    if suffix in _TABLE:
        return {"type": "table", "file": str(path)}
    if suffix in _PACKED:
        raise UsageError(f"{path} is an archive. Unpack it and name the folder that holds the class folders")
    raise UnknownKindError(
        f"{path}: a file of unknown kind. Name a folder of class folders, a table "
        f"({', '.join(_TABLE)}), TFRecord files (.tfrec), tar shards ({', '.join(_TARS)}), or a manifest"
    )


def named_settings(arguments: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The settings of each argument, by the name that messages and overrides give it, with the overrides applied.

    The name is the data set's, or that of the file or folder; what would come twice is called by its number, from 0.
    An override is "name.key=value" or "number.key=value", with one data set "key=value" too; the value as for an
    experiment's `--set`. Where a list is expected, a text stands for a list of one.

    Raises ExperimentError, with all problems of names, keys and types; UsageError as `settings`, and for a data set
    that is named twice.
    """
    named: dict[str, dict[str, Any]] = {}
    keys: dict[str, str] = {}  # by the names that people call them
    for number, argument in enumerate(arguments):
        name = _called(argument)
        key = str(number) if name in keys or "." in name else name
        keys.setdefault(name, key)
        named[key] = settings(argument)
    problems: list[Problem] = []
    for override in overrides:
        apply_override(named, _addressed(override, list(named), keys), problems, list(named))
    for name, values in named.items():
        if isinstance(values, dict):
            named[name] = values = _listed(values)
        problems += check("datasets", values, name)
    if problems:
        raise ExperimentError(problems, "the data sets" if len(named) > 1 else "the data set")
    for first, second in itertools.combinations(named, 2):
        if named[first] == named[second]:
            raise UsageError(
                f"{arguments[list(named).index(second)]} is named twice: its classes would be there twice, under two "
                "labels each. Name each data set once"
            )
    return named


def _called(argument: str) -> str:
    """A data set's name, or that of a folder, or of a file without its suffix."""
    path = absolute(argument)
    if os.path.isdir(path):
        return path.resolve().name
    return path.resolve().stem if os.path.exists(path) else argument


def _addressed(override: str, names: Sequence[str], keys: Mapping[str, str]) -> str:
    """An override with the key of the data set that it concerns."""
    key, equals, value = override.partition("=")
    for name in sorted(keys, key=len, reverse=True):  # a name may have dots, and begin with another
        if key.strip().startswith(f"{name}."):
            return f"{keys[name]}{key.strip().removeprefix(name)}{equals}{value}"
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
