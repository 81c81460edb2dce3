"""FitHead with losses of every sort: margins that grow, margins by class, losses of pytorch-metric-learning."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from guie_core import GuieError, Interrupted, UsageError
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_core.registry import check
from guie_datasets import Extent, Manifest
from guie_models.heads import BatchNormLinear, Whitened
from guie_models.losses import ArcFace
from guie_train import heads
from guie_train.feature_store import FeatureStore
from guie_train.fitting import Fit, Training
from guie_train.fitting.schedule import Schedule
from guie_train.heads import LOSS_PROVIDES, TrainedHead, head_inputs
from guie_train.planning import forecast as planning
from guie_train.planning.forecast import Forecast, Outlook
from guie_train.planning.plan import make_plan
from guie_train.processes import Processes
from guie_train.stage import Stage, Workspace
from guie_train.stages import selection as selecting
from guie_train.stages.head import FitHead
from guie_train.stages.selection import Selection

COUNTS = {3: 12, 5: 6, 8: 24}  # training images by label; labels have gaps, as after a split
SAM = {"type": "SAM", "rho": 0.05, "base": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}}


@dataclass(frozen=True, kw_only=True)
class Images(Stage[Manifest]):
    """Training images of three classes; two more images of each to validate on, and two classes to select by."""

    slug: ClassVar[str] = "images"

    def run(self, folder: Path, workspace: Workspace) -> None:
        rows = [(label, "train") for label, count in COUNTS.items() for _ in range(count)]
        rows += [(label, "valid") for label in COUNTS for _ in range(2)]
        rows += [(label, "select") for label in (1, 6) for _ in range(3)]
        numbers = range(len(rows))
        Manifest.from_columns(
            {
                "path": [f"{number}.png" for number in numbers],
                "label": [label for label, _ in rows],
                "split": [split for _, split in rows],
                "width": [8] * len(rows),
                "height": [6] * len(rows),
                "hash": [f"{number:032x}" for number in numbers],
            }
        ).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        return Manifest.read(folder / "manifest.parquet")


@dataclass(frozen=True, kw_only=True)
class Random(Stage[FeatureStore]):
    """A direction for each class, and noise."""

    slug: ClassVar[str] = "random"
    manifest: Stage[Manifest]

    def run(self, folder: Path, workspace: Workspace) -> None:
        manifest = workspace.get(self.manifest)
        generator = np.random.default_rng(0)
        directions = generator.normal(size=(9, 10))
        features = directions[manifest.column("label")] + generator.normal(size=(len(manifest), 10))
        store = FeatureStore(folder, {"dimension": 10, "dtype": "float32", "image_size": 16})
        store.append(manifest.column("hash"), features)

    def load(self, folder: Path) -> FeatureStore:
        return FeatureStore(folder)


def stage(loss: Mapping[str, Any], selection: Mapping[str, Any] | None = None, **training: Any) -> FitHead:
    images = Images(name="images")
    features = Random(name="features", manifest=images)
    settings = {"epochs": 4, "batch_size": 14, "optimizer": SAM, "warmup_epochs": 0, "keep_every": 1, **training}
    return FitHead(
        name="head",
        manifest=images,
        train=features,
        valid=features,
        head={"type": "BatchNormLinear", "out_features": 4, "dropout": 0.2},
        loss=loss,
        training=Training(**settings),
        selection=Selection(protocol={"type": "LeaveOneOut", "split": "select"}, **{"every": 2, **(selection or {})}),
    )


def workspace(folder: Path, stop: Stop | None = None) -> Workspace:
    return Workspace(folder, profile("cpu"), Stop() if stop is None else stop)


def interrupt(folder: Path, loss: Mapping[str, Any], stop: Stop) -> None:
    workspace(folder).get(stage(loss).train)
    with pytest.raises(Interrupted, match="saved at"):
        workspace(folder, stop).get(stage(loss))  # a first look, before the stage


GROWING = {"type": "ArcFace", "margin": {"start": 0.1, "growth": 0.2, "end": 0.5}}
BY_CLASS = {"type": "ArcFace", "margin": {"least": 0.2, "most": 0.5}}
LOSSES: list[dict[str, Any]] = [
    GROWING,
    GROWING | {"margin": {"start": 0.1, "growth": 0.1, "end": 0.5, "every": 3}},
    BY_CLASS | {"softmax": {"label_smoothing": 0.1, "focal": 1.0}},
    {"type": "ArcFace", "softmax": {"sample": 0.6}},
    {"type": "AdaFace"},
    {"type": "ElasticFace"},
    {"type": "CurricularFace"},
    {"type": "pml/MultiSimilarityLoss", "miner": {"type": "MultiSimilarityMiner"}},
    {"type": "pml/SubCenterArcFaceLoss", "margin": 20.0},
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_an_interrupted_training_ends_with_the_same_bits(
    tmp_path: Path, loss: dict[str, Any], stop_after: Callable[[int], Stop]
) -> None:
    whole = workspace(tmp_path / "whole").get(stage(loss))
    for steps in (4, 5):  # in the second epoch, and at the end of the third
        interrupt(tmp_path / "parts", loss, stop_after(steps))
        torch.manual_seed(99)  # another process has another generator state
    parts = workspace(tmp_path / "parts").get(stage(loss))
    assert parts.curves == whole.curves
    for name in ("chosen", "last", "epoch-0002"):
        one, other = (load_file(trained.folder / f"{name}.safetensors") for trained in (whole, parts))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]), (name, key)


@pytest.mark.parametrize("loss", [GROWING, BY_CLASS, {"type": "AdaFace", "sub_centres": 2}], ids=str)
@pytest.mark.parametrize("divide", ["images", "classes"])
def test_processes_train_what_one_does(
    tmp_path: Path, loss: dict[str, Any], divide: Any, in_processes: Callable[..., list[TrainedHead]]
) -> None:
    """What they divide among them is part of the profile, and in no key."""
    expected = workspace(tmp_path / "one").get(stage(loss))
    on = replace(profile("cpu"), divide=divide)

    def one(processes: Processes) -> TrainedHead:
        return Workspace(tmp_path / "two", on, Stop(), processes=processes).get(stage(loss))

    first, second = in_processes(2, one)
    assert first == second
    assert first.folder.name == expected.folder.name
    for curve, wanted in zip(first.curves, expected.curves, strict=True):
        assert curve == pytest.approx(wanted, rel=1e-3)
    names = {path.name for path in expected.folder.glob("*")}
    assert {path.name for path in first.folder.glob("*")} == names
    for name in sorted(names):
        if name.endswith(".safetensors"):
            mine, theirs = load_file(first.folder / name), load_file(expected.folder / name)
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"type": "ArcFace", "softmax": {"sample": 0.5}},
            "classes can be sampled or divided among processes, not both",
        ),
        ({"type": "pml/MultiSimilarityLoss"}, 'leave profile.divide at "images"'),
        ({"type": "ArcFace"}, "3 classes cannot be divided among 4 processes"),
    ],
)
def test_what_cannot_be_divided_is_told_before_features_are_computed(
    tmp_path: Path, loss: dict[str, Any], message: str
) -> None:
    on = replace(profile("cpu"), divide="classes")
    alone = Workspace(tmp_path, on, Stop())
    stage(loss).check(alone)
    alone.get(stage(loss).manifest)
    with pytest.raises(UsageError, match=re.escape(message)):
        stage(loss).check(replace(alone, processes=Processes(0, 4, 0)))


def test_an_optimiser_of_whole_parameters_is_refused_where_they_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Muon, which would make the centres of each process orthogonal, and in one process all of them."""
    head, alone = stage({"type": "ArcFace"}), workspace(tmp_path)
    alone.get(head.manifest)
    divides = replace(profile("cpu"), divide="classes")
    two = Processes(0, 2, 0)
    head.check(replace(alone, profile=divides, processes=two))

    monkeypatch.setattr("guie_models.optimizers.ELEMENTWISE", ())  # as if AdamW, SAM's base, weren't
    head.check(replace(alone, profile=divides))
    head.check(replace(alone, processes=two))
    with pytest.raises(UsageError) as told:
        head.check(replace(alone, profile=divides, processes=two))
    assert str(told.value) == (
        "recipe.arcface.optimizer: AdamW looks at whole parameters, or doesn't say otherwise (`elementwise = True`), "
        'and with profile.divide="classes" each of 2 processes has but a part of the class centres. Leave '
        'profile.divide at "images", or take an optimizer that treats each number by itself, such as SGD'
    )
    many = Many(name="images")
    planned = replace(head, manifest=many, train=Planned(name="features", manifest=many))
    assert list(planned.forecast(Outlook(alone, processes=2)).lighter(1e12)) == []
    with pytest.raises(UsageError, match=r"recipe\.arcface\.optimizer: AdamW looks at whole parameters"):
        planned.forecast(Outlook(replace(alone, profile=divides), processes=2))


def test_parts_of_epochs_without_a_batch_are_told_before_features_are_computed(tmp_path: Path) -> None:
    for name in ("Shuffled", None):
        made = stage({"type": "ArcFace"}, epoch_parts=4, sampler=name and {"type": name})
        text = "recipe.arcface: 42 training images do not fill one batch of 14 in each of 4 parts"
        with pytest.raises(GuieError, match=text):
            made.check(workspace(tmp_path))
    assert not (tmp_path / "random").exists()


@pytest.mark.parametrize(("epochs", "warned"), [(2, True), (3, True), (4, False)])
def test_a_warm_up_that_training_does_not_outlast_is_warned_of(
    epochs: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before features are computed; a first try of a recipe with few epochs is none to be refused."""
    made = stage({"type": "ArcFace"}, epochs=epochs, warmup_epochs=3)
    made.check(workspace(tmp_path))
    assert not (tmp_path / "random").exists()
    told = (
        "recipe.arcface: the rate gets to the optimizer's own in epoch 4, after warm-up, and training ends with epoch "
        f"{epochs}. Lower recipe.arcface.warmup_epochs, or raise recipe.arcface.epochs"
    )
    assert caplog.messages == [told] * warned
    rates = [Schedule(made.training, torch.optim.SGD([torch.zeros(1)], lr=1e-2)).rate(1e-2, n) for n in range(epochs)]
    assert (max(rates) < 1e-2) == warned


@dataclass(frozen=True, kw_only=True)
class Many(Images):
    """Planned images of a hundred thousand classes."""

    def forecast(self, outlook: Outlook) -> Forecast:
        extent = Extent(200_000, 100_000, ("all",), True)
        return Forecast(gives=planning.Images(extent, {"train": extent}))


@dataclass(frozen=True, kw_only=True)
class Planned(Random):
    """Features that nobody has computed."""

    def forecast(self, outlook: Outlook) -> Forecast:
        return Forecast(gives=planning.Features(10))


def test_a_plan_knows_that_processes_divide_the_classes(tmp_path: Path) -> None:
    """A step holds eight tensors of the size of the centres; the first process all centres in place of one of them."""
    many = Many(name="images")
    head = replace(stage({"type": "ArcFace"}), manifest=many, train=Planned(name="features", manifest=many))

    def forecast(count: int, divide: Any = "images") -> Forecast:
        on = replace(profile("cpu"), divide=divide)
        return head.forecast(Outlook(Workspace(tmp_path, on, Stop()), processes=count))

    alone, four = forecast(1), forecast(4, "classes")
    centres = 100_000 * 4 * 4
    assert alone.device is not None
    assert four.device is not None
    assert alone.seconds is not None
    resident = 200_000 * (13 * 4 + 8)
    assert alone.device - resident == pytest.approx(8 * centres, rel=0.01)
    assert four.device - resident == pytest.approx((8 - 1) * centres / 4 + centres, rel=0.01)
    assert four.seconds == pytest.approx(alone.seconds / 4, rel=0.01)
    assert four.disk == alone.disk
    assert four.parameters == alone.parameters
    assert list(alone.lighter(four.device)) == []  # one process has nobody to divide with
    assert list(forecast(4).lighter(four.device)) == ["--set profile.divide=classes"]
    assert list(forecast(4).lighter(four.device - 1)) == []


def test_the_first_of_several_processes_plans_by_itself(tmp_path: Path) -> None:
    """The others do not look at the manifest when it does: it must not ask them, nor take it for done by all."""
    head = stage({"type": "ArcFace"})
    workspace(tmp_path).get(head.manifest)
    first = Workspace(tmp_path, replace(profile("cpu"), divide="classes"), Stop(), processes=Processes(0, 3, 0))
    planned = Planned(name="features", manifest=head.manifest)
    plan = make_plan([head.manifest, planned, replace(head, train=planned)], [], first)
    assert "ArcFace over 3 classes" in plan.steps[2].forecast.does
    assert first.records == {}
    with pytest.raises(ValueError, match="process group"):  # which nobody has made here
        first.get(head.manifest)


def test_a_scheduled_margin_grows_with_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: Callable[[int], Stop]
) -> None:
    """.1, .3, .5, and no further; told at the beginning of each epoch, and again after resuming."""
    told: list[int] = []
    margins: list[float] = []
    set_epoch, forward = ArcFace.set_epoch, ArcFace.forward

    def spied_epoch(self: ArcFace, epoch: int) -> None:
        told.append(epoch)
        set_epoch(self, epoch)

    def spied_forward(self: ArcFace, embedding: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        margins.append(float(self.margin_of(labels)))
        return forward(self, embedding, labels)

    monkeypatch.setattr(ArcFace, "set_epoch", spied_epoch)
    monkeypatch.setattr(ArcFace, "forward", spied_forward)
    workspace(tmp_path / "whole").get(stage(GROWING))
    assert told == [0, 1, 2, 3]
    assert np.round(margins, 6).tolist() == [0.1] * 6 + [0.3] * 6 + [0.5] * 12  # three steps an epoch, SAM twice each
    told.clear()
    margins.clear()
    interrupt(tmp_path / "parts", GROWING, stop_after(5))
    workspace(tmp_path / "parts").get(stage(GROWING))
    assert told == [0, 1, 1, 2, 3]
    assert np.round(margins, 6).tolist() == [0.1] * 6 + [0.3] * 6 + [0.5] * 12
    saved = [load_file(tmp_path / "whole" / "head" / stage(GROWING).key / f"epoch-{n:04d}.safetensors") for n in (1, 4)]
    assert [int(tensors["loss.progress"]) for tensors in saved] == [0, 3]


def test_margins_by_class_come_from_the_training_images(tmp_path: Path) -> None:
    trained = workspace(tmp_path).get(stage(BY_CLASS))
    rank = np.array(list(COUNTS.values()), float) ** -0.25  # in the order of labels, which training encodes 0, 1, 2
    wanted = 0.2 + 0.3 * (rank - rank.min()) / (rank.max() - rank.min())
    found = load_file(trained.folder / "last.safetensors")["loss.class_margins"]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_losses_that_compare_pairs_have_no_validation_loss(tmp_path: Path) -> None:
    pairs = workspace(tmp_path).get(stage({"type": "pml/TripletMarginLoss"}))
    assert not {name for curve in pairs.curves for name in curve if name.startswith("valid")}
    assert pairs.curves[-1].keys() >= {"loss", "mP@5", "MRR@5"}
    assert pairs.build()(torch.zeros(1, 13)).shape == (1, 4)
    margin = workspace(tmp_path).get(stage({"type": "ArcFace"}))
    assert margin.curves[-1].keys() >= {"valid loss", "valid accuracy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"margin": {"start": 0.1, "growth": 0.1, "ending": 0.5}},
            "recipe.loss.margin.ending: margin has no setting 'ending'. Did you mean 'end'?\n"
            "It takes: start, growth, end, every.",
        ),
        ({"margin": {"start": 0.1, "growth": 0.1}}, "recipe.loss.margin: margin needs the setting 'end': a number."),
        (
            {"margin": {"start": 0.8, "growth": 0.1, "end": 0.3}},
            "recipe.loss.margin: a margin that starts at 0.8 and grows by 0.1 never gets to 0.3",
        ),
        ({"margin": {"least": 0.1, "most": "much"}}, "recipe.loss.margin.most: expects a number, got the text 'much'."),
        (
            {"margin": "large"},
            "recipe.loss.margin: expects a number or settings, dict(...), got the text 'large'.",
        ),
        (
            {"softmax": {"label_smothing": 0.1}},
            "recipe.loss.softmax.label_smothing: softmax has no setting 'label_smothing'. Did you mean"
            " 'label_smoothing'?\nIt takes: label_smoothing, focal, sample, sparse, products, rows.",
        ),
        (
            {"softmax": {"label_smoothing": 1.0}},
            "recipe.loss.softmax: label_smoothing is 1.0; it is from 0 to below 1",
        ),
        (
            {"softmax": {"products": "int8"}},
            "recipe.loss.softmax.products: expects 'float32' or 'bfloat16' or 'float16', got the text 'int8'.",
        ),
        (
            {"class_counts": [1, 2]},
            "recipe.loss.class_counts: ArcFace (guie-models 0.1.0) gets 'class_counts' from what holds it; an"
            " experiment cannot set it.",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_told_when_the_experiment_is_read(arguments: dict[str, Any], message: str) -> None:
    problems = check("losses", {"type": "ArcFace", **arguments}, "recipe.loss", LOSS_PROVIDES)
    assert "\n".join(map(str, problems)) == message


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"type": "ArcFace", "margin": 4.0}, "ArcFace: margin is 4.0; it is an angle in radians, from 0 to below pi."),
        ({"type": "ArcFace", "scale": -1.0}, "ArcFace: scale is -1.0; it is above 0."),
        (
            {"type": "ArcFace", "sub_centres": 2, "softmax": {"sample": 0.5}},
            "ArcFace: classes can be sampled or have sub-centres, not both.",
        ),
        (
            {"type": "pml/MultiSimilarityLosss"},
            "pml/MultiSimilarityLosss: pytorch-metric-learning has no 'MultiSimilarityLosss' among its losses. Did you"
            " mean 'MultiSimilarityLoss'?",
        ),
        (
            {"type": "pml/MultiSimilarityLoss", "alfa": 2.0},
            "pml/MultiSimilarityLoss: MultiSimilarityLoss of pytorch-metric-learning has no argument 'alfa'. Did you"
            " mean 'alpha'?",
        ),
        (
            {"type": "pml/TripletMarginLoss", "miner": {"type": "TripletMiner"}},
            "pml/TripletMarginLoss: pytorch-metric-learning has no 'TripletMiner' among its miners.",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_loss_itself_refuses_is_told_before_features_are_computed(
    tmp_path: Path, loss: dict[str, Any], message: str
) -> None:
    checked = stage(loss)
    with pytest.raises(UsageError, match="^" + re.escape(f"1 problem\n  recipe.loss: {message}")):
        checked.check(workspace(tmp_path))
    assert not (tmp_path / "random").exists()


def test_sparse_gradients_need_an_optimiser_that_takes_them(tmp_path: Path) -> None:
    loss = {"type": "ArcFace", "softmax": {"sample": 0.6, "sparse": True}}
    with pytest.raises(UsageError, match="head: the loss gives sparse gradients, and SAM doesn't take those"):
        workspace(tmp_path).get(stage(loss))


def test_sparse_gradients_train_as_dense_ones_do(tmp_path: Path) -> None:
    """By plain SGD, to which a centre without a gradient is one with zeros."""
    found = []
    for sparse in (False, True):
        loss = {"type": "ArcFace", "softmax": {"sample": 0.4, "sparse": sparse}}
        trained = workspace(tmp_path).get(stage(loss, optimizer={"type": "SGD", "lr": 1e-2}, max_norm=1.0))
        found.append(load_file(trained.folder / "last.safetensors"))
    torch.testing.assert_close(found[0], found[1])


def scores(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> None:
    """Selection finds these, one after the other."""
    evaluated, rest = selecting.evaluate, list(values)

    def fake(*arguments: Any, **keywords: Any) -> Any:
        return SimpleNamespace(overall={**evaluated(*arguments, **keywords).overall, "mP@5": rest.pop(0)})

    monkeypatch.setattr(selecting, "evaluate", fake)


@pytest.mark.parametrize(
    ("patience", "values", "epochs", "chosen"),
    [
        (2, [0.1, 0.3, 0.2, 0.3], 4, 2),  # an equal one is not better
        (2, [0.1, 0.3, 0.2, 0.4, 0.1, 0.2], 6, 4),
        (1, [0.3, 0.2], 2, 1),
        (3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 6, 6),
        (0, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], 6, 1),
    ],
)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_ends_when_patience_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patience: int,
    values: list[float],
    epochs: int,
    chosen: int,
    keep: str,
) -> None:
    scores(monkeypatch, values)
    selection = {"every": 1, "patience": patience, "keep": keep}
    trained = workspace(tmp_path).get(stage({"type": "ArcFace"}, selection, epochs=6))
    assert [curve["mP@5"] for curve in trained.curves] == values
    assert len(trained.curves) == epochs
    assert trained.epoch == (chosen if keep == "best" else epochs)
    kept, wanted = (load_file(trained.folder / f"{n}.safetensors") for n in ("chosen", f"epoch-{trained.epoch:04d}"))
    assert all(torch.equal(value, kept[name]) for name, value in wanted.items())


@pytest.mark.parametrize("again", [[0.49, 0.48, 0.2], [0.49, 0.48, 0.6], [0.53, 0.48, 0.2]])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_what_is_chosen_is_what_the_curves_say_also_where_an_epoch_comes_out_otherwise_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: list[float], keep: str
) -> None:
    """Sums are not the same to the bit each time on a GPU, so that an epoch that is made again has another score."""
    made = stage({"type": "ArcFace"}, {"every": 1, "keep": keep, "top_k": 2})
    save, written = Fit.save, []

    def killed(fit: Fit) -> None:
        if (fit.epoch, fit.step) == (2, 0):
            written.extend(path.name for path in fit.folder.glob("*.safetensors"))
            raise KeyboardInterrupt
        save(fit)

    monkeypatch.setattr(Fit, "_due", lambda fit: True)
    monkeypatch.setattr(Fit, "save", killed)
    scores(monkeypatch, [0.5, 0.51])
    with pytest.raises(KeyboardInterrupt):
        workspace(tmp_path).get(made)
    assert written  # of the epoch that nothing on the disk knows of
    monkeypatch.undo()
    scores(monkeypatch, again)
    trained = workspace(tmp_path).get(made)
    values = [0.5, *again]
    assert [curve["mP@5"] for curve in trained.curves] == values
    assert trained.epoch == (4 if keep == "last" else 1 + values.index(max(values)))
    best = sorted(range(1, 5), key=lambda epoch: -values[epoch - 1])[:2]
    valid = 1 + int(np.argmin([curve["valid loss"] for curve in trained.curves]))
    wanted = {"chosen": trained.epoch, "best-valid-loss": valid} | {f"top-{epoch:04d}": epoch for epoch in best}
    for name, epoch in wanted.items():
        one, other = (load_file(trained.folder / f"{n}.safetensors") for n in (name, f"epoch-{epoch:04d}"))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    names = {path.stem for path in trained.folder.glob("*.safetensors")}
    assert names == {*wanted, "best-valid-accuracy", "last", *(f"epoch-{epoch:04d}" for epoch in range(1, 5))}


def test_a_kill_while_what_is_chosen_gets_its_name_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stage({"type": "ArcFace"}, {"every": 1, "top_k": 3})
    whole = workspace(tmp_path / "whole").get(made)
    named, replace_file = [], os.replace

    def killed(source: Any, target: Any) -> None:
        if "selected" in str(source):
            named.append(target)
            if len(named) == 2:
                raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workspace(tmp_path / "parts").get(made)
    parts = workspace(tmp_path / "parts").get(made)
    assert {path.name for path in parts.folder.iterdir()} == {path.name for path in whole.folder.iterdir()}
    for path in whole.folder.glob("*.safetensors"):
        one, other = load_file(path), load_file(parts.folder / path.name)
        assert all(torch.equal(value, other[name]) for name, value in one.items()), path.name


def test_an_early_end_is_where_it_would_be_without_an_interruption(
    tmp_path: Path, stop_after: Callable[[int], Stop]
) -> None:
    def patient() -> FitHead:
        return stage({"type": "ArcFace"}, {"every": 1, "patience": 2, "top_k": 2}, epochs=12, ema_decay=0.6)

    whole = workspace(tmp_path / "whole").get(patient())
    assert len(whole.curves) < 12
    workspace(tmp_path / "parts").get(patient().train)
    for _ in range(3 * len(whole.curves)):
        with pytest.raises(Interrupted, match="saved at"):
            workspace(tmp_path / "parts", stop_after(1)).get(patient())
    parts = workspace(tmp_path / "parts").get(patient())
    assert parts.curves == whole.curves
    names = sorted(path.name for path in whole.folder.glob("*.safetensors"))
    assert names == sorted(path.name for path in parts.folder.glob("*.safetensors"))
    for name in names:
        one, other = (load_file(trained.folder / name) for trained in (whole, parts))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name


@pytest.mark.parametrize(("top_k", "kept"), [(0, []), (1, [2]), (2, [2, 4]), (3, [2, 4, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_the_best_checkpoints_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_k: int, kept: list[int]
) -> None:
    scores(monkeypatch, [0.2, 0.5, 0.1, 0.5, 0.3, 0.4])
    trained = workspace(tmp_path).get(stage({"type": "ArcFace"}, {"every": 1, "top_k": top_k}, epochs=6))
    found = sorted(trained.folder.glob("top-*"))
    assert [path.name for path in found] == [f"top-{epoch:04d}.safetensors" for epoch in kept]
    for path, epoch in zip(found, kept, strict=True):
        wanted = load_file(trained.folder / f"epoch-{epoch:04d}.safetensors")
        assert all(torch.equal(value, wanted[name]) for name, value in load_file(path).items())


def test_the_average_is_selected_and_exported(tmp_path: Path) -> None:
    """Every figure is that of the averaged head, which is what `build` gives."""
    plain = workspace(tmp_path).get(stage({"type": "ArcFace"}))
    averaged = workspace(tmp_path).get(stage({"type": "ArcFace"}, ema_decay=0.9))
    assert [curve["loss"] for curve in averaged.curves] == [curve["loss"] for curve in plain.curves]
    assert averaged.curves[-1]["valid loss"] != plain.curves[-1]["valid loss"]

    made = stage({"type": "ArcFace"}, ema_decay=0.9)
    images = workspace(tmp_path).get(made.manifest)
    rows = np.flatnonzero(images.column("split") == "valid")
    saved = load_file(averaged.folder / "last.safetensors")
    head = averaged.build()
    head.load_state_dict({key[5:]: value for key, value in saved.items() if key.startswith("head.")})
    loss = ArcFace(4, len(COUNTS))
    loss.load_state_dict({key[5:]: value for key, value in saved.items() if key.startswith("loss.")})
    labels = torch.from_numpy(np.searchsorted(sorted(COUNTS), images.column("label")[rows]))
    with torch.inference_mode():
        embedding = head(head_inputs(head, workspace(tmp_path).get(made.valid), images, rows))
        logits = loss.margin_logits(embedding, labels)
        wanted = torch.nn.functional.cross_entropy(logits, labels)
    assert averaged.curves[-1]["valid loss"] == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_features_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    made = stage({"type": "ArcFace"})
    images, store = workspace(tmp_path).get(made.manifest), workspace(tmp_path).get(made.train)
    head = BatchNormLinear(10, 4)
    chosen = np.array([40, 3, 3, 0, 17, 5, 8, 30])
    wanted, asked, read = store.read(images.column("hash"))[chosen], [], FeatureStore.read

    def noted(self: FeatureStore, hashes: Any, *view: Any) -> Any:
        asked.append(len(hashes))
        return read(self, hashes, *view)

    monkeypatch.setattr(FeatureStore, "read", noted)
    monkeypatch.setattr(heads, "ROWS", rows)
    found = head_inputs(head, store, images, chosen).numpy()
    assert (max(asked), sum(asked)) == (min(rows, 8), 8)  # so that no second copy of all is made
    np.testing.assert_array_equal(found[:, :10], wanted)
    np.testing.assert_allclose(found[:, 10:], [[6 / 8, 6 / 16, 8 / 16]] * 8)  # H/W, H/16, W/16


def test_a_loss_that_is_not_finite_names_the_images(tmp_path: Path) -> None:
    made = stage({"type": "ArcFace"})
    store = workspace(tmp_path).get(made.train)
    hashes = workspace(tmp_path).get(made.manifest).column("hash")
    features = store.read(hashes)
    features[11] = np.nan
    for path in store.folder.iterdir():
        path.unlink()
    again = FeatureStore(store.folder, {"dimension": 10, "dtype": "float32", "image_size": 16})
    again.append(hashes, features)
    (store.folder / "stage.json").write_text('{"seconds": 0}')
    text = (
        r"head: the loss is not finite in epoch 1, batch \d of 3; [^\n]*\n1 of its 14 examples have [^\n]*: 11\.png\."
    )
    with pytest.raises(GuieError, match=text):
        workspace(tmp_path).get(made)


@pytest.mark.parametrize(("name", "value"), [("patience", -1), ("top_k", -2), ("every", 0)])
def test_settings_of_selection_that_cannot_be(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it is [01] or more"):
        Selection(protocol={"type": "LeaveOneOut"}, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [{"type": "ArcFace"}, {"type": "pml/MultiSimilarityLoss"}], ids=str)
def test_a_head_that_can_begins_with_what_training_features_tell(tmp_path: Path, loss: dict[str, Any]) -> None:
    """Its first epoch, at the rate of warm-up, leaves it there; centres, where there are some, suit it."""
    slow = replace(stage(loss, warmup_epochs=1, warmup_lr=1e-9), head={"type": "Whitened", "out_features": 4})
    at = workspace(tmp_path)
    trained = at.get(slow)
    manifest, store = at.get(slow.manifest), at.get(slow.train)
    rows = np.flatnonzero(manifest.column("split") == "train")
    x = torch.from_numpy(store.read(manifest.column("hash")[rows]))
    expected = Whitened(10, 4)
    expected.start(x, torch.from_numpy(manifest.column("label")[rows]))
    first = load_file(trained.folder / "epoch-0001.safetensors")
    torch.testing.assert_close(first["head.linear.weight"], expected.linear.weight.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(first["head.linear.bias"], expected.linear.bias.detach(), atol=1e-6, rtol=0)
    if "loss.centres" in first:
        cosines = torch.cosine_similarity(expected(x)[:, None], first["loss.centres"][None], dim=2)
        labels = torch.from_numpy(np.unique(manifest.column("label")[rows], return_inverse=True)[1])
        for label in range(3):
            assert cosines[labels == label].mean(0).argmax() == label


def test_a_head_that_began_so_ends_with_the_same_bits_when_it_is_interrupted(
    tmp_path: Path, stop_after: Callable[[int], Stop], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    begin = Whitened.start

    def noted(self: Whitened, x: torch.Tensor, labels: torch.Tensor) -> None:
        begun.append(len(x))
        begin(self, x, labels)

    monkeypatch.setattr(Whitened, "start", noted)
    started = replace(stage({"type": "ArcFace"}), head={"type": "Whitened", "out_features": 4, "dropout": 0.2})
    whole = workspace(tmp_path / "whole").get(started)
    workspace(tmp_path / "parts").get(started.train)
    with pytest.raises(Interrupted, match="saved at"):
        workspace(tmp_path / "parts", stop_after(5)).get(started)
    parts = workspace(tmp_path / "parts").get(started)
    assert begun == [42, 42]  # by each, and not again where it goes on
    assert parts.curves == whole.curves
    assert (parts.folder / "last.safetensors").read_bytes() == (whole.folder / "last.safetensors").read_bytes()


@pytest.mark.parametrize("divide", ["images", "classes"])
def test_processes_begin_alike(tmp_path: Path, divide: Any, in_processes: Callable[..., list[TrainedHead]]) -> None:
    """Each computes the start from all features, before classes are divided."""
    started = replace(stage({"type": "ArcFace"}), head={"type": "Whitened", "out_features": 4})
    expected = workspace(tmp_path / "one").get(started)
    on = replace(profile("cpu"), divide=divide)

    def one(processes: Processes) -> TrainedHead:
        return Workspace(tmp_path / "two", on, Stop(), processes=processes).get(started)

    for curve, wanted in zip(in_processes(2, one)[0].curves, expected.curves, strict=True):
        assert curve == pytest.approx(wanted, rel=1e-3)
