"""Columns that grow on the disk, so that memory doesn't grow with the rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from guie_core.files import explain_os_errors
from guie_datasets.quarantine import let_go

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TEXTS = ("compression", "source", "category", "split", "role", "name")  # repeated ones: a number for each
_NUMBERS = {
    "offset": "<i8",
    "length": "<i8",
    "label": "<i8",
    "original_label": "<i8",
    "width": "<i4",
    "height": "<i4",
    "hash": "V16",
}
_CHUNK = 65_536  # rows that are copied at a time


class GrowingColumns:
    """Rows as columns, each in a file of its own without a name, which goes when nobody uses it any more.

    A row has 72 bytes and its path. In memory are the different texts only: sources, categories, names of classes.
    The files are open until `close`, or the end of a `with` block; columns that were given stay as they are.

    folder: where the files are; default: the temporary folder. GuieError is raised when its disk is full.
    """

    def __init__(self, folder: Path | None = None, texts: Mapping[str, dict[str, int]] | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._texts = texts or {name: {} for name in _TEXTS}
        self._rows = 0
        self._bytes = 0  # of paths
        with explain_os_errors(self._folder), ExitStack() as stack:
            self._files: dict[str, IO[bytes]] = {}
            for name in ("path", "ends", *_NUMBERS, *_TEXTS):
                self._files[name] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                stack.callback(let_go, self._files[name])
            self._files["ends"].write(np.zeros(1, np.int64).tobytes())
            self._open = stack.pop_all()

    def __enter__(self) -> GrowingColumns:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Nothing can be added or asked for any more."""
        self._open.close()

    def __len__(self) -> int:
        return self._rows

    def append(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Adds rows: columns as lists."""
        arrays = {
            name: np.frombuffer(b"".join(columns[name]), kind) if name == "hash" else np.array(columns[name], kind)
            for name, kind in _NUMBERS.items()
        }
        for name, codes in self._texts.items():
            arrays[name] = np.array([codes.setdefault(text, len(codes)) for text in columns[name]], np.int32)
        self._append(pa.array(columns["path"], pa.large_string()), arrays)

    def _append(self, paths: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
        ends = np.frombuffer(paths.buffers()[1], np.int64)[paths.offset : paths.offset + len(paths) + 1]
        data = memoryview(paths.buffers()[2] or b"")[ends[0] : ends[-1]]
        with explain_os_errors(self._folder):
            self._files["path"].write(data)
            self._files["ends"].write((ends[1:] - ends[0] + self._bytes).tobytes())
            for name, array in arrays.items():
                self._files[name].write(array.tobytes())
        self._bytes += len(data)
        self._rows += len(paths)

    def kept(self, keep: NDArray[np.bool_]) -> GrowingColumns:
        """The rows that a mask [N] is true for, in new files."""
        result = GrowingColumns(self._folder, self._texts)
        paths, arrays = self.paths(), {name: self.array(name) for name in (*_NUMBERS, *_TEXTS)}
        for rows in self.chunks():
            mask = keep[rows]
            result._append(
                paths[rows].filter(pa.array(mask)), {name: array[rows][mask] for name, array in arrays.items()}
            )
        return result

    def chunks(self) -> Iterator[slice]:
        """Slices that go over all rows."""
        return (slice(start, min(start + _CHUNK, self._rows)) for start in range(0, self._rows, _CHUNK))

    def array(self, name: str) -> NDArray[Any]:
        """A column as it lies in its file: numbers, hashes as 16 bytes, texts as the numbers of `texts`."""
        return np.frombuffer(self._mapped(name), _NUMBERS.get(name, "<i4"), self._rows)

    def texts(self, name: str) -> list[str]:
        """The texts of a column, by number."""
        return list(self._texts[name])

    def paths(self) -> Any:
        """The paths as a LargeStringArray."""
        buffers = [None, self._mapped("ends"), self._mapped("path")]
        return pa.Array.from_buffers(pa.large_string(), self._rows, buffers)

    def columns(self) -> dict[str, Any]:
        """All columns as pa.Array, on the files as they lie."""
        result = {"path": self.paths()}
        for name in _NUMBERS:
            if name == "hash":
                buffers = [None, self._mapped(name)]
                result[name] = pa.Array.from_buffers(pa.binary(16), self._rows, buffers)
            else:
                result[name] = pa.array(self.array(name))
        for name in _TEXTS:
            texts = pa.array(self.texts(name), pa.string())
            result[name] = pa.DictionaryArray.from_arrays(pa.array(self.array(name)), texts)
        return result

    def _mapped(self, name: str) -> Any:
        """What is in a file, as a buffer that keeps no file open: Python's own maps do, one each."""
        file = self._files[name]
        with explain_os_errors(self._folder):
            file.flush()
            if not os.fstat(file.fileno()).st_size:
                return pa.py_buffer(b"")
            with pa.memory_map(f"/dev/fd/{file.fileno()}") as whole:  # it has no other name
                return whole.read_buffer()
