"""Archives are unpacked whole or not at all, and nothing is ever written outside their folder."""

from __future__ import annotations

import gc
import gzip
import io
import os
import shutil
import signal
import stat
import struct
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guie_core import GuieError, Interrupted
from guie_core.files import folder_option
from guie_datasets.fetching import archives
from guie_datasets.fetching.archives import Unpacked, unpack

PICTURE = bytes(range(256)) * 40
FILES = {"images/a/1.jpg": PICTURE, "images/b/2.jpg": b"two", "readme.txt": b""}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None, links as what they point to."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = os.readlink(path).encode() if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def only_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if data is not None}


def make_zip(path: Path, files: dict[str, bytes] = FILES, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, *members: tuple[str, bytes | str, bytes], mode: str = "w:gz") -> Path:
    """Members as (name, type, data or target)."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                info.linkname = data.decode()
                archive.addfile(info)
    return path


def regular(files: dict[str, bytes]) -> list[tuple[str, bytes, bytes]]:
    return [(name, tarfile.REGTYPE, data) for name, data in files.items()]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing every disk of the machine is slow, and none is unplugged here."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in which one folder may be written, and nothing else: checked when the test is over."""
    guarded = tmp_path / "guarded"
    (guarded / "in").mkdir(parents=True)
    (guarded / "other.txt").write_text("kept")
    yield guarded / "in"
    assert {path.name for path in guarded.iterdir()} == {"in", "other.txt"}
    assert (guarded / "other.txt").read_text() == "kept"
    assert {path.name for path in (guarded / "in").iterdir()} <= {"set"}, "something was left beside the folder"


def refused(archive: Path, place: Path, *words: str) -> str:
    """The message of an archive that is refused as a whole: nothing is there afterwards."""
    with pytest.raises(GuieError) as caught:
        unpack(archive, place / "set")
    assert not list(place.iterdir())
    text = str(caught.value)
    assert archive.name in text
    for word in words:
        assert word in text
    return text


# what is unpacked


@pytest.mark.parametrize("form", ["zip", "stored zip", "tar", "tar.gz"])
def test_files_come_out_as_they_went_in(form: str, tmp_path: Path, place: Path) -> None:
    path = tmp_path / "archive"
    if form.endswith("zip"):
        make_zip(path, compression=zipfile.ZIP_STORED if form.startswith("stored") else zipfile.ZIP_DEFLATED)
    else:
        make_tar(path, *regular(FILES), mode="w:gz" if form == "tar.gz" else "w")
    assert unpack(path, place / "set") == Unpacked(3, sum(map(len, FILES.values())))
    assert only_files(place / "set") == FILES
    assert (place / "set").stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize("command", ["tar -czf", "tar -cf", "zip -qr"])
def test_archives_of_the_usual_programs(command: str, tmp_path: Path, place: Path) -> None:
    if not shutil.which(command.split()[0]):
        pytest.skip(f"{command.split()[0]} is not installed")
    for name, data in FILES.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)
    subprocess.run([*command.split(), "out", "set"], cwd=tmp_path, check=True)
    unpack(next(tmp_path.glob("out*")), place / "set")
    assert only_files(place / "set") == FILES  # "set" in "set" is one


def test_a_single_folder_of_another_name_stays(tmp_path: Path, place: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip", {"other/1.jpg": b"1"}), place / "set")
    assert tree(place / "set") == {"other": None, "other/1.jpg": b"1"}


def test_a_file_named_as_the_folder_stays_in_it(tmp_path: Path, place: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip", {"set": b"1"}), place / "set")
    assert tree(place / "set") == {"set": b"1"}


def test_a_folder_that_is_there_is_added_to(tmp_path: Path, place: Path) -> None:
    (place / "set" / "texts").mkdir(parents=True)
    unpack(make_zip(tmp_path / "a.zip", {"images/1.jpg": b"1"}), place / "set")
    assert tree(place / "set") == {"texts": None, "images": None, "images/1.jpg": b"1"}
    with pytest.raises(GuieError, match=r"images is there already.*move it away"):
        unpack(make_zip(tmp_path / "a.zip", {"images/2.jpg": b"2", "more/3.jpg": b"3"}), place / "set")
    assert tree(place / "set") == {"texts": None, "images": None, "images/1.jpg": b"1"}


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_the_user_keeps_on_another_disk(there: bool, tmp_path: Path, place: Path) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        (tmp_path / "disk" / "big").mkdir()
    (place / "set").symlink_to(tmp_path / "disk" / "big")
    unpack(make_zip(tmp_path / "a.zip", {"set/1.jpg": b"1"}), place / "set")
    assert tree(tmp_path / "disk") == {"big": None, "big/1.jpg": b"1"}
    assert (place / "set").is_symlink()


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_chinese_names_in_a_zip_that_does_not_say_their_encoding(encoding: str, tmp_path: Path, place: Path) -> None:
    name = "农夫山泉/可乐.jpg"
    raw = name.encode(encoding)
    path = make_zip(tmp_path / "a.zip", {"x" * len(raw): b"1"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"x" * len(raw), raw))  # both places of the name; ASCII has no flag
    unpack(path, place / "set")
    assert only_files(place / "set") == {name: b"1"}


def test_names_of_the_old_pc_code_page(tmp_path: Path, place: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"caf?.jpg": b"1"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"caf?", b"caf\x82"))  # no GBK: "." doesn't follow
    unpack(path, place / "set")
    assert only_files(place / "set") == {"café.jpg": b"1"}


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_chinese_names_in_a_tar(encoding: str, tmp_path: Path, place: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding=encoding) as archive:
        archive.addfile(tarfile.TarInfo("可乐.jpg"))
    unpack(tmp_path / "a.tar", place / "set")
    assert list(tree(place / "set")) == ["可乐.jpg"]


def test_names_that_were_escaped_stay_so(tmp_path: Path, place: Path) -> None:
    unpack(make_zip(tmp_path / "a.zip", {"#U53ef#U4e50/1.jpg": b"1"}), place / "set")
    assert list(only_files(place / "set")) == ["#U53ef#U4e50/1.jpg"]


def test_names_that_differ_in_case_are_two(tmp_path: Path, place: Path) -> None:
    files = {"A/1.jpg": b"1", "a/1.jpg": b"2", "a/1.JPG": b"3"}
    unpack(make_zip(tmp_path / "a.zip", files), place / "set")
    assert only_files(place / "set") == files


def test_backslashes_in_a_zip_of_windows_part_folders(tmp_path: Path, place: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"images/1.jpg": b"1"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"images/1.jpg", b"images\\1.jpg"))
    unpack(path, place / "set")
    assert only_files(place / "set") == {"images/1.jpg": b"1"}


def test_links_within_the_archive_become_files(tmp_path: Path, place: Path) -> None:
    path = make_tar(
        tmp_path / "a.tar.gz",
        ("early/link.jpg", tarfile.SYMTYPE, b"../a/1.jpg"),  # before what it points to
        *regular({"a/1.jpg": PICTURE}),
        ("hard.jpg", tarfile.LNKTYPE, b"a/1.jpg"),
        ("twice.jpg", tarfile.SYMTYPE, b"early/link.jpg"),
    )
    assert unpack(path, place / "set").files == 4
    assert only_files(place / "set") == dict.fromkeys(["a/1.jpg", "early/link.jpg", "hard.jpg", "twice.jpg"], PICTURE)
    assert not any(each.is_symlink() for each in (place / "set").rglob("*"))


def test_links_in_a_zip(tmp_path: Path, place: Path) -> None:
    def with_link(target: str) -> Path:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a/1.jpg", b"1")
            info = zipfile.ZipInfo("b/link.jpg")
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, target)
        return tmp_path / "a.zip"

    refused(with_link("../../other.txt"), place, "b/link.jpg", "leads out")
    refused(with_link("/etc/passwd"), place, "b/link.jpg", "outside")
    refused(with_link("../a"), place, "no file of the archive")
    unpack(with_link("../a/1.jpg"), place / "set")
    assert only_files(place / "set") == {"a/1.jpg": b"1", "b/link.jpg": b"1"}


def test_permissions_are_not_taken_over(tmp_path: Path, place: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("run")
        info.mode = 0o6777
        archive.addfile(info)
        folder = tarfile.TarInfo("locked")
        folder.type, folder.mode = tarfile.DIRTYPE, 0
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("locked/1.jpg"))
    unpack(tmp_path / "a.tar", place / "set")
    assert (place / "set/run").stat().st_mode & 0o7111 == 0
    assert (place / "set/locked").stat().st_mode & 0o700 == 0o700


# what is refused

ESCAPES = [
    "../other.txt",
    "a/../../other.txt",
    "/tmp/guie-was-here",
    "C:/x.jpg",
    "c:x.jpg",
    "..\\other.txt",
    "\\\\host\\x",
    "..",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_out(name: str, tmp_path: Path, place: Path) -> None:
    files = {"fine.jpg": b"1", name: b"gotcha"}
    refused(make_zip(tmp_path / "a.zip", files), place, repr(name))
    refused(make_tar(tmp_path / "a.tar.gz", *regular(files)), place, repr(name))
    assert not Path("/tmp/guie-was-here").exists()


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *((target, kind) for target in ("../../other.txt", "/etc/passwd", "absent") for kind in ("soft", "hard")),
        ("..", "soft"),
        ("a", "soft"),
        ("link", "soft"),
    ],
)
def test_links_to_what_is_no_file_of_the_archive(target: str, kind: str, tmp_path: Path, place: Path) -> None:
    link = ("link", tarfile.SYMTYPE if kind == "soft" else tarfile.LNKTYPE, target.encode())
    refused(make_tar(tmp_path / "a.tar.gz", *regular({"a/1.jpg": b"1"}), link), place, "'link'")


def test_a_file_below_a_link(tmp_path: Path, place: Path) -> None:
    out = str(place.parent).encode()
    for target in (out, b"a"):
        link = ("link", tarfile.SYMTYPE, target)
        path = make_tar(tmp_path / "a.tar.gz", ("a", tarfile.DIRTYPE, b""), link, *regular({"link/x.jpg": b"gotcha"}))
        refused(path, place, "link")
    assert not (place.parent / "x.jpg").exists()


def test_a_file_below_a_file_and_one_in_the_place_of_a_folder(tmp_path: Path, place: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"}), place, "'a/b'", "lies below 'a'")
    refused(make_zip(tmp_path / "a.zip", {"a/b": b"2", "a": b"1"}), place, "'a'", "twice")


@pytest.mark.parametrize("second", ["a/1.jpg", "a//1.jpg", "./a/1.jpg", "a\\1.jpg"])
def test_a_name_twice(second: str, tmp_path: Path, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # zipfile's own, about the name
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a/1.jpg", b"1")
            archive.writestr(second, b"2")
    refused(tmp_path / "a.zip", place, repr(second), "twice")
    both = [("a/1.jpg", tarfile.REGTYPE, b"1"), (second, tarfile.REGTYPE, b"2")]
    refused(make_tar(tmp_path / "a.tar.gz", *both), place, repr(second), "twice")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *((kind, "a device or pipe") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)),
        (b"Z", "of type b'Z'"),
    ],
)
def test_devices_and_the_like(kind: bytes, what: str, tmp_path: Path, place: Path) -> None:
    refused(make_tar(tmp_path / "a.tar.gz", ("dev/x", kind, b"")), place, "'dev/x'", what)


def test_a_pipe_in_a_zip(tmp_path: Path, place: Path) -> None:
    info = zipfile.ZipInfo("pipe")
    info.create_system, info.external_attr = 3, (stat.S_IFIFO | 0o666) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"")
    refused(tmp_path / "a.zip", place, "'pipe'", "device, pipe or socket")


def test_an_encrypted_zip(tmp_path: Path, place: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"1.jpg": b"1"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the file's own header, and in the list at the end
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, place, "'1.jpg'", "encrypted")


def test_another_packing_in_a_zip(tmp_path: Path, place: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", compression=zipfile.ZIP_LZMA), place, "images/a/1.jpg", "lzma")


def test_what_is_no_archive(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"")
    refused(path, place, "neither a zip nor a tar")
    path.write_bytes(b"\n<!DOCTYPE html><html>Log in first</html>")
    refused(path, place, "neither a zip nor a tar", "web page")
    path.unlink()
    refused(path, place, "cannot be read", "No such file")


# bombs


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_bombs(form: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    path = tmp_path / "bomb"
    zeros = bytes(10_000_000)
    make_zip(path, {"0": zeros}) if form == "zip" else make_tar(path, *regular({"0": zeros}))
    refused(path, place, "100 times", "fill disks")


def test_a_bomb_of_nothing_but_names(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    monkeypatch.setattr(archives, "MOST_RATIO", 10)
    path = make_tar(tmp_path / "bomb", *((f"{number}/", tarfile.DIRTYPE, b"") for number in range(2000)))
    refused(path, place, "10 times")


def test_a_bomb_behind_the_end_of_a_tar(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 100_000)
    path = tmp_path / "bomb"
    tar = gzip.decompress(make_tar(path, *regular({"1": b""})).read_bytes())
    path.write_bytes(gzip.compress(tar + bytes(20_000_000)))
    refused(path, place, "100 times", "fill disks")


def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path, place: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30  # a pax header
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf() + bytes(10240))
    refused(path, place, "1,073,741,824 bytes")


def test_more_than_the_disk_has_room_for(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    monkeypatch.setattr(archives, "RESERVE", 1000)
    refused(make_zip(tmp_path / "a.zip"), place, "only 5.0 kB are free")
    refused(make_tar(tmp_path / "a.tar", *regular(FILES), mode="w"), place, "'images/a/1.jpg'", "only 5.0 kB are free")


@pytest.mark.parametrize("make", [make_zip, lambda path: make_tar(path, *regular(FILES))])
def test_some_room_is_left_on_the_disk(
    make: Callable[[Path], Path], tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(map(len, FILES.values()))
    free = whole + archives.RESERVE
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free + 1, free - 1))
    refused(make(tmp_path / "a"), place, "only 100.0 MB are free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - free, free))
    assert unpack(tmp_path / "a", place / "set").bytes == whole


def test_members_of_a_tar_are_not_kept(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    put = archives._Unpacking._put

    def watched(self: archives._Unpacking, member: archives._Member) -> None:
        if member.name in ("0.txt", "199.txt"):
            kept.append(sum(type(each) is tarfile.TarInfo for each in gc.get_objects()))
        put(self, member)

    monkeypatch.setattr(archives._Unpacking, "_put", watched)
    path = make_tar(tmp_path / "a.tar", *regular({f"{number}.txt": b"x" for number in range(200)}))
    gc.collect()
    unpack(path, place / "set")
    first, last = kept
    assert last - first < 10


def test_a_disk_that_is_full_all_the_same(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, *_: object) -> None:
        raise OSError(28, "No space left on device", str(place / ".set.unpacking/x"))

    monkeypatch.setattr(archives._Unpacking, "_write", full)
    with (
        folder_option("--data-folder"),
        pytest.raises(GuieError, match=r"(?s)The disk is full: .*set.*--data-folder"),
    ):
        unpack(make_zip(tmp_path / "a.zip"), place / "set")


# damage


def damaged(path: Path, cut: int = 0, flip: int = -1) -> Path:
    data = bytearray(path.read_bytes())
    if flip >= 0:
        data[flip] ^= 0xFF
    path.write_bytes(data[: len(data) - cut])
    return path


NOISE = {"1.jpg": os.urandom(20_000), "2.jpg": os.urandom(20_000)}


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_archives_that_are_cut_off(form: str, share: float, tmp_path: Path, place: Path) -> None:
    path = tmp_path / f"a.{form}"
    make_zip(path, NOISE) if form == "zip" else make_tar(path, *regular(NOISE), mode="w:gz" if form[3:] else "w")
    kept = int(path.stat().st_size * share)
    if form == "tar":  # without the padding at its end
        kept = int((42_000) * share)
    text = refused(damaged(path, cut=path.stat().st_size - kept), place)
    assert "cut off" in text or "neither" in text
    if form != "zip" and share > 0.5:
        assert "'2.jpg'" in text


def test_a_tar_that_ends_between_two_files(tmp_path: Path, place: Path) -> None:
    path = make_tar(tmp_path / "a.tar", *regular({"1": b"1", "2": b"2"}), mode="w")
    path.write_bytes(path.read_bytes()[:1024])
    refused(path, place, "'1'", "without the mark of its end")


def test_damage_within(tmp_path: Path, place: Path) -> None:
    refused(damaged(make_zip(tmp_path / "a.zip", NOISE, zipfile.ZIP_STORED), flip=25_000), place, "'2.jpg'", "damaged")
    refused(damaged(make_zip(tmp_path / "a.zip", NOISE), flip=25_000), place, "'2.jpg'", "damaged")
    refused(damaged(make_tar(tmp_path / "a.tar.gz", *regular(NOISE)), flip=25_000), place, "damaged")
    tar = make_tar(tmp_path / "a.tar", *regular(NOISE), mode="w")
    refused(damaged(tar, flip=512 + 20_480 + 150), place, "'1.jpg'", "damaged")  # the header of the second


def test_a_wrong_checksum_at_the_end_of_gzip(tmp_path: Path, place: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", *regular(FILES))
    refused(damaged(path, flip=path.stat().st_size - 6), place, "damaged", "CRC")


def test_headers_within_headers_without_end(tmp_path: Path, place: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 0
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 5000)
    refused(path, place, "damaged")


def test_a_zip_that_says_less_than_it_holds(tmp_path: Path, place: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"0": bytes(100_000)})
    data = path.read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    path.write_bytes(data)
    refused(path, place, "'0'", "damaged")


def test_a_name_that_no_disk_takes(tmp_path: Path, place: Path) -> None:
    refused(make_zip(tmp_path / "a.zip", {"x" * 300: b"1"}), place, "xxx", "doesn't take")
    refused(make_tar(tmp_path / "a.tar.gz", *regular({"a/" * 200_000 + "1.jpg": b"1"})), place, "no file can have")
    path = make_zip(tmp_path / "a.zip", {"x_y.jpg": b"1"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"x_y", b"x\0y"))
    refused(path, place, "no file can have")


# stopped


def test_ctrl_c_leaves_nothing(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = archives._Unpacking._write

    def press(self: archives._Unpacking, path: Path, source: io.BufferedIOBase) -> None:
        write(self, path, source)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(archives._Unpacking, "_write", press)
    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Interrupted, match="unpacks it from its beginning"):
        unpack(make_zip(tmp_path / "a.zip"), place / "set")
    assert not list(place.iterdir())


def test_what_a_killed_attempt_left_is_cleared_away(tmp_path: Path, place: Path) -> None:
    (place / ".set.unpacking" / "images").mkdir(parents=True)
    (place / ".set.unpacking" / "stale.jpg").write_bytes(b"stale")
    unpack(make_zip(tmp_path / "a.zip"), place / "set")
    assert only_files(place / "set") == FILES


# anything at all

PARTS = st.sampled_from(["a", "b", "..", ".", "", "~", "C:", "é", "可", "#U53ef", "x" * 260, "\\", "nul", " "])
NAMES = st.one_of(st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.text(max_size=12))
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
MEMBERS = st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=6)


def build(form: str, path: Path, members: list[tuple[str, bytes, str]]) -> None:
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, kind, target in members:
                info = zipfile.ZipInfo(name)
                modes = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO}
                info.create_system, info.external_attr = 3, (modes.get(kind, stat.S_IFREG) | 0o777) << 16
                archive.writestr(info, target.encode("utf-8", "replace"))
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, kind, target in members:
                tar = tarfile.TarInfo(name)
                tar.type, tar.linkname = kind, target
                archive.addfile(tar)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["zip", "tar"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=MEMBERS)
def test_nothing_ever_gets_out(form: str, tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    path, place = tmp_path / "a", tmp_path / "deep" / "in" / "here"
    shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    place.mkdir(parents=True)
    try:
        build(form, path, members)
    except (ValueError, UnicodeError, IndexError):
        return  # no archive can be made of that
    before = path.read_bytes()
    try:
        unpack(path, place / "set")
    except GuieError:
        assert not list(place.iterdir())
    else:
        assert [each.name for each in place.iterdir()] == ["set"]
        for each in place.rglob("*"):
            assert not each.is_symlink()
            assert each.is_dir() or each.is_file()
            str(each).encode()  # names are text
    assert tree(tmp_path).keys() - tree(place.parent).keys() >= {"a", "deep", "deep/in"}
    assert {name for name in tree(tmp_path) if not name.startswith("deep/in/here")} == {"a", "deep", "deep/in"}
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["zip", "tar", "gz"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), cut=st.integers(0, 400))
def test_no_damage_is_a_traceback(form: str, tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(_sound(form))
    for at, value in changes:
        data[at % len(data)] = value
    (tmp_path / "a").write_bytes(data[: len(data) - cut])
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try:
        unpack(tmp_path / "a", tmp_path / "out" / "set")
    except GuieError:
        assert not (tmp_path / "out" / "set").exists()
    assert {each.name for each in tmp_path.iterdir()} <= {"a", "out"}


def _sound(form: str, cache: dict[str, bytes] = {}) -> bytes:  # noqa: B006
    if form not in cache:
        file = io.BytesIO()
        if form == "zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a/1.jpg", PICTURE)
                archive.writestr("可.jpg", b"2")
        else:
            with tarfile.open(fileobj=file, mode="w:gz" if form == "gz" else "w") as tar:
                info = tarfile.TarInfo("a/可.jpg")
                info.size = len(PICTURE)
                tar.addfile(info, io.BytesIO(PICTURE))
        cache[form] = file.getvalue()
    return cache[form]
