"""Images: any bytes are decoded or a BadImage, and headers of JPEGs say what Pillow says, or nothing.

    python fuzz/fuzz_decoding.py fuzz/seeds/decoding -max_total_time=600 -rss_limit_mb=4096

`--seeds FOLDER` writes the seeds anew. Images over a megapixel are examined by their headers alone, for speed.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import atheris

with atheris.instrument_imports(
    include=["guie_datasets.images.decoding", "guie_datasets.images.jpeg", "PIL.JpegImagePlugin"]
):
    import numpy as np
    from PIL import Image

    from guie_datasets.images import decoding, jpeg
    from guie_datasets.images.decoding import BadImage, decode, examine, header_size

T = TypeVar("T")
LARGEST = 1 << 20
warnings.simplefilter("ignore")


def one_input(data: bytes) -> None:
    found = jpeg.header(data)
    if found is not None:
        image = decoding._open(data)
        assert image.format == "JPEG"
        assert (*image.size, decoding._orientation(image), len(image.getbands())) == found
    size = unless_bad(header_size, data)
    if size is None:
        assert unless_bad(examine, data) is None
        assert unless_bad(decode, data) is None
        return
    width, height = size
    if width * height > LARGEST:
        return
    examined, array = unless_bad(examine, data), unless_bad(decode, data)
    assert examined in (None, size)
    if array is not None:
        assert array.shape == (3, height, width)
        assert array.dtype == np.uint8
        assert array.flags.writeable
        scaled = decode(data, "scaled", 16)
        assert min(scaled.shape[1:]) >= min(24, height, width)


def unless_bad(read: Callable[[bytes], T], data: bytes) -> T | None:
    """What `read` gives, None if it finds the image bad; any other error is a finding."""
    try:
        return read(data)
    except BadImage as error:
        if not error.reason:
            raise
        return None


def write_seeds(folder: Path) -> None:
    """Small images of every format and oddity, as Pillow writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    photo = Image.fromarray(values).resize((32, 24))

    def save(name: str, image: Image.Image, format: str, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        (folder / name).write_bytes(buffer.getvalue())

    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker of cameras"
    save("jpeg", photo, "JPEG", quality=30)
    save("jpeg-exif", photo, "JPEG", quality=30, exif=exif)
    save("jpeg-progressive", photo, "JPEG", quality=30, progressive=True, restart_marker_rows=1)
    save("jpeg-cmyk", photo.convert("CMYK"), "JPEG", quality=30, dpi=(72, 72))
    save("jpeg-gray-xmp", photo.convert("L"), "JPEG", quality=30, xmp=b'<x tiff:Orientation="5">')
    save("mpo", photo, "MPO", save_all=True, append_images=[photo])
    save("png-palette", photo.quantize(8), "PNG", transparency=b"\x80\xff")
    save("png-gray-alpha", photo.convert("LA"), "PNG", exif=exif)
    save("png-16", Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999), "PNG")
    save("apng", photo, "PNG", save_all=True, append_images=[photo.rotate(90)])
    save("webp", photo, "WEBP", exif=exif)
    save("webp-animated", photo, "WEBP", save_all=True, append_images=[photo.rotate(180)], lossless=True)
    save("gif", photo.quantize(4), "GIF", save_all=True, append_images=[photo.rotate(180).quantize(4)])
    save("bmp", photo.quantize(16), "BMP")
    save("tiff-lzw", photo, "TIFF", compression="tiff_lzw")
    save("tiff-bilevel", photo.convert("1"), "TIFF", compression="group4")
    save("ppm", photo.resize((4, 4)), "PPM")
    save("jpeg2000", photo, "JPEG2000")
    save("avif", photo, "AVIF", quality=40)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
