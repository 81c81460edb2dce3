"""Made-up photos, for measuring: what it takes to decode one depends on its size and how much there is to see."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, QUALITY = 1024, 768, 88


def photo(number: int) -> bytes:
    """A JPEG of 1024 x 768, quality 88: noise whose amplitude falls with the frequency as a photo's does, and a few
    soft-edged things in colour."""
    random = np.random.default_rng(number)
    down, across = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    frequency = np.maximum(np.hypot(down, across), 1 / WIDTH)

    def noise(power: float) -> NDArray[np.float64]:
        spectrum = random.standard_normal((2, HEIGHT, WIDTH // 2 + 1)) * frequency**-power
        values = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], (HEIGHT, WIDTH))
        noise: NDArray[np.float64] = (values - values.mean()) / values.std()
        return noise

    light, warmth = noise(random.uniform(1.2, 1.5)), noise(1.8)
    colour = random.uniform(70, 180, 3)
    ground = colour + 40 * light[..., None] + 12 * warmth[..., None] * np.array([1, 0, -1])
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    things = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(things)
    for _ in range(random.integers(3, 9)):
        x, y = random.integers(0, WIDTH), random.integers(0, HEIGHT)
        w, h = random.integers(60, 420, 2)
        shapes: list[Callable[..., None]] = [draw.ellipse, draw.rectangle, draw.rounded_rectangle]
        shape = shapes[random.integers(len(shapes))]
        shape([x - w // 2, y - h // 2, x + w // 2, y + h // 2], fill=(*random.integers(0, 256, 3).tolist(), 200))
    image.paste(things, mask=things.filter(ImageFilter.GaussianBlur(1)).getchannel("A"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
