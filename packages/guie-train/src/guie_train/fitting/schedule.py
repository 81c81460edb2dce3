"""Learning rates over a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from guie_train.fitting.settings import Training

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler


def schedule_of(training: Training, optimizer: Optimizer) -> Scheduler:
    """timm's scheduler of this training; its `step` takes the epochs done, parts of one allowed.

    A group of parameters with a key `lr_scale` has so many times the rate of the others, all along.
    """
    from timm.scheduler import CosineLRScheduler, StepLRScheduler  # here: an experiment is checked seconds sooner

    warmup: dict[str, Any] = {
        "warmup_t": training.warmup_epochs,
        "warmup_lr_init": training.warmup_lr,
        "warmup_prefix": training.warmup_prefix and training.warmup_epochs > 0,
    }
    if training.decay is None:
        # of cycles after the first, of which there are none; of one epoch, timm else warns that it has no effect
        cosine: dict[str, Any] = {"t_initial": training.epochs, "lr_min": training.lr_min, "cycle_decay": 0.5}
        return CosineLRScheduler(optimizer, **cosine, **warmup)
    return StepLRScheduler(optimizer, decay_t=1, decay_rate=training.decay, **warmup)
