"""Data sets from where their owners publish them: fetched, checked and unpacked, each step once.

A data set class says by `downloads` what it is fetched as::

    class GPR1200(Dataset):
        downloads: ClassVar[tuple[Download, ...]] = (
            HttpArchive("https://visual-computing.com/files/GPR1200/GPR1200.zip", "GPR1200", holds="images/*"),
        )

Archives lie in `<data folder>/downloads` until they are unpacked.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

#: Where archives lie, below the data folder.
ARCHIVES = "downloads"


@dataclass(frozen=True, kw_only=True)
class Download(ABC):
    """One thing that a data set is fetched as: a `KaggleArchive`, `HttpArchive` or `HttpFile`.

    Places are relative to the data folder and written with "/". What is in its place is not fetched again.

    page: where a person can get it; default its address. size: its bytes, 0 where not known.

    Raises:
        ValueError: a place outside the data folder, or an address that is none.
    """

    page: str = ""
    size: int = 0

    @property
    @abstractmethod
    def file(self) -> str:
        """The name of what comes over the network."""

    @abstractmethod
    def is_there(self, data_folder: Path) -> bool:
        """Whether it is in its place."""


class Archive(Download):
    """What the two kinds of archives have in common.

    folder: what the archive becomes. When everything in the archive lies in one folder of that name, the two are one.
    holds: a pattern below `folder` that something matches when the archive has been unpacked there, "images/*".
    """

    folder: str
    holds: str

    def __post_init__(self) -> None:
        _check_place(self.folder)

    def is_there(self, data_folder: Path) -> bool:
        return any(True for _ in (data_folder / self.folder).glob(self.holds))


@dataclass(frozen=True)
class KaggleArchive(Archive):
    """All files of a Kaggle data set, as one zip. `slug` is `owner/name`, as in the address of its page."""

    slug: str
    folder: str
    holds: str = field(default="*", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.slug):
            raise ValueError(f"a Kaggle data set is named 'owner/name', not {self.slug!r}")
        object.__setattr__(self, "page", self.page or f"https://www.kaggle.com/datasets/{self.slug}")

    @property
    def file(self) -> str:
        return f"{self.slug.split('/')[1]}.zip"


@dataclass(frozen=True)
class HttpArchive(Archive):
    """A zip or tar archive at an address. sha256, md5: in hexadecimal, "" where its owner doesn't say."""

    url: str
    folder: str
    sha256: str = ""
    md5: str = ""
    holds: str = field(default="*", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_address(self.url)
        object.__setattr__(self, "page", self.page or self.url)

    @property
    def file(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name or "archive"


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

    def is_there(self, data_folder: Path) -> bool:
        return (data_folder / self.place).is_file()


def _check_place(place: str) -> None:
    path = PurePosixPath(place)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in place or path.parts[0] == ARCHIVES:
        raise ValueError(f"a download goes to a place below the data folder, other than {ARCHIVES!r}, not {place!r}")


def _check_address(url: str) -> None:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"the address of a download is one of http or https, not {url!r}")
