"""Images small enough for a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from guie_datasets.inspecting.pictures import encode


def test_images_are_scaled_to_fit_with_their_shape() -> None:
    photos = [np.ascontiguousarray(photo.transpose(2, 0, 1)) for photo in load_sample_images().images]  # 427 x 640
    tall = photos[0].transpose(0, 2, 1)
    uris = encode([0, 1, 2], [*photos, tall].__getitem__, 10**6)
    assert (uris[0][1:], uris[2][1:]) == ((96, 64), (64, 96))
    for row, (uri, width, height) in uris.items():
        decoded = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
        assert decoded.size == (width, height)
        whole = Image.fromarray(np.ascontiguousarray([*photos, tall][row].transpose(1, 2, 0)))
        expected = np.asarray(whole.resize(decoded.size, Image.Resampling.LANCZOS), float)
        assert np.abs(np.asarray(decoded, float) - expected).mean() < 6


def test_small_images_are_not_blown_up_and_drawings_stay_exact() -> None:
    drawing = np.zeros((3, 20, 30), np.uint8)
    drawing[0, 5:, :7] = 255
    uri, width, height = encode([0], lambda row: drawing, 10**6)[0]
    assert (width, height) == (30, 20)
    assert uri.startswith("data:image/png")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
    np.testing.assert_array_equal(found, drawing.transpose(1, 2, 0))


def test_the_budget_counts_every_mention_and_makes_images_smaller() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 100, 100)).astype(np.uint8)
    asked: list[int] = []

    def image(row: int) -> NDArray[np.uint8]:
        asked.append(row)
        return noise

    large = len(encode([0], image, 10**6)[0][0])
    small = encode([0, 1, 0, 0], image, 4 * large - 1)
    assert small[0][1] == 80
    assert asked == [0, 0, 1]  # an image that is shown often is read once
