"""What a path given to `guie data prepare` is taken for, and what is said of those that may be two things."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from guie_core import ExperimentError, GuieError, UsageError
from guie_core.cli import main
from guie_datasets import tfrecord
from guie_datasets.preparing.recognition import datasets, named_settings, settings


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (number, 3, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, number: int) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as file:
        for name, data in ((f"{number}.png", picture(number)), (f"{number}.cls", b"%d" % number)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labels(*arguments: str, overrides: tuple[str, ...] = ()) -> list[int]:
    return [row.label for dataset in datasets(named_settings(arguments, overrides)) for row in dataset.rows()]


def shards(*paths: str) -> None:
    for number, name in enumerate(paths):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        if "tfrec" in name:
            tfrecord.write(path, [(picture(number), number)])
            if path.suffix == ".gz":
                path.write_bytes(gzip.compress(path.read_bytes()))
        else:
            tar(path, number)


@pytest.mark.parametrize(
    "names",
    [
        ["x.tfrecord-00000-of-00003", "x.tfrecord-00001-of-00003", "x.tfrecord-00002-of-00003"],
        ["x-0.tfrecord", "x-1.tfrecord", "x-2.tfrecord"],
        ["x-00-1.tfrec.gz", "x-01-1.tfrec.gz", "x-02-1.tfrec.gz"],
        ["x-00000-of-00003.tar", "x-00001-of-00003.tar", "x-00002-of-00003.tar"],
        ["x-000000.tar.gz", "x-000001.tar.gz", "x-000002.tar.gz"],
        ["x-000000.tgz", "x-000001.tgz", "x-000002.tgz"],
    ],
)
def test_shards_by_their_names(names: list[str]) -> None:
    paths = [f"x/{name}" for name in names]
    shards(*paths)
    assert labels("x") == [0, 1, 2]
    assert [labels(path) for path in paths] == [[0], [1], [2]]
    assert {row.source for dataset in datasets(named_settings(["x"])) for row in dataset.rows()} == {"x"}
    Path(paths[1]).unlink()
    missing = paths[1].removeprefix("x/").replace("-1.tfrec.", "-*.tfrec.")
    with pytest.raises(GuieError, match=rf"the set is not complete:\n  {missing.replace('*', '.')} is missing\nFetch"):
        labels("x")
    assert labels("x", overrides=("complete=False",)) == [0, 2]


def test_shards_of_several_kinds_of_names() -> None:
    shards("x/a-0.tfrec", "x/b-0.tfrecord.gz", "x/c.tfrecord-00000-of-00001")
    Path("x/a-0.tfrec.index.npy").touch()
    assert settings("x")["pattern"] == ["*.tfrec", "*.tfrecord-*-of-*", "*.tfrecord.gz"]
    assert labels("x") == [0, 1, 2]
    shards("{a,b}[1]/y-0.tar", "{a,b}[1]/y-1.tar")
    assert labels("{a,b}[1]") == [0, 1]


@pytest.mark.parametrize(
    ("names", "kinds", "ways"),
    [
        (["x/s-0.tar"], "tar shards (s-0.tar) and class folders (cat)", ["webdataset --set 'files={x}/*.tar'"]),
        (
            ["x/s.tfrec"],
            "TFRecord shards (s.tfrec) and class folders (cat)",
            ["--set folder={x} --set 'pattern=*.tfrec'"],
        ),
        (["x/s.tfrec", "x/s.tar"], "TFRecord shards (s.tfrec) and tar shards (s.tar) and class", ["tfrecord", "webd"]),
    ],
)
def test_a_folder_that_may_be_two_things(here: Path, names: list[str], kinds: str, ways: list[str]) -> None:
    Path("x/cat").mkdir(parents=True)
    Path("x/cat/1.png").write_bytes(picture(9))
    Path("x/notes").mkdir()
    assert settings("x")["type"] == "folder"
    shards(*names)
    with pytest.raises(UsageError) as caught:
        settings("x")
    text = str(caught.value)
    assert text.startswith(f"{here}/x holds {kinds}")
    for way in [*ways, "folder --set root={x}"]:
        assert way.format(x=here / "x") in text
    assert labels("folder", overrides=(f"root={here}/x",)) == [0]


def test_a_data_set_that_is_named_twice(here: Path) -> None:
    Path("x/cat").mkdir(parents=True)
    for again in ("x", "./x", str(here / "x")):
        with pytest.raises(UsageError, match=r"x is named twice: .* Name each data set once"):
            named_settings(["x", again])
    named = named_settings(["food101", "food101"], ["0.split=train", "1.split=test"])
    assert [each["split"] for each in named.values()] == ["train", "test"]


def test_names_with_dots(here: Path) -> None:
    for name in ("my photos.v2", "my photos", "a.b.c"):
        Path(name, "cat").mkdir(parents=True)
    named = named_settings(["my photos.v2"], ["my photos.v2.category=x"])
    assert [each["category"] for each in named.values()] == ["x"]
    overrides = ["my photos.v2.category=x", "my photos.category=y", "2.category=z", "a.b.c.source=s"]
    named = named_settings(["my photos.v2", "my photos", "a.b.c"], overrides)
    assert [each["category"] for each in named.values()] == ["x", "y", "z"]
    assert list(named.values())[2]["source"] == "s"
    with pytest.raises(ExperimentError, match="has no argument 'catgory'"):
        named_settings(["my photos.v2"], ["my photos.v2.catgory=x"])


@pytest.mark.parametrize("argument", ["~nosuch/pics", "a\0b", "x" * 300, "x/" + "y" * 300])
def test_what_can_be_no_path(argument: str) -> None:
    with pytest.raises(UsageError):
        settings(argument)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "~nosuch/pictures"],
        ["prepare", "food101", "--data-folder", "~nosuch/data"],
        ["prepare", "folder", "--set", "root=~nosuch"],
        ["prepare", "table", "--set", "file='a\\x00b'"],
        ["download", "food101", "--data-folder", "~nosuch/data"],
    ],
)
def test_commands_tell_what_can_be_no_path(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["data", *arguments])
    assert left.value.code == 2
    assert "fault in" not in capsys.readouterr().err
