"""Numbers in the names of shards, and which of them are missing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from guie_core import GuieError
from guie_core.wording import listing

_SHOWN = 20  # missing shards that a message lists, of each set
_NAME = re.compile(
    r"(?P<stem>.*?)(?P<number>\d+)"
    # "-00000-of-00003" as TFDS and others write it, or "-00-7097" with the number of images
    r"(?:-of-(?P<of>\d+)|-(?P<images>\d+)(?=\.tfrec))?" r"(?P<suffix>(?:\.[a-z]\w*)*)",
    re.IGNORECASE | re.ASCII | re.DOTALL,
)


class Numbered(NamedTuple):
    """A name in parts. of: how many shards there are, where it says so. images: whether it says how many are in it."""

    stem: str
    number: str
    of: str
    images: bool
    suffix: str


def numbered(name: str) -> Numbered | None:
    """The parts of a shard's name, or None if it has no number at its end."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return Numbered(match["stem"], match["number"], match["of"] or "", match["images"] is not None, match["suffix"])


def order(path: Path) -> tuple[str, int, str]:
    """By it, shards are sorted by set and number."""
    parts = numbered(path.name)
    return (parts.stem, int(parts.number), path.name) if parts else (path.name, 0, path.name)


def gaps(names: Iterable[str]) -> list[str]:
    """What is wrong with the numbers of shards, in words; names without numbers are passed over.

    Of names that say how many shards there are ("-of-00003"), all must be there; of `<set>-<shard>-<images>.tfrec` all
    from 0 up to the last. Other numbers must have no gaps, and begin at 0 or 1 where they are padded with zeros. A
    single shard, and numbers of six digits or more that are not padded, such as dates, say nothing.
    """
    sets: dict[tuple[str, str, bool, str], list[str]] = {}
    for name in names:
        if parts := numbered(name):
            sets.setdefault((parts.stem, parts.of, parts.images, parts.suffix), []).append(parts.number)
    return [problem for key in sorted(sets) for problem in _problems(*key, sets[key])]


def incomplete(place: object, problems: Sequence[str]) -> GuieError:
    """What is said of a data set of which something is missing, unless that was allowed."""
    lines = "\n".join(f"  {problem}" for problem in problems[: _SHOWN + 1])
    if (more := len(problems) - _SHOWN - 1) > 0:
        lines += f"\n  and {more:,} more"
    return GuieError(
        f"{place}: the set is not complete:\n{lines}\n"
        "Fetch what is missing, or set complete to False to use what is there"
    )


def _problems(stem: str, of: str, images: bool, suffix: str, texts: Sequence[str]) -> list[str]:
    there = sorted(map(int, texts))
    first, last = there[0], there[-1]
    if of:
        one_based = first > 0 and last == int(of)
        first, last = (1, int(of)) if one_based else (0, max(int(of) - 1, last))
    elif images:
        first = 0
    elif len(there) < 2:
        return []
    elif any(len(text) > 1 and text[0] == "0" for text in texts):
        first = first if first <= 1 else 0
    elif len(texts[0]) >= 6:
        return []
    width = min(map(len, texts))
    rest = (f"-of-{of}" if of else "-*" if images else "") + suffix
    known = set(there)
    absent = (number for number in range(first, last + 1) if number not in known)
    problems = [f"{stem}{number:0{width}d}{rest} is missing" for number in itertools.islice(absent, _SHOWN)]
    if (more := last + 1 - first - len(known) - len(problems)) > 0:
        problems.append(f"and {more:,} more of {stem}*{rest}")
    twice = sorted({number for number, again in itertools.pairwise(there) if number == again})
    if twice:
        problems.append(f"{stem}{listing([f'{number:0{width}d}' for number in twice])}{rest} is there more than once")
    return problems
