# ruff: noqa: E501 -- messages are quoted whole
"""`guie data` as people use it: what it prints, its exit codes, and what it says of mistakes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from guie_core import Entry, Origin, lookup
from guie_core.cli import main
from guie_core.entry import Owner
from guie_core.plugins import plugins
from guie_datasets import Manifest, tfrecord
from guie_datasets.commands import data as data_module
from guie_datasets.commands import sets as sets_module
from guie_datasets.preparing.recognition import named_settings, settings

HEAVY = "{'torch', 'mmengine', 'numpy', 'pandas', 'pyarrow', 'PIL', 'sklearn', 'tensorflow', 'kaggle'}"


def guie(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout, and stderr without the lines that tell progress."""
    with pytest.raises(SystemExit) as exit_:
        main(["data", *args])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, "".join(line for line in err.splitlines(True) if "images/s" not in line)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("GUIE_DATA", "")  # --data-folder sets it


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def pictures() -> Path:
    """Two classes, of three and of one image; one image twice, one file that is none."""
    folder = Path("pictures")
    for number in range(3):
        picture(folder / "cat" / f"{number}.png", number)
    picture(folder / "dog" / "0.png", 9)
    folder.joinpath("cat", "again.png").write_bytes(folder.joinpath("cat", "0.png").read_bytes())
    folder.joinpath("cat", "notes.txt").write_text("mine")
    return folder


# --- the group


@pytest.mark.parametrize(
    "args", [[], ["--help"], ["list"], ["list", "--format", "json"], *([name, "--help"] for name in ("prepare", "export", "verify", "info"))]
)  # fmt: skip
def test_help_and_list_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom guie_core.cli import main\n"
        f"try:\n    main(['data', *{args!r}])\nexcept SystemExit as error:\n"
        f"    print(error.code, sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stderr.splitlines()[-1] == "0 []"
    assert result.stdout


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = guie(capsys)
    assert (code, err) == (0, "")
    section = out.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in section] == [
        "list",
        "info",
        "download",
        "prepare",
        "verify",
        "stats",
        "show",
        "leaks",
        "export",
    ]
    assert all(len(line.split()) > 3 for line in section)


def test_one_command_that_cannot_be_imported_does_not_break_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Entry("stats", "guie_datasets.commands.nowhere:stats", "Statistics")
    monkeypatch.setitem(data_module.data.entries, "stats", gone)  # type: ignore[attr-defined]
    assert guie(capsys)[0] == guie(capsys, "list")[0] == 0
    code, out, err = guie(capsys, "stats", "x")
    assert (code, out) == (1, "")
    assert err.startswith("error: stats could not be imported from guie_datasets.commands.nowhere:stats: ")


def test_every_command_is_one() -> None:
    for entry in data_module.COMMANDS:
        assert isinstance(entry.load(), click.Command)
        assert entry.load().name == entry.name


def test_the_data_folder_is_that_of_the_command_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GUIE_DATA")
    assert f"{Path.cwd()}/elsewhere" in guie(capsys, "info", "gpr1200", "--data-folder", "elsewhere")[1]
    assert "GUIE_DATA" not in os.environ
    monkeypatch.setenv("GUIE_DATA", "mine")
    assert guie(capsys, "prepare", "gpr1200", "--data-folder", "elsewhere")[0] == 1
    assert os.environ["GUIE_DATA"] == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prepare", "x", "--max-bad", "nan"], "nan is not in the range 0<=x<=1"),
        (["prepare", "x", "--max-bad", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["export", "x", "--to", "csv", "-o", "y", "--max-bad", "nan"], "nan is not in the range 0<=x<=1"),
        (["prepare", "x", "--seed", "-1"], "-1 is not in the range 0<=x<=4294967295"),
        (["show", "x", "--seed", "-1"], "-1 is not in the range 0<=x<=4294967295"),
        (["show", "x", "--seed", str(2**32)], "4294967296 is not in the range 0<=x<=4294967295"),
    ],
)
def test_numbers_out_of_range(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = guie(capsys, *args)
    assert (code, out) == (2, "")
    assert message in err


# --- list and info

_GUIE, _OTHERS = Owner("datasets", "guie-datasets", "0.1.0"), Owner("cars", "guie-cars", "1.0")
_OWN = Entry("mine", "guie_datasets.sets.folders:ClassFolders", "My own", licence="LicenseRef-unknown", owner=_GUIE)
_PLUGIN = Entry("nc", "guie_datasets.sets.folders:ClassFolders", "Plugin's", licence="CC-BY-NC-4.0", owner=_OTHERS)
_OPEN = Entry("open", "x.y:Open", "Free images", "CC0-1.0", Origin("https://a.b", size="9 images", commercial=True))
_SHUT = Entry(
    "shut", "x.y:Shut", "For science", "LicenseRef-x", Origin("https://a.b", size="8 images", commercial=False)
)
_DARK = Entry("dark", "x.y:Dark", "Who knows", "LicenseRef-y", Origin("https://a.b", size="7 images"))


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugins:
        def entries(self, kind: str) -> list[Entry]:
            assert kind == "datasets"
            return [
                _OWN,
                _OPEN,
                _SHUT,
                _DARK,
                _PLUGIN,
                replace(_PLUGIN, name="by", licence="CC-BY-4.0"),
                replace(_PLUGIN, name="who", licence=""),
            ]

    monkeypatch.setattr(sets_module, "plugins", Plugins)


def test_list(four: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert guie(capsys, "list") == (
        0,
        "  mine  My own\n"
        "  open  Free images\n"
        "        CC0-1.0; 9 images; commercial use: yes\n"
        "  shut  For science\n"
        "        LicenseRef-x; 8 images; commercial use: no\n"
        "  dark  Who knows\n"
        "        LicenseRef-y; 7 images; commercial use: not known\n"
        "  nc    Plugin's\n"
        "        CC-BY-NC-4.0; commercial use: no\n"
        "  by    Plugin's\n"
        "        CC-BY-4.0; commercial use: yes\n"
        "  who   Plugin's\n"
        "        licence not known; commercial use: not known\n"
        "\n"
        "More about one: guie data info NAME. To prepare one, or a folder of your own: guie data prepare NAME\n",
        "",
    )


def test_what_is_not_known_to_be_allowed_is_not_allowed(four: None, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = guie(capsys, "list", "--commercial-ok", "--format", "json")
    assert [entry["name"] for entry in json.loads(out)] == ["mine", "open", "by"]
    assert json.loads(out)[1]["origin"] == {
        "url": "https://a.b",
        "citation": "",
        "size": "9 images",
        "commercial": True,
    }
    assert json.loads(out)[0]["origin"] is None


def test_info_of_a_plugin_s_set_says_its_licence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets_module, "lookup", lambda kind, name: _PLUGIN)
    code, out, _ = guie(capsys, "info", "nc")
    assert code == 0
    assert re.search(r"^  licence +CC-BY-NC-4.0\n  commercial use +no$", out, re.MULTILINE)
    assert "your own images" not in out


def test_real_list_has_every_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = guie(capsys, "list", "--format", "json")
    assert [entry["name"] for entry in json.loads(out)] == [entry.name for entry in plugins().entries("datasets")]


def test_info_of_a_named_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = guie(capsys, "info", "gpr1200")
    assert (code, err) == (0, "")
    origin = lookup("datasets", "gpr1200").origin
    assert origin
    for text in (
        origin.url,
        "commercial use  no",
        "without   a list, each text",
        "default ()",
        f"{tmp_path}/data/GPR1200",
    ):
        assert text in out
    assert out.endswith(
        "To fetch it:       guie data download gpr1200\n"
        "To prepare it:     guie data prepare gpr1200\n"
        'In an experiment:  data=[dict(type="gpr1200")]\n'
    )
    assert "is not there" in out
    for label in range(1200):
        path = tmp_path / "elsewhere" / "GPR1200" / "images" / f"{label}_0.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _, out, _ = guie(capsys, "info", "gpr1200", "--data-folder", "elsewhere")
    assert "the set is not complete:" in out
    for label in range(1200):
        for number in range(1, 10):
            path.with_name(f"{label}_{number}.jpg").touch()
    _, out, _ = guie(capsys, "info", "gpr1200", "--data-folder", "elsewhere")
    assert f"it is there, with the first image in {tmp_path}/elsewhere/GPR1200/images/" in out


def test_info_of_a_set_with_required_options(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = guie(capsys, "info", "folder")
    assert re.search(r"^  root +text or a path; required$", out, re.MULTILINE)
    assert "commercial use  yours to say" in out
    assert out.endswith(
        'To prepare it:     guie data prepare folder --set root=...\nIn an experiment:  data=[dict(type="folder", root=...)]\n'
    )
    assert "On disk" not in out


# --- prepare


def test_own_pictures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guie(capsys, "prepare", "pictures") == (
        0,
        "pictures.parquet: 4 images of 2 classes\n"
        "  pictures  4 images  2 classes\n"
        "Found: 1 repeated, 1 left out; listed in pictures.quarantine.csv.\n"
        "\n"
        "Look at it:        guie data stats pictures.parquet\n"
        "                   guie data show pictures.parquet\n"
        'In an experiment:  data=[dict(type="manifest", path="pictures.parquet")]\n',
        "",
    )
    manifest = Manifest.read("pictures.parquet")
    assert manifest.column("name").tolist() == ["cat"] * 3 + ["dog"]
    assert pd.read_csv("pictures.quarantine.csv")["kind"].tolist() == ["left out", "duplicate"]


def test_what_was_prepared_can_be_prepared_again(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guie(capsys, "prepare", "pictures")
    code, out, _ = guie(capsys, "prepare", "pictures.parquet", "--output", "again.parquet")
    assert code == 0, out
    assert "again.parquet: 4 images of 2 classes\n" in out
    again, first = Manifest.read("again.parquet"), Manifest.read("pictures.parquet")
    assert again.column("hash").tolist() == first.column("hash").tolist()


def test_options(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--keep-duplicates",
        "--min-images",
        "2",
        "--max-images",
        "3",
        "--set",
        "category=pets",
        "-o",
        "new/x.parquet",
    ]
    code, out, err = guie(capsys, "prepare", "pictures", *args)
    assert (code, err) == (0, "")
    assert out.startswith(
        "new/x.parquet: 3 images of 1 class\n"
        "  pictures  3 images  1 class\n"
        "--min-images 2 and --max-images 3 left out 2 images.\n"
        "Found: 1 repeated, 1 left out; listed in new/x.quarantine.csv.\n"
    )
    manifest = Manifest.read("new/x.parquet")
    assert set(manifest.column("category")) == {"pets"}
    assert manifest.column("label").tolist() == [0] * 3


def test_several_data_sets(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        picture(Path("things", "cup", f"{number}.png"), 20 + number)
    args = ["--set", "pictures.source=a", "--set", "1.source=b"]
    code, out, err = guie(capsys, "prepare", "pictures", "things", *args)
    assert (code, err) == (0, "")
    assert out.startswith(
        "pictures+things.parquet: 6 images of 3 classes\n  a  4 images  2 classes\n  b  2 images  1 class\n"
    )


def test_nothing_wrong_is_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    picture(Path("clean", "a", "1.png"), 1)
    assert "\nNothing was found wrong.\n" in guie(capsys, "prepare", "clean")[1]


def test_bad_images_beyond_the_limit(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (pictures / "dog" / "bad.jpg").write_bytes(b"no image")
    code, out, err = guie(capsys, "prepare", "pictures")
    assert (code, out) == (1, "")
    assert err.startswith("error: 1 of 6 images are bad (16.67%), more than ")
    assert f"  {tmp_path}/pictures/dog/bad.jpg: not an image: 8 bytes that start with b'no image'\n" in err
    assert "pictures.quarantine.csv" in err
    assert "or raise --max-bad to 0.17" in err
    assert "max_bad" not in err
    assert not Path("pictures.parquet").exists()
    code, out, _ = guie(capsys, "prepare", "pictures", "--max-bad", "0.17")
    assert code == 0
    assert "Found: 1 bad, 1 repeated, 1 left out;" in out


def test_an_existing_manifest_is_replaced_by_the_same_command_only(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = (
        2,
        "",
        "error: pictures.parquet is there already, and was not made by this command. "
        "Choose another --output, or add --force to replace it\n",
    )
    guie(capsys, "prepare", "pictures")
    picture(pictures / "dog" / "1.png", 10)
    assert guie(capsys, "prepare", "pictures")[0] == 0
    assert len(Manifest.read("pictures.parquet")) == 5
    assert guie(capsys, "prepare", "pictures", "--max-images", "1") == refused
    assert guie(capsys, "prepare", "pictures", "--set", "source=x") == refused
    assert len(Manifest.read("pictures.parquet")) == 5
    assert guie(capsys, "prepare", "pictures", "--max-images", "1", "--force")[0] == 0
    assert len(Manifest.read("pictures.parquet")) == 2
    Path("pictures.parquet").write_text("somebody's")
    assert guie(capsys, "prepare", "pictures") == refused
    assert Path("pictures.parquet").read_text() == "somebody's"


def test_a_manifest_never_replaces_what_it_is_made_of(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guie(capsys, "prepare", "pictures")
    before = Path("pictures.parquet").read_bytes()
    for more in ([], ["--force"]):
        assert guie(capsys, "prepare", "pictures.parquet", "-o", "pictures.parquet", *more) == (
            2,
            "",
            "error: --output pictures.parquet would replace pictures.parquet, which is read. Choose another --output\n",
        )
    assert Path("pictures.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pictur"], "error: 'pictur' is neither a data set nor a file or folder here. Data sets: folder, "),
        (["gpr120"], "error: 'gpr120' is neither a data set nor a file or folder here. Did you mean 'gpr1200'?\n"),
        (["./gpr1200"], "error: ./gpr1200: no such file or folder\n"),
        (["pictures", "--set", "rot=x"], "error: 1 problem in the data set\n  pictures.rot: folder (guie-datasets 0.1.0) has no argument 'rot'. Did you mean 'root'?\n  It takes: root, source, category"),
        (["pictures", "--set", "source=3"], "error: 1 problem in the data set\n  pictures.source: expects text, got the number 3.\n"),
        (["pictures", "--set", "source"], "error: 1 problem in the data set\n  --set 'source' is not of the form key=value.\n  For example: --set pictures.root={here}/pictures\n"),
        (["pictures", "food101", "--set", "food10.seed=1", "--set", "1.split=tst"], "error: 2 problems in the data sets\n  food10.seed: --set can change what is below pictures or food101. Did you mean 'food101'?\n  food101.split: expects "),
        (["pictures", "food101", "--set", "source=x"], "error: 1 problem in the data sets\n  source: --set can change what is below pictures or food101.\n"),
        (["tfrecord"], "error: 1 problem in the data set\n  tfrecord: tfrecord (guie-datasets 0.1.0) needs the argument 'source': text.\n"),
        (["pictures/cat/0.png"], "error: {here}/pictures/cat/0.png: a file of unknown kind. Name a folder of class folders, a table (.csv, .tsv, .parquet), "),
        (["photos.zip"], "error: {here}/photos.zip is an archive. Unpack it and name the folder that holds the class folders\n"),
        (["pictures", "--min-images", "9"], "error: --min-images 9 leaves none of 4 images\n"),
        (["pictures", "--output", "pictures"], "error: --output pictures is a folder; name a file, such as pictures/images.parquet\n"),
        (["pictures", "--max-bad", "3"], "error: Invalid value for '--max-bad': 3.0 is not in the range 0<=x<=1.\nTry 'guie data prepare --help'.\n"),
        (["pictures", "--workers", "0"], "error: Invalid value for '--workers': 0 is not in the range x>=1.\nTry 'guie data prepare --help'.\n"),
        ([], "error: Missing argument 'NAME|PATH...'.\nTry 'guie data prepare --help'.\n"),
    ],
)  # fmt: skip
def test_wrong_usage_of_prepare(
    pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, args: list[str], message: str
) -> None:
    Path("photos.zip").write_bytes(b"")
    code, out, err = guie(capsys, "prepare", *args)
    assert (code, out) == (2, "")
    assert err.startswith(message.format(here=tmp_path))
    assert not Path("pictures.parquet").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gpr1200", "--data-folder", "elsewhere", "--set", "without=iNat"], "error: the data set 'gpr1200' is not there. Looked for\n  {here}/elsewhere/GPR1200/images/"),
        (["empty"], "error: {here}/empty: no class folders in it, and no files. Put the images of each class into "),
        (["pictures/cat"], "error: {here}/pictures/cat: no class folders in it, only 5 files. Put the images of each class into a folder of its own: {here}/pictures/cat/<class>/<image>\n"),
        (["pictures", "--output", "/proc/x.parquet"], "error: "),
    ],
)  # fmt: skip
def test_prepare_fails(
    pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, args: list[str], message: str
) -> None:
    Path("empty").mkdir()
    code, out, err = guie(capsys, "prepare", *args)
    assert (code, out) == (1, "")
    assert err.startswith(message.format(here=tmp_path))
    assert "Traceback" not in err
    assert "fault" not in err


# --- verify


def test_verify(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    guie(capsys, "prepare", "pictures")
    fine = (0, "pictures.parquet: 4 images, nothing is wrong.\n", "")
    assert guie(capsys, "verify", "pictures.parquet") == guie(capsys, "verify", "pictures.parquet", "--decode") == fine
    path = pictures / "cat" / "1.png"
    before = path.read_bytes()
    picture(path, 77)
    (pictures / "dog" / "0.png").rename("elsewhere.png")
    assert guie(capsys, "verify", "pictures.parquet") == (
        1,
        f"  {tmp_path}/pictures/cat/1.png: its bytes are not those that were prepared\n"
        f"  {tmp_path}/pictures/dog/0.png: cannot be read: No such file or directory\n"
        "pictures.parquet: of 4 images 2 bad; listed in pictures.verify.csv.\n",
        "",
    )
    assert len(pd.read_csv("pictures.verify.csv")) == 2
    path.write_bytes(before)
    Path("elsewhere.png").rename(pictures / "dog" / "0.png")
    assert guie(capsys, "verify", "pictures.parquet") == fine
    assert not Path("pictures.verify.csv").exists()


def rewritten(path: str, version: int) -> None:
    """The manifest as another version of guie would have written it."""
    table = pq.read_table(path)
    about = {"version": version, "provenance": {}}
    pq.write_table(table.replace_schema_metadata({b"guie.manifest": json.dumps(about).encode()}), path)


@pytest.mark.parametrize(
    "command", [["verify"], ["export", "--to", "csv", "-o", "out"], ["prepare", "-o", "x.parquet"]]
)
def test_a_manifest_of_another_version(pictures: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    guie(capsys, "prepare", "pictures")
    for version, remedy in ((99, "Update guie-datasets"), (0, "Prepare the data again")):
        rewritten("pictures.parquet", version)
        code, out, err = guie(capsys, command[0], "pictures.parquet", *command[1:])
        assert (code, out) == (1, "")
        assert re.fullmatch(
            rf"error: \S*pictures.parquet: a manifest of version {version}; this guie-datasets reads 1. {remedy}\n", err
        )


@pytest.mark.parametrize(
    "command",
    [["verify"], ["stats"], ["show"], ["leaks"], ["export", "--to", "csv", "-o", "out"]],
    ids=lambda args: args[0],
)
def test_what_is_no_manifest(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    pq.write_table(pa.table({"path": ["a"], "label": [1]}), "table.parquet")
    for name in ("text.csv", "x.tar", "x.tfrec", "damaged.parquet"):
        Path(name).write_text("path,label\n")
    Path("my pictures").mkdir()
    for name, message in [
        ("none.parquet", "no such file. A manifest is what preparing data sets writes"),
        ("table.parquet", "a Parquet table, and no manifest. Prepare it first: guie data prepare table.parquet\n"),
        ("text.csv", "a table, and no manifest. Prepare it first: guie data prepare text.csv\n"),
        ("x.tar", "shards of images, and no manifest. Prepare it first: guie data prepare x.tar\n"),
        ("x.tfrec", "shards of images, and no manifest. Prepare it first: guie data prepare x.tfrec\n"),
        ("my pictures", "a folder, and no manifest. Prepare it first: guie data prepare 'my pictures'\n"),
        ("damaged.parquet", "not a manifest, or a damaged one: "),
    ]:
        code, out, err = guie(capsys, command[0], name, *command[1:])
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {name}: {message}")


# --- what paths tell


def test_recognition(pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = (pictures / "cat" / "0.png").read_bytes()
    tfrecord.write(Path("cars", "cars-train-00-1.tfrec"), [(data, 1)])
    tfrecord.write(Path("odd", "b.tfrecord"), [(data, 1)])
    tfrecord.write(Path("odd", "a.tfrecord"), [(data, 2)])
    Path("tars").mkdir()
    Path("tars", "x-000000.tar").touch()
    Path("t.csv").write_text("path,label\n")
    guie(capsys, "prepare", "pictures")
    pq.write_table(pq.read_table("pictures.parquet").replace_schema_metadata({}), "t.parquet")
    here = str(tmp_path)
    assert settings("pictures") == {"type": "folder", "root": f"{here}/pictures"}
    cars = {"type": "tfrecord", "folder": f"{here}/cars", "source": "cars", "pattern": "*.tfrec"}
    assert settings("cars") == cars
    odd = {"type": "tfrecord", "folder": f"{here}/odd", "source": "odd", "pattern": "*.tfrecord"}
    assert settings("odd") == odd
    assert settings("odd/b.tfrecord") == {"type": "tfrecord", "files": [f"{here}/odd/b.tfrecord"], "source": "b"}
    assert settings("tars") == {"type": "webdataset", "files": [f"{here}/tars/*.tar"], "source": "x"}
    assert settings("tars/x-000000.tar") == {"type": "webdataset", "files": [f"{here}/tars/x-000000.tar"]}
    assert settings("t.csv") == {"type": "table", "file": f"{here}/t.csv"}
    assert settings("t.parquet") == {"type": "table", "file": f"{here}/t.parquet"}
    assert settings("pictures.parquet") == {"type": "manifest", "path": f"{here}/pictures.parquet"}
    assert settings("~/../..")["type"] == "folder"


def test_a_name_is_a_data_set_and_a_path_a_folder(tmp_path: Path) -> None:
    Path("gpr1200").mkdir()
    assert settings("gpr1200") == {"type": "gpr1200"}
    assert settings("./gpr1200") == {"type": "folder", "root": f"{tmp_path}/gpr1200"}


def test_names_that_come_twice_are_numbers(pictures: Path) -> None:
    Path("more", "pictures").mkdir(parents=True)
    found = named_settings(["pictures", "more/pictures", "gpr1200"], ["1.source=x", "gpr1200.without=iNat,face"])
    assert list(found) == ["pictures", "1", "gpr1200"]
    assert found["1"]["source"] == "x"
    assert found["gpr1200"]["without"] == ["iNat", "face"]
    assert named_settings(["gpr1200"], ["without=iNat"])["gpr1200"]["without"] == ["iNat"]


# --- export


def test_export(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guie(capsys, "prepare", "pictures")
    assert guie(capsys, "export", "pictures.parquet", "--to", "png", "--output", "./out") == (
        0,
        "out: 4 images as png.\n",
        "",
    )
    assert pd.read_csv("out/label-noresize.csv")["path"].tolist()[0] == "./out/pictures/cat/0-0.png"
    Path("pictures/cat/0.png").unlink()
    args = ["export", "pictures.parquet", "--to", "folder", "-o", "copy"]
    code, out, err = guie(capsys, *args)
    assert (code, out) == (1, "")
    assert "cannot be read: No such file or directory" in err
    assert "or raise --max-bad\n" in err
    assert guie(capsys, *args, "--max-bad", "0.3") == (
        0,
        "copy: 3 images as folder.\n1 bad; listed in copy/quarantine.csv.\n",
        "",
    )


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["pictures.parquet", "--to", "pgn", "-o", "out"], 2, "error: Invalid value for '--to': 'pgn' is not one of 'png', 'folder', 'csv', 'tfrecord', 'webdataset'.\n"),
        (["pictures.parquet", "--to", "png", "-o", "pictures"], 2, "error: pictures is there and not empty. Name a new folder, so that nothing of yours is mixed up\n"),
        (["pictures.parquet", "--to", "png", "-o", "out", "--split", "test"], 2, "error: the manifest has no splits. Experiments make them: the manifest with splits is stages/split/manifest.parquet in the folder of a run\n"),
        (["pictures.parquet", "--to", "webdataset", "-o", "out", "--decode", "tensorflow", "--link"], 2, "error: --to webdataset takes no --decode and no --link. It takes --per-shard\n"),
        (["pictures.parquet", "--to", "png", "-o", "out", "--per-shard", "9"], 2, "error: --to png takes no --per-shard. It takes --decode\n"),
        (["pictures.parquet", "--to", "csv", "-o", "out", "--link"], 2, "error: --to csv takes no --link\n"),
        (["pictures.parquet", "--to", "png"], 2, "error: Missing option '--output' / '-o'.\n"),
        (["pictures.parquet", "--to", "png", "-o", "/dev/null/x"], 1, "error: A part of the path is a file, not a folder: /dev/null/x/"),
    ],
)  # fmt: skip
def test_wrong_usage_of_export(
    pictures: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, message: str
) -> None:
    guie(capsys, "prepare", "pictures")
    found, out, err = guie(capsys, "export", *args)
    assert (found, out) == (code, "")
    assert err.startswith(message)


def test_what_tfrecords_do_not_hold_is_told(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guie(capsys, "prepare", "pictures")
    assert guie(capsys, "export", "pictures.parquet", "--to", "tfrecord", "-o", "out") == (
        0,
        "out: 4 images as tfrecord.\nTFRecords hold images and labels; what the classes are called is in out/classes.csv.\n",
        "",
    )
    assert Path("out/classes.csv").read_text() == "label,name,source,category\n0,cat,pictures,\n1,dog,pictures,\n"


# --- what is no longer there


def test_stats_of_images_that_are_gone(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guie(capsys, "prepare", "pictures")
    Path("pictures/dog/0.png").unlink()
    code, out, _ = guie(capsys, "stats", "pictures.parquet")
    assert code == 0
    assert "\nnot there now" in out
    assert "1 of 4 images looked at; which: guie data verify pictures.parquet\n" in out
    assert "PNG 100 %" in out
    Path("pictures").rename("elsewhere")
    code, out, _ = guie(capsys, "stats", "pictures.parquet")
    assert code == 0
    assert "4 of 4 images looked at; which: guie data verify pictures.parquet\n" in out
    assert "0 bytes" not in out
    assert re.search(r"^on disk +nothing is where the manifest says$", out, re.MULTILINE)
    guie(capsys, "stats", "pictures.parquet", "-o", "x.html")
    assert "4 of 4 images looked at" in Path("x.html").read_text()


# --- pictures that are too large for their format


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("c.webp", 110, "a .webp picture has at most 16,383 pixels a side, and this one would be 19,920 high"),
        ("c.jpg", 400, "a .jpg picture has at most 65,500 pixels a side, and this one would be 72,410 high"),
        ("c.png", 9_000, "so many images don't fit into one picture"),
    ],
)
def test_pictures_beyond_their_format(
    capsys: pytest.CaptureFixture[str], name: str, classes: int, message: str
) -> None:
    """They are refused before an image is read: none of these is there."""
    hashes = [f"{row:032x}" for row in range(classes)]
    columns = {"path": [f"/nowhere/{row}.jpg" for row in range(classes)], "label": list(range(classes)), "hash": hashes}
    Manifest.from_columns({**columns, "width": [8] * classes, "height": [8] * classes}).write("many.parquet")
    code, _, err = guie(capsys, "show", "many.parquet", "--classes", str(classes), "-o", name)
    assert code == 2
    assert err.startswith(f"error: --output {name}: {message}")
    assert "ask for fewer (--classes, --images), or for a page (.html)" in err


@pytest.mark.parametrize("separate", [True, False])
def test_settings_are_said_as_they_are_given(
    pictures: Path, capsys: pytest.CaptureFixture[str], separate: bool
) -> None:
    """What an error tells to do can be pasted."""
    Path("cars.csv").write_text("path;label\n" + "".join(f"pictures/cat/{number}.png;a\n" for number in range(3)))
    before = [] if separate else ["pictures"]
    code, _, err = guie(capsys, "prepare", *before, "./cars.csv")
    assert code in (1, 2)
    key = "" if separate else "cars."
    option = f"--set '{key}delimiter=;'"
    assert option in err
    assert guie(capsys, "prepare", *before, "./cars.csv", *shlex.split(option))[0] == 0
