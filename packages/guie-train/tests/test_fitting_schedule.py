"""Schedule: the rates of timm's schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from guie_train.fitting import Training
from guie_train.fitting.schedule import Schedule


def optimizer_of_two_groups() -> torch.optim.Optimizer:
    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    return torch.optim.AdamW([{"params": [first], "lr": 1e-2}, {"params": [second], "lr": 3e-3, "lr_scale": 0.1}])


@pytest.mark.parametrize("epochs", [1, 7])
@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("decay", [None, 0.8])
def test_rates_are_those_of_timm(epochs: int, warmup: int, prefix: bool, decay: float | None) -> None:
    training = Training(
        epochs=epochs,
        batch_size=4,
        optimizer={"type": "AdamW"},
        lr_min=1e-4,
        warmup_epochs=warmup,
        warmup_lr=1e-5,
        warmup_prefix=prefix,
        decay=decay,
        lr_per="step",
    )
    ours, theirs = optimizer_of_two_groups(), optimizer_of_two_groups()
    schedule = Schedule(training, ours)
    common: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": 1e-5, "warmup_prefix": prefix}
    peer: Any
    if decay is None:
        # cycle_decay is of cycles after the first, which are none; without it timm warns of a cosine of one epoch
        peer = CosineLRScheduler(theirs, t_initial=epochs, lr_min=1e-4, cycle_decay=0.5, **common)
    else:
        peer = StepLRScheduler(theirs, decay_t=1, decay_rate=decay, **common)
    for quarter in range(4 * (epochs + warmup) + 1):
        schedule.step(quarter / 4)
        peer.step(quarter / 4)
        assert [group["lr"] for group in ours.param_groups] == [group["lr"] for group in theirs.param_groups]


def test_a_training_begins_with_its_warm_up() -> None:
    optimizer = optimizer_of_two_groups()
    Schedule(Training(epochs=3, batch_size=4, optimizer={}, warmup_epochs=1, warmup_lr=1e-5), optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, pytest.approx(1e-6)]
