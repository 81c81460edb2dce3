"""The factor that keeps small gradients from vanishing in float16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LossScale:
    """What a loss is multiplied by before its gradients are taken in float16: the rule of `torch.amp.GradScaler`, with
    its defaults, one pass at a time, since an optimiser such as SAM takes the gradients of a batch twice.

    It is 65,536 at first, twice as much after every 2,000 passes in a row whose gradients were finite, and half as much
    after one whose weren't. Nothing here waits for a GPU.
    """

    first, growth, backoff, interval = 65_536.0, 2.0, 0.5, 2_000

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), self.first, device=device)  #: the factor, a scalar of float32
        self.passes = torch.zeros((), dtype=torch.int32, device=device)  # in a row, with finite gradients

    def update(self, finite: Tensor) -> None:
        """After a pass: whether all of its gradients were finite, a scalar on the same device."""
        passes = torch.where(finite, self.passes + 1, 0)
        grown = passes == self.interval
        factor = torch.where(finite, torch.where(grown, self.growth, 1.0), self.backoff)
        value = self.value * factor
        # in place, so that a step that is a CUDA graph finds them where they were
        self.value.copy_(torch.where(value.isfinite(), value, self.value))
        self.passes.copy_(torch.where(grown, 0, passes))

    def reset(self) -> None:
        """As at first."""
        self.value.fill_(self.first)
        self.passes.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"value": self.value, "passes": self.passes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on as the scale that gave `state` would."""
        self.value.copy_(state["value"])
        self.passes.copy_(state["passes"])
