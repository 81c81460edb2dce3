"""A folder of class folders as a data set: the simplest form of one's own images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guie_core import GuieError

from .rows import Dataset, ImageRef, LeftOut, Row

#: Files with other suffixes are not taken for images; they are listed as left out.
_SUFFIXES = "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff jp2 ppm pgm pbm pnm avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


class ClassFolders(Dataset):
    """Images as `root/<class>/<image>`: each folder is a class, and its images show the same thing.

    Labels number the class folders in the order of their names, images come in the order of theirs (by code point).
    source: default the root's name. category: one for all images, or a mapping from class names. Hidden files and
    folders are ignored; everything else that is no image is listed by `left_out()`.

    `rows()` raises GuieError: no such folder, no class folders, no images.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, source: str = "", category: str | Mapping[str, str] = ""
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self.source = source or self.root.name
        self.category = category
        self._left_out: list[LeftOut] = []

    def class_names(self) -> list[str]:
        """The name of each label."""
        if not self.root.is_dir():
            what = "not a folder" if self.root.exists() else "no such folder"
            raise GuieError(f"{self.root}: {what}. Give the folder that holds one folder of images for each class")
        return [entry.name for entry in _entries(self.root) if entry.is_dir()]

    def rows(self) -> Iterator[Row]:
        left_out: list[LeftOut] = []
        self._left_out = left_out
        names = self.class_names()
        left_out += [LeftOut(e.path, "not in a class folder") for e in _entries(self.root) if not e.is_dir()]
        if not names:
            raise GuieError(
                f"{self.root}: no class folders in it, only {len(left_out)} files. "
                f"Put the images of each class into a folder of its own: {self.root}/<class>/<image>"
            )
        found = 0
        for label, name in enumerate(names):
            images, others = self._images(name)
            left_out += others
            if not images:
                left_out.append(LeftOut(str(self.root / name), "a class without images"))
            found += len(images)
            category = self.category if isinstance(self.category, str) else self.category.get(name, "")
            for path in images:
                yield Row(ImageRef(path), label, self.source, category, name=name)
        if not found:
            folders = [item for item in left_out if item.reason == _FOLDER]
            deeper = f" Did you mean {Path(folders[0].place).parent}?" if folders else ""
            raise GuieError(
                f"{self.root}: no images in its {len(names)} class folders.{deeper} "
                f"Images are files such as {self.root}/{names[0]}/1.jpg; "
                f"{len(left_out) - len(names)} other files or folders are there"
            )

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def _images(self, name: str) -> tuple[list[str], list[LeftOut]]:
        images, others = [], []
        for entry in _entries(self.root / name):
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                others.append(LeftOut(entry.path, _FOLDER))
            elif suffix in IMAGE_SUFFIXES:
                images.append(entry.path)
            else:
                others.append(LeftOut(entry.path, f"not an image by its suffix {suffix!r}" if suffix else "no suffix"))
        return images, others


_FOLDER = "a folder inside a class folder"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files, in the order of names."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise GuieError(f"{folder}: cannot be listed: {error.strerror or error}") from error
