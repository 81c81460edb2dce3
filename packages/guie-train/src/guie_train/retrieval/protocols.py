"""Who asks and who answers: which images are queries, and which are the index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guie_core import GuieError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Row numbers of the images that ask, int64 [Q], and of those that may answer, int64 [N].

    A row may be in both; it is never its own answer.
    """

    queries: NDArray[np.int64]
    index: NDArray[np.int64]


class Protocol(Interface):
    """What a component of kind "protocols" does."""

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
        distractor_splits: where distractors come from. What is set aside for reporting has no place here: it would take
            part in a choice.
    """

    split: str = "select"
    distractors: int = 3
    seed: int = 0
    max_index: int = 20_000
    max_queries: int = 5_000
    distractor_splits: tuple[str, ...] = ("train", "valid")

    def pairs(self, labels: ArrayLike, splits: ArrayLike) -> Pairs:
        """Queries and index.

        Raises:
            GuieError: no row has that split, or none of its classes has two images.
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

        others = np.flatnonzero(np.isin(split, self.distractor_splits) & ~np.isin(label, label[queries]))
        _, at = np.unique(label[others], return_index=True)
        others = others[np.sort(at)]  # the first image of each class, by row
        count = min(self.distractors * len(index), len(others))
        drawn = others[np.random.RandomState(self.seed).choice(len(others), size=count, replace=False)]
        drawn = drawn[np.argsort(label[drawn], kind="stable")]
        index = np.concatenate([index, drawn])
        return Pairs(queries[: self.max_queries], index[: self.max_index])


def _rows(splits: NDArray[np.str_], name: str) -> NDArray[np.int64]:
    rows = np.flatnonzero(splits == name)
    if not len(rows):
        there = ", ".join(repr(str(split)) for split in np.unique(splits)) or "none"
        raise GuieError(f"no image is in split {name!r}; the splits are: {there}")
    return rows
