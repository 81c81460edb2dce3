"""How something is trained, as an experiment says it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import nn

from guie_core import Config, ExperimentError, GuieError, Slot
from guie_core.registry import build
from guie_models.optimizers import build_optimizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from guie_datasets import Manifest, Sampler

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a head, a classifier or a whole network is trained: optimiser, batches and schedule (5th place, points 6, 7
    and 9).

    Args:
        epochs: how many; also the length of the cosine.
        epoch_parts: an epoch is one part in so many of a pass over the images; what rates, checkpoints and evaluations
            follow is then counted more finely (3rd place: 200 x 0.1 epochs).
        batch_size: images in a step; the last incomplete batch of an epoch is dropped.
        optimizer: a component of kind "optimizers".
        sampler: a component of kind "samplers", which draws the batches of each epoch; of the classifier, its classes
            are the categories. None: every image at most once an epoch, in random order, drawn by torch as the
            original does (`Shuffled` draws another order, with numpy).
        lr_min: learning rate at the end of the cosine, of the same scale as the optimizer's.
        decay: instead of the cosine, the rate is so many times the one before, in each epoch after warm-up.
        warmup_epochs: epochs in which the rate climbs linearly from `warmup_lr`.
        warmup_lr: learning rate of the first epoch of warm-up, of the same scale as the optimizer's.
        warmup_prefix: whether the clock of cosine or decay begins after warm-up, or runs from the start.
        lr_per: whether the rate changes with each "epoch" or each "step".
        max_norm: gradients whose norm is larger are scaled down to it.
        clip: "true": as they are. "scaled": while they are multiplied for fp16, as the original's code clips them (5th
            place, point 6), so that the true limit is max_norm / scale. The scale is that of a `torch.amp.GradScaler`
            which is made anew each epoch (see `LossScale`). Nothing is multiplied in float32, which has no need of it,
            and where no gradient overflows.
        keep_every: a checkpoint is kept every so many epochs; 0 keeps none of them.
        ema_decay: of a moving average of the weights, d * average + (1 - d) * weights after each step, from the first
            step's on, which is then what is evaluated, selected and exported; running statistics are those of the
            weights. 0: no average.
    """

    epochs: int
    epoch_parts: int = 1
    batch_size: int
    optimizer: Annotated[Config, Slot("optimizers", provides=("params",))]
    sampler: Annotated[Config, Slot("samplers", provides=("manifest", "batch_size", "seed"))] | None = None
    lr_min: float = 1e-6
    decay: float | None = None
    warmup_epochs: int = 3
    warmup_lr: float = 1e-6
    warmup_prefix: bool = True
    lr_per: Literal["epoch", "step"] = "epoch"
    max_norm: float = 1000.0
    clip: Literal["true", "scaled"] = "true"
    keep_every: int = 0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, least in {
            "epochs": 1,
            "epoch_parts": 1,
            "batch_size": 1,
            "warmup_epochs": 0,
            "keep_every": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay is {self.ema_decay}; it is 0 (no average) to below 1, such as 0.999.")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; it is above 0 and up to 1.")
        rate = _rate(self.optimizer)
        if rate is None or rate < 0:  # which the optimizer refuses
            return
        for name, used in {"lr_min": self.decay is None, "warmup_lr": self.warmup_epochs > 0}.items():
            if used and (value := getattr(self, name)) > rate:
                raise ValueError(
                    f"{name} is {value:g}, above the optimizer's own lr, {rate:g}; lower it, such as to {rate / 10:g}."
                )

    def check(self, where: str) -> None:
        """Raise ExperimentError, with keys below `where`, where the optimizer refuses its settings."""
        key = f"{where}.optimizer"
        try:
            build_optimizer(self.optimizer, [nn.Parameter(torch.zeros(1, 1))], key)
        except ExperimentError as error:  # one within another says where it is in that one
            inner = [
                each if each.where == key else replace(each, where=f"{key}.{each.where}") for each in error.problems
            ]
            raise ExperimentError(inner) from error

    def warn(self, where: str) -> None:
        """Warn of what makes little sense, though a first try of a recipe may want it; `where` is what the settings are
        called."""
        if self.warmup_epochs >= self.epochs:
            log.warning(
                "%s: the rate gets to the optimizer's own in epoch %d, after warm-up, and training ends with epoch %d. "
                "Lower %s.warmup_epochs, or raise %s.epochs",
                *(where, self.warmup_epochs + 1, self.epochs, where, where),
            )

    def steps(self, images: int, sampler: Sampler | None, where: str) -> int:
        """Steps in an epoch of so many images.

        Raises:
            GuieError: there are none; `where` is what the settings are called.
        """
        batches = images // self.batch_size if sampler is None else len(sampler)
        if batches >= self.epoch_parts:
            return batches // self.epoch_parts
        part = f" in each of {self.epoch_parts} parts" if self.epoch_parts > 1 else ""
        raise GuieError(
            f"{where}: {images:,} training images do not fill one batch of {self.batch_size}{part}; "
            f"lower batch_size{' or epoch_parts' if part else ''}, or add images"
        )


def _rate(optimizer: Config) -> float | None:
    """The learning rate that is named in the settings of an optimizer, or of the one that it is around."""
    if "lr" in optimizer:
        return float(optimizer["lr"])
    base = optimizer.get("base")
    return _rate(base) if isinstance(base, Mapping) else None


def sampler_of(training: Training, manifest: Manifest, labels: ArrayLike, seed: int, where: str = "") -> Sampler | None:
    """The sampler of a training on images [N] with these labels [N]; None where there is none.

    Raises UsageError and GuieError as samplers do: the batches that were asked for cannot be made of these images.
    """
    if training.sampler is None:
        return None
    images = manifest.with_column("label", labels)
    sampler: Sampler = build(
        "samplers", training.sampler, where=where, manifest=images, batch_size=training.batch_size, seed=seed
    )
    return sampler
