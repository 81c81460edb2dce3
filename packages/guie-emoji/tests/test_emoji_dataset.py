"""The data that come with the package, and what happens when they are not as they should be."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guie_core import GuieError, UsageError
from guie_core.testing import PluginContract
from guie_datasets import Row
from guie_datasets.testing import DatasetContract
from guie_emoji import STYLES, Drawing, Emoji
from guie_emoji.dataset import DATA


class TestPlugin(PluginContract):
    plugin = "emoji"


class TestEmoji(DatasetContract):
    @pytest.fixture
    def dataset(self) -> Emoji:
        return Emoji()


class TestSubgroups(DatasetContract):
    @pytest.fixture
    def dataset(self) -> Emoji:
        return Emoji(styles=["twitter", "noto-v1"], classes="subgroup")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(Emoji().rows())


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return Emoji().drawings()


@pytest.fixture(scope="module")
def images(rows: list[Row]) -> list[Image.Image]:
    """Decoded as a whole, so a broken image fails here."""
    decoded: list[Image.Image] = []
    for row in rows:
        image = Image.open(io.BytesIO(row.image.read()))
        image.load()
        decoded.append(image)
    return decoded


def test_every_emoji_is_there_in_every_style_once(rows: list[Row], drawings: list[Drawing]) -> None:
    assert len(rows) == len(drawings) == Emoji().count() == 1034 * 6
    assert {row.label for row in rows} == set(range(1034))
    styles = defaultdict(list)
    for row, drawing in zip(rows, drawings, strict=True):
        styles[row.label].append(drawing.style)
    assert all(sorted(drawn) == sorted(STYLES) for drawn in styles.values())


def test_the_table_tells_what_the_records_show(rows: list[Row], drawings: list[Drawing]) -> None:
    with open(DATA / "emoji.csv", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["class", "group", "subgroup", "style", "name", "codepoints"]
    assert [[str(value) for value in drawing] for drawing in drawings] == lines[1:]
    assert [row.label for row in rows] == [drawing.emoji for drawing in drawings]
    assert [row.category for row in rows] == [drawing.group for drawing in drawings]
    named = {(drawing.emoji, drawing.name, drawing.codepoints, drawing.group, drawing.subgroup) for drawing in drawings}
    assert len(named) == len({drawing.name for drawing in drawings}) == 1034
    assert Drawing(215, "Animals & Nature", "animal-mammal", "google", "fox", "1F98A") in drawings


def test_groups_are_unicodes_without_flags_and_components(rows: list[Row]) -> None:
    assert Counter(row.category for row in rows) == {
        "Smileys & Emotion": 702,
        "People & Body": 546,
        "Animals & Nature": 612,
        "Food & Drink": 528,
        "Travel & Places": 1194,
        "Activities": 372,
        "Objects": 1140,
        "Symbols": 1110,
    }


def test_images_are_small_jpegs_and_mostly_not_square(images: list[Image.Image], drawings: list[Drawing]) -> None:
    assert {image.format for image in images} == {"JPEG"}
    assert {image.mode for image in images} == {"RGB"}
    assert max(max(image.size) for image in images) == 128
    assert min(min(image.size) for image in images) >= 12
    native = [image for image, drawing in zip(images, drawings, strict=True) if drawing.style in ("google", "twitter")]
    assert max(max(image.size) for image in native) == 64  # not enlarged
    not_square = sum(image.width != image.height for image in images) / len(images)
    assert not_square == pytest.approx(0.61, abs=0.005)


def test_drawings_stand_on_white(images: list[Image.Image]) -> None:
    """Round shapes leave the corners free in most drawings; a wrong background would fill them with black."""
    light = sum(min(image.getpixel((0, 0))) > 230 for image in images)  # type: ignore[arg-type]
    black = sum(max(image.getpixel((0, 0))) < 25 for image in images)  # type: ignore[arg-type]
    assert light > 0.7 * len(images)
    assert black < 0.02 * len(images)


def test_drawings_reach_the_edges(images: list[Image.Image]) -> None:
    """They are cropped: hardly an edge is blank."""
    blank = 0
    for image in images:
        width, height = image.size
        edges = [(0, 0, width, 2), (0, height - 2, width, height), (0, 0, 2, height), (width - 2, 0, width, height)]
        blank += any(min(low for low, _ in image.crop(edge).getextrema()) > 250 for edge in edges)  # type: ignore[misc]
    assert blank < 0.02 * len(images)


def test_only_squares_of_several_sizes_are_the_same_once_cropped(rows: list[Row], drawings: list[Drawing]) -> None:
    """Any other image that is there twice would be a wrong assignment of files to emoji."""
    same = defaultdict(list)
    for row, drawing in zip(rows, drawings, strict=True):
        same[row.image.read()].append(drawing)
    doubles = [sorted(drawing.name for drawing in shown) for shown in same.values() if len(shown) > 1]
    sizes = ["large-square", "medium-small-square", "medium-square", "small-square"]
    assert sorted(doubles) == [
        [f"black-{size}" for size in sizes],  # emojione
        [f"black-{size}" for size in sizes[1:3]],  # noto-v1
        [f"white-{size}" for size in sizes],
        [f"white-{size}" for size in sizes[1:3]],
    ]


def test_sizes_and_names_of_the_shards(rows: list[Row]) -> None:
    shards = sorted(DATA.glob("*.tfrec"))
    counts = Counter(Path(row.image.path).name for row in rows)
    assert [shard.name for shard in shards] == [
        f"guie-emoji-train-{number:02d}-{counts[shard.name]}.tfrec" for number, shard in enumerate(shards)
    ]
    assert max(shard.stat().st_size for shard in shards) < 2 << 20
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 20_000_000


def test_shards_are_samples_of_the_whole(rows: list[Row], drawings: list[Drawing]) -> None:
    by_shard = defaultdict(list)
    for row, drawing in zip(rows, drawings, strict=True):
        by_shard[row.image.path].append(drawing)
    for some in by_shard.values():
        assert len({drawing.emoji for drawing in some}) > 500
        assert min(Counter(drawing.style for drawing in some).values()) > 100
    first = Counter({drawing.emoji: drawing.style for drawing in reversed(drawings)}.values())
    assert min(first.values()) > 120  # the first image of a class is of any style


def test_tensorflow_reads_the_same_records(rows: list[Row]) -> None:
    tf: Any = pytest.importorskip("tensorflow")
    shard = min(DATA.glob("*-07-*.tfrec"))
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    records = [tf.io.parse_single_example(data, features) for data in tf.data.TFRecordDataset(str(shard))]
    ours = [row for row in rows if row.image.path == str(shard)]
    assert len(records) == len(ours) == 772
    for record, row in zip(records, ours, strict=True):
        assert int(record["image/class/label"]) == row.label
        assert record["image/encoded"].numpy() == row.image.read()
    decoded = tf.io.decode_jpeg(records[0]["image/encoded"]).numpy()
    with Image.open(io.BytesIO(ours[0].image.read())) as image:
        assert decoded.shape == (image.height, image.width, 3)


def test_licences_come_with_the_data() -> None:
    notice = (DATA / "NOTICE").read_text()
    for style in STYLES:
        assert f"\n{style}\n" in notice
    for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"):
        assert f"licences/{licence}.txt" in notice
        assert (DATA / "licences" / f"{licence}.txt").stat().st_size > 1000


# --- options


def test_some_styles_keep_their_labels(rows: list[Row], drawings: list[Drawing]) -> None:
    some = Emoji(styles=["emojione", "google"])
    expected = [
        (row, drawing) for row, drawing in zip(rows, drawings, strict=True) if drawing.style in ("google", "emojione")
    ]
    assert list(some.rows()) == [row for row, _ in expected]
    assert some.drawings() == [drawing for _, drawing in expected]
    assert some.count() == len(expected) == 2068


def test_subgroups_as_classes(rows: list[Row], drawings: list[Drawing]) -> None:
    subgroups = list(Emoji(classes="subgroup").rows())
    assert [row.image for row in subgroups] == [row.image for row in rows]
    pairs = {(row.label, drawing.subgroup) for row, drawing in zip(subgroups, drawings, strict=True)}
    assert len(pairs) == 90
    assert {label for label, _ in pairs} == set(range(90))
    assert (0, "face-smiling") in pairs  # of the first emoji
    # the numbers of one style are the same
    alone = Emoji(styles=["noto-v1"], classes="subgroup")
    assert {(row.label, drawing.subgroup) for row, drawing in zip(alone.rows(), alone.drawings(), strict=True)} == pairs


@pytest.mark.parametrize("styles", ["google", [], ["google", "apple"]])
def test_unknown_styles_are_refused(styles: Any) -> None:
    with pytest.raises(UsageError, match=r"styles must be a list of some of google, twitter, .*; it is "):
        Emoji(styles=styles)


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="classes must be 'emoji' or 'subgroup', not 'group'"):
        Emoji(classes="group")  # type: ignore[arg-type]


# --- data that are not as they should be


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "emoji"
    shutil.copytree(DATA, folder)
    return folder


def test_another_folder(copy: Path, rows: list[Row]) -> None:
    assert [row.label for row in Emoji(root=copy).rows()] == [row.label for row in rows]
    assert set(Emoji(root=copy).sources()) == {copy / "emoji.csv", *copy.glob("*.tfrec")}


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _no_table(folder: Path) -> None:
    (folder / "emoji.csv").unlink()


def _no_shards(folder: Path) -> None:
    for shard in folder.glob("*.tfrec"):
        shard.unlink()


def _gap(folder: Path) -> None:
    (folder / "guie-emoji-train-03-776.tfrec").unlink()


def _last_is_missing(folder: Path) -> None:
    (folder / "guie-emoji-train-07-772.tfrec").unlink()


def _truncated(folder: Path) -> None:
    shard = folder / "guie-emoji-train-02-776.tfrec"
    shard.write_bytes(shard.read_bytes()[:-1000])


def _half_a_table(folder: Path) -> None:
    table = folder / "emoji.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3000]))


def _other_table(folder: Path) -> None:
    table = folder / "emoji.csv"
    header, *lines = table.read_text().splitlines(keepends=True)
    table.write_text(header + "".join(reversed(lines)))


def _no_csv(folder: Path) -> None:
    (folder / "emoji.csv").write_text("<html>not found</html>\nx\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_folder, r"emoji\.csv: cannot be read: No such file"),
        (_no_table, r"emoji\.csv: cannot be read: No such file"),
        (_no_shards, r"no file matches guie-emoji-train-\*\.tfrec"),
        (_gap, r"guie-emoji-train-03-\*\.tfrec is missing"),
        (_last_is_missing, r"the shards hold 5,432 images, emoji\.csv has 6,204"),
        (_truncated, r"guie-emoji-train-02-776\.tfrec: record \d+ at byte \d+: .*truncated"),
        (_half_a_table, r"the shards hold 6,204 images, emoji\.csv has 2,999"),
        (_other_table, r"do not belong together: image 0 has label 675 and is \d+ "),
        (_no_csv, r"emoji\.csv is damaged"),
    ],
)
def test_incomplete_data_are_named_with_a_remedy(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(GuieError, match=message) as error:
        list(Emoji(root=copy).rows())
    assert "leave root out to use the data that come with guie-emoji" in str(error.value)


def test_a_damaged_record_is_passed_over_and_told(copy: Path, rows: list[Row], drawings: list[Drawing]) -> None:
    shard = copy / "guie-emoji-train-01-776.tfrec"
    place = next(number for number, row in enumerate(rows) if Path(row.image.path).name == shard.name) + 5
    content = bytearray(shard.read_bytes())
    content[rows[place].image.offset + 300] ^= 0xFF
    shard.write_bytes(content)
    dataset = Emoji(root=copy)
    there = list(dataset.rows())
    assert [row.label for row in there] == [row.label for number, row in enumerate(rows) if number != place]
    assert [(item.place, item.bad) for item in dataset.left_out()] == [(f"{shard}, record 5", True)]
    assert "checksum" in dataset.left_out()[0].reason
