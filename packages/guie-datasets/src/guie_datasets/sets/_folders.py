"""Listing the folders of image files that a named set is made of."""

from __future__ import annotations

import os
from pathlib import Path

from guie_core import GuieError

from ..folders import IMAGE_SUFFIXES
from ..places import is_text, printable
from ..rows import LeftOut


def images_in(folder: Path) -> tuple[list[os.DirEntry[str]], list[LeftOut]]:
    """The images in a folder in the order of their names, by code point, and what else is there; not hidden files.

    Raises GuieError if it cannot be listed.
    """
    images, others = [], []
    try:
        with os.scandir(folder) as entries:
            there = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise GuieError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for entry in there:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():
            others.append(LeftOut(printable(entry.path), "a folder"))
        elif suffix not in IMAGE_SUFFIXES:
            others.append(LeftOut(printable(entry.path), f"not an image by its suffix {printable(suffix)!r}"))
        elif not is_text(entry.path):
            others.append(LeftOut(printable(entry.path), "its name is no UTF-8; rename it", bad=True))
        else:
            images.append(entry)
    return images, others
