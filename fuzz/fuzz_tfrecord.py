"""TFRecord files, plain and packed: any bytes give records or a TFRecordError, and records can be read.

    python fuzz/fuzz_tfrecord.py fuzz/seeds/tfrecord -max_total_time=600

The first byte of the input says what the rest is: a file, or the data of one record whose frame is right, and how it is
packed. `--seeds FOLDER` writes the seeds anew.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["guie_datasets"]):
    from guie_datasets import tfrecord
    from guie_datasets.compressed import PackedFiles
    from guie_datasets.tfrecord.example import ExampleError, find
    from guie_datasets.tfrecord.framing import framed, frames

FOLDER = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
PACK = (bytes, gzip.compress, lambda data: zlib.compress(data, 1))


def one_input(data: bytes) -> None:
    if not data:
        return
    kind, data = data[0], data[1:]
    if kind & 4:
        data = framed(b"\n\0") + framed(data) * 2
    path = FOLDER / f"fuzz-{os.getpid()}.tfrec"
    path.write_bytes(PACK[(kind & 3) % 3](data))
    bad: list[tfrecord.TFRecordError] = []
    found = []
    try:
        found.extend(tfrecord.scan(path, on_bad=bad.append))
    except tfrecord.TFRecordError as error:
        bad.append(error)
    assert [(record.image.offset, record.image.length, record.label) for record in found] == one_by_one(path)
    numbers = [error.record for error in bad]
    assert numbers == sorted(set(numbers)), numbers
    assert all(str(path) in str(error) for error in bad)
    files = PackedFiles()
    for record in found:
        image = files.read(record.image) if record.image.compression else record.image.read()
        assert len(image) == record.image.length
        assert -(1 << 63) <= record.label < 1 << 63
    try:
        count = tfrecord.count(path)
        assert count == len(list(tfrecord.payloads(path, check=False))) == len(found) + len(bad)
    except tfrecord.TFRecordError as error:
        if error.record != numbers[-1]:
            raise


def one_by_one(path: Path) -> list[tuple[int, int, int]]:
    """What `scan` finds many at once: (offset, length, label)."""
    found = []
    try:
        for frame in frames(str(path), tfrecord.compression(path)):
            try:
                if frame.intact:
                    start, end, label = find(frame.data, b"image/encoded", b"image/class/label")
                    found.append((frame.offset + start, end - start, label))
            except ExampleError:
                pass
    except tfrecord.TFRecordError:
        pass
    return found


def write_seeds(folder: Path) -> None:
    """Small files of every kind, whole and damaged, written by TensorFlow."""
    import tensorflow as tf

    def feature(**values: object) -> tf.train.Feature:
        kind, value = next(iter(values.items()))
        return tf.train.Feature(**{kind: getattr(tf.train, "".join(map(str.title, kind.split("_"))))(value=value)})

    features = {
        "image/encoded": feature(bytes_list=[b"\xff\xd8 encoded"]),
        "image/class/label": feature(int64_list=[-70_000]),
        "other": feature(float_list=[0.5, 1.5]),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "example").write_bytes(b"\4" + example)
    (folder / "example-gzip").write_bytes(b"\5" + example[:150])
    for compression in ("", "GZIP", "ZLIB"):
        path = folder / f"file{'-' * bool(compression)}{compression.lower()}"
        with tf.io.TFRecordWriter(str(path), compression) as writer:
            for _ in range(3):
                writer.write(example)
        data = path.read_bytes()
        path.write_bytes(b"\0" + data)
        (folder / f"{path.name}-cut").write_bytes(b"\0" + data[:-20])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
