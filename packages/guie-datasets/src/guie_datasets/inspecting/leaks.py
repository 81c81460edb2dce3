"""What two manifests, or the splits of one, have in common: in words, as a table, and as a page of pairs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guie_core import UsageError
from guie_core.files import atomic_write
from guie_core.wording import listing, plural
from guie_datasets.inspecting.pages import percent, write_page
from guie_datasets.inspecting.pictures import encode
from guie_datasets.inspecting.sheets import text, tiles
from guie_datasets.inspecting.similarity import DISTANCE, KINDS, Fingerprints, Found, Leaks, find_leaks
from guie_datasets.manifest import NO_SPLITS, Manifest, column_is

if TYPE_CHECKING:
    from numpy.typing import NDArray

GROUPS = 200  #: groups of a comparison that a page shows
PER_SIDE = 6  #: images of a group and side that a page shows
PICTURES = 12_000_000  # characters that the pictures of a page may take

_OF_MANIFEST = ("label", "name", "source", "split", "width", "height")
COLUMNS = ("a", "b", "group", "kind", "distance", "side", "place", *_OF_MANIFEST)  #: of the table

_IN_WORDS = {"exact": "the same bytes", "near": "nearly the same", "flipped": "nearly the same, mirrored"}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides by name, and what they have in common.

    one: they are of one manifest, so that their labels can be compared.
    """

    a: str
    b: str
    leaks: Leaks
    one: bool = False

    def __str__(self) -> str:
        """ "12 images of b (3.1 %) are in a as well: 8 the same bytes, 4 nearly the same; 2 with other labels"."""
        b = self.leaks.b
        if not len(self.leaks):
            return f"no image of {self.b} is in {self.a} ({len(self.leaks.a.prints):,} and {len(b.prints):,} images)"
        kinds = ", ".join(f"{b.count(kind):,} {_IN_WORDS[kind]}" for kind in KINDS if b.count(kind))
        images = len(b.rows)
        share = percent(images / len(b.prints))
        verb = "is" if images == 1 else "are"
        found = f"{plural(images, 'image')} of {self.b} ({share}) {verb} in {self.a} as well: {kinds}"
        other = int(np.isin(b.groups, self.other_labels()).sum()) if self.one else 0
        return f"{found}; {other:,} of them with another label" if other else found

    def other_labels(self) -> NDArray[np.int64]:
        """The groups whose images have more than one label; of one manifest's labels alone does this say something."""
        sides = (self.leaks.a, self.leaks.b)
        group = np.concatenate([side.groups for side in sides])
        label = np.concatenate([side.prints.manifest.column("label")[side.rows] for side in sides])
        pairs = np.unique(np.stack([group, label], 1), axis=0)
        groups, labels = np.unique(pairs[:, 0], return_counts=True)
        found: NDArray[np.int64] = groups[labels > 1]
        return found


# the order of use; splits of other names come before the test, in order of appearance
_USE = {"train": 0, "valid": 1, "val": 1, "validation": 1, "select": 2, "test": 4, "index": 5, "query": 6}
_OTHERS = 3


def splits_of(manifest: Manifest) -> list[str]:
    """The splits of a manifest, in the order in which they are used. Raises UsageError if there are fewer than two."""
    names = [name for name in manifest._codes("split")[1] if name]
    if len(names) < 2:
        there = f"the manifest has one split alone, {names[0]!r}" if names else NO_SPLITS
        raise UsageError(f"{there}. Or name a second manifest to compare it with")
    return sorted(names, key=lambda name: _USE.get(name, _OTHERS))


def compare_splits(
    prints: Fingerprints,
    *,
    distance: int = DISTANCE,
    flipped: bool = False,
    workers: int | None = None,
) -> list[Comparison]:
    """Each split of a manifest with each other one. Of two splits b is the one that is used later: what it shares with
    what was learned from makes a score better than it is. UsageError if there are fewer than two."""
    sides = {name: prints.select(column_is(prints.manifest, "split", name)) for name in splits_of(prints.manifest)}
    return [
        Comparison(a, b, find_leaks(sides[a], sides[b], distance=distance, flipped=flipped, workers=workers), one=True)
        for a, b in combinations(sides, 2)
    ]


def write_table(path: str | os.PathLike[str], comparisons: Sequence[Comparison]) -> None:
    """The images as CSV with `COLUMNS`; a and b are what was compared."""
    with atomic_write(path, "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for comparison in comparisons:
            for side, found in (("a", comparison.leaks.a), ("b", comparison.leaks.b)):
                manifest = found.prints.manifest.select(found.rows)
                said = zip(*(manifest.column(name).tolist() for name in _OF_MANIFEST), strict=True)
                about = zip(found.groups.tolist(), found.kinds.tolist(), found.distances.tolist(), strict=True)
                for image, values, (group, kind, bits) in zip(manifest.images(), said, about, strict=True):
                    table.writerow([comparison.a, comparison.b, group, KINDS[kind], bits, side, str(image), *values])


def write_leaks(
    path: str | os.PathLike[str], comparisons: Sequence[Comparison], *, title: str, lines: Sequence[str], command: str
) -> None:
    """The page: groups side by side, the first `GROUPS` of each comparison, those that are not exact before others."""
    images: list[NDArray[np.uint8]] = []
    shown = [_shown(comparison, images) for comparison in comparisons if len(comparison.leaks)]
    pictures = encode(range(len(images)), images.__getitem__, PICTURES)
    fields: dict[str, Any] = {
        "title": title,
        "lines": lines,
        "comparisons": shown,
        "pictures": pictures,
        "command": command,
    }
    write_page(path, "leaks.html", made_by="guie data leaks", **fields)


def _shown(comparison: Comparison, images: list[NDArray[np.uint8]]) -> dict[str, Any]:
    leaks = comparison.leaks
    kinds = np.zeros(len(leaks), np.int64)
    np.maximum.at(kinds, leaks.b.groups, leaks.b.kinds)
    order = np.argsort(-kinds, kind="stable")[:GROUPS]
    other = set(comparison.other_labels().tolist()) if comparison.one else set()
    groups = []
    sides = [(name, found, _tiles(found, order, images)) for name, found in _named(comparison)]
    for group in order.tolist():
        distance = max(_of(found, group, found.distances).max() for _, found, _ in sides)
        kind = KINDS[kinds[group]]
        groups.append(
            {
                "kind": _IN_WORDS[kind] + (f" ({plural(int(distance), 'bit')} of 64)" if kind != "exact" else ""),
                "labels_differ": group in other,
                "sides": [
                    {"name": name, "count": len(_of(found, group, found.rows)), "tiles": its[group]}
                    for name, found, its in sides
                ],
            }
        )
    more = f" The first {GROUPS:,} of {len(leaks):,} groups are shown." if len(leaks) > GROUPS else ""
    return {"a": comparison.a, "b": comparison.b, "text": f"{comparison}.{more}", "groups": groups}


def _named(comparison: Comparison) -> list[tuple[str, Found]]:
    return [(comparison.a, comparison.leaks.a), (comparison.b, comparison.leaks.b)]


def _of(found: Found, group: int, values: NDArray[np.int64]) -> NDArray[np.int64]:
    start, stop = np.searchsorted(found.groups, [group, group + 1])
    return values[start:stop]


def _tiles(found: Found, groups: NDArray[np.int64], images: list[NDArray[np.uint8]]) -> dict[int, list[dict[str, Any]]]:
    """Group -> what is shown of its images; pictures go to the end of `images`."""
    manifest = found.prints.manifest
    rows = {group: _of(found, group, found.rows)[:PER_SIDE] for group in groups.tolist()}
    label = manifest.column("label")
    read = iter(tiles(manifest, np.concatenate([np.empty(0, np.int64), *rows.values()]), workers=4))
    shown: dict[int, list[dict[str, Any]]] = {}
    for group, its in rows.items():
        shown[group] = []
        for _ in its:
            tile = next(read)
            name = text(manifest, "name", tile.row)
            number = f"class {int(label[tile.row])}"
            shown[group].append(
                {
                    **{each: getattr(tile, each) for each in ("place", "file", "width", "height", "reason")},
                    "name": f"{name} ({number})" if name else number,
                    "picture": len(images),
                }
            )
            if tile.image is not None:
                images.append(tile.image)
    return shown


def unreadable(prints: Sequence[Fingerprints]) -> str:
    """A sentence about images that could not be read, "" for none."""
    bad = [finding for each in prints for finding in each.bad]
    if not bad:
        return ""
    first = listing([f"{finding.place}: {finding.reason}" for finding in bad], 3)
    verb = "was" if len(bad) == 1 else "were"
    return f"{plural(len(bad), 'image')} could not be read and {verb} compared by bytes alone: {first}"


def default_table(page: Path) -> Path:
    """Where the table goes that stands beside a page."""
    return page.with_suffix(".csv")
