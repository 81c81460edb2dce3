"""What is to be embedded: images, folders, tables, manifests and shards as one list of rows on the disk."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from guie_core import UsageError, lookup
from guie_core.files import explain_os_errors
from guie_core.signature import signature
from guie_core.wording import listing, plural, shown
from guie_datasets import Dataset, ImageRef, LeftOut, Manifest, Row
from guie_datasets.places import printable
from guie_datasets.preparing.recognition import UnknownKindError, datasets, named_settings, settings
from guie_datasets.rows import UNKNOWN
from guie_datasets.sets.folders import IMAGE_SUFFIXES, entries_of
from guie_datasets.sets.prepared import Prepared
from guie_datasets.sets.tables import Table
from guie_datasets.tfrecord import shard_suffix
from guie_train.prediction.kept import bytes16

_TEXTS = ("compression", "name", "source", "category", "split", "role")
_CHUNK = 65_536  # rows gathered as Python objects before they become columns

#: The rows as they lie on the disk. `expected` is the hash that a manifest has of the image; `key` is a hash over where
#: the image is, what is expected, and size and date of its file, and so another one when the image is.
SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),  # -1: the whole file
        ("label", pa.int64()),  # null: not known
        *((name, pa.string()) for name in _TEXTS),
        ("expected", pa.binary(16)),
        ("key", pa.binary(16)),
    ]
)


class Images(Dataset):
    """Images named one by one, of which nothing else is known: `label` is UNKNOWN."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(os.path.abspath(path) for path in paths)

    def rows(self) -> Iterator[Row]:
        return (Row(ImageRef(path), UNKNOWN, "") for path in self.paths)


class AnyFolder(Dataset):
    """The images of a folder at any depth, in the order of names; `label` is UNKNOWN.

    Hidden files and links to folders are passed over; what is no image by its suffix is listed by `left_out()`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        self._left_out = []
        for path in self._images(self.root):
            yield Row(ImageRef(path), UNKNOWN, self.root.name)

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def _images(self, folder: Path) -> Iterator[str]:
        for entry in entries_of(folder):
            if entry.is_dir(follow_symlinks=False):
                yield from self._images(Path(entry.path))
            elif entry.is_dir():
                self._left_out.append(LeftOut(printable(entry.path), "a link to a folder"))
            elif os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
                self._left_out.append(LeftOut(printable(entry.path), "not an image by its suffix"))
            elif printable(entry.path) != entry.path:
                self._left_out.append(LeftOut(printable(entry.path), "its name is no UTF-8; rename it", bad=True))
            else:
                yield entry.path


def recognised(arguments: Sequence[str], overrides: Sequence[str] = ()) -> list[Dataset]:
    """The data sets that the arguments name, in their order.

    An image stands for itself, whatever its name. A folder of class folders gives labels; any other folder is searched
    at any depth, and a table may lack labels. Everything else is as for `guie data prepare`, `overrides`
    (NAME.KEY=VALUE) too.

    Raises UsageError: no arguments, or neither a data set nor a path; ExperimentError: overrides that don't fit.
    """
    if not arguments:
        raise UsageError("name what to embed: images, folders, tables, manifests or shards")
    found: list[Dataset | None] = []
    left: list[tuple[int, str]] = []
    for is_image, group in itertools.groupby(arguments, _is_image):
        names = list(group)
        if is_image:
            found.append(Images([os.path.expanduser(name) for name in names]))
            continue
        for name in names:
            folder = Path(name).expanduser()
            if folder.is_dir() and settings(name)["type"] == "folder" and not _holds_class_folders(folder):
                found.append(AnyFolder(folder))
            else:
                left.append((len(found), name))
                found.append(None)
    if overrides and not left:
        raise UsageError(f"--set {overrides[0]}: images and folders without classes have nothing to set")
    if left:
        try:
            named = named_settings([name for _, name in left], overrides)
        except UnknownKindError as error:
            raise UsageError(
                f"{error}; or any folder of images, or images ({listing(sorted(IMAGE_SUFFIXES), 99)}). A list of paths "
                "is a table with the column path"
            ) from None
        for (place, _), dataset in zip(left, datasets(named), strict=True):
            if isinstance(dataset, Table):
                dataset.needs_labels = False
            found[place] = dataset
    return [dataset for dataset in found if dataset is not None]


def spelling(arguments: Sequence[str]) -> dict[str, str]:
    """How arguments of the data sets are given on the command line, for `guie_core.spelling.told_as`."""
    named = [argument for argument in arguments if not _is_image(argument)]
    start = "--set " if len(named) == 1 else "--set NAME."
    types = {settings(argument)["type"] for argument in named}
    return {name: f"{start}{name}=" for each in types for name in signature(lookup("datasets", each).load()).hints}


def _is_image(argument: str) -> bool:
    """A file whose name says so, or nothing at all."""
    suffix = os.path.splitext(argument)[1].lower()
    named = suffix in IMAGE_SUFFIXES or (not suffix and not shard_suffix(os.path.basename(argument)))
    return named and os.path.isfile(os.path.expanduser(argument))


def _holds_class_folders(folder: Path) -> bool:
    """Whether all images that it holds are in folders directly below it."""
    entries = entries_of(folder)
    below = [entry for entry in entries if entry.is_dir()]
    if any(not entry.is_dir() and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES for entry in entries):
        return False
    try:
        return bool(below) and not any(inner.is_dir() for entry in below for inner in os.scandir(entry.path))
    except OSError:  # for the data set to tell
        return True


@dataclass(frozen=True)
class Rows:
    """A list of images on the disk, memory-mapped.

    table: columns as SCHEMA. digest: 32 hexadecimal digits over all of them, so that a changed input shows before
    anything is read. left_out: what the data sets passed over.
    """

    table: pa.Table
    digest: str
    left_out: Sequence[LeftOut]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """The column `key` as an array [N]."""
        return bytes16(self.table.column("key"))

    def image(self, row: int) -> ImageRef:
        """Where the image of a row is."""
        path, offset, length, compression = (
            self.table.column(name)[row].as_py() for name in ("path", "offset", "length", "compression")
        )
        return ImageRef(path, offset, None if length < 0 else length, compression)

    def value(self, name: str, row: int) -> Any:
        """One value of a column, None for null."""
        return self.table.column(name)[row].as_py()


def listed(sets: Sequence[Dataset], file: Path) -> Rows:
    """Writes the rows of data sets to `file`, one after the other, and opens it.

    Labels of each data set are offset by the highest before it plus 1, so that no two share one. Memory doesn't grow
    with the rows.

    Raises UsageError: there are no images; GuieError as the data sets do, or if the disk is full.
    """
    digest = hashlib.blake2b(digest_size=16)
    left_out: list[LeftOut] = []
    stamp = functools.lru_cache(maxsize=64)(_stamp)  # rows of a shard follow each other
    highest = -1
    with explain_os_errors(file), pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        count = 0
        for dataset in sets:
            offset = highest + 1
            rows = iter(_with_hashes(dataset))
            while chunk := list(itertools.islice(rows, _CHUNK)):
                highest = max(highest, *(offset + row.label for row, _ in chunk if row.label != UNKNOWN), offset - 1)
                columns = _columns(chunk, offset)
                columns["key"] = [_key(row.image, expected, stamp(row.image.path)) for row, expected in chunk]
                writer.write_batch(pa.record_batch(list(columns.values()), schema=SCHEMA))
                for values in columns.values():
                    digest.update("\0".join(map(str, values)).encode())
                count += len(chunk)
            left_out += dataset.left_out()
    if not count:
        told = ""
        if left_out:
            others = plural(sum(item.count for item in left_out), "other thing")
            told = f"; {others} cannot be used, such as {shown(left_out[0].place)}: {left_out[0].reason}"
        raise UsageError(f"there is no image to embed{told}")
    return Rows(pa.ipc.open_file(pa.memory_map(str(file))).read_all(), digest.hexdigest(), left_out)


def _with_hashes(dataset: Dataset) -> Iterable[tuple[Row, bytes | None]]:
    """Rows, and the hash of each image's bytes where a manifest has it."""
    if isinstance(dataset, Prepared):
        hashes = Manifest.read(dataset.path).column("hash")
        return ((row, bytes.fromhex(value.decode())) for row, value in zip(dataset.rows(), hashes, strict=True))
    return ((row, None) for row in dataset.rows())


def _columns(chunk: Sequence[tuple[Row, bytes | None]], offset: int) -> dict[str, list[Any]]:
    """Rows as columns of SCHEMA, in its order, without the last one."""
    return {
        "path": [row.image.path for row, _ in chunk],
        "offset": [row.image.offset for row, _ in chunk],
        "length": [-1 if row.image.length is None else row.image.length for row, _ in chunk],
        "label": [None if row.label == UNKNOWN else offset + row.label for row, _ in chunk],
        "compression": [row.image.compression for row, _ in chunk],
        **{name: [getattr(row, name) for row, _ in chunk] for name in _TEXTS[1:]},
        "expected": [expected for _, expected in chunk],
    }


def _key(image: ImageRef, expected: bytes | None, stamp: bytes) -> bytes:
    place = "\0".join(map(str, (image.path, image.offset, image.length, image.compression)))
    return hashlib.blake2b(place.encode() + (expected or b"") + stamp, digest_size=16).digest()


def _stamp(path: str) -> bytes:
    """Size and date of a file; zeros for one that is not there or not readable, which is told when it is to be read."""
    try:
        about = os.stat(path)
    except OSError:
        return bytes(16)
    return np.array([about.st_size, about.st_mtime_ns], "<i8").tobytes() if os.access(path, os.R_OK) else bytes(16)
