"""TFRecord files: what TensorFlow writes is read, what is written TensorFlow reads, and damage is named."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guie_core import GuieError, UsageError
from guie_datasets import ImageRef, tfrecord
from guie_datasets.images.reading import Reader
from guie_datasets.tfrecord import TFRecordError
from guie_datasets.tfrecord.example import find
from guie_datasets.tfrecord.examples import find_all
from guie_datasets.tfrecord.framing import frames
from guie_datasets.tfrecord.records import runs

PAIRS = [(b"", 0), (b"\xff\xd8one", 1000), (b"\x00" * 300, 17690), (bytes(range(256)) * 300, 2**62), (b"negative", -7)]


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def frame(payload: bytes) -> bytes:
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
        (
            b"x\x9cno zlib data, whatever it starts with",
            "cannot be unpacked: its zlib data are damaged between bytes 0",
        ),
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


# --- packed files, and TensorFlow as the second reader


def written_by_tensorflow(path: Path, pairs: Sequence[tuple[bytes, int]], compression: str = "") -> Path:
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path), compression.upper()) as writer:
        for data, label in pairs:
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x.jpg"])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return path


MANY = [(random.Random(number).randbytes(number * 37 % 5000), number) for number in range(500)]


@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_files_that_tensorflow_packed_are_read_as_they_are(tmp_path: Path, compression: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY, compression)
    assert tfrecord.compression(path) == compression
    assert {record.image.compression for record in tfrecord.scan(path)} == {compression}
    with Reader() as reader:
        records = [(reader.read(record.image), record.label) for record in tfrecord.scan(path)]
    assert records == MANY
    assert tfrecord.count(path) == 500
    assert list(tmp_path.iterdir()) == [path]  # nothing was expanded


@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_empty_files(tmp_path: Path, compression: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", [], compression)
    for reader in ("guie", "tensorflow"):
        assert scanned(path, reader=reader) == []
    assert tfrecord.count(path) == 0


@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_both_readers_give_the_same(tmp_path: Path, compression: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY[:100] + PAIRS, compression)
    assert list(tfrecord.scan(path, reader="tensorflow")) == list(tfrecord.scan(path))
    assert scanned(path, reader="tensorflow") == MANY[:100] + PAIRS


@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_both_readers_pass_over_the_same_records(tmp_path: Path, compression: str) -> None:
    good = example(IMAGE | LABEL)
    damaged = bytearray(frame(good))
    damaged[-5] ^= 1
    bad = [example(IMAGE), b"no example", example(LABEL | {"image/encoded": LABEL["image/class/label"]})]
    data = b"".join(map(frame, [good, bad[0], good, bad[1], bad[2], good])) + damaged + frame(good)
    path = tmp_path / "a.tfrec"
    path.write_bytes({"": bytes, "gzip": gzip.compress, "zlib": zlib.compress}[compression](data))
    ours: list[TFRecordError] = []
    theirs: list[TFRecordError] = []
    assert scanned(path, on_bad=ours.append) == [(b"abc", 5)] * 4
    assert [error.record for error in ours] == [1, 3, 4, 6]
    found = tfrecord.scan(path, on_bad=theirs.append, reader="tensorflow")
    assert [next(found).image.read() for _ in range(3)] == [b"abc"] * 3
    with pytest.raises(TFRecordError, match=r"record 6 at byte \d+: TensorFlow cannot read on: corrupted record"):
        next(found)
    assert [error.record for error in theirs] == [1, 3, 4]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (example(IMAGE | {"image/class/label": b"\x0a\x03\x0a\x01x\x1a\x03\x0a\x01\x05"}), "Data types don't match"),
        (example(IMAGE | {"image/class/label": b"\x1a\x04\x0a\x00\x08\x05"}), "Some int64_list slice was not parsed"),
        (example(IMAGE | LABEL) + b"\x0a\x05\x0a\x03\x0a\x01\xff", "TensorFlow cannot parse it"),  # a name, no UTF-8
    ],
)
def test_what_only_one_reader_takes_is_bad(tmp_path: Path, payload: bytes, message: str) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(frame(payload) + frame(example(IMAGE | LABEL)))
    bad: list[TFRecordError] = []
    assert len(scanned(path)) == 2
    assert scanned(path, reader="tensorflow", on_bad=bad.append) == [(b"abc", 5)]
    (error,) = bad
    assert error.record == 0
    assert error.problem.startswith("TensorFlow")
    assert message in error.problem


def test_records_that_one_reader_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "a.tfrec", tmp_path / "b.tfrec"
    tfrecord.write(path, PAIRS)
    tfrecord.write(other, PAIRS[:3])
    from guie_datasets.tfrecord.tensorflow import beside

    for ours, theirs, record, message in [
        (path, other, 3, "TensorFlow finds the file's end here"),
        (other, path, 3, "the file ends here, but TensorFlow finds more"),
    ]:
        with pytest.raises(TFRecordError, match=message) as caught:
            list(beside(frames(str(ours), ""), str(theirs), "", "image/encoded", "image/class/label"))
        assert caught.value.record == record
    tfrecord.write(other, [*PAIRS[:3], (b"other", PAIRS[3][1]), (PAIRS[4][0], 8)])
    bad: list[TFRecordError] = []
    pairs = beside(frames(str(path), ""), str(other), "", "image/encoded", "image/class/label")
    monkeypatch.setattr("guie_datasets.tfrecord.tensorflow.beside", lambda *_: pairs)
    assert scanned(path, reader="tensorflow", on_bad=bad.append) == PAIRS[:3]
    assert [error.problem for error in bad] == ["TensorFlow finds another image or label in it"] * 2


def test_readers_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tfrecord.write(tmp_path / "a.tfrec", PAIRS)
    with pytest.raises(UsageError, match="reader must be 'guie' or 'tensorflow', not 'tf'"):
        scanned(tmp_path / "a.tfrec", reader="tf")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(GuieError, match=r"pip install 'guie-datasets\[tensorflow\]'"):
        scanned(tmp_path / "a.tfrec", reader="tensorflow")


@pytest.mark.parametrize("reader", ["guie", "tensorflow"])
@pytest.mark.parametrize("length", [2**40, 2**62, 2**63 - 1, 2**64 - 1])
def test_a_huge_length_with_a_right_checksum(tmp_path: Path, length: int, reader: str) -> None:
    good = frame(example(IMAGE | LABEL))
    header = struct.pack("<Q", length)
    data = good + header + struct.pack("<I", masked(header)) + b"some bytes"
    for path, bytes_, message in [
        (tmp_path / "a.tfrec", data, "too early: it is truncated"),
        (tmp_path / "b.tfrec", gzip.compress(data), "of packed files, records up to"),
    ]:
        path.write_bytes(bytes_)
        found = tfrecord.scan(path, reader=reader)  # type: ignore[arg-type]
        assert next(found).label == 5
        with pytest.raises(TFRecordError, match=message):
            next(found)
        with pytest.raises(TFRecordError, match="record 1 at byte"):
            tfrecord.count(path)


@pytest.mark.parametrize("compression", ["gzip", "zlib"])
def test_a_packed_file_that_is_cut_gives_the_records_before(tmp_path: Path, compression: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY, compression)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = []
    with pytest.raises(TFRecordError, match=rf"the file cannot be unpacked: its {compression} data end too early"):
        found.extend(tfrecord.scan(path))
    assert 240 < len(found) < 260
    with Reader() as reader:
        assert [(reader.read(record.image), record.label) for record in found] == MANY[: len(found)]


# --- index


@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_an_index_reaches_any_record(tmp_path: Path, compression: str) -> None:
    import tensorflow as tf

    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY, compression)
    records = [data.numpy() for data in tf.data.TFRecordDataset(str(path), compression.upper())]
    built = tfrecord.Index.build(path)
    assert built.save() == tmp_path / "a.tfrec.index.npy"
    built.save(tmp_path / "cache" / "a.npy")
    with Reader() as reader:
        for index in (built, tfrecord.Index.load(path), tfrecord.Index.load(path, tmp_path / "cache" / "a.npy")):
            assert len(index) == 500
            for record in (499, 0, 17, -1):
                assert reader.read(index[record]) == records[record]
            with pytest.raises(IndexError):
                index[500]


def test_an_index_of_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    tfrecord.write(path, [])
    tfrecord.Index.build(path).save()
    assert len(tfrecord.Index.load(path)) == 0


def test_an_index_of_another_state_of_the_file_is_refused(shard: Path, tmp_path: Path) -> None:
    saved = tfrecord.Index.build(shard).save()
    os.utime(shard, ns=(0, os.stat(shard).st_mtime_ns + 1))
    with pytest.raises(GuieError, match=r"5.tfrec was changed after .*index.npy was written. Build the index again"):
        tfrecord.Index.load(shard)
    for content in (b"", b"text", saved.read_bytes()[:-8], b"\x93NUMPY\x01\x00v\x00{'descr'", pickle.dumps([1])):
        saved.write_bytes(content)
        with pytest.raises(GuieError, match="is no index of a TFRecord file"):
            tfrecord.Index.load(shard)
    for array in (np.zeros(3), np.zeros((0, 2), np.int64), np.zeros((3, 2), np.int32), np.array([[{}, 1]])):
        np.save(saved, array)
        with pytest.raises(GuieError, match="is no index of a TFRecord file"):
            tfrecord.Index.load(shard)
    saved.unlink()
    with pytest.raises(GuieError, match="cannot be read: No such file"):
        tfrecord.Index.load(shard)


# --- many records at once


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that hold few of `MANY`, and of which some records are larger."""
    monkeypatch.setattr("guie_datasets.tfrecord.framing._WINDOW", 4000)
    monkeypatch.setattr("guie_datasets.tfrecord.framing._PACKED_WINDOW", 4000)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("compression", ["", "gzip", "zlib"])
def test_records_in_many_windows_and_larger_than_one(tmp_path: Path, compression: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY + PAIRS, compression)
    sizes = [len(run.offsets) for run in runs(str(path), compression)]
    assert sum(sizes) == len(MANY + PAIRS)
    assert min(sizes) == 1 < max(sizes)
    with Reader() as reader:
        found = [(reader.read(record.image), record.label) for record in tfrecord.scan(path)]
    assert found == MANY + PAIRS
    places = np.array(list(tfrecord.payloads(path)))
    index = tfrecord.Index.build(path)
    assert np.array_equal(places, np.column_stack([index.offsets, index.lengths]))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("number", [1, 77, 250, 498, 499])
@pytest.mark.parametrize(
    ("end", "place", "message"),
    [
        (False, 2, "the length's checksum is wrong"),
        (False, 9, "the length's checksum is wrong"),
        (True, -30, "the data's checksum is wrong"),
        (True, -1, "the data's checksum is wrong"),
    ],
)
def test_damage_after_many_records_is_placed(tmp_path: Path, number: int, end: bool, place: int, message: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY)
    data = bytearray(path.read_bytes())
    starts = [offset - 12 for offset, _ in tfrecord.payloads(path)] + [len(data)]
    data[starts[number + end] + place] ^= 4
    path.write_bytes(data)
    for read in (tfrecord.scan, tfrecord.payloads):
        found: list[Any] = []
        with pytest.raises(TFRecordError, match=message) as caught:
            found.extend(read(path))
        assert (caught.value.record, caught.value.offset) == (number, starts[number])
        assert len(found) == number
    with pytest.raises(TFRecordError, match=message) as caught:
        tfrecord.Index.build(path)
    assert caught.value.record == number
    if end:
        bad: list[TFRecordError] = []
        found = [record.label for record in tfrecord.scan(path, on_bad=bad.append)]
        assert found == [label for _, label in MANY if label != number]
        assert [error.record for error in bad] == [number]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("number", [1, 77, 250, 498, 499])
@pytest.mark.parametrize(("end", "place", "message"), [(False, 5, "inside the record's header"), (True, -3, "3 bytes")])
def test_a_cut_after_many_records_is_placed(tmp_path: Path, number: int, end: bool, place: int, message: str) -> None:
    path = written_by_tensorflow(tmp_path / "a.tfrec", MANY)
    starts = [offset - 12 for offset, _ in tfrecord.payloads(path)] + [path.stat().st_size]
    os.truncate(path, starts[number + end] + place)
    found: list[Any] = []
    with pytest.raises(TFRecordError, match=message) as caught:
        found.extend(tfrecord.scan(path))
    assert (caught.value.record, caught.value.offset) == (number, starts[number])
    assert [record.label for record in found] == list(range(number))


def test_records_before_damage_are_given(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    tfrecord.write(path, [(bytes(2 << 20), number) for number in range(20)])  # more than a window
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = tfrecord.scan(path)
    assert [next(found).label for _ in range(19)] == list(range(19))
    with pytest.raises(TFRecordError, match=r"record 19 at byte \d+: the data's checksum is wrong"):
        next(found)


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    peaks = []
    for count in (9_000, 20_000):  # a few runs of 4096, and more
        path = tmp_path / f"{count}.tfrec"
        tfrecord.write(path, ((b"x" * 200, number) for number in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in tfrecord.scan(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8e6


# --- any file, whole or not


def one_by_one(path: Path) -> list[Any]:
    """(number, start, offset, data, intact) of each record, and what is wrong at the end."""
    found: list[Any] = []
    try:
        for frame in frames(str(path), tfrecord.compression(path)):
            found.append((frame.number, frame.start, frame.offset, bytes(frame.data), frame.intact))
    except TFRecordError as error:
        found.append(str(error))
    return found


def many_at_once(path: Path) -> list[Any]:
    """The same, of `runs`."""
    found: list[Any] = []
    try:
        for run in runs(str(path), tfrecord.compression(path)):
            for row, (offset, end) in enumerate(zip(run.offsets, run.ends, strict=True)):
                data, place = run.data[offset:end].tobytes(), run.base + int(offset)
                found.append((run.number + row, run.start(row), place, data, bool(run.intact[row])))
    except TFRecordError as error:
        found.append(str(error))
    return found


labels = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.binary(max_size=300), labels), max_size=6), names=st.tuples(st.text(), st.text()))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[bytes, int]], names: tuple[str, str]
) -> None:
    image, label = (name.encode("utf-8", "replace").decode() for name in names)
    path = tmp_path_factory.getbasetemp() / "round.tfrec"
    if image == label:
        return
    tfrecord.write(path, pairs, image=image, label=label)
    data = path.read_bytes()
    for packed in (data, gzip.compress(data), zlib.compress(data)):
        path.write_bytes(packed)
        assert scanned(path, image=image, label=label) == pairs


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_many_at_once_find_nothing_that_one_by_one_does_not(data: st.DataObject) -> None:
    whole = LABEL | {"score": b"\x12\x06\x0a\x04\x00\x00\x80\x3f"} | IMAGE
    payloads, unharmed = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        payload = bytearray(example({name: whole[name] for name in data.draw(st.permutations(list(whole)))}))
        untouched = bytes(payload)
        for _ in range(data.draw(st.integers(0, 2))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
        payloads.append(bytes(payload))
        unharmed.append(payload == untouched)
    tail = data.draw(st.binary(max_size=12))
    ends = np.cumsum([len(payload) for payload in payloads])
    starts = ends - [len(payload) for payload in payloads]
    keys = b"image/encoded", b"image/class/label"
    found = find_all(np.frombuffer(b"".join(payloads) + tail, np.uint8), starts, ends, *keys)
    for row, payload in enumerate(payloads):
        if found.known[row]:
            start, end, label = find(memoryview(payload), *keys)
            assert (found.starts[row] - starts[row], found.ends[row] - starts[row], found.labels[row]) == (
                start,
                end,
                label,
            )
        else:
            assert not unharmed[row] or (row == len(payloads) - 1 and len(tail) < 8)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_file_gives_records_or_says_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    payload = bytearray(example(IMAGE | LABEL | {"extra": b"\x12\x06\x0a\x04\x00\x00\x80\x3f"}))
    if data.draw(st.booleans(), "the message"):  # whose frame is right, so that the parser sees it
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    whole = bytearray(frame(example(IMAGE | LABEL)) + frame(bytes(payload)) + frame(example(LABEL)))
    if data.draw(st.booleans(), "the frames"):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    pack = data.draw(st.sampled_from([bytes, gzip.compress, zlib.compress]))
    whole = bytearray(pack(bytes(whole)))
    if data.draw(st.booleans(), "the file"):
        start = data.draw(st.integers(0, len(whole)))
        whole[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    path = tmp_path_factory.getbasetemp() / "mutated.tfrec"
    path.write_bytes(whole)
    assert many_at_once(path) == one_by_one(path)
    bad: list[TFRecordError] = []
    found = []
    try:
        found.extend(tfrecord.scan(path, on_bad=bad.append))
    except TFRecordError as error:
        bad.append(error)
    assert [error.record for error in bad] == sorted({error.record for error in bad})
    assert all(len(record.image.read()) == record.image.length for record in found)


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
