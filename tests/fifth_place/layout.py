"""The five sets of the 5th place as they come out of their archives, with pictures of guie-emoji for their images.

What is told of the sets is what was written, in the order in which the original's scripts meet it, so that tests can
compute what becomes of it without guie.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch._dynamo  # noqa: F401  loads triton, which crashes when TensorFlow was loaded before it
from PIL import Image

from guie_datasets import ImageRef
from guie_emoji.dataset import Emoji

PRODUCTS = "guie-products10k-tfrecords-label-1000-10690"
LANDMARKS = "guie-glr2021mini-tfrecords-label-10691-17690"
BLOCKS = ("Landmarks", "iNat", "sketch", "instre", "sop", "face")
KINDS = (
    *("apparel", "artwork", "cars", "dishes", "furniture", "illustrations", "landmark", "meme", "packaged"),
    *("storefronts", "toys"),
)


@dataclass(frozen=True)
class FiveSets:
    """A data folder and what is in it.

    Attributes:
        folder: holds the five sets under the names that their archives give them.
        products10k, glr2021: columns `image` (bytes) and `label`, in the order of shards and records.
        gpr1200: columns `image`, `label` and `block`, by file name. food101: `image`, `label` and `path`, by path.
        universal130k: columns `image` and `label` (text), in the order of train.csv.
    """

    folder: Path
    products10k: pd.DataFrame
    glr2021: pd.DataFrame
    gpr1200: pd.DataFrame
    food101: pd.DataFrame
    universal130k: pd.DataFrame


def lay_out(folder: Path) -> FiveSets:
    """Writes the five sets below `folder`: 84 of the emoji's subgroups as classes, each image in one class only.

    Products-10K has 26 classes of 24 images in 20 shards, the landmarks 24 of 22 in 32, GPR1200 5 classes a block of
    10, Food-101 4 of more than 30, and the 130k set eleven of 24, all of them square.
    """
    pictures = _subgroups()
    by_size = sorted(pictures, key=lambda name: (len(pictures[name]), name))
    food = [name for name in by_size if name.startswith("food-")][-4:]
    by_size = [name for name in by_size if name not in food and len(pictures[name]) >= 10]
    small, large = by_size[: 5 * len(BLOCKS)], by_size[-50:]
    return FiveSets(
        folder,
        _shards(folder / PRODUCTS, "products10k", [pictures[name][:24] for name in large[:26]], (1000, 10690), 20),
        _shards(folder / LANDMARKS, "glr2021", [pictures[name][:22] for name in large[26:]], (10691, 17690), 32),
        _gpr1200(folder / "GPR1200", [pictures[name][:10] for name in small]),
        _food101(folder / "food-101" / "food-101", {name: pictures[name][: 33 + 3 * i] for i, name in enumerate(food)}),
        _universal130k(folder / "130k", [pictures[name][-24:] for name in large[:11]]),
    )


def _subgroups() -> dict[str, list[bytes]]:
    """JPEGs of each subgroup; no two are the same."""
    found: dict[str, list[ImageRef]] = {}
    for row in Emoji(classes="subgroup").rows():
        found.setdefault(row.name, []).append(row.image)
    return {
        name: [_jpeg(Image.open(io.BytesIO(image.read())), f"{name} {i}") for i, image in enumerate(images[:45])]
        for name, images in found.items()
    }


def _jpeg(image: Image.Image, comment: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, comment=comment.encode())
    return buffer.getvalue()


def _spread(first: int, last: int, count: int) -> list[int]:
    """So many labels, both ends among them."""
    return [first + round(number * (last - first) / (count - 1)) for number in range(count)]


def write_shards(folder: Path, name: str, records: pd.DataFrame, shards: int) -> None:
    """Writes the rows as `guie-<name>-train-<shard>-<images>.tfrec`, by TensorFlow."""
    import tensorflow as tf

    folder.mkdir(parents=True)
    for shard in range(shards):
        part = records.iloc[shard * len(records) // shards : (shard + 1) * len(records) // shards]
        with tf.io.TFRecordWriter(str(folder / f"guie-{name}-train-{shard:02d}-{len(part)}.tfrec")) as writer:
            for image, label in zip(part["image"], part["label"], strict=True):
                example = tf.train.Example()
                example.features.feature["image/encoded"].bytes_list.value.append(image)
                example.features.feature["image/class/label"].int64_list.value.append(label)
                writer.write(example.SerializeToString())


def _shards(folder: Path, name: str, classes: list[list[bytes]], labels: tuple[int, int], shards: int) -> pd.DataFrame:
    numbered = zip(_spread(*labels, len(classes)), classes, strict=True)
    rows = [(image, label) for label, images in numbered for image in images]
    random.Random(name).shuffle(rows)
    records = pd.DataFrame(rows, columns=["image", "label"])
    write_shards(folder, name, records, shards)
    return records


def _gpr1200(folder: Path, classes: list[list[bytes]]) -> pd.DataFrame:
    (folder / "images").mkdir(parents=True)
    (folder / "GPR1200").mkdir()
    rows = []
    each = len(classes) // len(BLOCKS)
    for number, images in enumerate(classes):
        block, place = divmod(number, each)
        label = 200 * block + _spread(0, 199, each)[place]
        for i, image in enumerate(images):
            rows.append((f"{label}_{i * 7919 % 1000}_x.jpg", image, label, BLOCKS[block]))
            (folder / "images" / rows[-1][0]).write_bytes(image)
    texts = {str(label): f"thing {label}" for label in range(1200)}
    (folder / "GPR1200" / "GPR1200_categoryNumber_to_text.json").write_text(json.dumps(texts))
    return pd.DataFrame(sorted(rows), columns=["name", "image", "label", "block"])


def _food101(folder: Path, classes: dict[str, list[bytes]]) -> pd.DataFrame:
    rows = []
    (folder / "meta").mkdir(parents=True)
    for label, name in enumerate(sorted(classes)):
        (folder / "images" / name).mkdir(parents=True)
        for i, image in enumerate(classes[name]):
            path = folder / "images" / name / f"{1_000_003 * (i + 7) % 9_999_991}.jpg"
            path.write_bytes(image)
            rows.append((str(path), image, label))
    keys = sorted("/".join(Path(path).with_suffix("").parts[-2:]) for path, _, _ in rows)
    tests = set(keys[::4])
    (folder / "meta" / "train.txt").write_text("\n".join(key for key in keys if key not in tests))
    (folder / "meta" / "test.txt").write_text("\n".join(sorted(tests)))
    (folder / "meta" / "classes.txt").write_text("\n".join(sorted(classes)))
    return pd.DataFrame(sorted(rows), columns=["path", "image", "label"])


def _universal130k(folder: Path, classes: list[list[bytes]]) -> pd.DataFrame:
    rows = []
    for kind, images in zip(KINDS, classes, strict=True):
        (folder / kind).mkdir(parents=True)
        for i, image in enumerate(images):
            square = _jpeg(Image.open(io.BytesIO(image)).resize((96, 96)), f"{kind} {i}")
            rows.append((kind, f"{i * 7919 % 1000:04d}.jpg", square))
            (folder / kind / rows[-1][1]).write_bytes(square)
    random.Random(0).shuffle(rows)
    table = pd.DataFrame(rows, columns=["label", "image_name", "image"])
    table[["label", "image_name"]].to_csv(folder / "train.csv", index=False)
    return table


def small(data: Path) -> Iterator[str]:
    """Arguments that make experiments/5th_place.py small enough for two cores, on the sets below `data`."""
    for setting in (
        *(f"recipe.data.{number}.root={data}" for number in range(4)),
        f"recipe.classifier.data.0.root={data}",
        "recipe.data.1.drop_classes=4",
        "recipe.data.2.complete=False",  # 30 classes of 1,200, five a block
        "recipe.data.3.complete=False",  # 4 dishes of 101
        "recipe.backbone=dict(type='timm/test_resnet', weights='none', image_size=64)",
        "recipe.arcface.epochs=6",
        "recipe.arcface.batch_size=64",
        "recipe.arcface.keep_every=3",
        "recipe.selection.every=3",
        "recipe.classifier.training.epochs=40",
        "recipe.classifier.training.batch_size=64",
    ):
        yield from ("--set", setting)
