"""Any part of a gzip or zlib file, which stays packed on the disk.

Deflate can only be unpacked from its start on. While that is done, the state of the unpacker is kept now and then, so
that a later part is reached from the nearest state before it, and what was unpacked last is at hand.
"""

from __future__ import annotations

import os
import threading
import zlib
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any

from guie_core import GuieError
from guie_datasets.rows import MAX_BYTES, open_file

if TYPE_CHECKING:
    from guie_datasets.rows import ImageRef

#: Files that a `PackedFiles` knows the states of, at most 15 MB each.
KNOWN_FILES = 8

_STEP = 1 << 14  # packed bytes unpacked at once: a piece. Deflate makes up to 1032 times as much, 17 MB, of them
_SPACING = 128  # pieces between two states at first: 2 MB
_STATES = 64  # of about 45 KB each; when there are as many, every second is given up and the spacing doubles
_AT_HAND = 8 << 20  # unpacked bytes at hand: more than threads that read one file in turn are apart

_WINDOW_BITS = {"gzip": 31, "zlib": 15}

#: How a file may be packed.
COMPRESSIONS = tuple(_WINDOW_BITS)


class PackedError(GuieError):
    """A packed file that cannot be unpacked from some place on. problem: what is wrong, without the file's name."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


def looks_packed(start: bytes) -> str:
    """The compression that a file's first bytes speak for: "gzip", "zlib", or "" for none."""
    if start[:2] == b"\x1f\x8b":
        return "gzip"
    if len(start) > 1 and start[0] & 15 == 8 and start[0] < 0x80 and not (start[0] << 8 | start[1]) % 31:
        return "zlib"
    return ""


class PackedFile:
    """The unpacked bytes of one file. Threads may share it: one unpacks at a time, and each piece once if they keep up.

    It holds memory, at most 15 MB (25 MB for a piece that unpacks to much more than it should), and no open file.
    """

    def __init__(self, path: str | os.PathLike[str], compression: str) -> None:
        """compression: "gzip" (one or more members) or "zlib". Raises GuieError for others."""
        self.path, self.compression = os.fspath(path), compression
        if compression not in _WINDOW_BITS:
            raise GuieError(f"{self.path}: unknown compression {compression!r}: it can be gzip or zlib")
        self._lock = threading.Lock()
        self._file_state: tuple[int, ...] | None = None
        self._starts = array("q", [0])  # where each piece starts, up to the first that was not unpacked yet
        self._spacing = _SPACING
        self._states: list[tuple[int, Any]] = [(0, self._unpacker())]  # (number of the next piece, unpacker)
        self._next, self._current = 0, self._unpacker()
        self._at_hand: OrderedDict[int, bytes] = OrderedDict()
        self._bytes_at_hand = 0
        self._damage: tuple[int, str] | None = None  # the piece that cannot be unpacked, and why

    def read(self, offset: int, length: int | None = None) -> bytes:
        """`length` unpacked bytes from `offset` on, or as many as there are before the end; None: all up to the end.

        Raises PackedError if the file is truncated or damaged before that, or gives more than `MAX_BYTES`; GuieError if
        it cannot be read or was replaced meanwhile.
        """
        end = None if length is None else offset + length
        if offset < 0 or (length is not None and not 0 <= length <= MAX_BYTES):
            raise PackedError(self.path, f"{length} bytes from {offset} on are asked for; at most {MAX_BYTES} are read")
        if length == 0:
            return b""
        parts, gathered = [], 0
        with self._lock:
            try:
                with open_file(self.path, buffering=0) as file:
                    self._check_unchanged(file)
                    number = self._piece_at(file, offset)
                    while end is None or offset + gathered < end:
                        piece = self._piece(file, number)
                        if piece is None:
                            break
                        first = max(offset - self._starts[number], 0)
                        parts.append(piece[first : None if end is None else end - self._starts[number]])
                        gathered += len(parts[-1])
                        number += 1
                        if gathered > MAX_BYTES:
                            raise PackedError(self.path, f"it unpacks to more than {MAX_BYTES} bytes")
            except OSError as error:
                raise GuieError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return b"".join(parts)

    def _check_unchanged(self, file: IO[bytes]) -> None:
        status = os.fstat(file.fileno())
        state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if state != (self._file_state or state):
            raise GuieError(f"{self.path}: it was replaced while it was read; run the same command again")
        self._file_state = state

    def _piece_at(self, file: IO[bytes], offset: int) -> int:
        """The number of the piece that holds the byte `offset`, or of the end."""
        while offset >= self._starts[-1] and self._piece(file, len(self._starts) - 1) is not None:
            pass
        return bisect_right(self._starts, offset) - 1

    def _piece(self, file: IO[bytes], number: int) -> bytes | None:
        """What the packed bytes from `number * _STEP` on unpack to; None at the end of the file."""
        if number in self._at_hand:
            self._at_hand.move_to_end(number)
            return self._at_hand[number]
        if self._damage and number >= self._damage[0]:
            raise PackedError(self.path, self._damage[1])
        before, state = self._states[bisect_right(self._states, number, key=lambda item: item[0]) - 1]
        if not before <= self._next <= number:
            self._next, self._current = before, state.copy()
        piece: bytes | None = b""
        while self._next <= number and piece is not None:
            piece = self._unpack_next(file)
        return piece

    def _unpack_next(self, file: IO[bytes]) -> bytes | None:
        number, position = self._next, self._next * _STEP
        file.seek(position)
        packed = file.read(_STEP)
        try:
            piece = self._unpack(packed)
        except (zlib.error, EOFError) as error:
            problem = f"its {self.compression} data end too early: it is truncated"
            if not isinstance(error, EOFError):
                place, reason = f"bytes {position} and {position + len(packed)}", str(error).rpartition(": ")[2]
                problem = f"its {self.compression} data are damaged between {place} ({reason})"
            self._damage, self._next, self._current = (number, problem), 0, self._unpacker()
            raise PackedError(self.path, problem) from None
        if piece is None:
            return None
        self._next += 1
        self._keep(number, piece)
        if number == len(self._starts) - 1:
            self._starts.append(self._starts[number] + len(piece))
            if self._next - self._states[-1][0] >= self._spacing:
                self._states.append((self._next, self._current.copy()))
                if len(self._states) == _STATES:
                    del self._states[1::2]
                    self._spacing *= 2
        return piece

    def _unpack(self, packed: bytes) -> bytes | None:
        """What the next packed bytes unpack to; None at the end. Raises zlib.error, EOFError for a missing end."""
        if not packed:
            if not self._current.eof:
                raise EOFError
            return None
        parts = []
        while packed:
            if self._current.eof:  # the members of a gzip file follow each other
                if self.compression != "gzip":
                    raise zlib.error("there are bytes after its end")
                self._current = self._unpacker()
            parts.append(self._current.decompress(packed))
            packed = self._current.unused_data
        return b"".join(parts)

    def _keep(self, number: int, piece: bytes) -> None:
        self._at_hand[number] = piece
        self._bytes_at_hand += len(piece)
        while self._bytes_at_hand > _AT_HAND and len(self._at_hand) > 1:
            self._bytes_at_hand -= len(self._at_hand.popitem(last=False)[1])

    def _unpacker(self) -> Any:
        return zlib.decompressobj(_WINDOW_BITS[self.compression])


class PackedFiles:
    """References into packed files, read from any thread; the files that were read last are known."""

    def __init__(self, known: int = KNOWN_FILES) -> None:
        self._known = known
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[str, str], PackedFile] = OrderedDict()

    def read(self, ref: ImageRef) -> bytes:
        """As `ref.read()`."""
        return read(ref, self._file(ref))

    def _file(self, ref: ImageRef) -> PackedFile:
        key = ref.path, ref.compression
        with self._lock:
            if key not in self._files:
                self._files[key] = PackedFile(*key)
                if len(self._files) > self._known:
                    self._files.popitem(last=False)
            self._files.move_to_end(key)
            return self._files[key]


def read(ref: ImageRef, file: PackedFile | None = None) -> bytes:
    """The bytes of a reference into a packed file: `ref.read()`. Raises GuieError as that does."""
    data = (file or PackedFile(ref.path, ref.compression)).read(ref.offset, ref.length)
    if ref.length is not None and len(data) != ref.length:
        raise GuieError(f"{ref}: only {len(data)} of {ref.length} bytes are there; the file was cut or replaced")
    return data
