"""What format an image is of, by its first bytes."""

from __future__ import annotations

from typing import NamedTuple

#: So many bytes tell the format.
LENGTH = 12


class Signature(NamedTuple):
    """A format that is read: its name, the suffix of its files, and how they start."""

    name: str
    suffix: str
    starts: tuple[bytes, ...]
    at_8: bytes = b""  # what else stands there


SIGNATURES = (
    Signature("JPEG", ".jpg", (b"\xff\xd8\xff",)),
    Signature("PNG", ".png", (b"\x89PNG",)),
    Signature("GIF", ".gif", (b"GIF8",)),
    Signature("WebP", ".webp", (b"RIFF",), b"WEBP"),
    Signature("BMP", ".bmp", (b"BM",)),
    Signature("TIFF", ".tif", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),  # those with a plus are BigTIFFs
    Signature("JPEG 2000", ".jp2", (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    Signature("PPM", ".ppm", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")),
)
_AVIF = Signature("AVIF", ".avif", ())  # it starts with a length


def signature(head: bytes) -> Signature | None:
    """The format of an image that starts with `head`, of `LENGTH` bytes at least; None for others."""
    if head[4:8] == b"ftyp":
        return _AVIF
    for each in SIGNATURES:
        if head.startswith(each.starts) and head[8:].startswith(each.at_8):
            return each
    return None
