"""A training's step as a CUDA graph: launched at once, instead of kernel by kernel."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guie_core import UsageError
from guie_models.optimizers import SAM, fuses
from guie_train.device import out_of_memory
from guie_train.fitting.snapshot import Changing, Snapshot

log = logging.getLogger(__name__)

# Steps before the capture: what is made in the first of them, such as moments and compiled kernels, is there then.
WARM = 4
# Replays that are compared with the step: what doesn't move from one to the next shows in the second.
COMPARED = 2
# Packages whose modules keep what they count in buffers, which they change in place.
KNOWN = ("torch", "guie_models", "guie_train")

Step = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def capturable(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether a step launches the same kernels on the same memory each time, as far as that can be told ahead.

    Modules of torch and guie do; others say so by an attribute `capturable`, or that they don't: what a module counts
    in Python, such as its steps, would stand still. Of optimisers it is those that are fused on a GPU, alone or within
    SAM, which keep all they have there.
    """
    waits = isinstance(optimizer, SAM) and optimizer.infinite != "skip"
    return fuses(optimizer) and not waits and all(map(_capturable, model.modules()))


def _capturable(module: nn.Module) -> bool:
    own = [kind for kind in type(module).__mro__ if kind.__module__.partition(".")[0] not in KNOWN]
    if type(module) in own:  # what it inherits from guie's says nothing of what it does itself
        says = "capturable" in vars(module) or any("capturable" in vars(kind) for kind in own)
        return says and bool(module.capturable)
    return bool(getattr(module, "capturable", True))


class CudaGraph:
    """What `function` launches, which is recorded and not run; `replay` runs it, on the same memory."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.stream(torch.cuda.current_stream())  # which a capture that fails doesn't come back to
        try:
            # what other threads do, such as pin memory, is none of its concern
            with stream, torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                function()
        except BaseException:
            # some versions of torch leave generator and allocator in a capture that fails
            device = torch.cuda.current_device()
            generator = torch.cuda.default_generators[device]
            generator.graphsafe_set_state(generator.clone_state())
            with suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(device, pool)
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
        others: that it changes besides, by name.
        name: for the warning.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, others: Mapping[str, Tensor], name: str) -> None:
        self.optimizer = optimizer
        self.name = name
        self._changing = Changing(model, optimizer, others)
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
            return self._compared(step, inputs, labels, factor=self._taken - WARM)
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
        before: Snapshot | None = None
        try:
            before = self._changing.copy()
            with waits_refused(inputs.device), self._with_rates():
                return self._on_side_stream(step, inputs, labels)
        except RuntimeError as error:
            reason = _reason(error)
        if before is not None:  # else there was no memory for it
            self._changing.restore(before)
            del before
        scalars = step(inputs, labels)  # an error of its own is told by it
        self._give_up(reason)
        return scalars

    def _capture(self, step: Step, inputs: Tensor, labels: Tensor) -> bool:
        """Make the graph; whether that went well."""
        reason = ""
        try:
            batch = self._batch = (inputs.clone(), labels.clone())

            def captured() -> None:
                self._scalars = step(*batch)

            with self._with_rates(capturable=True):
                self._graph = CudaGraph(captured)
        except (RuntimeError, UsageError) as error:
            reason = _reason(error)
        self.optimizer.zero_grad(set_to_none=True)  # those at hand are the graph's
        if reason:
            self._give_up(reason)
        return not reason

    @contextmanager
    def _with_rates(self, **more: Any) -> Iterator[None]:
        """Learning rates are tensors, that change, instead of numbers, which would stay those of the capture."""
        groups = self.optimizer.param_groups
        new = [{"lr": rate, **more} for rate in self._rates]
        before = [
            {name: group[name] for name in given if name in group} for group, given in zip(groups, new, strict=True)
        ]
        try:
            for group, kept, given in zip(groups, before, new, strict=True):
                group.update({name: given[name] for name in kept})
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

    def _compared(self, step: Step, inputs: Tensor, labels: Tensor, factor: int) -> tuple[Tensor, ...]:
        """A replay, after one that was compared with the step, both at so many times the learning rate."""
        before: Snapshot | None = None
        try:
            before = self._changing.copy()
            with self._times(factor):
                wrong = self._does_otherwise(step, inputs, labels, before)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            wrong = _reason(error)
        self.optimizer.zero_grad(set_to_none=True)  # those of the step
        if wrong:
            self._give_up(wrong)
        if before is not None:
            self._changing.restore(before)
            del before
        if wrong:
            return step(inputs, labels)
        if self._taken == WARM + COMPARED:
            _free_memory(inputs.device)  # that steps took: the graph has its own
        return self._replay(inputs, labels)

    def _does_otherwise(self, step: Step, inputs: Tensor, labels: Tensor, before: Snapshot) -> str:
        """What a replay makes otherwise than the step, in words; nothing if it doesn't."""
        wanted = [scalar.clone() for scalar in step(inputs, labels)]
        after = self._changing.copy()
        self._changing.restore(before)
        for one, other in zip(wanted, self._replay(inputs, labels), strict=True):
            if not torch.allclose(other, one, rtol=1e-3, equal_nan=True):
                return f"it would not do the same: a number is {float(other):.6g} instead of {float(one):.6g}"
        difference = self._changing.difference(before, after)
        return f"it would not do the same: {difference}" if difference else ""

    @contextmanager
    def _times(self, factor: int) -> Iterator[None]:
        """At so many times the learning rates."""
        groups = self.optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate * factor
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._graph = self._batch = None
        self._scalars = ()
        _free_memory(self._changing.device)
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


def _reason(error: BaseException) -> str:
    """Why a step can't be a graph. What ended a capture is the context of what its end then raises."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    if out_of_memory(error):
        return "there is no memory for it"
    said = str(error).partition("\n")[0]
    return f"{'it waits for the GPU' if 'synchroniz' in said else 'torch refuses it'} ({said})"


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        with suppress(RuntimeError):  # after a capture that failed, some versions of torch refuse it
            torch.cuda.empty_cache()
