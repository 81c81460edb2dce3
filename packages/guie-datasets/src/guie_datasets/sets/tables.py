"""CSV and Parquet tables of images as a data set."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from guie_core import GuieError, UsageError
from guie_core.wording import did_you_mean, listing
from guie_datasets.compressed import COMPRESSIONS
from guie_datasets.extent import Extent, counted
from guie_datasets.places import Inside, absolute, check_path, is_text, joined
from guie_datasets.rows import UNKNOWN, Dataset, ImageRef, LeftOut, Row

#: What a table can say of an image, besides its path and its label.
OPTIONAL = ("source", "category", "split", "role", "name")
FIELDS = ("path", "label", *OPTIONAL)

#: Which part of the file an image is, as `guie data export --to csv` writes it.
PLACE = ("offset", "length")

_WHOLE = re.compile(r"\s*([+-]?\d{1,18})(\.0*)?\s*", re.ASCII)  # pandas writes "7.0" when a column has gaps
_PARQUET = (b"PAR1", b"PARE")


class Line(NamedTuple):
    """A row of a table: its number for messages, and its values or what is wrong with it.

    number: of the line in a CSV file (where the row begins), of the row in a Parquet file, both from 1.
    values: one for each column asked for; None where `problem` says why there are none.
    """

    number: int
    values: Sequence[Any] | None
    problem: str = ""


class Table(Dataset):
    """Images listed in a CSV or Parquet table, one row each, in the table's order.

    file: the table. CSV has a line of column names first.
    root: the folder that paths are relative to and must not leave, by ".." or links or as absolute paths; those that do
    are bad rows. Default: paths are relative to the table's folder and may lead anywhere.
    columns: names of the columns for "path", "label", "source", "category", "split", "role" and "name", where they
    differ from these words. All but path and label are optional, and looked for unless their name is "".
    source: for rows that the table says nothing of; default: the file's name.
    category: for rows that the table says nothing of.
    delimiter: of CSV; default: a tab for .tsv files, a comma for others.
    encoding: of CSV, as Python calls it; UTF-8 may have a mark.

    A table with columns "offset" and "length" says which bytes of the file an image is (length -1: all), and by
    "compression" how the file is packed: so a manifest that was exported as CSV is read back.

    Labels that are whole numbers from 0 are labels as they are. When most labels of the column are other text, each
    different text is a class: it becomes the row's name, and its label is its number in the order of all of them, by
    code point.

    Rows that cannot be used are bad, and named by their line: too few values, no path, a label that is none. Whether an
    image is there, `prepare` finds out. The table is read as a stream, twice: labels first.

    `rows()` raises GuieError if the file is no table, or lacks a column.
    """

    #: Whether a row without a label is bad, and a table without labels none. Where False, as for prediction, the label
    #: is then UNKNOWN.
    needs_labels = True

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        columns: Mapping[str, str] | None = None,
        source: str = "",
        category: str = "",
        delimiter: str = "",
        encoding: str = "utf-8",
    ) -> None:
        columns = dict(columns or {})
        for name in columns:
            if name not in FIELDS:
                hint = did_you_mean(name, FIELDS) or f" They are {', '.join(FIELDS)}"
                raise UsageError(f"columns says where to find {name!r}, which a row has not.{hint}")
        if len(delimiter) > 1 or delimiter in ('"', "\r", "\n"):
            raise UsageError(f"delimiter must be one character, and no quotation mark, not {delimiter!r}")
        self.file = absolute(file)
        self.root = None if root is None else absolute(root)
        self.columns = columns
        self.source = source or self.file.stem
        self.category = category
        self.delimiter = delimiter
        self.encoding = encoding
        self._left_out: list[LeftOut] = []

    def rows(self) -> Iterator[Row]:
        self._left_out = left_out = []
        classes = self._classes()
        inside = None if self.root is None else Inside(self.root)
        fields = self._fields()
        optional = [field for field in fields if field in OPTIONAL]
        parts = self._part_columns()
        for line in self._lines([self._column(field) for field in fields] + parts):
            if line.values is None:
                left_out.append(self._bad(line.number, line.problem))
                continue
            given = dict(zip([*fields, *parts], line.values, strict=True))
            try:
                image = _image(self._path(given["path"], inside), given)
                label, name = self._label(given.get("label"), classes)
                said = {field: _text(given[field]) for field in optional}
            except ValueError as error:
                left_out.append(self._bad(line.number, str(error)))
                continue
            yield Row(
                image,
                label,
                said.get("source") or self.source,
                said.get("category") or self.category,
                said.get("split", ""),
                said.get("role", ""),
                said.get("name") or name,
            )

    def expected(self) -> Extent:
        return counted(self.rows())

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out

    def sources(self) -> Iterator[Path]:
        """The table, and the files that it names and that are there, as often as it names them."""
        yield self.file
        yield from (Path(row.image.path) for row in self.rows() if os.path.isfile(row.image.path))

    def tables(self) -> Sequence[Path]:
        return [self.file]

    def advice(self, reason: str) -> str:
        if reason.startswith("cannot be read: No such file"):
            folder, how = (self.file.parent, "the table's folder") if self.root is None else (self.root, "root")
            return (
                f"Paths of {self.file.name} are taken from {how}, {folder}. If the images lie elsewhere: root=FOLDER."
            )
        return ""

    def _column(self, field: str) -> str:
        return self.columns.get(field, field)

    def _fields(self) -> list[str]:
        """What the table says of its rows. Raises GuieError if it lacks a column that is needed."""
        there = column_names(self.file, self.delimiter, self.encoding)
        wanted = [field for field in FIELDS if self._column(field)]
        for field in wanted:
            needed = field == "path" or field in self.columns or (field == "label" and self.needs_labels)
            if needed and self._column(field) not in there:
                raise GuieError(f"{self.file}: {_no_column(self._column(field), field, there)}")
        return [field for field in wanted if self._column(field) in there]

    def _part_columns(self) -> list[str]:
        """Columns that say which part of a file an image is; one of the two alone means something else."""
        there = column_names(self.file, self.delimiter, self.encoding)
        if not all(name in there for name in PLACE):
            return []
        return [*PLACE, *(name for name in ("compression",) if name in there)]

    def _lines(self, columns: Sequence[str]) -> Iterator[Line]:
        return read_table(self.file, columns, delimiter=self.delimiter, encoding=self.encoding)

    def _bad(self, number: int, problem: str) -> LeftOut:
        return LeftOut(where(self.file, number), problem, bad=True)

    def _classes(self) -> dict[str, int] | None:
        """The label of each text, or None when labels are whole numbers."""
        if "label" not in self._fields():  # which says what is missing
            return None
        numbers, others = 0, 0
        texts: set[str] = set()
        for line in self._lines([self._column("label")]):
            if line.values is None:
                continue
            value = line.values[0]
            whole = _whole(value) is not None
            numbers += whole
            if isinstance(value, str) and value.strip() and is_text(value):
                texts.add(value.strip())
                others += not whole
        return {text: number for number, text in enumerate(sorted(texts))} if others > numbers else None

    def _label(self, value: Any, classes: Mapping[str, int] | None) -> tuple[int, str]:
        """(label, name). Raises ValueError in words."""
        try:
            return _label(value, classes)
        except ValueError:
            if self.needs_labels:
                raise
            return UNKNOWN, ""

    def _path(self, value: Any, inside: Inside | None) -> str:
        if not isinstance(value, str):
            raise ValueError("it has no path" if value is None else f"its path is {_shown(value)}, not text")
        if inside is not None:
            return inside.resolve(value)
        check_path(value)
        return joined(os.fspath(self.file.parent), value)


def _image(path: str, given: Mapping[str, Any]) -> ImageRef:
    """The file, or the part of it that the row names. Raises ValueError in words."""
    if "offset" not in given:
        return ImageRef(path)
    offset, length = (-1 if _text(given[name]).strip() == "" else _whole(given[name]) for name in PLACE)
    if offset == length == -1:  # nothing is said
        offset = 0
    if offset is None or length is None or offset < 0 or length < -1:
        raise ValueError(
            f"offset {_shown(given['offset'])} and length {_shown(given['length'])} name no part of a file"
        )
    compression = _text(given.get("compression")).strip()
    if compression not in ("", *COMPRESSIONS):
        raise ValueError(f"its file is packed by {_shown(compression)}, not by {listing(COMPRESSIONS)}")
    return ImageRef(path, offset, None if length < 0 else length, compression)


def _label(value: Any, classes: Mapping[str, int] | None) -> tuple[int, str]:
    """(label, name). Raises ValueError in words."""
    text = _text(value).strip()
    if not text:
        raise ValueError("it has no label")
    if classes is not None:
        return classes[text], text
    label = _whole(value)
    if label is None:
        raise ValueError(f"its label is {_shown(value)}, not a whole number")
    if label < 0:
        raise ValueError(f"its label is {label}; labels count from 0")
    return label, ""


def _whole(value: Any) -> int | None:
    if isinstance(value, str):
        if value.isdecimal() and value.isascii() and len(value) <= 18:
            return int(value)
        match = _WHOLE.fullmatch(value)
        return int(match[1]) if match else None
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value)
    if not is_text(text):
        raise ValueError(f"{_shown(text)} is no text in UTF-8; say what it is in, encoding='gb18030' for example")
    return text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def where(file: Path, number: int) -> str:
    """How messages name a row of a table."""
    return f"{file}, {'row' if _is_parquet(file) else 'line'} {number}"


def _no_column(column: str, field: str, there: Sequence[str]) -> str:
    if any("\0" in name for name in there):
        return "it is no UTF-8; if it is UTF-16, set encoding='utf-16'"
    if len(there) == 1 and (other := next((mark for mark in ";\t|, " if mark in there[0]), "")):
        return f"its columns seem to be separated by {other!r}; set delimiter={other!r}"
    hint = did_you_mean(column, there) or f" It has {listing(map(_shown, there))}."
    return f"no column {column!r} for the {field}.{hint} Name it: columns=dict({field}=...)"


# --- reading


def column_names(file: Path, delimiter: str = "", encoding: str = "utf-8") -> list[str]:
    """The names of a table's columns. Raises GuieError if it cannot be read or has none."""
    if _is_parquet(file):
        with _parquet(file) as table:
            names: list[str] = table.schema_arrow.names
            return names
    with _csv(file, delimiter, encoding) as lines:
        header = next(lines, None)
    if header is None or header.values is None or not any(header.values):
        problem = header.problem if header and header.problem else "it is empty"
        raise GuieError(f"{file}: no table: {problem}. A CSV table begins with a line of column names")
    return list(header.values)


def read_table(file: Path, columns: Sequence[str], *, delimiter: str = "", encoding: str = "utf-8") -> Iterator[Line]:
    """The rows of a CSV or Parquet table, of which it takes the values of `columns`, as a stream.

    Values of CSV are text. Rows that are no rows have a `problem`. Raises GuieError for what is no table, a Parquet
    file that is damaged (up to that place its rows have been given), or a column that is not there or there twice.
    """
    names = column_names(file, delimiter, encoding)
    for column in columns:
        if names.count(column) != 1:
            problem = f"has more than one column {column!r}" if column in names else f"has no column {column!r}"
            raise GuieError(f"{file}: it {problem}")
    if _is_parquet(file):
        yield from _parquet_rows(file, columns)
        return
    chosen = [names.index(column) for column in columns]
    with _csv(file, delimiter, encoding) as lines:
        next(lines)
        for line in lines:
            if line.values is None:
                yield line
            elif len(line.values) != len(names):
                yield Line(line.number, None, f"{len(line.values)} values for {len(names)} columns")
            else:
                yield Line(line.number, [line.values[index] for index in chosen])


@contextmanager
def _csv(file: Path, delimiter: str, encoding: str) -> Iterator[Iterator[Line]]:
    """The lines of a CSV file, the names of the columns first; empty lines are passed over."""
    delimiter = delimiter or ("\t" if file.suffix.lower() in (".tsv", ".tab") else ",")
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        # bytes that are no text in this encoding stay in their value, and make its row a bad one
        stream = open(file, encoding=encoding, errors="surrogateescape", newline="")  # noqa: SIM115
    except OSError as error:
        raise GuieError(f"{file}: cannot be read: {error.strerror or error}") from error
    except LookupError:
        raise UsageError(f"{file}: there is no text encoding {encoding!r}") from None
    with closing(stream):
        yield _csv_lines(stream, delimiter)


def _csv_lines(stream: TextIO, delimiter: str) -> Iterator[Line]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    number = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = f", lines {number} to {reader.line_num} are lost" if reader.line_num > number else ""
            yield Line(number, None, f"no CSV: {error}{lost}; a quotation mark may be missing")
        except (OSError, UnicodeError) as error:
            yield Line(number, None, f"the table cannot be read on from here: {error}")
            return
        else:
            if values:
                yield Line(number, values)
        number = reader.line_num + 1


def _is_parquet(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            return stream.read(4) in _PARQUET
    except OSError as error:
        raise GuieError(f"{file}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    """An open Parquet file; what pyarrow says against it becomes a GuieError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise GuieError(f"{file}: a damaged Parquet file: {error}") from error


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Line]:
    import pyarrow as pa

    number = 0
    with _parquet(file) as table:
        for column in columns:
            kind = table.schema_arrow.field(column).type
            if pa.types.is_nested(kind):
                raise GuieError(f"{file}: the column {column!r} holds {kind}, not one value for each row")
        for batch in table.iter_batches(8192, columns=list(dict.fromkeys(columns))):
            values = [_values(batch.column(column)) for column in columns]
            for row in zip(*values, strict=True):
                number += 1
                beyond = next((value for value in row if isinstance(value, _Beyond)), None)
                yield Line(number, row) if beyond is None else Line(number, None, beyond.problem)


class _Beyond(NamedTuple):
    """A value that Python has none for."""

    problem: str


def _values(array: Any) -> list[Any]:
    """What is in an array, with `_Beyond` for dates and times out of Python's range."""
    try:
        values: list[Any] = array.to_pylist()
        return values
    except (OverflowError, ValueError):
        return [_value(scalar) for scalar in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except (OverflowError, ValueError) as error:
        return _Beyond(f"its {scalar.type} is out of range: {error}")
