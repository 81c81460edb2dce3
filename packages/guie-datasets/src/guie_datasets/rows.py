"""What a data set gives: rows, each of which says where an image's bytes are and what the image shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie_core import GuieError


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
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(-1 if self.length is None else self.length)
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
    """

    image: ImageRef
    label: int
    source: str
    category: str = ""
    split: str = ""
    role: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a data set passed over, and why.

    bad: it should have been an image, and counts as one that went bad; otherwise it was not meant to be one.
    count: of how many images, where it is the rest of a file.
    """

    place: str
    reason: str
    bad: bool = False
    count: int = 1


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

    def sources(self) -> Iterable[Path]:
        """The files that the rows come from: when one of them changes, the data set must be prepared again.

        By default those that the rows name, each once, which takes a pass over the rows and memory for the paths;
        override it where they are known, or give them one by one.
        """
        return list(dict.fromkeys(Path(row.image.path) for row in self.rows()))

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
    return NotImplemented
