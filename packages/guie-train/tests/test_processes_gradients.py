"""A batch that processes share: gradients and weights are those of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guie_core import GuieError, Interrupted
from guie_core.interrupt import Stop
from guie_core.registry import build
from guie_train.fitting import Fit, Resident, Training, whole_batch
from guie_train.heads import HeadWithLoss
from guie_train.processes import ALONE, AveragedGradients, Processes

InProcesses = Callable[[int, Callable[[Processes], Any]], list[Any]]
HEADS = {
    "batch norm": {"type": "BatchNormLinear", "dropout": 0.2, "size_features": 0},
    "parallel": {"type": "ParallelLinears", "linears": 3},
}
LOSSES: dict[str, dict[str, Any]] = {
    "ArcFace": {"type": "ArcFace"},
    "sub-centres, smoothed, in few rows": {
        "type": "ArcFace",
        "sub_centres": 2,
        "softmax": {"label_smoothing": 0.1, "focal": 1.0, "rows": 2},
    },
    "margins of the batch": {"type": "AdaFace"},
    "hardness of the batch": {"type": "CurricularFace"},
    "margins drawn at random": {"type": "ElasticFace", "deviation": 0.3},
    "sampled classes": {"type": "CosFace", "softmax": {"sample": 0.6}},
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 6, generator=generator), torch.randint(0, 11, (60,), generator=generator)


def model(head: dict[str, Any], loss: dict[str, Any]) -> HeadWithLoss:
    torch.manual_seed(3)
    built = build("heads", head | {"out_features": 4}, in_features=6)
    return HeadWithLoss(built, build("losses", loss, embedding_size=4, classes=11))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_those_of_the_whole_batch(head: str, loss: str, in_processes: InProcesses) -> None:
    features, labels = data()

    def gradients(backward: Any) -> tuple[list[Tensor], float, list[Tensor], Tensor]:
        network = model(HEADS[head], LOSSES[loss]).double()
        torch.manual_seed(7)  # of dropout, of margins, and of sampled classes
        value = backward(network, features[:17].double(), labels[:17], torch.tensor(8.0, dtype=torch.float64))
        buffers = [buffer.clone() for buffer in network.buffers()]
        return [p.grad for p in network.parameters() if p.grad is not None], float(value), buffers, torch.rand(3)

    expected, value, buffers, next_drawn = gradients(whole_batch)
    found = in_processes(3, lambda processes: gradients(AveragedGradients(processes)))
    for mine, loss_value, state, drawn in found:
        assert len(mine) == len(expected)
        for one, other in zip(mine, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        assert loss_value == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(state, buffers)
        # what is drawn next, masks of dropout and margins, is what one process draws
        assert torch.equal(drawn, next_drawn)


def train(folder: Path, processes: Processes, optimizer: dict[str, Any], stop: Stop) -> dict[str, Tensor]:
    network = model(HEADS["batch norm"], LOSSES["ArcFace"])
    fit = Fit(
        network,
        Resident(*data()),
        Training(epochs=3, batch_size=16, optimizer=optimizer, warmup_epochs=1, ema_decay=0.9),
        seed=5,
        folder=folder,
        name="head",
        backward=whole_batch if processes is ALONE else AveragedGradients(processes),
        processes=processes,
    )
    fit.run(stop, lambda epoch: {"first": float(processes.first)})
    assert [curve["first"] for curve in fit.curves] == [1.0] * 3  # evaluated by the first, told to all
    fit.write_checkpoint("last")
    return {name: value.clone() for name, value in fit.evaluated.state_dict().items()}


ADAMW = {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}


@pytest.mark.parametrize("optimizer", [{"type": "SAM", "rho": 0.05, "base": ADAMW}, ADAMW], ids=["SAM", "AdamW"])
def test_two_processes_train_what_one_does(
    tmp_path: Path, optimizer: dict[str, Any], in_processes: InProcesses
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    expected = train(tmp_path / "one", ALONE, optimizer, Stop())
    first, second = in_processes(2, lambda processes: train(tmp_path / "two", processes, optimizer, Stop()))
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name]), name
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_one_that_is_asked_to_stop_stops_all_and_they_go_on_with_the_same_bits(
    tmp_path: Path, in_processes: InProcesses, stop_after: Callable[[int], Stop]
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = in_processes(2, lambda processes: train(tmp_path / "whole", processes, ADAMW, Stop()))

    def stopped(processes: Processes) -> Any:
        return train(tmp_path / "parts", processes, ADAMW, stop_after(4) if processes.rank else Stop())

    for error in in_processes(2, stopped):
        assert isinstance(error, Interrupted)
        assert str(error) == "head: saved at epoch 1, step 2"
    rest, _ = in_processes(2, lambda processes: train(tmp_path / "parts", processes, ADAMW, Stop()))
    assert all(torch.equal(value, rest[name]) for name, value in whole.items())


def test_a_batch_too_small_to_be_shared(in_processes: InProcesses) -> None:
    def share(processes: Processes) -> Tensor:
        features, labels = data()
        network: nn.Module = model(HEADS["parallel"], LOSSES["ArcFace"])
        return AveragedGradients(processes)(network, features[:2], labels[:2], torch.ones(()))

    for error in in_processes(3, share):
        assert isinstance(error, GuieError)
        assert "batch of 2 cannot be shared by 3 processes" in str(error)
