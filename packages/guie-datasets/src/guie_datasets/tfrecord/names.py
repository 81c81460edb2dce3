"""Names of shards: `<set>-<shard>-<images>.tfrec` and others, and whether what they promise is there."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from guie_core import GuieError, UsageError
from guie_core.wording import listing

from ..numbering import gaps, incomplete, order
from .framing import count

_SUFFIX = re.compile(r"\.tfrec(ord)?s?(-\d+-of-\d+)?(\.(gz|z|zlib))?$")
_NAME = re.compile(rf"(?P<set>.+)-(?P<shard>\d+)-(?P<images>\d+){_SUFFIX.pattern}")


def shards(
    folder: str | os.PathLike[str],
    pattern: str | Sequence[str] = "*-train-*.tfrec",
    *,
    check: bool = True,
    counts: bool = True,
) -> list[Path]:
    """The files of a folder whose names match `pattern`, or one of several, in order of their numbers.

    With `check`, no number may be missing (see `guie_datasets.numbering.gaps`), and, unless `counts` is false, each
    file must hold as many records as its name says, `<set>-train-<shard>-<images>.tfrec` (lengths only, about 10
    microseconds a record; packed files are unpacked for it). Raises GuieError, naming every shard at fault; UsageError
    for what is no pattern.
    """
    folder = Path(folder)
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    for each in patterns:
        _check_pattern(each)
    if not folder.is_dir():
        raise GuieError(f"{folder}: no such folder. Name the folder that holds the files {listing(patterns)}")
    matching = {path for each in patterns for path in folder.glob(each)}
    found = [path for path in matching if path.is_file() and not path.name.startswith(".")]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        holds = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
        raise GuieError(f"{folder}: no file matches {listing(patterns)}. The folder holds {holds}")
    found.sort(key=order)
    if check:
        problems = gaps(path.name for path in found)
        problems += [problem for path in found if counts for problem in _miscounted(path)]
        if problems:
            raise incomplete(folder, problems)
    return found


def shard_suffix(name: str) -> str:
    """The end by which a TFRecord file is known, such as ".tfrec", with "*" for numbers in it: ".tfrecord-*-of-*".
    "" for other files."""
    match = _SUFFIX.search(name)
    return re.sub(r"\d+", "*", match[0]) if match else ""


def _check_pattern(pattern: str) -> None:
    parts = Path(pattern).parts
    odd = [part for part in parts if "**" in part and part != "**"]
    if not parts or Path(pattern).is_absolute() or "\0" in pattern or odd:
        raise UsageError(
            f"pattern is {pattern!r}; give one for names in the folder, such as '*.tfrec', without the folder itself"
        )


def images_in_name(path: str | os.PathLike[str]) -> int | None:
    """The number of records that a shard's name promises, or None for other names."""
    match = _NAME.match(Path(path).name)
    return int(match["images"]) if match else None


def _miscounted(path: Path) -> list[str]:
    promised = images_in_name(path)
    if promised is None:
        return []
    try:
        there = count(path)
    except GuieError as error:
        return [str(error)]
    return [] if there == promised else [f"{path}: {there} records; its name says {promised}"]
