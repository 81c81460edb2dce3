"""Training with samplers: the batches are theirs, an interruption changes no bit, and the default draws as before."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from guie_core import GuieError, Interrupted
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_core.registry import build, check
from guie_datasets import Manifest
from guie_train.feature_store import FeatureStore
from guie_train.fitting import Resident, Training
from guie_train.stage import Stage, Workspace
from guie_train.stages.classifier import FitClassifier
from guie_train.stages.head import FitHead
from guie_train.stages.selection import Selection

COUNTS = {3: 12, 5: 6, 8: 24}  # training images by label
BATCH = 12
SAM = {"type": "SAM", "rho": 0.05, "base": {"type": "AdamW", "lr": 1e-2}}
SAMPLERS: list[dict[str, Any]] = [
    {"type": "Shuffled"},
    {"type": "ClassBalanced"},
    {"type": "MPerClass", "m": 4},
    {"type": "RoundRobinSources"},
    {"type": "CategoryShares", "shares": {"x": 0.25, "y": 0.75}},
]


@dataclass(frozen=True, kw_only=True)
class Images(Stage[Manifest]):
    """Training images of three classes, in two sources and two categories; the first ones are for selection."""

    slug: ClassVar[str] = "images"

    def run(self, folder: Path, workspace: Workspace) -> None:
        rows = [(label, "select") for label in (1, 6) for _ in range(3)]
        rows += [(label, "train") for label, count in COUNTS.items() for _ in range(count)]
        numbers = range(len(rows))
        Manifest.from_columns(
            {
                "path": [f"{number}.png" for number in numbers],
                "label": [label for label, _ in rows],
                "split": [split for _, split in rows],
                "source": ["a" if number % 3 else "b" for number in numbers],
                "category": ["x" if number % 2 else "y" for number in numbers],
                "width": [8] * len(rows),
                "height": [6] * len(rows),
                "hash": [f"{number:032x}" for number in numbers],
            }
        ).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        return Manifest.read(folder / "manifest.parquet")


@dataclass(frozen=True, kw_only=True)
class Random(Stage[FeatureStore]):
    """Noise."""

    slug: ClassVar[str] = "random"
    manifest: Stage[Manifest]

    def run(self, folder: Path, workspace: Workspace) -> None:
        hashes = workspace.get(self.manifest).column("hash")
        store = FeatureStore(folder, {"dimension": 10, "dtype": "float32", "image_size": 16})
        store.append(hashes, np.random.default_rng(0).normal(size=(len(hashes), 10)))

    def load(self, folder: Path) -> FeatureStore:
        return FeatureStore(folder)


IMAGES = Images(name="images")
FEATURES = Random(name="features", manifest=IMAGES)


def training(sampler: dict[str, Any] | None, **changes: Any) -> Training:
    settings = {"epochs": 3, "batch_size": BATCH, "optimizer": SAM, "warmup_epochs": 0, "sampler": sampler, **changes}
    return Training(**settings)


def head(sampler: dict[str, Any] | None, **changes: Any) -> FitHead:
    return FitHead(
        name="head",
        manifest=IMAGES,
        train=FEATURES,
        valid=FEATURES,
        head={"type": "BatchNormLinear", "out_features": 4, "dropout": 0.2},
        loss={"type": "ArcFace"},
        training=training(sampler, **changes),
        selection=Selection(protocol={"type": "LeaveOneOut", "split": "select"}, every=2),
        seed=2,
    )


def classifier(sampler: dict[str, Any] | None, **changes: Any) -> FitClassifier:
    settings = training(sampler, **changes)
    return FitClassifier(name="classifier", manifest=IMAGES, features=FEATURES, training=settings, folds=6)


def workspace(folder: Path, stop: Stop | None = None) -> Workspace:
    return Workspace(folder, profile("cpu"), Stop() if stop is None else stop)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of each step that is made."""
    made: list[list[int]] = []
    batches = Resident.batches

    def noted(self: Resident, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in rows:
            made.append(batch.tolist())
            yield from batches(self, epoch, [batch])

    monkeypatch.setattr(Resident, "batches", noted)
    return made


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: str(sampler["type"]))
@pytest.mark.parametrize("stage", [head, classifier])
def test_batches_are_the_sampler_s_and_an_interruption_changes_no_bit(
    stage: Callable[[dict[str, Any]], Stage[Any]],
    sampler: dict[str, Any],
    tmp_path: Path,
    batches: list[list[int]],
    stop_after: Callable[[int], Stop],
) -> None:
    one = stage(sampler if stage is head or sampler["type"] != "MPerClass" else {**sampler, "m": 6})
    whole = workspace(tmp_path / "whole").get(one)
    as_a_whole = batches.copy()
    batches.clear()
    workspace(tmp_path / "parts").get(FEATURES)
    with pytest.raises(Interrupted, match="saved at"):
        workspace(tmp_path / "parts", stop_after(5)).get(one)  # a first look, before the stage
    torch.manual_seed(99)
    parts = workspace(tmp_path / "parts").get(one)
    assert batches == as_a_whole
    assert parts.curves == whole.curves
    saved = [load_file(each.folder / "last.safetensors") for each in (whole, parts)]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())

    if stage is head:  # by a sampler made here
        images = workspace(tmp_path / "whole").get(IMAGES)
        rows = images.select(images.column("split") == "train")
        drawn = build("samplers", sampler, manifest=rows, batch_size=BATCH, seed=2)
        assert as_a_whole == [batch for epoch in range(3) for batch in drawn.epoch(epoch).tolist()]
        if sampler["type"] == "MPerClass":
            labels = rows.column("label")
            for batch in as_a_whole:
                assert Counter(labels[batch].tolist()) == dict.fromkeys(COUNTS, 4)


def test_the_classifier_holds_each_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its plan has it: features of what it learns from, and of what is held out."""
    held: list[int] = []
    batches = Resident.batches

    def looking(self: Resident, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        tensors = [each for each in gc.get_objects() if type(each) is Tensor and each.shape[1:] == (10,)]
        features = [each.untyped_storage() for each in tensors if len(each) not in (2, BATCH)]  # nor weights, a batch
        held.append(sum({each.data_ptr(): each.nbytes() for each in features}.values()))
        yield from batches(self, epoch, rows)

    monkeypatch.setattr(Resident, "batches", looking)
    workspace(tmp_path).get(classifier(None))
    assert held == [48 * 10 * 4] * 3


def test_classes_of_the_classifier_are_its_categories(tmp_path: Path, batches: list[list[int]]) -> None:
    trained = workspace(tmp_path).get(classifier({"type": "ClassBalanced"}))
    assert trained.categories == ("x", "y")
    assert len(batches) == 3 * (40 // BATCH)  # five sixths of 48 images
    images = workspace(tmp_path).get(IMAGES)
    from sklearn.model_selection import StratifiedKFold

    kinds = images.column("category")
    train = next(iter(StratifiedKFold(6, shuffle=True, random_state=2021).split(kinds, kinds)))[0]
    for batch in batches:
        assert Counter(kinds[train][batch]) == {"x": BATCH // 2, "y": BATCH // 2}


@pytest.mark.parametrize("stage", [head, classifier])
def test_without_a_sampler_the_order_is_torch_s(
    stage: Callable[[None], Stage[Any]], tmp_path: Path, batches: list[list[int]]
) -> None:
    workspace(tmp_path).get(stage(None))
    rows, seed = (42, 2) if stage is head else (40, 0)
    expected = []
    for epoch in range(3):
        mixed = int(np.random.SeedSequence((seed, epoch, 0)).generate_state(1, np.uint64)[0] >> 1)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(mixed)).tolist()
        expected += [order[start : start + BATCH] for start in range(0, rows - BATCH + 1, BATCH)]
    assert batches == expected


def test_what_cannot_be_drawn_is_told_before_features_are_computed(tmp_path: Path) -> None:
    for stage in (head, classifier):
        with pytest.raises(
            GuieError, match=r"MPerClass: a batch of 12 with m = 1 takes 12 classes, and there are [23]"
        ):
            stage({"type": "MPerClass", "m": 1}).check(workspace(tmp_path))
    with pytest.raises(GuieError, match="no image has the category 'z'"):
        head({"type": "CategoryShares", "shares": {"z": 1.0}}).check(workspace(tmp_path))
    assert not (tmp_path / "random").exists()


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            {"type": "MPerClas", "m": 4},
            "recipe.arcface.sampler.type: 'MPerClas' is not among the samplers. Did you mean",
        ),
        ({"type": "MPerClass", "n": 4}, "recipe.arcface.sampler.n: MPerClass (guie-datasets"),
        ({"type": "MPerClass", "m": 4, "batch_size": 8}, "gets 'batch_size' from what holds it"),
    ],
)
def test_settings_of_samplers_are_checked_with_the_experiment(sampler: dict[str, Any], message: str) -> None:
    recipe = {"type": "ArcFaceThenClassifier", "arcface": {"epochs": 1, "batch_size": 8, "sampler": sampler}}
    problems = "\n".join(map(str, check("recipes", recipe, "recipe")))
    assert message in problems
