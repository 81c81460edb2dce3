"""The training loop, which goes on bit for bit after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guie_core import Interrupted
from guie_core.interrupt import Stop
from guie_core.progress import Bar, bar
from guie_models.optimizers import build_optimizer
from guie_train.allocator import caching_allocator
from guie_train.fitting.ema import EMA
from guie_train.fitting.examples import Examples, Resident
from guie_train.fitting.failures import Losses, no_step_made, not_finite
from guie_train.fitting.schedule import Schedule
from guie_train.fitting.settings import Training
from guie_train.fitting.state import load_state, save_state, save_tensors, state_of
from guie_train.fitting.step import Backward, TrainStep, whole_batch
from guie_train.processes import ALONE, Processes, Shards

if TYPE_CHECKING:
    from guie_datasets import Sampler

SAVE_SECONDS = 5.0
LOOK_STEPS = 64  # between two looks at a GPU, which waits for it: whether all losses have been finite
Curve = dict[str, float]  # the figures of one epoch, by name


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
        backward: computes the gradients of a batch, given model, inputs, labels and what the loss is to be multiplied
            by first, a scalar; returns the loss itself, detached.
        float16: whether that computes in float16, so that its gradients need a scale (`LossScale`): a step whose
            gradients overflow is then left out.
        folder: where `state.pt` and checkpoints go; an existing state is picked up.
        name: for the progress bar.
        example: what the example of a row is called, in messages.
        on_epoch: called after each epoch with the curves up to then.
        save_seconds: between two states on disk, what a kill can cost; never what comes out.
        processes: those that train it together, each with a Fit of its own on the same examples; `backward` then gives
            all of them the same gradients (`AveragedGradients`). The first alone evaluates and writes.
        whole: where each of them has but a part of some parameters, and their gradients: the same model with all of
            them, on the CPU in the first process, and as shapes (meta device) in the others. The optimizer has to treat
            each number by itself (`guie_models.optimizers.elementwise`). What is on disk is whole, so that any
            number of processes can go on from it.
        cuda_graphs: whether a GPU gets each step as one graph, where it can be one (`CapturedStep`): one process, whose
            features are on the device.

    Attributes:
        steps: in an epoch.
        evaluated: the module of which checkpoints are written, and which is to be evaluated: `model`, or a copy of it
            with the moving average of its weights where `training.ema_decay` asks for that; or `whole`, with the same,
            which is on the device while `after_epoch` looks at it.

    Raises:
        GuieError: fewer images than a batch, the loss is not finite, or no step of an epoch could be made.
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
        float16: bool = False,
        example: Callable[[int], str] = "row {}".format,
        on_epoch: Callable[[list[Curve]], None] | None = None,
        save_seconds: float = SAVE_SECONDS,
        processes: Processes = ALONE,
        whole: nn.Module | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        self.model = model
        self.examples = examples
        self.training = training
        self.seed = seed
        self.sampler = sampler
        self.folder = folder
        self.name = name
        self.example = example
        self.on_epoch = on_epoch
        self.save_seconds = save_seconds
        self.processes = processes
        self.steps = training.steps(len(examples), sampler, name)
        self.optimizer = build_optimizer(training.optimizer, model.parameters() if parameters is None else parameters)
        self.schedule = Schedule(training, self.optimizer)
        self.average = EMA(model, training.ema_decay) if training.ema_decay else None
        self.shards = None if whole is None else Shards(model, whole, processes)
        self.evaluated: nn.Module = self._trained if whole is None else whole
        device = examples.device
        self.train_step = TrainStep(
            model, self.optimizer, training, backward, device, float16=float16, shards=self.shards, name=name
        )
        if (
            cuda_graphs
            and device.type == "cuda"
            and processes.count == 1
            and backward is whole_batch
            and isinstance(examples, Resident)
        ):
            self.train_step.capture()
        self.epoch = 0  # the one that is running or comes next
        self.step = 0  # steps done of it
        self.losses = Losses(device)  # of those steps
        self.curves: list[Curve] = []  # one an epoch
        if (folder / "state.pt").exists():
            load_state(self, folder / "state.pt")
        self.saved_epochs = len(self.curves)  # those of them that the state on disk has
        self._saved = time.monotonic()
        self._look = 1 if device.type == "cpu" else LOOK_STEPS
        if self.shards is not None:
            self.shards.fill(self._trained)

    @property
    def _trained(self) -> nn.Module:
        """The weights of this process that count: the model's, or their average."""
        return self.model if self.average is None else self.average.module

    def run(
        self,
        stop: Stop,
        after_epoch: Callable[[int], Curve] | None = None,
        enough: Callable[[list[Curve]], bool] | None = None,
        every: int = 1,
    ) -> list[Curve]:
        """Train to the end and return the curves.

        Args:
            stop: asked after each step; once set, the state is saved.
            after_epoch: called every so many epochs, and after the last, with the number of epochs done; what it
                returns joins the epoch's curve.
            enough: whether these curves are reason to end early.
            every: epochs between two calls of `after_epoch`.

        Raises:
            Interrupted: after the user asked to stop; the next `Fit` in the same folder goes on from here.
        """
        done = self.epoch * self.steps + self.step
        with bar(self.training.epochs * self.steps, self.name, unit="step", initial=done) as progress:
            while self.epoch < self.training.epochs and not (enough and enough(self.curves)):
                self._begin_epoch()
                with caching_allocator() if self.examples.device.type == "cpu" else nullcontext():
                    self._take_steps(stop, progress)
                self._end_of_epoch(after_epoch, every)
        if self.saved_epochs < len(self.curves):
            self.save()
        return self.curves

    def _take_steps(self, stop: Stop, progress: Bar) -> None:
        """Those that this epoch still has."""
        for inputs, labels in self.examples.batches(self.epoch, self.rows()[self.step :]):
            self._step(inputs, labels)
            progress.advance(1)
            asked = bool(stop)
            due = self.processes.any(asked or self._due())
            stopped = due and self.processes.any(asked)
            if self.step % self._look == 0 or due:
                self._check_finite()
            if due:
                self.save()
            if stopped:
                raise Interrupted(f"{self.name}: saved at epoch {self.epoch}, step {self.step}")

    def _begin_epoch(self) -> None:
        for module in self.model.modules():  # after resuming, too: not every loss keeps the epoch in its state
            if callable(set_epoch := getattr(module, "set_epoch", None)):
                set_epoch(self.epoch)
        if self.step == 0:  # else the state that was loaded has set them
            torch.manual_seed(_mix(self.seed, self.epoch, 1))
            self.schedule.step(self.epoch)
            self.losses.total.zero_()
            if self.training.clip == "scaled":
                self.train_step.scale.reset()
        self.model.train()

    def rows(self) -> Tensor:
        """Row numbers [steps, batch_size] of this epoch."""
        number, part = divmod(self.epoch, self.training.epoch_parts)
        if self.sampler is None:
            generator = torch.Generator().manual_seed(_mix(self.seed, number, 0))
            order = torch.randperm(len(self.examples), generator=generator)
        else:
            order = torch.from_numpy(self.sampler.epoch(number)).flatten()
        size = self.steps * self.training.batch_size
        return order[part * size : (part + 1) * size].reshape(-1, self.training.batch_size)

    def _step(self, inputs: Any, labels: Tensor) -> None:
        """One step on this batch."""
        if self.training.lr_per == "step":
            self.schedule.step(self.epoch + self.step / self.steps)
        loss = self.train_step.take(inputs, labels)
        self.losses.add(self.step, loss, self.train_step.norm)
        if self.average is not None:
            self.average.update(first=self.epoch == self.step == 0)
        self.step += 1

    def _end_of_epoch(self, after_epoch: Callable[[int], Curve] | None, every: int) -> None:
        self._check_finite()
        loss = float(self.losses.total) / self.steps
        curve = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], "loss": loss}
        if skipped := self.train_step.skipped():
            curve["skipped steps"] = skipped
        if error := no_step_made(self, skipped):
            raise self.processes.agreed(error)
        self.epoch, self.step = self.epoch + 1, 0
        last, keep = self.epoch == self.training.epochs, self.training.keep_every
        looks, keeps = last or self.epoch % every == 0, keep > 0 and self.epoch % keep == 0
        if self.shards is not None and (looks or keeps):
            self.shards.fill(self._trained)
        if after_epoch is not None and looks:
            curve |= self.processes.from_first(partial(self._evaluate, after_epoch))
        self.curves.append(curve)
        if keeps:
            self.write_checkpoint(f"epoch-{self.epoch:04d}")
        if self.processes.any(self._due()):
            self.save()
        if self.on_epoch is not None and self.processes.first:
            self.on_epoch(self.curves)

    def _evaluate(self, after_epoch: Callable[[int], Curve]) -> Curve:
        """What `after_epoch` says, in the first process."""
        self.evaluated.eval()
        if self.shards is not None:  # the device has room for all while there are no gradients
            self.optimizer.zero_grad(set_to_none=True)
            self.evaluated.to(self.examples.device)
        with torch.inference_mode():
            found = after_epoch(self.epoch)
        if self.shards is not None:
            self.evaluated.cpu()
        return found

    def _due(self) -> bool:
        return time.monotonic() - self._saved > self.save_seconds

    def _check_finite(self) -> None:
        if (step := self.losses.not_finite()) is not None:
            raise self.processes.agreed(not_finite(self, step))

    def write_checkpoint(self, name: str) -> None:
        """Write the tensors of `evaluated` to `<name>.safetensors` in the folder."""
        if self.processes.first:
            save_tensors(self.evaluated, self.folder / f"{name}.safetensors")

    def save(self) -> None:
        """Write all that the next step depends on to `state.pt`."""
        state = state_of(self) if self.shards is None else self.shards.gathered(state_of(self), self.optimizer)
        if self.processes.first:
            save_state(state, self.folder / "state.pt")
        self.saved_epochs, self._saved = len(self.curves), time.monotonic()


def _mix(*parts: int) -> int:
    """A seed that follows from several numbers, without the overlaps that adding them would give."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
