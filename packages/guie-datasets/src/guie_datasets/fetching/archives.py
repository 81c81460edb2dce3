"""Zip and tar archives, unpacked without leaving their folder.

Archives come from strangers. One that asks for anything unusual is refused as a whole, before anything of it shows:

- names that lead elsewhere: absolute, with a drive letter, with `..`; the same name twice; a name below a file;
- links to anything but a file of the same archive (such links become that file: no link is ever made), devices, pipes;
- more than the free space of the disk, or more than `MOST_RATIO` times the archive's own size;
- members that are encrypted, damaged or cut off.

Owners, permissions and times are not taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from guie_core import GuieError, Interrupted
from guie_core.files import explain_os_errors
from guie_core.wording import shown, size

#: An archive may unpack to this many times its own size (images hardly shrink; text shrinks to a tenth), ...
MOST_RATIO = 100
#: ... and to this many bytes, however small it is.
ALWAYS_ALLOWED = 100_000_000
#: Free space that is left alone.
RESERVE = 100_000_000
#: The longest single piece of a tar archive that is held in memory; headers are far shorter.
_LONGEST = 1 << 24
_LONGEST_NAME = 4096  # of a path, in Linux
_CHUNK = 1 << 20

# what damaged archives make the standard library raise, besides its own errors
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, struct.error),
    *(ValueError, OverflowError, RecursionError, IndexError, KeyError),
)


class Unpacked(NamedTuple):
    """What came out of an archive."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of an archive. link: what a link points to, relative to the archive's top."""

    name: str
    kind: str  # "file", "folder", "link", or what else it is
    source: Any = None
    link: str = ""


def unpack(archive: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Unpacked:
    """Unpack a zip, tar or tar.gz archive as `folder`, which appears complete or not at all.

    A folder that is there gets what the archive holds besides, if nothing of that is there. When everything in the
    archive lies in one folder named as `folder` is, the two are one. Names in a zip that doesn't say how they are
    encoded are UTF-8 if they can be, else GBK, else cp437; those in a tar likewise.

    Raises:
        GuieError: the archive is refused, damaged, or no archive; it names the archive and the member. Or `folder`
            is a file, or holds some of it already, or the disk is full.
        Interrupted: Ctrl-C; nothing is left behind.
    """
    with unpacked(archive, folder) as (_, result):
        return result


@contextlib.contextmanager
def unpacked(archive: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Iterator[tuple[Path, Unpacked]]:
    """As `unpack`, with a look at the result: what the block raises keeps `folder` from appearing."""
    archive, name = Path(archive), Path(folder).name
    folder = Path(os.path.realpath(folder))  # a link that the user has put there leads to where there is room
    # one name for all attempts: what a killed one has left is cleared away by the next
    temporary = folder.with_name(f".{folder.name}.unpacking")
    try:
        with explain_os_errors(folder):
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            result = _Unpacking(archive, temporary).run()
        alone = [entry.name for entry in temporary.iterdir()] == [name]
        inner = temporary / name
        whole = inner if alone and inner.is_dir() else temporary
        yield whole, result
        with explain_os_errors(folder):
            os.sync()  # once for all files, of which there may be a hundred thousand
            _move(whole, folder, archive)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(whole: Path, folder: Path, archive: Path) -> None:
    """Make `whole` the folder `folder`, or add what is in it to the folder that is there, over nothing."""
    if not folder.exists():
        os.replace(whole, folder)
        return
    entries = list(whole.iterdir())
    for entry in entries:
        if not folder.is_dir() or os.path.lexists(folder / entry.name):
            there = shown(folder / entry.name if folder.is_dir() else folder)
            raise GuieError(f"{there} is there already, and {archive.name} is not unpacked over it; move it away.")
    for entry in entries:
        os.replace(entry, folder / entry.name)


class _Unpacking:
    """One archive on its way into an empty folder."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive = archive
        self.folder = folder
        self.member = ""  # the one at work, for messages
        self.kinds: dict[str, str] = {}  # path -> "file", "folder" or "link", of everything so far and its parents
        self.links: dict[str, str] = {}
        self.files = 0
        self.written = 0

    def run(self) -> Unpacked:
        from guie_core.interrupt import interruptible
        from guie_core.progress import bar

        try:
            self.packed = self.archive.stat().st_size
            self.free = shutil.disk_usage(self.folder).free
            with open(self.archive, "rb") as file, interruptible() as self.stop:
                total, members = self._open(file)
                with bar(total, f"unpacking {self.archive.name}", "file") as progress:
                    for member in members:
                        self._put(member)
                        progress.advance()
            for path in self.links:
                self._link(path)
        except OSError as error:
            if isinstance(error.filename, str) and Path(error.filename).absolute() == self.archive.absolute():
                raise GuieError(f"{shown(self.archive)}: cannot be read: {error.strerror or error}") from error
            if error.errno is None:  # gzip's own
                self._refuse(f"is damaged ({error})")
            if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL):
                self._refuse(f"has a name that this disk doesn't take ({error.strerror})")
            raise
        except NotImplementedError as error:
            self._refuse(f"is packed in a way that guie doesn't unpack ({error}). Unpack it by hand")
        except _DAMAGE as error:
            self._refuse(f"is damaged or cut off ({_told(error)}). Remove it and fetch it again")
        return Unpacked(self.files, self.written)

    def _open(self, file: IO[bytes]) -> tuple[int | None, Iterator[_Member]]:
        """How many members there are, where that is known, and each of them."""
        begin = file.read(262)
        file.seek(0)
        if begin[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return self._zip(file)
        if begin[:2] == b"\x1f\x8b":
            return None, self._tar(_Stream(GzipFile(fileobj=file, mode="rb")))
        if begin[257:262] == b"ustar":
            return None, self._tar(_Stream(file))
        looks = " It looks like a web page, which may tell why." if b"<" in begin.lstrip()[:1] else ""
        self._refuse(f"is neither a zip nor a tar archive: it begins with {begin[:8]!r}.{looks}")

    def _zip(self, file: IO[bytes]) -> tuple[int, Iterator[_Member]]:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            self._refuse(f"is damaged or cut off: its list of files, which stands at its end, cannot be read ({error})")
        infos = archive.infolist()
        self._allow(sum(info.file_size for info in infos), "")

        def members() -> Iterator[_Member]:
            for info in infos:
                name = _zip_name(info)
                self.member = name
                mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: made on Unix
                kind = _ZIP_KINDS.get(stat.S_IFMT(mode), "a device, pipe or socket")
                if kind in ("", "file"):
                    kind = "folder" if name.endswith("/") else "file"
                if kind == "folder":
                    yield _Member(name, kind)
                    continue
                if info.flag_bits & 0x1:
                    self._refuse("is encrypted. Unpack it by hand")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    how = zipfile.compressor_names.get(info.compress_type, f"method {info.compress_type}")  # type: ignore[attr-defined]
                    self._refuse(f"is packed by {how}, which guie doesn't unpack. Unpack it by hand")
                with archive.open(info) as source:
                    if kind == "link":
                        target = _decoded(source.read(4096))
                        yield _Member(name, kind, link=self._beside(name, target))
                    else:
                        yield _Member(name, kind, source)

        return len(infos), members()

    def _tar(self, stream: _Stream) -> Iterator[_Member]:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[call-overload]
            while (info := archive.next()) is not None:
                archive.members = []  # or each would be kept
                name = _decoded(info.name.encode("utf-8", "surrogateescape"))
                self.member = name
                self._allow(0, name, at=stream.tell())
                link = _decoded(info.linkname.encode("utf-8", "surrogateescape"))
                if info.issym():
                    yield _Member(name, "link", link=self._beside(name, link))
                elif info.islnk():
                    yield _Member(name, "link", link=link)
                elif info.isdir():
                    yield _Member(name, "folder")
                elif info.isreg() and not info.issparse():
                    self._allow(info.size, name)
                    yield _Member(name, "file", archive.extractfile(info))
                else:
                    yield _Member(name, "a device or pipe" if info.isdev() else f"of type {info.type!r}")
        if stream.last.strip(b"\0") or len(stream.last) != tarfile.BLOCKSIZE:  # tarfile takes any end for the end
            raise EOFError("it ends without the mark of its end")
        while stream.read(_CHUNK):  # to the checksum at gzip's end
            self._allow(0, "", at=stream.tell())

    def _put(self, member: _Member) -> None:
        """Write one member into the folder."""
        self._look_up()
        self.member = member.name
        if member.kind not in ("file", "folder", "link"):
            self._refuse(f"is {member.kind}, neither file nor folder")
        path = self._path(member.name)
        self._enter(path, member.kind)
        if member.kind == "link":
            self.links[path] = self._path(member.link, "points to")
        elif member.kind == "file":
            self._write(self.folder / path, member.source)
            self.files += 1

    def _path(self, name: str, verb: str = "is named") -> str:
        """`name` without detours; "" for the top. Refuses what would lead out."""
        name = name.replace("\\", "/")
        if "\0" in name or len(name) > _LONGEST_NAME:
            self._refuse("has a name that no file can have")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            self._refuse(f"{verb} {name!r}, which is outside the folder it is unpacked to")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            self._refuse(f"{verb} {name!r}, which leads out of the folder it is unpacked to")
        return "/".join(parts)

    def _enter(self, path: str, kind: str) -> None:
        """Note what is at `path`, and make the folders on the way to it; each path is one thing, once."""
        if not path and kind != "folder":
            self._refuse("has no name")
        parts = path.split("/")
        for count in range(1, len(parts)):
            self._make(above := "/".join(parts[:count]))
            if self.kinds[above] != "folder":
                self._refuse(f"lies below {above!r}, which is no folder")
        if path in self.kinds and not kind == self.kinds[path] == "folder":
            self._refuse("is there twice")
        if kind == "folder":
            self._make(path)
        self.kinds[path] = kind

    def _make(self, path: str) -> None:
        if path not in self.kinds:
            self.kinds[path] = "folder"
            (self.folder / path).mkdir(exist_ok=True)

    def _beside(self, name: str, target: str) -> str:
        """What a symbolic link at `name` points to, from the archive's top; absolute targets stay so."""
        if target.replace("\\", "/").startswith("/"):
            return target
        # resolved by hand: a target such as ../a/x.jpg may go up, as far as the top
        parts: list[str] = []
        for part in [*name.replace("\\", "/").split("/")[:-1], *target.replace("\\", "/").split("/")]:
            if part == ".." and parts:
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts)

    def _link(self, path: str) -> None:
        """Give the file that the link at `path` stands for this name as well."""
        self.member = path
        target, seen = self.links[path], {path}
        while target in self.links and target not in seen:
            seen.add(target)
            target = self.links[target]
        if self.kinds.get(target) != "file":
            self._refuse(f"is a link to {target!r}, which is no file of the archive")
        place = self.folder / path
        try:
            os.link(self.folder / target, place)
        except FileExistsError:
            self._refuse(_SAME)
        except (PermissionError, NotImplementedError):  # a file system without hard links
            shutil.copyfile(self.folder / target, place)
        self.files += 1

    def _write(self, path: Path, source: IO[bytes]) -> None:
        try:
            file = open(path, "xb")  # noqa: SIM115  # never through something that is there
        except FileExistsError:
            self._refuse(_SAME)
        with file:
            while chunk := source.read(_CHUNK):
                self._look_up()
                self._allow(len(chunk), self.member)
                file.write(chunk)
                self.written += len(chunk)

    def _look_up(self) -> None:
        if self.stop:
            raise Interrupted(f"{self.archive.name} is not unpacked; the same command unpacks it from its beginning.")

    def _allow(self, more: int, member: str, at: int = 0) -> None:
        """Refuse what would fill the disk or is out of proportion: `more` bytes to write, a stream read up to `at`."""
        total = max(self.written + more, at)
        if more and self.written + more > self.free - RESERVE:
            self.member = member
            room = f"only {size(self.free)} are free in {shown(self.folder.parent)}"
            self._refuse(f"unpacks to {size(self.written + more)} or more, and {room}")
        if total > max(ALWAYS_ALLOWED, MOST_RATIO * self.packed):
            self.member = member
            self._refuse(
                f"unpacks to {size(total)} or more, over {MOST_RATIO} times the archive's {size(self.packed)}, as "
                "archives do that are made to fill disks"
            )

    def _refuse(self, why: str) -> NoReturn:
        member = self.member if len(self.member) <= 200 else f"{self.member[:200]}..."
        where = f"{shown(self.archive)}: {member!r}" if member else shown(self.archive)
        raise GuieError(f"{where} {why}.\nNothing of it was unpacked.") from None


_SAME = "has a name that this disk doesn't tell from another's"
_ZIP_KINDS = {0: "", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


class _Stream:
    """A file as tarfile reads it, which refuses to hold more than `_LONGEST` bytes at once.

    last: what the last `read` gave.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.last = b""

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= _LONGEST:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        self.last = self._file.read(count)
        return self.last

    def seek(self, position: int) -> int:
        return int(self._file.seek(position))

    def tell(self) -> int:
        return int(self._file.tell())


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name as it was meant: zipfile takes every name without the UTF-8 flag for cp437."""
    name = info.orig_filename  # before it's cut at a NUL
    return str(name) if info.flag_bits & 0x800 else _decoded(name.encode("cp437"))


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gbk"):
        with contextlib.suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return raw.decode("cp437")


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
