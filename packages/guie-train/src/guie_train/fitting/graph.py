"""A training's step as a CUDA graph: launched at once, instead of kernel by kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie_core import UsageError
from guie_train.device import random_state, set_random_state

log = logging.getLogger(__name__)

WARM = 4  # steps before the capture: what is made in them, such as moments and compiled kernels, is there then
COMPARED = (
    2  # replays that are held against the step itself: what doesn't move from one to the next shows in the second
)
CLOSE = (
    0.05  # of how far the parameters move; sums whose order is free round otherwise each time, and Adam enlarges that
)
KNOWN = ("torch", "guie_models", "guie_train")  # packages whose modules keep their state in tensors, changed in place

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class State(NamedTuple):
    """All that a step depends on and changes: copies of tensors, and the state of torch's generator."""

    tensors: list[Tensor]
    random: Tensor


def capturable(model: nn.Module) -> bool:
    """Whether it launches the same kernels on the same memory each time, but for what waits for the device, which
    `CapturedStep` finds out.

    Modules of torch and guie do; others say so by an attribute `capturable`: what a module counts in Python, such as
    its steps, would stand still.
    """
    return all(
        type(module).__module__.partition(".")[0] in KNOWN or bool(getattr(module, "capturable", False))
        for module in model.modules()
    )


class CudaGraph:
    """What `function` launches, which is recorded and not run; `replay` runs it, on the same memory."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.stream(torch.cuda.current_stream())  # which a capture that fails doesn't come back to
        # what other threads do, such as pin memory, is none of its concern
        with stream, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            function()

    def replay(self) -> None:
        """Run it."""
        self._graph.replay()


class CapturedStep:
    """`step`, from the fifth on as a CUDA graph, with the same result but for rounding.

    A training whose head is small spends most of a step on launching its kernels, hundreds of them with SAM; a graph
    launches them at once. It is taken only where it is shown to be the step: the one before the capture may wait for
    the device nowhere, and the first two replays are compared with the step from the same state. Otherwise a warning
    says what was found, and each step goes on as it was.

    Batches are of one shape. Learning rates may change from step to step, and the states of model, optimiser and
    torch's generator are where they were, so that nobody else needs to know of the graph.

    Args:
        step: of inputs and labels; returns scalars, of which the loss is the first.
        model: what it changes, `capturable`.
        optimizer: likewise, or the base of its SAM, one of torch's fused ones, whose state is on the device.
        others: that it changes besides.
        name: for the warning.
    """

    def __init__(self, step: Step, model: nn.Module, optimizer: Optimizer, others: Sequence[Tensor], name: str) -> None:
        self.step = step
        self.model = model
        self.optimizer = optimizer
        self.others = others
        self.name = name
        self._taken = 0  # steps
        self._graph: CudaGraph | None = None
        self._given_up = False

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """One step on this batch; its scalars, which the next call may overwrite."""
        if self._given_up:
            return self.step(inputs, labels)
        self._taken += 1
        if self._taken < WARM:
            return self._apart(inputs, labels)
        if self._taken == WARM:
            return self._watched(inputs, labels)
        if self._graph is None and not self._capture(inputs, labels):
            return self.step(inputs, labels)
        if self._taken <= WARM + COMPARED:
            return self._compared(inputs, labels)
        return self._replay(inputs, labels)

    def _apart(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The step, on a stream of its own, as torch wants those before a capture."""
        if not inputs.is_cuda:
            return self.step(inputs, labels)
        current, apart = torch.cuda.current_stream(), torch.cuda.Stream()
        apart.wait_stream(current)
        with torch.cuda.stream(apart):
            scalars = self.step(inputs, labels)
        current.wait_stream(apart)
        return scalars

    def _watched(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The step; gives up where it waits for the device: a capture that fails half-way leaves torch in disorder."""
        before = self._state(inputs.device)
        try:
            with waits_refused(inputs.device):
                return self._apart(inputs, labels)
        except RuntimeError as error:
            self._give_up(f"it waits for the GPU ({_first_line(error)})")
            self._set(before, inputs.device)
            return self.step(inputs, labels)

    def _capture(self, inputs: Tensor, labels: Tensor) -> bool:
        """Make the graph; whether that went well."""
        device = inputs.device
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._rates = [torch.full((), group["lr"], device=device) for group in self.optimizer.param_groups]

        def step() -> None:
            self._scalars = self.step(self._inputs, self._labels)

        try:
            with self._with_rates():
                self._graph = CudaGraph(step)
        except (RuntimeError, UsageError) as error:
            self.optimizer.zero_grad(set_to_none=True)  # they are in the graph's memory
            self._give_up(f"torch refuses it ({_first_line(error)})")
        return self._graph is not None

    @contextmanager
    def _with_rates(self) -> Iterator[None]:
        """Learning rates are tensors, that change, instead of numbers, which would stay those of the capture."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self._rates, strict=True):
                group.update({"lr": rate, "capturable": True} if "capturable" in group else {"lr": rate})
            yield
        finally:
            for group, kept in zip(groups, before, strict=True):
                group.update(kept)

    def _replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        assert self._graph is not None
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._graph.replay()
        return self._scalars

    def _compared(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """A replay; where it does something else than the step, what that does, and no more of them."""
        device = inputs.device
        before = self._state(device)
        scalars = tuple(scalar.clone() for scalar in self.step(inputs, labels))
        wanted = self._state(device)
        self._set(before, device)
        replayed = self._replay(inputs, labels)
        wrong = self._difference(before, wanted, self._state(device), scalars, replayed)
        if wrong is None:
            if self._taken == WARM + COMPARED and inputs.is_cuda:
                torch.cuda.empty_cache()  # what the steps took: the graph has memory of its own
            return replayed
        self._give_up(f"it would not do the same: {wrong}")
        self._set(wanted, device)
        self._graph = None
        return scalars

    def _difference(
        self, before: State, wanted: State, found: State, scalars: Sequence[Tensor], replayed: Sequence[Tensor]
    ) -> str | None:
        """What a replay has made otherwise than the step, in words."""
        count = len(list(self.model.parameters()))
        one, other = ([tensor for tensor in state.tensors[count:] if tensor.numel() == 1] for state in (wanted, found))
        for step, replay in zip([*scalars, *one], [*replayed, *other], strict=True):
            if not torch.allclose(replay.double(), step.double(), rtol=1e-3, atol=1e-6, equal_nan=True):
                return f"a number is {float(replay):.6g} instead of {float(step):.6g}"
        at_first, at_last, at_last_too = (state.tensors[:count] for state in (before, wanted, found))
        moved, apart = _norm(torch._foreach_sub(at_last, at_first)), _norm(torch._foreach_sub(at_last_too, at_last))
        if apart > CLOSE * moved + 1e-7 * _norm(at_last):
            return f"the parameters move by {moved:.3g}, and end {apart:.3g} apart"
        return None

    def _state(self, device: torch.device) -> State:
        return State([tensor.detach().clone() for tensor in self._tensors()], random_state(device))

    @torch.no_grad()
    def _set(self, state: State, device: torch.device) -> None:
        for tensor, value in zip(self._tensors(), state.tensors, strict=True):
            tensor.copy_(value)
        set_random_state(state.random, device)

    def _tensors(self) -> Iterator[Tensor]:
        """Parameters first."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from getattr(self.optimizer, "counters", ())
        yield from self.others

    def _give_up(self, why: str) -> None:
        self._given_up = True
        log.warning(
            "%s: a step can't be a CUDA graph: %s. Its kernels are launched one by one, which takes longer; "
            "profile.cuda_graphs=False doesn't try",
            *(self.name, why),
        )


@contextmanager
def waits_refused(device: torch.device) -> Iterator[None]:
    """What would wait for a GPU is an error."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(list(torch._foreach_norm(list(tensors)))).norm())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
