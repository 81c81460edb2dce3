"""`tf.train.Example` in protocol buffers' wire format: where a feature's value lies, and examples to write."""

from __future__ import annotations

from guie_core import GuieError
from guie_core.wording import listing

MESSAGE_1, MESSAGE_2, _VARINT_1 = 1 << 3 | 2, 2 << 3 | 2, 1 << 3  # tags: field number << 3 | wire type
BYTES, _FLOATS, INT64 = 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2
_KINDS = {BYTES: "bytes", _FLOATS: "floats", INT64: "int64"}
_RUNS_OUT = "its data are no tf.train.Example: a field runs past the end"


class ExampleError(Exception):
    """What is wrong with a record's data."""


def find(data: memoryview, image: bytes, label: bytes) -> tuple[int, int, int]:
    """(start, end, label): where the one bytes value of feature `image` lies, and the one int64 of feature `label`.

    Raises ExampleError.
    """
    try:
        features = _features(data)
        return *_one_bytes(data, features, image), _one_int64(data, features, label)
    except IndexError:
        raise ExampleError(_RUNS_OUT) from None


def serialise(image: bytes, label: int, image_key: bytes, label_key: bytes) -> bytes:
    """An example of two features, as TensorFlow serialises it deterministically. Raises GuieError for a large label."""
    if not -(1 << 63) <= label < 1 << 63:
        raise GuieError(f"label {label} does not fit into 64 bits")
    values = {image_key: _put(1, _put(1, image)), label_key: _put(3, _put(1, _put_varint(label & (1 << 64) - 1)))}
    return _put(1, b"".join(_put(1, _put(1, name) + _put(2, values[name])) for name in sorted(values)))


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
            raise ExampleError("its data are no tf.train.Example: a number is longer than ten bytes")


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
            raise ExampleError(f"its data are no tf.train.Example: wire type {wire}")
        if position > end:
            raise ExampleError(_RUNS_OUT)
        fields.append((tag, start, position))
    return fields


def _features(data: memoryview) -> dict[bytes, tuple[int, int]]:
    """Where each Feature message of an Example lies, by its name; of a repeated name the last counts."""
    features: dict[bytes, tuple[int, int]] = {}
    for tag, a, b in _fields(data, 0, len(data)):
        if tag != MESSAGE_1:
            continue
        for entry, c, d in _fields(data, a, b):
            if entry != MESSAGE_1:
                continue
            name, value = b"", (d, d)
            for part, e, f in _fields(data, c, d):
                if part == MESSAGE_1:
                    name = bytes(data[e:f])
                elif part == MESSAGE_2:
                    value = (e, f)
            features[name] = value
    return features


def _values(
    data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes, kind: int
) -> list[tuple[int, int, int]]:
    """The fields of a feature's list, which must be of `kind`."""
    if name not in features:
        has = listing(key[:80].decode(errors="replace") for key in sorted(features)) if features else "no features"
        raise ExampleError(f"it has no feature {name.decode()!r}. It has: {has}")
    found = 0
    values: list[tuple[int, int, int]] = []
    for tag, start, end in _fields(data, *features[name]):
        if tag in _KINDS:
            if tag != found:  # a oneof: another kind replaces what came before, the same kind adds to it
                found, values = tag, []
            values += _fields(data, start, end)
    if found and found != kind:
        raise ExampleError(f"feature {name.decode()!r} holds {_KINDS[found]}, not {_KINDS[kind]}")
    return values


def _one_bytes(data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes) -> tuple[int, int]:
    values = [(start, end) for tag, start, end in _values(data, features, name, BYTES) if tag == MESSAGE_1]
    if len(values) != 1:
        raise ExampleError(f"feature {name.decode()!r} holds {len(values)} values, not one")
    return values[0]


def _one_int64(data: memoryview, features: dict[bytes, tuple[int, int]], name: bytes) -> int:
    numbers = []
    for tag, start, end in _values(data, features, name, INT64):
        if tag == _VARINT_1:
            numbers.append(_varint(data, start)[0])
        elif tag == MESSAGE_1:  # packed
            while start < end:
                number, start = _varint(data, start)
                numbers.append(number)
            if start > end:
                raise ExampleError(_RUNS_OUT)
    if len(numbers) != 1:
        raise ExampleError(f"feature {name.decode()!r} holds {len(numbers)} values, not one")
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
