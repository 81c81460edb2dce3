"""Steps as CUDA graphs. On the CPU, what stands for a graph records torch's operations and runs them again on the same
memory, as a GPU does with kernels: numbers that Python has computed stay as they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guie_core import Interrupted
from guie_core.interrupt import Stop
from guie_models import optimizers
from guie_models.losses import ArcFace, ScheduledMargin
from guie_train.fitting import Curve, Fit, Resident, Training, graph
from guie_train.fitting.graph import COMPARED, WARM, CapturedStep
from guie_train.fitting.schedule import Schedule
from guie_train.heads import HeadWithLoss

CPU = torch.device("cpu")
ADAMW = {"type": "AdamW", "lr": 1e-2, "fused": True}
SGD = {"type": "SGD", "lr": 1e-2, "momentum": 0.9, "fused": True}
SAM = {"type": "SAM", "rho": 0.05, "base": ADAMW}
CLASSES = 40


class NoWaits(TorchDispatchMode):
    """Refuses what would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func) or "nonzero" in str(func):
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class Recording(NoWaits):
    """Operations, with the tensors that they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, found))
        return found


class Graph:
    """As `CudaGraph`; `step` knows what a capture leaves as it was."""

    def __init__(self, function: Callable[[], object], step: CapturedStep) -> None:
        self.replays = 0
        before = step._state(CPU)
        try:
            with Recording() as recording:
                function()
        finally:
            step._set(before, CPU)
        self.calls = recording.calls

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, found in self.calls:
            given = func(*args, **kwargs)
            if any(value.alias_info is not None for value in func._schema.returns):
                continue  # a view of what it takes, or that itself
            for at, tensor in zip(tree_leaves(found), tree_leaves(given), strict=True):
                if isinstance(at, Tensor):
                    at.copy_(tensor)


class Head(nn.Module):
    """Dropout and batch statistics, which a graph has to go on with."""

    capturable = True

    def __init__(self, spoiled: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.spoiled = spoiled

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.net(features)
        return found if self.spoiled is None else self.spoiled(found)


def model_of(spoiled: Callable[[Tensor], Tensor] | None = None) -> HeadWithLoss:
    torch.manual_seed(3)
    margin = ScheduledMargin(start=0.1, end=0.4, growth=0.01, every=1)
    return HeadWithLoss(Head(spoiled), ArcFace(8, CLASSES, margin=margin))


def fit(folder: Path, spoiled: Callable[[Tensor], Tensor] | None = None, **changes: Any) -> Fit:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(200, 6, generator=generator), torch.randint(0, CLASSES, (200,), generator=generator)
    settings = {"epochs": 4, "batch_size": 32, "optimizer": SAM, "lr_per": "step", "max_norm": 5.0, **changes}
    training = Training(**settings)
    return Fit(model_of(spoiled), Resident(features, labels), training, seed=5, folder=folder, name="head")


@pytest.fixture(autouse=True)
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, SAM looks at no norm, and the loss at no label; rates are such as float32 has, as a graph's are."""
    rate = Schedule.rate
    monkeypatch.setattr(Schedule, "rate", lambda *of: float(torch.tensor(rate(*of))))
    monkeypatch.setattr(optimizers.SAM, "_unseen", lambda sam, norm: True)
    for module in ("base", "margin_softmax"):
        monkeypatch.setattr(f"guie_models.losses.{module}.check_range", lambda *labels: None)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fit], CapturedStep]:
    """Lets a fit take steps as a graph."""

    def capture(fitted: Fit) -> CapturedStep:
        fitted.train_step.capture()
        step = fitted.train_step._step
        assert isinstance(step, CapturedStep)
        monkeypatch.setattr(graph, "CudaGraph", lambda function: Graph(function, step))
        return step

    return capture


Capture = Callable[[Fit], CapturedStep]


def check_same(one: Fit, other: Fit) -> None:
    for part in ("model", "optimizer"):
        mine, its = (getattr(each, part).state_dict() for each in (one, other))
        for value, same in zip(tree_leaves(mine), tree_leaves(its), strict=True):
            assert type(value) is type(same)
            assert torch.equal(value, same) if isinstance(value, Tensor) else value == same


def curves_of(fitted: Fit) -> list[Curve]:
    return fitted.run(Stop())


@pytest.mark.parametrize("clip", ["true", "scaled"])
@pytest.mark.parametrize("optimizer", [SAM, ADAMW, SGD], ids=lambda optimizer: optimizer["type"])
def test_a_graph_does_what_the_steps_do(tmp_path: Path, captured: Capture, optimizer: Any, clip: str) -> None:
    """To the bit, where the kernels are the same: rates, margins and the scale change on the way."""
    plain = fit(tmp_path / "plain", optimizer=optimizer, clip=clip, ema_decay=0.5)
    graphed = fit(tmp_path / "graphed", optimizer=optimizer, clip=clip, ema_decay=0.5)
    step = captured(graphed)
    assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert isinstance(step._graph, Graph)
    assert step._graph.replays == 4 * 6 - WARM
    assert float(graphed.train_step.norm) == float(plain.train_step.norm)
    assert float(graphed.train_step.scale.passes) == float(plain.train_step.scale.passes)
    assert graphed.train_step.skipped() == plain.train_step.skipped() == 0
    assert not any(isinstance(group["lr"], Tensor) for group in graphed.optimizer.param_groups)


def test_steps_that_overflow_are_left_out_and_counted_by_a_graph(tmp_path: Path, captured: Capture) -> None:
    def infinite_in_part(found: Tensor) -> Tensor:
        return found / (found.detach()[0, 0] > 0).float()  # by the batch, without a look at it

    plain, graphed = fit(tmp_path / "plain", infinite_in_part), fit(tmp_path / "graphed", infinite_in_part)
    step = captured(graphed)
    for fitted in (plain, graphed):  # the losses aren't finite either, of which a fit would tell
        fitted._begin_epoch()
        for inputs, labels in fitted.examples.batches(0, [*fitted.rows(), *fitted.rows()]):
            fitted.train_step.take(inputs, labels)
    assert 0 < graphed.train_step.skipped() == plain.train_step.skipped() < 12
    assert graphed.optimizer.last_step_skipped == plain.optimizer.last_step_skipped  # type: ignore[attr-defined]
    check_same(graphed, plain)
    assert step._graph is not None


def test_an_interrupted_fit_goes_on_with_a_graph(
    tmp_path: Path, captured: Capture, stop_after: Callable[[int], Stop]
) -> None:
    plain = fit(tmp_path / "plain")
    wanted = curves_of(plain)
    for steps in (2, 6, 7):  # before a graph, with one, and after an epoch
        fitted = fit(tmp_path / "parts")
        captured(fitted)
        with pytest.raises(Interrupted):
            fitted.run(stop_after(steps))
    rest = fit(tmp_path / "parts")
    captured(rest)
    assert curves_of(rest) == wanted
    check_same(rest, plain)


class Counting:
    """Scales by what Python has counted, which stands still in a graph."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, found: Tensor) -> Tensor:
        self.count += 1
        return found * (1.0 + 0.2 * (self.count // 2)) + 0.01 * self.count


def waiting(found: Tensor) -> Tensor:
    """Looks at a number."""
    return found * (1.0 if float(found.detach().mean()) > 0 else 2.0)


@contextmanager
def refusing(device: torch.device) -> Iterator[None]:
    with NoWaits():
        yield


@pytest.mark.parametrize(
    ("spoiled", "waits_refused", "told"),
    [
        (waiting, refusing, "it waits for the GPU (called a synchronizing CUDA operation)"),
        (waiting, nullcontext, "torch refuses it (called a synchronizing CUDA operation)"),
    ],
)
def test_what_waits_is_told_and_goes_on_step_by_step(
    tmp_path: Path,
    captured: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoiled: Callable[[Tensor], Tensor],
    waits_refused: Any,
    told: str,
) -> None:
    monkeypatch.setattr(graph, "waits_refused", waits_refused)
    plain, graphed = fit(tmp_path / "plain", spoiled), fit(tmp_path / "graphed", spoiled)
    step = captured(graphed)
    with caplog.at_level(logging.WARNING):
        assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert step._graph is None
    assert [record.getMessage() for record in caplog.records] == [
        f"head: a step can't be a CUDA graph: {told}. Its kernels are launched one by one, which takes longer; "
        "profile.cuda_graphs=False doesn't try"
    ]


@pytest.mark.parametrize("optimizer", [SAM, ADAMW, SGD], ids=lambda optimizer: optimizer["type"])
def test_rates_that_stand_still_are_noticed(
    tmp_path: Path,
    captured: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    optimizer: Any,
) -> None:
    monkeypatch.setattr(CapturedStep, "_with_rates", lambda step: nullcontext())
    plain, graphed = fit(tmp_path / "plain", optimizer=optimizer), fit(tmp_path / "graphed", optimizer=optimizer)
    step = captured(graphed)
    with caplog.at_level(logging.WARNING):
        assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert step._graph is None
    assert "it would not do the same: the parameters move by " in caplog.text


def test_what_python_counts_is_noticed(tmp_path: Path, captured: Capture, caplog: pytest.LogCaptureFixture) -> None:
    graphed = fit(tmp_path, Counting())
    step = captured(graphed)
    with caplog.at_level(logging.WARNING):
        curves_of(graphed)
    assert step._graph is None
    assert "it would not do the same: a number is " in caplog.text


def test_only_what_is_known_to_launch_the_same_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, is_captured in (
        ({}, True),
        ({"optimizer": {"type": "AdamW", "lr": 1e-2}}, False),  # its state is not on the device
        ({"optimizer": {"type": "SAM", "base": {"type": "SGD", "lr": 1e-2}}}, False),
    ):
        fitted = fit(tmp_path, **changes)
        fitted.train_step.capture()
        assert isinstance(fitted.train_step._step, CapturedStep) == is_captured, changes
    monkeypatch.setattr(Head, "capturable", False)  # a plugin's, that says nothing
    fitted = fit(tmp_path)
    fitted.train_step.capture()
    assert not isinstance(fitted.train_step._step, CapturedStep)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clip", ["true", "scaled"])
@pytest.mark.parametrize("optimizer", [SAM, ADAMW, SGD], ids=lambda optimizer: optimizer["type"])
def test_a_graph_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Any, clip: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The real thing, from its seventh step on without a wait."""
    monkeypatch.undo()
    device = torch.device("cuda")
    fits = []
    for graphs in (False, True):
        fitted = fit(tmp_path / str(graphs), optimizer=optimizer, clip=clip)
        examples = Resident(fitted.examples.features.to(device), fitted.examples.labels.to(device))  # type: ignore[attr-defined]
        model = fitted.model.to(device)
        fits.append(
            Fit(
                model,
                examples,
                fitted.training,
                seed=5,
                folder=tmp_path / str(graphs),
                name="head",
                cuda_graphs=graphs,
            )
        )
    plain, graphed = fits
    step = graphed.train_step._step
    assert isinstance(step, CapturedStep)
    assert not isinstance(plain.train_step._step, CapturedStep)
    for one, other in zip(curves_of(graphed), curves_of(plain), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert step._graph is not None, caplog.text
    graphed._begin_epoch()
    batches = list(graphed.examples.batches(0, graphed.rows()))
    assert step._taken > WARM + COMPARED
    try:
        torch.cuda.set_sync_debug_mode("error")
        for inputs, labels in batches:
            graphed.train_step.take(inputs, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
