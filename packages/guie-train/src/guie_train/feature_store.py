"""Features of images on disk: computed once, found by the content of the image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guie_core import GuieError
from guie_core.files import atomic_write
from guie_datasets import Manifest

SHARD = 4096  # images at most in a shard
VERSION = 1


class Bad(NamedTuple):
    """An image that has no features because it cannot be decoded: the hash of its bytes, where it is, what is wrong."""

    hash: str
    place: str
    reason: str


class FeatureStore:
    """Features [N, D] of one backbone through one view, found by the content hash of the image.

    The folder holds `store.json` (what made the features) and shards, each of two memory-mapped arrays:
    `00000.features.npy` [n, D] and `00000.hashes.npy` [n]. Hashes are written last: a shard counts once they are there.
    Images that cannot be decoded are listed in `bad.csv` (hash, place, reason); `usable` takes them out of a manifest.

    A row depends on the image's bytes alone, so neither labels nor splits nor the order of a manifest matter: another
    split, or a manifest that shares images with an earlier one, finds its features here. (A key over the *ordered*
    hashes, the obvious alternative, would compute all of them again for one image more.)

    Args:
        folder: where the store is, or will be.
        about: what makes the features; JSON-able. With it the store can be written, and an existing store whose own
            record differs is refused.

    Raises:
        GuieError: the folder holds features of something else, or is damaged.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.folder = folder
        path = folder / "store.json"
        if path.exists():
            try:
                found = json.loads(path.read_text())
            except ValueError as error:
                raise GuieError(f"{path} is damaged ({error}); delete {folder} and run again") from None
            wanted = None if about is None else json.loads(json.dumps({"version": VERSION, **about}))
            if wanted is not None and found != wanted:
                differ = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
                raise GuieError(
                    f"{folder} holds features that were made differently: "
                    + "; ".join(f"{k} was {found.get(k)!r}, is {wanted.get(k)!r}" for k in differ)
                    + f". If that is intended, delete {folder}: its features are then computed again"
                )
            self.about: dict[str, Any] = found
        elif about is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.about = {"version": VERSION, **about}
            with atomic_write(path, "w") as file:
                json.dump(self.about, file, indent=2)
        else:
            raise GuieError(f"no features in {folder}: there is no store.json")

    @property
    def dimension(self) -> int:
        """D, the number of features of an image."""
        return int(self.about["dimension"])

    @cached_property
    def _shards(self) -> list[tuple[NDArray[Any], NDArray[np.bytes_]]]:
        shards = []
        for hashes in sorted(self.folder.glob("*.hashes.npy")):
            features = hashes.with_name(hashes.name.replace(".hashes.", ".features."))
            try:
                pair = np.load(features, mmap_mode="r", allow_pickle=False), np.load(hashes, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise GuieError(f"{features} is damaged ({error}); delete {hashes} and run again") from None
            if pair[0].shape != (len(pair[1]), self.dimension):
                raise GuieError(
                    f"{features} has shape {pair[0].shape}, expected ({len(pair[1])}, {self.dimension}); "
                    f"delete {hashes} and run again"
                )
            shards.append(pair)
        return shards

    @cached_property
    def _lookup(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """All hashes in ascending order, and the row (counted over all shards) where each one's features are."""
        hashes = np.concatenate([np.empty(0, "S32"), *(h for _, h in self._shards)])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def __len__(self) -> int:
        return len(self._lookup[0])

    @cached_property
    def bad(self) -> tuple[Bad, ...]:
        """The images that cannot be decoded."""
        path = self.folder / "bad.csv"
        if not path.exists():
            return ()
        try:
            with open(path, encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
                if header != list(Bad._fields):
                    raise ValueError(f"its columns are {', '.join(header)}")
                return tuple(Bad(*row) for row in rows)
        except (ValueError, TypeError, csv.Error) as error:
            raise GuieError(f"{path} is damaged ({error}); delete it, and its images are tried again") from None

    def is_bad(self, hashes: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `hashes` [N] are of images that cannot be decoded."""
        return np.isin(hashes.astype("S32"), np.array([bad.hash for bad in self.bad], "S32"))

    def usable(self, manifest: Manifest) -> tuple[Manifest, NDArray[np.int64]]:
        """The images of a manifest that can be decoded, and their row numbers in it.

        Whatever reads features for the rows of a manifest reads them for these.
        """
        if not self.bad:
            return manifest, np.arange(len(manifest))
        rows = np.flatnonzero(~self.is_bad(manifest.column("hash")))
        return manifest.select(rows), rows

    def missing(self, hashes: NDArray[Any]) -> NDArray[np.int64]:
        """Positions in `hashes` [N] of the images to compute: each distinct one that is neither there nor bad."""
        absent = self._absent(hashes)
        return absent[~self.is_bad(hashes[absent])]

    def _absent(self, hashes: NDArray[Any]) -> NDArray[np.int64]:
        wanted, first = np.unique(hashes.astype("S32"), return_index=True)
        known, _ = self._lookup
        at = np.searchsorted(known, wanted)
        there = np.zeros(len(wanted), bool)
        inside = at < len(known)
        there[inside] = known[at[inside]] == wanted[inside]
        return np.sort(first[~there])

    def read(self, hashes: NDArray[Any]) -> NDArray[np.float32]:
        """Features [N, D] in the order of `hashes` [N].

        Raises:
            GuieError: an image is not in the store.
        """
        if absent := len(self._absent(hashes)):
            raise GuieError(f"{absent} of {len(hashes)} images have no features in {self.folder} yet")
        known, rows = self._lookup
        row = rows[np.searchsorted(known, hashes.astype("S32"))]
        out = np.empty((len(hashes), self.dimension), np.float32)
        start = 0
        for features, shard_hashes in self._shards:
            here = np.flatnonzero((row >= start) & (row < start + len(shard_hashes)))
            # ascending rows read the mapped file front to back
            here = here[np.argsort(row[here], kind="stable")]
            out[here] = features[row[here] - start]
            start += len(shard_hashes)
        return out

    def append(self, hashes: NDArray[Any] | Sequence[str], features: NDArray[Any]) -> None:
        """Add a shard: `features` [n, D] of the images with `hashes` [n]; both are on disk when this returns."""
        if features.shape != (len(hashes), self.dimension):
            raise ValueError(f"features {features.shape} for {len(hashes)} images of dimension {self.dimension}")
        number = 1 + max((int(p.name.split(".")[0]) for p in self.folder.glob("*.hashes.npy")), default=-1)
        _save(self.folder / f"{number:05d}.features.npy", features.astype(self.about["dtype"], copy=False))
        _save(self.folder / f"{number:05d}.hashes.npy", np.asarray(hashes).astype("S32"))
        self.__dict__.pop("_shards", None)
        self.__dict__.pop("_lookup", None)

    def add_bad(self, images: Iterable[Bad]) -> None:
        """Add images that cannot be decoded; the list is on disk when this returns."""
        if rows := [*self.bad, *images]:
            with atomic_write(self.folder / "bad.csv", "w") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(Bad._fields)
                # names of files that are no text are told as well as can be
                table.writerows([value.encode("utf-8", "backslashreplace").decode() for value in row] for row in rows)
            self.__dict__.pop("bad", None)


def _save(path: Path, array: NDArray[Any]) -> None:
    # by way of memory: numpy's own writing to a file forgets why it failed, and a full disk is to be told as that
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
