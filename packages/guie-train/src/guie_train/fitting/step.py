"""One step of a training: gradients, their scale and their limit, and the optimiser's own part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie_core import UsageError
from guie_models.optimizers import SAM
from guie_train.fitting.graph import CapturedStep, capturable
from guie_train.fitting.scaling import LossScale
from guie_train.fitting.settings import Training
from guie_train.processes import Shards

Backward = Callable[[nn.Module, Any, Tensor, Tensor], Tensor]


def whole_batch(model: nn.Module, inputs: Any, labels: Tensor, scale: Tensor) -> Tensor:
    """Gradients of the loss of a batch that goes through the model at once, times `scale`; returns the loss."""
    loss: Tensor = model(inputs, labels)
    (loss * scale).backward()
    return loss.detach()


class TrainStep:
    """Takes the steps of a training. A GPU isn't waited for, but where a step may have to be left out and the optimiser
    can't do so by itself.

    Args:
        model: of `Fit`, as are `backward`, `float16` and `name`.
        optimizer: over its parameters.
        training: `max_norm` and `clip` of it.
        device: of the model.
        shards: where this process has but a part of some parameters.

    Attributes:
        scale: what losses are multiplied by.
        norm: of the gradients of the last step, a scalar.
        left_out: steps that were left out, where the optimiser doesn't count them; a scalar.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        training: Training,
        backward: Backward,
        device: torch.device,
        *,
        float16: bool,
        shards: Shards | None,
        name: str,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.training = training
        self.backward = backward
        self.float16 = float16
        self.shards = shards
        self.name = name
        self.scale = LossScale(device)
        self.norm = torch.zeros((), device=device)
        self.left_out = torch.zeros((), dtype=torch.int64, device=device)
        self._one = torch.ones((), device=device)
        # on a GPU, torch's fused optimisers leave a step out by themselves, so that nobody waits to see whether to
        self._unseen = device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._captured: CapturedStep | None = None

    def capture(self) -> None:
        """Take steps as a CUDA graph from now on, where they can be one: batches of tensors of one shape."""
        if capturable(self.model, self.optimizer):
            others = {"scale": self.scale.value, "passes": self.scale.passes, "steps left out": self.left_out}
            self._captured = CapturedStep(self.model, self.optimizer, others, self.name)

    def take(self, inputs: Any, labels: Tensor) -> Tensor:
        """One step on this batch; its loss, a scalar.

        Raises UsageError where the loss gives sparse gradients, which the optimiser doesn't take.
        """
        try:
            if self._captured is None:
                loss, self.norm = self._launched(inputs, labels)
            else:
                loss, self.norm = self._captured.take(self._launched, inputs, labels)
        except (RuntimeError, UsageError) as error:  # torch's optimisers, guie's
            if any(p.grad is not None and p.grad.is_sparse for p in self.model.parameters()):
                raise UsageError(
                    f"{self.name}: the loss gives sparse gradients, and {type(self.optimizer).__name__} doesn't take"
                    " those. Leave softmax.sparse of the loss out, or take an optimizer that does: SGD without momentum"
                ) from error
            raise
        return loss

    def _launched(self, inputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The step, kernel by kernel; its loss, and the norm of its gradients."""
        limit = torch.full_like(self._one, self.training.max_norm)
        if isinstance(self.optimizer, SAM):  # it clips, and looks at norms, by itself
            norm_of = None if self.shards is None else self.shards.norm
            loss = self.optimizer.step(
                lambda: self._gradients_of(inputs, labels, limit), max_norm=limit, norm_of=norm_of
            )
            assert self.optimizer.norm is not None
            return loss, self.optimizer.norm
        norms: list[Tensor] = []
        # torch's types ask for a loss that is a float
        loss = cast(Any, self.optimizer).step(lambda: self._clipped(inputs, labels, limit, norms))
        return loss, norms[-1]

    def skipped(self) -> int:
        """How many steps were left out, by whomever. A GPU is waited for."""
        return int(self.left_out) + int(getattr(self.optimizer, "skipped", 0))

    def _gradients_of(self, inputs: Any, labels: Tensor, limit: Tensor) -> Tensor:
        """Gradients of a batch's loss, which is returned; `limit` becomes that of their norm."""
        self.optimizer.zero_grad(set_to_none=True)
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

    def _clipped(self, inputs: Any, labels: Tensor, limit: Tensor, norms: list[Tensor]) -> Tensor:
        """As `_gradients_of`, within the limit, with their norm, which joins `norms`; where they aren't finite, the
        optimiser is to leave the step out."""
        loss = self._gradients_of(inputs, labels, limit)
        norm = self._norm()
        norms.append(norm)
        torch._foreach_mul_(self._gradients(), (limit / (norm + 1e-6)).clamp(max=1.0))
        if self.float16:
            left_out = ~norm.isfinite()
            self.left_out += left_out
            if self._unseen:  # what torch.amp.GradScaler tells it
                optimizer = cast(Any, self.optimizer)
                optimizer.grad_scale, optimizer.found_inf = None, left_out.float()
            elif bool(left_out):
                self.optimizer.zero_grad(set_to_none=True)  # so that the optimizer finds nothing to do
        return loss

    def _parameters(self) -> list[Tensor]:
        """Those that the optimizer has, with a gradient."""
        groups = self.optimizer.param_groups
        return [parameter for group in groups for parameter in group["params"] if parameter.grad is not None]

    def _gradients(self) -> list[Tensor]:
        return [gradient for parameter in self._parameters() if (gradient := parameter.grad) is not None]

    def _norm(self) -> Tensor:
        """That of all gradients."""
        if self.shards is not None:
            return self.shards.norm(self._parameters())
        return nn.utils.get_total_norm(self._gradients())
