"""How a head is trained, as an experiment says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from guie_core import Config, Slot
from guie_core.registry import build

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from guie_datasets import Manifest, Sampler


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a head is trained: optimiser, batches and the cosine schedule (5th place, points 6, 7 and 9).

    Args:
        epochs: how many; also the length of the cosine.
        batch_size: images in a step; the last incomplete batch of an epoch is dropped.
        optimizer: a component of kind "optimizers".
        sampler: a component of kind "samplers", which draws the batches of each epoch; of the classifier, its classes
            are the categories. None: every image at most once an epoch, in random order, drawn by torch as the
            original does (`Shuffled` draws another order, with numpy).
        lr_min: learning rate at the end of the cosine.
        warmup_epochs: epochs in which the rate climbs linearly from `warmup_lr`, ahead of the cosine's own clock.
        warmup_lr: learning rate of the first epoch.
        max_norm: gradients whose norm is larger are scaled down to it.
        clip: "true": as they are. "scaled": while they are multiplied for fp16, as the original's code clips them (5th
            place, point 6), so that the true limit is max_norm / scale. The scale is that of a `torch.amp.GradScaler`
            which is made anew each epoch and finds no infinite gradient: 65,536, doubled after every 2,000 backward
            passes. No gradient is multiplied here, since float32 has no need of it.
        keep_every: a checkpoint is kept every so many epochs; 0 keeps none of them.
    """

    epochs: int
    batch_size: int
    optimizer: Annotated[Config, Slot("optimizers", provides=("params",))]
    sampler: Annotated[Config, Slot("samplers", provides=("manifest", "batch_size", "seed"))] | None = None
    lr_min: float = 1e-6
    warmup_epochs: int = 3
    warmup_lr: float = 1e-6
    max_norm: float = 1000.0
    clip: Literal["true", "scaled"] = "true"
    keep_every: int = 0

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "warmup_epochs": 0, "keep_every": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")


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
