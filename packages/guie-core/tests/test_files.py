# ruff: noqa: PT012 -- what is tested is the end of the block
from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guie_core import GuieError
from guie_core.files import (
    atomic_directory,
    atomic_write,
    digest,
    explain,
    explain_os_errors,
    folder_option,
    remove_directory,
    replace_directory,
    replace_link,
    sweep,
)


def test_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.bin"
    with atomic_write(path) as file:
        file.write(b"abc")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"abc"
    assert os.listdir(path.parent) == ["file.bin"]


def test_text_is_utf8_with_plain_line_ends(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("ä\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n"


def test_other_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be"), atomic_write(tmp_path / "a", "ab"):
        pass


def test_failure_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "file"
    plain.touch()
    with atomic_write(path) as file:
        file.write(b"x")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    with atomic_write(path) as file:
        file.write(b"y")
    assert path.stat().st_mode & 0o777 == 0o640  # and a replaced file keeps its own


def test_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    code = (
        "import os, sys; from guie_core.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert path.read_text() == "former"


@pytest.fixture
def _small_files() -> Iterator[None]:
    """The kernel refuses files over 4 kB, as it refuses any on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_small_files")
def test_file_that_cannot_be_completed(tmp_path: Path) -> None:
    path = tmp_path / "features.bin"
    path.write_bytes(b"former")
    with pytest.raises(GuieError) as error, atomic_write(path) as file:
        file.write(bytes(10_000))
    assert str(error.value).startswith(f"The file is larger than this system allows: {path} could not be written. ")
    assert str(error.value).partition("could not be written. ")[2] == (
        "A file of this process may have 4.1 kB: that is the limit which `ulimit -f` shows.\n"
        "Nothing that was complete is lost. Raise it with `ulimit -f unlimited`, or where that is refused have it "
        "raised by who set it, and run the same command again."
    )
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["features.bin"]


def test_file_that_the_file_system_refuses(tmp_path: Path) -> None:
    with folder_option("--work-dir"):
        text = explain(OSError(errno.EFBIG, "x"), tmp_path / "file")
    assert text == (
        f"The file is larger than this system allows: {tmp_path}/file could not be written.\n"
        "Nothing that was complete is lost. Choose a folder on a disk whose file system takes larger files "
        "(--work-dir), and run the same command again."
    )


@pytest.mark.parametrize("name", ["runs/quickstart/run.json", "runs/run.json"])
def test_part_of_a_path_that_is_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").write_text("x")
    path = tmp_path / name
    with pytest.raises(GuieError) as error, folder_option("--work-dir"), atomic_write(path):
        pass
    assert str(error.value) == (
        f"A part of the path is a file, not a folder: {path} could not be written. {tmp_path / 'runs'} is a file.\n"
        "Nothing that was complete is lost. Choose another folder (--work-dir), or move that file away, and run the "
        "same command again."
    )


def test_full_disk_in_words(tmp_path: Path) -> None:
    with (
        pytest.raises(GuieError) as error,
        folder_option("--work-dir"),
        explain_os_errors(tmp_path / "features.bin"),
        open("/dev/full", "wb") as full,
    ):
        full.write(b"x")
        full.flush()
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"The disk is full: {tmp_path / 'features.bin'} could not be written. ")
    assert lines[0].endswith(f" are free in {tmp_path}.")
    assert lines[1] == (
        "Nothing that was complete is lost. "
        "Make room, or choose a folder on another disk (--work-dir), and run the same command again."
    )
    assert error.value.exit_code == 1


def test_really_full_disk(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        (tmp_path / "former").write_bytes(b"former")
        with pytest.raises(GuieError, match="The disk is full"), atomic_write(tmp_path / "former") as file:
            file.write(bytes(1_000_000))
        with pytest.raises(GuieError, match="The disk is full"), atomic_directory(tmp_path / "folder") as folder:
            (folder / "big").write_bytes(bytes(1_000_000))
        assert os.listdir(tmp_path) == ["former"]
        assert (tmp_path / "former").read_bytes() == b"former"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "Permission is denied"), (errno.EROFS, "The disk is read-only")]
)
def test_folder_that_cannot_be_written(tmp_path: Path, number: int, words: str) -> None:
    text = explain(OSError(number, "x"), tmp_path / "a" / "file")
    assert text == (
        f"{words}: {tmp_path}/a/file could not be written.\nNothing that was complete is lost. "
        f"Make {tmp_path} writable, or choose another folder, and run the same command again."
    )


def test_other_errors_of_the_system_pass() -> None:
    with pytest.raises(FileNotFoundError), explain_os_errors("x"):
        open("/nowhere/at/all").close()


def test_file_that_was_read_meanwhile_is_not_blamed_on_the_written_one(tmp_path: Path) -> None:
    far = OSError(errno.EACCES, "Permission denied", "/far/away")
    with pytest.raises(PermissionError) as error, atomic_write(tmp_path / "file"):
        raise far
    assert error.value is far
    near = OSError(errno.EACCES, "Permission denied", str(tmp_path / "beside"))
    with pytest.raises(GuieError, match="Permission is denied"), atomic_write(tmp_path / "file"):
        raise near
    assert os.listdir(tmp_path) == []


def test_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a" / "folder") as folder:
        (folder / "file").write_text("x")
        (folder / "inner").mkdir()
        assert not (tmp_path / "a" / "folder").exists()
    assert sorted(os.listdir(tmp_path / "a" / "folder")) == ["file", "inner"]
    assert os.listdir(tmp_path / "a") == ["folder"]
    with pytest.raises(GuieError, match="is there already"), atomic_directory(tmp_path / "a" / "folder"):
        pass


def test_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "folder") as folder:
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def killed(code: str, *arguments: Path) -> None:
    """Runs code that is to be killed at what stands as `die()` in it."""
    code = f"import os, shutil, sys\nfrom guie_core.files import *\ndef die(*_, **__): os.kill(os.getpid(), 9)\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)])
    assert done.returncode == -signal.SIGKILL


WRITERS = {
    "atomic_write": "with atomic_write(path / 'name') as file: die()",
    "atomic_directory": "with atomic_directory(path / 'name') as folder: (folder / 'deep').mkdir(); die()",
    "replace_link": "os.rename = os.replace = die; replace_link(path / 'name', 'x')",
    "remove_directory": "(path / 'name').mkdir(); shutil.rmtree = die; remove_directory(path / 'name')",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_killed_writers_leave_is_swept(writer: str, tmp_path: Path) -> None:
    kept = [tmp_path / ".hidden.tmp", tmp_path / "name.txt", tmp_path / ".names.abcdefgh.tmp"]
    for path in kept:
        path.touch()
    killed(f"import pathlib; path = pathlib.Path(sys.argv[1])\n{WRITERS[writer]}", tmp_path)
    (left,) = set(tmp_path.iterdir()) - set(kept)
    assert left.name.startswith(".name.")
    sweep(tmp_path / "name")  # beside it
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_what_killed_writers_leave_is_swept_within_a_folder(tmp_path: Path) -> None:
    inner = tmp_path / "run" / "inner"
    inner.mkdir(parents=True)
    killed("import pathlib\nwith atomic_write(pathlib.Path(sys.argv[1]) / 'file') as file: die()", inner)
    assert len(os.listdir(inner)) == 1
    (tmp_path / "run" / "link").symlink_to(inner)
    (tmp_path / "other").mkdir()
    sweep(tmp_path / "run")
    assert os.listdir(inner) == []
    assert sorted(os.listdir(tmp_path)) == ["other", "run"]
    sweep(tmp_path / "missing")


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text(name)
    (tmp_path / "old" / "more").touch()
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"]
    assert os.listdir(tmp_path / "old") == ["deep"]
    assert (tmp_path / "old" / "deep" / "file").read_text() == "new"
    (tmp_path / "new").mkdir()
    replace_directory(tmp_path / "new", tmp_path / "fresh")
    assert sorted(os.listdir(tmp_path)) == ["fresh", "old"]


def test_a_folder_goes_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "done.json").touch()
    killed("import pathlib; shutil.rmtree = die; remove_directory(pathlib.Path(sys.argv[1]))", folder)
    assert not folder.exists()  # rather than with some of its files
    remove_directory(folder)


def test_a_link_leads_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "deep" / "link"
    for target in ("first", "second"):
        replace_link(link, target)
        assert os.readlink(link) == target
    assert os.listdir(link.parent) == ["link"]
    link.unlink()
    link.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_link(link, "third")
    assert os.listdir(link.parent) == ["link"]


def test_full_disk_under_what_is_printed() -> None:
    assert explain(OSError(errno.ENOSPC, "x")).startswith("The disk is full: what was printed could not be written. ")


def test_digest_knows_where_a_part_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("ab", "c") == digest(b"ab", b"c")
    assert len(digest()) == 32
