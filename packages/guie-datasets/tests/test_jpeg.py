"""Headers of JPEGs read by hand say what Pillow says, or nothing."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin, MpoImagePlugin

from guie_datasets.images import jpeg

WIDTH, HEIGHT = 37, 21


def photo(mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or photo()).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pillow(data: bytes) -> tuple[int, int, int, int] | None:
    """Size, orientation and number of components by Pillow; None if it can't open the file as a JPEG."""
    factory, accept = Image.OPEN["JPEG"]
    if accept is None or not accept(data[:16]):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = factory(io.BytesIO(data), "")
        except Exception:
            return None
        try:
            orientation = int(image.getexif().get(0x0112, 1))
        except Exception:
            orientation = 1
    return (*image.size, orientation, len(image.getbands()))


def agrees(data: bytes) -> bool:
    """Whether the header was read; if it was, Pillow must have read the same."""
    found = jpeg.header(data)
    assert found is None or found == pillow(data)
    return found is not None


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def after_start(*segments: bytes) -> bytes:
    """A good file with these ahead of its own segments."""
    data = saved()
    return data[:2] + b"".join(segments) + data[2:]


def tiff(order: str, *entries: tuple[int, int, int, bytes], tail: bytes = bytes(4)) -> bytes:
    """An EXIF block: entries are (tag, type, count, value or offset as it stands)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries) + tail


def short(order: str, tag: int, value: int) -> tuple[int, int, int, bytes]:
    return tag, 3, 1, struct.pack(order + "H", value) + bytes(2)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0, "quality": 100},
        {"restart_marker_rows": 1},
        {"dpi": (300, 300)},
        {"icc_profile": bytes(70_000)},  # in two segments
        {"comment": b"a comment"},
        {"xmp": b"<x:xmpmeta tiff:Orientation='6'>"},
    ],
)
def test_files_that_pillow_writes_are_read_without_it(mode: str, options: dict[str, Any]) -> None:
    data = saved(photo(mode), **options)
    assert jpeg.header(data) == pillow(data) == (WIDTH, HEIGHT, 1, len(mode))


@pytest.mark.parametrize("orientation", [0, *range(1, 10), 65535])
@pytest.mark.parametrize("order", "<>")
def test_exif_orientation_in_both_byte_orders(order: str, orientation: int) -> None:
    entries = [short(order, 0x0100, 5), short(order, 0x0112, orientation), short(order, 0x0128, 2)]
    data = after_start(segment(0xE1, b"Exif\0\0" + tiff(order, *entries)))
    assert jpeg.header(data) == pillow(data) == (WIDTH, HEIGHT, orientation, 3)


def test_orientation_of_the_image_is_not_that_of_its_thumbnail() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description that lies outside of its entry"
    exif.get_ifd(0x8769)[0x9286] = b"a comment by the user"
    whole = exif.tobytes()
    # a second directory, as cameras write it, with another orientation and a JPEG of its own
    order = "<" if whole[6:8] == b"II" else ">"
    (count,) = struct.unpack_from(order + "H", whole, 14)
    link = 6 + 8 + 2 + 12 * count
    second = struct.pack(order + "H", 1) + struct.pack(order + "HHI4s", *short(order, 0x0112, 3)) + bytes(4)
    block = whole[:link] + struct.pack(order + "I", len(whole) - 6) + whole[link + 4 :] + second + saved()
    data = after_start(segment(0xE1, block))
    assert jpeg.header(data) == pillow(data) == (WIDTH, HEIGHT, 6, 3)


@pytest.mark.parametrize("orientation", [b'tiff:Orientation="8"', b"tiff:Orientation>5<", b"Orientation=8"])
@pytest.mark.parametrize("exif", [b"", tiff("<", short("<", 0x0100, 5)), tiff(">", short(">", 0x0112, 0))])
def test_xmp_orientation_counts_where_exif_has_none(orientation: bytes, exif: bytes) -> None:
    segments = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + orientation)]
    segments += [segment(0xE1, b"Exif\0\0" + exif)] if exif else []
    assert agrees(after_start(*segments))
    assert agrees(after_start(*reversed(segments)))


def test_padding_between_segments() -> None:
    assert agrees(after_start(b"\xff" * 5 + segment(0xFE, b"comment"), b"\xff\xff"))


def mpo() -> bytes:
    buffer = io.BytesIO()
    photo().save(buffer, "MPO", save_all=True, append_images=[photo()])
    return buffer.getvalue()


def odd_files() -> dict[str, bytes]:
    good = saved()
    exif = b"Exif\0\0" + tiff("<", short("<", 0x0112, 6))
    start = good.index(b"\xff\xc0")
    return {
        "bytes between segments": after_start(segment(0xFE, b""), b"junk"),
        "an escaped byte": after_start(b"\xff\x00"),
        "two EXIF blocks": after_start(segment(0xE1, exif), segment(0xE1, exif)),
        "EXIF cut short": after_start(segment(0xE1, exif[:-8])),
        "EXIF without its header": after_start(segment(0xE1, exif[:12])),
        "EXIF twice introduced": after_start(segment(0xE1, b"Exif\0\0" + exif)),
        "no TIFF in EXIF": after_start(segment(0xE1, b"Exif\0\0" + b"XX" + exif[8:])),
        "orientation of another type": after_start(segment(0xE1, b"Exif\0\0" + tiff("<", (0x0112, 2, 2, b"6\0\0\0")))),
        "value outside": after_start(segment(0xE1, b"Exif\0\0" + tiff("<", (0x010E, 2, 99, b"\xff\0\0\0")))),
        "resolution of one byte": after_start(
            segment(0xE1, b"Exif\0\0" + tiff("<", (0x011A, 1, 1, b"\1\0\0\0"), short("<", 0x0128, 2)))
        ).replace(b"JFIF\0", b"NONE\0"),
        "Photoshop's block": after_start(segment(0xED, b"Photoshop 3.0\0008BIM\4\4")),
        "ICC cut short": after_start(segment(0xE2, b"ICC_PROFILE\0\1")),
        "Adobe cut short": after_start(segment(0xEE, b"Adobe\0")),
        "JFIF cut short": after_start(segment(0xE0, b"JFIF\0")),
        "table cut short": after_start(segment(0xDB, bytes(64))),
        "lossless": good[: start + 1] + b"\xc3" + good[start + 2 :],
        "12 bits": good[: start + 4] + b"\x0c" + good[start + 5 :],
        "two components": good[: start + 9] + b"\x02" + good[start + 10 :],
        "no height": good[: start + 5] + b"\0\0" + good[start + 7 :],
        "two frames": good[:start] + good[start : start + 19] + good[start:],
        "no scan": good[: good.index(b"\xff\xda")],
        "scan header cut": good[: good.index(b"\xff\xda") + 6],
        "an end ahead of the image": after_start(b"\xff\xd9"),
        "several pictures": mpo(),
        "empty": b"",
        "PNG": b"\x89PNG\r\n\x1a\n",
    }


@pytest.mark.parametrize("name", odd_files())
def test_what_is_out_of_the_ordinary_is_left_to_pillow(name: str) -> None:
    assert jpeg.header(odd_files()[name]) is None


def test_the_odd_files_are_what_they_claim() -> None:
    files = odd_files()
    factory = Image.OPEN["JPEG"][0]
    assert isinstance(factory(io.BytesIO(files["several pictures"]), ""), MpoImagePlugin.MpoImageFile)
    assert pillow(files["resolution of one byte"]) is None
    assert pillow(files["bytes between segments"]) == (WIDTH, HEIGHT, 1, 3)
    assert pillow(files["12 bits"]) is None


# --- whatever the bytes are

numbers = st.integers(0, 255)
marker = st.sampled_from([0xC0, 0xC2, 0xC4, 0xDB, 0xDA, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xD8, 0xD9, 0x01])
starts = st.sampled_from(
    [b"", b"JFIF\0\1\1", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"Adobe\0d", b"MPF\0"]
)
orders = st.sampled_from("<>")
tags = st.sampled_from([0x0100, 0x010F, 0x0112, 0x0112, 0x011A, 0x0128, 0x8769])
entry = st.tuples(tags, st.integers(0, 14), st.sampled_from([0, 1, 1, 1, 2, 9]), st.binary(min_size=4, max_size=4))


@st.composite
def exif_blocks(draw: Callable[[Any], Any]) -> bytes:
    order = draw(orders)
    entries = draw(st.lists(st.one_of(entry, st.builds(short, st.just(order), tags, st.integers(0, 9))), max_size=5))
    return segment(0xE1, b"Exif\0\0" + tiff(order, *entries, tail=draw(st.binary(max_size=40))))


@st.composite
def plain_exif_blocks(draw: Callable[[Any], Any]) -> bytes:
    """In order, with one value outside of its entry, which lies behind the directory."""
    order = draw(orders)
    chosen = draw(st.lists(tags.filter(lambda tag: tag != 0x011A), max_size=4, unique=True))
    entries = [short(order, tag, draw(st.integers(0, 9))) for tag in chosen]
    at = 8 + 2 + 12 * (len(entries) + 1) + 4
    entries.append((0x011A, 5, 1, struct.pack(order + "I", at)))
    ratio = struct.pack(order + "II", draw(st.integers(0, 300)), draw(st.integers(0, 2)))
    return segment(0xE1, b"Exif\0\0" + tiff(order, *entries, tail=bytes(4) + ratio))


any_segment = st.one_of(
    st.builds(segment, marker, st.builds(bytes.__add__, starts, st.binary(max_size=80))),
    exif_blocks(),
    plain_exif_blocks(),
    st.just(b"\xff"),
    st.binary(max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(any_segment, max_size=3), st.booleans())
def test_pillow_agrees_on_any_segments(segments: list[bytes], jfif: bool) -> None:
    data = after_start(*segments)
    agrees(data if jfif else data.replace(b"JFIF\0", b"NONE\0"))


@settings(max_examples=200, deadline=None)
@given(plain_exif_blocks(), st.booleans())
def test_headers_in_order_are_not_left_to_pillow(block: bytes, jfif: bool) -> None:
    data = after_start(block)
    assert agrees(data if jfif else data.replace(b"JFIF\0", b"NONE\0"))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 700), numbers, st.integers(0, 700), st.sampled_from([0, 1, 4]))
@example(2, 0xFF, 700, 0)
def test_pillow_agrees_on_damaged_files(place: int, value: int, cut: int, remove: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "the maker"
    data = bytearray(saved(exif=exif))
    data[place : place + 1 + remove] = bytes([value])
    agrees(bytes(data))
    agrees(bytes(data[:cut]))


def test_pillow_knows_its_own_class() -> None:
    assert issubclass(MpoImagePlugin.MpoImageFile, JpegImagePlugin.JpegImageFile)  # scaled decoding relies on it
