"""Filters: which images of a manifest are used at all.

Each filter keeps some rows. Random ones choose as pandas does with the same seed, which is how the recipes of the field
are written down. `apply_filters` applies several in order; labels are then encoded anew, without gaps.
"""

from __future__ import annotations

import dataclasses
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing, plural
from guie_datasets.checks import check_seed
from guie_datasets.extent import Extent
from guie_datasets.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Filter(ABC):
    """Keeps some rows of a manifest, in their order. A subclass implements `choose`.

    source: rows of other sources are kept as they are, and not shown to `choose`; "": none are.
    """

    source: str = ""

    @abstractmethod
    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        """Numbers of the rows of `manifest` to keep, ascending. Raises GuieError if it can't."""

    def expected(self, extent: Extent) -> Extent | None:
        """About what is kept of so many images; for plans. None: not known before it is done."""
        return None

    def apply(self, manifest: Manifest) -> Manifest:
        """The rows that are kept, with labels 0..C-1 in the order they had; what was done is added to the provenance.

        Raises GuieError if nothing is left, or if there are no rows of `source`.
        """
        if self.source:
            theirs = manifest.column("source") == self.source
            if not theirs.any():
                raise GuieError(f"{type(self).__name__}: {_no_source(self.source, manifest)}")
            rows = np.flatnonzero(theirs)
            keep = ~theirs
            keep[rows[self.choose(manifest.select(rows))]] = True
            chosen = np.flatnonzero(keep)
        else:
            chosen = self.choose(manifest)
        if not len(chosen):
            raise GuieError(f"{self} leaves none of {plural(len(manifest), 'image')}")
        kept = manifest if len(chosen) == len(manifest) else manifest.select(chosen)
        labels = np.unique(kept.column("label"), return_inverse=True)[1]
        done = {**self._described(), "left_out": len(manifest) - len(kept)}
        filters = [*manifest.provenance.get("filters", ()), done]
        return kept.with_column("label", labels).with_provenance({**manifest.provenance, "filters": filters})

    def _described(self) -> dict[str, Any]:
        about = {"type": f"{type(self).__module__}:{type(self).__qualname__}"}
        options: dict[str, Any] = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return about | {name: each.item() if isinstance(each, np.generic) else each for name, each in options.items()}


def apply_filters(manifest: Manifest, filters: Sequence[Filter]) -> Manifest:
    """Applies filters in order, each to what the ones before it left. Raises GuieError as they do."""
    for each in filters:
        manifest = each.apply(manifest)
    return manifest


@dataclass(frozen=True)
class MinImages(Filter):
    """Classes that have at least `images` images."""

    images: int
    source: str = ""

    def __post_init__(self) -> None:
        _at_least_one("MinImages", "images", self.images)

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        _, inverse, counts = np.unique(manifest.column("label"), return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[inverse] >= self.images)


@dataclass(frozen=True)
class MaxImages(Filter):
    """At most `images` images of each class: those that `sample_images(labels, images, seed)` chooses, in the order of
    the rows."""

    images: int
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        _at_least_one("MaxImages", "images", self.images)
        check_seed(self.seed, "MaxImages")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        return np.sort(sample_images(manifest.column("label"), self.images, self.seed))

    def expected(self, extent: Extent) -> Extent | None:
        most = min(extent.images, self.images * extent.classes)
        return None if self.source else replace(extent, images=most, exact=False)


@dataclass(frozen=True)
class DropClasses(Filter):
    """All but `classes` classes, chosen at random: what `sample_classes(labels, drop=classes, seed=seed)` keeps."""

    classes: int
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        check_seed(self.seed, "DropClasses")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        labels = manifest.column("label")
        return np.flatnonzero(np.isin(labels, list(sample_classes(labels, drop=self.classes, seed=self.seed))))

    def expected(self, extent: Extent) -> Extent | None:
        return None if self.source else extent.share(1 - self.classes / extent.classes, of_classes=True)


@dataclass(frozen=True)
class SampleClasses(Filter):
    """`classes` classes chosen at random, whole, to try something on a part of the data.

    A number counts classes, `sample_classes(labels, keep=classes, seed=seed)`; a fraction below 1 is a share of them.
    """

    classes: int | float
    seed: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        check_seed(self.seed, "SampleClasses")

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        labels = manifest.column("label")
        keep = share_of(self.classes, len(np.unique(labels)), "SampleClasses")
        return np.flatnonzero(np.isin(labels, list(sample_classes(labels, keep=keep, seed=self.seed))))

    def expected(self, extent: Extent) -> Extent | None:
        keep = share_of(self.classes, extent.classes, "SampleClasses")
        return None if self.source else extent.share(keep / extent.classes, of_classes=True)


@dataclass(frozen=True)
class KeepSources(Filter):
    """Images of these sources only."""

    sources: Sequence[str]

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        return np.flatnonzero(_of_sources(manifest, self.sources, "KeepSources"))


@dataclass(frozen=True)
class DropSources(Filter):
    """Images of all sources but these."""

    sources: Sequence[str]

    def choose(self, manifest: Manifest) -> NDArray[np.intp]:
        return np.flatnonzero(~_of_sources(manifest, self.sources, "DropSources"))


# --- on labels alone, for data sets that filter before any image is read


def sample_classes(
    labels: Sequence[int] | NDArray[Any], *, keep: int | None = None, drop: int | None = None, seed: int = 0
) -> set[int]:
    """The labels to keep, when `keep` classes are kept or `drop` are dropped.

    `labels` may repeat; they count in the order of their first appearance, and what is kept is
    `pandas.Series(labels).drop_duplicates().sample(n, random_state=seed)`, as the 5th place drops landmarks.

    Raises UsageError if so many classes are not there, or if none would be left.
    """
    if (keep is None) == (drop is None):
        raise TypeError("sample_classes needs keep or drop, one of the two")
    array = np.asarray(labels)
    values, first = np.unique(array, return_index=True)
    there = values[np.argsort(first)]
    count = keep if keep is not None else len(there) - (drop or 0)
    if not 0 < count <= len(there):
        what = f"{keep} cannot be kept" if keep is not None else f"{drop} cannot be dropped"
        limits = (1, len(there)) if keep is not None else (0, max(len(there) - 1, 0))
        raise UsageError(f"of {len(there):,} classes {what}. Choose {limits[0]} to {limits[1]}")
    return set(there[_sample(len(there), count, seed)].tolist())


def sample_images(labels: Sequence[int] | NDArray[Any], n: int, seed: int = 0) -> NDArray[np.intp]:
    """Numbers of at most `n` rows of each class.

    Classes come in the order of their first appearance. Of a class with more than n rows they are
    `pandas.Series(rows).sample(n, random_state=seed)`, in the order that this gives; of others all, in their order. So
    the 5th place takes 30 photos of each dish.
    """
    _at_least_one("sample_images", "n", n)
    array = np.asarray(labels)
    _, first, codes, counts = np.unique(array, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.cumsum(counts) - counts
    rows, classes = [order[np.isin(codes[order], np.flatnonzero(counts <= n))]], []
    classes.append(codes[rows[0]])
    # classes of one size are all sampled at the same places, since each starts from the seed
    for size in np.unique(counts[counts > n]).tolist():
        these = np.flatnonzero(counts == size)
        rows.append(order[starts[these][:, None] + _sample(size, n, seed)].ravel())
        classes.append(np.repeat(these, n))
    everything, of = np.concatenate(rows), np.concatenate(classes)
    return everything[np.argsort(first[of], kind="stable")]


def share_of(wanted: int | float, there: int, who: str) -> int:
    """How many of `there` things are wanted: a number as it is, a fraction between 0 and 1 as a share, rounded, at
    least one. Raises UsageError for another fraction."""
    if isinstance(wanted, numbers.Integral):  # numpy's whole numbers too
        return int(wanted)
    if not 0 < wanted < 1:
        raise UsageError(f"{who}: classes is {wanted}; set classes to a whole number, or to a share between 0 and 1")
    return max(1, round(wanted * there))


def _sample(size: int, n: int, seed: int) -> NDArray[np.intp]:
    """What `pandas.Series(range(size)).sample(n, random_state=seed)` gives."""
    check_seed(seed)
    return np.random.RandomState(seed).choice(size, n, replace=False)


def _at_least_one(who: str, name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{who}: {name} is {value}; it is 1 or more")


def _of_sources(manifest: Manifest, sources: Sequence[str], who: str) -> NDArray[np.bool_]:
    if isinstance(sources, str):
        raise UsageError(f"{who}: sources is a list of sources, such as [{sources!r}]")
    column = manifest.column("source")
    there = set(column.tolist())
    for source in sources:
        if source not in there:
            raise GuieError(f"{who}: {_no_source(source, manifest)}")
    return np.isin(column.astype(str), list(sources))


def _no_source(source: str, manifest: Manifest) -> str:
    there = sorted(set(manifest.column("source").tolist()))
    return f"there is no source {source!r}.{did_you_mean(source, there)} There are: {listing(there)}"
