"""Contact sheets: what is chosen, how it looks, and that bad images are shown as such."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from guie_core import UsageError
from guie_datasets import ClassFolders, Manifest, prepare
from guie_datasets.commands.show import show
from guie_datasets.inspecting.sheets import SIDE, choose, contact_sheet, sheets, write_sheets

COLOURS = {"红": (200, 0, 0), "green": (0, 160, 0), "<b>blue": (0, 0, 200)}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for name, colour in COLOURS.items():
        folder = tmp_path / "own" / name
        folder.mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (60 + number, 300), colour).save(folder / f"{number}.png")
    return prepare([ClassFolders(tmp_path / "own")])[0]


def test_the_choice_follows_from_the_seed(manifest: Manifest) -> None:
    one, again, other = ([rows.tolist() for rows in choose(manifest, classes=2, images=3, seed=s)] for s in (1, 1, 2))
    assert one == again != other
    label = manifest.column("label")
    assert [len(set(label[rows].tolist())) for rows in one] == [1, 1]
    assert [len(rows) for rows in one] == [3, 3]
    assert [len(rows) for rows in choose(manifest, classes=50, images=50)] == [6, 6, 6]


def test_seeds_that_are_none(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match="seed is -1; it is a whole number from 0"):
        choose(manifest, seed=-1)


def test_classes_by_name_and_label(manifest: Manifest) -> None:
    label, name = manifest.column("label"), manifest.column("name")
    for wanted in ("红", "green"):
        (rows,) = choose(manifest, only=[wanted])
        assert set(name[rows]) == {wanted}
    groups = choose(manifest, only=["2", "green", "2"])
    assert [int(label[rows[0]]) for rows in groups] == [2, int(label[name == "green"][0])]
    with pytest.raises(UsageError, match=r"no class 'gren'. Did you mean 'green'"):
        choose(manifest, only=["gren"])
    with pytest.raises(UsageError, match=r"class 17 has no image here \(labels are 0..2\)"):
        choose(manifest, only=["17"])


def test_splits_and_sources(manifest: Manifest) -> None:
    split = manifest.with_column("split", ["train", "test"] * 9)
    rows = np.concatenate(choose(split, split="test"))
    assert len(rows) == 9
    assert set(split.column("split")[rows]) == {"test"}
    with pytest.raises(UsageError, match=r"no split 'tset'. Did you mean 'test'"):
        choose(split, split="tset")
    with pytest.raises(UsageError, match=r"no source 'x'. It has: 'own'"):
        choose(split, source="x")


def test_no_images(manifest: Manifest) -> None:
    empty = manifest.select(np.zeros(18, bool))
    assert choose(empty) == []
    assert contact_sheet(sheets(empty, [])).size[0] > 0


def test_a_class_of_a_hundred_thousand() -> None:
    count = 100_000
    whole = {"path": ["/x"] * count, "label": np.zeros(count, int), "hash": ["0" * 32] * count}
    manifest = Manifest.from_columns({**whole, "width": np.ones(count, int), "height": np.ones(count, int)})
    (rows,) = choose(manifest)
    assert len(set(rows.tolist())) == 8


def test_bad_images_are_tiles_with_a_reason(manifest: Manifest, tmp_path: Path) -> None:
    paths = [Path(ref.path) for ref in manifest.images()]
    paths[0].unlink()
    paths[1].write_bytes(b"no image")
    (sheet,) = sheets(manifest, [np.arange(3)])
    assert [tile.reason for tile in sheet.tiles] == [
        "cannot be read: No such file or directory",
        "not an image: 8 bytes that start with b'no image'",
        "",
    ]
    assert [tile.image is None for tile in sheet.tiles] == [True, True, False]
    write_sheets(tmp_path / "page.html", [sheet], name="x")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count('class="tile bad"') == 2
    drawn = contact_sheet([sheet])
    red = np.all(np.asarray(drawn) == (0xFB, 0xE9, 0xE6), axis=-1)
    assert red.sum() > 2 * SIDE * SIDE * 0.6


def test_the_picture_shows_each_image_in_its_place(manifest: Manifest) -> None:
    found = sheets(manifest, choose(manifest, images=4))
    drawn = np.asarray(contact_sheet(found)).astype(int)
    # each row of tiles has its class's colour and no other's
    order = [sheet.name for sheet in found]
    for number, name in enumerate(order):
        colour = COLOURS[name]
        here = np.argwhere(np.abs(drawn - colour).sum(-1) < 12)
        rows = here[:, 0]
        assert rows.max() - rows.min() < SIDE
        assert len(here) == pytest.approx(4 * SIDE * (SIDE * 62 / 300), rel=0.15)
        assert rows.min() // (len(drawn) // 3) == number


def test_the_page_holds_the_images(manifest: Manifest, tmp_path: Path) -> None:
    found = sheets(manifest, choose(manifest, images=2))
    write_sheets(tmp_path / "page.html", found, name="own", summary="6 images", command="guie data show")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    uris = re.findall(r'src="data:image/\w+;base64,([^"]*)"', text)
    assert len(uris) == 6
    assert "红" in text
    assert "<b>blue" not in text
    seen = {Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB").getpixel((5, 5)) for uri in uris}
    assert len(seen) == 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".html"])
def test_the_command(manifest: Manifest, tmp_path: Path, suffix: str) -> None:
    manifest.write(tmp_path / "m.parquet")
    path = tmp_path / f"sheet{suffix}"
    said = CliRunner().invoke(show, [str(tmp_path / "m.parquet"), "--images", "2", "-o", str(path)])
    assert said.exit_code == 0, said.output
    assert "6 images of 3 classes." in said.output
    if suffix != ".html":
        assert Image.open(path).size[0] > 2 * SIDE


def test_an_unknown_suffix_is_refused_before_anything_is_read() -> None:
    said = CliRunner().invoke(show, ["nothing.parquet", "-o", "sheet.pdf"], standalone_mode=False)
    assert isinstance(said.exception, UsageError)
    assert "it must end in .html, .jpg, .jpeg, .png or .webp" in str(said.exception)
