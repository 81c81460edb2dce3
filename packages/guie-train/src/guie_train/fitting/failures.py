"""What ends a training: losses that are not finite, and epochs without a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guie_core import GuieError

if TYPE_CHECKING:
    from guie_train.fitting.fit import Fit

NAMED = 5  # examples that a message names


class Losses:
    """The losses of an epoch's steps: their sum, and the first that isn't finite. Adding one doesn't wait for a GPU.

    Attributes:
        total: the sum of those that are finite, a scalar.
        norm_before: of the gradients, in the step before the first that isn't finite; a scalar.
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.norm_before = torch.zeros((), device=device)
        self._wrong = torch.full((), -1, device=device)  # the first step whose loss isn't finite; else -1

    def add(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """The loss of this step of the epoch, from 0, and the norm of its gradients; scalars."""
        finite = torch.isfinite(loss)
        self.total += torch.where(finite, loss, 0.0)
        self._wrong = torch.where(finite | (self._wrong >= 0), self._wrong, step)
        self.norm_before = torch.where(self._wrong < 0, norm, self.norm_before)

    def not_finite(self) -> int | None:
        """The first step whose loss isn't finite; None: all are. A GPU is waited for."""
        step = int(self._wrong)
        return None if step < 0 else step


def not_finite(fit: Fit, step: int) -> GuieError:
    """The loss of this step of the epoch isn't: when, with what, and which images."""
    rows = fit.rows()[step]
    text = f"{fit.name}: the loss is not finite in epoch {fit.epoch + 1}, batch {step + 1:,} of {fit.steps:,}"
    text += f"; the learning rate is {fit.optimizer.param_groups[0]['lr']:.3g}"
    if before := float(fit.losses.norm_before):
        text += f", the norm of the gradients was {before:.3g} in the batch before"
    if len(bad := fit.examples.not_finite(rows)):
        text += f".\n{len(bad):,} of its {len(rows):,} examples have values that are not finite: {_named(fit, bad)}"
        remedy = "Mend those, or leave them out."
    else:
        text += f".\nIts {len(rows):,} examples: {_named(fit, rows)}"
        remedy = "Lower the learning rate; where losses grew before, longer warm-up and a lower max_norm help too."
    return GuieError(f"{text}.\n{_kept(fit)} {remedy}")


def no_step_made(fit: Fit, skipped: int) -> GuieError | None:
    """All steps of this epoch were left out, and more would be; None where that isn't so. `skipped`: of all epochs."""
    before = fit.curves[-1].get("skipped steps", 0) if fit.curves else 0
    if skipped - before < fit.steps:
        return None
    scale, nothing = float(fit.train_step.scale.value), skipped == fit.steps * fit.training.epochs
    float16 = fit.train_step.float16
    if float16 and scale >= 1.0 and not nothing:  # a few short epochs, until the scale has come down
        return None
    text = f"{fit.name}: none of the {fit.steps:,} steps of epoch {fit.epoch + 1} could be made, since their "
    text += "gradients are not finite, though the loss is"
    if float16:
        text += f"; the scale of the loss has come down to {scale:.3g}"
    remedy = "Compute in float32, or lower the learning rate." if float16 else "Lower the learning rate."
    return GuieError(f"{text}.\n{_kept(fit)} {remedy}")


def _kept(fit: Fit) -> str:
    kept = "The state that was saved last is kept" if (fit.folder / "state.pt").exists() else "No state was saved"
    return f"{kept} in {fit.folder}."


def _named(fit: Fit, rows: Tensor) -> str:
    """The first of these rows, as people call them."""
    names = ", ".join(fit.example(row) for row in rows[:NAMED].tolist())
    return f"{names} and {len(rows) - NAMED:,} more" if len(rows) > NAMED else names
