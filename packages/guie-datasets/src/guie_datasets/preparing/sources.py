"""Which files a data set was made from, and what was in them, in a few lines of a manifest's provenance."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from guie_core import GuieError
from guie_core.files import digest
from guie_datasets.rows import Dataset
from guie_datasets.sets.folders import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from hashlib import blake2b

    from numpy.typing import NDArray

_LISTED = 10_000  # files that are named one by one


class Sources:
    """Gathers hashes of a data set's files from those of its images, so that nothing is read twice.

    What `record` gives, all hashes being 32 hexadecimal digits of BLAKE2b:

    - images: the images that are files of their own. files, bytes: how many, and how much. hash: over the path, size
      and hash of each, in the order of the rows.
    - files: the others, {path, size, hash, of}. Of a shard ("of": "images") the hash is over those of the good images
      in it, in their order; of a table or whatever else the data set names ("of": "bytes"), over its bytes. More than
      10,000 are not listed; `more` has {files, bytes, hash} of them then, over their paths, sizes and hashes.
    """

    def __init__(self) -> None:
        self._files = self._bytes = 0
        self._images = [_blake2b() for _ in range(3)]  # of paths, sizes and hashes
        self._shards: dict[str, blake2b] = {}
        self._odd: list[NDArray[np.int64]] = []  # of images that are not named like images

    def add(self, paths: Sequence[str], lengths: Sequence[int], sizes: Sequence[int], hashes: Sequence[bytes]) -> None:
        """Adds good rows of the data set, in order; length -1: a file of its own."""
        whole = [number for number, length in enumerate(lengths) if length < 0]
        if whole:
            own = [paths[number] for number in whole]
            self._files += len(own)
            self._bytes += sum(sizes[number] for number in whole)
            self._images[0].update("".join(f"{path}\0" for path in own).encode())
            self._images[1].update(np.array([sizes[number] for number in whole], "<i8").tobytes())
            self._images[2].update(b"".join(hashes[number] for number in whole))
            self._odd.append(np.array([hash(path) for path in own if not _is_image(path)], np.int64))
        parts = ((path, value) for path, value, length in zip(paths, hashes, lengths, strict=True) if length >= 0)
        for path, group in itertools.groupby(parts, lambda part: part[0]):
            shard = self._shards.setdefault(path, _blake2b())
            shard.update(b"".join(value for _, value in group))

    def record(self, dataset: Dataset) -> dict[str, Any]:
        """For the provenance. Raises GuieError if a file is gone meanwhile."""
        files = [_file(path, shard.hexdigest(), "images") for path, shard in self._shards.items()]
        files += [_file(path, _of_bytes(path), "bytes") for path in self._others(dataset)]
        record: dict[str, Any] = {"files": files}
        if len(files) > _LISTED:
            texts = (str(value) for file in files for value in file.values())
            more = {"files": len(files), "bytes": sum(file["size"] for file in files), "hash": digest(*texts)}
            record = {"files": [], "more": more}
        if self._files:
            whole = digest(*(part.hexdigest() for part in self._images))
            record["images"] = {"files": self._files, "bytes": self._bytes, "hash": whole}
        return record

    def _others(self, dataset: Dataset) -> list[str]:
        """Files that the data set names and no image came from, without images that it does not use."""
        if type(dataset).sources is Dataset.sources:  # those of the rows, by definition
            return []
        if (tables := dataset.tables()) is not None:
            return [path for path in map(str, tables) if path not in self._shards]
        odd = np.concatenate([np.empty(0, np.int64), *self._odd])
        named = (str(path) for path in dataset.sources())
        others = [path for path in named if path not in self._shards and not _is_image(path)]
        used = np.isin(np.array([hash(path) for path in others], np.int64), odd)
        return [path for path, image in zip(others, used, strict=True) if not image and os.path.isfile(path)]


def _blake2b() -> blake2b:
    return hashlib.blake2b(digest_size=16)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def _file(path: str, value: str, of: str) -> dict[str, Any]:
    try:
        return {"path": path, "size": os.stat(path).st_size, "hash": value, "of": of}
    except OSError as error:
        raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error


def _of_bytes(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, _blake2b).hexdigest()
    except OSError as error:
        raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
