"""Who asks and who answers: which images are queries, and which are the index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guie_core import GuieError
from guie_core.wording import did_you_mean
from guie_datasets import Extent
from guie_datasets.checks import check_seed
from guie_datasets.splits import TRAIN

DISTRACTORS = (TRAIN, "valid")
"""Splits that distractors come from unless others are named."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Row numbers of the images that ask, int64 [Q], and of those that may answer, int64 [N].

    A row may be in both; it is never its own answer.
    """

    queries: NDArray[np.int64]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Expected:
    """About how many images will ask, how many may answer, and how many they are together: some do both."""

    queries: int
    index: int
    images: int


class Protocol(Interface):
    """What a component of kind "protocols" does. It may also have `expected`, as those below; without it a plan knows
    less."""

    def pairs(self, labels: ArrayLike, splits: ArrayLike) -> Pairs:
        """The pairs among rows with these labels, ints [N], and names of splits, texts [N]."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Every image of a split asks, and all others of the split may answer.

    Args:
        split: its name.
    """

    split: str = "test"

    def pairs(self, labels: ArrayLike, splits: ArrayLike) -> Pairs:
        """The rows of the split, in order, as queries and as index.

        Raises:
            GuieError: no row has that split.
        """
        rows = _rows(np.asarray(splits), self.split)
        return Pairs(rows, rows)

    def expected(self, splits: Mapping[str, Extent]) -> Expected:
        """What is to be expected of splits by name. Raises GuieError where there is no such split."""
        images = _extent(splits, self.split).images
        return Expected(images, images, images)


@dataclass(frozen=True)
class FirstAgainstSecond:
    """The first image of each class asks, the second may answer, among distractors of other classes.

    The selection of the 5th place (arXiv 2210.09495; 5th place, point 8): "first" is by row; a class with one image is
    a query that cannot be answered; distractors are the first images of as many other classes, drawn as pandas'
    ``Series.sample(n, random_state=seed)`` draws them. Queries stand in the order of their labels; the index holds the
    second images, then the distractors, each in the order of labels, and both are cut off at their limit.

    Args:
        split: whose classes ask.
        distractors: how many distractors there are for each second image; fewer if the classes run out.
        seed: of the draw.
        max_index: images in the index at most.
        max_queries: queries at most.
        distractor_splits: where distractors come from; None: from "train" and "valid", as far as there are such. What
            is set aside for reporting has no place here: it would take part in a choice.
    """

    split: str = "select"
    distractors: int = 3
    seed: int = 0
    max_index: int = 20_000
    max_queries: int = 5_000
    distractor_splits: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in {"distractors": 0, "max_index": 1, "max_queries": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")
        check_seed(self.seed)

    def pairs(self, labels: ArrayLike, splits: ArrayLike) -> Pairs:
        """Queries and index.

        Raises:
            GuieError: no row has that split, or one that distractors are to come from; or none of its classes has two
                images.
        """
        label, split = np.asarray(labels), np.asarray(splits)
        rows = _rows(split, self.split)
        order = rows[np.argsort(label[rows], kind="stable")]
        first = np.ones(len(order), bool)
        first[1:] = label[order][1:] != label[order][:-1]
        second = np.zeros(len(order), bool)
        second[1:] = first[:-1] & ~first[1:]
        queries, index = order[first], order[second]
        if not len(index):
            raise GuieError(f"no class of split {self.split!r} has two images, so no query can be answered")

        distractors = self._distractor_splits(np.unique(split).tolist())
        others = np.flatnonzero(np.isin(split, distractors) & ~np.isin(label, label[queries]))
        _, at = np.unique(label[others], return_index=True)
        others = others[np.sort(at)]  # the first image of each class, by row
        count = min(self.distractors * len(index), len(others))
        drawn = others[np.random.RandomState(self.seed).choice(len(others), size=count, replace=False)]
        drawn = drawn[np.argsort(label[drawn], kind="stable")]
        index = np.concatenate([index, drawn])
        return Pairs(queries[: self.max_queries], index[: self.max_index])

    def expected(self, splits: Mapping[str, Extent]) -> Expected:
        """What is to be expected of splits by name, each of whose classes has two images and is in one split alone.

        Raises GuieError where there is no such split.
        """
        classes = _extent(splits, self.split).classes
        others = sum(splits[name].classes for name in self._distractor_splits(splits))
        queries = min(classes, self.max_queries)
        index = min(classes + min(self.distractors * classes, others), self.max_index)
        return Expected(queries, index, queries + index)

    def _distractor_splits(self, there: Collection[str]) -> list[str]:
        """Where distractors come from, of the splits that are there. Raises GuieError where one that is named isn't."""
        if self.distractor_splits is None:
            return [name for name in DISTRACTORS if name in there]
        for name in self.distractor_splits:
            if name not in there:
                raise _no_split(name, there)
        return list(self.distractor_splits)


def _rows(splits: NDArray[np.str_], name: str) -> NDArray[np.int64]:
    rows = np.flatnonzero(splits == name)
    if not len(rows):
        raise _no_split(name, map(str, np.unique(splits)))
    return rows


def _extent(splits: Mapping[str, Extent], name: str) -> Extent:
    if name not in splits:
        raise _no_split(name, splits)
    return splits[name]


def _no_split(name: str, there: Iterable[str]) -> GuieError:
    names = sorted(there)
    listed = ", ".join(map(repr, names)) or "none"
    return GuieError(f"no image is in split {name!r}; the splits are: {listed}.{did_you_mean(name, names)}")
