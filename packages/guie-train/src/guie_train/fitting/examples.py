"""What is trained on: examples and their labels, in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

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
    """Features [N, D] that stay on the device, and labels [N] int64: a batch is an index-select."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels
        self.device = features.device

    def __len__(self) -> int:
        return len(self.features)

    def batches(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in rows:
            at = batch.to(self.device)
            yield self.features.index_select(0, at), self.labels.index_select(0, at)

    def not_finite(self, rows: Tensor) -> Tensor:
        finite = self.features.index_select(0, rows.to(self.device)).isfinite().all(1).cpu()
        return rows[~finite]
