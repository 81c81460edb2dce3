"""The manifest: a table of images, one row each; the only hand-off between data and training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guie_core import GuieError
from guie_core.files import atomic_write

from .rows import ImageRef

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
    ("source", "category", "split", "role", "name"), ""
)


class Manifest:
    """Images in a fixed order, with what is known about each.

    Columns, and how `column` gives them:

    - path (str), offset, length (int64; length -1: the whole file): where the bytes are; `images()` has them as one
    - label (int64): 0..C-1 over all images
    - source, category, split, role, name (str)
    - width, height (int32): of the decoded image, after EXIF orientation
    - hash: blake2b of the encoded bytes, 16 bytes stored, 32 hexadecimal digits given ("S32")

    A manifest never changes: `select` and `with_column` give a new one. `provenance` says where it comes from.
    """

    def __init__(self, table: pa.Table, provenance: Mapping[str, Any] | None = None) -> None:
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise GuieError(f"a manifest needs the columns {', '.join(missing)}")
        extra = [field for field in table.schema.remove_metadata() if field.name not in SCHEMA.names]
        schema = pa.schema([*SCHEMA, *extra])
        self.table: pa.Table = table.select(schema.names).cast(schema).combine_chunks()
        self.provenance: Mapping[str, Any] = dict(provenance or {})

    @classmethod
    def from_columns(cls, columns: Mapping[str, ArrayLike], provenance: Mapping[str, Any] | None = None) -> Manifest:
        """From arrays or lists: path, label, width, height and hash (32 hexadecimal digits each), and any of
        offset, length, source, category, split, role and name."""
        if missing := [name for name in SCHEMA.names if name not in columns and name not in _DEFAULTS]:
            raise GuieError(f"a manifest needs the columns {', '.join(missing)}")
        rows = len(np.asarray(columns["label"]))
        full = {name: [value] * rows for name, value in _DEFAULTS.items()} | dict(columns)
        return cls(pa.table({name: _arrow(name, values) for name, values in full.items()}), provenance)

    # --- the file

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Opens a manifest. Raises GuieError: no such file, not a manifest, or one of a newer guie."""
        path = Path(path)
        if not path.is_file():
            raise GuieError(f"{path}: no such file. A manifest is what preparing data sets writes")
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                about = _about(path, file.schema_arrow.metadata or {})
                table = file.read()
        except (pa.ArrowException, OSError) as error:
            raise GuieError(f"{path}: not a manifest, or a damaged one: {error}. Prepare the data again") from error
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise GuieError(f"{path}: the manifest has no column {', '.join(missing)}. Prepare the data again")
        return cls(table, about["provenance"])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes Parquet with the schema's version and the provenance; the file appears only when complete."""
        about = {"version": SCHEMA_VERSION, "provenance": self.provenance}
        table = self.table.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        with atomic_write(Path(path)) as file:
            pq.write_table(table, file, compression="zstd")

    # --- the content

    def __len__(self) -> int:
        rows: int = self.table.num_rows
        return rows

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
            chosen: NDArray[Any] = values[chunk.indices.to_numpy(zero_copy_only=False)]
            return chosen
        array: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
        return array

    def images(self) -> Sequence[ImageRef]:
        """Where the bytes of each image are; made one by one when asked for."""
        return _Images(self._chunk("path"), self.column("offset"), self.column("length"))

    def select(self, rows: ArrayLike) -> Manifest:
        """The rows that a mask [N] is true for, or those of the given numbers in the given order."""
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"a mask of {chosen.shape} does not fit {len(self)} rows")
            chosen = np.flatnonzero(chosen)
        elif chosen.size == 0:
            chosen = chosen.astype(np.int64)
        return Manifest(self.table.take(pa.array(chosen)), self.provenance)

    def with_column(self, name: str, values: ArrayLike) -> Manifest:
        """With that column replaced, or added at the end."""
        column = _arrow(name, values)
        if len(column) != len(self):
            raise ValueError(f"{len(column)} values for {len(self)} rows")
        if name in self.table.column_names:
            return Manifest(self.table.set_column(self.table.column_names.index(name), name, column), self.provenance)
        return Manifest(self.table.append_column(name, column), self.provenance)

    def with_provenance(self, provenance: Mapping[str, Any]) -> Manifest:
        """With another account of where it comes from."""
        return Manifest(self.table, provenance)

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
        whole.update(fixed_bytes(self._chunk("hash")).tobytes())
        whole.update(self.column("label").astype("<i8").tobytes())
        for name in ("source", "category"):
            codes, values = self._codes(name)
            whole.update(json.dumps(values).encode())
            whole.update(codes.astype("<i4").tobytes())
        return whole.hexdigest()

    def _chunk(self, name: str) -> Any:
        if name not in self.table.column_names:
            raise GuieError(f"a manifest has no column {name!r}. It has: {', '.join(self.table.column_names)}")
        column = self.table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    def _codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """A text column as numbers by first appearance [N], and the text of each number."""
        chunk = self._chunk(name)
        codes = chunk.indices.to_numpy(zero_copy_only=False)
        first = np.full(len(chunk.dictionary), len(codes))
        first[codes[::-1]] = np.arange(len(codes))[::-1]
        order = np.argsort(first)[: np.count_nonzero(first < len(codes))]
        rank = np.zeros(len(first), np.int32)
        rank[order] = np.arange(len(order))
        return rank[codes], [chunk.dictionary[int(code)].as_py() for code in order]


class _Images(Sequence[ImageRef]):
    """References made from the columns when asked for: five million of them would take 2 GB."""

    def __init__(self, paths: Any, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self._paths, self._offsets, self._lengths = paths, offsets, lengths

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
        return ImageRef(self._paths[index].as_py(), int(self._offsets[index]), None if length < 0 else length)

    def __iter__(self) -> Iterator[ImageRef]:
        return (self[number] for number in range(len(self)))


def _about(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    if _METADATA not in metadata:
        raise GuieError(f"{path}: a Parquet file, but not a manifest of guie's")
    about: dict[str, Any] = json.loads(metadata[_METADATA])
    if about["version"] != SCHEMA_VERSION:
        newer = about["version"] > SCHEMA_VERSION
        remedy = "Update guie-datasets" if newer else "Prepare the data again"
        raise GuieError(
            f"{path}: a manifest of version {about['version']}; this guie-datasets reads {SCHEMA_VERSION}. {remedy}"
        )
    return about


def _arrow(name: str, values: ArrayLike) -> Any:
    if name == "hash":
        array = np.asarray(values)
        digests = [bytes.fromhex(value.decode() if isinstance(value, bytes) else value) for value in array.tolist()]
        return pa.array(digests, _HASH)
    if name in SCHEMA.names and SCHEMA.field(name).type not in (_TEXT, _PATH):
        return pa.array(np.asarray(values), SCHEMA.field(name).type)
    column = pa.array(values if isinstance(values, list) else np.asarray(values))
    return column.dictionary_encode() if pa.types.is_string(column.type) and name != "path" else column


def fixed_bytes(chunk: Any) -> NDArray[np.uint8]:
    """A column of 16 bytes a row as [N, 16]."""
    whole = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
    return whole[16 * chunk.offset : 16 * (chunk.offset + len(chunk))].reshape(-1, 16)


_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def _hex(data: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    digits = np.stack([_DIGITS[data >> 4], _DIGITS[data & 15]], axis=-1)
    return digits.reshape(len(data), 32).view("S32").reshape(len(data))
