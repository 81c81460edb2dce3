"""An image whose damage shows only when it is decoded: named and left out, or too many and the run ends."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from guie_datasets import Manifest, decode
from guie_datasets.images import decoding
from guie_train.feature_store import FeatureStore

ROOT = Path(__file__).resolve().parent.parent
CLASSES, IMAGES = 24, 4
SMALL = [
    "recipe.splits.0.classes=6",
    "recipe.splits.1.folds=3",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
    "recipe.arcface.epochs=2",
    "recipe.arcface.batch_size=16",
    "recipe.classifier=None",
    "recipe.augmentation=None",
    "recipe.evaluation.pca=8",
    "recipe.exports=[dict(type='TorchScript')]",
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of JPEGs: a shape and colour a class."""
    folder = tmp_path / "images"
    for label in range(CLASSES):
        random = np.random.default_rng(label)
        colour = tuple(random.integers(0, 256, 3).tolist())
        for number in range(IMAGES):
            image = Image.fromarray(random.integers(90, 160, (96, 128, 3), dtype=np.uint8))
            box = [8 + 4 * number, 8, 70 + label, 40 + 2 * label]
            (ImageDraw.Draw(image).ellipse if label % 2 else ImageDraw.Draw(image).rectangle)(box, fill=colour)
            path = folder / f"class {label:02}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)
    return folder


def damage(path: Path) -> None:
    """Makes its first quantization table a block that decoders pass over: header and end are as before."""
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xdb") + 1] = 0xE9
    path.write_bytes(data)
    assert decoding.examine(bytes(data)) == (128, 96)
    with pytest.raises(decoding.BadImage):
        decode(bytes(data))


def run(tmp_path: Path, images: Path, *overrides: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    settings = [f"recipe.data=[dict(type='folder', root={str(images)!r})]", *SMALL, *overrides]
    command = [sys.executable, "-m", "guie_train", str(ROOT / "experiments" / "quickstart.py")]
    command += ["--work-dir", str(tmp_path / "runs" / "small"), *options]
    return subprocess.run(
        [*command, *(part for setting in settings for part in ("--set", setting))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_more_bad_images_than_may_be_now_are_refused_where_data_were_prepared_before(
    tmp_path: Path, images: Path
) -> None:
    (images / "class 03" / "1.jpg").write_bytes(b"none")
    assert run(tmp_path, images, "recipe.max_bad=0.2", options=["--stage", "split"]).returncode == 0
    told = r"error: prepare: 1 of 96 images are bad \(1\.04%\), more than recipe\.max_bad = 0\.00% allows\."
    for options in (["--dry-run"], ["--fresh"]):
        refused = run(tmp_path, images, "recipe.max_bad=0", options=options)
        assert refused.returncode == 1
        assert re.search(told, refused.stderr), refused.stderr
        assert "Mend or remove them, or raise recipe.max_bad to 0.011" in refused.stderr
    again = run(tmp_path, images, "recipe.max_bad=0.2", options=["--fresh", "--stage", "split"])
    assert re.search(r"prepare +reused", again.stdout)


def test_a_run_with_bad_images_names_them_and_goes_on_without_them(tmp_path: Path, images: Path) -> None:
    bad = [images / f"class {label:02}" / "1.jpg" for label in range(0, CLASSES, 3)]  # of every split
    for path in bad:
        damage(path)
    refused = run(tmp_path, images)
    assert refused.returncode == 1
    assert "cannot be decoded" in refused.stderr
    assert "more than max_bad = 0.10% allows" in refused.stderr
    assert "1.jpg: JPEG: " in refused.stderr
    assert "raise recipe.max_bad" in refused.stderr
    assert "Traceback" not in refused.stderr

    done = run(tmp_path, images, "recipe.max_bad=0.1", "recipe.features=dict(decode='scaled')", options=["--fresh"])
    assert done.returncode == 0, done.stderr
    assert f"{len(bad)} that cannot be decoded are left out: bad.csv" in done.stdout
    stages = tmp_path / "runs" / "small" / "stages"
    with open(stages / "features-valid" / "bad.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(row["place"] for row in listed) == [str(path) for path in bad]
    assert all(row["reason"].startswith("JPEG: ") for row in listed)

    store = FeatureStore((stages / "features-valid").resolve())
    assert store.about["decode"] == "scaled"
    manifest = Manifest.read(stages / "split" / "manifest.parquet")
    assert len(store) == len(manifest) - len(bad) == CLASSES * IMAGES - len(bad)
    # sizes are those of the images, not of the scaled decode
    assert set(manifest.column("width")) == {128}
    # results are told by rows of the whole manifest, and by none of the bad ones
    report = json.loads((stages.parent / "run.json").read_text())
    assert {score["system"] for score in report["records"]["scores"]} == {"raw features", "PCA-8", "trained"}
    paths = manifest.column("path")
    queries = np.load(stages / "evaluate" / "0" / "evaluation.npz", allow_pickle=False)["queries"]
    assert set(manifest.column("split")[queries]) == {"test"}
    assert not set(map(str, bad)) & set(paths[queries])

    again = run(tmp_path, images, "recipe.max_bad=0.1", "recipe.features=dict(decode='scaled')")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("reused") >= 5  # bad images don't have features computed again


def test_every_image_bad_is_one_message(tmp_path: Path, images: Path) -> None:
    for path in images.rglob("*.jpg"):
        damage(path)
    done = run(tmp_path, images, "recipe.max_bad=1.0")
    assert done.returncode == 1
    assert "cannot be decoded, and there are no others:" in done.stderr
    assert "Traceback" not in done.stderr
