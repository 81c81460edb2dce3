"""GPR1200: the benchmark of general-purpose image retrieval, which the 5th-place recipe trains on."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from guie_core import UsageError
from guie_core.wording import did_you_mean
from guie_datasets.extent import Extent
from guie_datasets.fetching.download import Download, HttpArchive, HttpFile
from guie_datasets.numbering import incomplete
from guie_datasets.places import Place, absolute
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row
from guie_datasets.sets.folders import images_in

#: Six blocks of 200 classes, in the order of the labels.
BLOCKS = ("Landmarks", "iNat", "sketch", "instre", "sop", "face")

_CLASSES = 200  # in a block
_IMAGES = 10  # of a class
_TEXTS = "GPR1200_categoryNumber_to_text.json"
_NAME = re.compile(r"(\d{1,9})_.+", re.ASCII | re.DOTALL)
_PLACE = Place("gpr1200", ("GPR1200",), "images/*_*", inside=("images", "GPR1200"))


class GPR1200(Dataset):
    """GPR1200: 1,200 classes of 10 images, `images/{class}_{name}.jpg`.

    label: 0..1199; others are bad rows. source: "gpr1200". category: "GPR1200_Landmarks", "GPR1200_iNat",
    "GPR1200_sketch", "GPR1200_instre", "GPR1200_sop", "GPR1200_face", 200 classes each. name: the class in words, from
    `GPR1200_categoryNumber_to_text.json` of the set's git repository, if it lies in the set's folder, in
    `GPR1200/` in it, or beside the images. Rows have the order of the file names.

    A model trained on GPR1200 must not be evaluated on it, except on the iNaturalist block when `without=("iNat",)`
    kept that out of training, as the recipe does.

    root: the folder that holds `images`, `images` itself, or the folder that it lies in; default: the data folder.
    without: blocks to leave out.
    complete: whether a class that has not all of its images is an error; otherwise `left_out()` tells of it.

    Source: Schall et al., GPR1200, arXiv 2111.13122.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        HttpArchive(
            "https://visual-computing.com/files/GPR1200/GPR1200.zip",
            "GPR1200",
            holds="images/*",
            files=12_000,
            page="https://github.com/Visual-Computing/GPR1200",
        ),
        HttpFile(
            f"https://raw.githubusercontent.com/Visual-Computing/GPR1200/main/{_TEXTS}",
            f"GPR1200/GPR1200/{_TEXTS}",
            page="https://github.com/Visual-Computing/GPR1200",
            optional=True,
        ),
    )

    def __init__(
        self, root: str | os.PathLike[str] | None = None, *, without: Sequence[str] = (), complete: bool = True
    ) -> None:
        if isinstance(without, str):
            raise UsageError(f"gpr1200: without is a list of blocks, such as [{without!r}]")
        for block in without:
            if block not in BLOCKS:
                hint = did_you_mean(block, BLOCKS) or f" The blocks are {', '.join(BLOCKS)}"
                raise UsageError(f"gpr1200: without names a block {block!r} that there is not.{hint}")
        self.root = None if root is None else absolute(root)
        self.without = tuple(without)
        self.complete = complete
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        folder = _PLACE.find(self.root)
        images, left_out = images_in(folder / "images")
        self._left_out = left_out
        names = self._names(folder)
        problems = self._problems(folder, images)
        dropped = 0
        for entry in images:
            label = _label(entry.name)
            if label is None:
                reason = f"its name does not begin with a class 0..{_CLASSES * len(BLOCKS) - 1} and '_'"
                left_out.append(LeftOut(entry.path, reason, bad=True))
            elif (block := BLOCKS[label // _CLASSES]) in self.without:
                dropped += 1
            else:
                yield Row(ImageRef(entry.path), label, "gpr1200", f"GPR1200_{block}", name=names.get(label, ""))
        place = str(folder / "images")
        if self.without:
            blocks = ", ".join(self.without)
            left_out.append(LeftOut(place, f"{dropped:,} images of the blocks {blocks}, which are to be left out"))
        left_out += [LeftOut(place, reason, loud=True) for reason in problems]

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def count(self) -> int:
        images, others = images_in(_PLACE.find(self.root) / "images")
        labels = [_label(entry.name) for entry in images]
        dropped = sum(label is not None and BLOCKS[label // _CLASSES] in self.without for label in labels)
        return len(images) - dropped + sum(item.bad for item in others)

    def expected(self) -> Extent:
        blocks = [block for block in BLOCKS if block not in self.without]
        classes = _CLASSES * len(blocks)
        return Extent(_IMAGES * classes, classes, tuple(f"GPR1200_{block}" for block in sorted(blocks)))

    def sources(self) -> Sequence[Path]:
        folder = _PLACE.find(self.root)
        images, _ = images_in(folder / "images")
        self._problems(folder, images)
        return [*self.tables(), *(Path(entry.path) for entry in images)]

    def tables(self) -> Sequence[Path]:
        return [path for path in _texts(_PLACE.find(self.root)) if path.is_file()][:1]

    def _problems(self, folder: Path, images: Sequence[os.DirEntry[str]]) -> list[str]:
        """What is said of classes with too few or too many images, or none. Raises GuieError for it if the set must be
        complete."""
        found = Counter(label for entry in images if (label := _label(entry.name)) is not None)
        problems = list(self._incomplete(found))
        if self.complete and problems:
            raise incomplete(folder / "images", problems)
        return problems

    def _incomplete(self, found: Counter[int]) -> Iterator[str]:
        wanted = [n for n in range(_CLASSES * len(BLOCKS)) if BLOCKS[n // _CLASSES] not in self.without]
        empty = [label for label in wanted if not found[label]]
        if empty:
            yield f"{len(empty):,} of {len(wanted):,} classes have no images, the first is class {empty[0]}"
        for label in wanted:
            if found[label] and found[label] != _IMAGES:
                yield f"class {label} has {found[label]} images, not {_IMAGES}"

    def _names(self, folder: Path) -> dict[int, str]:
        """The classes in words; {} where the table is not there."""
        path = next((path for path in _texts(folder) if path.is_file()), None)
        if path is None:
            return {}
        try:
            table = json.loads(path.read_bytes())
            return {int(label): str(text) for label, text in table.items()}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            self._left_out.append(LeftOut(str(path), f"no table of names: {error}; the classes have none"))
            return {}


def _texts(folder: Path) -> list[Path]:
    return [folder / "GPR1200" / _TEXTS, folder / _TEXTS, folder / "images" / _TEXTS]


def _label(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    label = int(match[1]) if match else -1
    return label if 0 <= label < _CLASSES * len(BLOCKS) else None
