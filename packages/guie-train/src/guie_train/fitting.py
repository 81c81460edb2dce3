"""The training loop for heads on resident features, which goes on bit for bit after an interruption."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from guie_core import Config, GuieError, Interrupted, Slot, UsageError
from guie_core.files import atomic_write
from guie_core.interrupt import Stop
from guie_core.progress import bar
from guie_core.registry import build

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from guie_datasets import Manifest, Sampler

SAVE_SECONDS = 5.0  # between two states on disk; what a kill can cost, never what comes out
SCALE, SCALE_DOUBLES = 65_536.0, 2_000  # defaults of torch.amp.GradScaler: the scale, and updates until it doubles
Curve = dict[str, float]  # the figures of one epoch, by name


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


class Fit:
    """One training of `model` on features that stay in memory.

    All randomness of epoch e follows from (seed, e); the state on disk holds what else a step depends on, so a fit that
    was interrupted ends with the same bits as one that was not (on the CPU, with the same number of threads).

    Args:
        model: called with (features [B, D], labels [B]), gives the loss, a scalar. Those of its modules that have
            `set_epoch` are told which epoch begins, from 0.
        features: [N, D] float32, on the device of `model`.
        labels: [N] int64, on the same device.
        training: how.
        seed: of the order of images and of dropout.
        sampler: which images are in which batch, see `sampler_of`; None: `training` has none.
        folder: where `state.pt` and checkpoints go; an existing state is picked up.
        name: for the progress bar.

    Raises:
        GuieError: fewer images than a batch, or the loss is not finite.
        UsageError: the loss gives sparse gradients, which the optimiser doesn't take.
    """

    def __init__(
        self,
        model: nn.Module,
        features: Tensor,
        labels: Tensor,
        training: Training,
        *,
        seed: int,
        folder: Path,
        name: str,
        sampler: Sampler | None = None,
    ) -> None:
        if len(features) < training.batch_size:
            raise GuieError(
                f"{name}: {len(features):,} training images do not fill one batch of {training.batch_size}; "
                "lower batch_size or add images"
            )
        self.model = model
        self.features = features
        self.labels = labels
        self.training = training
        self.seed = seed
        self.sampler = sampler
        self.folder = folder
        self.name = name
        self.optimizer = build("optimizers", training.optimizer, params=model.parameters())
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=training.epochs,
            lr_min=training.lr_min,
            warmup_t=training.warmup_epochs,
            warmup_lr_init=training.warmup_lr,
            warmup_prefix=training.warmup_epochs > 0,
        )
        self.epoch = 0  # the one that is running or comes next
        self.step = 0  # steps done of it
        self.passes = 0  # backward passes of those steps: SAM makes two a step
        self.total = torch.zeros((), device=features.device)  # sum of the losses of those steps
        self.curves: list[Curve] = []  # one an epoch
        self._saved = time.monotonic()
        self._load()

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.features) // self.training.batch_size if self.sampler is None else len(self.sampler)

    def run(self, stop: Stop, after_epoch: Callable[[int], Curve] | None = None) -> list[Curve]:
        """Train to the end and return the curves.

        Args:
            stop: asked after each step; once set, the state is saved.
            after_epoch: called with the number of epochs done; what it returns joins the epoch's curve.

        Raises:
            Interrupted: after the user asked to stop; the next `Fit` in the same folder goes on from here.
        """
        done = self.epoch * self.steps + self.step
        with bar(self.training.epochs * self.steps, self.name, unit="step", initial=done) as progress:
            while self.epoch < self.training.epochs:
                for batch in self._batches():
                    self.total += self._step(batch)
                    self.step += 1
                    progress.advance(1)
                    if stop:
                        self._check_finite(float(self.total))
                        self.save()
                        raise Interrupted(f"{self.name}: saved at epoch {self.epoch}, step {self.step}")
                self._end_of_epoch(after_epoch)
        return self.curves

    def _batches(self) -> Iterator[Tensor]:
        """Row numbers [batch_size] of the steps still to do in this epoch."""
        for module in self.model.modules():  # after resuming, too: not every loss keeps the epoch in its state
            if callable(set_epoch := getattr(module, "set_epoch", None)):
                set_epoch(self.epoch)
        if self.step == 0:  # else the state that was loaded has set them
            torch.manual_seed(_mix(self.seed, self.epoch, 1))
            self.schedule.step(self.epoch)
            self.total.zero_()
            self.passes = 0
            self.model.train()
        if self.sampler is None:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch, 0))
            order = torch.randperm(len(self.features), generator=generator).to(self.features.device)
        else:
            order = torch.from_numpy(self.sampler.epoch(self.epoch)).flatten().to(self.features.device)
        size = self.training.batch_size
        for step in range(self.step, self.steps):
            yield order[step * size : (step + 1) * size]

    def _step(self, rows: Tensor) -> Tensor:
        features, labels = self.features.index_select(0, rows), self.labels.index_select(0, rows)

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss: Tensor = self.model(features, labels)
            loss.backward()
            # scaling the first of SAM's two gradients changes nothing, since only its direction counts
            nn.utils.clip_grad_norm_(self.model.parameters(), self._limit())
            self.passes += 1
            return loss.detach()

        try:
            loss: Tensor = self.optimizer.step(closure)
        except (RuntimeError, UsageError) as error:  # torch's optimisers, guie's
            if any(p.grad is not None and p.grad.is_sparse for p in self.model.parameters()):
                raise UsageError(
                    f"{self.name}: the loss gives sparse gradients, and {type(self.optimizer).__name__} doesn't take"
                    " those. Leave softmax.sparse of the loss out, or name an optimizer that takes them"
                ) from error
            raise
        return loss

    def _limit(self) -> float:
        """What the true gradient's norm is clipped at in the next pass."""
        if self.training.clip == "true":
            return self.training.max_norm
        return self.training.max_norm / (SCALE * 2.0 ** (self.passes // SCALE_DOUBLES))

    def _end_of_epoch(self, after_epoch: Callable[[int], Curve] | None) -> None:
        loss = float(self.total) / self.steps
        self._check_finite(loss)
        curve = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], "loss": loss}
        if skipped := getattr(self.optimizer, "skipped", 0):
            curve["skipped steps"] = skipped
        self.epoch, self.step = self.epoch + 1, 0
        if after_epoch is not None:
            self.model.eval()
            with torch.inference_mode():
                curve |= after_epoch(self.epoch)
        self.curves.append(curve)
        keep = self.training.keep_every
        if keep and self.epoch % keep == 0:
            self.write_checkpoint(f"epoch-{self.epoch:04d}")
        if self.epoch == self.training.epochs or time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise GuieError(
                f"{self.name}: the loss of epoch {self.epoch + 1} is {loss}; the state before it is kept in "
                f"{self.folder}. Lower the learning rate, or look for features that are not finite"
            )

    def write_checkpoint(self, name: str) -> None:
        """Write the model's tensors to `<name>.safetensors` in the folder."""
        from safetensors.torch import save

        tensors = {key: value.detach().cpu().contiguous() for key, value in self.model.state_dict().items()}
        with atomic_write(self.folder / f"{name}.safetensors") as file:
            file.write(save(tensors))

    def save(self) -> None:
        """Write all that the next step depends on to `state.pt`."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "passes": self.passes,
            "total": self.total,
            "curves": self.curves,
            "rng": torch.get_rng_state(),
        }
        if self.features.is_cuda:
            state["cuda_rng"] = torch.cuda.get_rng_state(self.features.device)
        buffer = io.BytesIO()  # torch's own writing to a file forgets why it failed, such as a full disk
        torch.save(state, buffer)
        with atomic_write(self.folder / "state.pt") as file:
            file.write(buffer.getbuffer())
        self._saved = time.monotonic()

    def _load(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.features.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.passes = state["epoch"], state["step"], state.get("passes", 0)
            self.total, self.curves = state["total"], state["curves"]
            torch.set_rng_state(state["rng"].cpu())
            if self.features.is_cuda and "cuda_rng" in state:  # not if it was begun on the CPU
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.features.device)
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            raise GuieError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        if self.step:
            self.model.train()


def _mix(*parts: int) -> int:
    """A seed that follows from several numbers, without the overlaps that adding them would give."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
