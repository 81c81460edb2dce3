"""How large data sets are, told before any image is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guie_datasets.rows import Row


@dataclass(frozen=True)
class Extent:
    """How many images and classes there are, and which categories.

    exact: counted; otherwise as published, or a share of what was published.
    """

    images: int
    classes: int
    categories: tuple[str, ...] = ("",)
    exact: bool = False

    def share(self, part: float, *, of_classes: bool) -> Extent:
        """About so many of the images, and of the classes with `of_classes`, all of which they are otherwise."""
        classes = max(1, round(part * self.classes)) if of_classes else self.classes
        return replace(self, images=round(part * self.images), classes=classes, exact=False)

    def less(self, other: Extent, *, of_classes: bool) -> Extent:
        """What is left when `other` is taken away."""
        classes = self.classes - other.classes if of_classes else self.classes
        return replace(self, images=self.images - other.images, classes=classes, exact=self.exact and other.exact)


def counted(rows: Iterable[Row]) -> Extent:
    """The extent of rows, in one pass over them."""
    images, labels, categories = 0, set(), set()
    for row in rows:
        images += 1
        labels.add(row.label)
        categories.add(row.category)
    return Extent(images, len(labels), tuple(sorted(categories)), exact=True)


def united(extents: Iterable[Extent]) -> Extent:
    """Several data sets as one, no two of which have a class in common."""
    each = list(extents)
    categories = sorted({category for extent in each for category in extent.categories})
    return Extent(
        sum(extent.images for extent in each),
        sum(extent.classes for extent in each),
        tuple(categories),
        exact=all(extent.exact for extent in each),
    )
