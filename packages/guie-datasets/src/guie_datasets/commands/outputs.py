"""What a command may write. The suffix says the kind; what is read is never replaced, and of what is there already only
what the same command has written, or anything with --force."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click

from guie_core import UsageError
from guie_core.wording import shown

#: Whether a file that is there is a command's own work.
Own = Callable[[Path], bool]

force_option = click.option("--force", is_flag=True, help="Replace FILE even if it was made by another command.")


def check_output(
    path: Path, kinds: Mapping[str, Own], *, inputs: Iterable[Path], example: str, force: bool = False
) -> None:
    """Whether --output may be `path`, before any work.

    Args:
        path: as it was given, or the command's default.
        kinds: suffix -> whether a file of that kind is the command's own.
        inputs: what the command reads; what isn't there is passed over.
        example: a name for the file, for messages.
        force: replace what isn't the command's own.

    Raises UsageError: a folder, another suffix, one of the inputs, or somebody else's file.
    """
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder; name a file, such as {path / example}")
    suffix = path.suffix.lower()
    if suffix not in kinds:
        *others, last = kinds
        raise UsageError(f"--output {path}: it must end in {' or '.join([', '.join(others)] * bool(others) + [last])}")
    for each in inputs:
        if same_file(path, each):
            raise UsageError(f"--output {path} would replace {shown(each)}, which is read. Choose another --output")
    if not force and _strange(path, kinds[suffix]):
        raise UsageError(f"{shown(path)} is there already, {_REMEDY}")


def same_file(a: Path, b: Path) -> bool:
    """Whether both are there, and are one file."""
    try:
        return a.samefile(b)
    except (OSError, ValueError):  # not there, or no path at all
        return False


def check_beside(path: Path, of: Path, own: Own, *, force: bool | None = False) -> None:
    """Whether a command may write `path`, which goes with the file `of`. force: None if the command has no such option.

    Raises UsageError as `check_output`.
    """
    if path.is_dir() or (not force and _strange(path, own)):
        remedy = _MOVE if force is None else _REMEDY
        raise UsageError(f"{shown(path)}, which goes with {shown(of)}, is there already, {remedy}")


_REMEDY = "and was not made by this command. Choose another --output, or add --force to replace it"
_MOVE = "and was not made by this command. Move it away"


def _strange(path: Path, own: Own) -> bool:
    return path.exists() and not own(path)


def page_of(command: str) -> Own:
    """A page that `guie data COMMAND` wrote: it says so in its head."""
    mark = f'<meta name="generator" content="guie data {command}">'.encode()
    return lambda path: mark in _start(path, 2_000)


def picture_of(command: str) -> Own:
    """A picture whose EXIF says that `guie data COMMAND` wrote it."""

    def own(path: Path) -> bool:
        from guie_datasets.inspecting.pictures import software

        return software(path) == f"guie data {command}"

    return own


def table_of(columns: Iterable[str]) -> Own:
    """A CSV table that begins with these columns."""
    header = ",".join(columns).encode()
    return lambda path: _start(path, len(header)) == header


#: A list of what is wrong with images.
is_quarantine = table_of(("kind", "place"))


def _start(path: Path, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError:
        return b""
