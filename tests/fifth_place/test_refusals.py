"""experiments/5th_place.py where data or weights are not as they should be: what is said, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from guie_core import ExperimentError, GuieError
from guie_core.experiment import Experiment
from guie_datasets import Manifest
from guie_train.runner import train

from .layout import LANDMARKS, PRODUCTS, FiveSets, lay_out, small, write_shards

EXPERIMENT = Path(__file__).resolve().parent.parent.parent / "experiments" / "5th_place.py"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> FiveSets:
    return lay_out(tmp_path_factory.mktemp("refusals") / "data")


@pytest.fixture
def data(sets: FiveSets, tmp_path: Path) -> Path:
    """The five sets, to be spoilt: files may go and come, but none is written to, since they are links."""
    shutil.copytree(sets.folder, tmp_path / "data", copy_function=os.link)
    return tmp_path / "data"


def run(data: Path, *more: str, stage: str = "split") -> Path:
    overrides = [*list(small(data))[1::2], *more]
    return train(Experiment.load(EXPERIMENT, overrides, "cpu"), work_dir=data.parent / "runs" / "small", stage=stage)


def refusal(data: Path, *more: str, stage: str = "split") -> str:
    with pytest.raises(GuieError) as raised:
        run(data, *more, stage=stage)
    return str(raised.value)


def test_all_missing_sets_are_named_before_anything_is_done(data: Path) -> None:
    for folder in (LANDMARKS, "GPR1200", "130k"):
        shutil.rmtree(data / folder)
    text = refusal(data)
    assert text.startswith("2 of 4 data sets in recipe.data cannot be used: glr2021, gpr1200\n")
    for name, page in {
        "glr2021": "https://www.kaggle.com/datasets/motono0223/guie-glr2021mini-tfrecords-label-10691-17690",
        "gpr1200": "https://github.com/Visual-Computing/GPR1200",
        "universal130k": "https://www.kaggle.com/datasets/rhtsingh/130k-images-512x512-universal-image-embeddings",
    }.items():
        assert f"the data set {name!r} is not there. Looked for" in text
        assert f"Fetch it from {page} with `guie data download {name}`" in text
    assert "To train on the others only, add --set \"recipe.without=['glr2021', 'gpr1200']\"" in text
    assert "To train without a classifier, and hence without switched augmentation, add --set recipe.cl" in text
    assert not (data.parent / "runs" / "store").exists()


def test_the_others_are_trained_on_when_asked(data: Path) -> None:
    shutil.rmtree(data / LANDMARKS)
    shutil.rmtree(data / "130k")
    without = ("recipe.without=['glr2021']", "recipe.classifier=None", "recipe.augmentation=None")
    manifest = Manifest.read(run(data, *without) / "stages" / "split" / "manifest.parquet")
    assert set(manifest.column("source")) == {"products10k", "gpr1200", "food101"}


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("['glr2020']", "recipe.without: there is no data set 'glr2020' in recipe.data. Did you mean 'glr2021'?"),
        ("['products10k', 'glr2021', 'gpr1200', 'food101']", "recipe.without: it leaves out every data set"),
    ],
)
def test_what_cannot_be_left_out(without: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as raised:
        run(tmp_path / "data", f"recipe.without={without}")
    assert str(raised.value).startswith("1 problem in ")
    assert f"5th_place.py\n  {text}" in str(raised.value)


def images_elsewhere(data: Path) -> None:
    (data / "GPR1200" / "images").rename(data / "GPR1200" / "pictures")


def class_folders(data: Path) -> None:
    for path in (data / "GPR1200" / "images").glob("*.jpg"):
        folder = path.parent / path.name.partition("_")[0]
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)


def flat(data: Path) -> None:
    for path in (data / "food-101").rglob("*.jpg"):
        path.rename(path.parent.parent / path.name)
    for folder in (data / "food-101" / "food-101" / "images").iterdir():
        if folder.is_dir():
            folder.rmdir()


def a_class_lost(data: Path) -> None:
    shutil.rmtree(min((data / "food-101" / "food-101" / "images").iterdir()))


def another_table(data: Path) -> None:
    (data / "130k" / "train.csv").unlink()
    (data / "130k" / "train.csv").write_text("id,landmark_id\n0,1\n")


def a_shard_lost(data: Path) -> None:
    next((data / PRODUCTS).glob("*-07-*")).unlink()


def shards_of_another_set(data: Path) -> None:
    shutil.rmtree(data / LANDMARKS)
    shutil.copytree(data / PRODUCTS, data / LANDMARKS, copy_function=os.link)


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (images_elsewhere, ["'gpr1200' is laid out in another way than it comes", "GPR1200 holds GPR1200, pictures"]),
        (class_folders, ["'gpr1200' is laid out in another way than it comes", "images/*_*"]),
        (flat, ["'food101' is laid out in another way than it comes", "images/*/*", "food-101 holds images, meta"]),
        (a_class_lost, ["images are bad", "not there, but in meta/train.txt", "quarantine.csv"]),
        (another_table, ["train.csv: its columns are 'id', 'landmark_id', not label, image_name"]),
        (a_shard_lost, ["the set is not complete:\n  guie-products10k-train-07-*.tfrec is missing"]),
        (shards_of_another_set, ["'glr2021' is laid out in another way", "holds guie-products10k-train-00-31.tfrec"]),
    ],
)
def test_a_set_that_is_laid_out_wrongly(spoil: Callable[[Path], None], texts: list[str], data: Path) -> None:
    spoil(data)
    told = refusal(data)
    for text in texts:
        assert text in told


def test_shards_with_labels_of_another_range(data: Path, sets: FiveSets) -> None:
    shutil.rmtree(data / LANDMARKS)
    records = sets.glr2021.iloc[:64]
    write_shards(data / LANDMARKS, "glr2021", records.assign(label=records["label"] - 10691), 32)
    told = refusal(data)
    assert "64 of " in told
    assert "images are bad" in told
    assert "guie-glr2021-train-00-2.tfrec" in told
    assert f"label {records['label'].iloc[0] - 10691} is not in 10691..17690" in told


def test_weights_that_cannot_be_had(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = refusal(data, "recipe.backbone={'type': 'open_clip/ViT-H-14/laion2b_s32b_b79k'}", stage="features train")
    assert "laion/CLIP-ViT-H-14-laion2B-s32B-b79K: open_clip_model.safetensors or open_clip_pytorch_model.bin" in told
    assert "are not in this machine's cache" in told
    assert "--set recipe.backbone.weights=file:<path>" in told
    # what was done is kept, and there is nothing half done
    assert (data.parent / "runs" / "small" / "stages" / "split" / "manifest.parquet").is_file()


def test_on_the_command_line_it_is_one_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "guie_train", str(EXPERIMENT), "--profile", "cpu"]
    done = subprocess.run(
        [*command, "--work-dir", str(tmp_path / "runs" / "x")],
        capture_output=True,
        text=True,
        env=os.environ | {"GUIE_DATA": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: 4 of 4 data sets in recipe.data cannot be used: products10k, glr2021")
    assert "recipe.without" not in done.stderr  # there would be nothing to train on
    assert "recipe.classifier=None" in done.stderr
    assert "Traceback" not in done.stderr
