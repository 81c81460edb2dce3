"""experiments/5th_place.py on small sets that are laid out as the original's, checked against what its scripts do.

What is expected is computed with pandas, scikit-learn, timm, torchvision and numpy, from what the files hold.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision.transforms.v2.functional as tv
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import LabelEncoder
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from guie_core import build
from guie_core.experiment import Experiment
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_datasets import Manifest
from guie_train.feature_store import FeatureStore
from guie_train.fitting import Fit, Resident, Training
from guie_train.heads import HeadWithLoss
from guie_train.planning.plan import make_plan
from guie_train.prediction.submission import check_submission
from guie_train.stage import Workspace

from .layout import KINDS, FiveSets, lay_out, small

ROOT = Path(__file__).resolve().parent.parent.parent
EXPERIMENT = ROOT / "experiments" / "5th_place.py"
SIDE = 64  # of the small backbone's images
Array = NDArray[Any]


def guie_train(data: Path, work_dir: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guie_train", str(EXPERIMENT), "--profile", "cpu", "--work-dir", str(work_dir)]
    return subprocess.run(
        [*command, *small(data), *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> FiveSets:
    return lay_out(tmp_path_factory.mktemp("fifth") / "data")


@pytest.fixture(scope="module")
def run(sets: FiveSets) -> Path:
    """The folder of a finished run."""
    folder = sets.folder.parent / "runs" / "small"
    done = guie_train(sets.folder, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def expected(sets: FiveSets) -> pd.DataFrame:
    """The images of points 1 and 2, by pandas and scikit-learn: image, label, category, part, height and width."""
    landmarks = sets.glr2021
    kept = pd.Series(landmarks["label"].unique()).sample(n=landmarks["label"].nunique() - 4, random_state=0)
    first = pd.concat(
        [
            sets.products10k.assign(category="products10k"),
            landmarks[landmarks["label"].isin(kept)].assign(category="glr2021"),
        ]
    )
    gpr = sets.gpr1200[sets.gpr1200["block"] != "iNat"]
    gpr = gpr.assign(category="GPR1200_" + gpr["block"], label=gpr["label"] + first["label"].max() + 1)
    food = pd.concat([dish.sample(30, random_state=0) for _, dish in sets.food101.groupby("label")])
    food = food.assign(category="food101", label=food["label"] + gpr["label"].max() + 1)
    rows = pd.concat([first, gpr, food], ignore_index=True)[["image", "label", "category"]]
    rows["label"] = LabelEncoder().fit_transform(rows["label"])

    unseen = StratifiedGroupKFold(20, shuffle=True, random_state=0)
    rest, select = next(unseen.split(rows, rows["category"], rows["label"]))
    rows["part"] = "train"
    rows.loc[select, "part"] = "select"
    counts = rows.loc[rest, "label"].value_counts()
    large = rest[rows.loc[rest, "label"].map(counts) >= 20]
    _, valid = next(StratifiedKFold(20, shuffle=True, random_state=0).split(large, rows.loc[large, "label"]))
    rows.loc[large[valid], "part"] = "valid"
    sizes = [Image.open(io.BytesIO(image)).size for image in rows["image"]]
    return rows.assign(width=[width for width, _ in sizes], height=[height for _, height in sizes])


# --- points 1 and 2: the data


def test_images_classes_and_splits_are_those_of_pandas_and_scikit_learn(run: Path, expected: pd.DataFrame) -> None:
    manifest = Manifest.read(run / "stages" / "split" / "manifest.parquet")
    images = manifest.images()
    assert [images[row].read() for row in range(len(manifest))] == expected["image"].tolist()
    for column, wanted in {"label": "label", "category": "category", "split": "part"}.items():
        assert manifest.column(column).tolist() == expected[wanted].tolist()
    assert set(expected["part"]) == {"train", "valid", "select"}
    assert expected["label"].nunique() == 26 + 20 + 25 + 4
    assert set(expected["category"]) == {
        *("products10k", "glr2021", "food101"),
        *("GPR1200_Landmarks", "GPR1200_sketch", "GPR1200_instre", "GPR1200_sop", "GPR1200_face"),
    }


def test_what_is_not_used_is_told(run: Path) -> None:
    told = (run / "stages" / "prepare" / "quarantine.csv").read_text()
    for line in ("4 classes are dropped", "50 images of the blocks iNat", "of its images are more than max_images"):
        assert line in told


# --- points 3 to 8: the embedding


def features(run: Path, view: str, images: Sequence[bytes]) -> Array:
    """Stored features [N, D] of these images."""
    store = FeatureStore((run / "stages" / f"features-{view}").resolve())
    return store.read(np.array([hashlib.blake2b(image, digest_size=16).hexdigest() for image in images], "S32"))


def sizes(rows: pd.DataFrame) -> Array:
    """Point 3: H/W, H/224 and W/224, for a backbone of 64 px."""
    h, w = rows["height"].to_numpy(float), rows["width"].to_numpy(float)
    return np.stack([h / w, h / SIDE, w / SIDE], 1)


def network() -> tuple[Any, Tensor, Tensor]:
    """timm's own network with the random weights of guie's, and its mean and std."""
    model: Any = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict(build("backbones", {"type": "timm/test_resnet", "weights": "none"}).network.state_dict())
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    return model, mean, std


def pixels(image: bytes) -> Tensor:
    """[3, H, W], 0..255."""
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).copy()).permute(2, 0, 1).float()


@torch.inference_mode()
def test_features_are_timms_of_torchvisions_views(run: Path, expected: pd.DataFrame) -> None:
    """Point 3: squashed for validation; in training, an image far from square gives its centred square."""
    far = expected[(expected["height"] > 1.2 * expected["width"]) | (expected["width"] > 1.2 * expected["height"])]
    trained = far["part"] == "train"
    model, mean, std = network()
    for name, rows in {"train": far[trained].iloc[::40], "valid": far[~trained].iloc[::2]}.items():
        assert len(rows) >= 8
        seen_as = []
        for image in map(pixels, rows["image"]):
            side = min(image.shape[1:])
            top, left = ((length - side) // 2 for length in image.shape[1:])
            part = image[:, top : top + side, left : left + side] if name == "train" else image
            seen = tv.resize(part, [SIDE, SIDE], tv.InterpolationMode.BILINEAR, antialias=False)
            seen_as.append((seen / 255 - mean) / std)
        found = features(run, name, rows["image"].tolist())
        np.testing.assert_allclose(found, model(torch.stack(seen_as)).numpy(), rtol=1e-3, atol=1e-4)


def embedded(run: Path, checkpoint: str, x: Array) -> Array:
    """Point 4, in evaluation: [N, D + 3] to [N, 64]."""
    tensors = load_file(run / "stages" / "head" / f"{checkpoint}.safetensors")
    mean, var = tensors["head.norm.running_mean"], tensors["head.norm.running_var"]
    out: Array = ((x - mean) / np.sqrt(var + 1e-6)) @ tensors["head.linear.weight"].T.astype(float)
    out += tensors["head.linear.bias"]
    return out


def margin_logits(embedding: Array, centres: Array, labels: Array) -> Array:
    """Point 5: scale 30, margin 0.5, not easy-margin."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    cosine: Array = unit @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    rows = np.arange(len(labels))
    target = np.clip(cosine[rows, labels], -1, 1)
    theta = np.arccos(target)
    widened = np.where(theta < np.pi - 0.5, np.cos(theta + 0.5), target - np.sin(np.pi - 0.5) * 0.5)
    cosine[rows, labels] = widened
    cosine *= 30
    return cosine


def last_curve(run: Path, stage: str) -> dict[str, float]:
    curve: dict[str, float] = json.loads((run / "stages" / stage / "curves.json").read_text())["curves"][-1]
    return curve


def test_validation_is_on_margin_penalised_logits_of_encoded_classes(run: Path, expected: pd.DataFrame) -> None:
    """Points 2, 5 and 7, in numpy: a class's number is its place among those of the training part."""
    encoder = LabelEncoder().fit(expected.loc[expected["part"] != "select", "label"])
    rows = expected[expected["part"] == "valid"]
    labels = encoder.transform(rows["label"])
    x = np.concatenate([features(run, "valid", rows["image"].tolist()), sizes(rows)], 1)
    centres = load_file(run / "stages" / "head" / "last.safetensors")["loss.centres"]
    assert centres.shape == (len(encoder.classes_), 64)
    logits = margin_logits(embedded(run, "last", x), centres.astype(float), labels)
    logits -= logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    curve = last_curve(run, "head")
    assert curve["valid loss"] == pytest.approx(loss.mean(), rel=1e-4)
    assert curve["valid accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())


def test_selection_is_the_originals(run: Path, expected: pd.DataFrame) -> None:
    """Point 8: 1 / rank of the first hit within 5, by L2 on embeddings that are not normalised."""
    test, rest = expected[expected["part"] == "select"], expected[expected["part"] != "select"]
    queries = test.drop_duplicates("label")
    seconds = test.drop(queries.index).drop_duplicates("label")
    firsts = rest.drop_duplicates("label")
    index = pd.concat([seconds, firsts.sample(n=3 * len(seconds), random_state=0)])
    embedding = {
        name: embedded(
            run, "last", np.concatenate([features(run, "valid", rows["image"].tolist()), sizes(rows)], axis=1)
        )
        for name, rows in {"queries": queries, "index": index}.items()
    }
    far = np.linalg.norm(embedding["queries"][:, None] - embedding["index"][None], axis=2)
    nearest = index["label"].to_numpy()[np.argsort(far, axis=1)[:, :5]] == queries["label"].to_numpy()[:, None]
    reciprocal = np.where(nearest.any(1), 1 / (1 + nearest.argmax(1)), 0)
    assert last_curve(run, "head")["MRR@5"] == pytest.approx(reciprocal.mean())


def test_the_best_of_the_figure_that_the_original_logs_is_chosen(run: Path) -> None:
    about = json.loads((run / "stages" / "head" / "curves.json").read_text())
    measured = [curve for curve in about["curves"] if "MRR@5" in curve]
    assert [curve["epoch"] for curve in measured] == [3, 6]
    assert all(curve.keys() >= {"lr", "loss", "valid loss", "valid accuracy"} for curve in measured)
    assert about["chosen"] == max(measured, key=lambda curve: curve["MRR@5"])["epoch"]


def test_checkpoints_are_those_of_the_original(run: Path) -> None:
    names = {path.stem for path in (run / "stages" / "head").glob("*.safetensors")}
    assert names == {"chosen", "last", "best-valid-loss", "best-valid-accuracy", "epoch-0003", "epoch-0006"}


@pytest.mark.parametrize(("stage", "epochs"), [("head", 6), ("classifier", 40)])
def test_learning_rates_are_timms(run: Path, stage: str, epochs: int) -> None:
    """Points 7 and 9, by the epoch."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-6, warmup_t=3, warmup_lr_init=1e-6, warmup_prefix=True
    )
    wanted = []
    for epoch in range(epochs):
        schedule.step(epoch)
        wanted.append(optimizer.param_groups[0]["lr"])
    curves = json.loads((run / "stages" / stage / "curves.json").read_text())["curves"]
    assert [curve["lr"] for curve in curves] == pytest.approx(wanted)


def test_a_step_is_sams_in_float64(run: Path, expected: pd.DataFrame, tmp_path: Path) -> None:
    """Points 4 to 6, on all training images at once, with the experiment's own head, loss and optimiser."""
    rows = expected[expected["part"] == "train"]
    labels = torch.from_numpy(LabelEncoder().fit_transform(rows["label"]))
    x = torch.from_numpy(np.concatenate([features(run, "train", rows["image"].tolist()), sizes(rows)], 1))
    recipe = Experiment.load(EXPERIMENT, profile="cpu").recipe
    torch.manual_seed(0)
    head = build("heads", recipe["head"], in_features=x.shape[1] - 3)
    loss = build("losses", recipe["loss"], embedding_size=64, classes=int(labels.max()) + 1)
    model = HeadWithLoss(head, loss)
    weights = [p.detach().double().clone() for p in (head.linear.weight, head.linear.bias, loss.centres)]
    settings = recipe["arcface"] | {"epochs": 1, "batch_size": len(rows), "warmup_epochs": 0, "keep_every": 0}
    fit = Fit(model, Resident(x.float(), labels), Training(**settings), seed=0, folder=tmp_path, name="head")
    curves = fit.run(Stop())

    mean, var = torch.zeros(x.shape[1], dtype=torch.float64), torch.ones(x.shape[1], dtype=torch.float64)

    def gradients(at: list[Tensor]) -> tuple[float, list[Tensor]]:
        weight, bias, centres = (w.clone().requires_grad_() for w in at)
        center, spread = x.mean(0), x.var(0, unbiased=False)
        mean.mul_(0.9).add_(0.1 * center)
        var.mul_(0.9).add_(0.1 * x.var(0))
        embedding = ((x - center) / torch.sqrt(spread + 1e-6)) @ weight.T + bias
        unit = embedding / embedding.norm(dim=1, keepdim=True)
        cosine = unit @ (centres / centres.norm(dim=1, keepdim=True)).T
        theta = torch.acos(cosine.gather(1, labels[:, None]))
        widened = torch.where(theta < np.pi - 0.5, torch.cos(theta + 0.5), torch.cos(theta) - np.sin(np.pi - 0.5) * 0.5)
        logits = 30 * cosine.scatter(1, labels[:, None], widened)
        value = (logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).mean()
        return value.item(), list(torch.autograd.grad(value, [weight, bias, centres]))

    value, first = gradients(weights)
    norm = torch.cat([g.flatten() for g in first]).norm()
    _, second = gradients([w + 0.05 * g / norm for w, g in zip(weights, first, strict=True)])
    assert torch.cat([g.flatten() for g in second]).norm() < 1000  # else they would be clipped
    assert curves[0]["loss"] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(head.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.norm.running_var.double(), var, rtol=1e-5, atol=1e-6)
    for parameter, weight, gradient in zip(
        (head.linear.weight, head.linear.bias, loss.centres), weights, second, strict=True
    ):
        moment = fit.optimizer.state[parameter]["exp_avg"].double() / 0.1
        torch.testing.assert_close(moment, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
        # AdamW's first step goes by the gradient's sign, which rounding decides where it is next to nothing
        clear = gradient.abs() > 1e-4 * gradient.abs().max()
        assert clear.double().mean() > 0.9  # some of the backbone's features are always 0
        stepped = weight * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach().double()[clear], stepped[clear], rtol=1e-5, atol=1e-5)


# --- point 9: the classifier


def test_the_classifier_learns_from_the_130k_set(run: Path, sets: FiveSets) -> None:
    table = sets.universal130k
    labels = table["label"].map(KINDS.index).to_numpy()
    _, valid = next(StratifiedKFold(20, shuffle=True, random_state=2021).split(labels, labels))
    about = json.loads((run / "stages" / "classifier" / "curves.json").read_text())
    assert about["categories"] == list(KINDS)
    x = features(run, "classifier", table["image"].iloc[valid].tolist())
    right = classified(run, x) == labels[valid]
    assert last_curve(run, "classifier")["valid accuracy"] == pytest.approx(right.mean())
    assert [curve["epoch"] for curve in about["curves"] if "valid accuracy" in curve] == [20, 40]


def classified(run: Path, x: Array) -> Array:
    tensors = load_file(run / "stages" / "classifier" / "last.safetensors")
    found: Array = (x @ tensors["linear.linear.weight"].T + tensors["linear.linear.bias"]).argmax(1)
    return found


# --- point 10: the model that is submitted


@torch.inference_mode()
def test_the_submission_embeds_raw_images_as_the_formula_does(run: Path, expected: pd.DataFrame) -> None:
    with zipfile.ZipFile(run / "stages" / "submission" / "submission.zip") as archive:
        assert archive.namelist() == ["saved_model.pt"]
        model = torch.jit.load(io.BytesIO(archive.read("saved_model.pt")))
    network_, mean, std = network()

    def seen(image: Tensor) -> Array:
        view = tv.resize(image, [SIDE, SIDE], tv.InterpolationMode.BICUBIC, antialias=True)
        x: Array = network_(((view / 255 - mean) / std)[None]).numpy()[0]
        return x

    shapes = {"square": 0, "other": 0, "padded": 0}
    square = expected[expected["height"] == expected["width"]].iloc[::60]
    other = expected[expected["height"] != expected["width"]].iloc[::12]
    for image in map(pixels, [*square["image"], *other["image"]]):
        height, width = image.shape[1:]
        if height == width:
            shapes["square"] += 1
            views = [seen(tv.center_crop(image, [int(0.9 * height), int(0.9 * width)]))]
        else:
            side = max(height, width)
            left, top = (side - width) // 2, (side - height) // 2
            padded = tv.pad(image, [left, top, side - width - left, side - height - top], fill=0)
            views = [seen(image), seen(tv.center_crop(padded, [int(0.9 * side)] * 2))]
            steered = classified(run, views[0][None])[0] in (0, 8, 10)
            shapes["padded" if steered else "other"] += 1
            if steered:
                views.append(seen(padded))
        concat = np.array([[*x, height / width, height / SIDE, width / SIDE] for x in views])
        mean_output = embedded(run, "chosen", concat).mean(0)
        wanted = mean_output / np.linalg.norm(mean_output)
        np.testing.assert_allclose(model(image[None]).numpy()[0], wanted, atol=2e-5)
    assert min(shapes.values()) >= 3, shapes


def test_the_submission_passes_the_contests_checks(run: Path) -> None:
    """Odd shapes among them, in a process without guie."""
    checks = check_submission(run / "stages" / "submission" / "submission.zip", profile("cpu"))
    assert len(checks) > 8
    assert [check for check in checks if check.verdict == "FAILED"] == []


def test_what_the_plan_told_of_disk_is_what_was_written(run: Path, sets: FiveSets, tmp_path: Path) -> None:
    """With the images counted: of stages that follow the split, from a store that has nothing else."""
    store = run.resolve().parent / "store"
    for slug in ("prepare", "split"):
        shutil.copytree(store / slug, tmp_path / slug)
    experiment = Experiment.load(EXPERIMENT, list(small(sets.folder))[1::2], "cpu")
    recipe: Any = build("recipes", experiment.recipe)
    stages = recipe.stages(experiment.profile)
    plan = make_plan(stages, [], Workspace(tmp_path, experiment.profile, Stop()))
    assert [step.name for step in plan.steps if step.state == "done before"] == [
        *("prepare", "prepare classifier", "split"),
    ]
    for stage, step in zip(stages, plan.steps, strict=True):
        folder = store / stage.slug / stage.key
        written = sum(path.stat().st_size for path in folder.iterdir())
        # what describes the outputs, and the code of the exported model, comes besides
        assert step.disk == pytest.approx(written, rel=0.01, abs=15_000), step.name
    # what is there and is to be run again takes its time again
    features, *_ = make_plan(stages, [stages[3]], Workspace(store, experiment.profile, Stop())).to_do
    assert (features.name, features.state) == ("features train", "again")
    assert features.forecast.seconds


def test_there_is_no_report_without_an_evaluation(run: Path) -> None:
    assert not (run / "report.html").exists()


# --- what is done again


def test_another_split_and_another_head_compute_what_has_changed_sides(run: Path, sets: FiveSets) -> None:
    classifier = (run / "stages" / "features-classifier").resolve()
    before = {path: path.stat().st_mtime_ns for path in classifier.glob("*.npy")}
    changed = [
        *("recipe.splits.0.seed=1", "recipe.splits.1.folds=10", "recipe.head.dropout=0.1"),
        # the original's effects, which guie's defaults leave out
        *("recipe.arcface.clip=scaled", "recipe.arcface.optimizer.infinite=stale"),
    ]
    more = [part for setting in changed for part in ("--set", setting)]
    done = guie_train(sets.folder, run.with_name("another"), *more, "--stage", "classifier")
    assert done.returncode == 0, done.stderr
    record = json.loads((run.with_name("another") / "run.json").read_text())
    reused = {stage["name"]: stage["reused"] for stage in record["records"]["stages"]}
    assert {name for name, again in reused.items() if not again} == {
        "split",
        "features train",
        "features valid",
        "head",
    }
    trained = set()
    for folder in (run, run.with_name("another")):
        manifest = Manifest.read(folder / "stages" / "split" / "manifest.parquet")
        trained |= set(manifest.column("hash")[manifest.column("split") == "train"].tolist())
    assert len(FeatureStore((run / "stages" / "features-train").resolve())) == len(trained)
    assert {path: path.stat().st_mtime_ns for path in classifier.glob("*.npy")} == before
