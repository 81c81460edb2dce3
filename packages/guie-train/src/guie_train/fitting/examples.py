"""What is trained on: examples and their labels, in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Examples(ABC):
    """N examples with labels. `device` is where their batches are."""

    device: torch.device

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batches(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        """The inputs and labels [B] of each of `rows`, row numbers [B] on the CPU, in order.

        What is random about an example follows from it and the epoch, so that a batch doesn't depend on those before.
        It may read ahead: `rows` may be asked for more than has been given.
        """

    def not_finite(self, rows: Tensor) -> Tensor:
        """Those of `rows` [B] whose inputs have values that are not finite, as far as that can be told here."""
        return rows[:0]


class Resident(Examples):
    """Features [N, D] that stay on the device, and labels [N] int64: a batch is an index-select.

    Of images that were seen V times, features are [V * N, D], view after view; each epoch takes one of the views of
    each image, which follows from the seed and the epoch.
    """

    def __init__(self, features: Tensor, labels: Tensor, seed: int = 0) -> None:
        self.features = features
        self.labels = labels
        self.seed = seed
        self.device = features.device

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def views(self) -> int:
        """V."""
        return len(self.features) // len(self.labels)

    def batches(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = None
        if self.views > 1:
            views = np.random.default_rng([self.seed, epoch]).integers(self.views, size=len(self))
            drawn = self._moved(torch.from_numpy(views * len(self) + np.arange(len(self))))
        for batch in rows:
            at = self._moved(batch)
            seen = at if drawn is None else drawn.index_select(0, at)
            yield self.features.index_select(0, seen), self.labels.index_select(0, at)

    def _moved(self, rows: Tensor) -> Tensor:
        """On the device, which isn't waited for."""
        return rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows

    def not_finite(self, rows: Tensor) -> Tensor:
        by_view = self.features.unflatten(0, (self.views, len(self)))
        finite = by_view.index_select(1, rows.to(self.device)).isfinite().all(2).all(0).cpu()
        return rows[~finite]
