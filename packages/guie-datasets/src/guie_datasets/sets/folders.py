"""A folder of class folders as a data set: the simplest form of one's own images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guie_core import GuieError
from guie_datasets.places import Inside, is_text, printable
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row

#: Files with other suffixes are not taken for images; they are listed as left out.
_SUFFIXES = "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff jp2 ppm pgm pbm pnm avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())

# how Info-ZIP's unzip writes letters that its locale lacks: "#U4e2d" for a letter of four digits, "#L01f431" for others
_ESCAPE = re.compile(r"#U([0-9a-f]{4})|#L([0-9a-f]{6})", re.IGNORECASE)


class ClassFolders(Dataset):
    """Images as `root/<class>/<image>`: each folder is a class, and its images show the same thing.

    Labels number the classes in the order of their names, images come in the order of theirs (by code point). A class
    is called as its folder, with letters that unzip wrote as `#U4e2d` put right; folders that then have one name are
    one class. source: default the root's name. category: one for all images, or a mapping from class names. Hidden
    files and folders are ignored; everything else that is no image is listed by `left_out()`.

    A link that leads out of the root is bad, unless `follow_links`; so is a class folder that cannot be listed, and a
    name that is no UTF-8.

    `rows()` raises GuieError: no such folder, no class folders, no images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        source: str = "",
        category: str | Mapping[str, str] = "",
        follow_links: bool = False,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        self.source = source or self.root.name
        self.category = category
        self.follow_links = follow_links
        self._left_out: list[LeftOut] = []

    def class_names(self) -> list[str]:
        """The name of each label."""
        return list(self._classes())

    def rows(self) -> Iterator[Row]:
        left_out: list[LeftOut] = []
        self._left_out = left_out
        classes = self._classes()
        for entry in entries_of(self.root):
            if not is_text(entry.name):
                left_out.append(_unreadable_name(entry))
            elif not entry.is_dir():
                left_out.append(LeftOut(entry.path, "not in a class folder"))
        if not classes:
            raise GuieError(
                f"{self.root}: no class folders in it, only {len(left_out)} files. "
                f"Put the images of each class into a folder of its own: {self.root}/<class>/<image>"
            )
        inside = None if self.follow_links else Inside(self.root)
        found, empty = 0, 0
        for label, (name, folders) in enumerate(classes.items()):
            images = 0
            category = self.category if isinstance(self.category, str) else self.category.get(name, "")
            for folder in folders:
                for path in self._images(folder, inside, left_out):
                    images += 1
                    yield Row(ImageRef(path), label, self.source, category, name=name)
            if not images:
                empty += 1
                left_out.append(LeftOut(str(self.root / folders[0]), "a class without images"))
            found += images
        if not found:
            deeper = next((Path(item.place).parent for item in left_out if item.reason == _FOLDER), None)
            hint = f" Did you mean {deeper}?" if deeper else ""
            raise GuieError(
                f"{self.root}: no images in its {len(classes)} class folders.{hint} "
                f"Images are files such as {self.root}/{next(iter(classes.values()))[0]}/1.jpg; "
                f"{len(left_out) - empty} other files or folders are there"
            )

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def _classes(self) -> dict[str, list[str]]:
        """The folders of each class, by its name, in the order of the labels."""
        if not self.root.is_dir():
            what = "not a folder" if self.root.exists() else "no such folder"
            raise GuieError(f"{self.root}: {what}. Give the folder that holds one folder of images for each class")
        classes: dict[str, list[str]] = {}
        for entry in entries_of(self.root):
            if entry.is_dir() and is_text(entry.name):
                classes.setdefault(unescaped(entry.name), []).append(entry.name)
        return dict(sorted(classes.items()))

    def _images(self, folder: str, inside: Inside | None, left_out: list[LeftOut]) -> Iterator[str]:
        """The paths of a class folder's images; what else there is goes to `left_out`."""
        try:
            entries = entries_of(self.root / folder)
        except GuieError as error:
            place, _, reason = str(error).partition(": ")
            left_out.append(LeftOut(place, reason, bad=True))
            return
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if not is_text(entry.name):
                left_out.append(_unreadable_name(entry))
            elif entry.is_dir():
                left_out.append(LeftOut(entry.path, _FOLDER))
            elif suffix not in IMAGE_SUFFIXES:
                reason = f"not an image by its suffix {suffix!r}" if suffix else "no suffix"
                left_out.append(LeftOut(entry.path, reason))
            elif inside is not None and not inside.contains(entry.path):
                reason = "a link, or behind one, that leads out of the folder; follow_links=True allows it"
                left_out.append(LeftOut(entry.path, reason, bad=True))
            else:
                yield entry.path


_FOLDER = "a folder inside a class folder"


def unescaped(name: str) -> str:
    """A name with the letters that unzip wrote as `#U4e2d` or `#L01f431` put right."""

    def letter(match: re.Match[str]) -> str:
        code = int(match[1] or match[2], 16)
        good = 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 and chr(code) != "/"
        return chr(code) if good else match[0]

    return _ESCAPE.sub(letter, name)


def _unreadable_name(entry: os.DirEntry[str]) -> LeftOut:
    return LeftOut(printable(entry.path), "its name is no UTF-8; rename it", bad=True)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files, in the order of names."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise GuieError(f"{folder}: cannot be listed: {error.strerror or error}") from error


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
