"""What there is to know about a data set before it is prepared."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from guie_core import Entry, GuieError
from guie_core.signature import expected, signature
from guie_datasets.rows import Dataset


@dataclass(frozen=True, slots=True)
class Option:
    """An argument of a data set's class: what it takes, in words, and its default as Python writes it."""

    name: str
    takes: str
    default: str
    required: bool


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
    options = [
        Option(
            name, expected(hint), repr(found.defaults[name]) if name in found.defaults else "", name in found.required
        )
        for name, hint in found.hints.items()
        if not (entry.family and name == "name")
    ]
    doc = (inspect.getdoc(target) or "").split("\n\n")[0]
    place = "" if found.required or entry.family else _place(target())
    return About(doc, options, place, bool(getattr(target, "downloads", ())))


def _place(dataset: Dataset) -> str:
    try:
        first = next(iter(dataset.rows()), None)
    except GuieError as error:
        return str(error)
    return f"it is there, with the first image in {first.image.path}" if first else "no images"
