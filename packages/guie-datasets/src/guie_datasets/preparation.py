"""Data sets to a manifest: every image read once, checked, measured and hashed; the bad ones named."""

from __future__ import annotations

import csv
import hashlib
import itertools
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from guie_core import GuieError, Interrupted
from guie_core.files import atomic_write
from guie_core.interrupt import interruptible
from guie_core.progress import bar

from .decoding import BadImage, examine
from .manifest import SCHEMA, Manifest, fixed_bytes
from .reading import Reader, ordered_map
from .rows import Dataset, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BATCH = 32  # rows a thread takes at once
_CHUNK = 65_536  # rows gathered as Python objects before they become columns
_MAX_LABEL = 2**48  # leaves room for the offsets of many data sets

Kind = Literal["bad", "duplicate", "conflict", "left out"]
_IN_WORDS: dict[Kind, str] = {
    "bad": "bad",
    "duplicate": "repeated",
    "conflict": "kept though equal to an image of another class",
    "left out": "left out",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about the data.

    kind: "bad": cannot be used; kept out. "duplicate": the same bytes with the same label as an earlier row; kept out
    unless asked otherwise. "conflict": the same bytes as an earlier row, but another label; kept. "left out": not meant
    to be an image, by the data set's own rules.
    place: the file, with the part of it where that matters. label: as the data set gives it.
    """

    kind: Kind
    place: str
    reason: str
    source: str = ""
    label: Any = None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """What was found wrong, in order of the rows; `images` is the number of rows that were examined, good and bad."""

    findings: tuple[Finding, ...]
    images: int

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def count(self, kind: Kind) -> int:
        return sum(finding.kind == kind for finding in self.findings)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the findings as a CSV table: kind, place, source, label, reason."""
        with atomic_write(path, "w") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["kind", "place", "source", "label", "reason"])
            for finding in self.findings:
                label = "" if finding.label is None else finding.label
                table.writerow([finding.kind, finding.place, finding.source, label, finding.reason])

    def __str__(self) -> str:
        """The counts in words, "2 bad, 1 repeated"; "" where nothing was found."""
        kinds = Counter(finding.kind for finding in self.findings)
        return ", ".join(f"{kinds[kind]:,} {words}" for kind, words in _IN_WORDS.items() if kinds[kind])


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
      has those of the data sets.
    - Sizes come from the headers. Images are not decoded, except where the end of the file looks wrong or the format
      does not tell (see `decoding.examine`); each is read and hashed once, by `workers` threads (default: one a core,
      at most 8).
    - Rows with the same bytes and the same label are kept once, unless `keep_duplicates`. Of the same bytes with
      different labels all are kept, and listed: one of the labels is likely wrong.
    - `quarantine` is a path for the table of findings (CSV), written also when this fails.

    Raises GuieError if more than `max_bad` of the rows are bad (it lists the first ten), if there are no images, or as
    the data sets do; Interrupted on Ctrl-C.
    """
    if not datasets:
        raise GuieError("no data sets to prepare: name at least one")
    gathered = _Gathered()
    about = [_gather(dataset, gathered, workers or min(8, os.cpu_count() or 1)) for dataset in datasets]
    table, origin = gathered.table(), gathered.origin()
    labels = table.column("label").to_numpy()
    offsets = np.array([each["label_offset"] for each in about])
    keep = np.ones(len(labels), bool)
    for row, earlier, same_label in _repeated(table.column("hash"), labels):
        place, before = _place(table, row), _place(table, earlier)
        reason = f"the same image as {before}" + ("" if same_label else ", which has another label")
        local = int(labels[row] - offsets[origin[row]])
        kind: Kind = "duplicate" if same_label else "conflict"
        gathered.findings.append(Finding(kind, place, reason, table.column("source")[row].as_py(), local))
        keep[row] = keep_duplicates or not same_label
    result = Quarantine(tuple(gathered.findings), gathered.rows)
    if quarantine is not None:
        result.write(quarantine)
    _judge(result, max_bad, quarantine)
    kept = table.filter(pa.array(keep))
    encoded = np.unique(kept.column("label").to_numpy(), return_inverse=True)[1]
    kept = kept.set_column(kept.column_names.index("label"), "label", pa.array(encoded, pa.int64()))
    kept = kept.append_column("original_label", pa.array((labels - offsets[origin])[keep], pa.int64()))
    provenance = {"made_by": f"guie-datasets {version('guie-datasets')}", "datasets": about, "findings": str(result)}
    return Manifest(kept, provenance), result


class _Gathered:
    """Good rows as columns, findings, and the highest label so far."""

    def __init__(self) -> None:
        self.rows = 0
        self.highest = -1
        self.findings: list[Finding] = []
        self._chunks: list[pa.RecordBatch] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._origin: list[NDArray[np.int32]] = []
        self._good = 0

    def add(self, row: Row, label: int, size: tuple[int, int], digest: bytes) -> None:
        image = row.image
        length = -1 if image.length is None else image.length
        place = image.path, image.offset, length
        said = label, row.source, row.category, row.split, row.role, row.name
        values: tuple[Any, ...] = (*place, *said, *size, digest)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._good += 1
        if len(self._columns["path"]) == _CHUNK:
            self._flush()

    def close(self, number: int, before: int) -> None:
        """Ends a data set: its good rows came from data set `number`."""
        self._origin.append(np.full(self._good - before, number, np.int32))

    @property
    def good(self) -> int:
        return self._good

    def _flush(self) -> None:
        arrays = [
            (
                pa.array(values, field.type.value_type).dictionary_encode()
                if pa.types.is_dictionary(field.type)
                else pa.array(values, field.type)
            )
            for field, values in zip(SCHEMA, self._columns.values(), strict=True)
        ]
        self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        for values in self._columns.values():
            values.clear()

    def table(self) -> pa.Table:
        self._flush()
        return pa.Table.from_batches(self._chunks, SCHEMA).combine_chunks()

    def origin(self) -> NDArray[np.int32]:
        return np.concatenate(self._origin)


def _gather(dataset: Dataset, into: _Gathered, workers: int) -> dict[str, Any]:
    """Adds one data set's rows; returns what the manifest tells about it."""
    offset, before, seen = into.highest + 1, into.good, into.rows
    number = len(into._origin)
    name = type(dataset).__name__
    with ExitStack() as stack:
        reader = stack.enter_context(Reader())
        stop = stack.enter_context(interruptible())
        batches = ordered_map(
            lambda rows: [_inspect(row, reader) for row in rows], _batched(dataset.rows(), _BATCH), workers, 4 * workers
        )
        stack.callback(batches.close)
        progress = stack.enter_context(bar(dataset.count(), f"prepare {name}"))
        for batch in batches:
            for row, inspected in batch:
                into.rows += 1
                if isinstance(inspected, str):
                    into.findings.append(Finding("bad", str(row.image), inspected, row.source, row.label))
                else:
                    into.highest = max(into.highest, inspected.label + offset)
                    into.add(row, inspected.label + offset, inspected.size, inspected.digest)
            progress.advance(len(batch))
            if stop:
                raise Interrupted(f"stopped while {name} was prepared; nothing was written. Run the same command again")
    for item in dataset.left_out():
        into.rows += item.bad
        into.findings.append(Finding("bad" if item.bad else "left out", item.place, item.reason))
    into.close(number, before)
    return {**dataset.provenance(), "rows": into.rows - seen, "good": into.good - before, "label_offset": offset}


@dataclass(frozen=True, slots=True)
class _Inspected:
    label: int
    size: tuple[int, int]
    digest: bytes


def _inspect(row: Row, reader: Reader) -> tuple[Row, _Inspected | str]:
    """What is to be known about an image, or what is wrong with it."""
    try:
        label = operator.index(row.label)
    except TypeError:
        return row, f"its label is {row.label!r}, not a whole number"
    if not 0 <= label < _MAX_LABEL:
        return row, f"its label {label} is not in 0..{_MAX_LABEL - 1}"
    try:
        data = reader.read(row.image)
        size = examine(data)
    except BadImage as error:
        return row, error.reason
    except GuieError as error:
        return row, str(error).removeprefix(f"{row.image}: ")
    return row, _Inspected(label, size, hashlib.blake2b(data, digest_size=16).digest())


def _batched(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _repeated(hashes: Any, labels: NDArray[np.int64]) -> Iterator[tuple[int, int, bool]]:
    """(row, earlier row, same label) for each row whose bytes occur before, in order of the rows."""
    words = np.concatenate([np.empty((0, 16), np.uint8), *map(fixed_bytes, hashes.chunks)]).view(np.uint64)
    order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
    same = np.all(words[order[1:]] == words[order[:-1]], axis=1)
    starts = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0) == 1)
    stops = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0) == -1)
    found = []
    for start, stop in zip(starts, stops, strict=True):
        first: dict[int, int] = {}
        group = order[start : stop + 1]
        for row in group.tolist():
            label = int(labels[row])
            if first:
                found.append((row, first.get(label, int(group[0])), label in first))
            first.setdefault(label, row)
    yield from sorted(found)


def _place(table: pa.Table, row: int) -> str:
    path, offset, length = (table.column(name)[row].as_py() for name in ("path", "offset", "length"))
    return path if length < 0 else f"{path}@{offset}+{length}"


def _judge(quarantine: Quarantine, max_bad: float, written: str | os.PathLike[str] | None) -> None:
    bad = [finding for finding in quarantine if finding.kind == "bad"]
    total = quarantine.images
    table = f"The whole list is in {written}." if written is not None else "Pass quarantine=<path> for the whole list."
    first = "\n".join(f"  {finding.place}: {finding.reason}" for finding in bad[:10])
    if bad and (len(bad) > max_bad * total):
        share = len(bad) / total
        more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        raise GuieError(
            f"{len(bad):,} of {total:,} images are bad ({share:.2%}), more than max_bad = {max_bad:.2%} allows:\n"
            f"{first}{more}\n{table} Mend or remove them, or raise max_bad to {_round_up(share)}."
        )
    if total == len(bad):
        raise GuieError("no images: the data sets gave none" if not total else f"no image is good:\n{first}\n{table}")


def _round_up(share: float) -> float:
    """The next limit with two digits that lets `share` pass."""
    scale = 10 ** (1 - int(np.floor(np.log10(share))))
    return float(min(1.0, np.ceil(share * scale) / scale))
