"""The training loop, which goes on bit for bit after an interruption."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import atomic_write
from guie_core.interrupt import Stop
from guie_core.progress import bar
from guie_core.registry import build
from guie_train.fitting.examples import Examples
from guie_train.fitting.settings import Training

if TYPE_CHECKING:
    from guie_datasets import Sampler

SAVE_SECONDS = 5.0  # between two states on disk; what a kill can cost, never what comes out
SCALE, SCALE_DOUBLES = 65_536.0, 2_000  # defaults of torch.amp.GradScaler: the scale, and updates until it doubles
Curve = dict[str, float]  # the figures of one epoch, by name


Backward = Callable[[nn.Module, Any, Tensor], Tensor]


def whole_batch(model: nn.Module, inputs: Any, labels: Tensor) -> Tensor:
    """Gradients of a batch that goes through the model at once; returns the loss, detached."""
    loss: Tensor = model(inputs, labels)
    loss.backward()
    return loss.detach()


class Fit:
    """One training of `model`.

    All randomness of epoch e follows from (seed, e); the state on disk holds what else a step depends on, so a fit that
    was interrupted ends with the same bits as one that was not (on the CPU, with the same number of threads).

    Args:
        model: called with (inputs, labels [B]), gives the loss, a scalar. Those of its modules that have `set_epoch`
            are told which epoch begins, from 0.
        examples: what it learns from, on the device of `model`.
        training: how.
        seed: of the order of images and of dropout.
        sampler: which images are in which batch, see `sampler_of`; None: `training` has none.
        parameters: what the optimizer gets, parameters or groups of them with rates of their own; None: all of `model`.
        backward: computes the gradients of a batch, given model, inputs and labels, and returns its loss, detached.
        folder: where `state.pt` and checkpoints go; an existing state is picked up.
        name: for the progress bar.

    Raises:
        GuieError: fewer images than a batch, or the loss is not finite.
        UsageError: the loss gives sparse gradients, which the optimiser doesn't take.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        training: Training,
        *,
        seed: int,
        folder: Path,
        name: str,
        sampler: Sampler | None = None,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None = None,
        backward: Backward = whole_batch,
    ) -> None:
        if len(examples) < training.batch_size:
            raise GuieError(
                f"{name}: {len(examples):,} training images do not fill one batch of {training.batch_size}; "
                "lower batch_size or add images"
            )
        self.model = model
        self.examples = examples
        self.training = training
        self.seed = seed
        self.sampler = sampler
        self.folder = folder
        self.name = name
        self.backward = backward
        self.optimizer = build(
            "optimizers", training.optimizer, params=model.parameters() if parameters is None else parameters
        )
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
        self.total = torch.zeros((), device=examples.device)  # sum of the losses of those steps
        self.curves: list[Curve] = []  # one an epoch
        self._saved = time.monotonic()
        self._load()

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return len(self.examples) // self.training.batch_size if self.sampler is None else len(self.sampler)

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
                self._begin_epoch()
                for inputs, labels in self.examples.batches(self.epoch, self._rows()):
                    self.total += self._step(inputs, labels)
                    self.step += 1
                    progress.advance(1)
                    if stop:
                        self._check_finite(float(self.total))
                        self.save()
                        raise Interrupted(f"{self.name}: saved at epoch {self.epoch}, step {self.step}")
                self._end_of_epoch(after_epoch)
        return self.curves

    def _begin_epoch(self) -> None:
        for module in self.model.modules():  # after resuming, too: not every loss keeps the epoch in its state
            if callable(set_epoch := getattr(module, "set_epoch", None)):
                set_epoch(self.epoch)
        if self.step == 0:  # else the state that was loaded has set them
            torch.manual_seed(_mix(self.seed, self.epoch, 1))
            self.schedule.step(self.epoch)
            self.total.zero_()
            self.passes = 0
            self.model.train()

    def _rows(self) -> Tensor:
        """Row numbers [steps, batch_size] of the steps still to do in this epoch."""
        if self.sampler is None:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch, 0))
            order = torch.randperm(len(self.examples), generator=generator)
        else:
            order = torch.from_numpy(self.sampler.epoch(self.epoch)).flatten()
        size = self.training.batch_size
        return order[self.step * size : self.steps * size].reshape(-1, size)

    def _step(self, inputs: Any, labels: Tensor) -> Tensor:
        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.backward(self.model, inputs, labels)
            # scaling the first of SAM's two gradients changes nothing, since only its direction counts
            nn.utils.clip_grad_norm_(self.model.parameters(), self._limit())
            self.passes += 1
            return loss

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
        if self.examples.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.examples.device)
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
            state = torch.load(path, map_location=self.examples.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step, self.passes = state["epoch"], state["step"], state.get("passes", 0)
            self.total, self.curves = state["total"], state["curves"]
            torch.set_rng_state(state["rng"].cpu())
            if self.examples.device.type == "cuda" and "cuda_rng" in state:  # not if it was begun on the CPU
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.examples.device)
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            raise GuieError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        if self.step:
            self.model.train()


def _mix(*parts: int) -> int:
    """A seed that follows from several numbers, without the overlaps that adding them would give."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
