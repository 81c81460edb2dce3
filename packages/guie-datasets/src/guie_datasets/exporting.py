"""A manifest's images in other layouts: PNG files, class folders, a table, TFRecord and tar shards.

Images are read ahead by threads, and each is compared with the hash that the manifest has of it. Files appear whole or
not at all, and what is there already is not made again, so that an export that was stopped goes on when it is repeated.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import atomic_write, digest
from guie_core.interrupt import interruptible
from guie_core.processors import threads
from guie_core.progress import bar
from guie_core.wording import did_you_mean, shown
from guie_datasets import tfrecord
from guie_datasets.checks import check_max_bad
from guie_datasets.images.decoding import BadImage, Method, check_method, decode
from guie_datasets.images.reading import Reader, ordered_map
from guie_datasets.images.signatures import LENGTH, signature
from guie_datasets.layouts import FORMATS, OPTIONS, Format
from guie_datasets.manifest import Manifest, column_is
from guie_datasets.places import expanded
from guie_datasets.quarantine import Finding, Quarantine
from guie_datasets.rows import ImageRef

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PER_SHARD = 5_000

#: What an export is an export of; a hidden file, which no data set takes for one of its own.
MARK = ".guie-export.json"

#: What the classes of TFRecords are called.
CLASSES = "classes.csv"


def export(
    manifest: Manifest,
    to: Format,
    output: str | os.PathLike[str],
    *,
    split: str | None = None,
    method: Method | None = None,
    per_shard: int | None = None,
    link: bool | None = None,
    max_bad: float = 0.001,
    workers: int | None = None,
) -> Quarantine:
    """Writes the images of a manifest (or of one of its splits) into the folder `output`, in the manifest's order.

    - "png": every image decoded and written as PNG, `<source>/<shard or folder>/<row>-<label>.png`, rows counted from 0
      over all sources, and `label-noresize.csv` with the columns path and label. Labels are those of the data set, as
      in its shards. With a manifest of Products-10K and the landmarks, this is what the original's tfrec2png.py leaves.
      method: as for `decode` (default "full"); "tensorflow" has the original's pixels.
    - "folder": the images' own bytes as `<class>/<row>[-<name of the file>].<suffix>`. Class folders have the names of
      the classes where these sort as the labels do, else the label's number before it: `ClassFolders` gives the same
      labels. link: hard links instead of copies, for images that are files of their own.
    - "csv": `label.csv`, the recipe's table: path, label, category and the other columns that say anything; offset and
      length for images inside shards. No image is read.
    - "tfrecord": shards `<set>-train-<number>-<images>.tfrec` with at most `per_shard` images each (default
      5,000) and the manifest's labels; the set is the images' source, or the name of `output` if there are several.
      Records hold nothing else: `classes.csv` has label, name, source and category of the classes.
    - "webdataset": tar shards `<set>-<number>.tar`; of each image its bytes, its label (.cls) and its source, category
      and name (.json).

    Returns what was found: images that cannot be read, decoded, or are no longer those of the manifest are passed over,
    as long as they are at most `max_bad` of all; they are listed in `quarantine.csv` in `output`.

    Raises GuieError: more bad images than that, a full or read-only disk; UsageError: an unknown format or split, an
    option that the format doesn't take, or `output` holds something else; Interrupted on Ctrl-C: the same call goes on
    from there.
    """
    if to not in FORMATS:
        near = did_you_mean(to, FORMATS)
        raise UsageError(f"there is no format {to!r} to export to.{near} The formats are {', '.join(FORMATS)}")
    given = {"method": method, "per_shard": per_shard, "link": link or None}
    if strange := [name for name, value in given.items() if value is not None and name not in OPTIONS[to]]:
        raise UsageError(f"{to!r} takes no {' and no '.join(strange)}")
    method, per_shard, link = method or "full", _PER_SHARD if per_shard is None else per_shard, bool(link)
    check_method(method, None)
    check_max_bad(max_bad)
    workers = threads(workers)
    if per_shard < 1:
        raise UsageError(f"per_shard must be 1 or more, not {per_shard}")
    if split is not None:
        manifest = manifest.select(column_is(manifest, "split", split))
    folder = expanded(output)
    options: dict[str, dict[str, Any]] = {
        "png": {"method": method},
        "tfrecord": {"per_shard": per_shard},
        "webdataset": {"per_shard": per_shard},
    }
    images = digest(manifest.digest, *_class_folders(manifest).values())
    about = {"format": to, "images": images, **options.get(to, {})}
    _claim(folder, about)
    with _Export(manifest, folder, workers) as work:
        if to == "png":
            _png(work, os.fspath(output), method)
        elif to == "folder":
            _folder(work, link)
        elif to == "csv":
            _csv(work)
        elif to == "tfrecord":
            _tfrecord(work, per_shard)
        else:
            _webdataset(work, per_shard)
    table = folder / "quarantine.csv"
    if work.found:
        work.found.write(table)
    else:
        table.unlink(missing_ok=True)
    _judge(work.found, max_bad, table)
    return work.found


def _judge(found: Quarantine, max_bad: float, table: Path) -> None:
    bad = len(found)
    if bad > max_bad * found.images:
        first = "\n".join(f"  {finding.place}: {finding.reason}" for finding in itertools.islice(found, 10))
        more = f"\n  and {bad - 10:,} more" if bad > 10 else ""
        raise GuieError(
            f"{bad:,} of {found.images:,} images are bad ({bad / found.images:.2%}), more than max_bad = {max_bad:.2%} "
            f"allows:\n{first}{more}\nThe whole list is in {table}. The others are written. Mend these and repeat the "
            "command, or raise max_bad"
        )


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Makes the folder one of this export, or finds that it is one already."""
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder")
    if mark.is_file():
        if not _says(mark, about):
            raise UsageError(
                f"{folder} holds another export: of other images, in another format or with other options. "
                "Name another folder, or remove this one"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is there and not empty. Name a new folder, so that nothing of yours is mixed up")
    else:
        with atomic_write(mark, "w") as file:
            file.write(json.dumps(about))


def _says(mark: Path, about: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(mark.read_bytes()) == about)
    except (ValueError, RecursionError):  # damaged: what is there is not known
        return False


class _Export:
    """The work on one export: reads images ahead, shows progress, stops when asked, and keeps what was found wrong."""

    def __init__(self, manifest: Manifest, folder: Path, workers: int) -> None:
        self.manifest = manifest
        self.folder = folder
        self.found = Quarantine(images=len(manifest))
        self.bad: set[int] = set()  # rows
        self._workers = workers
        self._refs = manifest.images()
        self._hashes = manifest.column("hash")
        self._stack = ExitStack()

    def __enter__(self) -> _Export:
        self._stop = self._stack.enter_context(interruptible())
        self._reader = self._stack.enter_context(Reader())
        self._progress = self._stack.enter_context(bar(len(self.manifest), f"export to {shown(self.folder)}"))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def ref(self, row: int) -> ImageRef:
        return self._refs[row]

    def texts(self, name: str) -> Sequence[str]:
        """A text column."""
        texts: list[str] = self.manifest.column(name).tolist()
        return texts

    def skip(self, images: int) -> None:
        """So many images are there already."""
        self._progress.advance(images)

    def images(
        self,
        rows: Iterable[int],
        convert: Callable[[bytes], bytes] = bytes,
        write: Callable[[int, bytes], None] | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """(row, its bytes as `convert` makes them) in order; bad ones become findings and are passed over.

        Reading, `convert` and `write` run in threads. With `write`, the bytes are not given but written.
        """

        def one(row: int) -> tuple[int, bytes, str]:
            ref = self._refs[row]
            try:
                data = self._reader.read(ref)
                if hashlib.blake2b(data, digest_size=16).hexdigest().encode() != self._hashes[row]:
                    return row, b"", "its bytes are not those that were prepared: the file was changed"
            except GuieError as error:
                return row, b"", str(error).removeprefix(f"{ref}: ")
            try:
                data = convert(data)
            except BadImage as error:
                return row, b"", error.reason
            if write is None:
                return row, data, ""
            write(row, data)
            return row, b"", ""

        for row, data, problem in ordered_map(one, rows, self._workers, 4 * self._workers):
            if problem:
                self.bad.add(row)
                source, label = (self.manifest.table.column(name)[row].as_py() for name in ("source", "label"))
                self.found.add(Finding("bad", str(self._refs[row]), problem, source, label))
            else:
                yield row, data
            self._progress.advance()
            if self._stop:
                done = f"{self._progress.count:,} of {len(self.manifest):,}"
                raise Interrupted(f"stopped after {done} images; the same command goes on from there")

    def files(
        self, names: Sequence[str], convert: Callable[[bytes], bytes], write: Callable[[int, bytes], None]
    ) -> None:
        """A file for each row, of that name without its suffix; those that are there are not written again."""
        prefix = len(os.path.join(self.folder, ""))
        there = {
            os.path.splitext(os.path.join(folder, file)[prefix:])[0]
            for folder, _, files in os.walk(self.folder)
            for file in files
        }
        rows = [row for row, name in enumerate(names) if name not in there]
        self.skip(len(names) - len(rows))
        for _ in self.images(rows, convert, write):
            pass


# --- a file an image


def _png(work: _Export, output: str, method: Method) -> None:
    column = "original_label" if "original_label" in work.manifest.column_names else "label"
    labels = work.manifest.column(column).tolist()
    names = []
    for row, (source, label) in enumerate(zip(work.texts("source"), labels, strict=True)):
        ref = work.ref(row)
        within = os.path.basename(os.path.dirname(ref.path)) if ref.length is None else Path(ref.path).stem
        names.append(f"{_safe(source)}/{_safe(within)}/{row}-{label}")

    def write(row: int, data: bytes) -> None:
        with atomic_write(work.folder / f"{names[row]}.png") as file:
            file.write(data)

    work.files(names, lambda data: png(decode(data, method)), write)
    with atomic_write(work.folder / "label-noresize.csv", "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label"])
        for row, (name, label) in enumerate(zip(names, labels, strict=True)):
            if row not in work.bad:
                table.writerow([f"{output}/{name}.png", label])


def png(image: NDArray[np.uint8]) -> bytes:
    """An image, uint8 [3, H, W], as PNG.

    Of zlib's strategies run lengths at level 1: a third of the time of Pillow's own choice, and 2 to 4 % more bytes
    (`benchmarks/expansion.py`). The pixels are the same.
    """
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    pixels.save(buffer, "PNG", compress_level=1, compress_type=_RUN_LENGTHS)
    return buffer.getvalue()


_RUN_LENGTHS = 3  # Z_RLE in zlib.h


def _folder(work: _Export, link: bool) -> None:
    classes = _class_folders(work.manifest)
    digits = len(str(len(work.manifest) - 1))
    names = []
    for row, label in enumerate(work.manifest.column("label").tolist()):
        ref = work.ref(row)
        stem = "" if ref.length is not None else "-" + _safe(Path(ref.path).stem)
        names.append(f"{classes[label]}/{row:0{digits}}{stem}")

    def write(row: int, data: bytes) -> None:
        path, ref = work.folder / f"{names[row]}{_suffix(data)}", work.ref(row)
        if link and ref.length is None:
            _link(ref.path, path)
        else:
            with atomic_write(path) as file:
                file.write(data)

    work.files(names, bytes, write)


def _link(original: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(original, path)
    except OSError as error:
        raise GuieError(
            f"{path}: no hard link to {original} can be made ({error.strerror}): links stay on one disk. "
            "Export copies instead"
        ) from error


def _class_folders(manifest: Manifest) -> dict[int, str]:
    """The name of each label's folder; by code point they sort as the labels do."""
    labels, first = np.unique(manifest.column("label"), return_index=True)
    names = [_safe(name) if name else "" for name in manifest.select(first).column("name")]
    folded = [name.casefold() for name in names]
    if all(names) and names == sorted(names) and len(set(folded)) == len(folded):
        return dict(zip(labels.tolist(), names, strict=True))
    digits = len(str(labels[-1])) if len(labels) else 1
    numbered = [f"{label:0{digits}}-{name}".rstrip("-") for label, name in zip(labels.tolist(), names, strict=True)]
    return dict(zip(labels.tolist(), numbered, strict=True))


def _safe(name: str) -> str:
    """A name that any file system takes, not hidden and not too long; "_" for what has nothing of the kind."""
    kept = "".join("_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in name)
    return kept.encode()[:120].decode(errors="ignore").strip(" .") or "_"


def _suffix(data: bytes) -> str:
    """The suffix of an image's format; there is a kind of PPM for every other start that is decoded."""
    found = signature(data[:LENGTH])
    return found.suffix if found else ".ppm"


# --- a table


def _csv(work: _Export) -> None:
    frame = work.manifest.to_pandas().drop(columns="hash")
    nothing: dict[Any, Any] = {"offset": 0, "length": -1}
    first = ["path", "label", "category"]
    says = [name for name in frame if name not in first and not (frame[name] == nothing.get(name, "")).all()]
    with atomic_write(work.folder / "label.csv", "w") as file:
        frame[first + says].to_csv(file, index=False, lineterminator="\n")
    work.skip(len(frame))


# --- shards


def _tfrecord(work: _Export, per_shard: int) -> None:
    labels = work.manifest.column("label").tolist()
    for rows, name in _shards(work, per_shard, "-train-", at_least=2):
        if (work.folder / f"{name}-{len(rows)}.tfrec").exists():
            work.skip(len(rows))
            continue
        for fewer in work.folder.glob(f"{glob.escape(name)}-*.tfrec"):  # without those that were bad then
            fewer.unlink()
        unnamed = work.folder / f".{name}.tfrec"
        count = tfrecord.write(unnamed, ((data, labels[row]) for row, data in work.images(rows)))
        unnamed.replace(work.folder / f"{name}-{count}.tfrec")
    with atomic_write(work.folder / CLASSES, "w") as file:  # what a record has no place for
        said = work.manifest.table.group_by(["label", "name", "source", "category"], use_threads=False).aggregate([])
        said.sort_by("label").to_pandas().to_csv(file, index=False, lineterminator="\n")


def _webdataset(work: _Export, per_shard: int) -> None:
    labels = work.manifest.column("label").tolist()
    said = {name: work.texts(name) for name in ("source", "category", "name")}
    digits = len(str(len(labels) - 1))
    for rows, name in _shards(work, per_shard, "-", at_least=6):
        path = work.folder / f"{name}.tar"
        if path.exists() and _members(path) == 3 * len(rows):
            work.skip(len(rows))
            continue
        with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row, data in work.images(rows):
                about = {name: texts[row] for name, texts in said.items() if texts[row]}
                _add(tar, f"{row:0{digits}}{_suffix(data)}", data)
                _add(tar, f"{row:0{digits}}.cls", str(labels[row]).encode())
                _add(tar, f"{row:0{digits}}.json", json.dumps(about, ensure_ascii=False).encode())


def _shards(work: _Export, per_shard: int, between: str, at_least: int) -> Iterator[tuple[range, str]]:
    """The rows of each shard and its name, without what comes after the number."""
    sources = set(work.texts("source"))
    name = _safe(sources.pop() if len(sources) == 1 else work.folder.resolve().name)
    starts = range(0, len(work.manifest), per_shard)
    digits = max(at_least, len(str(len(starts) - 1)))
    for number, start in enumerate(starts):
        yield range(start, min(start + per_shard, len(work.manifest))), f"{name}{between}{number:0{digits}}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # with no time or owner: the same images give the same shard
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _members(path: Path) -> int:
    """How many there are; none in a damaged shard, which is to be written again."""
    try:
        with tarfile.open(path) as tar:
            return len(tar.getnames())
    except (tarfile.TarError, EOFError, ValueError):
        return 0
