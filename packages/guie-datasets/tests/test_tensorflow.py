"""TensorFlow's own decoding: its pixels, and its errors in words."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError
from guie_datasets import BadImage, decode
from guie_datasets.images.tensorflow import tensorflow_decode


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    y, x = np.mgrid[:37, :50]
    pixels = np.stack([5 * x, 6 * y, 120 + 60 * np.sin(x * y / 90)], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


JPEG = encoded("JPEG", subsampling=2)


@pytest.mark.parametrize("data", [JPEG, encoded("JPEG", "L"), encoded("PNG"), encoded("GIF")])
def test_pixels_are_those_of_the_original(data: bytes) -> None:
    import tensorflow as tf

    image = tensorflow_decode(data)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    # as the original decodes: through float32 and back
    wanted = tf.cast(tf.image.decode_jpeg(data, channels=3), tf.float32) / 255.0 * 255.0
    assert np.array_equal(image.transpose(1, 2, 0), wanted.numpy().astype(np.uint8))


def test_it_is_near_to_our_own_decoding() -> None:
    difference = np.abs(tensorflow_decode(JPEG).astype(int) - decode(JPEG))
    assert 0 < difference.max() <= 16
    assert difference.mean() < 1
    assert np.array_equal(tensorflow_decode(encoded("PNG")), decode(encoded("PNG")))
    assert np.array_equal(tensorflow_decode(encoded("WEBP", lossless=True)), decode(encoded("PNG")))


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("JPEG", exif=exif)
    assert tensorflow_decode(data).shape == (3, 37, 50)
    assert decode(data).shape == (3, 50, 37)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes"),
        (b"no image at all", "not an image"),
        (JPEG[:-200], "TensorFlow: jpeg::Uncompress failed. Invalid JPEG data or crop window"),
        (encoded("BMP"), "TensorFlow: Trying to decode BMP format using a wrong op"),
        (encoded("TIFF"), "TensorFlow: Unknown image file format"),
    ],
)
def test_bad_images(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        tensorflow_decode(data)


def test_images_over_the_limit_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guie_datasets.images.decoding.MAX_PIXELS", 1000)
    with pytest.raises(BadImage, match="50 x 37 is over the limit"):
        tensorflow_decode(JPEG)


def test_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(GuieError, match=r"pip install 'guie-datasets\[tensorflow\]'"):
        tensorflow_decode(JPEG)
