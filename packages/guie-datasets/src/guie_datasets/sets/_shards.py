"""What the two sets of TFRecord shards have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from guie_datasets.extent import Extent
from guie_datasets.numbering import incomplete
from guie_datasets.places import Place, absolute, data_folder
from guie_datasets.rows import LeftOut, Row
from guie_datasets.sets.tfrecords import TFRecordDataset


class NamedShards(TFRecordDataset):
    """TFRecord shards `guie-<set>-train-<shard>-<images>.tfrec`, with labels that are global over their author's sets.

    Unless `complete` is false, a shard that is missing is an error.
    """

    place: ClassVar[Place]
    all_labels: ClassVar[tuple[int, int]]
    all_shards: ClassVar[int]
    all_images: ClassVar[int]
    """About: so many are published."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, complete: bool = True) -> None:
        name = self.place.entry
        folder = data_folder() if root is None else root
        pattern = self.place.holds
        super().__init__(folder, source=name, category=name, pattern=pattern, labels=self.all_labels, complete=complete)
        self.root = None if root is None else absolute(root)

    def shards(self) -> list[Path]:
        """The files in their order. Raises GuieError if the folder or a shard is not there."""
        self.folder = self.place.find(self.root)
        there = super().shards()
        if self.complete and len(there) < self.all_shards:
            raise incomplete(self.folder, [f"{len(there)} of the set's {self.all_shards} shards are there"])
        return there

    def expected(self) -> Extent:
        low, high = self.all_labels
        return Extent(self.all_images, high - low + 1, (self.category,))

    def rows(self) -> Iterator[Row]:
        yield from super().rows()
        there = self.sources()
        if len(there) != self.all_shards:
            reason = f"{len(there)} of the set's {self.all_shards} shards"
            self._left_out.append(LeftOut(str(there[0].parent), reason, loud=True))
