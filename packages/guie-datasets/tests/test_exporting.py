"""Exports: read back by others than guie (TensorFlow, webdataset, pandas, Pillow), resumed, and prepared again."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from guie_core import GuieError, Interrupted, UsageError
from guie_core.interrupt import interruptible
from guie_core.progress import Bar
from guie_datasets import ClassFolders, Dataset, ImageRef, Manifest, Row, TFRecordDataset, exporting, prepare, tfrecord
from guie_datasets.exporting import MARK, export, png
from guie_datasets.layouts import FORMATS
from guie_datasets.sets.tables import Table
from guie_datasets.sets.webdataset import WebDataset


def jpeg(seed: int, width: int = 24, height: int = 17) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> list[tuple[bytes, int]]:
    """Two sets of shards as the recipe's, with global labels; returns their images and labels in order."""
    images = [(jpeg(number, 20 + number), 1000 + number % 3) for number in range(7)]
    images += [(jpeg(number, 20 + number), 10691 + 5 * (number % 2)) for number in range(7, 11)]
    tfrecord.write(tmp_path / "products" / "guie-products10k-train-00-4.tfrec", images[:4])
    tfrecord.write(tmp_path / "products" / "guie-products10k-train-01-3.tfrec", images[4:7])
    tfrecord.write(tmp_path / "landmarks" / "guie-glr2021-train-00-4.tfrec", images[7:])
    return images


@pytest.fixture
def recipe(tmp_path: Path, shards: object) -> Manifest:
    sets = [TFRecordDataset(tmp_path / "products", source="products10k", category="products10k")]
    sets += [TFRecordDataset(tmp_path / "landmarks", source="glr2021", category="glr2021")]
    return prepare(sets)[0]


@pytest.fixture
def pictures(tmp_path: Path) -> Manifest:
    """A folder of class folders with names of all kinds."""
    for number, name in enumerate(("a.b", "cats & dogs", "猫")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for image in range(3):
            folder.joinpath(f"photo {image}.v{number}.jpg").write_bytes(jpeg(10 * number + image))
    return prepare([ClassFolders(tmp_path / "pictures", category="thing")])[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARK
    }


def same_images(again: Manifest, before: Manifest) -> None:
    assert again.column("hash").tolist() == before.column("hash").tolist()
    assert again.column("label").tolist() == before.column("label").tolist()


# --- PNG


def test_png_has_the_original_s_layout(
    recipe: Manifest, shards: Sequence[tuple[bytes, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = export(recipe, "png", "./data/tfrec2png")
    assert (len(found), found.images) == (0, 11)
    expected = [f"products10k/guie-products10k-train-00-4/{n}-{label}.png" for n, (_, label) in enumerate(shards[:4])]
    expected += [
        f"products10k/guie-products10k-train-01-3/{n + 4}-{label}.png" for n, (_, label) in enumerate(shards[4:7])
    ]
    expected += [f"glr2021/guie-glr2021-train-00-4/{n + 7}-{label}.png" for n, (_, label) in enumerate(shards[7:])]
    assert sorted(tree(Path("data/tfrec2png"))) == sorted([*expected, "label-noresize.csv"])
    frame = pd.read_csv("data/tfrec2png/label-noresize.csv")
    assert frame.columns.tolist() == ["path", "label"]
    assert frame["path"].tolist() == [f"./data/tfrec2png/{name}" for name in expected]
    assert frame["label"].tolist() == [label for _, label in shards]
    for path, (data, _) in zip(frame["path"], shards, strict=True):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            assert np.array_equal(image, Image.open(io.BytesIO(data)))


def test_png_by_tensorflow_has_tensorflow_s_pixels(
    recipe: Manifest, shards: Sequence[tuple[bytes, int]], tmp_path: Path
) -> None:
    import tensorflow as tf

    export(recipe, "png", tmp_path / "out", method="tensorflow")
    paths = pd.read_csv(tmp_path / "out" / "label-noresize.csv")["path"]
    for path, (data, _) in zip(paths, shards, strict=True):
        original = tf.cast(tf.image.decode_jpeg(data, channels=3), tf.float32) / 255.0 * 255.0  # as the original does
        assert np.array_equal(Image.open(path), original.numpy().astype(np.uint8))


def test_png_of_class_folders(pictures: Manifest, tmp_path: Path) -> None:
    export(pictures, "png", tmp_path / "out")
    assert sorted(tree(tmp_path / "out"))[:3] == [
        "label-noresize.csv",
        "pictures/a.b/0-0.png",
        "pictures/a.b/1-0.png",
    ]
    assert len(tree(tmp_path / "out")) == 10


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64)])
def test_png_keeps_every_pixel(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    for image in (random, np.zeros_like(random), random[:, ::-1]):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(image)))).transpose(2, 0, 1), image)


# --- round trips


def test_folder_and_back(pictures: Manifest, tmp_path: Path) -> None:
    export(pictures, "folder", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["a.b", "cats & dogs", "猫"]
    assert (tmp_path / "out" / "猫" / "6-photo 0.v2.jpg").is_file()
    again, found = prepare([ClassFolders(tmp_path / "out")])
    assert len(found) == 0
    same_images(again, pictures)
    assert again.column("name").tolist() == pictures.column("name").tolist()


def test_folder_of_shards_has_numbers_for_names(recipe: Manifest, tmp_path: Path) -> None:
    export(recipe, "folder", tmp_path / "out")
    assert sorted(tree(tmp_path / "out"))[:3] == ["0/00.jpg", "0/03.jpg", "0/06.jpg"]
    again = prepare([ClassFolders(tmp_path / "out")])[0]
    order = np.argsort(recipe.column("label"), kind="stable")
    same_images(again, recipe.select(order))


def test_names_that_do_not_sort_as_their_labels_get_the_label_before_them(tmp_path: Path) -> None:
    names = ["zebra", "../apes/x", "", "ape", "Ape", *[f"n{number:02d}" for number in range(7)]]
    paths = [tmp_path / f"{number}.jpg" for number in range(len(names))]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(number))
    rows = [Row(ImageRef(str(path)), label, "s", name=names[label]) for label, path in enumerate(paths)]
    manifest = prepare([_Given(rows)])[0]
    export(manifest, "folder", tmp_path / "out")
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders[:5] == ["00-zebra", "01-_apes_x", "02", "03-ape", "04-Ape"]
    same_images(prepare([ClassFolders(tmp_path / "out")])[0], manifest)


def test_suffixes_are_those_of_the_formats(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    suffixes = ["jpg", "png", "gif", "bmp", "tif", "jp2", "webp", "avif", "ppm"]
    for suffix in suffixes:
        image.save(folder / f"{suffix}.{suffix}")
    (folder / "ppm.ppm").rename(folder / "ppm.jpg")
    manifest = prepare([ClassFolders(tmp_path / "pictures")])[0]
    export(manifest, "folder", tmp_path / "out")
    for suffix in suffixes:
        assert len(list((tmp_path / "out" / "a").glob(f"*-{suffix}.{suffix}"))) == 1


def test_hard_links(pictures: Manifest, tmp_path: Path) -> None:
    export(pictures, "folder", tmp_path / "out", link=True)
    copies = [path for path in (tmp_path / "out").rglob("*.jpg")]
    assert {path.stat().st_ino for path in copies} == {os.stat(ref.path).st_ino for ref in pictures.images()}


def test_csv(pictures: Manifest, recipe: Manifest, tmp_path: Path) -> None:
    export(pictures, "csv", tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "label.csv", keep_default_na=False)
    assert frame.columns.tolist()[:3] == ["path", "label", "category"]
    assert not {"offset", "length", "split", "role", "hash"} & set(frame)
    assert frame["path"].tolist() == [ref.path for ref in pictures.images()]
    for name in ("label", "category", "source", "name", "width", "height"):
        assert frame[name].tolist() == pictures.column(name).tolist()
    again = prepare([Table(tmp_path / "out" / "label.csv")])[0]
    same_images(again, pictures)
    assert again.digest == pictures.digest
    export(recipe, "csv", tmp_path / "shards")
    frame = pd.read_csv(tmp_path / "shards" / "label.csv")
    for path, offset, length, digest in zip(
        frame["path"], frame["offset"], frame["length"], recipe.column("hash"), strict=True
    ):
        data = Path(path).read_bytes()[offset : offset + length]
        assert hashlib.blake2b(data, digest_size=16).hexdigest().encode() == digest
    again = prepare([Table(tmp_path / "shards" / "label.csv")])[0]
    assert again.digest == recipe.digest
    assert list(again.images()) == list(recipe.images())


def test_tfrecord_is_read_by_tensorflow_and_prepared_again(pictures: Manifest, tmp_path: Path) -> None:
    import tensorflow as tf

    out = tmp_path / "out"
    export(pictures, "tfrecord", out, per_shard=4)
    names = ["pictures-train-00-4.tfrec", "pictures-train-01-4.tfrec", "pictures-train-02-1.tfrec"]
    assert list(tree(out)) == ["classes.csv", *names]
    classes = pd.read_csv(out / "classes.csv", keep_default_na=False)
    assert classes.to_dict("list") == {
        "label": [0, 1, 2],
        "name": ["a.b", "cats & dogs", "猫"],
        "source": ["pictures"] * 3,
        "category": ["thing"] * 3,
    }
    features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    features["image/class/label"] = tf.io.FixedLenFeature([], tf.int64)
    records = tf.data.TFRecordDataset([str(out / name) for name in names]).map(
        lambda record: tf.io.parse_single_example(record, features)
    )
    read = [(r["image/encoded"].numpy(), int(r["image/class/label"])) for r in records]
    assert read == [
        (ref.read(), label) for ref, label in zip(pictures.images(), pictures.column("label").tolist(), strict=True)
    ]
    same_images(prepare([TFRecordDataset(out, source="pictures")])[0], pictures)


def test_tfrecord_of_several_sources_is_named_after_the_folder(recipe: Manifest, tmp_path: Path) -> None:
    export(recipe, "tfrecord", tmp_path / "my set")
    assert list(tree(tmp_path / "my set")) == ["classes.csv", "my set-train-00-11.tfrec"]
    same_images(prepare([TFRecordDataset(tmp_path / "my set", source="x")])[0], recipe)


def test_webdataset_is_read_by_webdataset(recipe: Manifest, tmp_path: Path) -> None:
    import webdataset

    export(recipe, "webdataset", tmp_path / "out", per_shard=6)
    assert list(tree(tmp_path / "out")) == ["out-000000.tar", "out-000001.tar"]
    url = str(tmp_path / "out" / "out-{000000..000001}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [sample["cls"] for sample in samples] == recipe.column("label").tolist()
    assert [sample["json"] for sample in samples] == [
        {"source": source, "category": source} for source in recipe.column("source")
    ]
    encoded = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [sample["jpg"] for sample in encoded] == [ref.read() for ref in recipe.images()]
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    same_images(prepare([WebDataset(shards)])[0], recipe)


# --- what goes wrong


class _Given(Dataset):
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def rows(self) -> Iterator[Row]:
        return iter(self._rows)


@pytest.fixture
def damaged(pictures: Manifest) -> Manifest:
    """One image gone, one changed, since they were prepared."""
    refs = pictures.images()
    Path(refs[1].path).unlink()
    Path(refs[5].path).write_bytes(jpeg(99))
    return pictures


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "csv"])
def test_bad_images_are_listed_and_passed_over(damaged: Manifest, tmp_path: Path, to: Any) -> None:
    out = tmp_path / "out"
    with pytest.raises(GuieError, match=r"2 of 9 images are bad \(22.22%\), more than max_bad") as caught:
        export(damaged, to, out)
    assert f"The whole list is in {out / 'quarantine.csv'}" in str(caught.value)
    found = export(damaged, to, out, max_bad=0.3)
    refs = damaged.images()
    assert [(f.kind, f.place) for f in found] == [("bad", str(refs[1])), ("bad", str(refs[5]))]
    assert [f.reason for f in found] == [
        "cannot be read: No such file or directory",
        "its bytes are not those that were prepared: the file was changed",
    ]
    assert pd.read_csv(out / "quarantine.csv")["place"].tolist() == [str(refs[1]), str(refs[5])]
    good = damaged.select([0, 2, 3, 4, 6, 7, 8])
    if to == "png":
        assert len(pd.read_csv(out / "label-noresize.csv")) == len(list(out.rglob("*.png"))) == 7
    elif to == "folder":
        same_images(prepare([ClassFolders(out)])[0], good)
    elif to == "tfrecord":
        assert [path.name for path in out.glob("*.tfrec")] == ["pictures-train-00-7.tfrec"]
        same_images(prepare([TFRecordDataset(out, source="x")])[0], good)


def test_what_was_bad_and_is_mended_is_exported_then(damaged: Manifest, tmp_path: Path) -> None:
    export(damaged, "tfrecord", tmp_path / "out", max_bad=0.3)
    Path(damaged.images()[1].path).write_bytes(jpeg(1))
    Path(damaged.images()[5].path).write_bytes(jpeg(12))
    assert len(export(damaged, "tfrecord", tmp_path / "out")) == 0
    assert list(tree(tmp_path / "out")) == [
        "classes.csv",
        "pictures-train-00-9.tfrec",
    ]  # and no quarantine.csv any more


@pytest.mark.parametrize("to", ["png", "folder", "tfrecord", "webdataset"])
def test_stopped_and_repeated_it_is_as_if_it_had_not_been(
    pictures: Manifest, tmp_path: Path, to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"per_shard": 2} if to in ("tfrecord", "webdataset") else {}
    export(pictures, to, tmp_path / "whole" / "set", **shards)
    with interruptible() as stop:

        class Stopping(Bar):
            def advance(self, count: int = 1) -> None:
                super().advance(count)
                if self.count == 5:
                    stop.request()

        monkeypatch.setattr(exporting, "bar", lambda total, text: Stopping(total, text, "image"))
        with pytest.raises(Interrupted, match="stopped after 5 of 9 images; the same command goes on from there"):
            export(pictures, to, tmp_path / "set", workers=1, **shards)
    monkeypatch.undo()
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.*") if path.is_file()}
    assert 2 < len(there) < 10
    assert not [path for path in there if path.suffix == ".tmp"]
    export(pictures, to, tmp_path / "set", **shards)
    expected = {name: data.replace(b"/whole/", b"/") for name, data in tree(tmp_path / "whole" / "set").items()}
    assert tree(tmp_path / "set") == expected
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())


def test_a_folder_that_holds_something_else_is_left_alone(pictures: Manifest, recipe: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.joinpath("mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"out is there and not empty. Name a new folder"):
        export(pictures, "png", out)
    out.joinpath("mine.txt").unlink()
    export(pictures, "tfrecord", out, per_shard=5)
    for manifest, to, options in [
        (recipe, "tfrecord", {"per_shard": 5}),
        (pictures, "png", {}),
        (pictures, "tfrecord", {"per_shard": 6}),
        (pictures.select(range(8)), "tfrecord", {"per_shard": 5}),
    ]:
        with pytest.raises(UsageError, match="out holds another export: of other images, in another format or"):
            export(manifest, to, out, **options)  # type: ignore[arg-type]
    (tmp_path / "label.txt").write_text("")
    with pytest.raises(UsageError, match=r"label.txt is a file; name a folder"):
        export(pictures, "csv", tmp_path / "label.txt")


def test_classes_that_were_renamed_are_another_export(pictures: Manifest, tmp_path: Path) -> None:
    export(pictures, "folder", tmp_path / "out")
    renamed = pictures.with_column("name", [f"x{label}" for label in pictures.column("label")])
    assert renamed.digest == pictures.digest
    with pytest.raises(UsageError, match="out holds another export"):
        export(renamed, "folder", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["a.b", "cats & dogs", "猫"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[" * 10**5])
def test_a_damaged_mark_is_that_of_another_export(pictures: Manifest, tmp_path: Path, damage: bytes) -> None:
    export(pictures, "folder", tmp_path / "out")
    (tmp_path / "out" / MARK).write_bytes(damage)
    with pytest.raises(UsageError, match="out holds another export"):
        export(pictures, "folder", tmp_path / "out")


def test_damaged_shards_are_written_again(pictures: Manifest, tmp_path: Path) -> None:
    export(pictures, "webdataset", tmp_path / "out", per_shard=5)
    whole = tree(tmp_path / "out")
    first = next(iter(sorted((tmp_path / "out").glob("*.tar"))))
    data = first.read_bytes()
    with tarfile.open(first) as tar:
        last = tar.getmembers()[-1]
    for damaged in (b"", data[:100], data[:1000], data[: last.offset], data[: last.offset_data], b"x" * len(data)):
        first.write_bytes(damaged)
        export(pictures, "webdataset", tmp_path / "out", per_shard=5)
        assert tree(tmp_path / "out") == whole


def test_splits(pictures: Manifest, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"the manifest has no splits\. Experiments make them: .*stages/split/manifest"
    ):
        export(pictures, "csv", tmp_path / "out", split="test")
    divided = pictures.with_column("split", ["train"] * 6 + ["test"] * 3)
    with pytest.raises(UsageError, match=r"there is no split 'tst'. Did you mean 'test'\? It has: 'train', 'test'"):
        export(divided, "csv", tmp_path / "out", split="tst")
    export(divided, "folder", tmp_path / "out", split="test")
    assert [path.split("/")[0] for path in tree(tmp_path / "out")] == ["猫"] * 3


def test_wrong_settings(pictures: Manifest, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no format 'pgn' to export to. Did you mean 'png'\? The formats are png, folder"
    ):
        export(pictures, "pgn", tmp_path / "out")  # type: ignore[arg-type]
    for to, options in (
        ("png", {"per_shard": 3, "link": True}),
        ("csv", {"method": "full"}),
        ("folder", {"method": "full"}),
    ):
        with pytest.raises(UsageError, match=f"'{to}' takes no {' and no '.join(options)}"):
            export(pictures, to, tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="per_shard must be 1 or more, not 0"):
        export(pictures, "tfrecord", tmp_path / "out", per_shard=0)
    with pytest.raises(UsageError, match="no decoding method 'fast'"):
        export(pictures, "png", tmp_path / "out", method="fast")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said(pictures: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    export(pictures.select([0]), "png", tmp_path / "first")
    monkeypatch.setattr(os, "fsync", full)
    for to in ("png", "folder", "csv", "tfrecord", "webdataset"):
        with pytest.raises(GuieError, match=r"The disk is full: .* could not be written"):
            export(pictures, to, tmp_path / to)  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "first" / "pictures")
    with pytest.raises(GuieError, match=r"The disk is full: .*0-0.png could not be written"):
        export(pictures.select([0]), "png", tmp_path / "first")
    assert not list(tmp_path.glob("*/**/*.tmp"))


def test_a_link_to_another_disk(pictures: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(original: str, path: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(GuieError, match=r"no hard link to .* can be made .*: links stay on one disk. Export copies"):
        export(pictures, "folder", tmp_path / "out", link=True)
