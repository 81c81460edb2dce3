"""Which images are there more than once, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from guie_datasets.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def repeated(
    hashes: NDArray[Any], labels: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """The rows whose bytes occur before, an earlier row for each, and whether that has the same label; by row.

    hashes: 16 bytes a row.
    Where an earlier row has the same label it's the first such, otherwise the first of all.
    """
    words = hashes.view("<u8").reshape(-1, 2)
    # on half of the hash first, which nearly always tells them apart, so that the rest concerns few rows
    order = np.argsort(words[:, 0])
    half = words[order, 0]
    alike = half[1:] == half[:-1]
    del half
    rows = order[np.append(alike, False) | np.append(False, alike)] if len(order) else order
    del order, alike
    rows = rows[np.lexsort((rows, labels[rows], words[rows, 1], words[rows, 0]))]
    new_hash = np.ones(len(rows), bool)
    new_hash[1:] = np.any(words[rows[1:]] != words[rows[:-1]], axis=1)
    new_label = new_hash.copy()
    new_label[1:] |= labels[rows[1:]] != labels[rows[:-1]]
    of_label = rows[np.maximum.accumulate(np.where(new_label, np.arange(len(rows)), 0))]
    starts = np.flatnonzero(new_hash)
    of_hash = np.repeat(np.minimum.reduceat(rows, starts) if len(rows) else rows, np.diff([*starts, len(rows)]))
    later = np.flatnonzero(rows != np.where(new_label, of_hash, of_label))
    later = later[np.argsort(rows[later])]
    same = ~new_label[later]
    return rows[later], np.where(same, of_label[later], of_hash[later]), same


def first_of_each(manifest: Manifest) -> NDArray[np.intp]:
    """For each row [N] the first one with the same bytes, which is the row itself where there is none before it."""
    first = np.arange(len(manifest))
    hashes = np.ascontiguousarray(manifest.hashes)
    rows, earlier, _ = repeated(hashes, np.zeros(len(manifest), np.int64))
    first[rows] = earlier
    return first
