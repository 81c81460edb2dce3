"""Gradients of a batch whose activations don't fit into the memory at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from guie_train.device import random_state, set_random_state
from guie_train.fitting.images import Seen


class Tunable(Protocol):
    """A network in two parts: one that treats images one by one, and one that sees the whole batch."""

    def features(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, h, w]; a row depends on its image alone, and on what dropout draws."""

    def criterion(self, features: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of a batch: features [B, D], size values [B, 3], labels [B]."""


@dataclass(frozen=True)
class MicroBatches:
    """A `Backward` whose gradients are those of the whole batch, while at most `size` images have activations.

    First the features of all images are computed without gradients, `size` at a time; then the loss of the whole batch,
    so that batch norm in the head, margins that depend on the batch and losses that compare pairs see all of it; this
    gives d loss / d features. Then the features of each part are computed again, now with gradients, from the same
    random state, and its share of d loss / d features goes through them. A batch that fits is computed once.
    (Gradient caching, arXiv 2101.06983.)
    """

    size: int

    def __call__(self, model: Any, inputs: Any, labels: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Adds the gradients of loss * `scale`; returns the loss, detached."""
        network, seen = cast(Tunable, model), cast(Seen, inputs)
        if len(labels) <= self.size:
            loss = network.criterion(network.features(seen.pixels), seen.sizes, labels)
            (loss * scale).backward()
            return loss.detach()
        parts = seen.pixels.split(self.size)
        before, found = [], []
        with torch.no_grad():
            for pixels in parts:
                before.append(random_state(pixels.device))
                found.append(network.features(pixels))
        features = torch.cat(found).requires_grad_()
        loss = network.criterion(features, seen.sizes, labels)
        (loss * scale).backward()
        after = random_state(features.device)
        for pixels, state, gradient in zip(parts, before, cast(Tensor, features.grad).split(self.size), strict=True):
            set_random_state(state, pixels.device)
            network.features(pixels).backward(gradient)
        set_random_state(after, features.device)
        return loss.detach()
