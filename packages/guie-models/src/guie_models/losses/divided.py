"""Class centres that several processes have together, each those of its part of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Peers(Protocol):
    """The processes that have the centres together, as one of them sees it; `guie_train.processes.Processes` is one."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def count(self) -> int:
        """How many they are."""

    def part(self, n: int) -> slice:
        """This process's share of n things in a row; those of all processes, in their order, are everything."""

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, which has the same bits in all of them."""


@dataclass(frozen=True)
class Divided:
    """All classes, of which this process has the centres of its part.

    Methods that talk to the others are called by all of them, in the same order, with the same batch.
    """

    classes: int
    peers: Peers

    @property
    def here(self) -> slice:
        """The classes of this process."""
        return self.peers.part(self.classes)

    def places(self, labels: Tensor) -> Tensor:
        """Where the centre of each label [B] is among those of this process; -1 if it is elsewhere."""
        here = self.here
        places: Tensor = labels - here.start
        return places.masked_fill((places < 0) | (labels >= here.stop), -1)

    def from_owners(self, vectors: Tensor, places: Tensor) -> Tensor:
        """Vectors [B, E] by image, each taken from the process that has the class, where it has a place."""
        found = vectors * (places >= 0)[:, None]
        self.peers.all_reduce(found)
        return found

    def summed(self, logs: Tensor, *sums: Tensor) -> tuple[Tensor, Tensor]:
        """From logarithms of sums over the classes of each process [R] to that of the sum over all, and the part of it
        that is this process's. `sums` are replaced by their sums over all, in the same message."""
        each = logs.new_zeros(self.peers.count, len(logs))
        each[self.peers.rank] = logs
        self.peers.all_reduce(each, *sums)
        whole = each.logsumexp(0)
        return whole, (logs - whole).exp()
