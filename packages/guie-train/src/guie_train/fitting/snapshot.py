"""What a step of a training depends on and changes: copied, put back, and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie_train.device import random_state, set_random_state

# How far apart two steps from the same state may end, of how far they move: sums whose order is free round otherwise
# each time, and Adam, which divides gradients by their size, makes much of that where they are next to nothing.
CLOSE = 0.05
ROUNDING = 1e-6  # of the values themselves


class Snapshot(NamedTuple):
    """Copies of tensors by what they are and their names, and the state of torch's generator."""

    tensors: dict[tuple[str, str], Tensor]
    random: Tensor


@dataclass(frozen=True)
class Changing:
    """Of a training.

    Args:
        model, optimizer: the parameters and buffers of one, and the state of the other.
        others: what a step changes besides, by name.
    """

    model: nn.Module
    optimizer: Optimizer
    others: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    def copy(self) -> Snapshot:
        """As it is now."""
        copies = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        return Snapshot(copies, random_state(self.device))

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Make it what it was; a state that the optimiser has made since is as if it began."""
        for name, tensor in self._tensors():
            if (value := snapshot.tensors.get(name)) is None:
                tensor.zero_()
            else:
                tensor.copy_(value)
        set_random_state(snapshot.random, self.device)

    @torch.no_grad()
    def difference(self, before: Snapshot, wanted: Snapshot) -> str | None:
        """How it is now otherwise than `wanted`, in words, both having come from `before`; None: but for rounding, it
        isn't."""
        now = dict(self._tensors())
        if not before.tensors.keys() == wanted.tensors.keys() == now.keys():
            return "the optimizer has come to hold more"
        # parameters are judged together, as are moments, since some have gradients that are rounding and nothing else
        parts: dict[str, list[tuple[str, str]]] = {}
        for name, tensor in now.items():
            kind, own = name
            together = kind == "parameters" or (kind == "moments" and tensor.numel() > 1)
            if tensor.is_floating_point():
                parts.setdefault(f"{kind}" if together else f"{kind}: {own}", []).append(name)
            elif not torch.equal(tensor, wanted.tensors[name]):
                return f"{kind}: {own} isn't the same"
        for part, names in parts.items():
            if all(torch.equal(now[name], wanted.tensors[name]) for name in names):  # which may be infinite
                continue
            moved = _norm(wanted.tensors[name] - before.tensors[name] for name in names)
            apart = _norm(now[name] - wanted.tensors[name] for name in names)
            if not apart <= CLOSE * moved + ROUNDING * _norm(wanted.tensors[name] for name in names):
                return f"{part}: they move by {moved:.3g}, and end {apart:.3g} apart"
        return None if torch.equal(random_state(self.device), wanted.random) else "other random numbers are drawn"

    def _tensors(self) -> Iterator[tuple[tuple[str, str], Tensor]]:
        yield from ((("parameters", name), tensor) for name, tensor in self.model.named_parameters())
        yield from ((("buffers", name), tensor) for name, tensor in self.model.named_buffers())
        for number, state in enumerate(self.optimizer.state.values()):
            for name, value in state.items():
                if isinstance(value, Tensor):
                    yield ("moments", f"{name} of parameter {number}"), value
        for number, counter in enumerate(getattr(self.optimizer, "counters", ())):
            yield ("counters", str(number)), counter
        yield from ((("others", name), tensor) for name, tensor in self.others.items())


def _norm(tensors: Iterable[Tensor]) -> float:
    """Of all their numbers together; one after the other, so that little is held."""
    squares = (float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors)
    return math.sqrt(sum(squares))
