"""What there is to know about a data set before it is prepared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from guie_core import Entry, GuieError
from guie_core.signature import expected, signature
from guie_datasets.rows import Dataset


@dataclass(frozen=True, slots=True)
class Option:
    """An argument of a data set's class: what it takes, in words, its default as Python writes it, and what it means.

    usual: whether it must be given, or is what people give.
    """

    name: str
    takes: str
    default: str
    required: bool
    meaning: str = ""
    usual: bool = False


@dataclass(frozen=True, slots=True)
class About:
    """doc: the first paragraph of the class's docstring. options: its arguments. downloads: whether it can be fetched.

    place: where the first image of a set lies that needs no options, or why there is none; "" for other sets.
    """

    doc: str
    options: Sequence[Option]
    place: str
    downloads: bool


def about(entry: Entry) -> About:
    """What the class behind an entry of kind "datasets" says of itself. Raises GuieError: it cannot be imported."""
    target = entry.load()
    found = signature(target)
    said = meanings(target, found.hints)
    usual = {*found.required, *vars(target).get("usual", ())}
    options = [
        Option(
            name,
            expected(hint),
            repr(found.defaults[name]) if name in found.defaults else "",
            name in found.required,
            said.get(name, ""),
            name in usual,
        )
        for name, hint in found.hints.items()
        if not (entry.family and name == "name")
    ]
    doc = (inspect.getdoc(target) or "").split("\n\n")[0]
    place = "" if found.required or entry.family else _place(target())
    return About(doc, options, place, bool(getattr(target, "downloads", ())))


def meanings(target: type, names: Iterable[str]) -> dict[str, str]:
    """What a class's docstring, or that of its `__init__`, says of its arguments, in paragraphs such as::

    root: the folder of the shards,
    or of one that holds it.
    source, category: for all images.
    """
    names = set(names)
    found: dict[str, list[str]] = {}
    for text in (inspect.getdoc(target), inspect.getdoc(target.__init__)):  # type: ignore[misc]
        current: list[str] = []
        for line in (text or "").splitlines():
            match = _MEANING.match(line)
            if match and set(said := re.split(r", ?", match[1])) <= names:
                current = [match[2]]
                found.update(dict.fromkeys(said, current))
            elif not line.strip():
                current = []  # of which nobody sees what is added
            else:
                current.append(line.strip())
    return {name: " ".join(lines).strip() for name, lines in found.items()}


_MEANING = re.compile(r"(\w+(?:, ?\w+)*): (.*)")


def _place(dataset: Dataset) -> str:
    try:
        first = next(iter(dataset.rows()), None)
    except GuieError as error:
        return str(error)
    return f"it is there, with the first image in {first.image.path}" if first else "no images"
