"""What a prediction has done so far, on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from guie_core import GuieError
from guie_core.files import atomic_write


class Kept:
    """Results of images, found by the key of the image in whatever list it comes again.

    Numbers count results in the order in which they came. They lie in shards `<first>-<end>.arrow`, memory-mapped,
    with a row each: key, hash, reason (null for a good one) and embedding. To look for images takes 100 bytes each.

    Raises GuieError: a shard is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._starts: list[int] = []
        self._shards: list[pa.Table] = []
        for path in self.files(folder):
            start, end = (int(part) for part in path.stem.split("-"))
            shard = _open(path)
            if start != len(self) or shard.num_rows != end - start:
                raise GuieError(f"{path} is damaged; add --fresh to begin anew")
            self._add(shard)

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """The shards, in order."""
        return sorted(folder.glob("[0-9]*.arrow"))

    @classmethod
    def clear(cls, folder: Path) -> None:
        """Removes all results."""
        for path in reversed(cls.files(folder)):  # so that those which are left count from 0, whenever this is killed
            path.unlink()

    def __len__(self) -> int:
        return self._starts[-1] + int(self._shards[-1].num_rows) if self._shards else 0

    @property
    def dimension(self) -> int:
        """E, of the embeddings."""
        return int(self._shards[0].schema.field("embedding").type.list_size)

    @property
    def embeddings(self) -> int:
        """How many of the results are."""
        return len(self) - int(self.bad().sum())

    def add(self, results: pa.Table) -> None:
        """Writes a shard. Raises GuieError: the disk is full."""
        path = self.folder / f"{len(self):012}-{len(self) + results.num_rows:012}.arrow"
        with atomic_write(path) as file, pa.ipc.new_file(file, results.schema) as writer:
            writer.write_table(results.combine_chunks())
        self._add(_open(path))

    def _add(self, shard: pa.Table) -> None:
        self._starts.append(len(self))
        self._shards.append(shard)

    def bad(self) -> NDArray[np.bool_]:
        """Of each result, whether it is a reason instead of an embedding."""
        return np.concatenate([np.zeros(0, bool), *(shard["reason"].is_valid().to_numpy() for shard in self._shards)])

    def reason(self, number: int) -> str:
        """Why a bad one is bad."""
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return str(self._shards[shard]["reason"][number - self._starts[shard]].as_py())

    def find(self, keys: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """The number of each image's result, -1 for none; the n-th of several images with one key is the n-th there."""
        found = np.full(len(keys), -1, np.int64)
        if not len(self):
            return found
        here = np.concatenate([bytes16(shard["key"]) for shard in self._shards])
        order, wanted = np.argsort(here, kind="stable"), np.argsort(keys, kind="stable")
        here, sought = here[order], keys[wanted]
        places = np.searchsorted(here, sought) + np.arange(len(sought)) - np.searchsorted(sought, sought)
        there = np.minimum(places, len(here) - 1)
        same = (places < len(here)) & (here[there] == sought)
        found[wanted[same]] = order[there[same]]
        return found

    def take(self, numbers: NDArray[np.int64]) -> pa.Table:
        """The results of these numbers, in their order."""
        shards = np.searchsorted(self._starts, numbers, "right") - 1
        places = [np.flatnonzero(shards == shard) for shard in np.unique(shards)]
        parts = [
            self._shards[shard].take(numbers[at] - self._starts[shard])
            for shard, at in zip(np.unique(shards), places, strict=True)
        ]
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(places))) if len(parts) > 1 else parts[0]


def bytes16(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """A column of 16 bytes each, without nulls, as an array [N]."""
    views = [
        np.frombuffer(chunk.buffers()[1], "S16")[chunk.offset : chunk.offset + len(chunk)] for chunk in column.chunks
    ]
    return np.concatenate([np.empty(0, "S16"), *views])


def _open(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise GuieError(f"{path} is damaged ({error}); add --fresh to begin anew") from error
