"""``guie data download``: what a user sees."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner, Result

from guie_core import Entry, GuieError, Interrupted, Origin
from guie_core.entry import Owner
from guie_datasets.commands import download as module
from guie_datasets.fetching import download as library
from guie_datasets.fetching.download import Download, HttpArchive, HttpFile

GONE = "http://no-such-host.invalid"


class Birds:
    downloads: ClassVar[tuple[Download, ...]] = (
        HttpArchive(f"{GONE}/birds.zip", "birds", holds="images/*", page="https://example.org/birds"),
    )


class Cats:
    downloads: ClassVar[tuple[Download, ...]] = (HttpArchive(f"{GONE}/cats.zip", "cats"),)


class Bees:
    downloads: ClassVar[tuple[Download, ...]] = (
        HttpArchive(f"{GONE}/birds.zip", "birds", holds="images/*"),
        HttpFile(f"{GONE}/names.json", "birds/names.json", optional=True),
    )


class Own:
    pass


CLASSES = {"birds": Birds, "cats": Cats, "bees": Bees}


ORIGIN = Origin("https://example.org/birds", size="2 images", commercial=False)
OWNER = Owner("birds", "guie-birds", "1.2")
ENTRIES = {
    "birds": Entry("birds", "birds.sets:Birds", "Birds of the park", "CC-BY-NC-4.0", ORIGIN, owner=OWNER),
    "bees": Entry("bees", "birds.sets:Bees", "Bees of the park", "MIT", ORIGIN, owner=OWNER),
    "own": Entry("own", "birds.sets:Own", "Your own images", owner=Owner("datasets", "guie-datasets", "0.1.0")),
    "dark": Entry("dark", "birds.sets:Own", "Somebody's", owner=OWNER),
    "packed": Entry("packed", "birds.sets:Own", "Comes along", "MIT", Origin("https://example.org"), owner=OWNER),
}


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "lookup", lambda kind, name: ENTRIES[name])
    monkeypatch.setattr(Entry, "load", lambda entry: CLASSES.get(entry.name, Own))
    monkeypatch.delenv("GUIE_DATA", raising=False)
    monkeypatch.setenv("GUIE_DATA", "data")  # so that it is put back: --data-folder changes it
    monkeypatch.chdir(tmp_path)


def run(*args: str) -> Result:
    return CliRunner().invoke(module.download, args)


def hand_over(folder: Path) -> Path:
    path = folder / "downloads/birds/birds.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.jpg", b"1")
        archive.writestr("images/2.jpg", b"2")
    return path


def test_licence_source_and_place_are_told_before_anything_is_fetched(tmp_path: Path) -> None:
    result = run("birds")
    for part in (
        "Birds of the park",
        "CC-BY-NC-4.0",
        "commercial use  no",
        "2 images",
        f"{GONE}/birds.zip",
        "to ",
        "data",
    ):
        assert part in result.output
    assert isinstance(result.exception, GuieError)
    text = str(result.exception)
    assert "https://example.org/birds" in text
    assert f"{tmp_path}/data/downloads/birds/" in text
    assert text.endswith("Then run: guie data download birds")


def test_what_was_got_by_hand_is_unpacked(tmp_path: Path) -> None:
    archive = hand_over(tmp_path / "data")
    result = run("birds")
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "data/birds/images/1.jpg").read_bytes() == b"1"
    assert not archive.exists()
    assert "2 files" in result.output
    assert result.output.rstrip().endswith("Next: guie data prepare birds")
    assert "is there already" in run("birds").output


def test_another_folder_and_the_archive_kept(tmp_path: Path) -> None:
    archive = hand_over(tmp_path / "big disk")
    result = run("birds", "--data-folder", "big disk", "--keep-archive")
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "big disk/birds/images/2.jpg").is_file()
    assert archive.is_file()
    assert "Next: guie data prepare birds --data-folder 'big disk'" in result.output


def test_sets_that_need_no_download() -> None:
    result = run("own", "packed")
    assert result.exit_code == 0
    assert "own: nothing to fetch, it reads data of your own" in result.output
    assert "packed: nothing to fetch, its data come with guie-birds 1.2" in result.output


def test_one_set_that_fails_keeps_none_of_the_others_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over(tmp_path / "data")
    monkeypatch.setitem(ENTRIES, "cats", Entry("cats", "birds.sets:Cats", "Cats of the park", "MIT", ORIGIN))
    result = run("cats", "own", "birds")
    places = [result.output.index(text) for text in ("cats: ", "own: ", "Next: guie data prepare birds")]
    assert places == sorted(places)
    assert (tmp_path / "data/birds/images/1.jpg").is_file()
    assert isinstance(result.exception, GuieError)
    assert str(result.exception).endswith("Then run: guie data download cats")


def test_ctrl_c_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted("later")

    monkeypatch.setattr(library, "fetch", stop)
    assert isinstance(run("birds").exception, Interrupted)


@pytest.mark.parametrize("name", ["gpr1200", "food101", "products10k", "glr2021", "universal130k"])
def test_the_named_sets_say_what_they_are_fetched_as(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from guie_core import lookup

    downloads = lookup("datasets", name).load().downloads
    assert downloads
    assert all(isinstance(each, Download) and each.page.startswith("https://") for each in downloads)


def test_what_a_set_can_do_without_is_told_where_it_is_not_to_be_had(tmp_path: Path) -> None:
    hand_over(tmp_path / "data")
    result = run("bees")
    assert result.exit_code == 0, result.exception
    assert "not fetched: names.json, which the data set can do without." in result.output
    assert result.output.splitlines()[-1] == "Next: guie data prepare bees"


def test_a_wrong_name_and_no_name() -> None:
    def guie(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "guie_core.cli", *args], capture_output=True, text=True)

    wrong = guie("data", "download", "gpr120")
    assert wrong.returncode == 2
    assert "Did you mean gpr1200" in wrong.stderr
    assert guie("data", "download").returncode == 2
    shown = guie("data", "download", "--help")
    assert shown.returncode == 0
    assert "--keep-archive" in shown.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json, click.testing; from guie_datasets.commands.download import download;"
        "click.testing.CliRunner().invoke(download, ['--help']); import guie_datasets.fetching.download;"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'PIL', 'torch', 'kaggle', 'requests'};"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_set_that_says_nothing_of_where_it_is() -> None:
    result = run("dark")
    assert result.exit_code == 0
    assert "guie-birds 1.2 doesn't say where its data are to be had. More: guie data info dark" in result.output
