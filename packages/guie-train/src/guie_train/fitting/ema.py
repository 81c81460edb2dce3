"""EMA: the exponential moving average of weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


class EMA:
    """The exponential moving average of a model's weights, in a copy of the model; running statistics are the model's.

    Args:
        model: which is trained.
        decay: d of d * average + (1 - d) * weights.

    Attributes:
        module: the copy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.module = deepcopy(model)

    @torch.no_grad()
    def update(self, *, first: bool) -> None:
        """Move it towards the weights after a step; after the `first` of all it is at them."""
        weight = 1.0 if first else 1.0 - self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(self.model.parameters()), weight)
        for own, seen in zip(self.module.buffers(), self.model.buffers(), strict=True):
            own.copy_(seen)
