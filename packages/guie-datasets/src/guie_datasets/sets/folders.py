"""A folder of class folders as a data set: the simplest form of one's own images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing, plural
from guie_datasets.extent import Extent, counted
from guie_datasets.places import Inside, absolute, is_text, printable
from guie_datasets.rows import Dataset, ImageRef, LeftOut, Row

#: Files with other suffixes are not taken for images; they are listed as left out.
_SUFFIXES = "jpg jpeg jpe jfif png apng webp gif bmp dib tif tiff jp2 ppm pgm pbm pnm avif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())

#: Photos that people have, and that are not read.
_UNREAD = "heic heif avci jxl svg svgz psd ai eps cr2 cr3 nef arw dng orf rw2 raf raw exr hdr"
_PHOTOS = frozenset(f".{suffix}" for suffix in _UNREAD.split())

# how Info-ZIP's unzip writes letters that its locale lacks: "#U4e2d" for a letter of four digits, "#L01f431" for others
_ESCAPE = re.compile(r"#U([0-9a-f]{4})|#L([0-9a-f]{6})", re.IGNORECASE)


class ClassFolders(Dataset):
    """Images as `root/<class>/<image>`: each folder is a class, and its images show the same thing.

    root: the folder of the class folders.
    source: what the set is called; default: the root's name.
    category: what all images show, or a mapping from the names of classes.
    follow_links: whether links that lead out of the root are followed; otherwise they are bad.
    recursive: whether the images in sub-folders of a class folder belong to the class; otherwise they are left out.
    splits: names of folders in the root that hold class folders, "train" and "val": `root/<split>/<class>/<image>`. A
    class of one name is the same class in all of them, and the row's split is the folder's name.
    complete: whether a folder that cannot be listed is an error, since nobody can tell how much is lost; otherwise it
    counts as one bad image.

    Labels number the classes in the order of their names, images come in the order of theirs (by code point), those of
    one split after the other. A class is called as its folder, with letters that unzip wrote as `#U4e2d` put right;
    folders that then have one name are one class. Hidden files and folders are ignored; everything else that is no
    image is listed by `left_out()`. A name that is no UTF-8 is bad.

    `rows()` raises GuieError: no such folder, no class folders, no images; UsageError: a category for a class, or a
    split, that is not there.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        source: str = "",
        category: str | Mapping[str, str] = "",
        follow_links: bool = False,
        recursive: bool = False,
        splits: Sequence[str] = (),
        complete: bool = True,
    ) -> None:
        if isinstance(splits, str):
            raise UsageError(f"splits is a list of folders, such as [{splits!r}]")
        self.root = absolute(root)
        self.source = source or self.root.name
        self.category = category
        self.follow_links = follow_links
        self.recursive = recursive
        self.splits = tuple(splits)
        self.complete = complete
        self._left_out: list[LeftOut] = []

    def class_names(self) -> list[str]:
        """The name of each label."""
        return list(self._classes())

    def rows(self) -> Iterator[Row]:
        left_out: list[LeftOut] = []
        self._left_out = left_out
        classes = self._classes()
        self._not_in_classes(left_out)
        if not classes:
            there = f"only {plural(len(left_out), 'file')}" if left_out else "and no files"
            raise GuieError(
                f"{self.root}: no class folders in it, {there}. "
                f"Put the images of each class into a folder of its own: {self.root}/<class>/<image>"
            )
        if not isinstance(self.category, str):
            for name in self.category:
                if name not in classes:
                    hint = did_you_mean(name, classes) or f" The classes are {listing(map(repr, classes))}"
                    raise UsageError(f"{self.root}: category names a class {name!r} that there is not.{hint}")
        inside = None if self.follow_links else Inside(self.root)
        images = dict.fromkeys(classes, 0)
        for split in self.splits or ("",):
            for label, (name, folders) in enumerate(classes.items()):
                category = self.category if isinstance(self.category, str) else self.category.get(name, "")
                for folder in folders:
                    if folder.parent == self.root / split:
                        for path in self._images(folder, inside, left_out):
                            images[name] += 1
                            yield Row(ImageRef(path), label, self.source, category, split, name=name)
        for name, folders in classes.items():
            if not images[name]:
                left_out.append(LeftOut(str(folders[0]), "a class without images", loud=True))
        if not any(images.values()):
            raise GuieError(self._no_images(classes))

    def expected(self) -> Extent:
        return counted(self.rows())

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def _classes(self) -> dict[str, list[Path]]:
        """The folders of each class, by its name, in the order of the labels."""
        if not self.root.is_dir():
            what = "not a folder" if self.root.exists() else "no such folder"
            raise GuieError(f"{self.root}: {what}. Give the folder that holds one folder of images for each class")
        classes: dict[str, list[Path]] = {}
        for parent in self._parents():
            for entry in entries_of(parent):
                if is_folder(entry) and is_text(entry.name):
                    classes.setdefault(unescaped(entry.name), []).append(Path(entry.path))
        return dict(sorted(classes.items()))

    def _parents(self) -> list[Path]:
        """The folders of class folders."""
        if not self.splits:
            return [self.root]
        there = [entry.name for entry in entries_of(self.root) if is_folder(entry)]
        for split in self.splits:
            if split not in there:
                hint = did_you_mean(split, there) or f" It holds {listing(map(printable, there))}"
                raise UsageError(f"{self.root}: splits names a folder {split!r} that is not in it.{hint}")
        return [self.root / split for split in self.splits]

    def _not_in_classes(self, left_out: list[LeftOut]) -> None:
        """Lists what lies beside the class folders."""
        for parent in dict.fromkeys((self.root, *self._parents())):
            for entry in entries_of(parent):
                if not is_text(entry.name):
                    left_out.append(_unreadable_name(entry))
                elif not is_folder(entry):
                    left_out.append(LeftOut(entry.path, "not in a class folder"))
                elif self.splits and parent == self.root and entry.name not in self.splits:
                    count = _count(entry.path)
                    reason = "a folder that is none of the splits"
                    left_out.append(LeftOut(entry.path, reason, count=max(1, count), loud=count > 0))

    def _no_images(self, classes: Mapping[str, Sequence[Path]]) -> str:
        deeper = next((Path(item.place).parent for item in self._left_out if item.reason == _FOLDER), None)
        hint = f" Did you mean {deeper}?" if deeper else ""
        if deeper and not self.splits and set(map(str.lower, classes)) <= _SPLITS:
            hint = f" They seem to be splits, with class folders in them: set splits to {','.join(classes)}."
        elif deeper and self.recursive is False:
            hint += " Or set recursive to True, to take what is in sub-folders."
        others = len(self._left_out) - len(classes)
        example = next(iter(classes.values()))[0]
        return (
            f"{self.root}: no images in its {plural(len(classes), 'class folder')}.{hint} "
            f"Images are files such as {example}/1.jpg; {others} other files or folders are there"
        )

    def _images(self, folder: Path, inside: Inside | None, left_out: list[LeftOut]) -> Iterator[str]:
        """The paths of a class folder's images; what else there is goes to `left_out`."""
        try:
            images, others = images_in(folder)
        except GuieError as error:
            if self.complete:
                raise GuieError(
                    f"{error}. Nobody can tell how many images are in it. Mend that, or set complete to False to do "
                    "without them"
                ) from error
            place, _, reason = str(error).partition(": ")
            left_out.append(LeftOut(place, reason, bad=True))
            return
        for entry in images:
            if inside is not None and not inside.contains(entry.path):
                left_out.append(LeftOut(entry.path, _LINK, bad=True))
            else:
                yield entry.path
        for item in others:
            if not self.recursive or item.reason != _FOLDER:
                left_out.append(item)
            elif self.follow_links or not os.path.islink(item.place):  # a link may lead round in circles
                yield from self._images(Path(item.place), inside, left_out)
            else:
                left_out.append(
                    LeftOut(item.place, "a link to a folder, which is not followed", count=item.count, loud=True)
                )


_FOLDER = "in a folder inside a class folder; set recursive to True to take such images"
_LINK = "a link, or behind one, that leads out of the folder; set follow_links to True to allow it"
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


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

    Folders come with the number of images in them. Raises GuieError if it cannot be listed.
    """
    images, others = [], []
    for entry in entries_of(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if not is_text(entry.path):
            others.append(_unreadable_name(entry))
        elif is_folder(entry):
            count = _count(entry.path)
            others.append(LeftOut(entry.path, _FOLDER, count=max(1, count), loud=count > 0))
        elif suffix in _PHOTOS:
            others.append(LeftOut(entry.path, f"{suffix} is not read; convert it, to .jpg for example", loud=True))
        elif suffix not in IMAGE_SUFFIXES:
            reason = f"not an image by its suffix {suffix!r}" if suffix else "no suffix"
            others.append(LeftOut(entry.path, reason))
        else:
            images.append(entry)
    return images, others


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, or a link to one; not what the system cannot tell, such as a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _count(folder: str) -> int:
    """How many images are in a folder and those in it."""
    names = (name for _, _, files in os.walk(folder) for name in files if not name.startswith("."))
    return sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES | _PHOTOS for name in names)
