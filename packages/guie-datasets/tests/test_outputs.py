# ruff: noqa: E501 -- messages are quoted whole
"""What the commands of `guie data` may write: the suffix says the kind, and only a command's own work is replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie_core.cli import main
from guie_datasets import Manifest


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def manifest(capsys: pytest.CaptureFixture[str]) -> Path:
    """Two classes of two images, in train and in test."""
    for number in range(4):
        path = Path("own", "cat" if number < 2 else "dog", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    assert guie(capsys, "prepare", "own")[0] == 0
    made = Manifest.read("own.parquet")
    made.with_column("split", ["train", "test"] * 2).write("split.parquet")
    return Path("split.parquet")


def guie(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code, and stderr without the lines that tell progress."""
    with pytest.raises(SystemExit) as exit_:
        main(["data", *args])
    _, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, "".join(line for line in err.splitlines(True) if "took 00:00" not in line)


COMMANDS = {
    "stats": (["split.parquet"], ["x.html"]),
    "show": (["split.parquet"], ["x.html", "x.png", "x.jpg", "x.webp"]),
    "leaks": (["split.parquet"], ["x.html", "x.csv"]),
    "prepare": (["own"], ["x.parquet"]),
}
WRITTEN = [(command, args, name) for command, (args, names) in COMMANDS.items() for name in names]


@pytest.mark.parametrize(("command", "args", "name"), WRITTEN)
def test_only_what_the_same_command_wrote_is_replaced(
    manifest: Path, capsys: pytest.CaptureFixture[str], command: str, args: list[str], name: str
) -> None:
    written = ["-o", name]
    assert guie(capsys, command, *args, *written)[0] == 0
    before = Path(name).read_bytes()
    assert guie(capsys, command, *args, *written) == (0, "")  # the same again is easy
    assert Path(name).read_bytes() == before
    for strange in (b"mine", b"", b"<!DOCTYPE html><title>mine</title>", b"a,b\n1,2\n"):
        Path(name).write_bytes(strange)
        code, said = guie(capsys, command, *args, *written)
        assert (code, said) == (
            2,
            f"error: {name} is there already, and was not made by this command. Choose another --output, or add --force to replace it\n",
        )
        assert Path(name).read_bytes() == strange
    assert guie(capsys, command, *args, *written, "--force")[0] == 0
    assert Path(name).read_bytes() == before


def test_pages_of_other_commands_are_not_replaced(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first in ("stats", "show", "leaks"):
        assert guie(capsys, first, "split.parquet", "-o", f"{first}.html")[0] == 0
        for second in {"stats", "show", "leaks"} - {first}:
            assert guie(capsys, second, "split.parquet", "-o", f"{first}.html")[0] == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_suffix_says_the_kind(manifest: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    args, names = COMMANDS[command]
    for name in ("x", "x.txt", "x.html.parquett", "x.pdf"):
        code, said = guie(capsys, command, *args, "-o", name, "--force")
        assert code == 2
        kinds = {Path(each).suffix for each in names}
        assert said.startswith(f"error: --output {name}: it must end in ")
        assert all(kind in said for kind in kinds)
        assert not Path(name).exists()


@pytest.mark.parametrize(("command", "args", "name"), WRITTEN)
def test_folders_are_not_files(
    manifest: Path, capsys: pytest.CaptureFixture[str], command: str, args: list[str], name: str
) -> None:
    Path(name).mkdir()
    for place in (name, f"{name}/"):
        code, said = guie(capsys, command, *args, "-o", place)
        assert code == 2
        assert said.startswith(f"error: --output {name} is a folder; name a file, such as {name}/")
    Path("folder").mkdir()
    code, said = guie(capsys, command, *args, "-o", "folder")
    assert (code, said.split(";")[0]) == (2, "error: --output folder is a folder")


@pytest.mark.parametrize("command", ["stats", "show", "leaks"])
def test_manifests_are_never_replaced_by_what_is_told_of_them(
    manifest: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Whatever their suffix, by whatever name, forced or not."""
    os.rename(manifest, "odd.html")
    os.link("odd.html", "same.html")
    os.symlink("odd.html", "link.html")
    before = Path("odd.html").read_bytes()
    for name in ("odd.html", "./odd.html", "same.html", "link.html"):
        code, said = guie(capsys, command, "odd.html", "-o", name, "--force")
        assert code == 2
        assert said == f"error: --output {Path(name)} would replace odd.html, which is read. Choose another --output\n"
    assert Path("odd.html").read_bytes() == before


def test_the_table_beside_a_page_of_leaks(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.csv").write_text("path,label\nmine.jpg,1\n")
    args = ["leaks", "split.parquet", "-o", "train.html"]
    assert guie(capsys, *args) == (
        2,
        "error: train.csv, which goes with train.html, is there already, and was not made by this command. "
        "Choose another --output, or add --force to replace it\n",
    )
    assert Path("train.csv").read_text() == "path,label\nmine.jpg,1\n"
    assert not Path("train.html").exists()
    assert guie(capsys, *args, "--force")[0] == guie(capsys, *args)[0] == 0


def test_tables_beside_manifests(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, args in (
        ("new.quarantine.csv", ["prepare", "own", "-o", "new.parquet"]),
        ("split.verify.csv", ["verify", "split.parquet"]),
    ):
        Path(name).write_text("mine\n")
        code, said = guie(capsys, *args)
        assert code == 2
        assert said.startswith(f"error: {name}, which goes with {Path(args[-1]).name}, is there already")
        assert Path(name).read_text() == "mine\n"
    assert not Path("new.parquet").exists()
    Path("own/cat/0.png").unlink()
    Path("split.verify.csv").unlink()
    assert guie(capsys, "verify", "split.parquet")[0] == guie(capsys, "verify", "split.parquet")[0] == 1


def test_lists_of_manifests_with_dots_in_their_names_are_their_own(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own/cat/0.png").unlink()
    for name in ("set.v1", "set.v2", "set.v3.parquet"):
        shutil.copy("split.parquet", name)
        assert guie(capsys, "verify", name)[0] == 1
    assert sorted(path.name for path in Path().glob("set*.csv")) == [f"set.v{n}.verify.csv" for n in (1, 2, 3)]


def test_refused_before_any_work(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in Path("own").glob("*/*.png"):
        path.unlink()
    for command in ("stats", "show", "leaks"):
        code, said = guie(capsys, command, "split.parquet", "-o", "x.pdf")
        assert (code, "it must end in" in said) == (2, True)


def test_defaults_do_not_replace_what_is_read(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("my photos.v2")
    Path("own").rename(folder)
    assert guie(capsys, "prepare", str(folder))[0] == 0
    assert len(Manifest.read("my photos.v2.parquet")) == 4
    assert guie(capsys, "prepare", "my photos.v2.parquet")[0] == 0
    assert len(Manifest.read("my photos.v2.manifest.parquet")) == 4
    table = Manifest.read("my photos.v2.parquet").to_pandas()[["path", "label"]]
    table.to_parquet("cars.parquet")
    before = Path("cars.parquet").read_bytes()
    assert guie(capsys, "prepare", "cars.parquet") == (0, "")
    assert guie(capsys, "prepare", "cars.parquet") == (0, "")
    assert len(Manifest.read("cars.manifest.parquet")) == 4
    assert Path("cars.parquet").read_bytes() == before


@pytest.mark.parametrize("text", ["~nobody5", "x" * 300])
def test_texts_that_are_no_paths(manifest: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """A setting that is a text need not be a path: what is no path is no input."""
    args = ["prepare", "own", "-o", "new.parquet", "--set", f"category={text}"]
    assert guie(capsys, *args) == guie(capsys, *args) == (0, "")
    assert set(Manifest.read("new.parquet").column("category")) == {text}
