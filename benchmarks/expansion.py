"""TFRecord shards expanded to PNG: `guie data export --to png` beside the way of the 5th place's tfrec2png.py.

    python benchmarks/expansion.py [--images 300] [--rounds 3] [--shards FOLDER] [--workers 2]

That way is TensorFlow's: tf.data parses and decodes in the background, as float32 and back, and Pillow encodes one
image after the other in one process. Both run in turn in processes of their own, on the same shards (crops of
scikit-learn's two photos, or those in FOLDER), and the best round counts; "processor" is the time that all threads
together kept a core busy, which says more than the clock where a machine is shared. Then all pairs of files are
compared.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=Path, help="a folder of shards instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # way, folder of shards, output
    options = parser.parse_args()
    if options.run:
        way, shards, output = options.run
        print(
            *(original(Path(shards), Path(output)) if way == "original" else guie(way, shards, output, options.workers))
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        shards = options.shards or make_shards(Path(temporary) / "photos", options.images)
        outputs = {way: Path(temporary) / way for way in ("original", "full", "tensorflow")}
        clock, processor = (dict.fromkeys(outputs, float("inf")) for _ in range(2))
        for number in range(options.rounds):
            for way, output in outputs.items():
                arguments = ["--run", way, str(shards), str(output / str(number))]
                arguments += ["--workers", str(options.workers)]
                command = [sys.executable, __file__, *arguments]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                took, busy = map(float, done.stdout.split())
                clock[way], processor[way] = min(clock[way], took), min(processor[way], busy)
        report({way: output / "0" for way, output in outputs.items()}, clock, processor, options.workers)


def make_shards(folder: Path, images: int) -> Path:
    """Shards of JPEG photos with sides of 200 to 500 pixels."""
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
        whole.crop((x, y, x + width, y + height)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    for shard, numbers in enumerate(np.array_split(np.arange(images), 2)):
        examples = ((photo(number), 1000 + number % 50) for number in numbers.tolist())
        tfrecord.write(folder / f"guie-photos-train-{shard:02d}-{len(numbers)}.tfrec", examples)
    return folder


def original(shards: Path, output: Path) -> tuple[float, float]:
    """What tfrec2png.py does; the seconds by the clock, and of the processor. TensorFlow's import doesn't count."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        image = tf.image.decode_jpeg(example["image/encoded"], channels=3)
        return tf.cast(image, tf.float32) / 255.0, example["image/class/label"]

    began, busy, count = time.perf_counter(), time.process_time(), 0
    for shard in sorted(shards.glob("*-train-*.tfrec")):
        folder = output / shard.stem.split("-")[-4] / shard.stem
        folder.mkdir(parents=True)
        records = tf.data.Dataset.from_tensor_slices([str(shard)]).flat_map(tf.data.TFRecordDataset)
        images = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        images = images.map(lambda image, label: (image * 255.0, label), num_parallel_calls=tf.data.AUTOTUNE)
        for image, label in images.batch(1).prefetch(tf.data.AUTOTUNE):
            pixels = image.numpy()[0].astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{count}-{label.numpy()[0]}.png")
            count += 1
    return time.perf_counter() - began, time.process_time() - busy


def guie(method: str, shards: str, output: str, workers: int) -> tuple[float, float]:
    """Manifest and export, both; imports don't count, as above."""
    from guie_datasets import TFRecordDataset, prepare
    from guie_datasets.exporting import export

    if method == "tensorflow":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import tensorflow  # noqa: F401
    sets = [TFRecordDataset(shards, source="photos")]
    began, busy = time.perf_counter(), time.process_time()
    manifest, _ = prepare(sets, keep_duplicates=True, workers=workers)
    export(manifest, "png", output, method=method, workers=workers)  # type: ignore[arg-type]
    return time.perf_counter() - began, time.process_time() - busy


def report(outputs: dict[str, Path], clock: dict[str, float], processor: dict[str, float], workers: int) -> None:
    import numpy as np
    import PIL
    from PIL import Image

    names = {way: {path.name: path for path in output.rglob("*.png")} for way, output in outputs.items()}
    images = len(names["original"])
    sizes = {way: sum(path.stat().st_size for path in files.values()) for way, files in names.items()}
    print(f"$ python {' '.join(sys.argv)}")
    print(
        f"{images:,} images, {workers} threads, {os.cpu_count()} cores, {platform.machine()}, Pillow {PIL.__version__}"
    )
    columns = f"{'seconds':>9}{'images/s':>10}{'ratio':>7}{'processor s':>13}{'ratio':>7}{'MB':>8}{'ratio':>7}"
    print(f"{'':34}{columns}  pixels of the original")
    labels = {
        "original": "tf.data and Pillow, one by one",
        "full": "guie data export --to png",
        "tensorflow": "the same with --decode tensorflow",
    }
    for way, label in labels.items():
        assert names[way].keys() == names["original"].keys()
        same = differs = 0
        for name, path in names[way].items():
            one, other = (np.asarray(Image.open(each), np.int16) for each in (path, names["original"][name]))
            same += np.array_equal(one, other)
            differs = max(differs, int(np.abs(one - other).max()))
        pixels = "all" if same == images else f"{same} of {images} images, largest difference {differs}"
        print(
            f"{label:34}{clock[way]:9.2f}{images / clock[way]:10.1f}{clock['original'] / clock[way]:7.2f}"
            f"{processor[way]:13.2f}{processor['original'] / processor[way]:7.2f}"
            f"{sizes[way] / 1e6:8.1f}{sizes[way] / sizes['original']:7.3f}  {pixels}"
        )


if __name__ == "__main__":
    main()
