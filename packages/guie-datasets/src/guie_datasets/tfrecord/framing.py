"""Records of a TFRecord file, plain or packed: where each one's data lie, and whether they are what was written.

A file is a sequence of `uint64 length, uint32 crc(length), data, uint32 crc(data)`, little endian, where `crc` is a
masked crc32c. All of it may be packed as one gzip or zlib stream.
"""

from __future__ import annotations

import mmap
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c
import numpy as np

from guie_core import GuieError

from ..compressed import PackedError, PackedFile, looks_packed
from ..rows import MAX_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
DAMAGED = "the data's checksum is wrong: the file is damaged"

_BLOCK = 1 << 20  # unpacked bytes that are taken from a packed file at once
_WINDOW, _PACKED_WINDOW = 32 << 20, 4 << 20  # bytes whose records are looked at together


class TFRecordError(GuieError):
    """A file that is no (whole) TFRecord file, or a record in it without what is asked for.

    path: the file. record: number of the record in it, from 0. offset: of that record's first byte (in a packed file,
    of the unpacked bytes). problem: what is wrong.
    """

    def __init__(self, path: str | os.PathLike[str], record: int, offset: int, problem: str) -> None:
        self.path, self.record, self.offset, self.problem = os.fspath(path), record, offset, problem
        super().__init__(f"{self.path}: record {record} at byte {offset}: {problem}")


class Frame(NamedTuple):
    """One record: it starts at byte `start`, its `data` at `offset`; they are `intact` if their checksum is right."""

    number: int
    start: int
    offset: int
    data: memoryview
    intact: bool

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.offset + len(self.data) + _CRC.size


def compression(path: str | os.PathLike[str]) -> str:
    """How a TFRecord file is packed: "", "gzip" or "zlib"; its content tells, whatever its name is. Raises GuieError.

    Plain is what starts with a length that has the right checksum, then what doesn't look packed.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER.size)
    except OSError as error:
        raise GuieError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    return "" if _is_length(start) else looks_packed(start)


def frames(path: str, packed: str, *, check: bool = True) -> Iterator[Frame]:
    """The records in order; with `check`, the checksums of the data are tested. Raises TFRecordError where lengths are
    damaged or the file ends too early, since nothing after it can be found."""
    source = opened(path, packed)
    frame = source.frame(0, 0, check)
    while frame:
        yield frame
        frame = source.frame(frame.number + 1, frame.end, check)


def count(path: str | os.PathLike[str]) -> int:
    """Number of records, from the lengths alone (the data of plain files are skipped). Raises TFRecordError."""
    path = os.fspath(path)
    packed = compression(path)
    if packed:
        return sum(1 for _ in frames(path, packed, check=False))
    try:
        with open(path, "rb", buffering=0) as file:
            size, position, number = os.fstat(file.fileno()).st_size, 0, 0
            while position < size:
                file.seek(position)
                end = position + _HEADER.size + _length(path, number, position, file.read(_HEADER.size)) + _CRC.size
                if end > size:
                    problem = f"the file ends {end - size} bytes too early: it is truncated"
                    raise TFRecordError(path, number, position, problem)
                position = end
                number += 1
    except OSError as error:
        raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
    return number


def framed(data: bytes) -> bytes:
    """A record as it stands in a file."""
    header = len(data).to_bytes(8, "little")
    return b"".join((header, _CRC.pack(masked_crc(header)), data, _CRC.pack(masked_crc(data))))


def masked_crc(data: bytes | NDArray[np.uint8]) -> int:
    """Of bytes or an array; a memoryview would have to be copied."""
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _is_length(header: bytes) -> bool:
    return len(header) == _HEADER.size and _HEADER.unpack(header)[1] == masked_crc(header[:8])


def _length(path: str, number: int, position: int, header: bytes, packed: str = "") -> int:
    if len(header) < _HEADER.size:
        raise TFRecordError(path, number, position, "the file ends inside the record's header: it is truncated")
    length: int
    length, crc = _HEADER.unpack(header)
    if crc != masked_crc(header[:8]):
        problem = "the length's checksum is wrong: the file is damaged"
        if not number:
            problem = f"this is no TFRecord file: {packed and 'unpacked, '}it starts with {header[:8]!r}"
        raise TFRecordError(path, number, position, problem)
    return length


class FileBytes(ABC):
    """The unpacked bytes of a file."""

    def __init__(self, path: str, packed: str) -> None:
        self.path, self.packed = path, packed

    @abstractmethod
    def take(self, start: int, end: int) -> memoryview:
        """The bytes between two places, or those that there are. Raises PackedError."""

    @abstractmethod
    def window(self, start: int) -> memoryview:
        """Some megabytes from `start` on, or what there is; nothing if that cannot be unpacked."""

    def frame(self, number: int, position: int, check: bool) -> Frame | None:
        """The record that starts at `position`, the `number`th; None at the end. Raises TFRecordError."""
        try:
            header = bytes(self.take(position, position + _HEADER.size))
            if not header:
                return None
            offset = position + _HEADER.size
            length = _length(self.path, number, position, header, self.packed)
            if self.packed and length > MAX_BYTES - _BLOCK:
                problem = f"it has {length} bytes; of packed files, records up to {MAX_BYTES - _BLOCK} bytes are read"
                raise TFRecordError(self.path, number, position, problem)
            data = self.take(offset, offset + length + _CRC.size)
        except PackedError as error:
            problem = f"the file cannot be unpacked: {error.problem}"
            raise TFRecordError(self.path, number, position, problem) from None
        if len(data) < length + _CRC.size:
            missing = length + _CRC.size - len(data)
            problem = f"the file ends {missing} bytes too early: it is truncated"
            raise TFRecordError(self.path, number, position, problem)
        crc = _CRC.unpack(data[length:])[0]
        data = data[:length]
        return Frame(number, position, offset, data, not check or crc == masked_crc(np.frombuffer(data, np.uint8)))


def opened(path: str, packed: str) -> FileBytes:
    """The bytes of a file that is packed like that. Raises GuieError if it cannot be read."""
    return _Packed(path, packed) if packed else _Plain(path)


class _Plain(FileBytes):
    """The bytes of a file, mapped. It is closed when nothing refers to its bytes any more."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "")
        try:
            with open(path, "rb") as file:
                if not os.fstat(file.fileno()).st_size:  # which can't be mapped
                    self._bytes = memoryview(b"")
                    return
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        self._bytes = memoryview(mapped)

    def take(self, start: int, end: int) -> memoryview:
        return self._bytes[start:end]

    def window(self, start: int) -> memoryview:
        return self._bytes[start : start + _WINDOW]


class _Packed(FileBytes):
    """The unpacked bytes of a packed file, taken in blocks."""

    def __init__(self, path: str, packed: str) -> None:
        super().__init__(path, packed)
        self._file = PackedFile(path, packed)
        self._start, self._block = 0, memoryview(b"")

    def take(self, start: int, end: int) -> memoryview:
        if not self._start <= start <= end <= self._start + len(self._block):
            try:
                block = self._file.read(start, max(end - start, _BLOCK))
            except PackedError:  # what is asked for may lie before the damage
                block = self._file.read(start, end - start)
            self._start, self._block = start, memoryview(block)
        return self._block[start - self._start : end - self._start]

    def window(self, start: int) -> memoryview:
        try:
            return memoryview(self._file.read(start, _PACKED_WINDOW))
        except PackedError:
            return memoryview(b"")
