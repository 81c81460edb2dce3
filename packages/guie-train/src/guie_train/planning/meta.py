"""Networks without numbers: built and run on torch's meta device, where memory, operations and shapes are counted.

Counting needs neither weights nor a GPU, and takes no memory of note: tensors of the meta device have a shape and a
dtype alone. What a step allocates is followed tensor by tensor, so that its peak is that of the real step, but for what
the allocator and the libraries keep to themselves.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guie_train.planning.known import NotKnown

aten = torch.ops.aten
T = TypeVar("T")

# a step looks at a few numbers, such as whether its gradient is finite: without numbers, they are
_READ = {aten.is_nonzero.default, aten._local_scalar_dense.default}


@dataclass
class Traced:
    """What a piece of work takes."""

    peak: int = 0  #: bytes of its tensors at the most, those that it was given included
    operations: int = 0  #: additions and multiplications of its products and convolutions
    kernels: int = 0  #: operations that write a tensor, each of which a GPU launches a kernel for, or more
    work: Counter[tuple[int, int]] = field(default_factory=Counter)  #: (operations, bytes read and written) of kernels

    def seconds(self, operations: float, bandwidth: float) -> float:
        """The least time at so many operations and so many bytes a second: each kernel needs the longer of the two."""
        return sum(times * max(ops / operations, moved / bandwidth) for (ops, moved), times in self.work.items())


class _Tracer(TorchDispatchMode):
    """Counts what torch does on the meta device while it is entered."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # here: it imports triton

        super().__init__()  # type: ignore[no-untyped-call]
        self._counters: dict[Any, Callable[..., int]] = flop_registry  # of products and convolutions
        self.found = Traced()
        self._live = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()  # storages

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's bytes for as long as its storage lives."""
        storage = tensor.untyped_storage()
        if tensor.is_meta and storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._release, storage.nbytes())
            self._live += storage.nbytes()
            self.found.peak = max(self.found.peak, self._live)

    def _release(self, size: int) -> None:
        self._live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READ and args[0].is_meta:
            return True
        packet = func._overloadpacket
        if packet not in self._counters and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        taken = _tensors((args, kwargs))
        before = {tensor.untyped_storage()._cdata for tensor in taken}
        out = func(*args, **kwargs)
        given = _tensors(out)
        for tensor in given:
            self.hold(tensor)
        new = [tensor for tensor in given if tensor.untyped_storage()._cdata not in before]
        if (new or func._schema.is_mutable) and not packet.__name__.startswith(("empty", "new_empty")):
            operations = self._counters[packet](*args, **kwargs, out_val=out) if packet in self._counters else 0
            moved = sum(
                tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in (*taken, *given)}.values()
            )
            self.found.operations += operations
            self.found.kernels += 1
            self.found.work[operations, moved] += 1
        return out


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_meta]


def on_meta(make: Callable[[], T]) -> T:
    """What `make` builds, without numbers. Raises NotKnown if it needs them."""
    with _counting(), torch.device("meta"), _as_on_a_device():
        return make()


def trace(work: Callable[[], Any], *held: nn.Module | Tensor) -> Traced:
    """Run `work` on the meta device and count what it takes; `held` is what it is given, and lives all the while.

    Raises NotKnown if it needs numbers.
    """
    tracer = _Tracer()
    for each in held:
        for tensor in [each] if isinstance(each, Tensor) else [*each.parameters(), *each.buffers()]:
            tracer.hold(tensor)
    with _counting(), _as_on_a_device(), tracer:
        work()
    return tracer.found


@contextmanager
def _counting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, TypeError) as error:  # what torch raises where a network looks at numbers
        reason = str(error).partition("\n")[0]
        raise NotKnown(f"it can't be counted without numbers: {reason}") from error


@contextmanager
def _as_on_a_device() -> Iterator[None]:
    """What torch does otherwise on the meta device than on one that computes.

    Attention is fused, where torch would make a matrix of N x N; autocast, which the meta device doesn't know, is
    passed over: networks are given in the dtype that they compute in.
    """
    plain, autocast = nn.functional.scaled_dot_product_attention, torch.autocast

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **others: Any,
    ) -> Tensor:
        if not query.is_meta or attn_mask is not None or query.dim() != 4 or others.get("enable_gqa"):
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **others)
        result: Tensor = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=others.get("scale")
        )[0]
        return result

    def cast(device: str, *arguments: Any, **settings: Any) -> AbstractContextManager[Any]:
        return nullcontext() if device == "meta" else autocast(device, *arguments, **settings)

    with (
        patch.object(nn.functional, "scaled_dot_product_attention", attention),
        patch.object(torch, "autocast", cast),
    ):
        yield


def parameters(*modules: nn.Module) -> tuple[int, int]:
    """How many numbers modules learn or hold, parameters and running statistics, and how many of them are trained."""
    each = [p for module in modules for p in module.parameters()]
    return sum(p.numel() for p in each), sum(p.numel() for p in each if p.requires_grad)


def state_bytes(*modules: nn.Module) -> int:
    """Bytes of their state dictionaries, which checkpoints hold."""
    return sum(value.numel() * value.element_size() for module in modules for value in module.state_dict().values())


def step(model: nn.Module, optimizer: Any, inputs: Tensor, labels: Tensor, max_norm: float) -> None:
    """One step of training, as `guie_train.fitting.Fit` makes it."""

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = model(inputs, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        return loss.detach()

    optimizer.step(closure)
