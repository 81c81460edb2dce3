"""Losses on a GPU that isn't there: torch's fake tensors have its device and shapes, and no numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guie_models.losses import AdaFace, ArcFace, ClassMargins, CurricularFace, ElasticFace, ScheduledMargin, Softmax

GPU = torch.device("cuda", 0)


class OneDevice(TorchDispatchMode):
    """Lists operations that wait for the GPU: a look at a number, and whatever takes numbers of the CPU as well."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if len(devices) > 1 or any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "_unique")):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(make: Callable[[], nn.Module]) -> list[str]:
    """The operations of a training step, gradients included, that wait."""
    with FakeTensorMode(), GPU:
        loss = make()
        embedding, labels = torch.randn(16, 8, requires_grad=True), torch.randint(40, (16,))
        with OneDevice() as found:
            value = loss(embedding, labels)
        assert value.device == GPU
    return found.waits


def with_class_margins(loss: ArcFace) -> ArcFace:
    """As `ArcFace(margin=ClassMargins(...), class_counts=...)`, which looks at the counts when it is made."""
    loss.margin = ClassMargins(least=0.2, most=0.5)
    loss.register_buffer("class_margins", torch.full((40,), 0.3))
    return loss


@pytest.mark.parametrize(
    "make",
    [
        lambda: ArcFace(8, 40),
        lambda: ArcFace(8, 40, sub_centres=3),
        lambda: ArcFace(8, 40, margin=ScheduledMargin(start=0.1, end=0.5, growth=0.1)),
        lambda: with_class_margins(ArcFace(8, 40)),
        lambda: ArcFace(8, 40, softmax=Softmax(label_smoothing=0.1, focal=2.0)),
        lambda: ArcFace(8, 40, softmax=Softmax(products="float16")),
        lambda: ArcFace(8, 40, softmax=Softmax(sample=0.5)),
        lambda: AdaFace(8, 40),
        lambda: CurricularFace(8, 40),
        lambda: ElasticFace(8, 40),
    ],
)
def test_a_gpu_is_not_waited_for(make: Callable[[], nn.Module]) -> None:
    assert waits(make) == []
    assert getattr(make(), "capturable", False)


def test_a_look_at_labels_waits() -> None:
    """What `capturable` denies."""
    with pytest.raises(Exception, match="_local_scalar_dense"):  # a fake has no number to give
        waits(lambda: ArcFace(8, 40, check_labels=True))
    assert not ArcFace(8, 40, check_labels=True).capturable
