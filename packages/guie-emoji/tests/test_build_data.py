"""Building the set: a few real files of each npm package, and the data that were built from all of them."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError
from guie_datasets import tfrecord
from guie_emoji import STYLES, Emoji, build_data
from guie_emoji.dataset import DATA

FIXTURES = Path(__file__).parent / "fixtures" / "npm"
COMPLETE = ["grinning-face", "red-heart", "glasses"]  # in all six; melting-face is not


def _pack(folder: Path, tarball: Path) -> None:
    """As `npm pack` does: everything below package/."""
    with tarfile.open(tarball, "w:gz") as archive:
        archive.add(folder, "package")


@pytest.fixture
def npm(tmp_path: Path) -> Path:
    """A folder of tarballs."""
    folder = tmp_path / "npm"
    folder.mkdir()
    for source in build_data.SOURCES.values():
        _pack(FIXTURES / source.tarball.removesuffix(".tgz"), folder / source.tarball)
    return folder


@pytest.fixture
def packages(npm: Path) -> dict[str, build_data.Package]:
    return _packages(npm)


def _packages(npm: Path) -> dict[str, build_data.Package]:
    return build_data.read_packages({style: npm / source.tarball for style, source in build_data.SOURCES.items()})


def _build(packages: Mapping[str, build_data.Package], folder: Path) -> list[build_data.Picture]:
    pictures = build_data.draw(packages, build_data.select(packages))
    build_data.write(pictures, folder)
    return pictures


def test_emoji_that_a_set_lacks_are_left_out(packages: dict[str, build_data.Package]) -> None:
    assert [(one.name, one.codepoints) for one in build_data.select(packages)] == [
        ("grinning-face", "1F600"),
        ("red-heart", "2764-FE0F"),
        ("glasses", "1F453"),
    ]
    del packages["twitter"].files["img/twitter/64/2764-fe0f.png"]
    assert [one.name for one in build_data.select(packages)] == ["grinning-face", "glasses"]


@pytest.mark.parametrize("category", ["Flags", "Component"])
def test_flags_and_components_are_left_out(packages: dict[str, build_data.Package], category: str) -> None:
    entries = packages["google"].json("emoji.json")
    next(entry for entry in entries if entry["unified"] == "1F600")["category"] = category
    packages["google"].files["emoji.json"] = json.dumps(entries).encode()
    assert [one.name for one in build_data.select(packages)] == ["red-heart", "glasses"]


def test_same_bytes_at_each_run(npm: Path, tmp_path: Path) -> None:
    for run in ("first", "second"):
        _build(_packages(npm), tmp_path / run)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert set(files) == {"guie-emoji-train-00-18.tfrec", "emoji.csv", "provenance.json"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "second").iterdir()}


def test_the_images_of_the_package_come_from_these_files(npm: Path, tmp_path: Path) -> None:
    """Built again, the three emoji look as they do in the package; with the same tools they are the same bytes."""
    pictures = _build(_packages(npm), tmp_path / "built")
    whole = Emoji()
    there = {
        (drawing.name, drawing.style): row.image.read()
        for row, drawing in zip(whole.rows(), whole.drawings(), strict=True)
        if drawing.name in COMPLETE
    }
    built = {(picture.emoji.name, picture.style): picture.jpeg for picture in pictures}
    assert built.keys() == there.keys()
    for key in built:
        ours, theirs = (np.asarray(Image.open(io.BytesIO(data)), np.float64) for data in (built[key], there[key]))
        assert ours.shape == theirs.shape, key
        assert np.abs(ours - theirs).mean() < 2, key
    if json.loads((DATA / "provenance.json").read_text())["made_with"] == build_data.made_with():
        assert built == there


def test_records_table_and_order_agree(npm: Path, tmp_path: Path) -> None:
    pictures = _build(_packages(npm), tmp_path)
    records = list(tfrecord.scan(tmp_path / "guie-emoji-train-00-18.tfrec"))
    assert [record.image.read() for record in records] == [picture.jpeg for picture in pictures]
    with open(tmp_path / "emoji.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["class"]) for line in lines] == [record.label for record in records]
    assert {(line["class"], line["name"]) for line in lines} == set(zip("012", COMPLETE, strict=True))
    # the order is that of the whole set
    whole = [(drawing.name, drawing.style) for drawing in Emoji().drawings() if drawing.name in COMPLETE]
    assert [(line["name"], line["style"]) for line in lines] == whole


def test_a_set_of_other_shards_replaces_them(packages: dict[str, build_data.Package], tmp_path: Path) -> None:
    (tmp_path / "guie-emoji-train-00-99.tfrec").write_bytes(b"old")
    _build(packages, tmp_path)
    assert [path.name for path in tmp_path.glob("*.tfrec")] == ["guie-emoji-train-00-18.tfrec"]


# --- images


def _jpeg(picture: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(build_data.finish(picture)))


def test_pictures_are_cropped_to_what_is_visible() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (10, 20, 50, 30))
    picture.putpixel((0, 0), (0, 0, 0, build_data.VISIBLE - 1))  # a fringe
    image = _jpeg(picture)
    assert image.size == (40, 10)  # and not enlarged
    assert np.abs(np.asarray(image, np.float64) - [200, 0, 0]).max() < 5


def test_large_pictures_are_reduced_and_transparency_becomes_white() -> None:
    picture = Image.new("RGBA", (600, 600), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (50, 0, 562, 20))
    picture.paste((0, 0, 0, 255), (50, 0, 70, 256))  # an L: black on transparent black
    image = _jpeg(picture)
    assert image.size == (128, 64)
    pixels = np.asarray(image.convert("L"))
    assert pixels[:3, :].max() < 40
    assert pixels[16:, 16:].min() > 240


def test_empty_pictures_are_named(packages: dict[str, build_data.Package]) -> None:
    icons = packages["noto-v1"].json("icons.json")
    icons["icons"]["glasses"]["body"] = "<g/>"
    packages["noto-v1"].files["icons.json"] = json.dumps(icons).encode()
    with pytest.raises(GuieError, match=r"noto-v1-1\.2\.5\.tgz: glasses \(1F453\): a drawing is empty"):
        build_data.draw(packages, build_data.select(packages))


def test_icons_fill_their_own_view_box() -> None:
    """`left`, `top`, `width` and `height` of an icon go before those of its set."""
    square = '<path fill="#00f" d="M4 2h8v4H4z"/>'
    icons = build_data.Icons(
        {"width": 16, "height": 16, "icons": {"whole": {"body": square}, "cut": dict(body=square, left=4, width=8)}}
    )
    assert icons.picture("whole").size == (512, 512)
    assert icons.picture("whole").getbbox() == (128, 64, 384, 192)
    assert icons.picture("cut").size == (256, 512)
    assert icons.picture("cut").getbbox() == (0, 64, 256, 192)


def test_contact_sheet_shows_all_styles(tmp_path: Path) -> None:
    whole = Emoji()
    pictures = [
        build_data.Picture(
            build_data.Character(drawing.codepoints, drawing.name, drawing.group, drawing.subgroup),
            drawing.emoji,
            drawing.style,
            row.image.read(),
        )
        for row, drawing in zip(whole.rows(), whole.drawings(), strict=True)
    ]
    build_data.contact_sheet(pictures, tmp_path / "sheet.jpg", cell=32)
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg").convert("L"))
    assert sheet.shape == (6 * 32, 2 * 6 * 32 + 16)
    cells = [
        sheet[r : r + 32, c : c + 32] for r in range(0, 192, 32) for c in (*range(0, 192, 32), *range(208, 400, 32))
    ]
    assert all(cell.std() > 5 for cell in cells)  # none is blank


# --- the command


def test_sources_are_the_styles_of_the_data_set() -> None:
    assert tuple(build_data.SOURCES) == STYLES
    recorded = json.loads((DATA / "provenance.json").read_text())
    assert recorded["sources"] == {style: source._asdict() for style, source in build_data.SOURCES.items()}


def test_digests_of_the_data_are_recorded() -> None:
    recorded = json.loads((DATA / "provenance.json").read_text())["sha256"]
    assert set(recorded) == {"emoji.csv", *(path.name for path in DATA.glob("*.tfrec"))}
    assert {name: build_data._sha256(DATA / name) for name in recorded} == recorded


def test_other_tarballs_are_refused(npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fixtures are not the packages, and the command notices."""
    assert build_data.main(["--npm-dir", str(npm), "--output", str(tmp_path / "out")]) == 1
    assert "is not emoji-datasource-google 16.0.0: its integrity is sha512-" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_tarballs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_data.main(["--npm-dir", str(tmp_path)]) == 1
    assert "`npm pack emoji-datasource-google@16.0.0` downloads it" in capsys.readouterr().err


@pytest.fixture
def known_npm(npm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fixtures' tarballs, with their integrity in the table."""
    for style, source in build_data.SOURCES.items():
        path = npm / source.tarball
        with pytest.raises(GuieError) as error:
            build_data.verified(source, path)
        integrity = str(error.value).rsplit(" ", 1)[1]
        monkeypatch.setitem(build_data.SOURCES, style, source._replace(integrity=integrity))
    return npm


def test_check_says_what_differs(known_npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["--npm-dir", str(known_npm), "--output", str(out)]
    assert build_data.main([*command, "--check"]) == 1
    assert "there is no such folder to check" in capsys.readouterr().err

    assert build_data.main(command) == 0
    assert build_data.main([*command, "--check"]) == 0
    assert "the same bytes, 18 images" in capsys.readouterr().out

    shard = out / "guie-emoji-train-00-18.tfrec"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    shutil.copy(shard, out / "guie-emoji-train-01-18.tfrec")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert build_data.main([*command, "--check"]) == 1
    message = capsys.readouterr().err
    assert "guie-emoji-train-00-18.tfrec: built " in message
    assert "guie-emoji-train-01-18.tfrec: built missing" in message
    assert "emoji.csv" not in message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # nothing was written


def test_check_names_other_versions_of_the_tools(
    known_npm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--npm-dir", str(known_npm), "--output", str(tmp_path)]
    build_data.main(command)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    provenance["made_with"]["pillow"] = "1.0"
    provenance["sha256"]["emoji.csv"] = "0"
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    assert build_data.main([*command, "--check"]) == 1
    assert "made with pillow 1.0, here is " in capsys.readouterr().err
