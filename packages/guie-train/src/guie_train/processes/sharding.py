"""Parameters of which each process has a shard, such as class centres divided among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from guie_train.processes.group import Processes


class Along(NamedTuple):
    """The dimension along which a tensor is divided, and how long it is in all."""

    dim: int
    length: int


Change = Callable[[Tensor, Along], Tensor]
State = dict[str, Any]


class Shards:
    """What `model` has a shard of, and how it becomes whole.

    Methods are called by all processes, in the same order. States on disk are whole ones: who goes on from them may be
    one process or several, with shards or without.

    Args:
        model: of this process.
        whole: the same with all of the parameters: of the first process; of the others shapes are enough (meta device).
        processes: that have the shards, each what `Processes.part` says.
    """

    def __init__(self, model: nn.Module, whole: nn.Module, processes: Processes) -> None:
        self.whole = whole
        self.processes = processes
        shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
        self._along: dict[str, Along] = {}
        self._names: dict[Tensor, str] = {}
        for name, parameter in model.named_parameters():
            for dim, (here, length) in enumerate(zip(parameter.shape, shapes[name], strict=True)):
                if here != length:
                    self._along[name], self._names[parameter] = Along(dim, length), name

    def norm(self, parameters: Sequence[Tensor]) -> Tensor:
        """That of all gradients: those of shards in all processes, those that all of them have once."""
        gradients = [p.grad for p in parameters if p.grad is not None and (self.processes.first or p in self._names)]
        norm = nn.utils.get_total_norm(gradients)
        squares = norm.double().square()  # of a finite float32 it is finite
        self.processes.all_reduce(squares)
        return squares.sqrt().to(norm.dtype)

    def fill(self, module: nn.Module) -> None:
        """Give `whole` the tensors of `module`, the model or an average of it, in the first process."""
        state = self._by_name(module.state_dict(), self._gather)
        if self.processes.first:
            self.whole.load_state_dict(state)

    def gathered(self, state: State, optimizer: Optimizer) -> State:
        """The whole of a state of `Fit`, in the first process; of no use in the others."""
        return self._each(state, optimizer, self._gather)

    def sharded(self, state: State, optimizer: Optimizer) -> State:
        """This process's shard of a whole state of `Fit`."""
        return self._each(state, optimizer, self._shard)

    def _gather(self, tensor: Tensor, along: Along) -> Tensor:
        return self.processes.gather(tensor, along.dim, along.length)

    def _shard(self, tensor: Tensor, along: Along) -> Tensor:
        here = self.processes.part(along.length)
        return tensor.narrow(along.dim, here.start, here.stop - here.start).clone()  # without the rest in memory

    def _each(self, state: State, optimizer: Optimizer, change: Change) -> State:
        changed = {**state, "model": self._by_name(state["model"], change)}
        changed["optimizer"] = self._of_optimizer(state["optimizer"], optimizer, change)
        if "average" in state:
            changed["average"] = self._by_name(state["average"], change)
        return changed

    def _by_name(self, tensors: Mapping[str, Tensor], change: Change) -> dict[str, Tensor]:
        along = self._along
        return {name: change(value, along[name]) if name in along else value for name, value in tensors.items()}

    def _of_optimizer(self, state: State, optimizer: Optimizer, change: Change) -> State:
        parameters = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))

        def changed(number: int, value: Any) -> Any:
            """Moments and the like, which are of their parameter's shape."""
            name = self._names.get(parameters[number])
            moment = isinstance(value, Tensor) and value.dim() == parameters[number].dim()
            return change(value, self._along[name]) if name is not None and moment else value

        found = {
            **state,
            "state": {
                number: {key: changed(number, value) for key, value in values.items()}
                for number, values in state["state"].items()
            },
        }
        own: Mapping[str, Iterable[Any]] = state.get("sam", {})
        if "perturbation" in own:
            found["sam"] = {**own, "perturbation": [changed(*each) for each in enumerate(own["perturbation"])]}
        return found
