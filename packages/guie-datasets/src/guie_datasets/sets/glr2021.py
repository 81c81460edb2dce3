"""Google Landmark Recognition 2021, the part of it that the 5th-place recipe uses, as TFRecord shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar

from guie_core import UsageError
from guie_datasets import tfrecord
from guie_datasets.extent import Extent
from guie_datasets.fetching.download import Download, KaggleArchive
from guie_datasets.filters import sample_classes
from guie_datasets.places import Place
from guie_datasets.rows import LeftOut, Row
from guie_datasets.sets._shards import NamedShards

_FOLDER = "guie-glr2021mini-tfrecords-label-10691-17690"


class GLR2021(NamedShards):
    """Google Landmark Recognition 2021 mini: 7,000 landmarks, at most 50 photos each, about 349,000 in 32 shards.

    label: 10691..17690, as its author numbers them; others are bad records. source and category: "glr2021". Rows have
    the order of the shards' numbers and of the records in them.

    root: the folder of the shards, or the one that it lies in; default: the data folder.
    drop_classes: so many classes are left out, chosen by `seed`: of the labels in order of first appearance,
    `pandas.Series(labels).sample(n=len(labels) - drop_classes, random_state=seed)` are kept. The recipe drops 2,000.
    seed: chooses these.
    complete: whether a shard that is missing is an error; otherwise those that are there are used.

    Source: Kaggle, motono0223/guie-glr2021mini-tfrecords-label-10691-17690; Weyand et al., arXiv 2004.01804.
    """

    downloads: ClassVar[tuple[Download, ...]] = (
        KaggleArchive(f"motono0223/{_FOLDER}", _FOLDER, holds="*glr2021-train-*.tfrec", files=32),
    )
    place = Place("glr2021", (_FOLDER, "glr2021"), "*glr2021-train-*.tfrec")
    all_labels = (10691, 17690)
    all_shards = 32
    all_images = 349_000

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        drop_classes: int = 0,
        seed: int = 0,
        complete: bool = True,
    ) -> None:
        if drop_classes < 0:
            raise UsageError(f"drop_classes must be 0 or more, not {drop_classes}")
        super().__init__(root, complete=complete)
        self.drop_classes = drop_classes
        self.seed = seed

    def rows(self) -> Iterator[Row]:
        if not self.drop_classes:
            yield from super().rows()
            return
        kept = self._kept()
        yield from (row for row in super().rows() if row.label in kept)
        reason = f"{self.drop_classes:,} classes are dropped, as drop_classes says (seed {self.seed})"
        self._left_out.append(LeftOut(str(self.place.find(self.root)), reason))

    def count(self) -> int | None:
        return None if self.drop_classes else super().count()

    def expected(self) -> Extent:
        whole = super().expected()
        return whole.share(1 - self.drop_classes / whole.classes, of_classes=True)

    def _kept(self) -> set[int]:
        # labels of records with a wrong checksum count as well: a damaged image changes nothing in which classes go
        low, high = self.all_labels
        found: dict[int, None] = {}
        for path in self.shards():
            # what a shard lost that breaks off is counted by `rows`; the labels before it are known
            with contextlib.suppress(tfrecord.TFRecordError):
                for record in tfrecord.scan(path, check=False, on_bad=lambda error: None):
                    if low <= record.label <= high:
                        found[record.label] = None
        if not found:  # the shards of another set, of whose records `rows` tells
            return set()
        return sample_classes(list(found), drop=self.drop_classes, seed=self.seed)
