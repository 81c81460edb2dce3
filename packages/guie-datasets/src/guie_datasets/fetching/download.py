"""Data sets from where their owners publish them: fetched, checked and unpacked, each step once.

A data set class says by `downloads` what it is fetched as::

    class GPR1200(Dataset):
        downloads: ClassVar[tuple[Download, ...]] = (
            HttpArchive("https://visual-computing.com/files/GPR1200/GPR1200.zip", "GPR1200", holds="images/*"),
        )

and :func:`fetch` brings it below the data folder. Archives lie in `<data folder>/downloads` until they are unpacked;
beside each, a JSON file keeps what came from where: address, size, sha256, date.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from guie_core import GuieError
from guie_core.files import atomic_write, explain_os_errors
from guie_core.tables import table
from guie_core.wording import listing, plural, shown, size
from guie_datasets.fetching import _http, _kaggle
from guie_datasets.fetching.archives import Unpacked, unpacked
from guie_datasets.places import absolute

#: Where archives lie, below the data folder.
ARCHIVES = "downloads"


@dataclass(frozen=True, kw_only=True)
class Download(ABC):
    """One thing that a data set is fetched as: a `KaggleArchive`, `HttpArchive` or `HttpFile`.

    Places are relative to the data folder and written with "/". What is in its place is not fetched again.

    page: where a person can get it; default its address. size: its bytes, 0 where not known. optional: the data set can
    be used without it, so that it's told, and no error, when it can't be had.

    Raises:
        ValueError: a place outside the data folder, or an address that is none.
    """

    page: str = ""
    size: int = 0
    optional: bool = False

    @property
    @abstractmethod
    def file(self) -> str:
        """The name of what comes over the network."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Where it comes from, for messages."""

    @abstractmethod
    def target(self, data_folder: Path) -> Path:
        """Its place: a folder or a file."""

    @abstractmethod
    def is_there(self, data_folder: Path) -> bool:
        """Whether it is in its place."""

    def in_part(self, data_folder: Path) -> str:
        """How much of it is in its place, where that is not all of it; "" otherwise."""
        return ""

    @abstractmethod
    def waits(self, data_folder: Path) -> Path:
        """The file that it is between the network and its place; a person can put it there as well."""

    @abstractmethod
    def bring(self, path: Path) -> None:
        """Fetch it as the file `path`, going on from what an earlier attempt has left."""

    @abstractmethod
    def install(self, path: Path, data_folder: Path) -> Unpacked:
        """Put what `path` holds in its place, complete or not at all; `path` stays."""


class Archive(Download):
    """What the two kinds of archives have in common.

    folder: what the archive becomes. When everything in the archive lies in one folder of that name, the two are one.
    holds: a pattern below `folder` that something matches when the archive has been unpacked there, "images/*".
    files: so much matches it, at least; what has less is there in part only.
    """

    folder: str
    holds: str
    files: int = 1

    def __post_init__(self) -> None:
        _check_place(self.folder)

    def target(self, data_folder: Path) -> Path:
        return data_folder / self.folder

    def is_there(self, data_folder: Path) -> bool:
        return self._found(data_folder) >= self.files

    def in_part(self, data_folder: Path) -> str:
        found = self._found(data_folder)
        return f"{found:,} of {self.files:,} files {self.holds}" if 0 < found < self.files else ""

    def _found(self, data_folder: Path) -> int:
        """How much there is of what it holds, up to what it must be."""
        folder = self.target(data_folder)
        # nested once, as some programs unpack
        return max(_matches(each, self.holds, self.files) for each in (folder, folder / folder.name))

    def waits(self, data_folder: Path) -> Path:
        return data_folder / ARCHIVES / self.folder / self.file

    def install(self, path: Path, data_folder: Path) -> Unpacked:
        with unpacked(path, self.target(data_folder)) as (folder, result):
            if _matches(folder, self.holds, self.files) < self.files:
                names = listing(sorted(entry.name for entry in folder.iterdir()), 6)
                no = "no" if self.files == 1 else f"fewer than {self.files:,} files"
                raise GuieError(
                    f"{shown(path)} is not what was expected: it holds {no} {self.holds}, but {names}.\n"
                    f"Nothing of it was unpacked. Remove it, and get {self.file} from {self.page}."
                )
        return result


@dataclass(frozen=True)
class KaggleArchive(Archive):
    """All files of a Kaggle data set, as one zip. `slug` is `owner/name`, as in the address of its page."""

    slug: str
    folder: str
    holds: str = field(default="*", kw_only=True)
    files: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.slug):
            raise ValueError(f"a Kaggle data set is named 'owner/name', not {self.slug!r}")
        object.__setattr__(self, "page", self.page or f"https://www.kaggle.com/datasets/{self.slug}")

    @property
    def file(self) -> str:
        return f"{self.slug.split('/')[1]}.zip"

    @property
    def source(self) -> str:
        return f"Kaggle, {self.slug}"

    def bring(self, path: Path) -> None:
        _kaggle.fetch(self.slug, path)


@dataclass(frozen=True)
class HttpArchive(Archive):
    """A zip or tar archive at an address. sha256, md5: in hexadecimal, "" where its owner doesn't say."""

    url: str
    folder: str
    sha256: str = ""
    md5: str = ""
    holds: str = field(default="*", kw_only=True)
    files: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_address(self.url)
        object.__setattr__(self, "page", self.page or self.url)

    @property
    def file(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name or "archive"

    @property
    def source(self) -> str:
        return _http.address(self.url)

    def bring(self, path: Path) -> None:
        _http.fetch(self.url, path, expected=self.size)


@dataclass(frozen=True)
class HttpFile(Download):
    """A file at an address that becomes the file `place`, as it is. sha256, md5: as for `HttpArchive`."""

    url: str
    place: str
    sha256: str = ""
    md5: str = ""

    def __post_init__(self) -> None:
        _check_place(self.place)
        _check_address(self.url)
        object.__setattr__(self, "page", self.page or self.url)

    @property
    def file(self) -> str:
        return PurePosixPath(self.place).name

    @property
    def source(self) -> str:
        return _http.address(self.url)

    def target(self, data_folder: Path) -> Path:
        return data_folder / self.place

    def is_there(self, data_folder: Path) -> bool:
        return self.target(data_folder).is_file()

    def waits(self, data_folder: Path) -> Path:
        return data_folder / ARCHIVES / self.place

    def bring(self, path: Path) -> None:
        _http.fetch(self.url, path, expected=self.size)

    def install(self, path: Path, data_folder: Path) -> Unpacked:
        with open(path, "rb") as source, atomic_write(self.target(data_folder)) as file:
            shutil.copyfileobj(source, file)
        return Unpacked(1, path.stat().st_size)


def _matches(folder: Path, pattern: str, most: int) -> int:
    """How much in a folder matches a pattern, up to `most`."""
    return sum(1 for _ in islice(folder.glob(pattern), most))


def _check_place(place: str) -> None:
    path = PurePosixPath(place)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in place or path.parts[0] == ARCHIVES:
        raise ValueError(f"a download goes to a place below the data folder, other than {ARCHIVES!r}, not {place!r}")


def _check_address(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"the address of a download is one of http or https, not {url!r}")


def fetch(
    downloads: Sequence[Download],
    data_folder: str | os.PathLike[str],
    *,
    keep_archive: bool = False,
    command: str = "the same command",
) -> Iterator[str]:
    """Bring `downloads` into their places below `data_folder`, and tell each step, in a line, when it is done.

    What is in its place is passed over; an archive that waits in `downloads` is checked and unpacked; what broke off is
    gone on with. An archive is removed when it has been unpacked, unless `keep_archive`. `command`: what brings them
    again, for messages.

    Raises:
        GuieError: no network or credentials, with page, file and folder to do it by hand; a wrong checksum; an archive
            that is damaged or unsafe; a full disk; another process fetches the same.
        Interrupted: Ctrl-C; calling it again goes on.
    """
    folder = absolute(data_folder)
    for download in downloads:
        if download.is_there(folder):
            yield f"{download.file} is there already: {shown(download.target(folder))}"
            continue
        if part := download.in_part(folder):
            raise GuieError(
                f"{shown(download.target(folder))} is there in part: it holds {part}. Move it away and run {command} "
                f"again, or put the others there by hand, from {download.page}."
            )
        with _alone(download.waits(folder)):
            path = download.waits(folder)
            handed = path.is_file()
            if not handed:
                try:
                    download.bring(path)
                except _http.Unreachable as error:
                    if download.optional:
                        yield f"not fetched: {download.file}, which the data set can do without. {error}"
                        continue
                    raise GuieError(f"{error}\n{by_hand(downloads, folder, command)}") from None
            digests = _check(download, path, handed)
            how = f"found in {shown(path.parent)}" if handed else "fetched"
            yield f"{how}: {download.file}, {size(path.stat().st_size)}, {_told(download, digests)}"
            result = download.install(path, folder)
            yield from _record(download, path, digests, result)
            if not (keep_archive and isinstance(download, Archive)):
                path.unlink()
            place = shown(download.target(folder))
            yield f"in its place: {place}, {plural(result.files, 'file')}, {size(result.bytes)}"


def by_hand(downloads: Sequence[Download], data_folder: Path, command: str) -> str:
    """How a person gets what is not there: page, file, folder, and the command to run afterwards."""
    lines = ["To get it by hand:"]
    for download in downloads:
        if not download.is_there(data_folder):
            put = f"{download.waits(data_folder).parent}{os.sep}"
            lines.append(table([("page", download.page), ("file", download.file), ("put into", put)]))
    return "\n".join([*lines, f"Then run: {command}"])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from fetching the same to the same place."""
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GuieError(f"{path.name} is being fetched to {shown(path.parent)} by another process.") from None
        yield
    finally:
        os.close(lock)


def _check(download: Download, path: Path, handed: bool) -> dict[str, str]:
    """The digests of the file, none of which differs from one that is known."""
    known = {name: getattr(download, name, "").lower() for name in ("sha256", "md5")}
    found = {}
    for name in ("sha256", "md5") if known["md5"] else ("sha256",):
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, _HASHES[name]).hexdigest()
        if known[name] and found[name] != known[name]:
            remedy = "Remove it" if handed else "It was removed"
            if not handed:
                path.unlink()
            raise GuieError(
                f"{shown(path)} is not the file that its owner published: its {name} is {found[name]}, not "
                f"{known[name]}. It was damaged on the way, or somebody has changed it.\n"
                f"{remedy}; run the same command again. If that ends here too, get it from {download.page}."
            )
    return found


_HASHES = {"sha256": hashlib.sha256, "md5": lambda: hashlib.md5(usedforsecurity=False)}


def _told(download: Download, digests: dict[str, str]) -> str:
    known = [name for name in digests if getattr(download, name, "")]
    return f"sha256 {digests['sha256']} ({' and '.join(known) or 'no checksum'} published by its owner)"


def _record(download: Download, path: Path, digests: dict[str, str], result: Unpacked) -> Iterator[str]:
    """Note what came from where; tell when it's not what came before."""
    notes = path.with_name(f"{path.name}.json")
    before: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(notes.read_text("utf-8"))
    if isinstance(before, dict) and before.get("sha256", digests["sha256"]) != digests["sha256"]:
        yield f"note: {download.file} is another file than on {before.get('date')} (sha256 {before['sha256']})"
    now = {
        "source": download.source,
        "date": datetime.now(UTC).date().isoformat(),
        "size": path.stat().st_size,
        **digests,
        "files": result.files,
        "bytes": result.bytes,
    }
    with atomic_write(notes, "w") as file:
        json.dump(now, file, indent=2, ensure_ascii=False)
