"""Splits: which images are for training and which are set aside, and for what.

Each split gives its name to some of the rows that have none yet. `split` applies several in order; what is left is
"train". The folds are scikit-learn's own on the rows as they stand: the same rows in the same order give the same fold.
"""

from __future__ import annotations

import itertools
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from guie_core import GuieError, UsageError
from guie_core.spelling import told_as
from guie_core.wording import plural
from guie_datasets.checks import check_seed
from guie_datasets.extent import Extent
from guie_datasets.filters import share_of
from guie_datasets.manifest import Manifest
from guie_datasets.quarantine import Finding, Kind, Quarantine
from guie_datasets.repeats import first_of_each

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAIN = "train"


class Split(ABC):
    """Sets aside some rows. A subclass has a `name` and implements `choose`.

    whole_classes: classes are set aside whole, to be unseen elsewhere: those of which images have a split already, such
    as a data set's own "train", are not shown to `choose`.
    """

    whole_classes: ClassVar[bool] = False
    name: str

    @abstractmethod
    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        """Numbers of the rows of `manifest`, all of which are free, to set aside. Raises GuieError if it can't."""

    def expected(self, free: Extent) -> Extent | None:
        """About what is set aside of so many free images; for plans. None: not known before it is done."""
        return None


def split(
    manifest: Manifest,
    splits: Sequence[Split],
    *,
    quarantine: str | os.PathLike[str] | None = None,
    settings: Sequence[Mapping[str, str]] = (),
) -> Manifest:
    """Applies splits in order to the rows whose split is ""; the rest becomes "train".

    Rows that a data set has given a split keep it; a class with such rows is not set aside as an unseen one.

    What has the bytes of an image in a split, under whatever label, is left out of those after it, "train" being the
    last. Which rows a split chooses doesn't depend on that. Labels are then 0..C-1 over what is kept, in the order that
    they had. The provenance counts what is left out, as `left_out_of_splits`, and the table of findings at the path
    `quarantine` (CSV) names it. Splits that the data have, other than "train", come first and keep all theirs; how many
    images two of them share is counted as `shared_by_splits`, but for "query" and "index", which may.

    What is kept in one split under several labels, each of which is wrong by the others, is in that table as well, as
    "conflict", and counted as `several_labels`. Images that are nearly the same are for `guie data leaks` to find.

    settings: of each split, how the user gives its settings, for messages; see `guie_core.spelling`.

    Raises GuieError if a split cannot be made from the rows that are left, if all have one already, if nothing is left
    of a split or to train on, or if the data have a split of that name already. UsageError if two splits have one name.
    """
    names = [each.name for each in splits]
    if "" in names or TRAIN in names or len(set(names)) < len(names):
        raise UsageError(f"splits need names of their own, other than {TRAIN!r}: these are named {names}")
    assigned = manifest.column("split").copy()
    given = ", ".join(f"{name} {count:,}" for name, count in Counter(assigned.tolist()).most_common() if name)
    if names and given and "" not in assigned:
        raise GuieError(
            f"split {names[0]!r}: all {len(manifest):,} images have a split already, from their data: {given}. Remove "
            f"{names[0]!r} from the experiment's recipe.splits, or prepare the data without their splits"
        )
    for each, spelling in zip(splits, settings or [{}] * len(splits), strict=True):
        with told_as(spelling):
            if there := int(np.count_nonzero(assigned == each.name)):
                raise GuieError(
                    f"split {each.name!r}: {plural(there, 'image')} have a split of that name already, from their "
                    "data. Set name to another, or prepare the data without their splits"
                )
            assigned[_chosen(each, manifest, assigned)] = each.name
    assigned[assigned == ""] = TRAIN
    if not np.any(assigned == TRAIN):
        why = (
            f"the data have the splits {given}" if given else f"of {plural(len(manifest), 'image')}, all are set aside"
        )
        raise GuieError(f"nothing is left to train on: {why}{' and the rest is set aside' * bool(given and names)}")
    return _without_same_images(manifest.with_column("split", assigned), [*names, TRAIN], quarantine)


def _chosen(one: Split, manifest: Manifest, assigned: NDArray[Any]) -> NDArray[np.intp]:
    """The rows that a split sets aside of those that are free."""
    free, taken = assigned == "", 0
    if one.whole_classes:
        labels = manifest.column("label")
        begun = np.intersect1d(labels[free], labels[~free])
        taken = len(begun)
        free &= ~np.isin(labels, begun)
    rows = np.flatnonzero(free)
    try:
        return rows[one.choose(manifest.select(rows))]
    except GuieError as error:
        if not taken or isinstance(error, UsageError):
            raise
        why = f"{taken:,} of which some images have a split already are not"
        raise GuieError(f"{str(error).rstrip('.')}. Classes are set aside whole: {why}") from error


def _without_same_images(
    manifest: Manifest, names: Sequence[str], quarantine: str | os.PathLike[str] | None
) -> Manifest:
    """The rows of a manifest with splits that have the bytes of none in a split of higher rank; those called `names`
    rank in this order, after all others."""
    first, split = first_of_each(manifest), manifest.column("split")
    rank = np.zeros(len(manifest), np.int64)
    for number, name in enumerate(names, 1):
        rank[split == name] = number
    order = np.lexsort((rank, first))  # rows with the same bytes side by side, those that are kept before others
    best = order[np.unique(first[order], return_index=True)[1]]
    twin = np.empty_like(first)
    twin[first[best]] = best
    twin = twin[first]
    kept = rank == rank[twin]
    left_out = np.flatnonzero(~kept)
    source, label = manifest.column("source"), manifest.column("label")
    about: dict[str, Any] = {}
    if shared := _shared(first[rank == 0], split[rank == 0]):
        about["shared_by_splits"] = shared
    several, against, new = _several_labels(np.flatnonzero(kept), first, split, label)
    if len(several):
        pairs = np.sort(np.stack([source[several[new]], source[against[new]]]), axis=0)
        counted = Counter(zip(_asked_together(split[several[new]]).tolist(), *pairs.tolist(), strict=True))
        about["several_labels"] = [
            {"images": count, "split": name, "sources": sorted({one, other})}
            for (name, one, other), count in counted.most_common()
        ]
    if quarantine is not None:
        place, name_of = manifest.images(), manifest.column("name")
        found = Quarantine(images=len(manifest))

        def add(kind: Kind, row: int, reason: str) -> None:
            found.add(Finding(kind, str(place[row]), reason, source[row], int(label[row]), name=name_of[row]))

        for row, other in zip(left_out.tolist(), twin[left_out].tolist(), strict=True):
            add("left out", row, f"the same image as {place[other]}, which is in split {str(split[other])!r}")
        by_row = np.argsort(several)
        for row, other in zip(several[by_row].tolist(), against[by_row].tolist(), strict=True):
            its = str(name_of[other]) or int(label[other])
            what = f"the same image as {place[other]}, which is in split {str(split[other])!r} as well"
            add("conflict", row, f"{what}, under the label {its!r}")
        found.write(quarantine)
    if not len(left_out):
        return manifest.with_provenance({**manifest.provenance, **about})
    for name in names:
        images = int(np.count_nonzero(split == name))
        if images and not np.any(kept & (split == name)):
            gone = np.flatnonzero(split == name)
            remedy = "Use one only of the data sets that have the same images"
            if np.array_equal(source[gone], source[twin[gone]]):
                remedy = "The data have them in several classes: keep each image in the class that it shows"
            raise GuieError(
                f"split {name!r}: {plural(images, 'image')}, all of which are in another split as well, byte for byte. "
                f"{remedy}"
            )
    others = twin[left_out]
    counts = Counter(zip(split[left_out], source[left_out], split[others], source[others], strict=True))
    keys = ("split", "source", "in_split", "in_source")
    about["left_out_of_splits"] = [
        {"images": count, **dict(zip(keys, key, strict=True))} for key, count in counts.most_common()
    ]
    chosen = manifest.select(kept)
    labels = np.unique(chosen.column("label"), return_inverse=True)[1]
    return chosen.with_column("label", labels).with_provenance({**manifest.provenance, **about})


def _several_labels(
    rows: NDArray[np.intp], image: NDArray[np.intp], split: NDArray[Any], label: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Those of `rows` whose image, by number, is in the same split under another label; for each a row where it is; and
    whether it is the first of its image and split."""
    rows = rows[np.bincount(image[rows], minlength=1)[image[rows]] > 1]  # of millions few are
    codes = np.unique(_asked_together(split[rows]), return_inverse=True)[1]
    order = np.lexsort((rows, label[rows], codes, image[rows]))
    rows, codes = rows[order], codes[order]
    new = np.ones(len(rows), bool)
    new[1:] = (image[rows[1:]] != image[rows[:-1]]) | (codes[1:] != codes[:-1])
    starts = np.flatnonzero(new)
    sizes = np.diff([*starts, len(rows)])
    least, most = np.repeat(rows[starts], sizes), np.repeat(rows[starts + sizes - 1], sizes)
    other = np.where(label[rows] == label[least], most, least)
    several = label[least] != label[most]
    return rows[several], other[several], new[several]


def _asked_together(split: NDArray[Any]) -> NDArray[Any]:
    """Names of splits, with one for the two of which one asks and the other answers."""
    return np.where(np.isin(split, ("query", "index")), "query and index", split)


def _shared(image: NDArray[np.intp], split: NDArray[Any]) -> list[dict[str, Any]]:
    """How many of the images, by number [N], are in each two of the splits [N] that may not share any."""
    several = np.bincount(image)[image] > 1  # of millions few are
    image, split = image[several], split[several]
    names, codes = np.unique(split, return_inverse=True)
    image, codes = np.unique(np.stack([image, codes]), axis=1)
    _, start, count = np.unique(image, return_index=True, return_counts=True)
    found: Counter[tuple[str, ...]] = Counter()
    for at, many in zip(start[count > 1].tolist(), count[count > 1].tolist(), strict=True):
        found.update(itertools.combinations([str(names[code]) for code in codes[at : at + many]], 2))
    found.pop(("index", "query"), None)  # an image may ask and answer
    return [{"images": images, "splits": list(pair)} for pair, images in found.most_common()]


@dataclass(frozen=True)
class HoldOutClasses(Split):
    """All images of `classes` classes chosen at random: the first `classes` of
    `numpy.random.default_rng(seed).permutation(labels)`, labels in ascending order.

    A fraction below 1 is a share of the classes that are there, `round(classes * C)`, at least one: it fits collections
    of any size.
    """

    whole_classes: ClassVar[bool] = True
    classes: int | float
    seed: int = 0
    name: str = "test"

    def __post_init__(self) -> None:
        check_seed(self.seed, f"split {self.name!r}")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        labels = manifest.column("label")
        there = np.unique(labels)
        held_out = np.random.default_rng(self.seed).permutation(there)[: self._count(len(there))]
        return np.flatnonzero(np.isin(labels, held_out))

    def expected(self, free: Extent) -> Extent | None:
        """Raises GuieError where the classes are counted, and too few."""
        if free.exact:
            return free.share(self._count(free.classes) / free.classes, of_classes=True)
        classes = share_of(self.classes, free.classes, f"split {self.name!r}")
        return free.share(classes / free.classes, of_classes=True) if 0 < classes < free.classes else None

    def _count(self, there: int) -> int:
        _check_two(self.name, there)
        classes = share_of(self.classes, there, f"split {self.name!r}")
        if not 0 < classes < there:
            raise GuieError(
                f"split {self.name!r}: {plural(classes, 'class')} are to be held out, but there are {there}. "
                f"Set classes to {_range(1, there - 1)}, or add data"
            )
        return classes


@dataclass(frozen=True)
class UnseenClasses(Split):
    """All images of about 1/`folds` of the classes, from every category in proportion: one fold of
    `StratifiedGroupKFold(folds, shuffle=True, random_state=seed)`, stratified by category, grouped by label
    (5th place, point 2)."""

    whole_classes: ClassVar[bool] = True
    folds: int = 20
    fold: int = 0
    seed: int = 0
    name: str = "select"

    def __post_init__(self) -> None:
        check_seed(self.seed, f"split {self.name!r}")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        from sklearn.model_selection import StratifiedGroupKFold

        _check_fold(self.name, self.folds, self.fold)
        labels, categories = manifest.column("label"), manifest.column("category").astype(str)
        classes = len(np.unique(labels))
        _check_two(self.name, classes)
        largest = int(np.unique(categories, return_counts=True)[1].max(initial=0))
        if (most := min(classes, largest)) < self.folds:
            remedy = (
                f"Set folds to {_range(2, most)}, or add" if most >= 2 else "Give classes a common category, or add"
            )
            raise GuieError(
                f"split {self.name!r}: {classes} classes, of whose categories the largest has "
                f"{plural(largest, 'image')}, cannot be dealt into {self.folds} folds. {remedy} data"
            )
        folds = StratifiedGroupKFold(self.folds, shuffle=True, random_state=self.seed)
        chosen = _fold(folds.split(labels, categories, groups=labels), self.fold, self)
        if not len(chosen):
            raise GuieError(
                f"split {self.name!r}: fold {self.fold} of {self.folds} got none of the {classes} classes. "
                f"Set fold to another of 0..{self.folds - 1}" + ", or folds to fewer" * (self.folds > 2)
            )
        return chosen

    def expected(self, free: Extent) -> Extent:
        return free.share(1 / self.folds, of_classes=True)


@dataclass(frozen=True)
class StratifiedImages(Split):
    """About 1/`folds` of the images of every class that has at least `min_images`: one fold of
    `StratifiedKFold(folds, shuffle=True, random_state=seed)` by label over the rows of those classes; the others stay
    in train (5th place, point 2)."""

    folds: int = 20
    fold: int = 0
    seed: int = 0
    min_images: int = 20
    name: str = "valid"

    def __post_init__(self) -> None:
        check_seed(self.seed, f"split {self.name!r}")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        from sklearn.model_selection import StratifiedKFold

        labels = manifest.column("label")
        _check_fold(self.name, self.folds, self.fold)
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        eligible = np.flatnonzero(counts[inverse] >= self.min_images)
        largest = int(counts.max(initial=0))
        if not len(eligible) or largest < self.folds:
            remedy = (
                f"Set folds to {_range(2, largest)} and min_images to {largest} or less, or add data"
                if largest >= 2
                else f"Add images of the same classes, or remove {self.name!r} from recipe.splits"
            )
            raise GuieError(
                f"split {self.name!r}: of {plural(len(counts), 'class')} the largest has {plural(largest, 'image')}; "
                f"{self.folds} folds of classes with at least {self.min_images} images cannot be made. {remedy}"
            )
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        return eligible[_fold(folds.split(eligible, labels[eligible]), self.fold, self)]

    def expected(self, free: Extent) -> Extent:
        return free.share(1 / self.folds, of_classes=False)  # at most: classes of few images stay whole


def _check_two(name: str, classes: int) -> None:
    if classes < 2:
        there = "one class is left, and it" if classes else "no class is left, and one"
        raise GuieError(
            f"split {name!r}: {there} is needed to train on: there must be two at least. Add classes, or let the "
            "splits before this one, in recipe.splits, take fewer"
        )


def _check_fold(name: str, folds: int, fold: int) -> None:
    if folds < 2 or not 0 <= fold < folds:
        remedy = "folds to 2 or more" if folds < 2 else f"fold to {_range(0, folds - 1)}"
        raise UsageError(f"split {name!r}: there is no fold {fold} of {folds}. Set {remedy}")


def _range(least: int, most: int) -> str:
    return str(least) if most == least else f"{least}..{most}"


def _fold(folds: Iterator[tuple[Any, Any]], number: int, split: Split) -> NDArray[np.intp]:
    """The test rows of one fold of a scikit-learn splitter."""
    with warnings.catch_warnings():
        # of small classes or categories, which simply miss some folds
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        try:
            for position, (_, test) in enumerate(folds):
                if position == number:
                    return np.asarray(test)
        except ValueError as error:
            raise GuieError(f"split {split.name!r} cannot be made: {error}") from error
    raise GuieError(f"split {split.name!r}: there is no fold {number}")
