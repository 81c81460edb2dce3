"""Gradients of a batch that several processes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_train.processes.group import Processes


@dataclass(frozen=True)
class AveragedGradients:
    """A `Backward` of a head and its loss: each process takes its part of the batch through the loss.

    The head, which costs little, sees the whole batch in every process, so that batch norm and dropout do what they do
    in one. Each process then has the loss of its part of the embedding, and with it d loss / d embedding of these rows
    and a share of the gradients of the centres; both are added up, and d loss / d embedding of all rows goes back
    through the head. So every process has the gradients of the whole batch, as one process alone would but for
    rounding.

    A loss whose value for an image depends on the others of the batch, or on chance (`by_image` is not True: margins
    that follow the batch or are drawn, pairs, sampled classes), is computed whole in every process, all of which draw
    the same; several processes then gain nothing here.

    Args:
        processes: of this run.
    """

    processes: Processes

    def __call__(self, model: Any, inputs: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """Adds the gradients of loss * `scale`; returns the loss of the whole batch, detached."""
        embedding: Tensor = model.head(inputs)
        if not getattr(model.loss, "by_image", False):
            loss: Tensor = model.loss(embedding, labels)
            (loss * scale).backward()
            self._mean([loss.detach(), *_gradients(model)])
            return loss.detach()
        ours = self.processes.part(len(labels))
        if len(labels) < self.processes.count:
            raise UsageError(
                f"a batch of {len(labels)} cannot be shared by {self.processes.count} processes; start fewer"
            )
        part = embedding.detach()[ours].requires_grad_()
        share: Tensor = model.loss(part, labels[ours]) * ((ours.stop - ours.start) / len(labels))
        (share * scale).backward()
        through = torch.zeros_like(embedding)
        if part.grad is not None:
            through[ours] = part.grad
        loss = share.detach()
        self.processes.all_reduce(loss, through, *_gradients(model.loss))
        embedding.backward(through)
        return loss

    def _mean(self, tensors: list[Tensor]) -> None:
        """Keep together what would drift apart by rounding."""
        self.processes.all_reduce(*tensors)
        for tensor in tensors:
            tensor.div_(self.processes.count)


def _gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
