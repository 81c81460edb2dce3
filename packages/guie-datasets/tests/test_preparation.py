"""From data sets to a manifest: union of labels, sizes, hashes, and everything that can be wrong with the data."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guie_core import GuieError, Interrupted, UsageError
from guie_core.interrupt import interruptible
from guie_datasets import (
    ClassFolders,
    Dataset,
    ImageRef,
    LeftOut,
    Quarantine,
    Row,
    TFRecordDataset,
    prepare,
    tfrecord,
)
from guie_datasets.preparing import preparation
from guie_datasets.repeats import repeated
from guie_datasets.sets.tables import Table


def jpeg(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Given(Dataset):
    """Rows as given, each of which is counted when it's asked for."""

    def __init__(self, rows: Sequence[Row], left_out: Sequence[LeftOut] = (), count: int | None = None) -> None:
        self._rows, self._left_out, self._count = rows, left_out, count
        self.asked = 0

    def rows(self) -> Iterator[Row]:
        for row in self._rows:
            self.asked += 1
            yield row

    def count(self) -> int | None:
        return self._count

    def left_out(self) -> Sequence[LeftOut]:
        return self._left_out


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve images of different sizes."""
    paths = [tmp_path / f"{number:02d}.jpg" for number in range(12)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(30 + number, 20 + 2 * number, number))
    return paths


def rows(files: Sequence[Path], labels: Sequence[Any], source: str = "s", **more: str) -> list[Row]:
    return [Row(ImageRef(str(path)), label, source, **more) for path, label in zip(files, labels, strict=True)]


def kinds(quarantine: Quarantine) -> list[str]:
    return [finding.kind for finding in quarantine]


def test_columns(files: list[Path]) -> None:
    manifest, quarantine = prepare([Given(rows(files, [5] * 6 + [3] * 6, category="c", split="x", role="query"))])
    assert len(quarantine) == 0
    assert quarantine.images == len(manifest) == 12
    assert [ref.path for ref in manifest.images()] == [str(path) for path in files]
    assert manifest.column("label").tolist() == [1] * 6 + [0] * 6
    assert manifest.column("width").tolist() == [30 + number for number in range(12)]
    assert manifest.column("height").tolist() == [20 + 2 * number for number in range(12)]
    hashes = [hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in files]
    assert manifest.column("hash").astype(str).tolist() == hashes
    for name, value in [("source", "s"), ("category", "c"), ("split", "x"), ("role", "query")]:
        assert set(manifest.column(name)) == {value}


def test_labels_are_offset_by_the_highest_before_and_then_encoded(files: list[Path]) -> None:
    first = Given(rows(files[:4], [1000, 10690, 1000, 1005], "a"))
    second = Given(rows(files[4:8], [0, 7, 7, 2], "b"))
    third = Given(rows(files[8:], [4, 4, 0, 4], "c"))
    manifest, _ = prepare([first, second, third])
    # 1000 1005 10690 | 10691 + (0 2 7) = 10691 10693 10698 | 10699 + (0 4) = 10699 10703
    assert manifest.column("label").tolist() == [0, 2, 0, 1, 3, 5, 5, 4, 7, 7, 6, 7]
    assert [each["label_offset"] for each in manifest.provenance["datasets"]] == [0, 10691, 10699]
    assert manifest.column("source").tolist() == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


def test_order_and_content_do_not_depend_on_the_number_of_workers(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "_BATCH", 1)
    monkeypatch.setattr(preparation, "_CHUNK", 5)  # columns in several pieces
    datasets = [Given(rows(files, range(12))), Given(rows(files[:11], range(11)))]
    manifests = [prepare(datasets, workers=workers, keep_duplicates=True)[0] for workers in (1, 2, 7)]
    assert len({manifest.digest for manifest in manifests}) == 1
    assert all(manifest.table.equals(manifests[0].table) for manifest in manifests)
    assert [ref.path for ref in manifests[0].images()] == [str(path) for path in files + files[:11]]


def test_tfrecords_and_folders_together(tmp_path: Path) -> None:
    images = [jpeg(10 + number, 12, number) for number in range(6)]
    tfrecord.write(
        tmp_path / "guie-x-train-00-4.tfrec", [(data, 1000 + number % 2) for number, data in enumerate(images[:4])]
    )
    for number, data in enumerate(images[4:]):
        (tmp_path / "own" / f"class{number}").mkdir(parents=True)
        (tmp_path / "own" / f"class{number}" / "1.jpg").write_bytes(data)
    shards = TFRecordDataset(tmp_path, source="x", category="things")
    manifest, quarantine = prepare([shards, ClassFolders(tmp_path / "own")])
    assert len(quarantine) == 0
    assert [ref.read() for ref in manifest.images()] == images
    assert manifest.column("label").tolist() == [0, 1, 0, 1, 2, 3]
    assert manifest.column("source").tolist() == ["x"] * 4 + ["own"] * 2
    first, second = manifest.provenance["datasets"]
    assert first["type"] == "guie_datasets.sets.tfrecords:TFRecordDataset"
    assert (first["folder"], first["rows"], first["good"]) == (str(tmp_path), 4, 4)
    assert second["label_offset"] == 1002


# --- what is wrong with data


def png(width: int, height: int) -> bytes:
    """The header of a PNG of that size, and an image of one pixel after it."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def bad_rows(tmp_path: Path, good: Path) -> list[tuple[Row, str]]:
    def file(name: str, data: bytes) -> ImageRef:
        (tmp_path / name).write_bytes(data)
        return ImageRef(str(tmp_path / name))

    whole = jpeg(200, 100, 99)
    return [
        (Row(file("cut.jpg", whole[: len(whole) // 2]), 0, "s"), "JPEG: image file is truncated"),
        (Row(file("zero.jpg", b""), 0, "s"), "empty: 0 bytes"),
        (Row(file("bomb.png", png(30_000, 20_000)), 0, "s"), "PNG: 30000 x 20000 is over the limit of 100 megapixels"),
        (Row(file("page.jpg", b"<html>404</html>"), 0, "s"), "not an image: 16 bytes that start with b'<html>"),
        (Row(ImageRef(str(tmp_path / "none.jpg")), 0, "s"), "cannot be read: No such file or directory"),
        (Row(ImageRef(str(tmp_path)), 0, "s"), "cannot be read: Is a directory"),
        (Row(ImageRef(str(good), 10, 10**6), 0, "s"), "bytes are there; the file was cut or replaced"),
        (Row(ImageRef(str(good)), -1, "s"), "its label -1 is not in 0.."),
        (Row(ImageRef(str(good)), 2**60, "s"), f"its label {2**60} is not in 0.."),
        (Row(ImageRef(str(good)), "cat", "s"), "its label is 'cat', not a whole number"),  # type: ignore[arg-type]
        (Row(ImageRef(str(good)), 1.5, "s"), "its label is 1.5, not a whole number"),  # type: ignore[arg-type]
        (Row(ImageRef(str(good)), None, "s"), "its label is None, not a whole number"),  # type: ignore[arg-type]
        (Row(ImageRef(str(good)), 0, "s", name="\udcff"), "its name is no UTF-8; rename it"),
        (Row(ImageRef(str(good)), 0, "s", category=7), "its category is 7, not text"),  # type: ignore[arg-type]
        (Row(ImageRef(str(tmp_path / "a\0b.jpg")), 0, "s"), "ValueError: embedded null byte"),
    ]


def test_bad_rows_are_named_and_kept_out(tmp_path: Path, files: list[Path]) -> None:
    bad = bad_rows(tmp_path, files[0])
    dataset = Given(rows(files[:6], range(6)) + [row for row, _ in bad] + rows(files[6:], range(6, 12)))
    manifest, quarantine = prepare([dataset], max_bad=0.6)
    assert [ref.path for ref in manifest.images()] == [str(path) for path in files]
    assert quarantine.images == 12 + len(bad)
    assert kinds(quarantine) == ["bad"] * len(bad)
    for finding, (row, reason) in zip(quarantine, bad, strict=True):
        assert finding.place == str(row.image)
        assert reason in finding.reason
        assert finding.place not in finding.reason
        assert (finding.source, finding.label) == ("s", row.label)


def test_beyond_the_limit_it_stops_with_reasons_and_places(tmp_path: Path, files: list[Path]) -> None:
    rows_ = rows(files, range(12)) + [
        Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(11)
    ]
    for number in range(2):
        (tmp_path / f"page{number}.jpg").write_text("<html>")
        rows_.append(Row(ImageRef(str(tmp_path / f"page{number}.jpg")), 0, "s"))
    table = tmp_path / "out" / "quarantine.csv"
    with pytest.raises(GuieError) as caught:
        prepare([Given(rows_)], max_bad=0.5, quarantine=table)
    message = str(caught.value)
    assert message.startswith("13 of 25 images are bad (52.00%), more than max_bad = 50.00% allows:\n")
    assert f"  11 x cannot be read: No such file or directory, first {tmp_path}/gone0.jpg\n" in message
    assert f"  {tmp_path}/page1.jpg: not an image" in message
    assert f"The whole list is in {table}." in message
    assert message.endswith("look whether this is the right data set, with the right settings.")
    with table.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [entry["place"] for entry in listed] == [row.image.path for row in rows_[12:]]
    assert set(listed[0]) == {"kind", "place", "source", "original_label", "name", "reason", "count"}
    assert len(prepare([Given(rows_)], max_bad=0.52)[0]) == 12


def test_the_limit_that_is_advised_is_enough(files: list[Path], tmp_path: Path) -> None:
    gone = Row(ImageRef(str(tmp_path / "gone.jpg")), 0, "s")
    for good in range(1, 12):
        dataset = Given([*rows(files[:good], range(good)), gone])
        with pytest.raises(GuieError, match="raise max_bad to") as caught:
            prepare([dataset])
        advised = float(str(caught.value).rpartition(" to ")[2].rstrip("."))
        assert len(prepare([dataset], max_bad=advised)[0]) == good


def test_files_that_may_not_be_read_are_named(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(ref: ImageRef) -> bytes:
        raise PermissionError(13, "Permission denied", ref.path)

    files[3].chmod(0)
    if os.access(files[3], os.R_OK):  # as root
        monkeypatch.setattr(ImageRef, "read", refuse)
        _, quarantine = prepare_one_bad(files[3])
    else:
        _, quarantine = prepare_one_bad(files[3])
    assert "Permission denied" in quarantine.findings[0].reason


def prepare_one_bad(path: Path) -> tuple[Any, Quarantine]:
    good = path.with_name("shard")
    good.write_bytes(jpeg(9, 9, 1000))
    part = ImageRef(str(good), 0, good.stat().st_size)
    return prepare([Given([Row(part, 0, "s"), Row(ImageRef(str(path)), 1, "s")])], max_bad=0.5)


def test_an_unexpected_failure_with_one_image_is_named(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sixth = files[5].read_bytes()

    def fail(data: bytes) -> tuple[int, int]:
        if data == sixth:
            raise ZeroDivisionError("no lines")
        return 1, 1

    monkeypatch.setattr(preparation, "examine", fail)
    manifest, quarantine = prepare([Given(rows(files, range(12)))], max_bad=0.1)
    assert [(f.kind, f.place, f.reason, f.label) for f in quarantine] == [
        ("bad", str(files[5]), "ZeroDivisionError: no lines", 5),
        ("left out", "class 5 of s", "a class without images: its only one is bad", 5),
    ]
    assert len(manifest) == 11


def test_rows_that_are_none_are_named(files: list[Path]) -> None:
    strange: list[Any] = [None, "a.jpg", Row("a.jpg", 0, "s")]  # type: ignore[arg-type]
    _, quarantine = prepare([Given([*rows(files, range(12)), *strange])], max_bad=0.5)
    assert [finding.place for finding in quarantine] == ["None", "'a.jpg'", "'a.jpg'"]
    assert all("has no attribute" in finding.reason for finding in quarantine)


def test_paths_outside_the_root_and_labels_that_are_none(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    inside = tmp_path / "root" / "a.jpg"
    inside.write_bytes(jpeg(8, 8, 50))
    (tmp_path / "root" / "link.jpg").symlink_to(files[1])
    lines = ["path,label", "a.jpg,0", f"../{files[0].name},0", "link.jpg,0", f"{files[2]},0", "a.jpg,1.5"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    manifest, quarantine = prepare([Table(tmp_path / "t.csv", root=tmp_path / "root")], max_bad=0.8)
    assert [ref.path for ref in manifest.images()] == [str(inside)]
    assert quarantine.images == 5
    assert kinds(quarantine) == ["bad"] * 4
    assert ["leads out of the folder" in f.reason or "that leads out" in f.reason for f in quarantine][:3] == [True] * 3


def test_nothing_good(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(GuieError, match=r"^no images: Given has none, good or bad; look at its settings$"):
        prepare([Given([])])
    with pytest.raises(GuieError, match=r"no image is good:\n  .*gone.jpg: cannot be read"):
        prepare([Given([Row(ImageRef(str(tmp_path / "gone.jpg")), 0, "s")])], max_bad=1)
    with pytest.raises(GuieError, match="name at least one"):
        prepare([])


def test_a_table_without_rows_is_not_passed_over(files: list[Path], tmp_path: Path) -> None:
    """A header alone is no data set, whatever others there are."""
    (tmp_path / "cars.csv").write_text("path,label\n")
    full = Given(rows(files, range(12)))
    for datasets, which in (
        ([full, Table(tmp_path / "cars.csv")], r"data set 1 \(Table\)"),
        ([Table(tmp_path / "cars.csv"), full], r"data set 0 \(Table\)"),
    ):
        with pytest.raises(GuieError, match=rf"/cars\.csv: no images: {which} has none, good or bad; look at the file"):
            prepare(datasets)
    with pytest.raises(GuieError, match=r"/cars\.csv: no images: Table has none"):
        prepare([Table(tmp_path / "cars.csv")])


def test_duplicates_are_kept_once_and_conflicts_kept(files: list[Path]) -> None:
    a, b, c = files[:3]
    copy = c.with_name("copy.jpg")
    copy.write_bytes(c.read_bytes())
    dataset = Given(rows([a, b, c, a, b, copy, b], [7, 7, 8, 7, 9, 8, 9]))
    manifest, quarantine = prepare([dataset])
    assert [(finding.kind, finding.place, finding.label) for finding in quarantine] == [
        ("duplicate", str(a), 7),
        ("conflict", str(b), 9),
        ("duplicate", str(copy), 8),
        ("duplicate", str(b), 9),
    ]
    reasons = [finding.reason for finding in quarantine]
    assert reasons[0] == f"the same image as {a}"
    assert reasons[1] == f"the same image as {b}, which has another label"
    assert [ref.path for ref in manifest.images()] == [str(path) for path in (a, b, c, b)]
    assert manifest.column("label").tolist() == [0, 0, 1, 2]
    assert str(quarantine) == "3 repeated, 1 kept though equal to an image of another class"
    everything, again = prepare([dataset], keep_duplicates=True)
    assert len(everything) == 7
    assert list(again) == list(quarantine)


def test_conflicts_across_data_sets_give_the_data_set_s_own_label(files: list[Path]) -> None:
    _, quarantine = prepare([Given(rows(files[:2], [40, 41], "a")), Given(rows(files[1:3], [5, 6], "b"))])
    assert [(f.kind, f.place, f.source, f.label) for f in quarantine] == [("conflict", str(files[1]), "b", 5)]


def test_a_class_that_only_had_bad_images_leaves_no_gap(files: list[Path], tmp_path: Path) -> None:
    gone = Row(ImageRef(str(tmp_path / "gone.jpg")), 1, "s")
    manifest, quarantine = prepare([Given([*rows(files[:2], [0, 2]), gone])], max_bad=0.5)
    assert manifest.column("label").tolist() == [0, 1]
    assert manifest.column("original_label").tolist() == [0, 2]
    assert [(f.kind, f.place, f.reason) for f in quarantine][1:] == [
        ("left out", "class 1 of s", "a class without images: its only one is bad")
    ]


def test_empty_classes_are_named(files: list[Path], tmp_path: Path) -> None:
    for name, number in [("ant", 0), ("cat", 1)]:
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "1.jpg").write_bytes(files[number].read_bytes())
    (tmp_path / "own" / "bee").mkdir()
    manifest, quarantine = prepare([ClassFolders(tmp_path / "own")])
    assert [(f.kind, f.place, f.reason) for f in quarantine] == [
        ("left out", str(tmp_path / "own" / "bee"), "a class without images")
    ]
    assert manifest.column("label").tolist() == [0, 1]


def test_what_a_data_set_left_out_is_listed_and_bad_ones_count(files: list[Path]) -> None:
    left_out = [LeftOut("notes.txt", "not an image by its suffix '.txt'"), LeftOut("shard@5", "damaged", bad=True)]
    _, quarantine = prepare([Given(rows(files, range(12)), left_out)], max_bad=1 / 13)
    assert kinds(quarantine) == ["left out", "bad"]
    assert quarantine.images == 13
    with pytest.raises(GuieError, match="1 of 13 images are bad"):
        prepare([Given(rows(files, range(12)), left_out)])


def test_a_finding_may_stand_for_many_images(files: list[Path]) -> None:
    rest = LeftOut("x.tfrec@100", "truncated: 30 of its records are missing", bad=True, count=30)
    _, quarantine = prepare([Given(rows(files, range(12)), [rest])], max_bad=30 / 42)
    assert (len(quarantine), quarantine.count("bad"), quarantine.images, str(quarantine)) == (1, 30, 42, "30 bad")
    with pytest.raises(GuieError, match=r"30 of 42 images are bad(.|\n)*truncated(.|\n)*Pass quarantine"):
        prepare([Given(rows(files, range(12)), [rest])])


def test_what_is_bad_is_told_however_much_is_left_out(files: list[Path]) -> None:
    others = [LeftOut(f"{number}.txt", "no image") for number in range(10_001)]
    with pytest.raises(GuieError, match=r"1 of 13 images are bad .*\n  shard@5: damaged\n"):
        prepare([Given(rows(files, range(12)), [*others, LeftOut("shard@5", "damaged", bad=True)])])


def test_many_different_reasons_are_ten_lines(files: list[Path]) -> None:
    words = "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(GuieError) as caught:
        prepare([Given(rows(files, range(12)), [LeftOut("x", word, bad=True) for word in words])], max_bad=0.1)
    lines = str(caught.value).split("\n")
    assert lines[1:-1] == [*(f"  x: {word}" for word in words[:10]), "  and 16 more"]


def test_what_a_wrong_setting_makes_bad_says_which(files: list[Path], tmp_path: Path) -> None:
    shard = tmp_path / "a.tfrec"
    tfrecord.write(shard, [(path.read_bytes(), n) for n, path in enumerate(files)], image="jpeg", label="id")
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{path.name},1\n" for path in files))
    (tmp_path / "else").mkdir()
    lines = "".join(f"{name},1\n" for name in ("a.jpg", "b.jpg"))
    (tmp_path / "else" / "t.csv").write_text(f"path,label\n{lines}")
    for dataset, what in (
        (
            TFRecordDataset(files=[shard], source="s"),
            rf"12 x record 0 at byte 0: it has no feature 'image/encoded'. It has: id, jpeg, first {shard}\n(.|\n)*"
            "Name the feature that holds the image: image=NAME.",
        ),
        (
            TFRecordDataset(files=[shard], source="s", image="jpeg"),
            "Name the feature that holds the label: label=NAME.",
        ),
        (
            Table(tmp_path / "t.csv", root=tmp_path / "else"),
            rf"Paths of t.csv are taken from root, {tmp_path}/else. If the images lie elsewhere: root=FOLDER.",
        ),
        (Table(tmp_path / "else" / "t.csv"), rf"taken from the table's folder, {tmp_path}/else. If"),
    ):
        with pytest.raises(GuieError, match=what) as caught:
            prepare([dataset])
        assert "max_bad to" not in str(caught.value)


def test_the_table_has_what_was_found_at_the_end_too(files: list[Path], tmp_path: Path) -> None:
    _, found = prepare([Given(rows([*files, *files[:3]], [*range(12), 0, 5, 2]))], quarantine=tmp_path / "q.csv")
    assert str(found) == "2 repeated, 1 kept though equal to an image of another class"
    assert listed(tmp_path / "q.csv") == [str(path) for path in files[:3]]


def test_what_people_may_miss_is_told_at_once(files: list[Path], tmp_path: Path) -> None:
    left_out = [LeftOut("a/n", "in a folder", count=30, loud=True), LeftOut("b/n", "in a folder", loud=True)]
    gone = Row(ImageRef(str(tmp_path / "gone.jpg")), 50, "s", name="ant")
    _, found = prepare(
        [Given([*rows(files, range(12)), gone], [*left_out, LeftOut("notes.txt", "no image")])], max_bad=0.1
    )
    assert found.told == ["31 x in a folder, first a/n", "all images are bad of class ant of s"]
    bad = next(iter(found))
    assert (bad.label, bad.name) == (50, "ant")
    assert prepare([Given(rows(files, range(12)))])[1].told == []


def test_the_same_images_twice_are_refused(files: list[Path], tmp_path: Path) -> None:
    first = Given(rows(files, range(12), "a"))
    with pytest.raises(GuieError, match=r"the data sets 0 \(Given\) and 2 \(Given\) are the same images: .* Name one"):
        prepare([first, Given(rows(files[:5], range(5))), Given(rows(files, [0] * 12, "b"))])
    tfrecord.write(tmp_path / "a.tfrec", [(path.read_bytes(), 0) for path in files])
    shard = TFRecordDataset(files=[tmp_path / "a.tfrec"], source="s")
    _, found = prepare([first, Given(rows(files[:4], range(4))), shard])
    assert found.told == [
        "4 of the 4 images of data set 1 are in data set 0 as well, under other labels",
        "12 of the 12 images of data set 2 are in data set 0 as well, under other labels",
    ]
    more = [path.with_name(f"x{path.name}") for path in files]
    for number, path in enumerate(more):
        path.write_bytes(jpeg(9, 9, 100 + number))
    assert prepare([first, Given(rows(more + files[:11], range(23)))])[1].told == []


# --- ends before the end


def listed(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [entry["place"] for entry in csv.DictReader(file)]


def test_it_stops_as_soon_as_too_much_is_bad(files: list[Path], tmp_path: Path) -> None:
    gone = [Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(5000)]
    dataset = Given(rows(files, range(12)) + gone, count=5012)
    with pytest.raises(GuieError) as caught:
        prepare([dataset], max_bad=0.01, workers=2, quarantine=tmp_path / "q.csv")
    message = str(caught.value)
    assert message.startswith(
        "stopped after 64 of 5,012 images: 52 of them are bad (81.25%), and max_bad = 1.00% allows"
    )
    assert "allows 50 in all:\n" in message
    assert f"  52 x cannot be read: No such file or directory, first {tmp_path}/gone0.jpg\n" in message
    assert "raise max_bad" not in message
    assert dataset.asked < 1000
    assert listed(tmp_path / "q.csv") == [str(tmp_path / f"gone{number}.jpg") for number in range(52)]


@pytest.mark.parametrize(("bad", "count"), [(60, None), (60, 3), (9, 72)])
def test_it_does_not_stop_early_where_that_is_not_certain_or_tells_little(
    files: list[Path], tmp_path: Path, bad: int, count: int
) -> None:
    """The number of rows is unknown, or there are more than were promised, or fewer are bad than the error lists."""
    gone = [Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(bad)]
    with pytest.raises(GuieError, match=f"{bad} of {60 + bad} images are bad"):
        prepare([Given(gone + rows(files, range(12)) * 5, count=count)])


def test_of_several_data_sets_all_must_know_their_count(files: list[Path], tmp_path: Path) -> None:
    gone = [Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(64)]
    many = Given(rows(files, range(12)) * 20, count=240)
    with pytest.raises(GuieError, match="64 of 304 images are bad"):
        prepare([Given(gone), many])
    with pytest.raises(GuieError, match="stopped after 32 of 304 images"):
        prepare([Given(gone, count=64), many])
    assert prepare([Given(gone, count=64), many], max_bad=0.5)[1].count("bad") == 64


def test_an_interrupt_ends_it_with_a_message(files: list[Path], tmp_path: Path) -> None:
    gone = Row(ImageRef(str(tmp_path / "gone.jpg")), 0, "s")
    with interruptible() as stop:
        stop.request()
        with pytest.raises(Interrupted, match=r"stopped while Given was prepared; .* is in .*q.csv"):
            prepare([Given([*rows(files, range(12)), gone])], quarantine=tmp_path / "q.csv")
    assert listed(tmp_path / "q.csv") == [gone.image.path]


def test_what_was_found_is_written_when_a_data_set_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Given):
        def rows(self) -> Iterator[Row]:
            yield from super().rows()
            raise GuieError("the rest is missing")

    monkeypatch.setattr(preparation, "_BATCH", 1)
    gone = [Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(40)]
    with pytest.raises(GuieError, match="the rest is missing"):
        prepare([Failing(gone)], quarantine=tmp_path / "q.csv", workers=1)
    assert len(listed(tmp_path / "q.csv")) >= 36  # what was still under way is not in it


def test_nothing_is_left_in_the_folder(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest, _ = prepare([Given(rows(files, range(12)) * 2)], quarantine=out / "q.csv")
    assert os.listdir(out) == ["q.csv"]
    manifest.write(out / "m.parquet")
    assert sorted(os.listdir(out)) == ["m.parquet", "q.csv"]


# --- where it comes from


def test_results_that_are_kept_hold_no_files(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path / "again.jpg")  # so that columns are copied
    given = rows([*files, tmp_path / "again.jpg"], [0] * 13)
    before = len(os.listdir("/dev/fd"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        kept = [prepare([Given(given)]) for _ in range(3)]
        assert len(os.listdir("/dev/fd")) == before
        assert [len(manifest) for manifest, _ in kept] == [12] * 3
        digests = {manifest.digest for manifest, _ in kept}
        with pytest.raises(GuieError, match="no image is good") as caught:
            prepare([Given([Row(ImageRef("nowhere"), 0, "s")])], max_bad=1)
        assert len(os.listdir("/dev/fd")) == before
        del kept, caught
        gc.collect()
    assert len(digests) == 1
    assert [str(each.message) for each in warned] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bad": float("nan")}, "max_bad is nan; it is a share of the images, from 0 to 1"),
        ({"max_bad": -1}, "max_bad is -1; "),
        ({"max_bad": 1.5}, "max_bad is 1.5; "),
        ({"workers": -1}, "workers is -1; it is the number of threads, 1 or more"),
        ({"workers": 0}, "workers is 0; "),
    ],
)
def test_limits_that_are_none(files: list[Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare([Given(rows(files, [0] * 12))], **options)


def test_provenance_names_the_plugin_and_its_version(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "own" / "a").mkdir(parents=True)
    (tmp_path / "own" / "a" / "1.jpg").write_bytes(files[0].read_bytes())
    manifest, _ = prepare([ClassFolders(tmp_path / "own", category="c"), Given(rows(files[1:2], [0]))])
    first, second = manifest.provenance["datasets"]
    assert first["plugin"] == {"name": "folder", "distribution": "guie-datasets", "version": version("guie-datasets")}
    assert (first["category"], first["rows"], first["good"]) == ("c", 1, 1)
    assert second["plugin"] is None
    assert second["type"].endswith("test_preparation:Given")


# --- anything at all

_folder = tempfile.TemporaryDirectory()
DEFECTS: dict[str, bytes | None] = {
    "good": b"",
    "gone": None,
    "empty": b"",
    "page": b"<html>404 not found</html>",
    "cut": jpeg(60, 40, 5)[:300],
    "bomb": png(60_000, 10_000),
}


def row_of(number: int, what: str, label: Any) -> tuple[Row, bool]:
    """A row with that defect or none, and whether it is good; images repeat after ten."""
    path = Path(_folder.name) / (f"{number % 10}.jpg" if what == "good" else what)
    data = jpeg(16, 9, number % 10) if what == "good" else DEFECTS[what]
    if data is not None and not path.exists():
        path.write_bytes(data)
    return Row(ImageRef(str(path)), label, "s"), what == "good" and type(label) is int and label >= 0


labels = st.one_of(st.integers(-1, 4), st.sampled_from(["cat", 0.5, None]))


@given(
    st.lists(st.tuples(st.sampled_from([*DEFECTS, "good", "good", "good"]), labels), min_size=1, max_size=40),
    st.integers(1, 7),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_nothing_is_lost_whatever_is_wrong(given_rows: list[tuple[str, Any]], chunk: int, keep: bool) -> None:
    made = [row_of(number, what, label) for number, (what, label) in enumerate(given_rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "_BATCH", 3)
        patch.setattr(preparation, "_CHUNK", chunk)
        patch.setattr("guie_datasets.preparing.growing._CHUNK", chunk)
        good = [row for row, is_good in made if is_good]
        if not good:
            with pytest.raises(GuieError, match="no image is good"):
                prepare([Given([row for row, _ in made])], max_bad=1)
            return
        manifest, quarantine = prepare([Given([row for row, _ in made])], max_bad=1, keep_duplicates=keep, workers=2)
    assert quarantine.images == len(made)
    bad = [finding for finding in quarantine if finding.kind == "bad"]
    assert [(finding.place, finding.label) for finding in bad] == [
        (row.image.path, row.label) for row, is_good in made if not is_good
    ]
    # the oracle for what is repeated: one look at a time
    seen: dict[str, list[int]] = {}
    kept, repeated, conflicts = [], 0, 0
    for row in good:
        before = seen.setdefault(row.image.path, [])
        repeated += row.label in before
        conflicts += bool(before) and row.label not in before
        if keep or row.label not in before:
            kept.append(row)
        before.append(row.label)
    assert (quarantine.count("duplicate"), quarantine.count("conflict")) == (repeated, conflicts)
    assert [ref.path for ref in manifest.images()] == [row.image.path for row in kept]
    assert manifest.column("original_label").tolist() == [row.label for row in kept]
    order = sorted({row.label for row in kept})
    assert manifest.column("label").tolist() == [order.index(row.label) for row in kept]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 2)), max_size=40))
@settings(max_examples=100, deadline=None)
def test_repeated_rows_by_a_look_at_all_pairs(made: list[tuple[int, int, int]]) -> None:
    """Hashes whose halves agree here and there."""
    hashes = np.array([[first, second] for first, second, _ in made], "<u8").reshape(-1, 2).view("V16").reshape(-1)
    labels = np.array([label for *_, label in made], np.int64)
    expected = []
    for row, (*value, label) in enumerate(made):
        before = [number for number in range(row) if list(made[number][:2]) == value]
        alike = [number for number in before if made[number][2] == label]
        if before:
            expected.append((row, (alike or before)[0], bool(alike)))
    found = repeated(hashes, labels)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
