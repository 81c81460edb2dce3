"""130k images of eleven kinds: what the recipe's classifier learns from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from guie_core import GuieError
from guie_core.wording import listing
from guie_datasets.extent import Extent
from guie_datasets.fetching.download import Download, KaggleArchive
from guie_datasets.places import Inside, Place, absolute
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row
from guie_datasets.sets.tables import column_names, read_table, where

#: What each label is called, in the recipe's order.
KINDS = (
    "apparel",
    "artwork",
    "cars",
    "dishes",
    "furniture",
    "illustrations",
    "landmark",
    "meme",
    "packaged",
    "storefronts",
    "toys",
)

_COLUMNS = ("label", "image_name")
_TABLE = "train.csv"
_IMAGES = 130_000  # about: the name says so
_PLACE = Place("universal130k", ("130k", "130k-images-512x512-universal-image-embeddings"), _TABLE)


class Universal130k(Dataset):
    """About 130,000 images of 512x512 pixels of eleven kinds, `<label>/<image_name>`, as `train.csv` lists them.

    label: 0..10 for apparel, artwork, cars, dishes, furniture, illustrations, landmark, meme, packaged, storefronts,
    toys. source: "universal130k". category and name: the label's name. Rows have the order of the table. Rows with
    another label or a path that leaves the folder are bad, and so are those whose image isn't there.

    root: the folder that holds train.csv, or the one that it lies in; default: the data folder.

    Source: Kaggle, rhtsingh/130k-images-512x512-universal-image-embeddings.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        KaggleArchive("rhtsingh/130k-images-512x512-universal-image-embeddings", "130k", holds=_TABLE),
    )

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = None if root is None else absolute(root)
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        self._left_out = left_out = []
        table = _PLACE.find(self.root) / _TABLE
        there = column_names(table)
        if not set(_COLUMNS) <= set(there):
            raise GuieError(
                f"{table}: its columns are {listing(map(repr, there))}, not {', '.join(_COLUMNS)}: "
                "it is the table of another data set. Give the folder of the 130k set as root"
            )
        inside = Inside(table.parent)
        for line in read_table(table, _COLUMNS):
            problem = line.problem
            if line.values is not None:
                label, image = line.values
                try:
                    path = inside.resolve(f"{label}/{image}" if image else "")
                    number = KINDS.index(label)
                except ValueError as error:
                    problem = str(error) if label in KINDS else f"its label is {label!r}, not one of the eleven"
            if problem:
                left_out.append(LeftOut(where(table, line.number), problem, bad=True))
                continue
            yield Row(ImageRef(path), number, "universal130k", label, name=label)

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def expected(self) -> Extent:
        return Extent(_IMAGES, len(KINDS), KINDS)

    def sources(self) -> Sequence[Path]:
        images = [path for path in super().sources() if os.path.isfile(path)]
        return [*self.tables(), *images]

    def tables(self) -> Sequence[Path]:
        return [_PLACE.find(self.root) / _TABLE]
