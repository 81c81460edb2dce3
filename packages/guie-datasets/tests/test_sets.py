"""The five sets of the recipe, laid out by hand as they come out of their archives.

What rows there must be is computed with pandas, as the original scripts do it, from what was written.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import Food101 as Other

from guie_core import GuieError, UsageError, build
from guie_datasets import Dataset, ImageRef, Row, prepare
from guie_datasets.fetching.download import fetch
from guie_datasets.sets.food101 import Food101
from guie_datasets.sets.glr2021 import GLR2021
from guie_datasets.sets.gpr1200 import GPR1200
from guie_datasets.sets.products10k import Products10K
from guie_datasets.sets.universal130k import KINDS, Universal130k
from guie_datasets.testing import DatasetContract

PRODUCTS = "guie-products10k-tfrecords-label-1000-10690"
LANDMARKS = "guie-glr2021mini-tfrecords-label-10691-17690"


def jpeg(comment: str) -> bytes:
    """A small image whose bytes no other has."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (90, 40, len(comment))).save(buffer, "JPEG", comment=comment.encode())
    return buffer.getvalue()


def shards(folder: Path, name: str, labels: list[list[int]]) -> list[tuple[bytes, int]]:
    """A shard for each list of labels, written by TensorFlow; returns the records in order."""
    import tensorflow as tf

    folder.mkdir(parents=True)
    written = []
    for shard, there in enumerate(labels):
        with tf.io.TFRecordWriter(str(folder / f"guie-{name}-train-{shard:02d}-{len(there)}.tfrec")) as writer:
            for number, label in enumerate(there):
                image = jpeg(f"{name} {shard} {number}")
                example = tf.train.Example()
                example.features.feature["image/encoded"].bytes_list.value.append(image)
                example.features.feature["image/class/label"].int64_list.value.append(label)
                writer.write(example.SerializeToString())
                written.append((image, label))
    return written


def products10k(data: Path) -> list[tuple[bytes, int]]:
    draw = random.Random(1)
    return shards(data / PRODUCTS, "products10k", [[draw.randint(1000, 1009) for _ in range(12)] for _ in range(2)])


def glr2021(data: Path) -> list[tuple[bytes, int]]:
    draw = random.Random(2)
    return shards(data / LANDMARKS, "glr2021", [[draw.randint(10691, 10720) for _ in range(30)] for _ in range(3)])


GPR_CLASSES = (3, 29, 150, 205, 399, 400, 650, 801, 1000, 1199)


def gpr1200(data: Path, images: int = 10) -> None:
    folder = data / "GPR1200"
    (folder / "images").mkdir(parents=True)
    (folder / "GPR1200").mkdir()
    for label in GPR_CLASSES:
        for number in range(images):
            name = f"{label}_{number * 7919 % 1000}_x.jpg"
            (folder / "images" / name).write_bytes(jpeg(name))
    texts = {str(label): f"thing {label}" for label in range(1200)}
    (folder / "GPR1200" / "GPR1200_categoryNumber_to_text.json").write_text(json.dumps(texts))


FOOD = {"apple_pie": 41, "baby_back_ribs": 33, "zuppa": 12, "baklava": 30}


def food101(data: Path, *nested: str) -> None:
    folder = Path(data, "food-101", *nested)
    draw = random.Random(3)
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name in sorted(FOOD):
        (folder / "images" / name).mkdir(parents=True)
        ids = sorted(str(number) for number in draw.sample(range(100, 9_999_999), FOOD[name]))
        for key in ids:
            (folder / "images" / name / f"{key}.jpg").write_bytes(jpeg(f"{name} {key}"))
        tests = draw.sample(ids, FOOD[name] // 4)
        splits["test"][name] = [f"{name}/{key}" for key in ids if key in tests]
        splits["train"][name] = [f"{name}/{key}" for key in ids if key not in tests]
    (folder / "meta").mkdir()
    for split, keys in splits.items():
        (folder / "meta" / f"{split}.json").write_text(json.dumps(keys))
        (folder / "meta" / f"{split}.txt").write_text("\n".join(key for name in keys.values() for key in name))
    (folder / "meta" / "classes.txt").write_text("\n".join(sorted(FOOD)))


def universal130k(data: Path) -> pd.DataFrame:
    draw = random.Random(4)
    lines = []
    for number in range(44):
        kind = KINDS[draw.randrange(11)] if number >= 11 else KINDS[10 - number]
        lines.append((kind, f"{number * 7919 % 1000:04d}.jpg"))
        (data / "130k" / kind).mkdir(parents=True, exist_ok=True)
        (data / "130k" / kind / lines[-1][1]).write_bytes(jpeg(f"{number}"))
    table = pd.DataFrame(lines, columns=["label", "image_name"])
    table.to_csv(data / "130k" / "train.csv", index=False)
    return table


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def without(path: str, data: Path) -> str:
    return path.removeprefix(f"{data}/")


# --- contracts


class TestProducts10K(DatasetContract):
    @pytest.fixture
    def dataset(self, data: Path) -> Dataset:
        products10k(data)
        return Products10K(complete=False)


class TestGLR2021(DatasetContract):
    @pytest.fixture
    def dataset(self, data: Path) -> Dataset:
        glr2021(data)
        return GLR2021(drop_classes=5, complete=False)


class TestGPR1200(DatasetContract):
    @pytest.fixture
    def dataset(self, data: Path) -> Dataset:
        gpr1200(data, 3)
        (data / "GPR1200" / "images" / "cover.jpg").write_bytes(jpeg("cover"))
        return GPR1200(without=["iNat"], complete=False)


class TestFood101(DatasetContract):
    @pytest.fixture
    def dataset(self, data: Path) -> Dataset:
        food101(data)
        next((data / "food-101" / "images" / "zuppa").iterdir()).unlink()
        return Food101(max_images=30)


class TestUniversal130k(DatasetContract):
    @pytest.fixture
    def dataset(self, data: Path) -> Dataset:
        universal130k(data)
        return Universal130k()


# --- all of them, as the recipe unites them


def original(data: Path, products: list[tuple[bytes, int]], landmarks: list[tuple[bytes, int]]) -> pd.DataFrame:
    """image, label, category of every row, in order, by the steps of the original's preprocess_*.py and training."""
    df = pd.DataFrame(
        [(image, label, "products10k") for image, label in products]
        + [(image, label, "glr2021") for image, label in landmarks],
        columns=["image", "label", "category"],
    )
    cut = df[df.category == "glr2021"]
    kept = pd.Series(cut.label.unique()).sample(n=cut.label.nunique() - 7, random_state=0)
    df = pd.concat([df[df.category != "glr2021"], cut[cut.label.isin(kept)]], ignore_index=True)

    gpr = pd.DataFrame({"path": sorted(map(str, (data / "GPR1200" / "images").iterdir()))})
    gpr["number"] = gpr.path.map(lambda path: int(Path(path).stem.split("_")[0]))
    blocks = ["Landmarks", "iNat", "sketch", "instre", "sop", "face"]
    gpr["category"] = gpr.number.map(lambda number: f"GPR1200_{blocks[number // 200]}")
    gpr = gpr[gpr.category != "GPR1200_iNat"].reset_index(drop=True)
    gpr["label"] = pd.factorize(gpr.number, sort=True)[0] + df.label.max() + 1
    gpr["image"] = gpr.path.map(lambda path: Path(path).read_bytes())
    df = pd.concat([df, gpr[df.columns]]).reset_index(drop=True)

    food = pd.DataFrame({"path": sorted(map(str, (data / "food-101" / "images").glob("*/*.jpg")))})
    food["label"] = pd.factorize(food.path.map(lambda path: Path(path).parent.name), sort=True)[0]
    capped = [
        group.sample(n=30, random_state=0) if len(group) > 30 else group
        for _, group in food.groupby("label", sort=True)
    ]
    food = pd.concat(capped, ignore_index=True)
    food["label"] += df.label.max() + 1
    food["category"] = "food101"
    food["image"] = food.path.map(lambda path: Path(path).read_bytes())
    df = pd.concat([df, food[df.columns]]).reset_index(drop=True)

    kinds = pd.read_csv(data / "130k" / "train.csv")
    kinds["image"] = [(data / "130k" / row.label / row.image_name).read_bytes() for row in kinds.itertuples()]
    kinds["category"] = kinds.label
    kinds["label"] = kinds.label.map({kind: number for number, kind in enumerate(KINDS)}) + df.label.max() + 1
    df = pd.concat([df, kinds[df.columns]]).reset_index(drop=True)
    df["label"] = pd.factorize(df.label, sort=True)[0]
    return df


def test_the_union_has_the_rows_of_the_original_scripts(data: Path) -> None:
    products, landmarks = products10k(data), glr2021(data)
    gpr1200(data)
    food101(data)
    universal130k(data)
    settings = [
        {"type": "products10k", "complete": False},
        {"type": "glr2021", "drop_classes": 7, "complete": False},
        {"type": "gpr1200", "without": ["iNat"], "complete": False},
        {"type": "food101", "max_images": 30},
        {"type": "universal130k"},
    ]
    datasets: list[Dataset] = [build("datasets", each) for each in settings]
    manifest, quarantine = prepare(datasets)
    wanted = original(data, products, landmarks)
    assert quarantine.count("bad") == 0
    assert [ref.read() for ref in manifest.images()] == wanted.image.tolist()
    assert manifest.column("label").tolist() == wanted.label.tolist()
    assert manifest.column("category").tolist() == wanted.category.tolist()
    assert len(landmarks) > (wanted.category == "glr2021").sum() > 0
    about = manifest.provenance["datasets"]
    assert [each["type"].rpartition(":")[2] for each in about] == [
        "Products10K",
        "GLR2021",
        "GPR1200",
        "Food101",
        "Universal130k",
    ]
    assert about[1]["drop_classes"] == 7
    assert about[2]["without"] == ["iNat"]
    assert about[3]["max_images"] == 30
    reasons = [re.sub(r"\d{2,}", "N", finding.reason) for finding in quarantine]
    assert reasons == [
        "2 of the set's N shards",
        "3 of the set's N shards",
        "7 classes are dropped, as drop_classes says (seed 0)",
        "N images of the blocks iNat, which are to be left out",
        "N of N,N classes have no images, the first is class 0".replace("N,N", "1,N"),
        "N of its images are more than max_images allows",
        "3 of its images are more than max_images allows",
    ]


# --- where they lie


LAYOUTS: dict[str, tuple[Callable[[Path], object], type[Dataset], str, tuple[str, ...]]] = {
    "products10k": (products10k, Products10K, PRODUCTS, ()),
    "glr2021": (glr2021, GLR2021, LANDMARKS, ()),
    "gpr1200": (gpr1200, GPR1200, "GPR1200", ("images", "GPR1200")),
    "food101": (food101, Food101, "food-101", ("images", "meta")),
    "universal130k": (universal130k, Universal130k, "130k", ()),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_sensible_level_is_accepted(name: str, data: Path, tmp_path: Path) -> None:
    lay_out, dataset, folder, inside = LAYOUTS[name]
    lay_out(data)
    some = {} if name == "universal130k" else {"complete": False}
    rows = list(dataset(**some).rows())
    assert rows
    for root in (data, str(data / folder), *(data / folder / each for each in inside)):
        assert list(dataset(root, **some).rows()) == rows  # type: ignore[call-arg]
    # nested once more, as some zips are
    nested = tmp_path / "other" / folder
    nested.mkdir(parents=True)
    (data / folder).rename(nested / folder)
    for root in (nested, nested.parent):
        moved = [without(row.image.path, nested) for row in dataset(root, **some).rows()]  # type: ignore[call-arg]
        assert moved == [without(row.image.path, data) for row in rows]


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_there_is_named(name: str, data: Path) -> None:
    _, dataset, folder, _ = LAYOUTS[name]
    (data / "something-else").mkdir()
    with pytest.raises(GuieError) as caught:
        list(dataset().rows())
    text = str(caught.value)
    assert text.startswith(f"the data set {name!r} is not there. Looked for\n  {data}/{folder}/")
    assert f"\n{data} holds something-else.\n" in text
    assert f"`guie data download {name}`" in text
    assert "https://" in text
    with pytest.raises(GuieError, match=r"nowhere: No such file or directory"):
        list(dataset(data / "nowhere").rows())  # type: ignore[call-arg]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_that_holds_something_else_is_told_of(name: str, data: Path) -> None:
    _, dataset, folder, _ = LAYOUTS[name]
    own = data / folder.partition("/")[0]
    (own / "something-else").mkdir(parents=True)
    with pytest.raises(GuieError) as caught:
        list(dataset().rows())
    assert f"the data set {name!r} is laid out in another way than it comes. Looked for" in str(caught.value)
    assert f"\n{own} holds something-else" in str(caught.value)


def test_landmarks_with_the_labels_of_another_set_are_bad_one_by_one(data: Path) -> None:
    shards(data / LANDMARKS, "glr2021", [[1000, 1001, 1002]])
    with pytest.raises(GuieError, match=r"3 of 3 images are bad.*\n.*label 1000 is not in 10691\.\.17690"):
        prepare([GLR2021(drop_classes=2, complete=False)])


def test_sets_name_what_they_are_fetched_as(data: Path) -> None:
    for lay_out, dataset, _, _ in LAYOUTS.values():
        downloads = dataset.downloads  # type: ignore[attr-defined]
        assert not any(download.is_there(data) for download in downloads)
        lay_out(data)
        part = [download.in_part(data) for download in downloads]
        assert [download.is_there(data) for download in downloads] == [not text for text in part]
        archive = downloads[0]
        if archive.files == 1:
            assert not any(part)
            continue
        have = sum(1 for _ in archive.target(data).glob(archive.holds))
        assert part[0] == f"{have} of {archive.files:,} files {archive.holds}"
        with pytest.raises(GuieError, match=rf"is there in part: it holds {have} of .* Move it away and run"):
            list(fetch(downloads, data))


# --- which are not complete


def test_all_shards_must_be_there(data: Path) -> None:
    for dataset, name, folder, all_shards in (
        (Products10K, "products10k", PRODUCTS, 20),
        (GLR2021, "glr2021", LANDMARKS, 32),
    ):
        low = dataset.all_labels[0]
        shards(data / folder, name, [[low + number] for number in range(all_shards)])
        assert len(list(dataset().rows())) == all_shards
        last, third = sorted((data / folder).iterdir())[-1], sorted((data / folder).iterdir())[2]
        last.unlink()
        for look in (dataset.rows, dataset.sources):  # plans, which read nothing, look at the sources
            with pytest.raises(GuieError, match=rf"complete:\n  {all_shards - 1} of the set's {all_shards} shards are"):
                list(look(dataset()))
        third.unlink()
        for look in (dataset.rows, dataset.sources):
            with pytest.raises(GuieError, match=rf"not complete:\n  guie-{name}-train-02-\*.tfrec is missing\n"):
                list(look(dataset()))
        some = dataset(complete=False)
        assert len(some.sources()) == all_shards - 2
        assert len(list(some.rows())) == all_shards - 2
        assert [item.reason for item in some.left_out()] == [f"{all_shards - 2} of the set's {all_shards} shards"]


def test_all_images_of_gpr1200_must_be_there(data: Path) -> None:
    folder = data / "GPR1200" / "images"
    folder.mkdir(parents=True)
    for label in range(1200):
        for number in range(10):
            (folder / f"{label}_{number}.jpg").touch()
    assert len(list(GPR1200().rows())) == 12_000
    (folder / "7_3.jpg").unlink()
    for look in (GPR1200.rows, GPR1200.sources):
        with pytest.raises(GuieError, match=r"not complete:\n  class 7 has 9 images, not 10\nFetch what is missing"):
            list(look(GPR1200()))
    assert len(GPR1200(complete=False).sources()) == 11_999
    for label in range(200, 400):
        for number in range(10):
            (folder / f"{label}_{number}.jpg").unlink()
    with pytest.raises(
        GuieError, match=r"200 of 1,200 classes have no images, the first is class 200\n  class 7 has 9"
    ):
        list(GPR1200().rows())
    (folder / "7_4.jpg").rename(folder / "7_3.jpg")
    (folder / "7_4.jpg").touch()
    assert len(list(GPR1200(without=["iNat"]).rows())) == 10_000


def test_food101_without_meta_must_have_all_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    food101(data)
    assert list(Food101().rows())  # as meta says
    shutil.rmtree(data / "food-101" / "meta")
    for look in (Food101.rows, Food101.sources):
        with pytest.raises(
            GuieError, match=r"complete:\n  116 of the set's 101,000 images, of 4 of its 101 classes\nFetch"
        ):
            list(look(Food101()))
    some = Food101(complete=False)
    assert len(list(some.rows())) == 116
    assert [item.reason for item in some.left_out()] == ["116 of the set's 101,000 images, of 4 of its 101 classes"]
    monkeypatch.setattr("guie_datasets.sets.food101._CLASSES", 4)
    monkeypatch.setattr("guie_datasets.sets.food101._IMAGES", 12)
    whole = Food101()
    assert len(list(whole.rows())) == 116
    assert not whole.left_out()


# --- each of them


def test_labels_out_of_range_are_bad(data: Path) -> None:
    shards(data / PRODUCTS, "products10k", [[999, 1000, 10690, 10691]])
    shards(data / LANDMARKS, "glr2021", [[10690, 10691, 17690, 17691, 10800]])
    for dataset, good, bad in (
        (Products10K(complete=False), [1000, 10690], [999, 10691]),
        (GLR2021(complete=False), [10691, 17690, 10800], [10690, 17691]),
    ):
        assert [row.label for row in dataset.rows()] == good
        reasons = [item.reason for item in dataset.left_out() if item.bad]
        assert [int(reason.split()[1]) for reason in reasons] == bad
    dropped = GLR2021(drop_classes=1, complete=False)
    assert len(list(dropped.rows())) == 2
    assert sum(item.bad for item in dropped.left_out()) == 2


def test_shards_of_other_sets_in_the_folder_are_not_taken(data: Path) -> None:
    products = products10k(data)
    for path in sorted((data / PRODUCTS).iterdir()):
        path.with_name(path.name.replace("products10k", "glr2021")).write_bytes(path.read_bytes())
    assert len(list(Products10K(complete=False).rows())) == len(products)


def test_landmarks_are_dropped_the_same_though_a_record_is_damaged(data: Path) -> None:
    glr2021(data)
    before = {row.label for row in GLR2021(drop_classes=7, complete=False).rows()}
    path = sorted((data / LANDMARKS).iterdir())[0]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    dataset = GLR2021(drop_classes=7, complete=False)
    after = [row.label for row in dataset.rows()]
    assert set(after) <= before
    assert [item.reason.rpartition(": ")[2] for item in dataset.left_out() if item.bad] == ["the file is damaged"]
    assert {row.label for row in GLR2021(drop_classes=7, seed=1, complete=False).rows()} != before


def test_gpr1200(data: Path) -> None:
    gpr1200(data)
    rows = list(GPR1200(complete=False).rows())
    names = [Path(row.image.path).name for row in rows]
    assert names == sorted(names)
    assert names[0].startswith("1000_")  # order of names, not of numbers
    assert [row.label for row in rows] == [int(name.split("_")[0]) for name in names]
    assert {(row.label, row.category) for row in rows} >= {
        (150, "GPR1200_Landmarks"),
        (205, "GPR1200_iNat"),
        (399, "GPR1200_iNat"),
        (400, "GPR1200_sketch"),
        (650, "GPR1200_instre"),
        (801, "GPR1200_sop"),
        (1199, "GPR1200_face"),
    }
    assert {row.name for row in rows if row.label == 29} == {"thing 29"}
    (data / "GPR1200" / "GPR1200" / "GPR1200_categoryNumber_to_text.json").unlink()
    assert [Row(row.image, row.label, row.source, row.category) for row in rows] == list(GPR1200(complete=False).rows())


def test_gpr1200_missing_and_foreign_files(data: Path) -> None:
    gpr1200(data)
    images = data / "GPR1200" / "images"
    (images / sorted(path.name for path in images.iterdir())[0]).unlink()
    for name in ("1200_a.jpg", "cover.jpg", "_a.jpg", "Thumbs.db", ".hidden.jpg"):
        (images / name).write_bytes(jpeg(name))
    (data / "GPR1200" / "GPR1200" / "GPR1200_categoryNumber_to_text.json").write_text("[1, 2")
    dataset = GPR1200(complete=False)
    assert dataset.count() == 10 * len(GPR_CLASSES) - 1 + 3
    assert len(list(dataset.rows())) == 10 * len(GPR_CLASSES) - 1
    left_out = {(Path(item.place).name, item.bad): item.reason for item in dataset.left_out()}
    assert {place for place, bad in left_out if bad} == {"1200_a.jpg", "cover.jpg", "_a.jpg"}
    assert "no table of names" in left_out["GPR1200_categoryNumber_to_text.json", False]
    assert "class 1000 has 9 images, not 10" in [item.reason for item in dataset.left_out()]


def test_food101_against_torchvision(data: Path) -> None:
    food101(data)
    everything = {row.image: row for row in Food101(split="own").rows()}
    for split in ("train", "test"):
        theirs = Other(data, split=split)
        rows = list(Food101(split=split).rows())  # type: ignore[arg-type]
        assert len(rows) == len(theirs) > 0
        assert [row.image for row in rows] == [ImageRef(str(path)) for path in theirs._image_files]
        assert [row.label for row in rows] == [label for _, label in theirs]
        assert [row.name for row in rows] == [theirs.classes[row.label] for row in rows]
        assert {row.split for row in rows} == {split}
        assert all(everything.pop(row.image) == row for row in rows)
    assert not everything
    assert {row.split for row in Food101().rows()} == {""}


def test_food101_images_that_meta_names_must_be_there(data: Path) -> None:
    food101(data)
    gone = sorted((data / "food-101" / "images" / "zuppa").iterdir())[3]
    gone.unlink()
    (gone.parent / "own.jpg").write_bytes(jpeg("own"))
    (gone.parent / "note.txt").write_text("")
    dataset = Food101()
    assert len(list(dataset.rows())) == sum(FOOD.values()) == dataset.count() - 1
    assert [(item.place, item.bad) for item in dataset.left_out()] == [
        (str(gone.parent / "note.txt"), False),
        (str(gone), True),
    ]
    own = Food101(split="own")
    assert len(list(own.rows())) == sum(FOOD.values()) - 1
    assert [Path(item.place).name for item in own.left_out()] == ["note.txt", "own.jpg", gone.name]
    for name in ("train.txt", "test.txt"):
        (data / "food-101" / "meta" / name).unlink()
    assert len(list(Food101(complete=False).rows())) == sum(FOOD.values())
    with pytest.raises(GuieError, match=r"train.txt: not there, and split='test' needs it"):
        list(Food101(split="test").rows())


def test_universal130k(data: Path) -> None:
    table = universal130k(data)
    rows = list(Universal130k().rows())
    assert [row.name for row in rows] == table.label.tolist()
    assert [Path(row.image.path).name for row in rows] == table.image_name.tolist()
    assert {(row.label, row.category) for row in rows} == set(enumerate(KINDS))
    manifest, _ = prepare([Universal130k()])
    assert manifest.column("label").tolist() == [KINDS.index(label) for label in table.label]


def test_universal130k_bad_rows(data: Path) -> None:
    table = universal130k(data)
    (data / "130k" / table.label[0] / table.image_name[0]).unlink()
    with open(data / "130k" / "train.csv", "a") as file:
        file.write("boats,1.jpg\ncars,../../secret.jpg\ncars\ntoys,\n")
    manifest, quarantine = prepare([Universal130k()], max_bad=0.2)
    assert len(manifest) == len(table) - 1
    bad = [(without(finding.place, data), finding.reason) for finding in quarantine if finding.kind == "bad"]
    assert bad == [
        (f"130k/{table.label[0]}/{table.image_name[0]}", "cannot be read: No such file or directory"),
        ("130k/train.csv, line 46", "its label is 'boats', not one of the eleven"),
        ("130k/train.csv, line 47", f"'cars/../../secret.jpg' leads out of the folder {data / '130k'}"),
        ("130k/train.csv, line 48", "1 values for 2 columns"),
        ("130k/train.csv, line 49", "it has no path"),
    ]


def test_the_table_of_another_set_is_refused(data: Path) -> None:
    (data / "130k").mkdir()
    (data / "130k" / "train.csv").write_text("name,class,group\n1.jpg,2,3\n")
    with pytest.raises(GuieError, match=r"its columns are 'name', 'class', 'group', not label, image_name"):
        list(Universal130k().rows())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPR1200(without=["inat"]), "Did you mean 'iNat'"),
        (lambda: GPR1200(without="iNat"), "without is a list of blocks"),
        (lambda: Food101(split="valid"), "split must be one of all, train, test, own"),  # type: ignore[arg-type]
        (lambda: Food101(max_images=0), "max_images must be 1 or more"),
        (lambda: GLR2021(drop_classes=-1), "drop_classes must be 0 or more"),
    ],
)
def test_wrong_options(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_not_all_landmarks_can_be_dropped(data: Path) -> None:
    glr2021(data)
    with pytest.raises(UsageError, match=r"of \d+ classes 7000 cannot be dropped"):
        list(GLR2021(drop_classes=7000, complete=False).rows())
