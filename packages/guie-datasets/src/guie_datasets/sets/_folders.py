"""Listing the folders of image files that a named set is made of."""

from __future__ import annotations

import os
from pathlib import Path

from ..folders import IMAGE_SUFFIXES, entries_of
from ..places import is_text, printable
from ..rows import LeftOut


def images_in(folder: Path) -> tuple[list[os.DirEntry[str]], list[LeftOut]]:
    """The images in a folder in the order of their names, by code point, and what else is there; not hidden files.

    Raises GuieError if it cannot be listed.
    """
    images, others = [], []
    for entry in entries_of(folder):
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
