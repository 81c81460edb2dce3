"""An index of one file, for random access to its records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guie_core import GuieError
from guie_core.files import atomic_write

from ..rows import ImageRef
from .framing import compression
from .records import places

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Index:
    """Where each record of a file lies: `len(index)` records, `index[i].read()` gives the data of record i.

    `index[i]` is a reference, which `reading.Reader` reads from any thread; packed files are not expanded for it.

    offsets, lengths: of the records' data, int64 [N], in unpacked bytes.
    """

    def __init__(
        self, path: str | os.PathLike[str], compression: str, offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        self.path, self.compression = os.fspath(path), compression
        self.offsets, self.lengths = offsets, lengths

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, record: int) -> ImageRef:
        return ImageRef(self.path, int(self.offsets[record]), int(self.lengths[record]), self.compression)

    @classmethod
    def build(cls, path: str | os.PathLike[str], *, check: bool = True) -> Index:
        """Reads the file through; with `check`, the checksums of the data are tested. Raises TFRecordError."""
        offsets, lengths = ([np.empty(0, np.int64)] for _ in range(2))
        for some in places(path, check=check):
            offsets.append(some[0])
            lengths.append(some[1])
        return cls(path, compression(path), np.concatenate(offsets), np.concatenate(lengths))

    def save(self, saved: str | os.PathLike[str] | None = None) -> Path:
        """Writes the index to `saved`, by default `<path>.index.npy`, beside the file; returns where.

        It takes 16 bytes a record. The size and the time of change of the file are written with it.
        """
        saved = Path(saved or f"{self.path}.index.npy")
        with atomic_write(saved) as file:
            np.save(file, np.vstack([_state(self.path), np.column_stack([self.offsets, self.lengths])]))
        return saved

    @classmethod
    def load(cls, path: str | os.PathLike[str], saved: str | os.PathLike[str] | None = None) -> Index:
        """What `save` wrote. Raises GuieError if it is no index, or if the file was changed after it was written."""
        saved = Path(saved or f"{os.fspath(path)}.index.npy")
        try:
            table = np.load(saved, mmap_mode="r", allow_pickle=False)
        except OSError as error:
            raise GuieError(f"{saved}: cannot be read: {error.strerror or error}") from error
        except (ValueError, EOFError, SyntaxError) as error:  # what numpy says of other files
            raise GuieError(f"{saved} is no index of a TFRecord file. Build it again") from error
        if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or not len(table):
            raise GuieError(f"{saved} is no index of a TFRecord file. Build it again")
        if table[0].tolist() != _state(path):
            raise GuieError(f"{os.fspath(path)} was changed after {saved} was written. Build the index again")
        return cls(path, compression(path), table[1:, 0], table[1:, 1])


def _state(path: str | os.PathLike[str]) -> list[int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise GuieError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    return [status.st_size, status.st_mtime_ns]
