"""TFRecord files without TensorFlow: find the images inside, check every checksum, write new files.

A record's data are a serialised `tf.train.Example`. Nothing is copied or decoded while a file is scanned: a record
becomes an `ImageRef` to the encoded bytes inside the shard. Files packed with gzip or zlib are used as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from guie_core import UsageError
from guie_core.files import atomic_write

from ..rows import ImageRef
from .example import ExampleError, find, serialise
from .examples import find_all
from .framing import DAMAGED, TFRecordError, compression, count, framed, frames
from .index import Index
from .names import images_in_name, shard_suffix, shards
from .records import payloads, runs

__all__ = [
    "IMAGE",
    "LABEL",
    "Index",
    "ReaderName",
    "Record",
    "TFRecordError",
    "check_reader",
    "compression",
    "count",
    "images_in_name",
    "payloads",
    "scan",
    "shard_suffix",
    "shards",
    "write",
]

IMAGE = "image/encoded"
LABEL = "image/class/label"

#: "guie": our own. "tensorflow": records that tf.data gives as well, equal in every byte.
ReaderName = Literal["guie", "tensorflow"]


class Record(NamedTuple):
    """image: the encoded bytes inside the shard. label: as stored."""

    image: ImageRef
    label: int


def scan(
    path: str | os.PathLike[str],
    *,
    image: str = IMAGE,
    label: str = LABEL,
    check: bool = True,
    on_bad: Callable[[TFRecordError], None] | None = None,
    reader: ReaderName = "guie",
) -> Iterator[Record]:
    """The records of one file in order, by their features named `image` (one bytes value) and `label` (one int64).

    Records are looked at some hundreds at once: up to 32 MB of the file before the first of them is given.
    `check=False` leaves out the checksum of the data (never that of the lengths), for a file checked before.
    `on_bad` is told of records that are damaged or lack a feature, which are then passed over; without it, and where
    the file cannot be read on, TFRecordError is raised. It names file, record and byte.

    `reader="tensorflow"`: the file is read twice, in step: by tf.data, and by us, since tf.data doesn't tell where in
    the file a record lies. A record is given if image and label are the same for both, byte by byte; else it is a bad
    one. After a wrong checksum tf.data cannot go on, so neither does this. About 30 times slower; GuieError without
    TensorFlow.
    """
    check_reader(reader)
    path = os.fspath(path)
    packed = compression(path)
    keys = image.encode(), label.encode()

    def report(number: int, start: int, error: ExampleError) -> None:
        bad = TFRecordError(path, number, start, str(error))
        if on_bad is None:
            raise bad from None
        on_bad(bad)

    yield from (_scan if reader == "guie" else _scan_twice)(path, packed, keys, check, report)


def _scan(
    path: str, packed: str, keys: tuple[bytes, bytes], check: bool, report: Callable[[int, int, ExampleError], None]
) -> Iterator[Record]:
    for run in runs(path, packed, check=check):
        found = find_all(run.data, run.offsets, run.ends, *keys)
        offsets, lengths = (found.starts + run.base).tolist(), (found.ends - found.starts).tolist()
        # a loop in Python over the good ones would take twice as long
        records = map(Record, map(ImageRef, repeat(path), offsets, lengths, repeat(packed)), found.labels.tolist())
        next_row = 0
        for row in np.flatnonzero(~(found.known & run.intact)).tolist():
            yield from islice(records, row - next_row)
            next(records)
            next_row = row + 1
            try:
                if not run.intact[row]:
                    raise ExampleError(DAMAGED)
                first = int(run.offsets[row])
                start, end, value = find(run.data[first : run.ends[row]].data, *keys)
            except ExampleError as error:
                report(run.number + row, run.start(row), error)
                continue
            yield Record(ImageRef(path, run.base + first + start, end - start, packed), value)
        yield from records


def _scan_twice(
    path: str, packed: str, keys: tuple[bytes, bytes], check: bool, report: Callable[[int, int, ExampleError], None]
) -> Iterator[Record]:
    from .tensorflow import beside

    for frame, theirs in beside(frames(path, packed, check=check), path, packed, *(key.decode() for key in keys)):
        try:
            if not frame.intact:
                raise ExampleError(DAMAGED)
            start, end, value = find(frame.data, *keys)
            if isinstance(theirs, str):
                raise ExampleError(theirs)
            if theirs != (bytes(frame.data[start:end]), value):
                raise ExampleError("TensorFlow finds another image or label in it")
        except ExampleError as error:
            report(frame.number, frame.start, error)
            continue
        yield Record(ImageRef(path, frame.offset + start, end - start, packed), value)


def check_reader(reader: str) -> None:
    """Raises UsageError for the name of a reader that there is not."""
    if reader not in get_args(ReaderName):
        raise UsageError(f"reader must be {' or '.join(map(repr, get_args(ReaderName)))}, not {reader!r}")


def write(
    path: str | os.PathLike[str], examples: Iterable[tuple[bytes, int]], *, image: str = IMAGE, label: str = LABEL
) -> int:
    """Writes (encoded image, label) pairs as one file, which appears only when complete; returns their number.

    The bytes are those of TensorFlow's own writer with deterministic serialisation.
    """
    number = 0
    with atomic_write(Path(path)) as file:
        for data, value in examples:
            file.write(framed(serialise(data, value, image.encode(), label.encode())))
            number += 1
    return number
