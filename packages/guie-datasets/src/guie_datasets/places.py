"""Where data sets lie, and which paths stay within a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guie_core import GuieError, UsageError
from guie_core.wording import listing


def data_folder() -> Path:
    """The folder that named data sets lie in: `$GUIE_DATA`, or `data` below the working directory."""
    return absolute(os.environ.get("GUIE_DATA") or "data")


class NotThere(GuieError):  # noqa: N818  a state, and not always an error
    """A named data set is not on this machine; it can be fetched from `page` with `command`."""

    def __init__(self, message: str, page: str, command: str) -> None:
        super().__init__(message)
        self.page = page
        self.command = command


@dataclass(frozen=True)
class Place:
    """Where one of the named sets lies, however deep its archive was unpacked.

    entry: its name as a data set. folders: what its folder may be called, the usual name first. holds: a pattern that
    something in the folder matches, "images/*". inside: folders within it that people may take for the whole.
    """

    entry: str
    folders: tuple[str, ...]
    holds: str
    inside: tuple[str, ...] = ()

    def find(self, root: Path | None) -> Path:
        """The set's folder: `root` (default: the data folder), or the set's folder in it, nested once or not.

        Raises GuieError if it is in none of these: what was looked for and where, what is there, where to fetch it.
        """
        start = data_folder() if root is None else root
        candidates = [] if root is None else [start]
        for name in self.folders:
            candidates += [start / name, start / name / name]
        if root is not None and start.name in self.inside and start.is_dir():
            candidates.append(start.parent)
        for folder in candidates:
            if _holds(folder, self.holds):
                return folder
        raise self._missing(start, candidates)

    def _missing(self, start: Path, candidates: Sequence[Path]) -> GuieError:
        # a folder of the set's own name that holds something else is what people want to be told of
        own = [folder for folder in candidates if folder != start and folder.is_dir()]
        what = "is laid out in another way than it comes" if own else "is not there"
        looked = "\n".join(f"  {folder / self.holds}" for folder in candidates)
        found = "\n".join(_held(folder) for folder in own or [start])
        page, command = _page(self.entry), f"guie data download {self.entry}"
        message = (
            f"the data set {self.entry!r} {what}. Looked for\n{looked}\n{found}.\n"
            f"Fetch it from {page} with `{command}`, or give the folder as root"
        )
        return GuieError(message) if own else NotThere(message, page, command)


class Inside:
    """Resolves paths below a folder, and refuses those that leave it, by "..", by a link, or as absolute paths.

    Folders are looked at once each, so that millions of paths cost little.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self._start = os.path.join(self.root, "")
        self._real = os.path.realpath(root)
        self._folders: dict[str, bool] = {}

    def resolve(self, path: str) -> str:
        """The absolute path of `path`, which is relative to the folder or absolute.

        Raises ValueError, in words, if it leaves the folder or can be no path. Whether it exists is not asked.
        """
        check_path(path)
        whole = joined(self.root, path)
        if not whole.startswith(self._start):
            raise ValueError(f"{path!r} leads out of the folder {self.root}")
        if not self.contains(whole):
            raise ValueError(f"{path!r} is a link, or lies behind one, that leads out of the folder {self.root}")
        return whole

    def contains(self, path: str) -> bool:
        """Whether an absolute path is in the folder when links are followed."""
        folder = path.rpartition("/")[0]
        if folder not in self._folders:
            self._folders[folder] = self._contains(folder)
        return self._folders[folder] and not (os.path.islink(path) and not self._contains(path))

    def _contains(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(os.path.join(self._real, ""))


def joined(folder: str, path: str) -> str:
    """`path` below `folder`, or itself if it is absolute, without "." and ".."; links are not followed."""
    whole = os.path.join(folder, path)
    return os.path.normpath(whole) if "/." in whole or "//" in whole else whole


def check_path(path: str) -> None:
    """Raises ValueError, in words, if `path` can be none."""
    if not path:
        raise ValueError("it has no path")
    if "\0" in path or not is_text(path):
        raise ValueError(f"{path!r} is no path")


def printable(name: str) -> str:
    """`name` without the bytes that are no UTF-8, for messages and tables."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, as manifests and tables must be."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute(path: str | os.PathLike[str]) -> Path:
    """`path` made absolute, with "~" for the home folder. Raises UsageError for what can be no path."""
    return expanded(path).absolute()


def expanded(path: str | os.PathLike[str]) -> Path:
    """`path` with "~" for the home folder. Raises UsageError for what can be no path."""
    if "\0" in os.fspath(path):
        raise UsageError(f"{os.fspath(path)!r} is no path: it has a zero byte")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # what pathlib raises for "~nobody"
        raise UsageError(f"{os.fspath(path)}: there is no such user's home folder") from error


def _holds(folder: Path, pattern: str) -> bool:
    try:
        return next(folder.glob(pattern), None) is not None
    except OSError:  # not a folder, or not readable
        return False


def _held(folder: Path) -> str:
    """What is in a folder, in words."""
    try:
        return f"{folder} holds {listing(sorted(entry.name for entry in os.scandir(folder)), 8)}"
    except OSError as error:
        return f"{folder}: {error.strerror or error}"


def _page(entry: str) -> str:
    from guie_datasets.plugin import guie_datasets  # which names the pages once, for `guie data info` and for messages

    return next(each.origin.url for each in guie_datasets() if each.name == entry and each.origin)
