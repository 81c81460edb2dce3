"""Records of a TFRecord file by the hundred: what can be done for many at once is done by numpy.

Only records that are whole are taken so. At whatever else there is, the single record is looked at, which says what is
wrong with it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from .framing import DAMAGED, FileBytes, TFRecordError, compression, opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LENGTH = struct.Struct("<Q")
_HEADER, _CRC = 12, 4  # bytes before and after a record's data
_MOST = 4096  # records that are looked at together
_NEAR = 1 << 18  # bytes that numpy brings near the processor, as crc32c waits longer for memory: 5 % of a pass


@dataclass(frozen=True, slots=True)
class Run:
    """Records that follow each other.

    number: of the first. data: the bytes that they lie in, of which the first is byte `base` of the (unpacked) file.
    offsets, ends: of the records' data, counted in `data`, int64 [N]. intact: whether their checksums are right, [N].
    """

    number: int
    base: int
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    ends: NDArray[np.int64]
    intact: NDArray[np.bool_]

    def start(self, row: int) -> int:
        """Where in the file a record starts."""
        return self.base + int(self.offsets[row]) - _HEADER

    @property
    def end(self) -> int:
        """Where in the file the next record starts."""
        return self.base + int(self.ends[-1]) + _CRC


def runs(path: str, packed: str, *, check: bool = True) -> Iterator[Run]:
    """The records in order, one or more at a time; with `check`, the checksums of the data are tested.

    Raises TFRecordError as `frames` does, after the records before the damage.
    """
    source = opened(path, packed)
    number = position = 0
    while run := _whole_records(source, number, position, check) or _one_record(source, number, position, check):
        yield run
        number, position = number + len(run.offsets), run.end


def payloads(path: str | os.PathLike[str], *, check: bool = True) -> Iterator[tuple[int, int]]:
    """(offset, length) of each record's data, whatever they are, in unpacked bytes. Raises TFRecordError."""
    for offsets, lengths in places(path, check=check):
        yield from zip(offsets.tolist(), lengths.tolist(), strict=True)


def places(
    path: str | os.PathLike[str], *, check: bool = True
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(offsets [N], lengths [N]) of the data of some records after the other. Raises TFRecordError."""
    path = os.fspath(path)
    for run in runs(path, compression(path), check=check):
        whole = len(run.intact) if run.intact.all() else int(run.intact.argmin())
        yield run.base + run.offsets[:whole], (run.ends - run.offsets)[:whole]
        if whole < len(run.intact):
            raise TFRecordError(path, run.number + whole, run.start(whole), DAMAGED)


def unaligned(data: NDArray[np.uint8], kind: type[np.uint32] | type[np.uint64]) -> NDArray[np.uint32 | np.uint64]:
    """The little-endian number that starts at each byte, without a copy: [len(data) - its size + 1]."""
    dtype = np.dtype(kind).newbyteorder("<")
    return np.ndarray((max(len(data) - dtype.itemsize + 1, 0),), dtype, data, strides=(1,))


def _whole_records(source: FileBytes, number: int, position: int, check: bool) -> Run | None:
    """The records from `position` on that lie in one window; None if there is none, or the first is damaged."""
    window = source.window(position)
    if len(window) < _HEADER + _CRC:
        return None
    data = np.frombuffer(window, np.uint8)
    starts, stop, crcs = _follow(window, data, check)
    if not starts:
        return None
    offsets = np.array(starts) + _HEADER
    ends = np.array([*starts[1:], stop]) - _CRC
    stored = unaligned(data, np.uint32)
    right = _masked(_crcs_of_lengths(ends - offsets)) == stored[offsets - _CRC]
    whole = len(right) if right.all() else int(right.argmin())
    if not whole:
        return None
    intact = _masked(np.array(crcs, np.uint32)) == stored[ends] if check else np.ones(len(right), np.bool_)
    return Run(number, position, data, offsets[:whole], ends[:whole], intact[:whole])


def _follow(window: memoryview, data: NDArray[np.uint8], check: bool) -> tuple[list[int], int, list[int]]:
    """Where records start, as their lengths say, where the last of them ends, and the checksums of their data."""
    starts: list[int] = []
    crcs: list[int] = []
    length, crc = _LENGTH.unpack_from, google_crc32c.value
    start, near, size = 0, 0, len(window)
    while start <= size - _HEADER - _CRC and len(starts) < _MOST:
        end = start + _HEADER + length(window, start)[0]
        if end + _CRC > size:
            break
        starts.append(start)
        if check:
            if end > near:
                np.maximum.reduce(data[near : end + _NEAR])
                near = end + _NEAR
            crcs.append(crc(data[start + _HEADER : end]))
        start = end + _CRC
    return starts, start, crcs


def _one_record(source: FileBytes, number: int, position: int, check: bool) -> Run | None:
    """The record at `position`, whatever it is; None at the end of the file. Raises TFRecordError."""
    frame = source.frame(number, position, check)
    if frame is None:
        return None
    data = np.frombuffer(frame.data, np.uint8)
    return Run(number, frame.offset, data, np.array([0]), np.array([len(data)]), np.array([frame.intact]))


def _crcs_of_lengths(lengths: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The checksums of lengths as they are stored, [N]; lengths: below 2**32.

    A checksum of a length is the exclusive or of what each byte of it adds to the checksum of zeros.
    """
    zeros, added = _added_by_bytes()
    values = lengths.astype("<u4").view(np.uint8).reshape(-1, 4)
    crcs: NDArray[np.uint32] = np.bitwise_xor.reduce(added[np.arange(4), values], axis=1) ^ zeros
    return crcs


@cache
def _added_by_bytes() -> tuple[np.uint32, NDArray[np.uint32]]:
    """The checksum of eight zeros, and by how much it differs for each value of each of the first four: [4, 256]."""
    zeros = google_crc32c.value(bytes(8))
    numbers = [[value << 8 * place for value in range(256)] for place in range(4)]
    crcs = [[google_crc32c.value(_LENGTH.pack(number)) ^ zeros for number in row] for row in numbers]
    return np.uint32(zeros), np.array(crcs, np.uint32)


def _masked(crcs: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return ((crcs >> 15 | crcs << 17) + 0xA282EAD8).astype(np.uint32)
