"""Trackers: every epoch once, whatever happens in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from guie_core import Entry, GuieError, Interrupted
from guie_core.interrupt import Stop
from guie_train import trackers
from guie_train.fitting import Curve, Fit, Resident, Training
from guie_train.trackers import Tracker, Tracking

CURVES: list[Curve] = [{"epoch": n, "lr": 0.1 / n, "loss": 3.0 - n} for n in (1, 2, 3)]


class Notes(Tracker):
    """Keeps what it gets, over all of its instances."""

    got: ClassVar[list[tuple[int, dict[str, float]]]] = []
    fails_at: ClassVar[int] = 0  # an epoch; below 0: when it is made

    def __init__(self, folder: Path, name: str = "") -> None:
        if self.fails_at < 0:
            raise ConnectionError("no server")
        self.name = name

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        if epoch == self.fails_at:
            raise ConnectionError("no server")
        self.got.append((epoch, dict(figures)))

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    def made(kind: str, config: Mapping[str, Any], where: str, folder: Path) -> Tracker:
        arguments = {key: value for key, value in config.items() if key != "type"}
        known: dict[str, type[Tracker]] = {"Notes": Notes, "TensorBoard": trackers.TensorBoard}
        return known[config["type"]](folder=folder, **arguments)  # type: ignore[call-arg]

    monkeypatch.setattr(trackers, "build", made)
    Notes.got, Notes.fails_at = [], 0
    return Notes


def test_each_epoch_is_written_once(tmp_path: Path, notes: type[Notes]) -> None:
    for count in (1, 2, 2, 1, 3, 3):  # a run that was killed comes back to epochs before
        Tracking(tmp_path, [{"type": "Notes"}])("head", CURVES[:count])
    assert notes.got == [(n, {"head/lr": 0.1 / n, "head/loss": 3.0 - n}) for n in (1, 2, 3)]
    Tracking(tmp_path, [{"type": "Notes"}])("classifier", CURVES)
    assert [epoch for epoch, _ in notes.got] == [1, 2, 3, 1, 2, 3]
    Tracking(tmp_path, [{"type": "Notes", "name": "elsewhere"}])("head", CURVES)
    assert len(notes.got) == 9


def test_a_tracker_that_fails_stops_nothing(
    tmp_path: Path, notes: type[Notes], caplog: pytest.LogCaptureFixture
) -> None:
    tracking = Tracking(tmp_path, [{"type": "Notes"}])
    notes.fails_at = 2
    with caplog.at_level(logging.WARNING):
        tracking("head", CURVES)
        tracking("head", CURVES)
    assert caplog.messages == ["Notes is left alone from here on: no server"]
    notes.fails_at = 0
    Tracking(tmp_path, [{"type": "Notes"}])("head", CURVES)  # what it missed comes with the next run
    assert [epoch for epoch, _ in notes.got] == [1, 2, 3]


def test_a_tracker_that_cannot_begin_stops_nothing(
    tmp_path: Path, notes: type[Notes], caplog: pytest.LogCaptureFixture
) -> None:
    notes.fails_at = -1
    with caplog.at_level(logging.WARNING):
        tracking = Tracking(tmp_path, [{"type": "Notes"}])
    assert caplog.messages == ["Notes is left alone from here on: no server"]
    tracking("head", CURVES)
    tracking.close()
    notes.fails_at = 0
    Tracking(tmp_path, [{"type": "Notes"}])("head", CURVES)
    assert [epoch for epoch, _ in notes.got] == [1, 2, 3]


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    tracking = Tracking(tmp_path, [])
    tracking("head", CURVES)
    tracking.close()
    assert not list(tmp_path.iterdir())


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Linear(6, 4)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(features), labels)


def fit(folder: Path, tracking: Tracking) -> Fit:
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    examples = Resident(torch.randn(50, 6, generator=generator), torch.arange(50) % 4)
    training = Training(epochs=6, batch_size=16, optimizer={"type": "AdamW", "lr": 1e-2})
    return Fit(Model(), examples, training, seed=5, folder=folder, name="head", on_epoch=partial(tracking, "head"))


@pytest.mark.parametrize("config", [{"type": "Notes"}, {"type": "TensorBoard"}], ids=lambda config: str(config["type"]))
def test_a_training_that_is_stopped_at_every_step_has_every_epoch_once(
    tmp_path: Path, config: dict[str, str], notes: type[Notes], stop_after: Callable[[int], Stop]
) -> None:
    if config["type"] == "TensorBoard":
        pytest.importorskip("tensorboard")
        import torch._dynamo  # noqa: F401  before TensorFlow, which tensorboard loads
    for _ in range(18):
        tracking = Tracking(tmp_path / "trackers", [config])
        with pytest.raises(Interrupted):
            fit(tmp_path / "fit", tracking).run(stop_after(0))
        tracking.close()
    tracking = Tracking(tmp_path / "trackers", [config])
    curves = fit(tmp_path / "fit", tracking).run(Stop())
    tracking.close()
    if config["type"] == "Notes":
        assert notes.got == [(n, {"head/lr": c["lr"], "head/loss": c["loss"]}) for n, c in enumerate(curves, 1)]
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # files of one second are not read in the order in which they were written
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    for name in ("lr", "loss"):
        found = sorted((event.step, event.value) for event in events.Scalars(f"head/{name}"))
        assert found == [(n, pytest.approx(curve[name])) for n, curve in enumerate(curves, 1)]


@pytest.mark.parametrize("name", ["TensorBoard", "MLflow", "WandB"])
def test_a_library_that_is_not_there_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from guie_core.plugins import plugins

    packages = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "WandB": "wandb"}
    for module in (packages[name], "torch.utils.tensorboard"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    (entry,) = [entry for entry in plugins().entries("trackers") if entry.name == name]
    assert isinstance(entry, Entry)
    with pytest.raises(GuieError, match=f"{name} needs the package {packages[name]}: pip install"):
        entry.load()(folder=tmp_path)
