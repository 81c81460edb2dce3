"""Food-101: photos of dishes, 1,000 of each kind."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

from guie_core import GuieError, UsageError
from guie_datasets.extent import Extent
from guie_datasets.fetching.download import Download, HttpArchive
from guie_datasets.filters import sample_images
from guie_datasets.numbering import incomplete
from guie_datasets.places import Place, absolute, is_text, printable
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row
from guie_datasets.sets.folders import entries_of, images_in, is_folder

Which = Literal["all", "train", "test", "own"]

_CLASSES, _IMAGES, _TRAIN = 101, 1000, 750  # of each class

_PLACE = Place("food101", ("food-101", "food101"), "images/*/*", inside=("images", "meta"))


class Food101(Dataset):
    """Food-101: 101 dishes with 1,000 photos each, `images/<class>/<id>.jpg`.

    label: the class's number in the order of their names, 0..100. source and category: "food101". name: the class, as
    "apple_pie". Rows come class by class, in the order of the file names. Images that `meta/` names and that are not
    there are bad rows; without `meta/`, there are to be 101 classes of 1,000.

    root: the folder that holds `images`, `images` itself, or the folder that it lies in; default: the data folder.
    split: "all" images, without a split, so that the recipe's own splits deal with them; only those of its authors'
    "train" or "test"; or "own": all, with the split that the authors gave each. All but "all" need `meta/`.
    max_images: at most so many of each class, `pandas.Series(paths).sample(max_images, random_state=seed)` over the
    sorted paths of each class that has more, in the order that this gives. The recipe takes 30.
    seed: chooses these.
    complete: whether classes and images that are missing, where `meta/` doesn't name them, are an error; otherwise
    those that are there are used.

    Source: Bossard et al., Food-101, ECCV 2014.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        HttpArchive(
            "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "food-101",
            holds="images/*/*.jpg",
            files=101_000,
            md5="85eeb15f3717b99a5da872d97d918f87",
            page="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        ),
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        max_images: int | None = None,
        seed: int = 0,
        split: Which = "all",
        complete: bool = True,
    ) -> None:
        if max_images is not None and max_images < 1:
            raise UsageError(f"food101: max_images must be 1 or more, not {max_images}")
        if split not in get_args(Which):
            raise UsageError(f"food101: split must be one of {', '.join(get_args(Which))}, not {split!r}")
        self.root = None if root is None else absolute(root)
        self.max_images = max_images
        self.seed = seed
        self.split = split
        self.complete = complete
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        self._left_out = left_out = []
        classes = list(self._classes())
        if problem := self._missing(classes):
            left_out.append(LeftOut(str(_PLACE.find(self.root) / "images"), problem, loud=True))
        for label, name, images, others in classes:
            left_out += others
            for path, split in self._capped(images):
                row_split = "" if self.split == "all" else split
                yield Row(ImageRef(path), label, "food101", "food101", row_split, name=name)
            if len(images) > (self.max_images or len(images)):
                reason = f"{len(images) - (self.max_images or 0)} of its images are more than max_images allows"
                left_out.append(LeftOut(os.path.dirname(images[0][0]), reason))

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def count(self) -> int:
        return sum(
            min(len(images), self.max_images or len(images)) + sum(item.bad for item in others)
            for _, _, images, others in self._classes()
        )

    def expected(self) -> Extent:
        each = {"train": _TRAIN, "test": _IMAGES - _TRAIN}.get(self.split, _IMAGES)
        return Extent(_CLASSES * min(each, self.max_images or each), _CLASSES, ("food101",))

    def sources(self) -> Sequence[Path]:
        classes = list(self._classes())
        self._missing(classes)
        return _meta(_PLACE.find(self.root)) + [Path(path) for _, _, images, _ in classes for path, _ in images]

    def tables(self) -> Sequence[Path]:
        return _meta(_PLACE.find(self.root))

    def _missing(self, classes: Sequence[tuple[int, str, list[tuple[str, str]], list[LeftOut]]]) -> str:
        """What is not there, in words, where `meta/` doesn't tell; "" if nothing is missing. Raises GuieError for it if
        the set must be complete."""
        folder = _PLACE.find(self.root)
        if _meta(folder):
            return ""
        images = sum(len(images) for *_, images, _ in classes)
        if len(classes) >= _CLASSES and all(len(images) >= _IMAGES for *_, images, _ in classes):
            return ""
        problem = f"{images:,} of the set's {_CLASSES * _IMAGES:,} images, of {len(classes)} of its {_CLASSES} classes"
        if self.complete:
            raise incomplete(folder / "images", [problem])
        return problem

    def _classes(self) -> Iterator[tuple[int, str, list[tuple[str, str]], list[LeftOut]]]:
        """(label, name, [(path, its authors' split)], what else is there) of each class."""
        folder = _PLACE.find(self.root) / "images"
        splits = self._splits(folder.parent / "meta")
        on_disk = {entry.name for entry in entries_of(folder) if is_folder(entry)}
        for label, name in enumerate(sorted(on_disk | set(splits))):
            if not is_text(name):
                yield label, printable(name), [], [LeftOut(printable(f"{folder}/{name}"), "no UTF-8", bad=True)]
                continue
            entries, others = images_in(folder / name) if name in on_disk else ([], [])
            named, images = splits.get(name, {}), []
            for entry in entries:
                split = named.pop(os.path.splitext(entry.name)[0], "")
                if self.split in ("all", split) or (self.split == "own" and split):
                    images.append((entry.path, split))
                elif not split:
                    others.append(LeftOut(entry.path, "neither meta/train.txt nor meta/test.txt names it"))
            for key, split in sorted(named.items()):
                if self.split in ("all", "own", split):
                    others.append(
                        LeftOut(f"{folder}/{name}/{key}.jpg", f"not there, but in meta/{split}.txt", bad=True)
                    )
            yield label, name, images, others

    def _capped(self, images: list[tuple[str, str]]) -> list[tuple[str, str]]:
        if self.max_images is None or len(images) <= self.max_images:
            return images
        return [images[number] for number in sample_images([0] * len(images), self.max_images, self.seed)]

    def _splits(self, meta: Path) -> dict[str, dict[str, str]]:
        """The authors' split of each image, by class and id; {} where there is no meta folder and no need of one."""
        splits: dict[str, dict[str, str]] = {}
        for split in ("train", "test"):
            path = meta / f"{split}.txt"
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                if self.split == "all":
                    continue
                raise GuieError(
                    f"{path}: not there, and split={self.split!r} needs it. "
                    "Unpack the whole archive, or use split='all'"
                ) from None
            except (OSError, ValueError) as error:
                raise GuieError(f"{path}: cannot be read: {error}. Unpack the archive again") from error
            for line in filter(None, map(str.strip, lines)):
                name, slash, key = line.partition("/")
                if not (name and slash and key):
                    raise GuieError(f"{path}: {line!r} is not of the form class/id. Unpack the archive again")
                splits.setdefault(name, {})[key] = split
        return splits


def _meta(folder: Path) -> list[Path]:
    """The lists of the authors' splits that are there."""
    return [path for path in (folder / "meta" / f"{split}.txt" for split in ("train", "test")) if path.is_file()]
