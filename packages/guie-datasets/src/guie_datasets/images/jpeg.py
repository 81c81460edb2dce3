"""What a JPEG's header says, read without a decoder, for the headers that are in order; others are Pillow's.

ITU-T T.81 (markers), CIPA DC-008 (EXIF).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive: what libjpeg decodes
_SKIPPED = frozenset((0xC4, 0xCC, 0xDD, 0xFE))  # Huffman and arithmetic tables, restart interval, comment
_ORIENTATION, _X_RESOLUTION, _RESOLUTION_UNIT = 0x0112, 0x011A, 0x0128
_SHORT, _RATIONAL = 3, 5
_TYPE_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)  # bytes of a value of each TIFF type
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)([0-9])')


class _Odd(Exception):  # noqa: N818  no error: somebody else is asked
    """A header that is left to Pillow."""


class Header(NamedTuple):
    """What a header says: the size as stored, EXIF orientation (1 if there is none), and the number of components."""

    width: int
    height: int
    orientation: int
    components: int


def header(data: bytes) -> Header | None:
    """The header exactly as Pillow reads it; None: ask Pillow.

    Given only where Pillow would open the file as a plain JPEG without a complaint. Whatever is out of the ordinary
    (damage, bytes between segments, several EXIF blocks, multi-picture files, Photoshop's own blocks, lossless and
    arithmetic frames, 12 bits) is None, so that there is one judge of what is an image, and one wording.
    """
    try:
        return _header(data)
    except (_Odd, struct.error, IndexError):
        return None


def _header(data: bytes) -> Header:
    width = height = components = 0
    orientation: int | None = None
    resolution = False
    exif = xmp = b""
    for marker, start, stop in _segments(data):
        if marker in _FRAMES:
            bits, high, wide, layers = struct.unpack_from(">BHHB", data, start)
            if width or bits != 8 or layers not in (1, 3, 4) or stop - start != 6 + 3 * layers or not high * wide:
                raise _Odd
            width, height, components = wide, high, layers
        elif marker == 0xDB:
            _check_tables(data, start, stop)
        elif marker == 0xE0 and data.startswith(b"JFIF", start, stop):
            if stop - start < 12:
                raise _Odd
            resolution |= data[start + 7] in (1, 2)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start, stop):
            if exif:
                raise _Odd
            exif = data[start + 6 : stop]
            if not exif or exif.startswith(b"Exif\0\0"):
                raise _Odd
        elif marker == 0xE1 and data.startswith(_XMP, start, stop):
            xmp = data[start + len(_XMP) : stop]
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", start, stop):
            if stop - start < 14:
                raise _Odd
        elif (marker == 0xE2 and data.startswith(b"MPF\0", start, stop)) or (
            marker == 0xED and data.startswith(b"Photoshop 3.0\0", start, stop)
        ):
            raise _Odd
        elif marker == 0xEE and data.startswith(b"Adobe", start, stop):
            if stop - start < 7:
                raise _Odd
        elif not (marker in _SKIPPED or 0xE0 <= marker <= 0xEF):
            raise _Odd
    if not width:
        raise _Odd
    if exif:
        orientation = _orientation(exif, resolution)
    if orientation is None:
        match = _XMP_ORIENTATION.search(xmp)
        orientation = int(match[2]) if match else 1
    return Header(width, height, orientation, components)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment's content, up to the first scan, whose own header must be whole."""
    if not data.startswith(b"\xff\xd8\xff"):
        raise _Odd
    at = 2
    while True:
        if data[at] != 0xFF:
            raise _Odd
        while (marker := data[at + 1]) == 0xFF:  # padding
            at += 1
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        start, at = at + 4, at + 2 + length
        if length < 2 or at > len(data):
            raise _Odd
        if marker == 0xDA:
            return
        yield marker, start, at


def _check_tables(data: bytes, start: int, stop: int) -> None:
    """Raises _Odd for quantization tables that aren't whole."""
    while start < stop:
        start += 129 if data[start] >> 4 else 65
    if start > stop:
        raise _Odd


def _orientation(exif: bytes, resolution: bool) -> int | None:
    """The orientation that the first directory of a TIFF structure names, if it does.

    resolution: whether the file has told it before; where it has not, Pillow looks for it here, and may stumble.
    """
    if exif.startswith(b"II*\0"):
        order = "<"
    elif exif.startswith(b"MM\0*"):
        order = ">"
    else:
        raise _Odd
    (at,) = struct.unpack_from(order + "I", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, at)
    end = at + 2 + 12 * count
    if end + 4 > len(exif):
        raise _Odd
    orientation, seen, outside = None, set(), 0
    for tag, kind, values, value in struct.iter_unpack(order + "HHI4s", exif[at + 2 : end]):
        if not 1 <= kind <= 12 or values == 0 or tag in seen:
            raise _Odd
        seen.add(tag)
        size = values * _TYPE_SIZES[kind]
        if size > 4:
            (offset,) = struct.unpack(order + "I", value)
            outside += size
            if offset + size > len(exif) or outside > len(exif):
                raise _Odd
        if tag == _ORIENTATION:
            if kind != _SHORT or values != 1:
                raise _Odd
            (orientation,) = struct.unpack(order + "H", value[:2])
        elif not resolution and (
            (tag == _X_RESOLUTION and (kind != _RATIONAL or values != 1))
            or (tag == _RESOLUTION_UNIT and (kind != _SHORT or values != 1))
        ):
            raise _Odd
    return orientation
