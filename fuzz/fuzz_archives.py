"""Zip and tar archives: any bytes are unpacked within their folder, or refused by a GuieError with nothing left behind.

    python fuzz/fuzz_archives.py fuzz/seeds/archives -max_total_time=600

The first byte of the input says what is done to the rest first: whether the checksums of tar headers are made right,
and whether it is packed by gzip. `--seeds FOLDER` writes the seeds anew.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import atheris

for name in ("tarfile", "zipfile"):
    sys.modules.pop(name, None)  # what was imported before isn't followed

with atheris.instrument_imports(include=["guie_datasets.fetching.archives", "tarfile", "zipfile"]):
    import tarfile
    import zipfile

    from guie_core import GuieError, progress
    from guie_datasets.fetching import archives

FOLDER = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()) / f"fuzz-{os.getpid()}"


class _NoBar:
    def advance(self, count: int = 1) -> None:
        pass


@contextlib.contextmanager
def _no_bar(*_: object) -> Iterator[_NoBar]:
    yield _NoBar()


def one_input(data: bytes) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "in").mkdir(parents=True)
    archive = FOLDER / "archive"
    kind, data = data[:1] or b"\0", data[1:]
    if kind[0] & 2:
        data = _right_checksums(data)
    archive.write_bytes(gzip.compress(data, 1) if kind[0] & 1 else data)
    try:
        result = archives.unpack(archive, FOLDER / "in" / "set")
    except GuieError as error:
        assert str(archive) in str(error)  # noqa: PT017
        assert not os.listdir(FOLDER / "in")
    else:
        assert os.listdir(FOLDER / "in") == ["set"]
        found = list((FOLDER / "in" / "set").rglob("*"))
        assert not any(path.is_symlink() for path in found)
        assert all(path.is_dir() or path.is_file() for path in found)
        assert sum(path.is_file() for path in found) == result.files
        for path in found:
            str(path).encode()
    assert sorted(os.listdir(FOLDER)) == ["archive", "in"]


def _right_checksums(data: bytes) -> bytes:
    """`data` with the checksum of everything in it that looks like a tar header."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if len(block) == 512 and block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def write_seeds(folder: Path) -> None:
    """Small archives of every kind, as the standard library writes them."""
    folder.mkdir(parents=True, exist_ok=True)

    def zipped(name: str, compression: int, link: str = "") -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("a/", b"")
            archive.writestr("a/1.jpg", b"one" * 20)
            archive.writestr("可.jpg", b"2")
            if link:
                info = zipfile.ZipInfo("a/link.jpg")
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, link)
        (folder / name).write_bytes(b"\0" + file.getvalue())

    def tarred(name: str, form: int, first: bytes = b"\2", encoding: str = "utf-8") -> None:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form, encoding=encoding) as archive:
            for member, kind, link in (
                ("a", tarfile.DIRTYPE, ""),
                ("a/1.jpg", tarfile.REGTYPE, ""),
                ("long" * 40 + "可", tarfile.REGTYPE, ""),
                ("soft.jpg", tarfile.SYMTYPE, "a/1.jpg"),
                ("b/hard.jpg", tarfile.LNKTYPE, "a/1.jpg"),
            ):
                info = tarfile.TarInfo(member)
                info.type, info.linkname, info.size = kind, link, 5 * (kind == tarfile.REGTYPE)
                archive.addfile(info, io.BytesIO(b"image"))
        (folder / name).write_bytes(first + file.getvalue().rstrip(b"\0") + bytes(1024))

    zipped("zip", zipfile.ZIP_DEFLATED)
    zipped("zip-stored", zipfile.ZIP_STORED)
    zipped("zip-link", zipfile.ZIP_STORED, "../a/1.jpg")
    zipped("zip-link-out", zipfile.ZIP_STORED, "../../x")
    tarred("tar-gnu", tarfile.GNU_FORMAT)
    tarred("tar-pax", tarfile.PAX_FORMAT)
    tarred("tar-gbk-gz", tarfile.GNU_FORMAT, b"\3", "gbk")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        archives.ALWAYS_ALLOWED = 1_000_000
        os.sync = lambda: None
        progress.bar = _no_bar  # type: ignore[assignment]
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
