"""TFRecord shards as a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from guie_core import GuieError, UsageError
from guie_core.wording import listing, plural
from guie_datasets import tfrecord
from guie_datasets.images.tensorflow import import_tensorflow
from guie_datasets.places import absolute
from guie_datasets.rows import Dataset, LeftOut, Row
from guie_datasets.tfrecord import IMAGE, LABEL, ReaderName, Record, check_reader


class TFRecordDataset(Dataset):
    """Images and integer labels in TFRecord shards, used as they are: nothing is expanded.

    folder: a folder of shards, plain or packed with gzip or zlib; they come in order of the numbers in their names.
    pattern: which of its files, by their names; one pattern or several.
    files: these files instead, in this order.
    source: what the set is called.
    category: what every image shows; a subclass may tell it by the label (`category_of`).
    labels: the first and the last label that may occur; others are bad records.
    image: the feature that holds the encoded image.
    label: the feature that holds the label, a whole number.
    complete: whether shards that the numbers in names tell to be missing, and a file that breaks off and doesn't say
    by its name how many images are lost, are an error; otherwise what is there is used, and a broken file is a finding.
    reader: "guie", or "tensorflow" to have every record compared with what tf.data gives, as `tfrecord.scan` says.

    Damaged records are `left_out()` and count as bad; so does the rest of a file that cannot be read on, or that holds
    another number of records than its name says (`<set>-<shard>-<images>.tfrec`): records after that number are left
    out. `rows()` raises GuieError for missing files as well.
    """

    #: What `guie data info` shows how to give, folder or files being needed.
    usual: ClassVar[tuple[str, ...]] = ("folder", "source")

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        source: str,
        category: str = "",
        files: Sequence[str | os.PathLike[str]] = (),
        pattern: str | Sequence[str] = "*-train-*.tfrec",
        labels: tuple[int, int] | None = None,
        image: str = IMAGE,
        label: str = LABEL,
        complete: bool = True,
        reader: ReaderName = "guie",
    ) -> None:
        if (folder is None) == (not files):
            raise UsageError("a TFRecord data set needs folder or files, one of the two")
        check_reader(reader)
        self.folder = None if folder is None else absolute(folder)
        self.files = [absolute(file) for file in files]
        self.source = source
        self.category = category
        self.pattern = pattern
        self.labels = labels
        self.image = image
        self.label = label
        self.complete = complete
        self.reader = reader
        self._left_out: list[LeftOut] = []

    def shards(self) -> list[Path]:
        """The files in their order. Raises GuieError for missing ones, naming each."""
        if self.folder is not None:
            return tfrecord.shards(self.folder, self.pattern, check=self.complete, counts=False)
        if missing := [str(path) for path in self.files if not path.is_file()]:
            raise GuieError(f"not there: {listing(missing)}. Correct the names of these files")
        return self.files

    def category_of(self, label: int) -> str:
        """The category of a label's images."""
        return self.category

    def rows(self) -> Iterator[Row]:
        if self.reader == "tensorflow":
            import_tensorflow()
        left_out: list[LeftOut] = []
        self._left_out = left_out
        low, high = self.labels or (0, None)
        for path in self.shards():
            for record in self._records(path, left_out):
                if record.label < low or (high is not None and record.label > high):
                    allowed = f"{low}..{'' if high is None else high}"
                    left_out.append(LeftOut(str(record.image), f"label {record.label} is not in {allowed}", bad=True))
                    continue
                yield Row(record.image, record.label, self.source, self.category_of(record.label))

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def sources(self) -> Sequence[Path]:
        return self.shards()

    def count(self) -> int | None:
        counts = [tfrecord.images_in_name(path) for path in self.sources()]
        return None if None in counts else sum(count or 0 for count in counts)

    def advice(self, reason: str) -> str:
        for setting, name in (("image", self.image), ("label", self.label)):
            if f"has no feature {name!r}" in reason:
                return f"Name the feature that holds the {setting}: {setting}=NAME."
        return ""

    def _records(self, path: Path, left_out: list[LeftOut]) -> Iterator[Record]:
        """The good records of one file; what is wrong with the others, and with the file, is left out."""
        promised = tfrecord.images_in_name(path)
        there = 0

        def lost(error: GuieError, count: int = 1, loud: bool = False) -> None:
            reason = str(error).removeprefix(f"{path}: ")
            more = "" if count == 1 else f"; {count} images are lost by it"
            left_out.append(LeftOut(str(path), f"{reason}{more}", bad=True, count=count, loud=loud))

        def pass_over(error: GuieError) -> None:
            nonlocal there
            there += 1
            if promised is None or there <= promised:
                lost(error)

        try:
            for record in tfrecord.scan(path, image=self.image, label=self.label, on_bad=pass_over, reader=self.reader):
                there += 1
                if promised is None or there <= promised:
                    yield record
        except GuieError as error:
            if promised is None and self.complete:
                raise GuieError(
                    f"{error}.\nIts first {plural(there, 'record')} can be used. How many come after them, its name "
                    "doesn't say. Fetch the file again, or set complete to False to use those that are there"
                ) from error
            lost(error, max(1, (promised or 0) - there), loud=promised is None)
            return
        if promised is not None and there != promised:
            remedy = "fetch it again" if there < promised else "correct its name if all of them are wanted"
            reason = f"{there} records; its name says {promised}: {remedy}"
            left_out.append(LeftOut(str(path), reason, bad=True, count=abs(there - promised)))
