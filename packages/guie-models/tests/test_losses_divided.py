"""Class centres that processes divide among them: value and gradients are those of one that has all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from guie_core import UsageError
from guie_models import AdaFace, ArcFace, ClassMargins, CosFace, CurricularFace, MarginLoss, Softmax

SIZE, CLASSES, BATCH = 6, 11, 14
COUNTS = list(range(1, CLASSES + 1))


@dataclass
class Table:
    """Where the peers, threads of this process, put what is to be added up."""

    count: int
    barrier: threading.Barrier = field(init=False)
    brought: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count)


@dataclass
class Peer:
    rank: int
    table: Table
    sent: int = 0  # numbers

    @property
    def count(self) -> int:
        return self.table.count

    def part(self, n: int) -> slice:
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def all_reduce(self, *tensors: Tensor) -> None:
        self.sent += sum(tensor.numel() for tensor in tensors)
        self.table.brought[self.rank] = tuple(tensor.clone() for tensor in tensors)
        self.table.barrier.wait(30)
        every = [self.table.brought[rank] for rank in range(self.count)]
        self.table.barrier.wait(30)
        for tensor, *summands in zip(tensors, *every, strict=True):
            tensor.copy_(torch.stack(summands).sum(0))


def among(count: int, do: Callable[[Peer], Any]) -> list[Any]:
    """What `do` gives to each of so many peers."""
    table, found = Table(count), [None] * count

    def one(rank: int) -> None:
        try:
            found[rank] = do(Peer(rank, table))
        except BaseException:
            table.barrier.abort()
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def case(classes: int = CLASSES, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Embeddings, and labels of the first half of the classes: some peers have none of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, SIZE, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes // 2, (BATCH,), generator=generator)


Results = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]


def results(loss: MarginLoss, x: Tensor, labels: Tensor) -> Results:
    """Value, gradients of embedding and centres, and the loss's own state after two batches."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        x.grad = loss.centres.grad = None
        value = loss(x, labels)
        (value * 3.0).backward()
    assert x.grad is not None
    assert loss.centres.grad is not None
    state = {name: tensor for name, tensor in loss.state_dict().items() if name != "centres"}
    return value.detach(), x.grad, loss.centres.grad, state


LOSSES: dict[str, Callable[[], MarginLoss]] = {
    "ArcFace": lambda: ArcFace(SIZE, CLASSES),
    "largest subtracted": lambda: CosFace(SIZE, CLASSES, scale=100.0),
    "sub-centres, in few rows": lambda: ArcFace(SIZE, CLASSES, sub_centres=3, softmax=Softmax(rows=4)),
    "smoothed": lambda: ArcFace(SIZE, CLASSES, softmax=Softmax(label_smoothing=0.2, focal=2.0, rows=5)),
    "smoothed at a large scale": lambda: CosFace(SIZE, CLASSES, 300.0, softmax=Softmax(label_smoothing=0.2)),
    "margins by class": lambda: ArcFace(SIZE, CLASSES, margin=ClassMargins(least=0.1, most=0.6), class_counts=COUNTS),
    "AdaFace": lambda: AdaFace(SIZE, CLASSES),
    "CurricularFace": lambda: CurricularFace(SIZE, CLASSES, scale=20.0, softmax=Softmax(label_smoothing=0.1)),
}


def made(loss: str) -> MarginLoss:
    torch.manual_seed(2)
    return LOSSES[loss]().double()


def divided(whole: MarginLoss, peer: Peer) -> MarginLoss:
    """This peer's part: a copy, since peers draw from one generator, at any time."""
    part = deepcopy(whole)
    part.divide(peer)
    return part


@pytest.mark.parametrize("count", [2, 3, CLASSES])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradients_are_the_whole_loss_s(loss: str, count: int) -> None:
    x, labels = case()
    whole = made(loss)
    value, of_x, of_centres, state = results(deepcopy(whole), x, labels)

    def one(peer: Peer) -> tuple[Peer, Results]:
        part = divided(whole, peer)
        assert part.centres.shape[-2] in (CLASSES // count, CLASSES // count + 1)
        return peer, results(part, x, labels)

    for peer, found in among(count, one):
        expected = (value, of_x, of_centres[..., peer.part(CLASSES), :], state)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("products", "precision"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_products_of_16_bits(products: Any, precision: float) -> None:
    torch.manual_seed(2)
    whole = CurricularFace(SIZE, CLASSES, 30.0, softmax=Softmax(label_smoothing=0.1, products=products))
    x, labels = case(dtype=torch.float32)
    exact = results(deepcopy(whole).double(), x.double(), labels)  # products of float64

    def one(peer: Peer) -> tuple[Peer, Results]:
        return peer, results(divided(whole, peer), x, labels)

    for peer, (value, of_x, of_centres, _) in among(3, one):
        wanted = exact[2][peer.part(CLASSES)]
        for found, right in ((value, exact[0]), (of_x, exact[1]), (of_centres, wanted)):
            assert float((found - right).norm()) < precision * float(right.norm())


def test_what_is_sent_does_not_grow_with_the_classes() -> None:
    def sent(classes: int) -> int:
        x, labels = case(classes, torch.float32)

        def one(peer: Peer) -> int:
            loss = divided(ArcFace(SIZE, classes, softmax=Softmax(label_smoothing=0.1)), peer)
            loss(x.clone().requires_grad_(), labels).backward()
            return peer.sent

        return int(among(2, one)[0])

    assert sent(20) == sent(2000) == BATCH * (2 * SIZE + 2 + 1)  # own centres, gradient; logarithms of two; sums


def test_an_embedding_that_is_not_finite_is_seen_by_all() -> None:
    x, labels = case()
    x[3, 0] = torch.nan
    whole = made("ArcFace")
    for value, of_x, of_centres, _ in among(2, lambda peer: results(divided(whole, peer), x, labels)):
        assert value.isnan()
        assert of_x.isnan().any()
        assert of_centres.isnan().all()


def test_what_cannot_be_divided_is_refused() -> None:
    peer = Peer(0, Table(3))
    with pytest.raises(UsageError, match="ArcFace: classes can be sampled or divided among processes, not both"):
        ArcFace(4, 9, softmax=Softmax(sample=0.5)).divide(peer)
    with pytest.raises(UsageError, match="ArcFace: 2 classes cannot be divided among 3 processes"):
        ArcFace(4, 2).divide(peer)
    loss = ArcFace(4, 9)
    loss.divide(peer)
    calls: list[Callable[[], Tensor]] = [
        lambda: loss.logits(torch.ones(1, 4)),
        lambda: loss.margin_logits(torch.ones(1, 4), torch.tensor([0])),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="the centres are divided among processes"):
            call()
