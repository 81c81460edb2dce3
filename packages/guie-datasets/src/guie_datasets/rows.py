"""What a data set gives: rows, each of which says where an image's bytes are and what the image shows."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guie_core import GuieError
from guie_core.wording import size
from guie_datasets.extent import Extent

#: The most that is read of one image: what is no image may fill the memory otherwise.
MAX_BYTES = 256 << 20

#: The label of an image of which nothing is said. It can be embedded, and not be trained with.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image's bytes are: a whole file, or `length` bytes from `offset` on inside a shard.

    compression: "" or how the shard is packed, "gzip" or "zlib"; `offset` and `length` count unpacked bytes then.
    `str(ref)` is the place as messages name it: the path, with `@offset+length` for a part of a file.
    """

    path: str
    offset: int = 0
    length: int | None = None
    compression: str = ""

    def read(self) -> bytes:
        """The encoded bytes. Raises GuieError if the file is missing, unreadable or shorter than the reference says."""
        if self.compression:
            from guie_datasets import compressed

            return compressed.read(self)
        try:
            with open_file(self.path) as file:
                data = read_part(file, self.offset, self.length)
        except OSError as error:
            raise GuieError(f"{self}: cannot be read: {error.strerror or error}") from error
        if self.length is not None and len(data) != self.length:
            raise GuieError(f"{self}: only {len(data)} of {self.length} bytes are there; the file was cut or replaced")
        return data

    def __str__(self) -> str:
        return self.path if self.length is None else f"{self.path}@{self.offset}+{self.length}"


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a data set.

    label: what two images must share to be the same thing; >= 0, local to the data set.
    source: the data set or block it came from.
    category: what kind of thing it shows; what splits of classes are stratified by.
    split, role: only where the data set fixes them itself ("test"; "query", "index"); else "".
    name: what people call the label, "red-apple"; for pictures and messages.
    original_label: what the label was before the data set numbered its classes anew; None: the same.
    """

    image: ImageRef
    label: int
    source: str
    category: str = ""
    split: str = ""
    role: str = ""
    name: str = ""
    original_label: int | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a data set passed over, and why.

    bad: it should have been an image, and counts as one that went bad; otherwise it was not meant to be one.
    count: of how many images, where it is the rest of a file.
    loud: people are told of it at once, since images or a class may be missed.
    """

    place: str
    reason: str
    bad: bool = False
    count: int = 1
    loud: bool = False


def open_file(path: str, buffering: int = -1) -> IO[bytes]:
    """An ordinary file to read. Raises OSError; also for pipes, devices and folders, of which a read may never end."""
    file = open(path, "rb", buffering, opener=_without_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is a pipe, a device or the like, not a file")
    return file


def read_part(file: IO[bytes], offset: int, length: int | None) -> bytes:
    """`length` bytes from `offset` on, or what there is of them; None: up to the end. Raises OSError, too if that is
    more than an image can have."""
    wanted = os.fstat(file.fileno()).st_size - offset if length is None else length
    if wanted > MAX_BYTES:
        raise OSError(f"it has {size(wanted)}; images up to {size(MAX_BYTES)} are read")
    file.seek(offset)
    return file.read(-1 if length is None else length)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that nobody writes to opens at once


class Dataset(ABC):
    """A collection of labelled images on disk.

    A subclass implements `rows()`. The order of the rows is part of the data set, since splits depend on it: it is the
    same at every call and on every machine. Labels are local: `prepare` keeps those of several data sets apart.
    """

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """The rows, in their fixed order. Raises GuieError if the data are not where or what they should be."""

    def left_out(self) -> Sequence[LeftOut]:
        """What the last whole pass over `rows()` passed over; `prepare` lists it in the quarantine."""
        return ()

    def count(self) -> int | None:
        """How many rows there will be, where that is known without a pass over the data; for progress bars."""
        return None

    def expected(self) -> Extent | None:
        """How large the data set is with its options applied, where that is told without its files, or by listing them;
        for plans. None: not known until it is prepared. Raises GuieError if it takes the files and they aren't there.
        """
        return None

    def sources(self) -> Iterable[Path]:
        """The files that the rows come from: when one of them changes, the data set must be prepared again.

        By default those that the rows name, each once, which takes a pass over the rows and memory for the paths;
        override it where they are known, or give them one by one. Raises GuieError as `rows()` does, as far as that
        shows without the files being read: plans ask for it, and runs before anything else.
        """
        return list(dict.fromkeys(Path(row.image.path) for row in self.rows()))

    def tables(self) -> Iterable[Path] | None:
        """Files that tell of images and hold none: tables, lists of a split. None: those of `sources()` that no row
        names, which takes another pass over them."""
        return None

    def advice(self, reason: str) -> str:
        """What to set, in words, if `reason` is what is wrong with most images; "" if nothing is to be said."""
        return ""

    def provenance(self) -> Mapping[str, Any]:
        """What the manifest records about this data set: the class and its plain public attributes."""
        plain = {name: _plain(value) for name, value in vars(self).items() if not name.startswith("_")}
        return {"type": f"{type(self).__module__}:{type(self).__qualname__}"} | {
            name: value for name, value in plain.items() if value is not NotImplemented
        }


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it, or NotImplemented."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return NotImplemented if any(item is NotImplemented for item in items) else items
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        plain = {key: _plain(item) for key, item in value.items()}
        return NotImplemented if any(item is NotImplemented for item in plain.values()) else plain
    return NotImplemented
