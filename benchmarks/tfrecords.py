"""TFRecord shards: reading them through, and from shards to something that a model can be trained from.

    python benchmarks/tfrecords.py [--images 4000] [--expanded 200] [--rounds 3] [--workers 2]

1. One pass over all records, to image and label. guie gives a reference to the image and the label of each record, with
   every checksum checked (as `guie data prepare` does) and without those of the data. tf.data checks every checksum and
   parses each record: record by record as the 5th place iterates it, in parsed batches, and in parsed batches with the
   files read in parallel. The `tfrecord` package parses each record and checks no checksum.
2. An index: where each record lies, nothing parsed. guie checks every checksum, or those of the lengths;
   `tfrecord2idx` checks none, and writes the index to a file; tf.data checks every one and gives the records, of which
   it tells no place.
3. Shards to a manifest, with sizes read and every image hashed, beside the way of the 5th place's tfrec2png.py: decoded
   by tf.data, encoded as PNG, one by one; that on `--expanded` of the images. "disk": what it adds, in % of the
   shards.

In 1 and 2 guie and the `tfrecord` package read with one thread; tf.data parses with as many as it chooses. `--workers`
are those of the manifest.

The shards hold JPEG photos of about 25 KB, crops of scikit-learn's two. Each way is a process of its own, which does
its work for a second, at least twice, with the files in the system's cache, and tells the best time, without imports;
in each round all have their turn, and the best round counts. "processor" is the time that all threads together kept a
core busy, which says more than the clock where a machine is shared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

IMAGE, LABEL = "image/encoded", "image/class/label"
PASSES = {
    "guie": "guie, every checksum",
    "unchecked": "guie, the lengths' checksums",
    "one_by_one": "tf.data, record by record",
    "batches": "tf.data, batches of 256",
    "parallel": "tf.data, parallel batches",
    "package": "tfrecord, no checksum",
}
INDICES = {
    "index": "guie, every checksum",
    "lengths": "guie, the lengths' checksums",
    "raw": "tf.data, every checksum",
    "package_index": "tfrecord2idx, no checksum",
}
PREPARATIONS = {"prepare": "guie prepare", "expand": "tf.data to PNG, one by one"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 4000), ("expanded", 200), ("rounds", 3), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)  # way, folder of shards
    options = parser.parse_args()
    if options.run:
        way, folder = options.run
        print(json.dumps(WAYS[way](Path(folder), options.workers)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_shards(folder / "all", options.images, shards=4)
        make_shards(folder / "part", options.expanded, shards=1)
        results: dict[str, list[float]] = {}  # seconds by the clock, of the processor, and what the way returns
        for _ in range(options.rounds):
            for way in WAYS:
                shards = folder / ("part" if way == "expand" else "all")
                arguments = ["--run", way, str(shards), "--workers", str(options.workers)]
                done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
                result = json.loads(done.stdout)
                results[way] = list(map(min, result, results.get(way, result)))
        report(results, options, disk(folder / "all") / options.images)


def report(results: dict[str, list[float]], options: argparse.Namespace, size: float) -> None:
    print(f"$ python {' '.join(sys.argv)}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("tensorflow", "tfrecord", "pillow", "google-crc32c"))
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}")
    print(f"{options.images:,} images of {size / 1000:.1f} kB, {options.workers} workers\n")
    columns = f"{'seconds':>9}{'guie is':>9}{'processor s':>13}{'guie is':>9}"
    for title, ways in (("to image and label", PASSES), ("index", INDICES)):
        assert (
            len({results[way][2] for way in ways}) == 1
        ), "the readers differ in the sum of all labels or in the count"
        print(f"{title:29}{'records/s':>10}{columns}")
        for way, name in ways.items():
            (seconds, busy, _), (best, least, _) = results[way], results[next(iter(ways))]
            clock, processor = f"{seconds / best:7.1f} x", f"{busy / least:7.1f} x"
            print(f"{name:29}{options.images / seconds:10,.0f}{seconds:9.3f}{clock}{busy:13.3f}{processor}")
        print()
    print(f"{'shards to training data':29}{'images/s':>10}{columns}{'disk':>10}")
    ours = results["prepare"]
    for way, name in PREPARATIONS.items():
        seconds, busy, images, added = results[way]
        ratios = seconds / images * ours[2] / ours[0], busy / images * ours[2] / ours[1]
        print(
            f"{name:29}{images / seconds:10,.0f}{seconds:9.3f}{ratios[0]:7.1f} x{busy:13.3f}{ratios[1]:7.1f} x"
            f"{100 * added / images / size:8.2f} %"
        )


def timed(work: Callable[[], int]) -> list[float]:
    """[seconds by the clock, seconds of the processor, what `work` returns]"""
    results = []
    start = time.perf_counter()
    while len(results) < 2 or time.perf_counter() - start < 1:
        began, busy = time.perf_counter(), time.process_time()
        result = work()
        results.append((time.perf_counter() - began, time.process_time() - busy, result))
    return list(map(min, *results))


def guie(folder: Path, workers: int) -> list[float]:
    from guie_datasets import tfrecord

    paths = sorted(folder.iterdir())
    return timed(lambda: sum(record.label for path in paths for record in tfrecord.scan(path)))


def unchecked(folder: Path, workers: int) -> list[float]:
    from guie_datasets import tfrecord

    paths = sorted(folder.iterdir())
    return timed(lambda: sum(record.label for path in paths for record in tfrecord.scan(path, check=False)))


def one_by_one(folder: Path, workers: int) -> list[float]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    wanted = {IMAGE: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
    paths = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.iterdir())))
    rows = paths.flat_map(tf.data.TFRecordDataset)
    rows = rows.map(lambda data: tf.io.parse_single_example(data, wanted), num_parallel_calls=tf.data.AUTOTUNE)
    rows = rows.batch(1).prefetch(tf.data.AUTOTUNE)

    def work() -> int:
        total = 0
        for row in rows:
            _, label = row[IMAGE].numpy()[0], row[LABEL].numpy()[0]
            total += int(label)
        return total

    return timed(work)


def batches(folder: Path, workers: int, reads: int | None = None) -> list[float]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    wanted = {IMAGE: tf.io.FixedLenFeature([], tf.string), LABEL: tf.io.FixedLenFeature([], tf.int64)}
    records = tf.data.TFRecordDataset(sorted(map(str, folder.iterdir())), num_parallel_reads=reads).batch(256)
    rows = records.map(lambda data: tf.io.parse_example(data, wanted), num_parallel_calls=tf.data.AUTOTUNE)
    rows = rows.prefetch(tf.data.AUTOTUNE)
    return timed(lambda: sum(int(row[LABEL].sum()) for row in rows.as_numpy_iterator()))


def parallel(folder: Path, workers: int) -> list[float]:
    return batches(folder, workers, reads=-1)  # tf.data.AUTOTUNE


def package(folder: Path, workers: int) -> list[float]:
    from tfrecord.reader import tfrecord_loader

    kinds = {IMAGE: "byte", LABEL: "int"}
    paths = sorted(map(str, folder.iterdir()))
    return timed(lambda: sum(int(row[LABEL][0]) for path in paths for row in tfrecord_loader(path, None, kinds)))


def index(folder: Path, workers: int, check: bool = True) -> list[float]:
    from guie_datasets import tfrecord

    paths = sorted(folder.iterdir())
    return timed(lambda: sum(len(tfrecord.Index.build(path, check=check)) for path in paths))


def lengths(folder: Path, workers: int) -> list[float]:
    return index(folder, workers, check=False)


def raw(folder: Path, workers: int) -> list[float]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    records = tf.data.TFRecordDataset(sorted(map(str, folder.iterdir()))).prefetch(tf.data.AUTOTUNE)
    return timed(lambda: sum(1 for _ in records.as_numpy_iterator()))


def package_index(folder: Path, workers: int) -> list[float]:
    from tfrecord.tools.tfrecord2idx import create_index

    to = folder.parent / "index"
    to.mkdir(exist_ok=True)
    paths = sorted(folder.iterdir())

    def work() -> int:
        for path in paths:
            create_index(str(path), str(to / f"{path.name}.idx"))
        return sum(len((to / f"{path.name}.idx").read_text().splitlines()) for path in paths)

    return timed(work)


def prepare(folder: Path, workers: int) -> list[float]:
    """[seconds by the clock, seconds of the processor, images, bytes added]"""
    from guie_datasets import TFRecordDataset
    from guie_datasets import prepare as prepared

    output = folder.parent / "manifest.parquet"

    def work() -> int:
        manifest, quarantine = prepared([TFRecordDataset(folder, source="photos")], workers=workers)
        assert not len(quarantine)
        manifest.write(output)
        return len(manifest)

    return [*timed(work), output.stat().st_size]


def expand(folder: Path, workers: int) -> list[float]:
    """[seconds by the clock, seconds of the processor, images, bytes added]"""
    from expansion import original

    with tempfile.TemporaryDirectory() as output:
        seconds, busy = original(folder, Path(output))
        return [seconds, busy, len(list(Path(output).rglob("*.png"))), disk(Path(output))]


WAYS: dict[str, Callable[[Path, int], list[float]]] = {
    "guie": guie,
    "unchecked": unchecked,
    "one_by_one": one_by_one,
    "batches": batches,
    "parallel": parallel,
    "package": package,
    "index": index,
    "lengths": lengths,
    "raw": raw,
    "package_index": package_index,
    "prepare": prepare,
    "expand": expand,
}


def make_shards(folder: Path, images: int, shards: int) -> None:
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from guie_datasets import tfrecord

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)

    def photo(number: int) -> bytes:
        whole = photos[number % 2]
        width, height = random.integers(300, 500), random.integers(200, 400)
        x, y = random.integers(0, whole.width - width), random.integers(0, whole.height - height)
        buffer = io.BytesIO()
        whole.crop((x, y, x + width, y + height)).save(buffer, "JPEG", quality=77)
        return buffer.getvalue()

    for shard, numbers in enumerate(np.array_split(np.arange(images), shards)):
        path = folder / f"guie-photos-train-{shard:02d}-{len(numbers)}.tfrec"
        tfrecord.write(path, ((photo(number), 1000 + number // 50) for number in numbers.tolist()))


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
