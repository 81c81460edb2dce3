"""LossScale where float32 ends: as torch's own."""

from __future__ import annotations

import torch
from torch import nn

from guie_train.fitting import LossScale


def test_a_scale_that_cannot_grow_stays_as_torch_s() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=1)
    ours = LossScale(torch.device("cpu"))
    ours.load_state_dict({"value": torch.tensor(2.0**126), "passes": torch.tensor(0, dtype=torch.int32)})
    ours.interval = 1
    found = []
    for finite in (True, True, True, False, True, True):
        weight.grad = torch.full((1,), 1.0 if finite else float("inf"))
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        ours.update(torch.tensor(finite))
        assert float(ours.value) == scaler.get_scale()
        found.append(float(ours.value))
    assert found == [2.0**127, 2.0**127, 2.0**127, 2.0**126, 2.0**127, 2.0**127]
