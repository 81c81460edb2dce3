"""Data sets to a manifest: every image read once, checked, measured and hashed; the bad ones named."""

from __future__ import annotations

import hashlib
import itertools
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from guie_core import GuieError, Interrupted
from guie_core.files import explain_os_errors
from guie_core.interrupt import interruptible
from guie_core.plugins import plugins
from guie_core.processors import threads
from guie_core.progress import bar
from guie_core.wording import listing
from guie_datasets.checks import check_max_bad, enough_max_bad
from guie_datasets.images.decoding import BadImage, examine
from guie_datasets.images.reading import Reader, ordered_map
from guie_datasets.manifest import Manifest
from guie_datasets.places import printable
from guie_datasets.preparing.growing import GrowingColumns
from guie_datasets.preparing.sources import Sources
from guie_datasets.quarantine import Finding, Groups, Kind, Quarantine, written
from guie_datasets.repeats import repeated
from guie_datasets.rows import Dataset, ImageRef, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BATCH = 32  # rows a thread takes at once
_CHUNK = 65_536  # rows gathered as Python objects before they become columns
_MAX_LABEL = 2**48  # leaves room for the offsets of many data sets
_SHOWN = 10  # lines in which an error tells of bad images
_MOST = 0.5  # beyond this share of bad images, no limit is proposed that lets them pass


def prepare(
    datasets: Sequence[Dataset],
    *,
    max_bad: float = 0.001,
    keep_duplicates: bool = False,
    workers: int | None = None,
    quarantine: str | os.PathLike[str] | None = None,
) -> tuple[Manifest, Quarantine]:
    """The union of data sets as a manifest, in the order of the data sets and of their rows.

    - Labels: those of each data set are offset by the highest one before it plus 1, so that no two data sets share a
      label; then all are encoded as 0..C-1 in ascending order (5th place, point 1). The extra column `original_label`
      has those of the data sets; of a manifest that is prepared again, those that it was made of.
    - Sizes come from the headers. Images are not decoded, except where the end of the file looks wrong or the format
      does not tell (see `decoding.examine`); each is read and hashed once, by `workers` threads (default: one a core,
      at most 8).
    - Rows with the same bytes and the same label are kept once, unless `keep_duplicates`. Of the same bytes with
      different labels all are kept, and listed: one of the labels is likely wrong.
    - `quarantine` is a path for the table of findings (CSV), written also when this fails or is stopped.
    - The provenance names each data set's plugin with its version, its options, and hashes of its files (`sources`).
    - Memory doesn't grow with the rows, but for about 50 bytes each at the end, while repeated images are found (100
      where most of them are). The manifest lies in files without a name beside `quarantine`, or in the temporary
      folder, until it is written elsewhere: 88 bytes a row, and its path.

    Raises GuieError if more than `max_bad` of the images are bad (it lists the first ten): as soon as that is certain,
    where all data sets know their `count()`, otherwise at the end. Also if one has no images, or as they do;
    UsageError for `max_bad` outside 0..1 or `workers` below 1; Interrupted on Ctrl-C.
    """
    if not datasets:
        raise GuieError("no data sets to prepare: name at least one")
    check_max_bad(max_bad)
    workers = threads(workers)
    folder = None if quarantine is None else Path(quarantine).absolute().parent
    if folder and quarantine:
        with explain_os_errors(quarantine):
            folder.mkdir(parents=True, exist_ok=True)
    found = Quarantine(folder=folder, label="original_label")
    with ExitStack() as stack:
        columns = stack.enter_context(GrowingColumns(folder))
        with written(found, quarantine):
            work = _Preparation(datasets, columns, found, max_bad, workers, quarantine)
            about = [work.gather(number) for number in range(len(datasets))]
            work.distinct(about)
            keep, labels = work.repeated(np.array([each["label_offset"] for each in about]))
        work.judge()
        if not keep_duplicates and not keep.all():
            columns, labels = stack.enter_context(columns.kept(keep)), labels[keep]
        encoded = np.searchsorted(np.unique(labels), labels)
        table = pa.table(columns.columns() | {"label": pa.array(encoded)})
    provenance = {"made_by": f"guie-datasets {version('guie-datasets')}", "datasets": about, "findings": str(found)}
    return Manifest(table, provenance), found


class _Good(NamedTuple):
    """What is kept of a good row."""

    path: str
    offset: int
    length: int
    compression: str
    label: int
    original_label: int
    source: str
    category: str
    split: str
    role: str
    name: str
    width: int
    height: int
    hash: bytes
    bytes: int


class _Preparation:
    """Good rows in columns, findings, and the highest label so far."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        columns: GrowingColumns,
        found: Quarantine,
        max_bad: float,
        workers: int,
        table: str | os.PathLike[str] | None,
    ) -> None:
        self.columns = columns
        self._datasets, self._found, self._max_bad, self._workers = datasets, found, max_bad, workers
        self._table = table
        self._highest = -1
        self._starts: list[int] = []  # of the data sets among the good rows
        self._counts = [dataset.count() for dataset in datasets]
        known = [count for count in self._counts if count is not None]
        self._total = sum(known) if len(known) == len(datasets) else None

    def gather(self, number: int) -> dict[str, Any]:
        """Adds one data set's rows; returns what the manifest tells about it."""
        dataset, found, offset = self._datasets[number], self._found, self._highest + 1
        before, seen, name = len(self.columns), found.images, type(dataset).__name__
        self._starts.append(before)
        sources = Sources()
        pending: list[_Good] = []
        spoilt: dict[int, tuple[int, Finding]] = {}  # label -> bad images, the first of them

        def flush() -> None:
            rows: dict[str, Sequence[Any]] = dict(zip(_Good._fields, zip(*pending, strict=True), strict=True))
            self.columns.append(rows)
            sources.add(rows["path"], rows["length"], rows["bytes"], rows["hash"])
            pending.clear()

        with ExitStack() as stack:
            reader = stack.enter_context(Reader())
            stop = stack.enter_context(interruptible())
            batches = ordered_map(
                lambda rows: _inspect(rows, reader), _batched(dataset.rows(), _BATCH), self._workers, 4 * self._workers
            )
            stack.callback(batches.close)
            progress = stack.enter_context(bar(self._counts[number], f"prepare {name}"))
            for good, bad in batches:
                found.images += len(good) + len(bad)
                for finding, label in bad:
                    found.add(finding)
                    if label is not None:
                        spoilt[label] = (spoilt[label][0] + 1, spoilt[label][1]) if label in spoilt else (1, finding)
                if good:
                    pending += good
                    self._highest = max(self._highest, offset + max(row.label for row in good))
                if len(pending) >= _CHUNK:
                    flush()
                if bad:
                    self._judge_early()
                progress.advance(len(good) + len(bad))
                if stop:
                    raise Interrupted(f"stopped while {name} was prepared; there is no manifest. {self._where()}")
        if pending:
            flush()
        loud = Groups()
        for item in dataset.left_out():
            found.images += item.count if item.bad else 0
            finding = Finding("bad" if item.bad else "left out", item.place, item.reason, count=item.count)
            found.add(finding)
            if item.loud:
                loud.add(finding)
        found.told += map(str, loud.most_frequent())
        if found.images == seen:
            raise GuieError(self._nothing(number))
        self._empty(spoilt, before)
        self._judge_early()
        counts = {"rows": found.images - seen, "good": len(self.columns) - before, "label_offset": offset}
        return {**dataset.provenance(), "plugin": _plugin(dataset), **counts, "sources": sources.record(dataset)}

    def _nothing(self, number: int) -> str:
        """What to do about a data set that is there, and has no images."""
        dataset, others = self._datasets[number], len(self._datasets) > 1
        file = next(iter(dataset.tables() or dataset.sources()), None)
        where = f"{os.fspath(file)}: " if file else ""
        which = f"data set {number} ({type(dataset).__name__})" if others else type(dataset).__name__
        settings = f"look at {'the file and ' * bool(file)}its settings{', or leave it out' * others}"
        return f"{where}no images: {which} has none, good or bad; {settings}"

    def distinct(self, about: Sequence[dict[str, Any]]) -> None:
        """Raises GuieError if two data sets are the same images."""
        for first, second in itertools.combinations(range(len(about)), 2):
            if about[first]["good"] and about[first]["sources"] == about[second]["sources"]:
                names = " and ".join(f"{each} ({type(self._datasets[each]).__name__})" for each in (first, second))
                raise GuieError(
                    f"the data sets {names} are the same images: their classes would be there twice, under two labels "
                    "each. Name one of them only"
                )

    def repeated(self, offsets: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Adds the rows whose bytes came before; returns which rows are to be kept [N], and all labels [N]."""
        columns = self.columns
        starts = np.array([*self._starts, len(columns)])
        original = columns.array("original_label")
        labels = columns.array("label") + np.repeat(offsets, np.diff(starts))
        rows, earlier, same = repeated(columns.array("hash"), labels)
        keep = np.ones(len(columns), bool)
        keep[rows[same]] = False
        self._shared(starts, rows[~same], earlier[~same])
        sources, codes = columns.texts("source"), columns.array("source")
        names, name_codes = columns.texts("name"), columns.array("name")
        with interruptible() as stop:
            for start in range(0, len(rows), _CHUNK):
                part = slice(start, start + _CHUNK)
                places, befores = self._places(rows[part]), self._places(earlier[part])
                for place, before, row, alike in zip(places, befores, rows[part], same[part], strict=True):
                    reason = f"the same image as {before}" + ("" if alike else ", which has another label")
                    kind: Kind = "duplicate" if alike else "conflict"
                    source, name = sources[codes[row]], names[name_codes[row]]
                    self._found.add(Finding(kind, place, reason, source, int(original[row]), name=name))
                if stop:
                    raise Interrupted(
                        f"stopped while repeated images were listed; there is no manifest. {self._where()}"
                    )
        return keep, labels

    def _shared(self, starts: NDArray[np.int64], rows: NDArray[np.intp], earlier: NDArray[np.intp]) -> None:
        """Tells of data sets that have most of their images in common, under two labels each."""
        if not len(rows):
            return
        sets = np.stack([np.searchsorted(starts, each, "right") - 1 for each in (rows, earlier)], axis=1)
        for (second, first), count in zip(*np.unique(sets, axis=0, return_counts=True), strict=True):
            images = int(starts[second + 1] - starts[second])
            if first != second and count > images / 2:
                self._found.told.append(
                    f"{count:,} of the {images:,} images of data set {second} are in data set {first} as well, under "
                    "other labels"
                )

    def judge(self) -> None:
        """Raises GuieError if too much is bad."""
        found, bad = self._found, self._found.count("bad")
        if bad > self._max_bad * found.images:
            share = bad / found.images
            raise GuieError(
                f"{bad:,} of {found.images:,} images are bad ({share:.2%}), more than max_bad = {self._max_bad:.2%} "
                f"allows:\n{self._first()}\n"
                f"{self._where()} {self._remedy(share)}."
            )
        if not len(self.columns):
            raise GuieError(f"no image is good:\n{self._first()}\n{self._where()}")

    def _judge_early(self) -> None:
        """Raises GuieError if too much is bad already, whatever is still to come."""
        found, bad = self._found, self._found.count("bad")
        if self._total is None or bad < _SHOWN or found.images >= self._total or bad <= self._max_bad * self._total:
            return
        share = bad / found.images
        raise GuieError(
            f"stopped after {found.images:,} of {self._total:,} images: {bad:,} of them are bad ({share:.2%}), and "
            f"max_bad = {self._max_bad:.2%} allows {int(self._max_bad * self._total):,} in all:\n{self._first()}\n"
            f"{self._where()} {self._remedy(share)}."
        )

    def _first(self) -> str:
        """What is bad, with equal reasons together, up to ten lines."""
        lines: list[str] = []
        told = 0
        for group in self._found.bad.most_frequent():
            few = group.count == sum(each.count for each in group.first)
            lines += [f"  {each.place}: {each.reason}" for each in group.first] if few else [f"  {group}"]
            told += group.count
            if len(lines) >= _SHOWN:
                break
        more = self._found.count("bad") - told
        return "\n".join([*lines, *([f"  and {more:,} more"] if more else [])])

    def _remedy(self, share: float) -> str:
        """What to do about so many bad images."""
        most = self._found.bad.most_frequent()[0]
        advice = next(filter(None, (dataset.advice(most.first[0].reason) for dataset in self._datasets)), "")
        if advice and most.count > self._found.count("bad") / 2:
            return advice.rstrip(".")
        if share > _MOST:
            return "So many are hardly bad images: look whether this is the right data set, with the right settings"
        return (
            f"Mend or remove them, or raise max_bad to {enough_max_bad(self._found.count('bad'), self._found.images)}"
        )

    def _where(self) -> str:
        if self._table is None:
            return "Pass quarantine=<path> for the whole list."
        return f"The whole list is in {os.fspath(self._table)}."

    def _empty(self, spoilt: dict[int, tuple[int, Finding]], before: int) -> None:
        """Adds the classes that only had bad images."""
        if not spoilt:
            return
        empty: list[str] = []
        there = np.unique(self.columns.array("label")[before:])
        for label in sorted(set(spoilt).difference(there.tolist())):
            count, first = spoilt[label]
            reason = f"a class without images: {'its only one is' if count == 1 else f'all {count:,} are'} bad"
            empty.append(f"class {first.name or label} of {first.source}")
            self._found.add(Finding("left out", empty[-1], reason, first.source, label, name=first.name))
        if empty:
            self._found.told.append(f"all images are bad of {listing(empty, 3)}")

    def _places(self, rows: NDArray[np.intp]) -> list[str]:
        paths = self.columns.paths().take(pa.array(rows)).to_pylist()
        offsets, lengths = (self.columns.array(name)[rows].tolist() for name in ("offset", "length"))
        return [
            str(ImageRef(path, offset, None if length < 0 else length))
            for path, offset, length in zip(paths, offsets, lengths, strict=True)
        ]


# --- one image


def _inspect(rows: list[Row], reader: Reader) -> tuple[list[_Good], list[tuple[Finding, int | None]]]:
    """What is to be known of good rows, and what is wrong with the others, with their labels if they have any."""
    good, bad = [], []
    for row in rows:
        label = None
        try:
            label = _label(row.label)
            good.append(_examined(row, label, reader))
        except BadImage as error:
            bad.append((_finding(row, error.reason), label))
        except GuieError as error:
            bad.append((_finding(row, str(error)), label))
        except Exception as error:  # a plugin's rows, or a decoder, may do anything; one image is not worth the run
            bad.append((_finding(row, f"{type(error).__name__}: {error}"), label))
    return good, bad


def _examined(row: Row, label: int, reader: Reader) -> _Good:
    image = row.image
    texts = row.source, row.category, row.split, row.role, row.name
    try:
        "".join((image.path, image.compression, *texts)).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise GuieError(_no_text(row)) from error
    data = reader.read(image)
    width, height = examine(data)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    place = image.path, image.offset, -1 if image.length is None else image.length, image.compression
    original = label if row.original_label is None else _label(row.original_label)
    return _Good(*place, label, original, *texts, width, height, digest, len(data))


def _label(given: Any) -> int:
    try:
        label = operator.index(given)
    except TypeError:
        raise GuieError(f"its label is {given!r}, not a whole number") from None
    if not 0 <= label < _MAX_LABEL:
        raise GuieError(f"its label {label} is not in 0..{_MAX_LABEL - 1}")
    return label


def _no_text(row: Row) -> str:
    """What is wrong with the texts of a row."""
    said = {name: getattr(row, name) for name in ("source", "category", "split", "role", "name")}
    for name, text in {"path": row.image.path, "compression": row.image.compression, **said}.items():
        if not isinstance(text, str):
            return f"its {name} is {text!r}, not text"
        if printable(text) != text:
            return f"its {name} is no UTF-8; rename it"
    return "its texts cannot be written as UTF-8"


def _finding(row: Any, reason: str) -> Finding:
    image, source, name = getattr(row, "image", row), getattr(row, "source", ""), getattr(row, "name", "")
    place = str(image) if isinstance(image, ImageRef) else repr(image)
    reason = reason.removeprefix(f"{place}: ")
    return Finding(
        "bad",
        printable(place),
        reason,
        source if isinstance(source, str) else "",
        getattr(row, "label", None) if (original := getattr(row, "original_label", None)) is None else original,
        name=name if isinstance(name, str) else "",
    )


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


# --- all of them


def _plugin(dataset: Dataset) -> dict[str, str] | None:
    """Who gave the data set; None for a class that no plugin offers."""
    target = f"{type(dataset).__module__}:{type(dataset).__qualname__}"
    for entry in plugins().entries("datasets"):
        if entry.target == target and entry.owner is not None:
            return {"name": entry.name, "distribution": entry.owner.distribution, "version": entry.owner.version}
    return None
