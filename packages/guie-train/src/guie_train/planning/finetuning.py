"""What a training of backbone, head and loss on images takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guie_models.optimizers import build_optimizer
from guie_train.fitting import Training
from guie_train.fitting.images import Seen
from guie_train.fitting.micro_batches import MicroBatches
from guie_train.planning.backbones import powers_below
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook, Trained
from guie_train.planning.meta import Traced, on_meta, parameters, trace


@dataclass(frozen=True)
class FineTuned:
    """A network to be tuned, on the meta device, and what training it takes.

    Args:
        make: builds the network, a `Tunable` with `backbone` and `head`, and the optimizer's groups.
        training: how.
        compute: dtype of the backbone's arithmetic; weights, gradients and moments are float32.
    """

    make: Callable[[], tuple[Any, list[dict[str, Any]]]]
    training: Training
    compute: str

    def traced(self, size: int, checkpointing: bool) -> tuple[float, Traced, Traced]:
        """With `size` images at once: bytes of the device's memory, a step on so many, and their features alone."""
        model, groups = on_meta(self.make)
        backbone = model.backbone
        backbone.set_grad_checkpointing(checkpointing)
        total, opened = parameters(backbone)
        backbone.to(getattr(torch, self.compute))
        optimizer: Any = on_meta(lambda: build_optimizer(self.training.optimizer, groups))
        _fill_moments(optimizer)
        dtype = next(backbone.parameters()).dtype
        pixels = torch.empty(size, 3, backbone.image_size, backbone.image_size, device="meta", dtype=dtype)
        seen = Seen(pixels, torch.empty(size, 3, device="meta"))
        labels = torch.empty(size, dtype=torch.long, device="meta")

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            return MicroBatches(size)(model, seen, labels)

        def features() -> None:
            with torch.no_grad():
                model.features(pixels)

        model.train()
        step = trace(lambda: optimizer.step(closure), model, pixels, *_moments(optimizer))
        rest = self.training.batch_size - size  # of the batch: its pixels are there, in float32
        memory = float(step.peak) + max(0, rest) * 3 * backbone.image_size**2 * 4
        if self.compute != "float32":
            # what was counted of the weights are autocast's casts of them; of the rest, half
            memory += 4 * total + 2 * opened
            memory += sum(moment.nbytes for moment in _moments(optimizer) if moment.dtype == dtype)
        return memory, step, trace(features, model, pixels)

    def forecast(self, outlook: Outlook, images: int, selected: int, evaluations: int, top_k: int) -> Forecast:
        """Training on so many images, and looks at `selected` others in so many evaluations; `top_k` checkpoints of
        them are kept besides the chosen one."""
        training, profile = self.training, outlook.profile
        size = min(profile.micro_batch("finetune", training.batch_size), training.batch_size)
        memory, step, features = self.traced(size, profile.checkpointing)
        model, _ = on_meta(self.make)
        total, opened = parameters(model)
        steps = images // training.batch_size // training.epoch_parts
        parts = math.ceil(training.batch_size / size)
        work = training.epochs * steps * parts
        # the features of a batch that doesn't fit are computed once more, without gradients
        forward = (work if parts > 1 else 0) + evaluations * math.ceil(selected / size)
        trained, at_least, basis = outlook.time(step, work, self.compute)
        seen, _, _ = outlook.time(features, forward, self.compute)
        kept = training.epochs // training.keep_every if training.keep_every else 0
        stays = (kept + min(top_k, evaluations) + 1) * 4 * opened  # 1: the chosen weights
        # a checkpoint is copied, and together in memory, before it is on the disk; activations are gone by then, while
        # weights, gradients and moments are not
        saving = 4 * total + 12 * opened + 8 * opened
        # with a GPU, weights as they are read and the network, at first
        host = 8 * total if profile.device == "cuda" else max(0, saving - memory)
        average = 4 * opened if training.ema_decay else 0
        at_once = f"{size} at once" + (", activations computed again" if profile.checkpointing else "")
        weights = " with float32 weights" if self.compute != "float32" else ""
        return Forecast(
            does=f"{training.epochs:,} epochs of {steps:,} steps of {training.batch_size} images of "
            f"{model.backbone.image_size} px, {at_once}, in {self.compute}{weights}",
            parameters=total,
            trained=opened,
            # while it trains, the state with two moments, and the one that takes its place
            disk=stays + 2 * 3 * 4 * opened + 2 * average,
            stays=stays,
            device=memory + (4 * total if training.ema_decay else 0),
            host=LIBRARIES + host,
            seconds=None if trained is None or seen is None else trained + seen,
            at_least=at_least,
            basis=basis,
            gives=Trained(parameters(model.head)[0]),
            lighter=lambda limit: self._lighter(size, profile.checkpointing, limit),
        )

    def _lighter(self, size: int, checkpointing: bool, limit: float) -> Iterator[str]:
        if not checkpointing and self.traced(size, True)[0] <= limit:
            yield "--set profile.checkpointing=True"
        for count in powers_below(size):
            if self.traced(count, checkpointing)[0] <= limit:
                yield f"--set profile.batch.finetune={count}"
                return


def _fill_moments(optimizer: Any) -> None:
    """A step without a network, after which the optimiser's state is there as in all but the first step."""

    def closure() -> Tensor:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
        return torch.zeros((), device="meta")

    trace(lambda: optimizer.step(closure))
    optimizer.zero_grad(set_to_none=True)


def _moments(optimizer: Any) -> list[Tensor]:
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor) and value.is_meta]
