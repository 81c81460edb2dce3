"""From data sets to a manifest: union of labels, sizes, hashes, and everything that can be wrong with the data."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guie_core import GuieError, Interrupted
from guie_core.interrupt import interruptible
from guie_datasets import (
    ClassFolders,
    Dataset,
    ImageRef,
    LeftOut,
    Quarantine,
    Row,
    TFRecordDataset,
    preparation,
    prepare,
    tfrecord,
)


def jpeg(width: int, height: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Given(Dataset):
    """Rows as given."""

    def __init__(self, rows: Sequence[Row], left_out: Sequence[LeftOut] = ()) -> None:
        self._rows, self._left_out = rows, left_out

    def rows(self) -> Iterator[Row]:
        return iter(self._rows)

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
    dataset = Given(rows(files, range(12)))
    manifests = [prepare([dataset, dataset], workers=workers, keep_duplicates=True)[0] for workers in (1, 2, 7)]
    assert len({manifest.digest for manifest in manifests}) == 1
    assert all(manifest.table.equals(manifests[0].table) for manifest in manifests)
    assert [ref.path for ref in manifests[0].images()] == 2 * [str(path) for path in files]


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
    assert first["type"] == "guie_datasets.shards:TFRecordDataset"
    assert (first["folder"], first["rows"], first["good"]) == (str(tmp_path), 4, 4)
    assert second["label_offset"] == 1002


# --- what is wrong with data


def bad_rows(tmp_path: Path, good: Path) -> list[tuple[Row, str]]:
    def file(name: str, data: bytes) -> ImageRef:
        (tmp_path / name).write_bytes(data)
        return ImageRef(str(tmp_path / name))

    whole = jpeg(200, 100, 99)
    return [
        (Row(file("cut.jpg", whole[: len(whole) // 2]), 0, "s"), "JPEG: image file is truncated"),
        (Row(file("zero.jpg", b""), 0, "s"), "empty: 0 bytes"),
        (Row(file("page.jpg", b"<html>404</html>"), 0, "s"), "not an image: 16 bytes that start with b'<html>"),
        (Row(ImageRef(str(tmp_path / "none.jpg")), 0, "s"), "cannot be read: No such file or directory"),
        (Row(ImageRef(str(tmp_path)), 0, "s"), "cannot be read: Is a directory"),
        (Row(ImageRef(str(good), 10, 10**6), 0, "s"), "bytes are there; the file was cut or replaced"),
        (Row(ImageRef(str(good)), -1, "s"), "its label -1 is not in 0.."),
        (Row(ImageRef(str(good)), 2**60, "s"), f"its label {2**60} is not in 0.."),
        (Row(ImageRef(str(good)), "cat", "s"), "its label is 'cat', not a whole number"),  # type: ignore[arg-type]
        (Row(ImageRef(str(good)), 1.5, "s"), "its label is 1.5, not a whole number"),  # type: ignore[arg-type]
    ]


def test_bad_rows_are_named_and_kept_out(tmp_path: Path, files: list[Path]) -> None:
    bad = bad_rows(tmp_path, files[0])
    dataset = Given(rows(files[:6], range(6)) + [row for row, _ in bad] + rows(files[6:], range(6, 12)))
    manifest, quarantine = prepare([dataset], max_bad=0.5)
    assert [ref.path for ref in manifest.images()] == [str(path) for path in files]
    assert quarantine.images == 22
    assert kinds(quarantine) == ["bad"] * 10
    for finding, (row, reason) in zip(quarantine, bad, strict=True):
        assert finding.place == str(row.image)
        assert reason in finding.reason
        assert finding.place not in finding.reason
        assert (finding.source, finding.label) == ("s", row.label)


def test_beyond_the_limit_it_stops_with_the_first_ten(tmp_path: Path, files: list[Path]) -> None:
    rows_ = rows(files, range(12)) + [
        Row(ImageRef(str(tmp_path / f"gone{number}.jpg")), 0, "s") for number in range(13)
    ]
    table = tmp_path / "out" / "quarantine.csv"
    with pytest.raises(GuieError) as caught:
        prepare([Given(rows_)], max_bad=0.5, quarantine=table)
    message = str(caught.value)
    assert message.startswith("13 of 25 images are bad (52.00%), more than max_bad = 50.00% allows:\n")
    assert f"  {tmp_path}/gone9.jpg: cannot be read: No such file or directory\n  and 3 more\n" in message
    assert "gone10" not in message
    assert f"The whole list is in {table}." in message
    assert message.endswith("or raise max_bad to 0.52.")
    with table.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [entry["place"] for entry in listed] == [str(tmp_path / f"gone{number}.jpg") for number in range(13)]
    assert set(listed[0]) == {"kind", "place", "source", "label", "reason"}
    assert len(prepare([Given(rows_)], max_bad=0.52)[0]) == 12


def test_the_limit_that_is_advised_is_enough(files: list[Path], tmp_path: Path) -> None:
    gone = Row(ImageRef(str(tmp_path / "gone.jpg")), 0, "s")
    for good in range(1, 12):
        dataset = Given([*rows(files[:good], range(good)), gone])
        with pytest.raises(GuieError, match="raise max_bad to") as caught:
            prepare([dataset])
        advised = float(str(caught.value).rpartition(" to ")[2].rstrip("."))
        assert len(prepare([dataset], max_bad=advised)[0]) == good


def test_nothing_good(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="no images: the data sets gave none"):
        prepare([Given([])])
    with pytest.raises(GuieError, match=r"no image is good:\n  .*gone.jpg: cannot be read"):
        prepare([Given([Row(ImageRef(str(tmp_path / "gone.jpg")), 0, "s")])], max_bad=1)
    with pytest.raises(GuieError, match="name at least one"):
        prepare([])


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
    manifest, _ = prepare([Given([*rows(files[:2], [0, 2]), gone])], max_bad=0.5)
    assert manifest.column("label").tolist() == [0, 1]


def test_what_a_data_set_left_out_is_listed_and_bad_ones_count(files: list[Path]) -> None:
    left_out = [LeftOut("notes.txt", "not an image by its suffix '.txt'"), LeftOut("shard@5", "damaged", bad=True)]
    _, quarantine = prepare([Given(rows(files, range(12)), left_out)], max_bad=1 / 13)
    assert kinds(quarantine) == ["left out", "bad"]
    assert quarantine.images == 13
    with pytest.raises(GuieError, match="1 of 13 images are bad"):
        prepare([Given(rows(files, range(12)), left_out)])


def test_an_interrupt_ends_it_with_a_message(files: list[Path]) -> None:
    with interruptible() as stop:
        stop.request()
        with pytest.raises(Interrupted, match="stopped while Given was prepared"):
            prepare([Given(rows(files, range(12)))])
