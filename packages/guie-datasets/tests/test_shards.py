"""TFRecord shards as a data set."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from guie_core import GuieError, UsageError
from guie_datasets import TFRecordDataset, prepare, tfrecord
from guie_datasets.testing import DatasetContract


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16 + number, 16), (number * 9 % 256, 100, 50)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(3):
        numbers = range(5 * shard, 5 * shard + 5)
        path = tmp_path / f"guie-products10k-train-{shard:02d}-5.tfrec"
        tfrecord.write(path, [(jpeg(number), 1000 + number % 4) for number in numbers])
    return tmp_path


class TestContract(DatasetContract):
    @pytest.fixture
    def dataset(self, folder: Path) -> TFRecordDataset:
        return TFRecordDataset(folder, source="products10k", category="products10k", labels=(1000, 10690))


def test_rows(folder: Path) -> None:
    dataset = TFRecordDataset(str(folder), source="products10k", category="things", labels=(1000, 10690))
    rows = list(dataset.rows())
    assert [row.image.read() for row in rows] == [jpeg(number) for number in range(15)]
    assert [row.label for row in rows] == [1000 + number % 4 for number in range(15)]
    assert {(row.source, row.category) for row in rows} == {("products10k", "things")}
    assert dataset.count() == 15
    assert dataset.sources() == sorted(folder.glob("*.tfrec"))


def test_files_in_a_given_order(folder: Path) -> None:
    files = sorted(folder.glob("*.tfrec"), reverse=True)[:2]
    dataset = TFRecordDataset(files=files, source="s")
    assert [row.image.read() for row in dataset.rows()] == [jpeg(number) for number in (*range(10, 15), *range(5, 10))]
    assert dataset.count() == 10


def test_a_subclass_can_tell_categories_by_label(folder: Path) -> None:
    class ByLabel(TFRecordDataset):
        def category_of(self, label: int) -> str:
            return "even" if label % 2 == 0 else "odd"

    assert [row.category for row in ByLabel(folder, source="s").rows()][:3] == ["even", "odd", "even"]


def test_bad_records_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    first, second = sorted(folder.glob("*.tfrec"))[:2]
    data = bytearray(first.read_bytes())
    data[-1] ^= 1  # checksum of the last record
    first.write_bytes(data)
    tfrecord.write(second, [(jpeg(40), 1000), (jpeg(41), 999), (jpeg(42), 10691), (jpeg(43), -3), (jpeg(44), 1001)])
    dataset = TFRecordDataset(folder, source="s", labels=(1000, 10690))
    manifest, quarantine = prepare([dataset], max_bad=0.3)
    assert len(manifest) == 11
    assert quarantine.images == 15
    places = [(finding.kind, finding.place.rpartition("/")[2].partition("@")[0]) for finding in quarantine]
    assert places == [("bad", first.name)] + [("bad", second.name)] * 3
    assert [finding.reason.partition(": ")[2] or finding.reason for finding in quarantine] == [
        "the data's checksum is wrong: the file is damaged",
        "label 999 is not in 1000..10690",
        "label 10691 is not in 1000..10690",
        "label -3 is not in 1000..10690",
    ]
    assert str(next(iter(quarantine)).reason).startswith("record 4 at byte ")
    with pytest.raises(GuieError, match="4 of 15 images are bad"):
        prepare([dataset])


def test_incomplete_sets_are_refused_before_they_are_read(folder: Path) -> None:
    sorted(folder.glob("*.tfrec"))[1].unlink()
    with pytest.raises(GuieError, match=r"guie-products10k-train-01-\*.tfrec is missing"):
        list(TFRecordDataset(folder, source="s").rows())


def test_count_is_unknown_when_names_do_not_tell(tmp_path: Path) -> None:
    tfrecord.write(tmp_path / "a.tfrec", [(jpeg(0), 0)])
    dataset = TFRecordDataset(tmp_path, source="s", pattern="*.tfrec")
    assert dataset.count() is None
    assert len(list(dataset.rows())) == 1


def test_folder_or_files(folder: Path) -> None:
    for arguments in ({}, {"folder": folder, "files": [folder / "a"]}):
        with pytest.raises(UsageError, match="needs folder or files, one of the two"):
            TFRecordDataset(source="s", **arguments)  # type: ignore[arg-type]
