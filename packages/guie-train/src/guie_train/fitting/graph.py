"""A training's step as a CUDA graph: launched at once, instead of kernel by kernel."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie_core import UsageError
from guie_models.optimizers import SAM, fuses
from guie_train.device import out_of_memory, random_state, set_random_state

log = logging.getLogger(__name__)

# Steps before the capture: what is made in the first of them, such as moments and compiled kernels, is there then.
WARM = 4
# Replays that are compared with the step: what doesn't move from one to the next shows in the second.
COMPARED = 2
# How far apart they may end, of how far they move: sums whose order is free round otherwise each time, and Adam, which
# divides gradients by their size, makes much of that where they are next to nothing.
CLOSE = 0.05
# Packages whose modules keep what they count in buffers, which they change in place.
KNOWN = ("torch", "guie_models", "guie_train")

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class State(NamedTuple):
    """All that a step depends on and changes: copies of tensors, and the state of torch's generator."""

    tensors: list[Tensor]
    random: Tensor


def capturable(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether a step launches the same kernels on the same memory each time, as far as that can be told ahead.

    Modules of torch and guie do; others say so by an attribute `capturable`, or that they don't: what a module counts
    in Python, such as its steps, would stand still. Of optimisers it is those that are fused on a GPU, alone or within
    SAM, which keep all they have there.
    """
    waits = isinstance(optimizer, SAM) and optimizer.infinite != "skip"
    return fuses(optimizer) and not waits and all(map(_capturable, model.modules()))


def _capturable(module: nn.Module) -> bool:
    return bool(getattr(module, "capturable", type(module).__module__.partition(".")[0] in KNOWN))


class CudaGraph:
    """What `function` launches, which is recorded and not run; `replay` runs it, on the same memory."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.stream(torch.cuda.current_stream())  # which a capture that fails doesn't come back to
        try:
            # what other threads do, such as pin memory, is none of its concern
            with stream, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                function()
        except BaseException:
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())  # torch 2.7 leaves it in the capture
            raise

    def replay(self) -> None:
        """Run it."""
        self._graph.replay()


class CapturedStep:
    """A step that is a CUDA graph from the fifth on, with the same result but for rounding.

    A training whose head is small spends most of a step on launching its kernels, hundreds of them with SAM; a graph
    launches them at once. Before that it is looked at whether it can be one: the fourth step may wait for the device
    nowhere, and the first two replays are compared with the step from the same state, the second time at twice the
    learning rate. Otherwise a warning says what was found, and each step goes on as it was.

    Batches are of one shape. Learning rates may change from step to step, and the states of model, optimiser and
    torch's generator are where they were, so that nobody else needs to know of the graph.

    Args:
        model, optimizer: what a step changes, `capturable`.
        others: that it changes besides.
        name: for the warning.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, others: Sequence[Tensor], name: str) -> None:
        self.model = model
        self.optimizer = optimizer
        self.others = others
        self.name = name
        self._taken = 0  # steps
        self._given_up = False
        self._graph: CudaGraph | None = None
        self._rates: list[Tensor] = []
        self._batch: tuple[Tensor, Tensor] | None = None  # that a replay takes
        self._scalars: tuple[Tensor, ...] = ()  # that it gives
        self._stream: torch.cuda.Stream | None = None

    def take(self, step: Step, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """`step`, always the same, on this batch; the scalars that it returns, which the next one may overwrite."""
        if self._given_up:
            return step(inputs, labels)
        self._taken += 1
        if self._taken < WARM:
            return self._on_side_stream(step, inputs, labels)
        if self._taken == WARM:
            return self._watched(step, inputs, labels)
        if self._graph is None and not self._capture(step, inputs, labels):
            return step(inputs, labels)
        if self._taken <= WARM + COMPARED:
            return self._compared(step, inputs, labels, rate=self._taken - WARM)
        return self._replay(inputs, labels)

    def _on_side_stream(self, step: Step, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """A step where torch wants those before a capture."""
        if not inputs.is_cuda:
            return step(inputs, labels)
        current = torch.cuda.current_stream()
        self._stream = side = self._stream or torch.cuda.Stream()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                return step(inputs, labels)
        finally:
            current.wait_stream(side)

    def _watched(self, step: Step, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """A step; gives up where it waits for the device: a capture that fails half-way leaves torch in disorder."""
        self._rates = [torch.full((), group["lr"], device=inputs.device) for group in self.optimizer.param_groups]
        before = None
        try:
            before = self._state()
            with waits_refused(inputs.device), self._with_rates():
                return self._on_side_stream(step, inputs, labels)
        except RuntimeError as error:
            self._give_up(error)
        if before is not None:
            self._set(before)
        return step(inputs, labels)

    def _capture(self, step: Step, inputs: Tensor, labels: Tensor) -> bool:
        """Make the graph; whether that went well."""
        try:
            batch = self._batch = (inputs.clone(), labels.clone())

            def captured() -> None:
                self._scalars = step(*batch)

            with self._with_rates(capturable=True):
                self._graph = CudaGraph(captured)
        except (RuntimeError, UsageError) as error:
            self._give_up(error)
        self.optimizer.zero_grad(set_to_none=True)  # those at hand are the graph's
        return self._graph is not None

    @contextmanager
    def _with_rates(self, **more: Any) -> Iterator[None]:
        """Learning rates are tensors, that change, instead of numbers, which would stay those of the capture."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group.update({"lr": rate} | {name: value for name, value in more.items() if name in group})
            yield
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.update(kept)

    def _replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        assert self._graph is not None
        assert self._batch is not None
        for place, values in zip(self._batch, (inputs, labels), strict=True):
            place.copy_(values)
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._scalars

    def _compared(self, step: Step, inputs: Tensor, labels: Tensor, rate: int) -> tuple[Tensor, ...]:
        """A replay, after one that was compared with the step, both at so many times the learning rate."""
        before = None
        try:
            before = self._state()
            with self._times(rate):
                wanted = [scalar.clone() for scalar in step(inputs, labels)]
                after = self._state()
                self._set(before)
                found = self._replay(inputs, labels)
            wrong: RuntimeError | str | None = self._difference(before, after, wanted, found)
            del after
        except RuntimeError as error:  # there may be no memory for two states
            if not out_of_memory(error):
                raise
            wrong = error
        self.optimizer.zero_grad(set_to_none=True)  # those of the step
        if wrong is not None:
            self._give_up(wrong)
        if before is not None:
            self._set(before)
            del before
        if wrong is not None:
            return step(inputs, labels)
        if self._taken == WARM + COMPARED and inputs.is_cuda:
            torch.cuda.empty_cache()  # what steps took, since the graph has memory of its own
        return self._replay(inputs, labels)

    @contextmanager
    def _times(self, factor: int) -> Iterator[None]:
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group in groups:
                group["lr"] = group["lr"] * factor
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate

    @torch.no_grad()
    def _difference(
        self, before: State, wanted: State, scalars: Sequence[Tensor], replayed: Sequence[Tensor]
    ) -> str | None:
        """What a replay, which has just been made, did otherwise than the step, in words."""
        now, wanted_now = list(self._tensors()), wanted.tensors
        if not len(before.tensors) == len(wanted_now) == len(now):
            return "the optimizer has come to hold more"
        single = [number for number, tensor in enumerate(now) if tensor.numel() == 1]
        numbers = [*zip(scalars, replayed, strict=True), *((wanted_now[number], now[number]) for number in single)]
        for step, replay in numbers:
            if not torch.allclose(replay.double(), step.double(), rtol=1e-3, atol=1e-6, equal_nan=True):
                return f"a number is {float(replay):.6g} instead of {float(step):.6g}"
        parameters, buffers = (len(list(values)) for values in (self.model.parameters(), self.model.buffers()))
        several = [n for n in range(parameters, len(now)) if now[n].numel() > 1 and now[n].is_floating_point()]
        of_buffers = [[number] for number in several if number < parameters + buffers]
        of_optimizer = [number for number in several if number >= parameters + buffers]
        for part in (list(range(parameters)), of_optimizer, *of_buffers):
            moved = _norm(wanted_now[number] - before.tensors[number] for number in part)
            apart = _norm(now[number] - wanted_now[number] for number in part)
            size = _norm(wanted_now[number] for number in part)
            if not apart <= CLOSE * moved + 1e-6 * size:
                what = "parameters" if part and part[0] == 0 else "its state"
                return f"{what} move by {moved:.3g}, and end {apart:.3g} apart"
        return None if torch.equal(random_state(self._device), wanted.random) else "other random numbers are drawn"

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _state(self) -> State:
        return State([tensor.detach().clone() for tensor in self._tensors()], random_state(self._device))

    @torch.no_grad()
    def _set(self, state: State) -> None:
        for tensor, value in zip(self._tensors(), state.tensors, strict=False):
            tensor.copy_(value)
        set_random_state(state.random, self._device)

    def _tensors(self) -> Iterator[Tensor]:
        """Parameters, buffers, and all else."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from getattr(self.optimizer, "counters", ())
        yield from self.others

    def _give_up(self, why: BaseException | str) -> None:
        self._given_up = True
        self._graph = self._batch = None
        self._scalars = ()
        if isinstance(why, str):
            reason = f"it would not do the same: {why}"
        elif out_of_memory(why):
            reason = "there is no memory for it"
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            said = str(why).partition("\n")[0]
            reason = f"{'it waits for the GPU' if 'synchroniz' in said else 'torch refuses it'} ({said})"
        log.warning(
            "%s: a step can't be a CUDA graph: %s. Its kernels are launched one by one, which takes longer; "
            "profile.cuda_graphs=False doesn't try",
            *(self.name, reason),
        )


@contextmanager
def waits_refused(device: torch.device) -> Iterator[None]:
    """What would wait for a GPU is an error."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _norm(tensors: Iterable[Tensor]) -> float:
    """Of all their numbers together; one after the other, so that little is held."""
    squares = (float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors)
    return math.sqrt(sum(squares))
