"""The emoji set: the same 1,034 emoji drawn in six styles, as TFRecord shards beside this file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from guie_core import GuieError, UsageError
from guie_datasets import Dataset, Extent, LeftOut, Row, tfrecord

STYLES = ("google", "twitter", "fluent-3d", "fluent-flat", "noto-v1", "emojione")
"""The styles in the order in which this package names them."""

Classes = Literal["emoji", "subgroup"]

DATA = Path(__file__).parent / "data"
TABLE = "emoji.csv"
SHARDS = "guie-emoji-train-*.tfrec"


class Drawing(NamedTuple):
    """One image: a line of the table, which has the order of the records."""

    emoji: int  # 0..1033, in Unicode's order
    group: str  # "Food & Drink"
    subgroup: str  # "food-fruit"
    style: str  # one of STYLES
    name: str  # "red-apple"
    codepoints: str  # "1F34E"


class Emoji(Dataset):
    """1,034 emoji in six styles: 6,204 JPEGs of at most 128 px, most of them not square.

    Rows have label = emoji (0..1033, in Unicode's order), source = "emoji", category = Unicode group (8 of them). The
    order of the rows mixes classes and styles and is fixed; `drawings()` tells what each row shows.
    """

    def __init__(self, root: Path | None = None, styles: Sequence[str] = STYLES, classes: Classes = "emoji") -> None:
        """root: folder with shards and emoji.csv; by default those of this package.

        styles: which of STYLES to use; labels stay the same.
        classes: what a class is. "subgroup" makes it Unicode's subgroup, such as "food-fruit" (0..89, in order of the
        first emoji of each): few classes with many images each.

        Raises UsageError for a style or kind of class that there is not.
        """
        if isinstance(styles, str) or not styles or not set(styles) <= set(STYLES):
            raise UsageError(f"styles must be a list of some of {', '.join(STYLES)}; it is {styles!r}")
        if classes not in get_args(Classes):
            raise UsageError(f"classes must be {' or '.join(map(repr, get_args(Classes)))}, not {classes!r}")
        self.root = DATA if root is None else Path(root)
        self.styles = tuple(style for style in STYLES if style in styles)
        self.classes = classes
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        """Raises GuieError if shards or table are missing, incomplete, or do not belong together."""
        table = self._table()
        subgroups = _subgroups(table)
        self._left_out = left_out = []
        position = 0  # of the record, and of its line in the table

        def pass_over(error: tfrecord.TFRecordError) -> None:
            nonlocal position
            position += 1
            left_out.append(LeftOut(f"{error.path}, record {error.record}", str(error), bad=True))

        for shard in self._shards(len(table)):
            for record in tfrecord.scan(shard, on_bad=pass_over):
                drawing = table[position]
                position += 1
                if record.label != drawing.emoji:
                    raise GuieError(
                        f"{shard} and {self.root / TABLE} do not belong together: image {position - 1} has label "
                        f"{record.label} and is {drawing.emoji} ({drawing.name}) in the table. {self._remedy()}"
                    )
                if drawing.style in self.styles:
                    label = drawing.emoji if self.classes == "emoji" else subgroups[drawing.subgroup]
                    name = drawing.name if self.classes == "emoji" else drawing.subgroup
                    yield Row(record.image, label, source="emoji", category=drawing.group, name=name)

    def drawings(self) -> list[Drawing]:
        """What each row shows, in the order of `rows()`. Raises GuieError if the table is missing or damaged."""
        return [drawing for drawing in self._table() if drawing.style in self.styles]

    def count(self) -> int:
        return len(self.drawings())

    def expected(self) -> Extent:
        table = self._table()
        classes = {drawing.emoji if self.classes == "emoji" else drawing.subgroup for drawing in table}
        groups = sorted({drawing.group for drawing in table})
        return Extent(len(self.drawings()), len(classes), tuple(groups), exact=True)

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def sources(self) -> Sequence[Path]:
        return [self.root / TABLE, *tfrecord.shards(self.root, SHARDS, check=False)]

    def _table(self) -> list[Drawing]:
        path = self.root / TABLE
        try:
            with open(path, encoding="utf-8", newline="") as file:
                return [
                    Drawing(
                        emoji=int(line["class"]),
                        group=line["group"],
                        subgroup=line["subgroup"],
                        style=line["style"],
                        name=line["name"],
                        codepoints=line["codepoints"],
                    )
                    for line in csv.DictReader(file)
                ]
        except OSError as error:
            raise GuieError(f"{path}: cannot be read: {error.strerror or error}. {self._remedy()}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise GuieError(f"{path} is damaged: it is no table of the emoji set. {self._remedy()}") from error

    def _shards(self, images: int) -> list[Path]:
        try:
            shards = tfrecord.shards(self.root, SHARDS)
        except GuieError as error:
            raise GuieError(f"{error}. {self._remedy()}") from error
        there = sum(tfrecord.images_in_name(shard) or 0 for shard in shards)
        if there != images:
            raise GuieError(
                f"{self.root}: the shards hold {there:,} images, {TABLE} has {images:,}: the set is not complete. "
                f"{self._remedy()}"
            )
        return shards

    def _remedy(self) -> str:
        if self.root == DATA:
            return "Install guie-emoji again: pip install --force-reinstall --no-deps guie-emoji"
        return "Copy the folder again, or leave root out to use the data that come with guie-emoji"


def _subgroups(table: Sequence[Drawing]) -> dict[str, int]:
    """Subgroups and their numbers, in Unicode's order."""
    names = dict.fromkeys(drawing.subgroup for drawing in sorted(table, key=lambda drawing: drawing.emoji))
    return {name: number for number, name in enumerate(names)}
