"""States on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch

from guie_core.files import atomic_write


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what `torch.load` reads, piece by piece: no copy of it is made in memory.

    Raises:
        GuieError: the disk, as for `guie_core.files.atomic_write`; what was at `path` is kept.
    """
    with atomic_write(path) as file:
        pieces = _Remembering(file)
        try:
            torch.save(state, cast(IO[bytes], pieces))  # of which it calls these two alone
        except Exception as error:
            if pieces.error is None:
                raise
            raise pieces.error from error


class _Remembering:
    """A file that knows why it could not be written; torch's writer says only that it couldn't, in one of many ways."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """For torch, which asks for it; the file is flushed when it is whole."""
