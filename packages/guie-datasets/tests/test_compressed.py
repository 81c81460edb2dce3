"""Packed files, read anywhere: what gzip's and zlib's own unpacking gives, from any thread, in bounded memory."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guie_core import GuieError
from guie_datasets import ImageRef, compressed
from guie_datasets.compressed import PackedError, PackedFile, looks_packed
from guie_datasets.images.reading import Reader

STEP = 1 << 14


def mixed(size: int) -> bytes:
    """Bytes of which some pack well, others not at all."""
    rng = random.Random(0)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        parts.append(rng.randbytes(rng.randrange(9000)) if rng.random() < 0.7 else bytes(rng.randrange(20_000)))
    return b"".join(parts)[:size]


WHOLE = mixed(1_500_000)
PACKED = {"gzip": gzip.compress(WHOLE, 6, mtime=0), "zlib": zlib.compress(WHOLE, 6)}


@pytest.fixture(params=["gzip", "zlib"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> PackedFile:
    path = tmp_path / f"a.{request.param}"
    path.write_bytes(PACKED[request.param])
    return PackedFile(path, request.param)


def test_any_part(file: PackedFile) -> None:
    rng = random.Random(1)
    for _ in range(300):
        offset, length = rng.randrange(len(WHOLE) + 5), rng.choice([0, 1, 100, 40_000])
        assert file.read(offset, length) == WHOLE[offset : offset + length]
    assert file.read(0) == WHOLE
    assert file.read(1_400_000) == WHOLE[1_400_000:]
    assert file.read(len(WHOLE) + 10**9, 5) == b""


def test_each_byte_is_unpacked_once_by_readers_that_keep_up(file: PackedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    unpack = PackedFile._unpack
    monkeypatch.setattr(PackedFile, "_unpack", lambda self, data: unpacked.append(len(data)) or unpack(self, data))
    parts = range(0, len(WHOLE), 10_000)
    with ThreadPoolExecutor(4) as pool:
        assert b"".join(pool.map(lambda start: file.read(start, 10_000), parts)) == WHOLE
    assert sum(unpacked) == len(PACKED[file.compression])


def test_a_far_part_is_reached_from_the_nearest_state(file: PackedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_AT_HAND", STEP)
    file._spacing = 8
    file.read(0)
    unpacked: list[int] = []
    unpack = PackedFile._unpack
    monkeypatch.setattr(PackedFile, "_unpack", lambda self, data: unpacked.append(len(data)) or unpack(self, data))
    assert file.read(1_100_000, 10) == WHOLE[1_100_000:1_100_010]
    assert 0 < len(unpacked) <= 8 + 1


def test_memory_stays_bounded(file: PackedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "_AT_HAND", 100_000)
    monkeypatch.setattr(compressed, "_STATES", 6)
    file._spacing = 1
    rng = random.Random(2)
    for offset in [*range(0, len(WHOLE), 20_000), *(rng.randrange(len(WHOLE)) for _ in range(50))]:
        assert file.read(offset, 30_000) == WHOLE[offset : offset + 30_000]
        assert sum(map(len, file._at_hand.values())) == file._bytes_at_hand <= 100_000 + STEP
        assert len(file._states) < 6
    assert file._spacing > 8
    assert all(after - before >= file._spacing for (before, _), (after, _) in itertools.pairwise(file._states))


def test_gzip_members_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(b"".join(gzip.compress(WHOLE[start : start + 30_000]) for start in range(0, 600_000, 30_000)))
    assert PackedFile(path, "gzip").read(0) == WHOLE[:600_000]
    assert PackedFile(path, "gzip").read(599_000, 5000) == WHOLE[599_000:600_000]


def test_no_empty_file_is_packed(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"")
    with pytest.raises(PackedError, match=r"a.gz: its gzip data end too early: it is truncated"):
        PackedFile(tmp_path / "a.gz", "gzip").read(0)


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
def test_what_stands_before_a_cut_is_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "a"
    whole = PACKED[compression]
    path.write_bytes(whole[: len(whole) // 2])
    there = zlib.decompressobj(31 if compression == "gzip" else 15).decompress(whole[: len(whole) // 2])
    file = PackedFile(path, compression)
    assert file.read(0, len(there)) == there
    for _ in range(2):
        with pytest.raises(PackedError, match="end too early: it is truncated"):
            file.read(len(there) - 10, 11)
    assert file.read(len(there) - 10, 10) == there[-10:]


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
@pytest.mark.parametrize("position", [-1, -3, -10, 600_000])
def test_damage_is_named_and_what_stands_before_it_is_read(tmp_path: Path, compression: str, position: int) -> None:
    data = bytearray(PACKED[compression])
    data[position] ^= 255
    (tmp_path / "a").write_bytes(data)
    file = PackedFile(tmp_path / "a", compression)
    with pytest.raises(PackedError, match=rf"a: its {compression} data are damaged between bytes (\d+) and") as caught:
        file.read(0)
    assert int(caught.value.problem.split()[7]) >= position % len(data) - STEP
    assert file.read(0, 500_000) == WHOLE[:500_000]


def test_bytes_after_the_end_of_zlib_data(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(zlib.compress(b"abc") + b"more")
    with pytest.raises(PackedError, match="there are bytes after its end"):
        PackedFile(tmp_path / "a", "zlib").read(0)


def test_a_bomb_is_not_unpacked_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "MAX_BYTES", 40 << 20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(60 << 20)))
    file = PackedFile(tmp_path / "a.gz", "gzip")
    with pytest.raises(PackedError, match="it unpacks to more than 41943040 bytes"):
        file.read(0)
    with pytest.raises(PackedError, match="1000000000 bytes from 0 on are asked for; at most 41943040 are read"):
        file.read(0, 10**9)
    assert file._bytes_at_hand < 26 << 20
    assert file.read(59 << 20, 7) == bytes(7)


def test_a_file_that_is_replaced_or_goes_away(file: PackedFile) -> None:
    file.read(0, 10)
    os.utime(file.path, (1, 1))
    with pytest.raises(GuieError, match="it was replaced while it was read"):
        file.read(0, 10)
    os.unlink(file.path)
    with pytest.raises(GuieError, match="cannot be read: No such file"):
        file.read(0, 10)


def test_unknown_compressions(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="unknown compression 'xz': it can be gzip or zlib"):
        ImageRef(str(tmp_path / "a"), 0, 1, "xz").read()


def test_references(tmp_path: Path) -> None:
    refs = []
    for number, (compression, data) in enumerate(PACKED.items()):
        path = tmp_path / str(number)
        path.write_bytes(data)
        refs += [ImageRef(str(path), offset, 50_000, compression) for offset in range(0, 1_400_000, 90_000)]
    random.Random(3).shuffle(refs)
    parts = [WHOLE[ref.offset : ref.offset + 50_000] for ref in refs]
    assert [ref.read() for ref in refs] == parts
    with Reader() as reader, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.read, refs)) == parts
        for read in (ImageRef.read, reader.read):
            assert read(ImageRef(refs[0].path, 1_400_000, None, refs[0].compression)) == WHOLE[1_400_000:]
            with pytest.raises(GuieError, match=r"@1499990\+20: only 10 of 20 bytes are there"):
                read(ImageRef(refs[0].path, 1_499_990, 20, refs[0].compression))


def test_few_files_are_known(tmp_path: Path) -> None:
    refs = []
    for number in range(5):
        (tmp_path / str(number)).write_bytes(zlib.compress(bytes([number]) * 10))
        refs.append(ImageRef(str(tmp_path / str(number)), 2, 3, "zlib"))
    files = compressed.PackedFiles(known=2)
    assert [files.read(ref) for ref in refs * 2] == [bytes([number]) * 3 for number in range(5)] * 2
    assert [path for path, _ in files._files] == [str(tmp_path / "3"), str(tmp_path / "4")]


@pytest.mark.parametrize("level", range(1, 10))
def test_packed_files_are_known_by_their_start(level: int) -> None:
    assert looks_packed(gzip.compress(b"abc", level)) == "gzip"
    assert looks_packed(zlib.compress(b"abc", level)) == "zlib"
    assert looks_packed(zlib.compress(b"abc", level, wbits=9)) == "zlib"


@pytest.mark.parametrize("start", [b"", b"x", b"\x1f", b"x\x00\x00\x00", b"PK\x03\x04", b"\xff\xd8\xff", b"path,label"])
def test_other_files_do_not_look_packed(start: bytes) -> None:
    assert looks_packed(start) == ""


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_packed_error_or_none(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    compression = data.draw(st.sampled_from(["gzip", "zlib"]))
    whole = bytearray(PACKED[compression][:60_000] if data.draw(st.booleans()) else zlib.compress(b"short" * 9))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged-{threading.get_ident()}"
    path.write_bytes(whole)
    file = PackedFile(path, compression)
    gathered = io.BytesIO()
    try:
        while part := file.read(gathered.tell(), 5000):
            gathered.write(part)
    except PackedError:
        pass
    again = PackedFile(path, compression)
    assert again.read(0, gathered.tell()) == gathered.getvalue()
