"""Class centres that processes divide among them: they train what one process does, and what is on disk is whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from guie_core import GuieError, Interrupted, UsageError
from guie_core.interrupt import Stop
from guie_core.registry import build
from guie_train.fitting import Fit, Resident, Training
from guie_train.heads import HeadWithLoss
from guie_train.processes import ALONE, Processes, Shards

InProcesses = Callable[[int, Callable[[Processes], Any]], list[Any]]
CLASSES = 11
ADAMW = {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": ADAMW,
    "SGD": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
    "SAM": {"type": "SAM", "rho": 0.5, "base": ADAMW},
    "stale SAM": {"type": "SAM", "infinite": "stale", "base": ADAMW},
    "ASAM": {"type": "ASAM", "base": ADAMW},
}
LOSSES: dict[str, dict[str, Any]] = {
    "ArcFace": {"type": "ArcFace"},
    "sub-centres": {"type": "ArcFace", "sub_centres": 2, "softmax": {"label_smoothing": 0.1, "rows": 5}},
    "drawn margins": {"type": "ElasticFace"},
    "hardness": {"type": "CurricularFace"},
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 6, generator=generator), torch.randint(0, CLASSES, (60,), generator=generator)


def model(loss: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    head = build(
        "heads", {"type": "BatchNormLinear", "dropout": 0.2, "size_features": 0, "out_features": 4}, in_features=6
    )
    return HeadWithLoss(head, build("losses", loss, embedding_size=4, classes=CLASSES))


def fit(
    folder: Path,
    processes: Processes,
    optimizer: dict[str, Any] = ADAMW,
    loss: dict[str, Any] = LOSSES["ArcFace"],
    features: Tensor | None = None,
    save_seconds: float = 1e9,
    **training: Any,
) -> Fit:
    network = model(loss)
    whole = network.divide(processes) if processes.count > 1 else None
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "warmup_epochs": 1, "keep_every": 2, **training}
    inputs, labels = data()
    return Fit(
        network,
        Resident(inputs if features is None else features, labels),
        Training(optimizer=optimizer, **settings),
        seed=5,
        folder=folder,
        name="head",
        processes=processes,
        whole=whole,
        save_seconds=save_seconds,
    )


def trained(made: Fit, stop: Stop | None = None) -> list[dict[str, float]]:
    """The curves, with what can be seen of the whole after each epoch."""
    features, labels = data()

    def validate(epoch: int) -> dict[str, float]:
        network: Any = made.evaluated
        logits = network.loss.margin_logits(network.head(features), labels)
        return {"valid": float(nn.functional.cross_entropy(logits, labels))}

    curves = made.run(Stop() if stop is None else stop, validate)
    made.write_checkpoint("last")
    return curves


def checkpoints(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def close(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    """The same files of the same tensors, but for rounding."""
    for name, tensors in expected.items():
        torch.testing.assert_close(found[name], tensors, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys()


@pytest.mark.parametrize(
    ("count", "optimizer", "loss", "training"),
    [
        (2, "AdamW", "ArcFace", {"ema_decay": 0.9}),
        (3, "SAM", "ArcFace", {"max_norm": 0.5}),
        (3, "ASAM", "sub-centres", {"clip": "scaled", "max_norm": 20_000.0}),
        (2, "SGD", "drawn margins", {"max_norm": 0.5}),
        (2, "stale SAM", "hardness", {"ema_decay": 0.5}),
    ],
)
def test_processes_train_what_one_does(
    count: int, optimizer: str, loss: str, training: dict[str, Any], tmp_path: Path, in_processes: InProcesses
) -> None:
    for name in ("one", "some"):
        (tmp_path / name).mkdir()
    arguments: Any = (OPTIMIZERS[optimizer], LOSSES[loss])
    expected = trained(fit(tmp_path / "one", ALONE, *arguments, **training))
    assert all(curve["loss"] > 0 and math.isfinite(curve["valid"]) for curve in expected)

    def some(processes: Processes) -> tuple[list[dict[str, float]], int, float]:
        made = fit(tmp_path / "some", processes, *arguments, **training)
        network: Any = made.model
        return trained(made), network.loss.centres.shape[-2], float(made.train_step.norm)

    found = in_processes(count, some)
    assert sum(classes for _, classes, _ in found) == CLASSES
    for curves, _, norm in found:
        assert norm == found[0][2]
        for one, other in zip(curves, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
    close(checkpoints(tmp_path / "some"), checkpoints(tmp_path / "one"))
    assert {path.name for path in (tmp_path / "some").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize("optimizer", ["AdamW", "stale SAM"])
def test_interrupted_they_go_on_with_the_same_bits_and_another_number_with_the_same_weights(
    optimizer: str, tmp_path: Path, in_processes: InProcesses, stop_after: Callable[[int], Stop]
) -> None:
    for name in ("whole", "parts", "alone", "three"):
        (tmp_path / name).mkdir()

    def one(processes: Processes, name: str, stop: Stop | None = None) -> list[dict[str, float]]:
        return trained(fit(tmp_path / name, processes, OPTIMIZERS[optimizer], ema_decay=0.9), stop)

    whole = in_processes(2, lambda processes: one(processes, "whole"))
    stopped = in_processes(2, lambda processes: one(processes, "parts", stop_after(4) if processes.rank else None))
    for error in stopped:
        assert isinstance(error, Interrupted)
        assert str(error) == "head: saved at epoch 1, step 2"
    state = (tmp_path / "parts" / "state.pt").read_bytes()
    assert in_processes(2, lambda processes: one(processes, "parts")) == whole
    expected = checkpoints(tmp_path / "whole")
    for name, tensors in checkpoints(tmp_path / "parts").items():
        assert all(torch.equal(value, expected[name][key]) for key, value in tensors.items())

    for name in ("alone", "three"):
        (tmp_path / name / "state.pt").write_bytes(state)
    one(ALONE, "alone")
    in_processes(3, lambda processes: one(processes, "three"))
    for name in ("alone", "three"):
        close(checkpoints(tmp_path / name), expected)


def test_a_finished_training_is_whole_when_it_is_taken_up(tmp_path: Path, in_processes: InProcesses) -> None:
    def one(processes: Processes) -> None:
        trained(fit(tmp_path, processes))

    in_processes(2, one)
    expected = load_file(tmp_path / "last.safetensors")
    (tmp_path / "last.safetensors").unlink()
    in_processes(2, one)
    torch.testing.assert_close(load_file(tmp_path / "last.safetensors"), expected, rtol=0, atol=0)


def test_states_are_saved_by_all_at_once(tmp_path: Path, in_processes: InProcesses) -> None:
    """Whoever thinks that it is time: the others have parts of it."""

    def one(processes: Processes) -> list[dict[str, float]]:
        return trained(fit(tmp_path, processes, save_seconds=0.0 if processes.rank == 1 else 1e9))

    first, second = in_processes(2, one)
    assert first == second
    assert len(first) == 3


def test_a_loss_that_is_not_finite_ends_all(tmp_path: Path, in_processes: InProcesses) -> None:
    features, _ = data()
    features[7] = torch.inf
    for error in in_processes(2, lambda processes: trained(fit(tmp_path, processes, features=features))):
        assert isinstance(error, GuieError)
        assert "the loss is not finite in epoch" in str(error)
        assert "row 7" in str(error)


def test_losses_without_centres_are_refused() -> None:
    network = model({"type": "pml/MultiSimilarityLoss"})
    with pytest.raises(
        UsageError, match=r'recipe\.loss: PmlLoss has no class centres .* leave profile.divide at "images"'
    ):
        network.divide(Processes(0, 2, 0))


def test_the_others_hold_shapes_alone() -> None:
    network = model(LOSSES["ArcFace"])
    whole = network.divide(Processes(1, 2, 0))
    assert {parameter.device.type for parameter in whole.parameters()} == {"meta"}
    assert whole.loss.centres.shape == (CLASSES, 4)
    assert network.loss.centres.shape == (6, 4)
    expected = model(LOSSES["ArcFace"]).loss.centres
    assert torch.equal(network.loss.centres, expected[Processes(1, 2, 0).part(CLASSES)])


def test_what_nobody_looks_at_is_not_brought_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Centres may be gigabytes: they are whole where they are evaluated, or kept, and in the end."""
    epochs: list[int] = []
    filled = Shards.fill
    network = model(LOSSES["ArcFace"])
    training = Training(epochs=7, batch_size=16, optimizer=ADAMW, warmup_epochs=0, keep_every=5)
    one = Fit(
        network, Resident(*data()), training, seed=5, folder=tmp_path, name="head", whole=model(LOSSES["ArcFace"])
    )

    def noted(self: Shards, module: nn.Module) -> None:
        epochs.append(one.epoch)
        filled(self, module)

    looked: list[int] = []

    def look(epoch: int) -> dict[str, float]:
        looked.append(epoch)
        return {}

    monkeypatch.setattr(Shards, "fill", noted)
    one.run(Stop(), look, every=3)
    assert looked == [3, 6, 7]
    assert epochs == [3, 5, 6, 7]
    torch.testing.assert_close(dict(one.evaluated.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
