"""Learning rates over a training."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from guie_train.fitting.settings import Training


class Schedule:
    """The learning rates of a training, which depend on how far it is and on nothing else.

    They rise from `warmup_lr` in a straight line, then fall in a cosine over `epochs` (Loshchilov and Hutter, SGDR,
    arXiv 1608.03983, one cycle) or, with `decay`, by that factor an epoch. What comes after the warm-up begins with it,
    hence late, unless `warmup_prefix` lets it begin afterwards. The values are those of timm's `CosineLRScheduler` and
    `StepLRScheduler`, which take as long to import as all else that a training needs.

    A group of parameters with a key `lr_scale` has so many times the rate of the others, all along.
    """

    def __init__(self, training: Training, optimizer: Optimizer) -> None:
        self.training = training
        self.optimizer = optimizer
        self.base = [float(group["lr"]) for group in optimizer.param_groups]  #: the rates after the warm-up
        self.step(0)

    def step(self, epochs: float) -> None:
        """Set the rates after so many epochs, parts of one allowed."""
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = self.rate(base, epochs) * group.get("lr_scale", 1)

    def rate(self, base: float, epochs: float) -> float:
        """The rate after so many epochs of a group that is to have `base` after the warm-up."""
        training = self.training
        warmup = training.warmup_epochs
        if epochs < warmup:
            return training.warmup_lr + epochs * ((base - training.warmup_lr) / warmup)
        if training.warmup_prefix:
            epochs -= warmup
        if training.decay is not None:
            return float(base * training.decay ** (epochs // 1))
        if epochs >= training.epochs:
            return training.lr_min
        return training.lr_min + 0.5 * (base - training.lr_min) * (1 + math.cos(math.pi * epochs / training.epochs))
