"""Images small enough for a page or a contact sheet."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDES = (96, 80, 64, 48)  # pixels; the first with which all pictures fit the budget is taken
QUALITY = 86


def encode(
    rows: Sequence[int], image: Callable[[int], NDArray[np.uint8]], budget: int
) -> dict[int, tuple[str, int, int]]:
    """Row -> (data URI, width, height) of its image, small enough that all together stay below `budget` characters.

    Args:
        rows: each may be shown several times; what counts against the budget is each mention.
        image: gives uint8 [3, H, W].
        budget: in characters.
    """
    pictures = {row: picture(image(row), 2 * SIDES[0]) for row in dict.fromkeys(rows)}
    encoded: dict[int, tuple[str, int, int]] = {}
    for side in SIDES:
        encoded = {row: _data_uri(each, side) for row, each in pictures.items()}
        if sum(len(encoded[row][0]) for row in rows) <= budget:
            break
    return encoded


def picture(values: NDArray[np.uint8], side: int) -> Image.Image:
    """The image uint8 [3, H, W], its longer side at most `side` pixels: large photos need not stay in memory."""
    found = Image.fromarray(np.ascontiguousarray(np.asarray(values, np.uint8).transpose(1, 2, 0)))
    found.thumbnail((side, side), Image.Resampling.BOX)
    return found


def signed(command: str) -> Image.Exif:
    """EXIF that names the command that made a picture, so that the same command may replace it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = command
    return exif


def software(path: str | os.PathLike[str]) -> str:
    """What made a picture, as its EXIF says it; "" where it says nothing, or the file is no picture."""
    try:
        with Image.open(path) as picture:
            return str(picture.getexif().get(ExifTags.Base.Software, ""))
    except Exception:  # what Pillow raises on other files is anything
        return ""


def _data_uri(picture: Image.Image, side: int) -> tuple[str, int, int]:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    best: tuple[bytes, str] | None = None
    for kind, options in (("jpeg", {"quality": QUALITY, "optimize": True}), ("png", {"optimize": True})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **options)
        if best is None or len(buffer.getvalue()) < len(best[0]):
            best = buffer.getvalue(), kind
    assert best is not None
    return f"data:image/{best[1]};base64,{base64.b64encode(best[0]).decode()}", small.width, small.height
