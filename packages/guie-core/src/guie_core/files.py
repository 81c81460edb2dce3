"""Files that are there whole or not at all, and failures of the disk in words.

Everything is written under a temporary name in the same folder, flushed to the disk, and renamed. A process that is
killed leaves at most such a temporary name behind, which :func:`sweep` removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import resource
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import GuieError
from .wording import size

_REMEDY = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "Your disk quota is used up",
    errno.EFBIG: "The file is larger than this system allows",
    errno.EACCES: "Permission is denied",
    errno.EPERM: "Permission is denied",
    errno.EROFS: "The disk is read-only",
    errno.ENOTDIR: "A part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "The name is too long",
    errno.EIO: "The disk reports a fault",
    errno.EMFILE: "This process has too many files open",
}
_TEMPORARY = re.compile(r"\.(?P<name>.*)\.[a-z0-9_]{8}\.tmp", re.DOTALL)  # of what is being written as `name`


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing ("wb" or "w"); it appears, complete and on the disk, when the block ends without error.

    Missing folders are made. When the block raises, what was there before stays as it was and nothing is left behind.

    Raises:
        GuieError: the disk is full, read-only, or not writable; it says what was being written and what to do.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', not {mode!r}")
    path = Path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
            with os.fdopen(handle, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _mode(path))
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; it is renamed to `path` when the block ends without error.

    Raises:
        GuieError: `path` is there already, or as for :func:`atomic_write`.
    """
    path = Path(path)
    if path.exists():
        raise GuieError(f"{path} is there already; remove it first.")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_directory(path)
        try:
            yield temporary
            for folder, _, names in os.walk(temporary):
                for name in names:
                    with open(os.path.join(folder, name), "rb") as file:
                        os.fsync(file.fileno())
                sync_directory(Path(folder))
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(path.parent)


def temporary_directory(path: Path) -> Path:
    """A new folder beside `path` for what is going to be it, or in it."""
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))


def replace_directory(source: Path, path: Path) -> None:
    """Rename the folder `source` to `path`; what was there goes, and is there whole until then.

    The files in `source` are on the disk already, as :func:`atomic_write` leaves them.

    Raises:
        GuieError: the disk, as for :func:`atomic_write`.
    """
    with explain_os_errors(path):
        for folder, _, _ in os.walk(source):
            sync_directory(Path(folder))
        remove_directory(path)
        source.rename(path)
        sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a folder, which may be missing, with all that is in it: at once, so that nobody meets a part of it.

    Raises:
        GuieError: the disk, as for :func:`atomic_write`.
    """
    with explain_os_errors(path):
        aside = _unused(path)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            sync_directory(path.parent)
            shutil.rmtree(aside)


def replace_link(path: Path, target: str | os.PathLike[str]) -> None:
    """Make `path` a symbolic link to `target`, or let it lead there from now on.

    Raises:
        GuieError: the disk, as for :func:`atomic_write`.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _unused(path)
        temporary.symlink_to(target)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink()
            raise


def meant_for(name: str) -> str | None:
    """The name that a temporary one stands for; None for any other name."""
    found = _TEMPORARY.fullmatch(name)
    return found and found["name"]


def sweep(path: Path) -> None:
    """Remove what processes that were killed have left of `path`, a file or a folder, beside it and within it.

    For places that are locked, or have one writer at most: what another process is writing there would be lost.
    """
    beside = [each for each in path.parent.glob(".*.tmp") if meant_for(each.name) == path.name]
    within = [Path(folder, name) for folder, folders, files in os.walk(path) for name in folders + files]
    for left in [*beside, *(each for each in within if meant_for(each.name))]:
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


@contextlib.contextmanager
def explain_os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the disk's failures while `path` is written into a GuieError."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EEXIST and _file_in(Path(path)):  # as making a folder says it
            error = OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename)
        if error.errno not in _REMEDY or _concerns_another(error, Path(path).absolute()):
            raise
        raise GuieError(explain(error, path)) from error


def _concerns_another(error: OSError, path: Path) -> bool:
    """Whether a file far from `path` is what failed, such as one that was read meanwhile."""
    if not isinstance(error.filename, str):
        return False
    named = Path(error.filename).absolute()
    return not (named.is_relative_to(path.parent) or path.is_relative_to(named))


_options: list[str] = []


@contextlib.contextmanager
def folder_option(name: str) -> Iterator[None]:
    """While a command runs that has an option for the folder it writes to, such as "--work-dir": what fails on the disk
    is told with it."""
    _options.append(name)
    try:
        yield
    finally:
        _options.pop()


def of_the_disk(error: BaseException | None) -> OSError | None:
    """What the disk said, where an error comes of it that it is full or read-only: whatever else is tried there would
    fail as well, and goes on once that is mended."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def explain(error: OSError, path: str | os.PathLike[str] = "") -> str:
    """What a failure of the disk means: what was being written, how much is free, what to do."""
    what = _REMEDY.get(error.errno or 0, os.strerror(error.errno or 0))
    text = f"{what}: {path or error.filename or 'what was printed'} could not be written."
    path = Path(path or error.filename or ".")
    folder = next((parent for parent in (path, *path.absolute().parents) if parent.is_dir()), Path.cwd())
    option = f" ({_options[-1]})" if _options else ""
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit == resource.RLIM_INFINITY:
            remedy = f"Choose a folder on a disk whose file system takes larger files{option}"
        else:
            text += f" A file of this process may have {size(limit)}: that is the limit which `ulimit -f` shows."
            remedy = "Raise it with `ulimit -f unlimited`, or where that is refused have it raised by who set it"
        remedy += ", and run the same command again."
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            text += f" {size(shutil.disk_usage(folder).free)} are free in {folder}."
        remedy = f"Make room, or choose a folder on another disk{option}, and run the same command again."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = f"Make {folder} writable, or choose another folder{option}, and run the same command again."
    elif error.errno == errno.ENOTDIR and (part := _file_in(path)):
        text += f" {part} is a file."
        remedy = f"Choose another folder{option}, or move that file away, and run the same command again."
    else:
        remedy = "Run the same command again when that is mended."
    return f"{text}\nNothing that was complete is lost. {remedy}"


def _file_in(path: Path) -> Path | None:
    """The part of a path that is a file where it should be a folder."""
    return next((part for part in path.absolute().parents if os.path.exists(part) and not os.path.isdir(part)), None)


def digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits (BLAKE2b) of the parts; ("ab", "c") and ("a", "bc") differ, text and its bytes don't."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _mode(path: Path) -> int:
    """The permissions that `path` has, or that a new file gets; a temporary file's own are private."""
    try:
        return path.stat().st_mode & 0o7777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _unused(path: Path) -> Path:
    """A temporary name for `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_directory(path: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
