"""Formats by their first bytes, of files that Pillow writes; all that is decoded has a name and a suffix."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from guie_datasets import decode
from guie_datasets.images.decoding import FORMATS
from guie_datasets.images.signatures import LENGTH, signature

WRITTEN: list[tuple[str, dict[str, Any], str]] = [
    ("JPEG", {}, "JPEG"),
    ("PNG", {}, "PNG"),
    ("WEBP", {}, "WebP"),
    ("GIF", {}, "GIF"),
    ("BMP", {}, "BMP"),
    ("TIFF", {}, "TIFF"),
    ("TIFF", {"big_tiff": True}, "TIFF"),
    ("JPEG2000", {}, "JPEG 2000"),
    ("JPEG2000", {"no_jp2": True}, "JPEG 2000"),
    ("PPM", {}, "PPM"),
    ("AVIF", {}, "AVIF"),
]


@pytest.mark.parametrize(("format", "options", "name"), WRITTEN)
def test_formats(format: str, options: dict[str, Any], name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, format, **options)
    data = buffer.getvalue()
    assert decode(data).shape == (3, 20, 20)
    found = signature(data[:LENGTH])
    assert found
    assert found.name == name
    assert Image.registered_extensions()[found.suffix] == format


def test_big_endian_tiffs() -> None:
    buffer = io.BytesIO()
    Image.new("I;16B", (2, 2)).save(buffer, "TIFF")
    for data in (buffer.getvalue(), b"MM\0+\0\x08\0\0"):
        found = signature(data)
        assert found
        assert found.suffix == ".tif"


def test_every_format_that_is_read_is_tried() -> None:
    assert {format for format, _, _ in WRITTEN} == set(FORMATS)


@pytest.mark.parametrize("data", [b"", b"RIFF\x10\0\0\0WAVEfmt ", b"<html>", b"P7\n", b"\xff\xd8"])
def test_others(data: bytes) -> None:
    assert signature(data) is None
