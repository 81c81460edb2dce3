"""The training loop, which goes on bit for bit after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import atomic_write
from guie_core.interrupt import Stop
from guie_core.progress import bar
from guie_models.optimizers import SAM, build_optimizer
from guie_train.fitting.examples import Examples
from guie_train.fitting.saving import save_state
from guie_train.fitting.scaling import LossScale
from guie_train.fitting.schedule import Schedule
from guie_train.fitting.settings import Training
from guie_train.processes import ALONE, Processes, Shards

if TYPE_CHECKING:
    from guie_datasets import Sampler

SAVE_SECONDS = 5.0
LOOK_STEPS = 64  # between two looks at a GPU, which waits for it: whether all losses have been finite
NAMED = 5  # examples that a message names
Curve = dict[str, float]  # the figures of one epoch, by name


Backward = Callable[[nn.Module, Any, Tensor, Tensor], Tensor]


def whole_batch(model: nn.Module, inputs: Any, labels: Tensor, scale: Tensor) -> Tensor:
    """Gradients of the loss of a batch that goes through the model at once, times `scale`; returns the loss."""
    loss: Tensor = model(inputs, labels)
    (loss * scale).backward()
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
            all of them the same gradients (`DataParallel`). The first alone evaluates and writes.
        whole: where each of them has but a part of some parameters, and their gradients: the same model with all of
            them, on the CPU in the first process, and as shapes (meta device) in the others. The optimizer has to treat
            each number by itself, as AdamW and SGD do, and SAM but for the norm. What is on disk is whole, so that any
            number of processes can go on from it.

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
    ) -> None:
        self.model = model
        self.examples = examples
        self.training = training
        self.seed = seed
        self.sampler = sampler
        self.folder = folder
        self.name = name
        self.backward = backward
        self.float16 = float16
        self.example = example
        self.on_epoch = on_epoch
        self.save_seconds = save_seconds
        self.processes = processes
        self.steps = training.steps(len(examples), sampler, name)
        self.optimizer = build_optimizer(training.optimizer, model.parameters() if parameters is None else parameters)
        self.schedule = Schedule(training, self.optimizer)
        self.average = deepcopy(model) if training.ema_decay else None
        self.shards = None if whole is None else Shards(model, whole, processes)
        self.evaluated: nn.Module = self._trained if whole is None else whole
        device = examples.device
        self.scale = LossScale(device)
        self.epoch = 0  # the one that is running or comes next
        self.step = 0  # steps done of it
        self.total = torch.zeros((), device=device)  # sum of the losses of those steps
        # steps left out, where the optimizer doesn't count them
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.curves: list[Curve] = []  # one an epoch
        self.saved_epochs = 0  # those of them that the state on disk has
        self.norm = torch.zeros((), device=device)  # of the gradients of the last step
        self._one = torch.ones((), device=device)
        # on a GPU, torch's fused optimisers leave a step out by themselves, so that nobody waits to see whether to
        self._unseen = device.type == "cuda" and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        self._look = 1 if device.type == "cpu" else LOOK_STEPS
        # the first step of this epoch whose loss wasn't finite, and the gradients' norm in the step before; else -1
        self._wrong, self._norm_before = torch.full((), -1, device=device), self.norm
        self._saved = time.monotonic()
        self._load()
        if self.shards is not None:
            self.shards.fill(self._trained)

    @property
    def _trained(self) -> nn.Module:
        """The weights of this process that count: the model's, or their average."""
        return self.model if self.average is None else self.average

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
                for inputs, labels in self.examples.batches(self.epoch, self._rows()[self.step :]):
                    if self.training.lr_per == "step":
                        self.schedule.step(self.epoch + self.step / self.steps)
                    self._note(self._step(inputs, labels))
                    self._follow()
                    self.step += 1
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
                self._end_of_epoch(after_epoch, every)
        if self.saved_epochs < len(self.curves):
            self.save()
        return self.curves

    def _begin_epoch(self) -> None:
        for module in self.model.modules():  # after resuming, too: not every loss keeps the epoch in its state
            if callable(set_epoch := getattr(module, "set_epoch", None)):
                set_epoch(self.epoch)
        if self.step == 0:  # else the state that was loaded has set them
            torch.manual_seed(_mix(self.seed, self.epoch, 1))
            self.schedule.step(self.epoch)
            self.total.zero_()
            if self.training.clip == "scaled":
                self.scale.reset()
            self.model.train()

    def _rows(self) -> Tensor:
        """Row numbers [steps, batch_size] of this epoch."""
        number, part = divmod(self.epoch, self.training.epoch_parts)
        if self.sampler is None:
            generator = torch.Generator().manual_seed(_mix(self.seed, number, 0))
            order = torch.randperm(len(self.examples), generator=generator)
        else:
            order = torch.from_numpy(self.sampler.epoch(number)).flatten()
        size = self.steps * self.training.batch_size
        return order[part * size : (part + 1) * size].reshape(-1, self.training.batch_size)

    def _step(self, inputs: Any, labels: Tensor) -> Tensor:
        """One step on this batch; its loss."""
        optimizer, limit = self.optimizer, torch.full_like(self._one, self.training.max_norm)

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            scale = self.scale.value
            loss = self.backward(self.model, inputs, labels, scale if self.float16 else self._one)
            if self.training.clip == "scaled":
                limit.copy_(self.training.max_norm / scale)
            if self.float16:
                torch._foreach_div_(self._gradients(), scale)
                self.scale.update(self._norm().isfinite())
            elif self.training.clip == "scaled":
                self.scale.update(self._one > 0)  # none overflows in float32
            return loss

        def clipped() -> Tensor:
            loss = closure()
            self.norm = self._norm()
            torch._foreach_mul_(self._gradients(), (limit / (self.norm + 1e-6)).clamp(max=1.0))
            if self.float16:
                left_out = ~self.norm.isfinite()
                self.skipped += left_out
                if self._unseen:  # what torch.amp.GradScaler tells it
                    cast(Any, optimizer).grad_scale, cast(Any, optimizer).found_inf = None, left_out.float()
                elif bool(left_out):
                    optimizer.zero_grad(set_to_none=True)  # so that the optimizer finds nothing to do
            return loss

        try:
            if isinstance(optimizer, SAM):  # it clips, and looks at norms, by itself
                norm_of = None if self.shards is None else self.shards.norm
                loss: Tensor = optimizer.step(closure, max_norm=limit, norm_of=norm_of)
                assert optimizer.norm is not None
                self.norm = optimizer.norm
            else:
                loss = cast(Any, optimizer).step(clipped)  # torch's types ask for a loss that is a float
        except (RuntimeError, UsageError) as error:  # torch's optimisers, guie's
            if any(p.grad is not None and p.grad.is_sparse for p in self.model.parameters()):
                raise UsageError(
                    f"{self.name}: the loss gives sparse gradients, and {type(optimizer).__name__} doesn't take"
                    " those. Leave softmax.sparse of the loss out, or take an optimizer that does: SGD without momentum"
                ) from error
            raise
        return loss

    def _parameters(self) -> list[Tensor]:
        """Those that the optimizer has, with a gradient."""
        groups = self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]

    def _gradients(self) -> list[Tensor]:
        return [gradient for parameter in self._parameters() if (gradient := parameter.grad) is not None]

    def _norm(self) -> Tensor:
        """That of all gradients."""
        return (
            nn.utils.get_total_norm(self._gradients()) if self.shards is None else self.shards.norm(self._parameters())
        )

    def _follow(self) -> None:
        """Move the average towards the weights after a step; after the first of all it is at them."""
        if self.average is None:
            return
        weight = 1.0 if self.epoch == self.step == 0 else 1.0 - self.training.ema_decay
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)
            for own, seen in zip(self.average.buffers(), self.model.buffers(), strict=True):
                own.copy_(seen)

    def _note(self, loss: Tensor) -> None:
        """Add a step's loss to the epoch's, and remember the first that isn't finite; a GPU isn't waited for."""
        finite = torch.isfinite(loss)
        self.total += torch.where(finite, loss, 0.0)
        self._wrong = torch.where(finite | (self._wrong >= 0), self._wrong, self.step)
        self._norm_before = torch.where(self._wrong < 0, self.norm, self._norm_before)

    def _end_of_epoch(self, after_epoch: Callable[[int], Curve] | None, every: int) -> None:
        self._check_finite()
        loss = float(self.total) / self.steps
        curve = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], "loss": loss}
        if skipped := int(self.skipped) + getattr(self.optimizer, "skipped", 0):
            curve["skipped steps"] = skipped
        self._check_steps(int(skipped))
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
        """Raise GuieError if a loss of this epoch wasn't finite: when, with what, and which images."""
        step = int(self._wrong)
        if step < 0:
            return
        rows = self._rows()[step]
        text = f"{self.name}: the loss is not finite in epoch {self.epoch + 1}, batch {step + 1:,} of {self.steps:,}"
        text += f"; the learning rate is {self.optimizer.param_groups[0]['lr']:.3g}"
        if before := float(self._norm_before):
            text += f", the norm of the gradients was {before:.3g} in the batch before"
        if len(bad := self.examples.not_finite(rows)):
            text += f".\n{len(bad):,} of its {len(rows):,} examples have values that are not finite: {self._named(bad)}"
            remedy = "Mend those, or leave them out."
        else:
            text += f".\nIts {len(rows):,} examples: {self._named(rows)}"
            remedy = "Lower the learning rate; where losses grew before, longer warm-up and a lower max_norm help too."
        raise self.processes.agreed(GuieError(f"{text}.\n{self._kept()} {remedy}"))

    def _check_steps(self, skipped: int) -> None:
        """Raise GuieError if all steps of this epoch were left out, and more would be. `skipped`: of all epochs."""
        before = self.curves[-1].get("skipped steps", 0) if self.curves else 0
        if skipped - before < self.steps:
            return
        scale, nothing = float(self.scale.value), skipped == self.steps * self.training.epochs
        if self.float16 and scale >= 1.0 and not nothing:  # a few short epochs, until the scale has come down
            return
        text = f"{self.name}: none of the {self.steps:,} steps of epoch {self.epoch + 1} could be made, since their "
        text += "gradients are not finite, though the loss is"
        if self.float16:
            text += f"; the scale of the loss has come down to {scale:.3g}"
        remedy = "Compute in float32, or lower the learning rate." if self.float16 else "Lower the learning rate."
        raise self.processes.agreed(GuieError(f"{text}.\n{self._kept()} {remedy}"))

    def _kept(self) -> str:
        kept = "The state that was saved last is kept" if (self.folder / "state.pt").exists() else "No state was saved"
        return f"{kept} in {self.folder}."

    def _named(self, rows: Tensor) -> str:
        """The first of these rows, as people call them."""
        names = ", ".join(self.example(row) for row in rows[:NAMED].tolist())
        return f"{names} and {len(rows) - NAMED:,} more" if len(rows) > NAMED else names

    def write_checkpoint(self, name: str) -> None:
        """Write the tensors of `evaluated` to `<name>.safetensors` in the folder."""
        if not self.processes.first:
            return
        from safetensors.torch import save

        tensors = {key: value.detach().cpu().contiguous() for key, value in self.evaluated.state_dict().items()}
        with atomic_write(self.folder / f"{name}.safetensors") as file:
            file.write(save(tensors))

    def save(self) -> None:
        """Write all that the next step depends on to `state.pt`."""
        state = self._state() if self.shards is None else self.shards.gathered(self._state(), self.optimizer)
        if self.processes.first:
            save_state(state, self.folder / "state.pt")
        self.saved_epochs, self._saved = len(self.curves), time.monotonic()

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "total": self.total,
            "scale": self.scale.state_dict(),
            "skipped": int(self.skipped),
            "curves": self.curves,
            "rng": torch.get_rng_state(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if self.examples.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.examples.device)
        return state

    def _load(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        try:
            # mapped where it is copied, as a whole or in part; each loader knows where its tensors belong
            copied = self.shards is not None or self.examples.device.type != "cpu"
            state = torch.load(path, map_location="cpu", mmap=copied, weights_only=True)
            if self.shards is not None:
                state = self.shards.sharded(state, self.optimizer)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.scale.load_state_dict(state["scale"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.skipped.fill_(state["skipped"])
            self.total, self.curves = state["total"].to(self.total.device), state["curves"]
            self.saved_epochs = len(self.curves)
            torch.set_rng_state(state["rng"])
            if self.examples.device.type == "cuda" and "cuda_rng" in state:  # not if it was begun on the CPU
                torch.cuda.set_rng_state(state["cuda_rng"], self.examples.device)
        except Exception as error:  # torch raises a dozen kinds for a damaged file
            raise GuieError(f"{path} cannot be read ({error}); delete it to train from the start") from error
        if self.step:
            self.model.train()


def _mix(*parts: int) -> int:
    """A seed that follows from several numbers, without the overlaps that adding them would give."""
    import numpy as np

    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
