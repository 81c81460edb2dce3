"""TFRecord shards as a data set."""

from __future__ import annotations

import gzip
import io
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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


def test_gaps_can_be_allowed(folder: Path) -> None:
    sorted(folder.glob("*.tfrec"))[1].unlink()
    rows = list(TFRecordDataset(folder, source="s", complete=False).rows())
    assert [row.image.read() for row in rows] == [jpeg(number) for number in (*range(5), *range(10, 15))]


def test_missing_files_are_named(folder: Path) -> None:
    files = [*sorted(folder.glob("*.tfrec")), folder / "none.tfrec", folder / "a-train-9-9.tfrec"]
    with pytest.raises(GuieError, match=r"not there: .*none.tfrec, .*a-train-9-9.tfrec. Correct the names"):
        list(TFRecordDataset(files=files, source="s").rows())


def cut(path: Path, position: int) -> None:
    path.write_bytes(path.read_bytes()[:position])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def places(path: Path) -> list[int]:
    return [offset - 12 for offset, _ in tfrecord.payloads(path)]


@pytest.mark.parametrize(
    ("spoil", "good", "lost", "reason"),
    [
        (
            lambda path: cut(path, places(path)[3] + 50),
            3,
            2,
            r"record 3 at byte \d+: .* truncated; 2 images are lost by it",
        ),
        (lambda path: cut(path, places(path)[4] + 5), 4, 1, r"record 4 at byte \d+: the file ends inside .* truncated"),
        (lambda path: cut(path, places(path)[2]), 2, 3, r"2 records; its name says 5: fetch it again"),
        (lambda path: cut(path, 0), 0, 5, r"0 records; its name says 5: fetch it again"),
        (lambda path: flip(path, places(path)[1] + 2), 1, 4, r"record 1 at byte \d+: the length's checksum is wrong"),
        (lambda path: flip(path, places(path)[1] + 90), 4, 1, r"record 1 at byte \d+: the data's checksum is wrong"),
        (
            lambda path: path.write_bytes(b"<html>404</html>"),
            0,
            5,
            "this is no TFRecord file: it starts with b'<html>40'",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes() * 2),
            5,
            5,
            "10 records; its name says 5: correct its name if",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"junk"),
            5,
            1,
            "record 5 at byte .* inside the record's header",
        ),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())[:-1]), 5, 1, "gzip data end too early"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), 5, 0, ""),
    ],
)
@pytest.mark.parametrize("reader", ["guie", "tensorflow"])
def test_a_broken_shard_costs_its_own_records_only(
    folder: Path,
    spoil: Callable[[Path], None],
    good: int,
    lost: int,
    reason: str,
    reader: Literal["guie", "tensorflow"],
) -> None:
    path = sorted(folder.glob("*.tfrec"))[1]
    numbers = [number for number in range(15) if not 5 <= number < 10] + [5 + number for number in range(5)][:good]
    spoil(path)
    dataset = TFRecordDataset(folder, source="s", reader=reader)
    rows = list(dataset.rows())
    if "data's checksum" in reason:
        numbers = [number for number in range(15) if number != 6] if reader == "guie" else [*range(6), *range(10, 15)]
        lost = 1 if reader == "guie" else 4
        reason = reason if reader == "guie" else r"record 1 at byte \d+: TensorFlow cannot read on: corrupted record"
    assert [row.image.read() for row in rows] == [jpeg(number) for number in sorted(numbers)]
    assert [(item.place, item.bad, item.count) for item in dataset.left_out()] == [(str(path), True, lost)][
        : bool(lost)
    ]
    assert all(re.search(reason, item.reason) for item in dataset.left_out())
    assert len(list(dataset.rows())) == len(rows)
    assert len(dataset.left_out()) == bool(lost)  # of the last pass alone


def test_each_lost_record_counts_towards_the_limit(folder: Path) -> None:
    path = sorted(folder.glob("*.tfrec"))[1]
    cut(path, places(path)[3] + 50)
    dataset = TFRecordDataset(folder, source="s")
    manifest, quarantine = prepare([dataset], max_bad=0.14)
    assert (len(manifest), quarantine.images, quarantine.count("bad")) == (13, 15, 2)
    with pytest.raises(GuieError, match=r"2 of 15 images are bad \(13.33%\)"):
        prepare([dataset], max_bad=0.13)


def test_a_broken_shard_whose_name_does_not_say_how_much_is_lost_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    tfrecord.write(path, [(jpeg(0), 0), (jpeg(1), 0)])
    cut(path, path.stat().st_size - 1)
    with pytest.raises(GuieError, match=r"a.tfrec: record 1 at byte \d+: the file ends 1 bytes too early") as caught:
        list(TFRecordDataset(files=[path], source="s").rows())
    assert "Its first 1 record can be used." in str(caught.value)
    assert str(caught.value).endswith("Fetch the file again, or set complete to False to use those that are there")


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_whole_of_a_broken_shard_is_used_when_asked_for(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "a.tfrec"
    tfrecord.write(path, [(random.randbytes(3000), number) for number in range(5)])
    cut(path, path.stat().st_size - 100)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes())[:-500])
    dataset = TFRecordDataset(files=[path], source="s", complete=False)
    assert [row.label for row in dataset.rows()] == [0, 1, 2, 3]
    (item,) = dataset.left_out()
    assert (item.bad, item.count, item.loud, "truncated" in item.reason) == (True, 1, True, True)


@pytest.mark.parametrize(
    "names",
    [
        [
            "cars-train.tfrecord-00000-of-00003",
            "cars-train.tfrecord-00001-of-00003",
            "cars-train.tfrecord-00002-of-00003",
        ],
        ["cars-0.tfrecord", "cars-1.tfrecord", "cars-2.tfrecord"],
        ["cars-08.tfrec.gz", "cars-09.tfrec.gz", "cars-10.tfrec.gz"],
    ],
)
def test_gaps_are_found_in_names_of_all_kinds(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        tfrecord.write(tmp_path / name, [(jpeg(number), number)])
    pattern = ["*.tfrecord", "*.tfrecord-*-of-*", "*.tfrec.gz"]
    if names[0] != "cars-08.tfrec.gz":  # which lacks those before it
        rows = list(TFRecordDataset(tmp_path, source="s", pattern=pattern).rows())
        assert [row.label for row in rows] == [0, 1, 2]
    (tmp_path / names[1]).unlink()
    with pytest.raises(GuieError, match=rf"the set is not complete:\n(.*\n)*  {names[1]} is missing\nFetch what is"):
        list(TFRecordDataset(tmp_path, source="s", pattern=pattern).rows())
    some = TFRecordDataset(tmp_path, source="s", pattern=pattern, complete=False)
    assert [row.label for row in some.rows()] == [0, 2]


@pytest.mark.parametrize("pattern", ["", "/x/*", "**x", "a\0b"])
def test_what_is_no_pattern_is_told(folder: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="give one for names in the folder"):
        list(TFRecordDataset(folder, source="s", pattern=pattern).rows())


def test_an_unreadable_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted(folder.glob("*.tfrec"))[1]

    def denied(name: str, *arguments: Any, **options: Any) -> Any:
        if name == str(path):
            raise PermissionError(13, "Permission denied")
        return open(name, *arguments, **options)

    monkeypatch.setattr("guie_datasets.tfrecord.framing.open", denied, raising=False)
    dataset = TFRecordDataset(folder, source="s")
    assert len(list(dataset.rows())) == 10
    (item,) = dataset.left_out()
    assert (item.place, item.count) == (str(path), 5)
    assert "cannot be read: Permission denied" in item.reason


def test_packed_shards_are_prepared_as_they_are(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    packed = tmp_path_factory.mktemp("packed")
    for path in folder.glob("*.tfrec"):
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    dataset = TFRecordDataset(packed, source="s", pattern="*-train-*.tfrec.gz")
    assert dataset.count() == 15
    manifest, quarantine = prepare([dataset], max_bad=0)
    assert len(quarantine) == 0
    plain, _ = prepare([TFRecordDataset(folder, source="s")], max_bad=0)
    for name in ("label", "width", "height", "hash"):
        assert manifest.table.column(name).to_pylist() == plain.table.column(name).to_pylist()


def test_readers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(TFRecordDataset(folder, source="s").rows())
    assert list(TFRecordDataset(folder, source="s", reader="tensorflow").rows()) == rows
    with pytest.raises(UsageError, match="reader must be 'guie' or 'tensorflow'"):
        TFRecordDataset(folder, source="s", reader="tf.data")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(GuieError, match=r"pip install 'guie-datasets\[tensorflow\]'"):
        list(TFRecordDataset(folder, source="s", reader="tensorflow").rows())


def test_count_is_unknown_when_names_do_not_tell(tmp_path: Path) -> None:
    tfrecord.write(tmp_path / "a.tfrec", [(jpeg(0), 0)])
    dataset = TFRecordDataset(tmp_path, source="s", pattern="*.tfrec")
    assert dataset.count() is None
    assert len(list(dataset.rows())) == 1


def test_folder_or_files(folder: Path) -> None:
    for arguments in ({}, {"folder": folder, "files": [folder / "a"]}):
        with pytest.raises(UsageError, match="needs folder or files, one of the two"):
            TFRecordDataset(source="s", **arguments)  # type: ignore[arg-type]
