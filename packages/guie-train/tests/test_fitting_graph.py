"""Steps as CUDA graphs. On the CPU, what stands for a graph records torch's operations and runs them again on the same
memory, as a GPU does with kernels: numbers that Python has computed stay as they were."""

from __future__ import annotations

import gc
import math
import re
import sys
import weakref
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
from guie_train.fitting.graph import COMPARED, WARM, CapturedStep, CudaGraph
from guie_train.fitting.schedule import Schedule
from guie_train.fitting.snapshot import Changing, Snapshot
from guie_train.heads import HeadWithLoss

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
        before = step._changing.copy()
        try:
            with Recording() as recording:
                function()
        finally:
            step._changing.restore(before)
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
    settings = {"epochs": 2, "batch_size": 32, "optimizer": SAM, "lr_per": "step", "max_norm": 5.0, **changes}
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
        step = fitted.train_step._captured
        assert step is not None
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
    assert step._graph.replays == 2 * 6 - WARM + COMPARED
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
    plain = fit(tmp_path / "plain", epochs=4)
    wanted = curves_of(plain)
    for steps, is_graph in ((2, False), (6, True), (7, True)):  # after the third, the tenth and the eighteenth step
        fitted = fit(tmp_path / "parts", epochs=4)
        step = captured(fitted)
        with pytest.raises(Interrupted):
            fitted.run(stop_after(steps))
        assert (step._graph is not None) == is_graph
    rest = fit(tmp_path / "parts", epochs=4)
    assert captured(rest)._graph is None
    assert curves_of(rest) == wanted
    check_same(rest, plain)


def test_a_fit_is_let_go_of(tmp_path: Path, captured: Capture) -> None:
    """At once, with all that a graph holds: the next stage needs the memory."""
    fitted = fit(tmp_path)
    step = captured(fitted)
    curves_of(fitted)
    assert isinstance(step._graph, Graph)
    held = [weakref.ref(each) for each in (fitted.model, fitted.optimizer, fitted.train_step, step._graph)]
    graph.CudaGraph = CudaGraph  # what stands for it knows the step
    gc.disable()
    try:
        del fitted, step
        assert [each() for each in held] == [None] * 4
    finally:
        gc.enable()


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


def refusal(caplog: pytest.LogCaptureFixture) -> str:
    """Why a step is no graph, of the one warning."""
    (record,) = caplog.records
    told = re.fullmatch(
        r"head: a step can't be a CUDA graph: (.*)\. Its kernels are launched one by one, which takes longer; "
        r"profile\.cuda_graphs=False doesn't try",
        record.getMessage(),
    )
    assert told
    return told[1]


@pytest.mark.parametrize("waits_refused", [refusing, nullcontext])
def test_what_waits_is_told_and_goes_on_step_by_step(
    tmp_path: Path,
    captured: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    waits_refused: Any,
) -> None:
    """Found by the step before the capture; or, if not there, by the capture."""
    monkeypatch.setattr(graph, "waits_refused", waits_refused)
    plain, graphed = fit(tmp_path / "plain", waiting), fit(tmp_path / "graphed", waiting)
    step = captured(graphed)
    assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert step._taken == (WARM if waits_refused is refusing else WARM + 1)
    assert refusal(caplog) == "it waits for the GPU (called a synchronizing CUDA operation)"


class Moved(Graph):
    """A replay of which something is not as the step's."""

    disturb: Callable[[CapturedStep], None]

    def __init__(self, function: Callable[[], object], step: CapturedStep) -> None:
        super().__init__(function, step)
        self.step = weakref.ref(step)

    @torch.no_grad()
    def replay(self) -> None:
        super().replay()
        step = self.step()
        assert step is not None
        type(self).disturb(step)


def not_a_number(step: CapturedStep) -> None:
    for parameter in step._changing.model.parameters():
        parameter.fill_(math.nan)


def statistics(step: CapturedStep) -> None:
    step._changing.model.head.net[1].running_var.mul_(3)  # type: ignore[union-attr, index]


def counter(step: CapturedStep) -> None:
    step._changing.model.head.net[1].num_batches_tracked.sub_(1)  # type: ignore[union-attr, index]


def steps_of_adam(step: CapturedStep) -> None:
    for state in step.optimizer.state.values():
        state["step"].sub_(1)


def moments(step: CapturedStep) -> None:
    for state in step.optimizer.state.values():
        state["exp_avg"].mul_(1.5)


def draws(step: CapturedStep) -> None:
    torch.rand(1)


@pytest.mark.parametrize(
    ("disturb", "told"),
    [
        (not_a_number, r"parameters: they move by .*, and end nan apart"),
        (statistics, r"buffers: head\.net\.1\.running_var: they move by .*, and end .* apart"),
        (counter, r"buffers: head\.net\.1\.num_batches_tracked isn't the same"),
        (steps_of_adam, r"moments: step of parameter 0: they move by 1, and end 1 apart"),
        (moments, r"moments: they move by .*, and end .* apart"),
        (draws, r"other random numbers are drawn"),
    ],
)
def test_a_graph_that_does_something_else_is_noticed(
    tmp_path: Path,
    captured: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    disturb: Callable[[CapturedStep], None],
    told: str,
) -> None:
    plain, graphed = fit(tmp_path / "plain"), fit(tmp_path / "graphed")
    step = captured(graphed)
    monkeypatch.setattr(graph, "CudaGraph", lambda function: Moved(function, step))
    monkeypatch.setattr(Moved, "disturb", staticmethod(disturb), raising=False)
    assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert re.fullmatch(f"it would not do the same: {told}", refusal(caplog))


@pytest.mark.parametrize("optimizer", [SAM, ADAMW, SGD], ids=lambda optimizer: optimizer["type"])
@pytest.mark.parametrize("lr_per", ["step", "epoch"])
def test_rates_that_stand_still_are_noticed(
    tmp_path: Path,
    captured: Capture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    optimizer: Any,
    lr_per: str,
) -> None:
    monkeypatch.setattr(CapturedStep, "_with_rates", lambda step, **more: nullcontext())
    changes = {"optimizer": optimizer, "lr_per": lr_per}
    plain, graphed = fit(tmp_path / "plain", **changes), fit(tmp_path / "graphed", **changes)
    step = captured(graphed)
    assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert step._taken <= WARM + COMPARED
    assert "it would not do the same: " in refusal(caplog)


def test_what_python_counts_is_noticed(tmp_path: Path, captured: Capture, caplog: pytest.LogCaptureFixture) -> None:
    graphed = fit(tmp_path, Counting())
    step = captured(graphed)
    curves_of(graphed)
    assert step._graph is None
    assert "it would not do the same: a number is " in refusal(caplog)


@pytest.mark.parametrize("call", range(6))
def test_without_memory_for_a_copy_steps_go_on(
    tmp_path: Path, captured: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: int
) -> None:
    """One is made in the step that is watched, one by what stands for a capture, two in each step that is compared."""
    plain, graphed = fit(tmp_path / "plain"), fit(tmp_path / "graphed")
    step = captured(graphed)
    calls, copy = iter(range(100)), Changing.copy

    def full(changing: Changing) -> Snapshot:
        if next(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return copy(changing)

    monkeypatch.setattr(Changing, "copy", full)
    assert curves_of(graphed) == curves_of(plain)
    check_same(graphed, plain)
    assert step._graph is None
    assert refusal(caplog) == "there is no memory for it"


@pytest.mark.parametrize("which", [WARM, WARM + 2])
def test_what_was_copied_is_let_go_of_before_a_step_is_tried_again(
    tmp_path: Path, captured: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, which: int
) -> None:
    """A step that has no room beside a copy of all, but by itself: the one that is watched, or compared."""
    plain, graphed = fit(tmp_path / "plain"), fit(tmp_path / "graphed")
    captured(graphed)
    copies: list[weakref.ref[Tensor]] = []
    launched, copy, calls = graphed.train_step._launched, Changing.copy, iter(range(1, 100))

    def noted(changing: Changing) -> Snapshot:
        snapshot = copy(changing)
        copies.extend(map(weakref.ref, snapshot.tensors.values()))
        return snapshot

    def full(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = launched(inputs, labels)
        if next(calls) >= which and any(tensor() is not None for tensor in copies):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(Changing, "copy", noted)
    monkeypatch.setattr(graphed.train_step, "_launched", full)
    gc.disable()
    try:
        assert curves_of(graphed) == curves_of(plain)
    finally:
        gc.enable()
    check_same(graphed, plain)
    assert refusal(caplog) == "there is no memory for it"


@pytest.mark.parametrize("first", [WARM, WARM + 1])
def test_a_parameter_that_is_frozen_at_first_is_noticed(
    tmp_path: Path, captured: Capture, caplog: pytest.LogCaptureFixture, first: int
) -> None:
    """It gets moments in the step that is captured, or in one that is compared: those of the step that counts."""
    fits = []
    for name in ("plain", "graphed"):
        fitted = fit(tmp_path / name, optimizer=ADAMW)
        weight = fitted.model.head.net[0].weight  # type: ignore[union-attr, index]
        weight.requires_grad_(False)
        fits.append(fitted)
    plain, graphed = fits
    captured(graphed)
    for fitted in (graphed, plain):
        fitted._begin_epoch()
        for number, (inputs, labels) in enumerate(fitted.examples.batches(0, [*fitted.rows(), *fitted.rows()])):
            fitted.model.head.net[0].weight.requires_grad_(number >= first)  # type: ignore[union-attr, index]
            fitted.train_step.take(inputs, labels)
    check_same(graphed, plain)
    assert "it would not do the same: " in refusal(caplog)


def test_moments_that_were_made_since_begin_again() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    count = torch.tensor(7.0)
    changing = Changing(model, optimizer, {"count": count})
    before = changing.copy()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    count += 1
    after = changing.copy()
    assert changing.difference(before, after) == "the optimizer has come to hold more"
    assert changing.difference(after, after) is None
    changing.restore(before)
    assert float(count) == 7
    for name, value in model.named_parameters():
        assert torch.equal(value, before.tensors["parameters", name])
    assert not any(value.any() for state in optimizer.state.values() for value in state.values())


def test_only_what_is_known_to_launch_the_same_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_captured(**changes: Any) -> bool:
        fitted = fit(tmp_path, **changes)
        fitted.train_step.capture()
        return fitted.train_step._captured is not None

    assert is_captured()
    assert is_captured(optimizer={"type": "AdamW", "lr": 1e-2})  # which is fused on a GPU
    assert not is_captured(optimizer={"type": "SAM", "base": {"type": "SGD", "lr": 1e-2}})
    assert not is_captured(optimizer={**SAM, "infinite": "stale"})  # it looks at norms
    monkeypatch.setattr(ArcFace, "capturable", False)
    assert not is_captured()
    monkeypatch.undo()
    monkeypatch.delattr(Head, "capturable")  # a plugin's, that says nothing
    assert not is_captured()
    monkeypatch.undo()
    assert is_captured()
    plugin = type("Plugin", (ArcFace,), {"__module__": "a_plugin"})  # what ArcFace says is not of it
    monkeypatch.setattr(sys.modules[__name__], "ArcFace", plugin)
    assert not is_captured()
    monkeypatch.setattr(plugin, "capturable", True)
    assert is_captured()


def test_a_loss_that_looks_at_labels_is_not_captured() -> None:
    assert ArcFace(8, 4).capturable
    assert not ArcFace(8, 4, check_labels=True).capturable


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
    step = graphed.train_step._captured
    assert step is not None
    assert plain.train_step._captured is None
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
