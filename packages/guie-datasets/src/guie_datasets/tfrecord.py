"""TFRecord files without TensorFlow: find the images inside, check every checksum, write new files.

A file is a sequence of `uint64 length, uint32 crc(length), data, uint32 crc(data)`, little endian, where `crc` is a
masked crc32c and `data` a serialised `tf.train.Example`. Nothing is copied or decoded while a file is scanned: a record
becomes an `ImageRef` to the encoded bytes inside the shard.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from guie_core import GuieError
from guie_core.files import atomic_write

from .rows import ImageRef

IMAGE = "image/encoded"
LABEL = "image/class/label"

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_MESSAGE_1, _MESSAGE_2, _VARINT_1 = 1 << 3 | 2, 2 << 3 | 2, 1 << 3  # tags: field number << 3 | wire type
_BYTES, _FLOATS, _INT64 = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2
_KINDS = {_BYTES: "bytes", _FLOATS: "floats", _INT64: "int64"}
_NAME = re.compile(r"(?P<set>.+)-(?P<shard>\d+)-(?P<images>\d+)\.tfrec(ord)?s?$")


class TFRecordError(GuieError):
    """A file that is no (whole) TFRecord file, or a record in it without what is asked for.

    path: the file. record: number of the record in it, from 0. offset: of that record's first byte.
    """

    def __init__(self, path: str | os.PathLike[str], record: int, offset: int, problem: str) -> None:
        self.path, self.record, self.offset = os.fspath(path), record, offset
        super().__init__(f"{self.path}: record {record} at byte {offset}: {problem}")


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
) -> Iterator[Record]:
    """The records of one file in order, by their features named `image` (one bytes value) and `label` (one int64).

    `check=False` leaves out the checksum of the data (never that of the lengths), for a file checked before.
    `on_bad` is told of records that are damaged or lack a feature, which are then passed over; without it, and where
    the file cannot be read on, TFRecordError is raised. It names file, record and byte.
    """
    path = os.fspath(path)
    image_key, label_key = image.encode(), label.encode()
    with _Map(path) as data:
        for number, (start, end) in enumerate(_payloads(path, data)):
            try:
                if check:
                    _check(data, start, end)
                features = _features(data.bytes, start, end)
                image_start, image_end = _one_bytes(data.bytes, features, image_key)
                value = _one_int64(data.bytes, features, label_key)
            except (_ExampleError, IndexError) as error:
                problem = _RUNS_OUT if isinstance(error, IndexError) else str(error)
                bad = TFRecordError(path, number, start - _HEADER.size, problem)
                if on_bad is None:
                    raise bad from None
                on_bad(bad)
                continue
            yield Record(ImageRef(path, image_start, image_end - image_start), value)


def payloads(path: str | os.PathLike[str], *, check: bool = True) -> Iterator[tuple[int, int]]:
    """(offset, length) of each record's data: an index for random access, whatever the records hold."""
    path = os.fspath(path)
    with _Map(path) as data:
        for number, (start, end) in enumerate(_payloads(path, data)):
            try:
                if check:
                    _check(data, start, end)
            except _ExampleError as error:
                raise TFRecordError(path, number, start - _HEADER.size, str(error)) from None
            yield start, end - start


def count(path: str | os.PathLike[str]) -> int:
    """Number of records, from the lengths alone (the data are skipped). Raises TFRecordError."""
    path = os.fspath(path)
    try:
        with open(path, "rb", buffering=0) as file:
            size, position, number = os.fstat(file.fileno()).st_size, 0, 0
            while position < size:
                file.seek(position)
                position = _end(path, number, position, size, file.read(_HEADER.size)) + _CRC.size
                number += 1
    except OSError as error:
        raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
    return number


def shards(folder: str | os.PathLike[str], pattern: str = "*-train-*.tfrec", *, check: bool = True) -> list[Path]:
    """The shards of a set, `<set>-train-<shard>-<images>.tfrec`, in order of their numbers.

    With `check`, each must hold as many records as its name says (lengths only, about 10 microseconds a record), and
    the numbers must be 0, 1, 2, ... without gaps up to the last. Raises GuieError, naming every shard at fault.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise GuieError(f"{folder}: no such folder. Name the folder that holds the files {pattern}")
    found = [path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]
    if not found:
        there = sorted(path.name for path in folder.iterdir())
        listing = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
        raise GuieError(f"{folder}: no file matches {pattern}. The folder holds {listing}")
    found.sort(key=_order)
    if check:
        problems = _gaps(found) + [problem for path in found for problem in _miscounted(path)]
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise GuieError(
                f"{folder}: the set is not complete:\n{lines}\nFetch these files again, or name the files you want"
            )
    return found


def images_in_name(path: str | os.PathLike[str]) -> int | None:
    """The number of records that a shard's name promises, or None for other names."""
    match = _NAME.match(Path(path).name)
    return int(match["images"]) if match else None


def write(
    path: str | os.PathLike[str], examples: Iterable[tuple[bytes, int]], *, image: str = IMAGE, label: str = LABEL
) -> int:
    """Writes (encoded image, label) pairs as one file, which appears only when complete; returns their number.

    The bytes are those of TensorFlow's own writer with deterministic serialisation.
    """
    number = 0
    with atomic_write(Path(path)) as file:
        for data, value in examples:
            payload = _example({image.encode(): _bytes_feature(data), label.encode(): _int64_feature(value)})
            header = len(payload).to_bytes(8, "little")
            file.write(b"".join((header, _CRC.pack(_masked(header)), payload, _CRC.pack(_masked(payload)))))
            number += 1
    return number


# --- framing


class _Map:
    """A file's bytes: `bytes` for indexing, `array` for slices that crc32c takes without a copy."""

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as error:
            raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.bytes = memoryview(self._map)
        self.array = np.frombuffer(self._map, np.uint8)

    def __enter__(self) -> _Map:
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_SEQUENTIAL"):
            self._map.madvise(mmap.MADV_SEQUENTIAL)
        return self

    def __exit__(self, *exception: object) -> None:
        self.bytes.release()
        del self.array
        if isinstance(self._map, mmap.mmap):
            self._map.close()


def _payloads(path: str, data: _Map) -> Iterator[tuple[int, int]]:
    """(start, end) of each record's data."""
    position, number = 0, 0
    while position < data.size:
        end = _end(path, number, position, data.size, bytes(data.bytes[position : position + _HEADER.size]))
        start = position + _HEADER.size
        yield start, end
        position = end + _CRC.size
        number += 1


def _check(data: _Map, start: int, end: int) -> None:
    if _CRC.unpack_from(data.bytes, end)[0] != _masked(data.array[start:end]):
        raise _ExampleError("the data's checksum is wrong: the file is damaged")


def _end(path: str, number: int, position: int, size: int, header: bytes) -> int:
    """Where the data of the record at `position` end."""
    if len(header) < _HEADER.size:
        raise TFRecordError(path, number, position, "the file ends inside the record's header: it is truncated")
    length, crc = _HEADER.unpack(header)
    if crc != _masked(header[:8]):
        if number:
            raise TFRecordError(path, number, position, "the length's checksum is wrong: the file is damaged")
        packed = header[:2] == b"\x1f\x8b" or header[0] == 0x78
        hint = "it looks compressed; unpack it first" if packed else f"it starts with {header[:8]!r}"
        raise TFRecordError(path, number, position, f"this is no TFRecord file: {hint}")
    end: int = position + _HEADER.size + length
    if end + _CRC.size > size:
        missing = end + _CRC.size - size
        raise TFRecordError(path, number, position, f"the file ends {missing} bytes too early: it is truncated")
    return end


def _masked(data: bytes | np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


# --- tf.train.Example in protocol buffers' wire format


_RUNS_OUT = "its data are no tf.train.Example: a field runs past the end"


class _ExampleError(Exception):
    """What is wrong with a record's data."""


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    shift = 7
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
        if shift > 63:
            raise _ExampleError("its data are no tf.train.Example: a number is longer than ten bytes")


def _fields(data: memoryview, position: int, end: int) -> list[tuple[int, int, int]]:
    """(tag, start, end of its value) of each field of one message; tag = field number << 3 | wire type."""
    fields = []
    while position < end:
        tag, start = data[position], position + 1
        if tag >= 0x80:
            tag, start = _varint(data, position)
        wire = tag & 7
        if wire == 2:
            length, start = _varint(data, start)
            position = start + length
        elif wire == 0:
            _, position = _varint(data, start)
        elif wire == 1:
            position = start + 8
        elif wire == 5:
            position = start + 4
        else:
            raise _ExampleError(f"its data are no tf.train.Example: wire type {wire}")
        if position > end:
            raise _ExampleError(_RUNS_OUT)
        fields.append((tag, start, position))
    return fields


def _features(data: memoryview, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Where each Feature message of an Example lies, by its name; of a repeated name the last counts."""
    features: dict[bytes, tuple[int, int]] = {}
    for tag, a, b in _fields(data, start, end):
        if tag != _MESSAGE_1:
            continue
        for entry, c, d in _fields(data, a, b):
            if entry != _MESSAGE_1:
                continue
            name, value = b"", (d, d)
            for part, e, f in _fields(data, c, d):
                if part == _MESSAGE_1:
                    name = bytes(data[e:f])
                elif part == _MESSAGE_2:
                    value = (e, f)
            features[name] = value
    return features


def _values(
    data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes, kind: int
) -> list[tuple[int, int, int]]:
    """The fields of a feature's list, which must be of `kind`."""
    if name not in features:
        has = ", ".join(sorted(key.decode(errors="replace") for key in features)) or "no features"
        raise _ExampleError(f"it has no feature {name.decode()!r}. It has: {has}")
    found = 0
    values: list[tuple[int, int, int]] = []
    for tag, start, end in _fields(data, *features[name]):
        if tag in _KINDS:
            if tag != found:  # a oneof: another kind replaces what came before, the same kind adds to it
                found, values = tag, []
            values += _fields(data, start, end)
    if found and found != kind:
        raise _ExampleError(f"feature {name.decode()!r} holds {_KINDS[found]}, not {_KINDS[kind]}")
    return values


def _one_bytes(data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes) -> tuple[int, int]:
    values = [(start, end) for tag, start, end in _values(data, features, name, _BYTES) if tag == _MESSAGE_1]
    if len(values) != 1:
        raise _ExampleError(f"feature {name.decode()!r} holds {len(values)} values, not one")
    return values[0]


def _one_int64(data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes) -> int:
    numbers = []
    for tag, start, end in _values(data, features, name, _INT64):
        if tag == _VARINT_1:
            numbers.append(_varint(data, start)[0])
        elif tag == _MESSAGE_1:  # packed
            while start < end:
                number, start = _varint(data, start)
                numbers.append(number)
            if start > end:
                raise _ExampleError(_RUNS_OUT)
    if len(numbers) != 1:
        raise _ExampleError(f"feature {name.decode()!r} holds {len(numbers)} values, not one")
    return numbers[0] - (1 << 64) if numbers[0] >> 63 else numbers[0]


def _put_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _put(field: int, data: bytes) -> bytes:
    return _put_varint(field << 3 | 2) + _put_varint(len(data)) + data


def _bytes_feature(data: bytes) -> bytes:
    return _put(1, _put(1, data))


def _int64_feature(value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 63:
        raise GuieError(f"label {value} does not fit into 64 bits")
    return _put(3, _put(1, _put_varint(value & 0xFFFFFFFFFFFFFFFF)))


def _example(features: dict[bytes, bytes]) -> bytes:
    entries = (_put(1, _put(1, name) + _put(2, features[name])) for name in sorted(features))
    return _put(1, b"".join(entries))


# --- names of shards


def _order(path: Path) -> tuple[str, int, str]:
    match = _NAME.match(path.name)
    return (match["set"], int(match["shard"]), path.name) if match else (path.name, 0, path.name)


def _gaps(paths: list[Path]) -> list[str]:
    numbers: dict[str, list[int]] = {}
    for path in paths:
        if match := _NAME.match(path.name):
            numbers.setdefault(match["set"], []).append(int(match["shard"]))
    problems = []
    for name, there in sorted(numbers.items()):
        missing = sorted(set(range(max(there))) - set(there))
        double = sorted({number for number in there if there.count(number) > 1})
        problems += [f"{name}-{number:02d}-*.tfrec is missing" for number in missing]
        problems += [f"{name}-{number:02d}-*.tfrec is there more than once" for number in double]
    return problems


def _miscounted(path: Path) -> list[str]:
    promised = images_in_name(path)
    if promised is None:
        return []
    try:
        there = count(path)
    except GuieError as error:
        return [str(error)]
    return [] if there == promised else [f"{path}: {there} records; its name says {promised}"]
