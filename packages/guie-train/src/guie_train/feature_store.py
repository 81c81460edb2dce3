"""Features of images on disk: computed once, found by the content of the image."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guie_core import GuieError
from guie_core.files import atomic_write, explain_os_errors
from guie_core.wording import shown
from guie_datasets import Manifest

SHARD = 8192  # images at most in a shard
VERSION = 2  # of the layout
_ROW = np.dtype([("hash", "S32"), ("checksum", "<u4")])
_FORGOTTEN = b""  # stands for the hash of a row that doesn't count any more


class Bad(NamedTuple):
    """An image that has no features because it cannot be decoded: the hash that its manifest has of it, where it is,
    what is wrong, and the state of its file then, as `state_of` tells it."""

    hash: str
    place: str
    reason: str
    state: str = ""


def state_of(path: str) -> str:
    """Bytes and time of a file, which change when it's mended; "" if it isn't there."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} bytes, {found.st_mtime_ns} ns"


class Damage(NamedTuple):
    """What `FeatureStore.verify` finds: the file, the numbers of its rows that can't be used, what is wrong."""

    file: Path
    rows: list[int]
    reason: str


class FeatureStore:
    """Features [N, V, D] of one backbone through one view, found by the content hash of the image.

    V is the number of times that each image was seen: 1, or more of a view that draws anew each time. The folder holds
    `store.json` (what made the features) and shards of two files, which may grow until they have `SHARD` rows:

    - `00000.features`: [n, V, D] in the store's dtype, little endian, without a header; memory-mapped when it is read.
    - `00000.rows.npy`: [n] (hash S32, checksum uint32), the CRC-32 of a row's hash and features. It is replaced after
      the features are on the disk, and a row counts once it is here. So whatever is killed, and whenever, the store
      holds all that `append` has returned from, and nothing that is half written.

    Images that cannot be decoded are listed in `bad.csv` (hash, place, reason, state); :func:`usable` takes them out of
    a manifest. Several processes may add to one store at once: each writes to a shard that no other is writing to.

    A row depends on the image's bytes alone, so neither labels nor splits nor the order of a manifest matter: another
    split, or a manifest that shares images with an earlier one, finds its features here. (A key over the *ordered*
    hashes, the obvious alternative, would compute all of them again for one image more.)

    Args:
        folder: where the store is, or will be.
        about: what makes the features; JSON-able, with "dimension" D and "dtype", and "views" V unless it is 1. With it
            the store can be written, and an existing store whose own record differs is refused.

    Raises:
        GuieError: the folder holds features of something else or of another version, is damaged, or isn't a store.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self._room = 0  # number of the first shard that may have room
        self._whole: dict[Path, tuple[str, NDArray[np.bool_]]] = {}  # of shards as they were: rows that were checked
        self.about: dict[str, Any]
        path = folder / "store.json"
        if path.exists():
            self.about = _read_about(path)
            wanted = None if about is None else json.loads(json.dumps({"version": VERSION, **about}))
            if wanted is not None and self.about != wanted:
                found = self.about
                differ = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
                raise GuieError(
                    f"{folder} holds features that were made differently: "
                    + "; ".join(f"{k} was {found.get(k)!r}, is {wanted.get(k)!r}" for k in differ)
                    + f". If that is intended, delete {folder}: its features are then computed again"
                )
        elif about is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.about = {"version": VERSION, **about}
            with atomic_write(path, "w") as file:
                json.dump(self.about, file, indent=2)
        else:
            raise GuieError(f"no features in {folder}: there is no store.json")

    @property
    def dimension(self) -> int:
        """D, the number of features of an image."""
        return int(self.about["dimension"])

    @property
    def views(self) -> int:
        """V, how many rows of features an image has."""
        return int(self.about.get("views", 1))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the features on disk."""
        dtype: np.dtype[Any] = np.dtype(self.about["dtype"]).newbyteorder("<")
        return dtype

    @property
    def row_bytes(self) -> int:
        """What an image takes in a features file."""
        return self.views * self.dimension * self.dtype.itemsize

    def shards(self) -> list[Path]:
        """The features files, in order."""
        return sorted(self.folder.glob("[0-9]*.features"))

    @cached_property
    def _parts(self) -> list[tuple[Path, NDArray[Any]]]:
        """The shards, and the rows [n] of each."""
        found = [(path, self._rows(path)) for path in self.shards()]
        return [(path, rows) for path, rows in found if len(rows)]

    def _mapped(self, path: Path, rows: int) -> NDArray[Any]:
        """Features [rows, V, D] of a shard. Let go of it soon: what has been read counts as this process's memory."""
        self._check_length(path, rows)  # which may have changed since its rows were read
        return np.memmap(path, self.dtype, "r", shape=(rows, self.views, self.dimension))

    @cached_property
    def _lookup(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """All hashes in ascending order, and the row (counted over all shards) where each one's features are."""
        known, row = np.unique(
            np.concatenate([np.empty(0, "S32"), *(rows["hash"] for _, rows in self._parts)]), return_index=True
        )
        there = known != _FORGOTTEN
        return known[there], row[there]

    def __len__(self) -> int:
        return len(self._lookup[0])

    @cached_property
    def bad(self) -> tuple[Bad, ...]:
        """The images that cannot be decoded."""
        path = self.folder / "bad.csv"
        if not path.exists():
            return ()
        try:
            with open(path, encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
                if header not in (list(Bad._fields), list(Bad._fields)[:3]):  # which had no states before
                    raise ValueError(f"its columns are {', '.join(header)}")
                if any(len(row) != len(header) for row in rows):
                    raise ValueError("a row is cut off")
                return tuple(Bad(*row) for row in rows)
        except (ValueError, TypeError, csv.Error) as error:
            raise GuieError(f"{path} is damaged ({error}); delete it, and its images are tried again") from None

    def is_bad(self, hashes: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of `hashes` [N] are of images that cannot be decoded."""
        return np.isin(hashes.astype("S32"), np.array([bad.hash for bad in self.bad], "S32"))

    def missing(self, hashes: NDArray[Any], paths: Callable[[int], str] | None = None) -> NDArray[np.int64]:
        """Positions in `hashes` [N] of the images to compute: each distinct one that is neither there nor bad.

        paths: of each position, the image's file. What is bad counts as missing then, if its file has changed since:
            it may have been mended.
        """
        absent = self._absent(hashes)
        bad = self.is_bad(hashes[absent])
        if paths is not None and bad.any():
            states = {image.hash: image.state for image in self.bad}
            for number in np.flatnonzero(bad):
                state = state_of(paths(int(absent[number])))
                bad[number] = state in ("", states[str(hashes[absent[number]].astype("U32"))])
        return absent[~bad]

    def _absent(self, hashes: NDArray[Any]) -> NDArray[np.int64]:
        wanted, first = np.unique(hashes.astype("S32"), return_index=True)
        known, _ = self._lookup
        at = np.searchsorted(known, wanted)
        there = np.zeros(len(wanted), bool)
        inside = at < len(known)
        there[inside] = known[at[inside]] == wanted[inside]
        return np.sort(first[~there])

    def read(self, hashes: NDArray[Any], view: int = 0) -> NDArray[np.float32]:
        """Features [N, D] of one of the views, 0..V-1, in the order of `hashes` [N].

        Their rows are compared with their checksums, each once for as long as its file stays as it is.

        Raises:
            GuieError: an image is not in the store, or its row is damaged.
        """
        if absent := len(self._absent(hashes)):
            raise GuieError(f"{absent} of {len(hashes)} images have no features in {self.folder} yet")
        known, rows = self._lookup
        row = rows[np.searchsorted(known, hashes.astype("S32"))]
        out = np.empty((len(hashes), self.dimension), np.float32)
        start = 0
        for path, shard in self._parts:
            here = np.flatnonzero((row >= start) & (row < start + len(shard)))
            if len(here):
                # ascending rows read the mapped file front to back
                here = here[np.argsort(row[here], kind="stable")]
                out[here] = self._checked(path, shard, row[here] - start)[row[here] - start, view]
            start += len(shard)
        return out

    def _checked(self, path: Path, rows: NDArray[Any], wanted: NDArray[np.int64]) -> NDArray[Any]:
        """As `_mapped`. Raises GuieError if one of the rows that are `wanted` is damaged."""
        state = state_of(str(path))
        features = self._mapped(path, len(rows))
        before, whole = self._whole.get(path, ("", np.zeros(0, bool)))
        if before != state:
            whole = np.zeros(len(rows), bool)
        wanted = wanted[~whole[wanted]]
        plain = np.asarray(features)  # whose rows cost less to name than a memmap's
        differing = _differing(rows[wanted], map(plain.__getitem__, wanted.tolist()))
        if damaged := len(np.unique(wanted[differing])):  # how many in all would take reading the whole store
            raise GuieError(f"{shown(self.folder)}: at least {_differ(damaged)}{_remedy(self.folder)}")
        whole[wanted] = True
        self._whole[path] = state, whole
        return features

    def append(self, hashes: NDArray[Any] | Sequence[str], features: NDArray[Any]) -> None:
        """Add `features` [n, V, D], or [n, D] where V is 1, of the images with `hashes` [n], which are bad no more.

        All are on disk when this returns. They go to the shards that have room and that no other process writes to.
        """
        if features.ndim == 2:
            features = features[:, None]
        if features.shape != (len(hashes), self.views, self.dimension):
            raise ValueError(f"features {features.shape} of {len(hashes)} images, {self.views} x {self.dimension} each")
        rows = np.zeros(len(hashes), _ROW)
        rows["hash"] = np.asarray(hashes).astype("S32")
        features = np.ascontiguousarray(features.astype(self.dtype, copy=False))
        rows["checksum"] = _checksums(rows, features)
        self._list_bad([], frozenset(rows["hash"].astype("U32").tolist()))
        done = 0
        while done < len(rows):
            with self._shard_with_room() as (file, path, before):
                end = done + SHARD - len(before)
                _write_at(file, path, len(before) * self.row_bytes, features[done:end].data.cast("B"))
                _save(_rows_of(path), np.concatenate([before, rows[done:end]]))
            done = end
        self._changed()

    def take_over(self, other: FeatureStore, but: NDArray[Any]) -> None:
        """Add what another store of the same features has and this one lacks, images that are bad included, but for
        those with some hashes [N].

        What is damaged there is passed over, so that its images count as missing here.
        """
        but = np.unique(but.astype("S32"))
        for path in other.shards():
            try:
                rows = _read_rows(path)
            except GuieError:
                continue
            rows = rows[: path.stat().st_size // other.row_bytes]
            if not len(rows):
                continue
            features = other._mapped(path, len(rows))
            lacking = np.isin(np.arange(len(rows)), self.missing(rows["hash"]))
            lacking &= ~np.isin(rows["hash"], but) & (rows["hash"] != _FORGOTTEN)
            wanted = np.flatnonzero(lacking)
            whole = np.delete(wanted, _differing(rows[wanted], map(np.asarray(features).__getitem__, wanted.tolist())))
            if len(whole):
                self.append(rows["hash"][whole], features[whole])
        try:
            bad = other.bad
        except GuieError:
            return
        hashes = np.array([image.hash for image in bad], "S32")
        there = np.isin(hashes, but) | np.isin(hashes, self._lookup[0]) | self.is_bad(hashes)
        self.add_bad(image for image, known in zip(bad, there, strict=True) if not known)

    @contextmanager
    def _shard_with_room(self) -> Iterator[tuple[int, Path, NDArray[Any]]]:
        """A features file that is open for writing and locked, its path, and the rows that it has."""
        while True:
            path = self.folder / f"{self._room:05d}.features"
            with explain_os_errors(path):
                file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                rows = self._rows(path) if _locked(file) else None
                if rows is not None and len(rows) < SHARD:
                    yield file, path, rows
                    return
            finally:
                os.close(file)  # which lets go of the lock, as the kernel does if this process is killed
            self._room += 1  # a shard never gets room again

    def _rows(self, path: Path) -> NDArray[Any]:
        """The rows [n] of a features file, which is at least as long."""
        rows = _read_rows(path)
        self._check_length(path, len(rows))
        return rows

    def _check_length(self, path: Path, rows: int) -> None:
        """Raise GuieError if a features file is too short for its rows."""
        if path.stat().st_size < rows * self.row_bytes:
            raise GuieError(f"{path} is {_truncated(path, rows, self.row_bytes)}{_remedy(self.folder)}")

    def add_bad(self, images: Iterable[Bad]) -> None:
        """Add images that cannot be decoded; the list is on disk when this returns."""
        self._list_bad(list(images))

    def _list_bad(self, images: Sequence[Bad], but: frozenset[str] = frozenset()) -> None:
        """Lists images as bad, and those with some hashes no more."""
        if not images and not any(image.hash in but for image in self.bad):
            return
        with open(self.folder / ".bad.lock", "a") as lock:  # another process may add to the list as well
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.__dict__.pop("bad", None)
            listed = {bad.hash: bad for bad in (*self.bad, *images) if bad.hash not in but}
            with atomic_write(self.folder / "bad.csv", "w") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(Bad._fields)
                # names of files that are no text are told as well as can be
                table.writerows(
                    [value.encode("utf-8", "backslashreplace").decode() for value in row] for row in listed.values()
                )
        self.__dict__.pop("bad", None)

    def verify(self, on_rows: Callable[[int], object] = lambda rows: None) -> list[Damage]:
        """Read everything and compare it with its checksums; `on_rows` is told how many more rows have been read."""
        found = []
        for path in self.shards():
            try:
                rows = _read_rows(path)
            except GuieError as error:
                found.append(Damage(_rows_of(path), [], str(error).removeprefix(f"{_rows_of(path)} ")))
                continue
            whole = min(len(rows), path.stat().st_size // self.row_bytes)
            wrong = []
            if whole:
                differing = _differing(rows[:whole], np.asarray(self._mapped(path, whole)))
                wrong = differing[rows["hash"][differing] != _FORGOTTEN].tolist()
            if wrong:
                found.append(Damage(path, wrong, _differ(len(wrong))))
            if whole < len(rows):
                lost = list(range(whole, len(rows)))
                found.append(Damage(path, lost, _truncated(path, len(rows), self.row_bytes)))
            on_rows(len(rows))
        return found

    def forget(self, damage: Iterable[Damage]) -> None:
        """Let go of the rows that are damaged: their images then count as missing."""
        for file, numbers, _ in damage:
            if not numbers:  # nobody knows what the shard holds
                file.unlink()
                continue
            with open(file, "r+b") as shard:
                fcntl.flock(shard, fcntl.LOCK_EX)
                rows = _read_rows(file)
                rows["hash"][numbers] = _FORGOTTEN
                _save(_rows_of(file), rows)
                if file.stat().st_size < len(rows) * self.row_bytes:
                    os.ftruncate(shard.fileno(), len(rows) * self.row_bytes)
        self._changed()

    def _changed(self) -> None:
        self.__dict__.pop("_parts", None)
        self.__dict__.pop("_lookup", None)
        self._whole.clear()


def usable(manifest: Manifest, *stores: FeatureStore) -> tuple[Manifest, NDArray[np.int64]]:
    """The images of a manifest that none of the stores could not decode, and their row numbers in it.

    Whatever reads features for the rows of a manifest reads them for these.
    """
    if not any(store.bad for store in stores):
        return manifest, np.arange(len(manifest))
    bad = np.logical_or.reduce([store.is_bad(manifest.column("hash")) for store in stores])
    rows = np.flatnonzero(~bad)
    return manifest.select(rows), rows


def finite(features: NDArray[Any], dtype: str) -> NDArray[np.bool_]:
    """Which of the rows of `features` [n, ...] are finite as a store of this dtype keeps them."""
    with np.errstate(over="ignore"):  # float16 ends at 65,504
        kept = features.astype(dtype)
    rows: NDArray[np.bool_] = np.isfinite(kept).all(tuple(range(1, kept.ndim)))
    return rows


def _read_about(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or "version" not in found:
            raise ValueError("it says nothing of features")
        if found["version"] == VERSION:
            np.dtype(found["dtype"]), int(found["dimension"])
    except (ValueError, TypeError, KeyError) as error:
        raise GuieError(f"{path} is damaged ({error}); delete {path.parent} and run again") from None
    if found["version"] != VERSION:
        raise GuieError(
            f"{path.parent} holds features in format {found['version']}, and this guie-train reads format {VERSION}; "
            f"delete {path.parent}: its features are then computed again"
        )
    return found


def _rows_of(path: Path) -> Path:
    """The file that says which rows a features file has."""
    return path.with_suffix(".rows.npy")


def _read_rows(path: Path) -> NDArray[Any]:
    """The rows [n] that count of a features file."""
    try:
        rows: NDArray[Any] = np.load(_rows_of(path), allow_pickle=False)
        if rows.dtype != _ROW or rows.ndim != 1:
            raise ValueError(f"it has {rows.dtype} {rows.shape}")
    except FileNotFoundError:
        return np.empty(0, _ROW)  # what was killed ahead of its first row
    except (OSError, ValueError, EOFError) as error:
        raise GuieError(f"{_rows_of(path)} is damaged ({error}){_remedy(path.parent)}") from None
    return rows


def _remedy(folder: Path) -> str:
    command = f"guie features verify {shlex.quote(shown(folder))} --repair"
    return f"; `{command}` lets go of what is damaged, and it is computed again"


def _truncated(path: Path, rows: int, row_bytes: int) -> str:
    return f"truncated: it has {path.stat().st_size:,} bytes of {rows * row_bytes:,}"


def _differ(rows: int) -> str:
    return "1 row differs from its checksum" if rows == 1 else f"{rows:,} rows differ from their checksums"


def _differing(rows: NDArray[Any], features: Iterable[Any]) -> NDArray[np.int64]:
    """Positions of those of some rows [n] whose features are others than their checksums say."""
    return np.flatnonzero(_checksums(rows, features) != rows["checksum"])


def _checksums(rows: NDArray[Any], features: Iterable[Any]) -> NDArray[np.uint32]:
    """Of each of some rows [n], that of its hash and its features [V, D]."""
    return np.fromiter(map(zlib.crc32, features, map(zlib.crc32, rows["hash"].tolist())), np.uint32, len(rows))


def _locked(file: int) -> bool:
    """Whether nobody else was writing to the file; nobody can then until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_at(file: int, path: Path, offset: int, data: memoryview) -> None:
    # not through a mapping: a full disk would end the process by SIGBUS
    with explain_os_errors(path):
        while data:
            written = os.pwrite(file, data, offset)
            data, offset = data[written:], offset + written
        os.fsync(file)


def _save(path: Path, array: NDArray[Any]) -> None:
    # by way of memory: numpy's own writing to a file forgets why it failed, and a full disk is to be told as that
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())
