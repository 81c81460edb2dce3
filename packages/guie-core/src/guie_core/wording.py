"""The small pieces that messages are made of."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Those of `candidates` that `name` may have been meant to be, nearest first; case is ignored."""
    folded: dict[str, str] = {}
    for candidate in candidates:
        folded.setdefault(candidate.casefold(), candidate)
    name = name.casefold()
    if len(name) <= 3:  # "gpu" is no slip of "cpu", whatever letters they share
        folded = {each: candidate for each, candidate in folded.items() if each[:1] == name[:1]}
    return [folded[match] for match in difflib.get_close_matches(name, folded, n=count, cutoff=0.6)]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """ " Did you mean 'x'?" with a leading space, or "" when nothing is near."""
    found = nearest(name, candidates, count=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def listing(names: Iterable[str], limit: int = 12) -> str:
    """ "a, b, c and 4 more"; "nothing" for no names."""
    names = list(names)
    if len(names) > limit:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return ", ".join(names) or "nothing"


def ended(text: object) -> str:
    """What somebody else says, as a sentence with one full stop at its end, or its own question mark."""
    whole = str(text).rstrip()
    return whole if whole.endswith(("?", "!")) else f"{whole.rstrip('.')}."


def plural(count: int, noun: str) -> str:
    """ "1 image", "2 images", "2 queries", "2 classes"."""
    if count != 1:
        if noun.endswith("y") and noun[-2] not in "aeiou":
            noun = f"{noun[:-1]}ies"
        else:
            noun += "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{count:,} {noun}"


def size(count: float) -> str:
    """A number of bytes for people: "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """A time for people: "3.2 s", "45 s", "3 min", "2 h 05 min", "180 days"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes >= 3 * 24 * 60:
        return f"{minutes / (24 * 60):.0f} days"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as a user would write it: relative when it lies below the working directory."""
    path = Path(path)
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
