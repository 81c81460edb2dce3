"""Names of shards: `<set>-<shard>-<images>.tfrec`, and whether what they promise is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from guie_core import GuieError

from .framing import count

_NAME = re.compile(r"(?P<set>.+)-(?P<shard>\d+)-(?P<images>\d+)\.tfrec(ord)?s?(\.(gz|z|zlib))?$")


def shards(
    folder: str | os.PathLike[str], pattern: str = "*-train-*.tfrec", *, check: bool = True, counts: bool = True
) -> list[Path]:
    """The shards of a set, `<set>-train-<shard>-<images>.tfrec`, in order of their numbers.

    With `check`, the numbers must be 0, 1, 2, ... without gaps up to the last, and, unless `counts` is false, each must
    hold as many records as its name says (lengths only, about 10 microseconds a record; packed files are unpacked for
    it). Raises GuieError, naming every shard at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GuieError(f"{folder}: no such folder. Name the folder that holds the files {pattern}")
    found = [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        listing = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
        raise GuieError(f"{folder}: no file matches {pattern}. The folder holds {listing}")
    found.sort(key=_order)
    if check:
        problems = _gaps(found) + [problem for path in found if counts for problem in _miscounted(path)]
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise GuieError(
                f"{folder}: the set is not complete:\n{lines}\nFetch these files again, or name the files you want"
            )
    return found


def images_in_name(path: str | os.PathLike[str]) -> int | None:
    """The number of records that a shard's name promises, or None for other names."""
    match = _NAME.match(Path(path).name)
    return int(match["images"]) if match else None


def _order(path: Path) -> tuple[str, int, str]:
    match = _NAME.match(path.name)
    return (match["set"], int(match["shard"]), path.name) if match else (path.name, 0, path.name)


def _gaps(paths: list[Path]) -> list[str]:
    numbers: dict[str, list[int]] = {}
    for path in paths:
        if match := _NAME.match(path.name):
            numbers.setdefault(match["set"], []).append(int(match["shard"]))
    problems = []
    for name, there in sorted(numbers.items()):
        missing = sorted(set(range(max(there))) - set(there))
        double = sorted({number for number in there if there.count(number) > 1})
        problems += [f"{name}-{number:02d}-*.tfrec is missing" for number in missing]
        problems += [f"{name}-{number:02d}-*.tfrec is there more than once" for number in double]
    return problems


def _miscounted(path: Path) -> list[str]:
    promised = images_in_name(path)
    if promised is None:
        return []
    try:
        there = count(path)
    except GuieError as error:
        return [str(error)]
    return [] if there == promised else [f"{path}: {there} records; its name says {promised}"]
