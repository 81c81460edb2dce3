"""Decoding real files of every kind that collections hold, and refusing what is none."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from guie_core import UsageError
from guie_datasets import BadImage, decode, header_size
from guie_datasets.images import decoding
from guie_datasets.images.decoding import examine

WIDTH, HEIGHT = 41, 23


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture without symmetry, so that every orientation differs and JPEG stays close."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(np.stack([255 * x, 255 * y, 255 * (1 - x) * y], -1).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def check_shape(data: bytes, width: int, height: int) -> np.ndarray:
    """Everything that holds for any good image; returns the decoded one."""
    array = decode(data)
    assert array.dtype == np.uint8
    assert array.shape == (3, height, width)
    assert array.flags.writeable  # torch takes no others without a warning
    assert array.transpose(1, 2, 0).flags.c_contiguous  # what torch calls channels last, and resizes fastest
    assert header_size(data) == examine(data) == (width, height)
    return array


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
        ("WEBP", {"quality": 95}, 24),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 16),
        ("JPEG2000", {}, 0),
    ],
)
def test_formats(format: str, options: dict[str, Any], tolerance: int) -> None:
    data = saved(photo(), format, **options)
    assert distance(check_shape(data, WIDTH, HEIGHT), planes(photo())) <= tolerance


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format: str, orientation: int) -> None:
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    exif = Image.Exif()
    exif[0x0112] = orientation
    if format == "TIFF":
        data = saved(photo(), format, tiffinfo={0x0112: orientation})
    else:
        data = saved(photo(), format, exif=exif, **options)
    stored = photo()
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    turned = orientation >= 5
    array = check_shape(data, *((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)))
    assert distance(array, planes(upright)) <= 8
    # the corner of the picture that is stored first, by the definition of the tag
    top, left = {1: (1, 1), 2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}[orientation]
    first = array[:, 0 if top else -1, 0 if left else -1]
    assert np.abs(first.astype(int) - planes(photo())[:, 0, 0]).max() <= 8


def test_damaged_exif_is_no_damaged_image() -> None:
    data = saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        assert check_shape(data, WIDTH, HEIGHT).any()


def test_orientation_out_of_range_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert np.array_equal(check_shape(saved(photo(), "PNG", exif=exif), WIDTH, HEIGHT), planes(photo()))


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "CMYK"
    assert distance(check_shape(data, WIDTH, HEIGHT), planes(photo())) <= 16


def test_ycck_jpeg() -> None:
    """Adobe's transform 2: cyan, magenta and yellow stored as if they were red, green and blue, in YCbCr."""
    cyan, magenta, yellow, black = photo().convert("CMYK").split()
    stored = Image.merge("RGB", [cyan, magenta, yellow]).convert("YCbCr").split()
    # as the inks of a CMYK file, which Pillow inverts when it writes them; then the file is said to be YCCK
    inks = [Image.eval(plane, lambda value: 255 - value) for plane in stored]
    data = bytearray(saved(Image.merge("CMYK", [*inks, black]), "JPEG", quality=100))
    data[data.index(b"Adobe") + 11] = 2
    assert distance(check_shape(bytes(data), WIDTH, HEIGHT), planes(photo())) <= 16


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_gray_bilevel_and_palette(mode: str) -> None:
    image = photo().convert(mode)
    assert np.array_equal(check_shape(saved(image, "PNG"), WIDTH, HEIGHT), planes(image))


def over_white(rgba: Image.Image) -> np.ndarray:
    values = np.asarray(rgba).astype(float)
    alpha = values[..., 3:] / 255
    return np.round(values[..., :3] * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG")])
def test_alpha_is_blended_over_white(mode: str, format: str) -> None:
    image = photo()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    data = saved(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert distance(check_shape(data, WIDTH, HEIGHT), over_white(image.convert("RGBA"))) <= 1


def test_transparent_colours_become_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 100, 0])
    palette.putpixel((1, 0), 1)
    for format in ("PNG", "GIF"):
        array = check_shape(saved(palette, format, transparency=0), 2, 1)
        assert array[:, 0, 0].tolist() == [255, 255, 255]
        assert array[:, 0, 1].tolist() == [0, 100, 0]
    half = check_shape(saved(palette, "PNG", transparency=b"\x80\xff"), 2, 1)
    assert half[:, 0].T.tolist() == [[227, 127, 127], [0, 100, 0]]
    rgb = Image.new("RGB", (2, 1), (9, 9, 9))
    rgb.putpixel((0, 0), (1, 2, 3))
    assert check_shape(saved(rgb, "PNG", transparency=(1, 2, 3)), 2, 1)[:, 0].T.tolist() == [[255] * 3, [9] * 3]
    gray = Image.new("L", (2, 1), 9)
    gray.putpixel((0, 0), 7)
    assert check_shape(saved(gray, "PNG", transparency=7), 2, 1)[:, 0].T.tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_keep_the_upper_8(format: str) -> None:
    values = np.array([[0, 255, 256, 32767, 32768, 65535]], np.uint16)
    array = check_shape(saved(Image.fromarray(values), format), 6, 1)
    assert array[:, 0].tolist() == [[0, 0, 1, 127, 128, 255]] * 3


def test_big_endian_16_bit_tiff() -> None:
    data = saved(Image.new("I;16B", (3, 2), 0x4142), "TIFF")
    assert np.unique(check_shape(data, 3, 2)).tolist() == [0x41]


def tiff(width: int, height: int, bits: int, pixels: bytes, photometric: int = 1) -> bytes:
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, height)]
    tags.append((279, len(pixels)))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def test_12_bit_tiff_keeps_the_upper_8() -> None:
    # 12 bits a pixel, packed: 0xfff, 0x800
    assert check_shape(tiff(2, 1, 12, b"\xff\xf8\x00"), 2, 1)[0, 0].tolist() == [0xFF, 0x80]


@pytest.mark.parametrize(("bits", "white"), [(8, b"\0"), (16, b"\0\0")])
def test_tiffs_whose_white_is_zero_are_no_negatives(bits: int, white: bytes) -> None:
    data = tiff(3, 1, bits, white + b"\xff" * len(white) + (0x41 << bits - 8).to_bytes(len(white), "little"), 0)
    assert check_shape(data, 3, 1)[:, 0].tolist() == [[255, 0, 255 - 0x41]] * 3


def png_of_16_bits(colour: int, pixels: bytes, *others: tuple[bytes, bytes], width: int = 2) -> bytes:
    """One row of a PNG, made by hand; colour: 0 gray, 2 RGB, 4 gray with alpha, 6 RGB with alpha."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, 1, 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *others, (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_16_bit_gray_with_a_transparent_value() -> None:
    data = png_of_16_bits(0, struct.pack(">HH", 0x1234, 0x5678), (b"tRNS", b"\x12\x34"))
    assert check_shape(data, 2, 1)[0, 0].tolist() == [255, 0x56]


def test_16_bit_colour_and_alpha_keep_the_upper_8() -> None:
    data = png_of_16_bits(2, struct.pack(">6H", 0x12FF, 0x3400, 0x5680, 0xFFFF, 0x00FF, 0x0100))
    assert check_shape(data, 2, 1)[:, 0].T.tolist() == [[0x12, 0x34, 0x56], [0xFF, 0, 1]]
    data = png_of_16_bits(4, struct.pack(">4H", 0x4000, 0xFFFF, 0x4000, 0x00FF))
    assert check_shape(data, 2, 1)[:, 0].T.tolist() == [[0x40] * 3, [0xFF] * 3]
    data = png_of_16_bits(6, struct.pack(">8H", 0x1000, 0x2000, 0x3000, 0xFFFF, 0, 0, 0, 0))
    assert check_shape(data, 2, 1)[:, 0].T.tolist() == [[0x10, 0x20, 0x30], [0xFF] * 3]


@pytest.mark.parametrize(("mode", "message"), [("F", "floating-point pixels"), ("I", "32-bit pixels")])
def test_pixels_of_unknown_range_are_refused(mode: str, message: str) -> None:
    data = saved(Image.new(mode, (4, 4), 7), "TIFF")
    for read in (decode, examine):
        with pytest.raises(BadImage, match=message):
            read(data)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert np.array_equal(check_shape(data, 8, 6), planes(frames[0]))


# --- plain JPEGs by libjpeg-turbo itself


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": "4:2:2"}, {"progressive": True}, {"keep_rgb": True}]
)
def test_pixels_are_those_of_pillow(options: dict[str, Any]) -> None:
    for width, height in ((200, 150), (41, 23), (1, 1), (17, 300)):
        data = saved(noise(width, height), "JPEG", quality=80, **options)
        for scale, target in ((1, None), (2, 50), (4, 25), (8, 1)):
            fits = decoding._scale(width, height, target)
            with Image.open(io.BytesIO(data)) as image:
                image.draft(None, (width // fits, height // fits))
                expected = np.asarray(image)
            assert (fits == scale) or (width, height) != (200, 150)
            assert np.array_equal(decoding._plain_jpeg(data, target), expected)


def test_what_is_not_plain_is_left_to_pillow() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(noise(), "JPEG")
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    for other in (
        saved(noise().convert("L"), "JPEG"),
        saved(noise().convert("CMYK"), "JPEG"),
        saved(noise(), "JPEG", exif=exif),
        saved(noise(), "PNG"),
        data[: len(data) // 2],
        bombs()["JPEG"],
    ):
        assert decoding._plain_jpeg(other, None) is None
    # with a warning of its decoder's: left to Pillow, which tolerates it
    assert decoding._plain_jpeg(bytes(damaged), None) is None
    assert decode(bytes(damaged)).shape == (3, 150, 200)


# --- scaled decoding


@pytest.mark.parametrize(
    ("size", "target", "scaled"),
    [
        ((1024, 768), 224, (512, 384)),
        ((768, 1024), 224, (384, 512)),
        ((1000, 673), 224, (500, 337)),  # an odd side is rounded up
        ((1000, 670), 224, (1000, 670)),  # 335 would be under 336
        ((1024, 768), 128, (256, 192)),
        ((1024, 768), 64, (128, 96)),
        ((1024, 768), 8, (128, 96)),  # an eighth is the smallest
        ((1024, 100), 64, (1024, 100)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_scaled_decoding_leaves_one_and_a_half_times_the_target(
    size: tuple[int, int], target: int, scaled: tuple[int, int], mode: str
) -> None:
    data = saved(photo(*size).convert(mode), "JPEG", quality=95)
    array = decode(data, "scaled", target)
    assert array.shape == (3, scaled[1], scaled[0])
    assert array.flags.writeable
    assert distance(array, planes(photo(*size).resize(scaled, Image.Resampling.BOX))) <= (16 if mode != "L" else 255)
    assert header_size(data) == size  # of the image as it is, which manifests hold


@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_decoding_turns_the_image_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(320, 192), "JPEG", quality=95, exif=exif)
    full, scaled = decode(data), decode(data, "scaled", 64)
    assert [side // 2 for side in full.shape[1:]] == list(scaled.shape[1:])
    assert distance(scaled, planes(Image.fromarray(full.transpose(1, 2, 0)).reduce(2))) <= 8


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_decoded_in_full(format: str) -> None:
    data = saved(photo(320, 192), format)
    assert np.array_equal(decode(data, "scaled", 16), decode(data))


def test_methods_that_are_none() -> None:
    data = saved(photo(), "JPEG")
    with pytest.raises(UsageError, match="no decoding method 'half'; it is one of full, scaled, tensorflow"):
        decode(data, "half")  # type: ignore[arg-type]
    for target in (None, 0):
        with pytest.raises(UsageError, match="needs a target"):
            decode(data, "scaled", target)


@pytest.mark.parametrize("part", [0.99, 0.5])
def test_scaled_decoding_refuses_truncated_images(part: float) -> None:
    data = saved(noise(640, 480), "JPEG")
    assert reason(lambda data: decode(data, "scaled", 64), data[: int(len(data) * part)]).startswith("JPEG")


# --- what is refused


def noise(width: int = 200, height: int = 150) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reason(read: Callable[[bytes], object], data: bytes) -> str:
    """Why an image is refused, "" if it is not; any other error fails the test."""
    try:
        read(data)
    except BadImage as error:
        return error.reason
    return ""


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM"])
@pytest.mark.parametrize("part", [0.99, 0.9, 0.5, 0.1])
def test_truncated_images_are_refused_by_decoding_and_by_examining(format: str, part: float) -> None:
    data = saved(noise(), format)
    cut = data[: int(len(data) * part)]
    assert reason(decode, cut).startswith(format)
    assert reason(examine, cut).startswith(format)
    assert reason(decode, data) == reason(examine, data) == ""


def test_bytes_after_the_end_are_harmless() -> None:
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        check_shape(saved(photo(), format) + b"\0\0\r\n", WIDTH, HEIGHT)
    check_shape(saved(photo(), "JPEG") + b"a camera's own notes" * 100, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty: 0 bytes"),
        (b"<!DOCTYPE html><html>Not found", "not an image: 30 bytes that start with b'<!DOCTYPE"),
        (b"\xff\xd8\xff", "JPEG: "),
        (b"\x89PNG\r\n\x1a\n", "PNG: "),
        (b"GIF89a", "GIF: "),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WEBP: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"\0" * 500, "not an image"),
    ],
)
def test_no_images(data: bytes, message: str) -> None:
    for read in (decode, header_size, examine):
        with pytest.raises(BadImage, match=message):
            read(data)


def bombs() -> dict[str, bytes]:
    """Small files whose headers claim 600 megapixels (WebP: 268, the most of its plain form)."""
    wide, high = 30_000, 20_000
    small = Image.new("RGB", (8, 8))
    png = bytearray(saved(small, "PNG"))
    png[16:24] = struct.pack(">II", wide, high)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(saved(small, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", high, wide)
    webp = bytearray(saved(small, "WEBP", lossless=True))
    at = webp.index(b"VP8L") + 9
    webp[at : at + 4] = struct.pack("<I", struct.unpack_from("<I", webp, at)[0] & 0xF0000000 | 0x0FFFFFFF - 1)
    lossy = bytearray(saved(small, "WEBP"))
    at = lossy.index(b"\x9d\x01\x2a") + 3
    lossy[at : at + 4] = struct.pack("<HH", 16_383, 16_383)
    gif = bytearray(saved(small, "GIF"))
    gif[6:10] = struct.pack("<HH", wide, high)
    at = gif.index(b",", 13)
    gif[at + 5 : at + 9] = struct.pack("<HH", wide, high)
    bmp = bytearray(saved(small, "BMP"))
    bmp[18:26] = struct.pack("<ii", wide, high)
    jp2 = bytearray(saved(small, "JPEG2000"))
    at = jp2.index(b"ihdr") + 4
    jp2[at : at + 8] = struct.pack(">II", high, wide)
    return {
        "PNG": bytes(png),
        "JPEG": bytes(jpeg),
        "WebP": bytes(webp),
        "lossy WebP": bytes(lossy),
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "TIFF": tiff(wide, high, 8, bytes(64)),
        "JPEG 2000": bytes(jp2),
        "PPM": b"P6 30000 20000 255\n" + bytes(64),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_their_headers(name: str) -> None:
    for read in (decode, header_size, examine, lambda data: decode(data, "scaled", 64)):
        assert "limit of 1" in reason(read, bombs()[name])  # 100 megapixels; for WebP Pillow has one of its own


def test_bombs_cost_no_memory() -> None:
    program = (
        "import pickle, resource, sys\n"
        "from guie_datasets.images.decoding import BadImage, decode, examine\n"
        "bombs = pickle.load(sys.stdin.buffer)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for data in bombs:\n"
        "    for read in (examine, decode):\n"
        "        try:\n            read(data)\n"
        "        except BadImage:\n            pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(list(bombs().values())),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert int(done.stdout) < 40_000, done.stderr.decode()  # kilobytes; a decoded one takes 1.8 GB


def test_pixel_limit_is_ours_and_comes_before_decoding() -> None:
    data = bytearray(saved(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 30_000, 20_000)  # 600 megapixels
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (decode, header_size, examine):
            with pytest.raises(BadImage, match="30000 x 20000 is over the limit of 100 megapixels"):
                read(bytes(data))
        side = 9_700  # 94 megapixels: Pillow alone would warn
        assert header_size(saved(Image.new("1", (side, side)), "PNG")) == (side, side)
    assert decoding.MAX_PIXELS == 100_000_000


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_whole_images_over_the_limit_are_not_decoded(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo(), format)
    monkeypatch.setattr(decoding, "MAX_PIXELS", WIDTH * HEIGHT)
    assert decode(data).shape == (3, HEIGHT, WIDTH)
    monkeypatch.setattr(decoding, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    for read in (decode, header_size, examine, lambda data: decode(data, "scaled", 4)):
        with pytest.raises(BadImage, match=f"{WIDTH} x {HEIGHT} is over the limit"):
            read(data)


def test_a_damaged_chunk_of_a_png_is_found_by_examining() -> None:
    data = bytearray(saved(noise(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImage, match="PNG: "):
        examine(bytes(data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_random_damage_never_ends_in_another_error(format: str) -> None:
    whole = saved(photo(), format)
    generator = random.Random(format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(generator.randrange(1, 5)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            reasons = [reason(read, bytes(data)) for read in (header_size, examine, decode)]
            if reasons[0]:  # a header that cannot be read
                assert all(reasons)
