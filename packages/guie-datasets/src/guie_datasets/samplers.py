"""Samplers: which images training sees in an epoch, and in which batches.

An epoch is an array of row numbers [batches, batch_size] that follows from the seed and the epoch's number alone. So
training goes on from any batch with `epoch(7)[batch:]`, and each of several processes takes its columns:
`epoch(7)[:, rank * k : (rank + 1) * k]`. The same version of numpy gives the same numbers on every machine.

Samplers that draw by group (class, source, category) deal a group's images in turn from a shuffled deck, a new one each
epoch: before an image comes a second time, all others of its group have come. An epoch has as many batches as the rows
fill, so that images of small groups come several times and those of large groups not every epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing
from guie_datasets.checks import check_seed
from guie_datasets.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Sampler(ABC):
    """Batches of the rows of a manifest. A subclass implements `draw`; `len` is the number of batches of an epoch."""

    def __init__(self, manifest: Manifest, *, batch_size: int, seed: int = 0) -> None:
        """manifest: of the images to train on. Raises UsageError for a batch size under 1 or a seed under 0; GuieError
        if the rows don't fill one batch."""
        if batch_size < 1:
            raise UsageError(
                f"batch_size of a sampler is {batch_size}; it is the number of images of a batch, 1 or more."
            )
        check_seed(seed, type(self).__name__)
        if len(manifest) < batch_size:
            raise GuieError(
                f"{len(manifest):,} images do not fill one batch of {batch_size}; lower batch_size or add images"
            )
        self.rows = len(manifest)
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def epoch(self, number: int) -> NDArray[np.int64]:
        """Row numbers [batches, batch_size] of epoch `number`, 0 or more."""
        random = np.random.default_rng([self.seed, number])
        drawn: NDArray[np.int64] = self.draw(random).astype(np.int64).reshape(len(self), self.batch_size)
        return drawn

    @abstractmethod
    def draw(self, random: np.random.Generator) -> NDArray[np.intp]:
        """Row numbers [batches * batch_size] of an epoch whose random choices are `random`'s."""


class Shuffled(Sampler):
    """Every row at most once an epoch, in random order; the rows that don't fill a last batch differ each epoch."""

    def draw(self, random: np.random.Generator) -> NDArray[np.intp]:
        return random.permutation(self.rows)[: len(self) * self.batch_size]


class _Dealt(Sampler):
    """Draws groups, and deals the images of each from its deck. A subclass implements `groups_drawn`."""

    column: str

    def __init__(self, manifest: Manifest, *, batch_size: int, seed: int = 0) -> None:
        super().__init__(manifest, batch_size=batch_size, seed=seed)
        values = manifest.column(self.column)
        self.groups, self._codes = np.unique(
            values.astype(str) if values.dtype == object else values, return_inverse=True
        )
        self._counts = np.bincount(self._codes)
        self._starts = np.cumsum(self._counts) - self._counts

    @abstractmethod
    def groups_drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        """The group, a position in `self.groups`, of each image of an epoch."""

    def draw(self, random: np.random.Generator) -> NDArray[np.intp]:
        drawn = self.groups_drawn(random)
        decks = np.lexsort((random.random(self.rows), self._codes))  # the groups' images, each group shuffled
        order = np.argsort(drawn, kind="stable")
        before = np.empty(len(drawn), np.intp)  # how often an image's group has been drawn ahead of it
        ends = np.cumsum(np.bincount(drawn, minlength=len(self.groups)))
        before[order] = np.arange(len(drawn)) - np.concatenate([[0], ends])[drawn[order]]
        dealt: NDArray[np.intp] = decks[self._starts[drawn] + before % self._counts[drawn]]
        return dealt


class ClassBalanced(_Dealt):
    """Every class equally often: all of them in random order, then all again in another order, and so on.

    In any part of an epoch that starts with it, the numbers of images of two classes differ by one at most.
    """

    column = "label"

    def groups_drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        count = len(self) * self.batch_size
        return _passes(random, len(self.groups), count // len(self.groups) + 1).ravel()[:count]


class MPerClass(_Dealt):
    """Batches of batch_size / m distinct classes with m images each, side by side: for losses that compare pairs.

    The classes of a pass over all of them are dealt into batches, those left over differ each time; so no class comes
    a second time before the pass is over. The m images are distinct; a class of fewer repeats its images, each as often
    as the others or once more. (pytorch-metric-learning's sampler of that name draws the classes of each batch anew,
    and repeats images of a class of fewer than m at random.)

    Raises UsageError: m doesn't divide batch_size. GuieError: fewer classes than a batch takes.
    """

    column = "label"

    def __init__(self, manifest: Manifest, *, m: int, batch_size: int, seed: int = 0) -> None:
        super().__init__(manifest, batch_size=batch_size, seed=seed)
        if m < 1 or batch_size % m:
            raise UsageError(f"MPerClass: m is {m}; batch_size, which is {batch_size}, must be a multiple of it.")
        self.m = m
        if len(self.groups) < batch_size // m:
            raise GuieError(
                f"MPerClass: a batch of {batch_size} with m = {m} takes {batch_size // m} classes, and there are "
                f"{len(self.groups)}; raise m or lower batch_size"
            )

    def groups_drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        each = self.batch_size // self.m
        whole = len(self.groups) // each  # batches of a pass
        passes = _passes(random, len(self.groups), -(-len(self) // whole))
        batches = passes[:, : whole * each].reshape(-1, each)[: len(self)]
        return np.repeat(batches.ravel(), self.m)


class RoundRobinSources(_Dealt):
    """The sources take turns, an image each, in an order that is drawn for each epoch."""

    column = "source"

    def groups_drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        return np.resize(random.permutation(len(self.groups)), len(self) * self.batch_size)


class CategoryShares(_Dealt):
    """Categories by given shares, spread evenly: dict(apparel=0.2, landmark=0.8).

    Of n images from the start of an epoch a category with share s of k categories has s * n, give or take
    .5 + s * k / 2. Categories that are not named are left out.

    Raises UsageError: shares that are not positive or don't add up to 1. GuieError: a category without images.
    """

    column = "category"

    def __init__(self, manifest: Manifest, *, shares: Mapping[str, float], batch_size: int, seed: int = 0) -> None:
        super().__init__(manifest, batch_size=batch_size, seed=seed)
        if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
            raise UsageError(f"CategoryShares: shares are above 0 and add up to 1; these are {dict(shares)}.")
        there = self.groups.tolist()
        for name in shares:
            if name not in there:
                raise GuieError(
                    f"CategoryShares: no image has the category {name!r}.{did_you_mean(name, there)} "
                    f"There are: {listing(there)}"
                )
        self.shares = dict(shares)
        self._positions = np.array([there.index(name) for name in shares])

    def groups_drawn(self, random: np.random.Generator) -> NDArray[np.intp]:
        shares = np.array(list(self.shares.values()))
        exact = shares / shares.sum() * (len(self) * self.batch_size)
        counts = np.floor(exact).astype(int)
        short = len(self) * self.batch_size - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:short]] += 1  # the largest remainders
        category = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(len(category)) - np.repeat(np.cumsum(counts) - counts, counts)
        # each category's images in the middle of equal parts of the epoch; who comes first of two at once is drawn
        ties = random.permutation(len(counts))[category]
        order = np.lexsort((ties, (number + 0.5) / counts[category]))
        return self._positions[category[order]]


def _passes(random: np.random.Generator, groups: int, passes: int) -> NDArray[np.intp]:
    """Permutations [passes, groups] of all groups."""
    return random.permuted(np.tile(np.arange(groups), (passes, 1)), axis=1)
