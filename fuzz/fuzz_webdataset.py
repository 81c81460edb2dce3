"""Tar shards of samples: any bytes give rows, findings or a GuieError, and what is found is what tarfile finds.

    python fuzz/fuzz_webdataset.py fuzz/seeds/webdataset -max_total_time=600

The first byte of the input says whether the rest is packed by gzip first, and whether the checksums of headers are made
right, so that what is behind them is reached. `--seeds FOLDER` writes the seeds anew.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["guie_datasets"]):
    from guie_core import GuieError
    from guie_datasets.compressed import PackedFiles
    from guie_datasets.rows import LeftOut
    from guie_datasets.sets.webdataset import Shard, WebDataset

PATH = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()) / f"fuzz-{os.getpid()}.tar"


def one_input(data: bytes) -> None:
    if not data:
        return
    kind, whole = data[0], data[1:]
    if kind & 2:
        whole = _with_checksums(whole)
    PATH.write_bytes(gzip.compress(whole, 1) if kind & 1 else whole)
    files = PackedFiles()
    for label, fields in (("cls", {}), ("json", {"label": "id", "category": "a.b", "name": "n"})):
        classes = () if kind & 8 else ("cat", "dog")
        dataset = WebDataset(str(PATH), label=label, fields=fields, classes=classes, complete=bool(kind & 4))
        try:
            rows = list(dataset.rows())
        except GuieError as error:
            _names_the_file(error)
            rows = []
        for row in rows:
            image = files.read(row.image) if row.image.compression else row.image.read()
            assert len(image) == row.image.length
            assert whole[row.image.offset : row.image.offset + len(image)] == image
            assert row.label >= 0
            "".join((row.source, row.category, row.name)).encode()
        for item in dataset.left_out():
            f"{item.place}{item.reason}".encode()
    _compare(whole)


def _names_the_file(error: GuieError) -> None:
    assert str(PATH) in str(error)
    str(error).encode()


def _compare(whole: bytes) -> None:
    """tarfile finds the same members in files that nothing is found wrong with, as far as it goes."""
    left_out: list[LeftOut] = []
    try:
        with Shard(PATH) as shard:
            mine = [(member.offset, member.size) for member in shard.members(left_out)]
    except GuieError:
        return
    if left_out:
        return
    try:
        with tarfile.open(fileobj=io.BytesIO(whole)) as file:
            theirs = [(member.offset_data, member.size) for member in file if member.type in tarfile.REGULAR_TYPES]
    except (tarfile.TarError, ValueError):
        return
    # it reads times and owners as well, and ends where one of them is wrong
    assert mine[: len(theirs)] == theirs, (mine, theirs)


def _with_checksums(whole: bytes) -> bytes:
    out = bytearray(whole)
    for start in range(0, len(out) - 511, 512):
        header = out[start : start + 512]
        if header[257:262] == b"ustar":
            out[start + 148 : start + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
    return bytes(out)


def write_seeds(folder: Path) -> None:
    """Small shards in each of tar's formats, whole and cut."""
    folder.mkdir(parents=True, exist_ok=True)
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for name, form in formats.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers={"comment": "all"}) as file:
            members = [("a/1.jpg", b"\xff\xd8"), ("a/1.cls", b"3"), ("a/1.json", b'{"id": "cat", "a": {"b": 1}}')]
            long = "long/" * (19 if name == "ustar" else 60) + "2"
            for path, data in (*members, (f"{long}.png", b"\x89PNG"), (f"{long}.cls", b"dog")):
                member = tarfile.TarInfo(path)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "a/1.jpg"
            file.addfile(link)
        data = buffer.getvalue().rstrip(b"\0")
        (folder / name).write_bytes(b"\2" + data + bytes(1536))
        (folder / f"{name}-gzip").write_bytes(b"\3" + data)
        (folder / f"{name}-cut").write_bytes(b"\0" + data[:1800])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
