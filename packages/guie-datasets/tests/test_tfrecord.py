"""TFRecord files: what TensorFlow writes is read, what is written TensorFlow reads, and damage is named."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guie_core import GuieError
from guie_datasets import ImageRef, tfrecord
from guie_datasets.tfrecord import TFRecordError

PAIRS = [(b"", 0), (b"\xff\xd8one", 1000), (b"\x00" * 300, 17690), (bytes(range(256)) * 300, 2**62), (b"negative", -7)]


def frame(payload: bytes) -> bytes:
    def masked(data: bytes) -> int:
        crc = google_crc32c.value(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32

    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked(length)) + payload + struct.pack("<I", masked(payload))


def scanned(path: Path, **options: Any) -> list[tuple[bytes, int]]:
    return [(record.image.read(), record.label) for record in tfrecord.scan(path, **options)]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "guie-test-train-00-5.tfrec"
    assert tfrecord.write(path, PAIRS) == 5
    return path


def test_what_is_written_is_read(shard: Path) -> None:
    assert scanned(shard) == PAIRS
    assert tfrecord.count(shard) == 5
    whole = shard.read_bytes()
    refs = [record.image for record in tfrecord.scan(shard)]
    assert all(
        whole[ref.offset : ref.offset + (ref.length or 0)] == data for ref, (data, _) in zip(refs, PAIRS, strict=True)
    )


def test_payloads_are_an_index_for_random_access(shard: Path) -> None:
    whole = shard.read_bytes()
    index = list(tfrecord.payloads(shard))
    assert b"".join(frame(whole[offset : offset + length]) for offset, length in index) == whole


def test_other_feature_names(tmp_path: Path) -> None:
    path = tmp_path / "other.tfrec"
    tfrecord.write(path, PAIRS, image="jpeg", label="klass")
    assert scanned(path, image="jpeg", label="klass") == PAIRS
    with pytest.raises(
        TFRecordError, match=r"record 0 at byte 0: it has no feature 'image/encoded'. It has: jpeg, klass"
    ):
        scanned(path)


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "empty.tfrec"
    assert tfrecord.write(path, []) == 0
    assert scanned(path) == []
    assert tfrecord.count(path) == 0


def test_a_label_over_64_bits_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="does not fit into 64 bits"):
        tfrecord.write(tmp_path / "a.tfrec", [(b"x", 1), (b"y", 2**63)])
    assert list(tmp_path.iterdir()) == []


def test_every_truncation_is_found_and_placed(shard: Path, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    starts = [offset - 12 for offset, _ in tfrecord.payloads(shard)] + [len(whole)]
    cut = tmp_path / "cut.tfrec"
    for size in [*range(1, 400), len(whole) - 1]:
        cut.write_bytes(whole[:size])
        if size in starts:
            assert tfrecord.count(cut) == starts.index(size)
            continue
        record = max(number for number, start in enumerate(starts) if start < size)
        for read in (scanned, tfrecord.count):
            with pytest.raises(TFRecordError, match="truncated") as caught:
                read(cut)
            assert (caught.value.path, caught.value.record, caught.value.offset) == (str(cut), record, starts[record])


def test_every_flipped_bit_is_found_in_its_record(shard: Path, tmp_path: Path) -> None:
    whole = shard.read_bytes()
    starts = [offset - 12 for offset, _ in tfrecord.payloads(shard)]
    damaged = tmp_path / "damaged.tfrec"
    for position in range(starts[3]):
        data = bytearray(whole)
        data[position] ^= 1 << position % 8
        damaged.write_bytes(data)
        with pytest.raises(TFRecordError, match=r"checksum is wrong|no TFRecord file") as caught:
            scanned(damaged)
        assert caught.value.record == max(number for number, start in enumerate(starts) if start <= position)


def test_data_checksum_can_be_left_out(shard: Path, tmp_path: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    (tmp_path / "x.tfrec").write_bytes(data)
    with pytest.raises(TFRecordError, match="record 4 at byte"):
        scanned(tmp_path / "x.tfrec")
    assert scanned(tmp_path / "x.tfrec", check=False) == PAIRS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,label\na.jpg,1\n" * 10, "this is no TFRecord file: it starts with b'path,lab'"),
        (gzip.compress(b"some records" * 9), "this is no TFRecord file: unpacked, it starts with b'some rec'"),
        (zlib.compress(b"path,label\n" * 9)[:-9], "the file cannot be unpacked: its zlib data end too early"),
        (b"x\x9cno zlib data, whatever it starts with", "cannot be unpacked: its zlib data are damaged between bytes 0"),
        (b"short", "the file ends inside the record's header"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(data)
    with pytest.raises(TFRecordError, match=message):
        scanned(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for read in (scanned, tfrecord.count):
        with pytest.raises(GuieError, match="No such file"):
            read(tmp_path / "none.tfrec")
    with pytest.raises(GuieError, match="cannot be read"):
        scanned(tmp_path)


# --- the wire format, against TensorFlow's own messages and hand-made ones


def example(features: dict[str, bytes]) -> bytes:
    def put(field: int, data: bytes) -> bytes:
        assert len(data) < 128
        return bytes([field << 3 | 2, len(data)]) + data

    return put(1, b"".join(put(1, put(1, name.encode()) + put(2, value)) for name, value in features.items()))


IMAGE = {"image/encoded": b"\x0a\x05\x0a\x03abc"}
LABEL = {"image/class/label": b"\x1a\x03\x0a\x01\x05"}  # packed, as every writer does today


@pytest.mark.parametrize(
    "payload",
    [
        example(IMAGE | LABEL),
        example(LABEL | IMAGE),
        example(IMAGE | {"image/class/label": b"\x1a\x02\x08\x05"}),  # not packed
        example({"extra": b"\x12\x06\x0a\x04\x00\x00\x80\x3f", "none": b""} | IMAGE | LABEL),
        example(IMAGE) + example(LABEL),  # messages that are repeated are merged
        b"\x10\x07"
        + example(IMAGE | LABEL)
        + b"\x1d\x01\x02\x03\x04\x21"
        + b"8bytes.."
        + b"\x22\x02hi",  # unknown fields
        example({"image/encoded": b"\x1a\x03\x0a\x01\x09"} | IMAGE | LABEL),
        example({"image/class/label": b"\x1a\x03\x0a\x01\x09"}) + example(IMAGE | LABEL),  # of a name the last counts
        example(IMAGE | {"image/class/label": b"\x0a\x03\x0a\x01x\x1a\x03\x0a\x01\x05"}),  # of a oneof the last counts
    ],
)
def test_wire_format_variants_agree_with_tensorflow(tmp_path: Path, payload: bytes) -> None:
    import tensorflow as tf

    (tmp_path / "a.tfrec").write_bytes(frame(payload))
    features = tf.train.Example.FromString(payload).features.feature
    image = features["image/encoded"].bytes_list.value[0]
    label = features["image/class/label"].int64_list.value[0]
    assert scanned(tmp_path / "a.tfrec") == [(image, label)] == [(b"abc", 5)]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "it has no feature 'image/encoded'. It has: no features"),
        (example(IMAGE), "it has no feature 'image/class/label'. It has: image/encoded"),
        (example(LABEL | {"image/encoded": b""}), "'image/encoded' holds 0 values, not one"),
        (example(LABEL | {"image/encoded": b"\x0a\x06\x0a\x01a\x0a\x01b"}), "'image/encoded' holds 2 values, not one"),
        (example(IMAGE | {"image/class/label": b"\x1a\x04\x0a\x02\x05\x06"}), "holds 2 values, not one"),
        (example(IMAGE | {"image/class/label": b"\x0a\x03\x0a\x01x"}), "'image/class/label' holds bytes, not int64"),
        (example(IMAGE | {"image/class/label": b"\x12\x06\x0a\x04\0\0\0\0"}), "holds floats, not int64"),
        (b"\x0a\x7f" + b"\x0a" * 20, "a field runs past the end"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x08" + b"\xff" * 12, "a number is longer than ten bytes"),
        (b"no example at all, just some text", "no tf.train.Example"),
    ],
)
def test_records_without_what_is_asked_for(tmp_path: Path, payload: bytes, message: str) -> None:
    path = tmp_path / "a.tfrec"
    good = frame(example(IMAGE | LABEL))
    path.write_bytes(good + frame(payload))
    with pytest.raises(TFRecordError, match=message) as caught:
        scanned(path)
    assert (caught.value.record, caught.value.offset) == (1, len(good))


def test_bad_records_can_be_passed_over_but_not_a_broken_file(tmp_path: Path) -> None:
    good, missing = frame(example(IMAGE | LABEL)), frame(example(IMAGE))
    damaged = bytearray(good)
    damaged[-5] ^= 1
    path = tmp_path / "a.tfrec"
    path.write_bytes(good + missing + bytes(damaged) + good)
    bad: list[TFRecordError] = []
    assert scanned(path, on_bad=bad.append) == [(b"abc", 5)] * 2
    assert [error.record for error in bad] == [1, 2]
    assert ["no feature" in str(bad[0]), "checksum" in str(bad[1])] == [True, True]
    path.write_bytes(good + missing + good[:-1])
    with pytest.raises(TFRecordError, match=r"record 2 at byte .* truncated"):
        scanned(path, on_bad=bad.append)


@settings(max_examples=200, deadline=None)
@given(payload=st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: example(IMAGE | LABEL)[:40] + tail))
def test_any_bytes_as_a_record_never_end_in_another_error(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.tfrec"
    path.write_bytes(frame(payload))
    try:
        records = list(tfrecord.scan(path))
    except TFRecordError:
        return
    assert len(records) == 1
    assert isinstance(records[0].image, ImageRef)


def test_tensorflow_writes_and_we_read(tmp_path: Path) -> None:
    import tensorflow as tf

    path = tmp_path / "tf.tfrec"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for data, label in PAIRS:
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[3, 4])),
                "score": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    assert scanned(path) == PAIRS


def test_we_write_and_tensorflow_reads(shard: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    wanted = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = [tf.io.parse_single_example(data, wanted) for data in tf.data.TFRecordDataset(str(shard))]
    assert [(row["image/encoded"].numpy(), int(row["image/class/label"])) for row in parsed] == PAIRS

    with tf.io.TFRecordWriter(str(tmp_path / "tf.tfrec")) as writer:
        for data, label in PAIRS:
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            message = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(message.SerializeToString(deterministic=True))
    assert (tmp_path / "tf.tfrec").read_bytes() == shard.read_bytes()


# --- shards


def make_shards(folder: Path, *counts: int, name: str = "guie-glr2021-train-{:02d}-{}.tfrec") -> None:
    for number, count in enumerate(counts):
        tfrecord.write(folder / name.format(number, count), [(b"x", number)] * count)


def test_shards_come_in_order_of_their_numbers(tmp_path: Path) -> None:
    make_shards(tmp_path, *[1] * 12, name="guie-a-train-{}-{}.tfrec")  # 10 sorts after 9
    (tmp_path / "notes.txt").write_text("not a shard")
    (tmp_path / "._guie-a-train-3-1.tfrec").write_text("what macOS leaves in archives")
    assert [tfrecord.images_in_name(path) for path in tfrecord.shards(tmp_path)] == [1] * 12
    assert [path.name.split("-")[3] for path in tfrecord.shards(tmp_path)] == [str(number) for number in range(12)]


def test_shards_that_are_not_what_their_names_say_are_all_named(tmp_path: Path) -> None:
    make_shards(tmp_path, 3, 2, 4, 5, 1)
    (tmp_path / "guie-glr2021-train-00-3.tfrec").rename(tmp_path / "guie-glr2021-train-00-9.tfrec")
    (tmp_path / "guie-glr2021-train-01-2.tfrec").unlink()
    path = tmp_path / "guie-glr2021-train-03-5.tfrec"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(GuieError) as caught:
        tfrecord.shards(tmp_path)
    message = str(caught.value)
    assert "guie-glr2021-train-01-*.tfrec is missing" in message
    assert "train-00-9.tfrec: 3 records; its name says 9" in message
    assert "train-03-5.tfrec: record 4 at byte" in message
    assert "train-02" not in message
    assert len(tfrecord.shards(tmp_path, check=False)) == 4


def test_two_shards_with_one_number(tmp_path: Path) -> None:
    make_shards(tmp_path, 1, 2)
    tfrecord.write(tmp_path / "guie-glr2021-train-01-3.tfrec", [(b"x", 0)] * 3)
    with pytest.raises(GuieError, match=r"guie-glr2021-train-01-\*.tfrec is there more than once"):
        tfrecord.shards(tmp_path)


def test_shards_without_folder_or_files(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="no such folder"):
        tfrecord.shards(tmp_path / "none")
    with pytest.raises(GuieError, match="The folder holds nothing"):
        tfrecord.shards(tmp_path)
    (tmp_path / "train.csv").write_text("")
    with pytest.raises(GuieError, match=r"no file matches \*-train-\*.tfrec. The folder holds train.csv"):
        tfrecord.shards(tmp_path)
