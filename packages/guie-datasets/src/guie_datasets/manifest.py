"""The manifest: a table of images, one row each; the only hand-off between data and training."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guie_core import GuieError, UsageError
from guie_core.files import atomic_write
from guie_core.wording import did_you_mean, ended, listing
from guie_datasets.rows import ImageRef

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

#: Raised when a column changes its meaning or goes away; a new optional column does not raise it.
SCHEMA_VERSION = 1

_METADATA = b"guie.manifest"
_TEXT = pa.dictionary(pa.int32(), pa.string())
# no dictionary: with a file for each image all its values differ, and five million of them took a minute to open
_PATH = pa.large_string()
_HASH = pa.binary(16)

SCHEMA = pa.schema(
    [
        ("path", _PATH),
        ("offset", pa.int64()),
        ("length", pa.int64()),  # -1: the whole file
        ("compression", _TEXT),
        ("label", pa.int64()),
        ("source", _TEXT),
        ("category", _TEXT),
        ("split", _TEXT),
        ("role", _TEXT),
        ("name", _TEXT),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("hash", _HASH),
    ]
)
_DEFAULTS: dict[str, Any] = {"offset": 0, "length": -1} | dict.fromkeys(
    ("compression", "source", "category", "split", "role", "name"), ""
)
_LATER = ("compression",)  # columns that files of this version may lack

_Column = Callable[[], Any]  # gives the column as one pa.Array, the same each time


class Manifest:
    """Images in a fixed order, with what is known about each.

    Columns, and how `column` gives them:

    - path (str), offset, length (int64; length -1: the whole file), compression (str): where the bytes are; `images()`
      has them as one
    - label (int64): 0..C-1 over all images
    - source, category, split, role, name (str)
    - width, height (int32): of the decoded image, after EXIF orientation
    - hash: blake2b of the encoded bytes, 16 bytes stored, 32 hexadecimal digits given ("S32")

    A manifest never changes: `select` and `with_column` give a new one. `provenance` says where it comes from.

    A column is read, or selected, when it's first asked for: five million rows open at once, and what is never looked
    at takes no memory. All columns of five million images in files of their own take about 1 GB.
    """

    def __init__(self, table: pa.Table, provenance: Mapping[str, Any] | None = None) -> None:
        for name in _LATER:
            if name not in table.column_names:
                table = table.append_column(name, _all(_DEFAULTS[name], table.num_rows))
        if missing := [name for name in SCHEMA.names if name not in table.column_names]:
            raise GuieError(f"a manifest needs the columns {', '.join(missing)}")
        extra = [field for field in table.schema.remove_metadata() if field.name not in SCHEMA.names]
        schema = pa.schema([*SCHEMA, *extra])
        table = table.select(schema.names).cast(schema)
        columns = {name: _there(_complete(name, _one(table.column(name)))) for name in schema.names}
        self._set(columns, table.num_rows, provenance)

    @classmethod
    def _of(cls, columns: Mapping[str, _Column], rows: int, provenance: Mapping[str, Any] | None) -> Manifest:
        """From columns that are not made yet; those of SCHEMA first, in its order."""
        manifest = cls.__new__(cls)
        manifest._set(columns, rows, provenance)
        return manifest

    def _set(self, columns: Mapping[str, _Column], rows: int, provenance: Mapping[str, Any] | None) -> None:
        self._columns, self._rows = columns, rows
        self.provenance: Mapping[str, Any] = dict(provenance or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.table, self.provenance)

    @classmethod
    def from_columns(cls, columns: Mapping[str, ArrayLike], provenance: Mapping[str, Any] | None = None) -> Manifest:
        """From arrays or lists: path, label, width, height and hash (32 hexadecimal digits each), and any of
        offset, length, source, category, split, role and name.

        Raises GuieError for values that a column cannot have, and for columns of several lengths.
        """
        if missing := [name for name in SCHEMA.names if name not in columns and name not in _DEFAULTS]:
            raise GuieError(f"a manifest needs the columns {', '.join(missing)}")
        rows = len(np.asarray(columns["label"]))
        full = {name: [value] * rows for name, value in _DEFAULTS.items()} | dict(columns)
        made = {name: _arrow(name, values) for name, values in full.items()}
        for name, column in made.items():
            if len(column) != rows:
                raise GuieError(f"column {name!r} has {len(column):,} values, and 'label' has {rows:,}")
        return cls(pa.table(made), provenance)

    # --- the file

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Opens a manifest; the file may be replaced meanwhile, but not overwritten.

        Raises GuieError: no such file, not a manifest, or one of a newer guie. Damage in the middle of the file is
        found, and raised, when the column is first looked at.
        """
        path = Path(path)
        if not path.exists():
            raise GuieError(f"{path}: no such file. A manifest is what preparing data sets writes")
        if what := _to_prepare(path):
            command = f"guie data prepare {shlex.quote(os.fspath(path))}"
            raise GuieError(f"{path}: {what}no manifest. Prepare it first: {command}")
        with _described(path):
            file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            schema = file.schema_arrow
            about = _about(path, schema.metadata or {})
        missing = [name for name in SCHEMA.names if name not in schema.names and name not in _LATER]
        if missing:
            raise GuieError(f"{path}: the manifest has no column {', '.join(missing)}. Prepare the data again")
        rows, lock = file.metadata.num_rows, threading.Lock()

        def read(name: str) -> Any:
            if name not in schema.names:
                return _all(_DEFAULTS[name], rows)
            with _described(path), lock:
                column = file.read([name]).column(name)
                column = _one(column.cast(SCHEMA.field(name).type) if name in SCHEMA.names else column)
            return _complete(name, column, f"{path}: ")

        names = [*SCHEMA.names, *(name for name in schema.names if name not in SCHEMA.names)]
        columns = {name: functools.cache(functools.partial(read, name)) for name in names}
        return cls._of(columns, rows, about["provenance"])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes Parquet with the schema's version and the provenance; the file appears only when complete."""
        about = {"version": SCHEMA_VERSION, "provenance": self.provenance}
        table = self.table.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        with atomic_write(Path(path)) as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)

    # --- the content

    @cached_property
    def table(self) -> pa.Table:
        """All columns, each in one piece."""
        return pa.table({name: column() for name, column in self._columns.items()})

    @property
    def column_names(self) -> list[str]:
        """The columns there are, those that every manifest has first."""
        return list(self._columns)

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        labels = len(np.unique(self.column("label")))
        return f"<Manifest: {len(self):,} images of {labels:,} classes, {self.digest[:8]}>"

    def column(self, name: str) -> NDArray[Any]:
        """One column as an array [N], of the types that the class names. Raises GuieError for an unknown one."""
        chunk = self._chunk(name)
        if chunk.type == _HASH:
            return _hex(fixed_bytes(chunk))
        if chunk.type == _PATH:
            return np.array(chunk.to_pylist(), dtype=object)
        if pa.types.is_dictionary(chunk.type):
            values = np.array(chunk.dictionary.to_pylist(), dtype=object)
            chosen: NDArray[Any] = values[numbers(chunk.indices)]
            return chosen
        return numbers(chunk)

    @property
    def hashes(self) -> NDArray[np.uint8]:
        """The column hash as it is stored, 16 bytes a row [N, 16]: half of what `column` gives, and made in no time."""
        return fixed_bytes(self._chunk("hash"))

    def images(self) -> Sequence[ImageRef]:
        """Where the bytes of each image are; made one by one when asked for."""
        return _Images(self._chunk("path"), self.column("offset"), self.column("length"), self._chunk("compression"))

    def select(self, rows: ArrayLike) -> Manifest:
        """The rows that a mask [N] is true for, or those of the given numbers in the given order.

        Raises ValueError for a mask of another length; IndexError for rows that there are not.
        """
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"a mask of {chosen.shape} does not fit {len(self)} rows")
            chosen = np.flatnonzero(chosen)
        elif chosen.shape == (0,):
            chosen = chosen.astype(np.int64)
        elif chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise IndexError(f"rows are a mask, or a list of whole numbers, not {rows!r}")
        chosen = chosen.astype(np.int64)  # a copy, since columns are selected later
        if chosen.size and not -1 < chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows {chosen.min()}..{chosen.max()} of {len(self)}")

        # not pa.array, which imports pandas to see whether it was given something of it
        indices = pa.Array.from_buffers(pa.int64(), len(chosen), [None, pa.py_buffer(chosen)])

        def take(column: _Column) -> Any:
            return column().take(indices)

        columns = {name: functools.cache(functools.partial(take, column)) for name, column in self._columns.items()}
        return Manifest._of(columns, len(chosen), self.provenance)

    def with_column(self, name: str, values: ArrayLike) -> Manifest:
        """With that column replaced, or added at the end. Raises GuieError for values that it cannot have."""
        column = _arrow(name, values)
        if len(column) != len(self):
            raise ValueError(f"{len(column)} values for {len(self)} rows")
        return Manifest._of({**self._columns, name: _there(column)}, len(self), self.provenance)

    def with_provenance(self, provenance: Mapping[str, Any]) -> Manifest:
        """With another account of where it comes from."""
        return Manifest._of(self._columns, len(self), provenance)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame; hashes as text, repeated text as categories."""
        table = self.table.set_column(
            self.table.column_names.index("hash"), "hash", pa.array(self.column("hash").astype("U32"), pa.string())
        )
        frame: pd.DataFrame = table.to_pandas()
        return frame

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits over hash, label, source and category of the rows, in order.

        Where the files lie and how rows are split is not in it: moving the data or splitting anew leaves it the same.
        """
        whole = hashlib.blake2b(b"guie.manifest.1", digest_size=16)
        whole.update(self.hashes.tobytes())
        whole.update(self.column("label").astype("<i8").tobytes())
        for name in ("source", "category"):
            codes, values = self._codes(name)
            whole.update(json.dumps(values).encode())
            whole.update(codes.astype("<i4").tobytes())
        return whole.hexdigest()

    def _chunk(self, name: str) -> Any:
        if name not in self._columns:
            raise GuieError(f"a manifest has no column {name!r}. It has: {', '.join(self._columns)}")
        return self._columns[name]()

    def _codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A text column as numbers by first appearance [N], and the text of each number."""
        chunk = self._chunk(name)
        codes = numbers(chunk.indices)
        first = np.full(len(chunk.dictionary), len(codes))
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        order = np.argsort(first)[: np.count_nonzero(first < len(codes))]
        rank = np.zeros(len(first), np.int32)
        rank[order] = np.arange(len(order))
        return rank[codes], [chunk.dictionary[int(code)].as_py() for code in order]


class _Images(Sequence[ImageRef]):
    """References made from the columns when asked for: five million of them would take 2 GB."""

    def __init__(self, paths: Any, offsets: NDArray[np.int64], lengths: NDArray[np.int64], compressions: Any) -> None:
        self._paths, self._offsets, self._lengths = paths, offsets, lengths
        self._compressions = compressions.dictionary.to_pylist(), numbers(compressions.indices)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> ImageRef: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRef]: ...
    def __getitem__(self, index: int | slice) -> ImageRef | list[ImageRef]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        length = int(self._lengths[index])
        texts, codes = self._compressions
        place = int(self._offsets[index]), None if length < 0 else length
        return ImageRef(self._paths[index].as_py(), *place, texts[codes[index]])

    def __iter__(self) -> Iterator[ImageRef]:
        return (self[number] for number in range(len(self)))


#: For manifests without splits.
NO_SPLITS = (
    "the manifest has no splits. Experiments make them: the manifest with splits is stages/split/manifest.parquet in "
    "the folder of a run"
)


def column_is(manifest: Manifest, name: str, value: str) -> NDArray[np.bool_]:
    """Which rows have that value in a column of text. UsageError, naming those that there are, if none has."""
    codes, values = manifest._codes(name)
    if value not in values:
        if name == "split" and not any(values):
            raise UsageError(NO_SPLITS)
        there = [repr(each) for each in values if each] + ["images without"] * ("" in values)
        raise UsageError(f"there is no {name} {value!r}.{did_you_mean(value, values)} It has: {listing(there)}")
    found: NDArray[np.bool_] = codes == values.index(value)
    return found


def _to_prepare(path: Path) -> str:
    """What a path is that can be prepared but is no manifest, in words: "a folder, and "; "" for what may be one."""
    if path.is_dir():
        return "a folder, and "
    if path.suffix.lower() in (".csv", ".tsv"):
        return "a table, and "
    shards = (".tar", ".tfrec", ".tfrecs", ".tfrecord", ".tfrecords")
    return "shards of images, and " if path.name.removesuffix(".gz").endswith(shards) else ""


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a manifest, be it of another version: `Manifest.read` says what is wrong with it."""
    try:
        return _METADATA in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _about(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if _METADATA not in metadata:
        command = f"guie data prepare {shlex.quote(os.fspath(path))}"
        raise GuieError(f"{path}: a Parquet table, and no manifest. Prepare it first: {command}")
    try:
        about: dict[str, Any] = json.loads(metadata[_METADATA])
        version, _ = int(about["version"]), dict(about["provenance"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuieError(
            f"{path}: a damaged manifest: what it says of itself makes no sense. Prepare it again"
        ) from error
    if version != SCHEMA_VERSION:
        remedy = "Update guie-datasets" if version > SCHEMA_VERSION else "Prepare the data again"
        raise GuieError(f"{path}: a manifest of version {version}; this guie-datasets reads {SCHEMA_VERSION}. {remedy}")
    return about


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Turns what the reader of Parquet raises into GuieError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise GuieError(f"{path}: not a manifest, or a damaged one: {ended(error)} Prepare the data again") from error


def _there(array: Any) -> _Column:
    """A column that is there already."""
    return lambda: array


def _one(column: Any) -> Any:
    """A chunked column in one piece."""
    if column.num_chunks == 1:  # which combine_chunks would copy
        return column.chunk(0)
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)


def _all(text: str, rows: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


def _arrow(name: str, values: ArrayLike) -> Any:
    """Values as a column of their own: what they were given as may change later."""
    try:
        column = _converted(name, values if isinstance(values, list) else np.array(values))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise GuieError(f"column {name!r}: {error}") from error
    return _complete(name, column)


def _converted(name: str, values: list[Any] | NDArray[Any]) -> Any:
    kind = SCHEMA.field(name).type if name in SCHEMA.names else None
    if kind == _HASH:
        digests = values if isinstance(values, list) else values.tolist()
        return pa.array([bytes.fromhex(each.decode() if isinstance(each, bytes) else each) for each in digests], kind)
    if kind == _TEXT:
        return pa.array(values, pa.string()).dictionary_encode()
    if kind is not None:
        return pa.array(values if kind == _PATH else np.asarray(values), kind)  # of a list it would cut off fractions
    column = pa.array(values)
    return column.dictionary_encode() if pa.types.is_string(column.type) else column


def _complete(name: str, column: Any, where: str = "") -> Any:
    """A column, every row of which has a value; of those that not every manifest has some may have none."""
    if column.null_count and name in SCHEMA.names:
        row = column.is_null().index(True).as_py()
        raise GuieError(f"{where}column {name!r} has no value in row {row:,}")
    return column


def numbers(chunk: Any) -> NDArray[Any]:
    """A column as an array [N]. Numbers are taken from their buffer, since pyarrow's own way imports pandas first."""
    plain = pa.types.is_integer(chunk.type) or pa.types.is_floating(chunk.type)
    if not plain or chunk.null_count or not len(chunk):
        array: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
        return array
    whole: NDArray[Any] = np.frombuffer(chunk.buffers()[1], chunk.type.to_pandas_dtype())
    return whole[chunk.offset : chunk.offset + len(chunk)]


def fixed_bytes(chunk: Any) -> NDArray[np.uint8]:
    """A column of 16 bytes a row as [N, 16]."""
    whole = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
    return whole[16 * chunk.offset : 16 * (chunk.offset + len(chunk))].reshape(-1, 16)


# the two digits of each byte, as they lie in memory
_DIGITS = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), "<u2")


def _hex(data: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return _DIGITS[data].view("S32").reshape(len(data))
