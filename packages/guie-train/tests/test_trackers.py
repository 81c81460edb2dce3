"""Trackers: every epoch once, whatever happens in between."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
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

BACKENDS: dict[str, type[Tracker]] = {
    "TensorBoard": trackers.TensorBoard,
    "MLflow": trackers.MLflow,
    "WandB": trackers.WandB,
}
CONFIGS: list[dict[str, str]] = [{"type": "TensorBoard"}, {"type": "MLflow"}, {"type": "WandB", "mode": "offline"}]
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
        known: dict[str, type[Tracker]] = {"Notes": Notes, **BACKENDS}
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


def of_tensorboard(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # files of one second are not read in the order in which they were written
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=False)
    events.Reload()
    return sorted((event.step, event.value) for event in events.Scalars(name))


def of_mlflow(folder: Path, name: str) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'guie'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def of_wandb(folder: Path, name: str) -> list[tuple[int, float]]:
    """In the order of `_step`, by which W&B's server puts the lines of a run together that several processes wrote."""
    import wandb

    wandb.teardown()  # which waits for the process that writes: it may be at it still when `finish` returns
    assert wandb_records(folder)[-1].HasField("exit")
    return wandb_history(folder, name)


def wandb_history(folder: Path, name: str) -> list[tuple[int, float]]:
    lines: dict[int, tuple[int, float]] = {}
    records = wandb_records(folder)
    for record in records:
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if name in items:
            step = int(items["_step"])
            assert step not in lines
            lines[step] = (int(items[f"{name.partition('/')[0]}/epoch"]), float(items[name]))
    assert len(wandb_ids(folder)) <= 1
    return [lines[step] for step in sorted(lines)]


def wandb_ids(folder: Path) -> set[str]:
    return {record.run.run_id for record in wandb_records(folder) if record.HasField("run")}


def wandb_records(folder: Path) -> list[Any]:
    """Records of all processes, one after the other."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made by protobuf

    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    return [Record.FromString(each) for path in files for each in leveldb_records(path.read_bytes()[7:], 7)]


def leveldb_records(data: bytes, at: int) -> Iterator[bytes]:
    """Records of LevelDB's log format, whose first byte has the address `at` in the file.

    Blocks of 32 KiB; a piece is checksum (4), length (2), kind (1: whole, 2: first, 3: middle, 4: last) and content.
    """
    data, whole = bytes(at) + data, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole = (whole if kind > 2 else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):  # being written
            return
        if kind in (1, 4):
            yield whole


READ = {"TensorBoard": of_tensorboard, "MLflow": of_mlflow, "WandB": of_wandb}


def needs(config: Mapping[str, str]) -> None:
    if config["type"] in BACKENDS:
        pytest.importorskip(config["type"].lower(), reason="not installed: pip install -r requirements/cuda13.txt")


@pytest.mark.parametrize("config", [{"type": "Notes"}, *CONFIGS], ids=lambda config: str(config["type"]))
def test_a_training_that_is_stopped_at_every_step_has_every_epoch_once(
    tmp_path: Path, config: dict[str, str], notes: type[Notes], stop_after: Callable[[int], Stop]
) -> None:
    needs(config)
    folder = tmp_path / "trackers"
    for _ in range(18):
        with closing(Tracking(folder, [config])) as tracking, pytest.raises(Interrupted):
            fit(tmp_path / "fit", tracking).run(stop_after(0))
    with closing(Tracking(folder, [config])) as tracking:
        curves = fit(tmp_path / "fit", tracking).run(Stop())
    if config["type"] == "Notes":
        assert notes.got == [(n, {"head/lr": c["lr"], "head/loss": c["loss"]}) for n, c in enumerate(curves, 1)]
        return
    for name in ("lr", "loss"):
        found = READ[config["type"]](folder, f"head/{name}")
        assert [epoch for epoch, _ in found] == [1, 2, 3, 4, 5, 6]
        assert [value for _, value in found] == pytest.approx([curve[name] for curve in curves])


KILLED = """
import json, sys
from pathlib import Path
from guie_train import trackers
folder, config, curves = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
made = lambda kind, config, where, folder: getattr(trackers, config.pop("type"))(folder=folder, **config)
trackers.build = made
tracking = trackers.Tracking(folder, [config])
tracking("head", curves[:1])
tracking("head", curves[:2])
import torch._dynamo  # as optimisers do: it crashes if TensorFlow was there before
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config["type"]))
def test_a_process_that_is_killed_leaves_no_gap(tmp_path: Path, config: dict[str, str]) -> None:
    needs(config)
    arguments = [str(tmp_path), json.dumps(config), json.dumps(CURVES)]
    command = [sys.executable, "-c", KILLED, *arguments]
    # by that variable a process would write through another's helper, which outlives it
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "written\n" in process.stdout
        while config["type"] == "WandB" and len(wandb_history(tmp_path, "head/loss")) < 2:
            # its helper writes once a second
            assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(), "the helper has ended"
        process.kill()
    with closing(Tracking(tmp_path, [config])) as tracking:
        tracking("head", CURVES)
        tracking("classifier", CURVES)
    for stage in ("head", "classifier"):
        found = READ[config["type"]](tmp_path, f"{stage}/loss")
        assert [epoch for epoch, _ in found] == [1, 2, 3]
        assert [value for _, value in found] == pytest.approx([curve["loss"] for curve in CURVES])


def test_a_run_that_begins_anew_is_another_one(tmp_path: Path) -> None:
    """Its steps begin at 0 again, which a server refuses of a run that has them."""
    needs({"type": "WandB"})
    config = {"type": "WandB", "mode": "offline"}
    folder, aside = tmp_path / "run" / "trackers", tmp_path / "run.1" / "trackers"
    for curves in (CURVES[:2], CURVES):  # the second goes on
        with closing(Tracking(folder, [config])) as tracking:
            tracking("head", curves)
    (tmp_path / "run").rename(tmp_path / "run.1")  # as --fresh does
    with closing(Tracking(folder, [config])) as tracking:
        tracking("head", CURVES)
    assert [epoch for epoch, _ in of_wandb(aside, "head/loss")] == [1, 2, 3]
    assert [epoch for epoch, _ in of_wandb(folder, "head/loss")] == [1, 2, 3]
    assert wandb_ids(folder) != wandb_ids(aside)


@pytest.mark.parametrize("name", ["TensorBoard", "MLflow", "WandB"])
def test_a_library_that_is_not_there_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from guie_core.plugins import plugins

    packages = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "WandB": "wandb"}
    for module in (packages[name], "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    (entry,) = [entry for entry in plugins().entries("trackers") if entry.name == name]
    assert isinstance(entry, Entry)
    with pytest.raises(GuieError, match=f"{name} needs the package {packages[name]}: pip install 'guie-train"):
        entry.load()(folder=tmp_path)
