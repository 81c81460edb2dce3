"""TFRecord shards as a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from guie_core import UsageError

from . import tfrecord
from .rows import Dataset, LeftOut, Row
from .tfrecord import IMAGE, LABEL


class TFRecordDataset(Dataset):
    """Images and integer labels in TFRecord shards, used as they are: nothing is expanded.

    folder: its files that match `pattern`, in order of their shard numbers, each holding the number of records that its
    name promises. files: these files instead, in this order. source, category: the same for every image, unless a
    subclass overrides `category_of`. labels: the first and last label that may occur; others are bad records.
    image, label: names of the features.

    `rows()` raises GuieError for missing files, incomplete sets and broken files; damaged records are `left_out()`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        source: str,
        category: str = "",
        files: Sequence[str | os.PathLike[str]] = (),
        pattern: str = "*-train-*.tfrec",
        labels: tuple[int, int] | None = None,
        image: str = IMAGE,
        label: str = LABEL,
    ) -> None:
        if (folder is None) == (not files):
            raise UsageError("a TFRecord data set needs folder or files, one of the two")
        self.folder = None if folder is None else _absolute(folder)
        self.files = [_absolute(file) for file in files]
        self.source = source
        self.category = category
        self.pattern = pattern
        self.labels = labels
        self.image = image
        self.label = label
        self._left_out: list[LeftOut] = []

    def shards(self) -> list[Path]:
        """The files in their order. Raises GuieError as `tfrecord.shards` does."""
        return self.files if self.folder is None else tfrecord.shards(self.folder, self.pattern)

    def category_of(self, label: int) -> str:
        """The category of a label's images."""
        return self.category

    def rows(self) -> Iterator[Row]:
        left_out: list[LeftOut] = []
        self._left_out = left_out
        low, high = self.labels or (0, None)

        def bad(error: tfrecord.TFRecordError) -> None:
            place, _, reason = str(error).partition(": ")
            left_out.append(LeftOut(place, reason, bad=True))

        for path in self.shards():
            for record in tfrecord.scan(path, image=self.image, label=self.label, on_bad=bad):
                if record.label < low or (high is not None and record.label > high):
                    allowed = f"{low}..{'' if high is None else high}"
                    left_out.append(LeftOut(str(record.image), f"label {record.label} is not in {allowed}", bad=True))
                    continue
                yield Row(record.image, record.label, self.source, self.category_of(record.label))

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def sources(self) -> Sequence[Path]:
        return tfrecord.shards(self.folder, self.pattern, check=False) if self.folder else self.files

    def count(self) -> int | None:
        counts = [tfrecord.images_in_name(path) for path in self.sources()]
        return None if None in counts else sum(count or 0 for count in counts)


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser().absolute()
