"""Every loss beside its formula as the papers write it, with angles, in float64, differentiated by autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from guie_core import GuieError, UsageError
from guie_models.losses import (
    AdaFace,
    ArcFace,
    ClassMargins,
    CosFace,
    CurricularFace,
    ElasticFace,
    MarginLoss,
    NormFace,
    ScheduledMargin,
    Softmax,
)
from guie_models.losses.margin_softmax import margin_softmax

BATCH, SIZE, CLASSES = 14, 6, 9
COUNTS = [1, 2, 3, 5, 8, 13, 100, 1000, 16]


def case(subs: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of many lengths at all angles to the centres [K, C, E] of their labels, some beyond pi - m."""
    torch.manual_seed(seed)
    w = torch.randn(subs, CLASSES, SIZE, dtype=torch.float64)
    w = w * torch.logspace(-2, 1, CLASSES, dtype=torch.float64)[:, None]
    labels = torch.arange(BATCH) % CLASSES
    own = w[torch.arange(BATCH) % subs, labels]
    away = torch.linspace(-1.5, 1.5, BATCH, dtype=torch.float64)[:, None]
    x = away * own / own.norm(dim=1, keepdim=True) + 0.3 * torch.randn(BATCH, SIZE, dtype=torch.float64)
    return x * torch.linspace(1, 40, BATCH, dtype=torch.float64)[:, None], w, labels


def widened(cosine: Tensor, angle: Tensor) -> Tensor:
    """cos(theta + angle); 1 where that would be below 0, the recipe's fallback where it would be beyond pi."""
    theta = torch.acos(cosine)
    if theta + angle < 0:
        return torch.ones_like(theta)
    return torch.cos(theta + angle) if theta + angle <= math.pi else cosine - angle * torch.sin(math.pi - angle)


def textbook(
    x: Tensor,
    w: Tensor,
    labels: Tensor,
    scale: float,
    angle: float | Tensor = 0.0,
    offset: float | Tensor = 0.0,
    t: float | None = None,
    smoothing: float = 0.0,
    focal: float = 0.0,
) -> Tensor:
    angles = torch.as_tensor(angle, dtype=torch.float64).expand(len(x))
    offsets = torch.as_tensor(offset, dtype=torch.float64).expand(len(x))
    losses = []
    for i, label in enumerate(labels.tolist()):
        cosine = torch.stack(
            [torch.stack([x[i] @ sub / (x[i].norm() * sub.norm()) for sub in w[:, j]]).max() for j in range(w.shape[1])]
        )
        target = widened(cosine[label], angles[i]) - offsets[i]
        logits = []
        for j in range(w.shape[1]):
            value = target if j == label else cosine[j]
            if j != label and t is not None and value > target:
                value = value * (t + value)
            logits.append(scale * value)
        log_p = torch.log_softmax(torch.stack(logits), 0)
        loss = -(1 - smoothing) * log_p[label] - smoothing * log_p.mean()
        losses.append((1 - torch.exp(-loss)) ** focal * loss)
    return torch.stack(losses).mean()


def adaptive(x: Tensor, mean: float, deviation: float) -> tuple[Tensor, Tensor]:
    length = x.detach().norm(dim=1).clamp(0.001, 100)
    mean, deviation = 0.99 * mean + 0.01 * float(length.mean()), 0.99 * deviation + 0.01 * float(length.std())
    k = ((length - mean) / (deviation + 1e-3) * 0.333).clamp(-1, 1)
    return -0.4 * k, 0.4 + 0.4 * k


def by_class(labels: Tensor) -> Tensor:
    rank = torch.tensor(COUNTS, dtype=torch.float64) ** -0.25
    return (0.05 + 0.45 * (rank - rank.min()) / (rank.max() - rank.min()))[labels]


def target_cosine(x: Tensor, w: Tensor, labels: Tensor) -> float:
    return float(torch.cosine_similarity(x, w[0, labels]).mean())


Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
SOFT = Softmax(label_smoothing=0.1, focal=2.0, rows=5)
LOSSES: dict[str, tuple[Callable[[], MarginLoss], Formula]] = {
    "ArcFace": (lambda: ArcFace(SIZE, CLASSES), lambda x, w, y: textbook(x, w, y, 30, 0.5)),
    "ArcFace, scale 100": (lambda: ArcFace(SIZE, CLASSES, 100), lambda x, w, y: textbook(x, w, y, 100, 0.5)),
    "ArcFace, 3 sub-centres": (
        lambda: ArcFace(SIZE, CLASSES, margin=0.3, sub_centres=3, softmax=Softmax(rows=4)),
        lambda x, w, y: textbook(x, w, y, 30, 0.3),
    ),
    "ArcFace, 3 sub-centres, smoothing, focal": (
        lambda: ArcFace(SIZE, CLASSES, sub_centres=3, softmax=SOFT),
        lambda x, w, y: textbook(x, w, y, 30, 0.5, smoothing=0.1, focal=2.0),
    ),
    "ArcFace, margins by class": (
        lambda: ArcFace(SIZE, CLASSES, margin=ClassMargins(least=0.05, most=0.5), class_counts=COUNTS),
        lambda x, w, y: textbook(x, w, y, 30, by_class(y)),
    ),
    "ArcFace, smoothing": (
        lambda: ArcFace(SIZE, CLASSES, softmax=Softmax(label_smoothing=0.2)),
        lambda x, w, y: textbook(x, w, y, 30, 0.5, smoothing=0.2),
    ),
    "ArcFace, focal": (
        lambda: ArcFace(SIZE, CLASSES, softmax=Softmax(focal=0.5)),
        lambda x, w, y: textbook(x, w, y, 30, 0.5, focal=0.5),
    ),
    "CosFace": (lambda: CosFace(SIZE, CLASSES, margin=0.55), lambda x, w, y: textbook(x, w, y, 30, offset=0.55)),
    "NormFace": (lambda: NormFace(SIZE, CLASSES), lambda x, w, y: textbook(x, w, y, 30)),
    "AdaFace": (lambda: AdaFace(SIZE, CLASSES), lambda x, w, y: textbook(x, w, y, 64, *adaptive(x, 20, 100))),
    "AdaFace, lengths that count": (
        lambda: with_state(AdaFace(SIZE, CLASSES), length_mean=15.0, length_deviation=1.5),
        lambda x, w, y: textbook(x, w, y, 64, *adaptive(x, 15, 1.5)),
    ),
    "CurricularFace": (
        lambda: with_state(CurricularFace(SIZE, CLASSES, 30), t=0.3),
        lambda x, w, y: textbook(x, w, y, 30, 0.5, t=0.99 * 0.3 + 0.01 * target_cosine(x, w, y)),
    ),
    "CurricularFace, scale 64, smoothing, focal": (
        lambda: CurricularFace(SIZE, CLASSES, 64, softmax=SOFT),
        lambda x, w, y: textbook(x, w, y, 64, 0.5, t=0.01 * target_cosine(x, w, y), smoothing=0.1, focal=2.0),
    ),
}
PRECISION = {torch.float64: 1e-6, torch.float32: 5e-5, torch.float16: 5e-5, torch.bfloat16: 5e-5}
"""Of the largest value. Float64 too, where state is float32."""


def with_state(loss: MarginLoss, **state: float) -> MarginLoss:
    for name, value in state.items():
        getattr(loss, name).fill_(value)
    return loss


def close(found: Tensor, wanted: Tensor, precision: float) -> bool:
    return bool((found.double() - wanted).abs().max() <= precision * wanted.abs().max())


@pytest.mark.parametrize("dtype", PRECISION, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_the_papers(name: str, dtype: torch.dtype) -> None:
    make, formula = LOSSES[name]
    loss = make()
    x, w, labels = case(loss.sub_centres)
    x = x.to(dtype)  # the formula gets the values that the loss gets
    exact = torch.promote_types(dtype, torch.float32)
    loss.centres.data = w.to(exact).view(loss.centres.shape)
    mine, x = x.clone().requires_grad_(), x.double().requires_grad_()
    w = w.to(exact).double().requires_grad_()
    value, expected = loss(mine, labels), formula(x, w, labels)
    assert value.dtype == exact
    assert close(value, expected.detach(), PRECISION[dtype])
    value.backward()
    expected.backward()
    assert x.grad is not None
    assert w.grad is not None
    assert mine.grad is not None
    assert mine.grad.dtype == dtype
    rounding = torch.finfo(dtype).eps  # of the gradient to the embedding's dtype
    assert close(mine.grad, x.grad, max(PRECISION[dtype], rounding))
    assert close(loss.centres.grad.view(w.shape), w.grad, PRECISION[dtype])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["ArcFace, 3 sub-centres, smoothing, focal", "CosFace", "ArcFace, focal"])
def test_numeric_differences(name: str) -> None:
    loss = LOSSES[name][0]()
    x, w, labels = case(loss.sub_centres)

    def value(x: Tensor, w: Tensor) -> Tensor:
        return margin_softmax(x, w, labels, scale=5.0, angle=0.3, offset=0.1, softmax=loss.softmax)

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), w.requires_grad_()))


@pytest.mark.parametrize("name", LOSSES)
def test_margin_logits_are_what_the_loss_takes_the_softmax_of(name: str) -> None:
    loss = LOSSES[name][0]().eval()
    x, w, labels = case(loss.sub_centres)
    loss.centres.data = w.view(loss.centres.shape)
    logits = loss.margin_logits(x, labels)
    smoothing = loss.softmax.label_smoothing
    rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    expected = ((1 - torch.exp(-rows)) ** loss.softmax.focal * rows).mean()
    torch.testing.assert_close(loss(x, labels), expected, rtol=1e-6, atol=0)
    columns = torch.arange(CLASSES)[None] == labels[:, None]
    if not isinstance(loss, CurricularFace):
        torch.testing.assert_close(logits[~columns], loss.logits(x)[~columns])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("products", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [ArcFace, CosFace, NormFace, AdaFace, ElasticFace, CurricularFace])
@pytest.mark.parametrize("scale", [30.0, 64.0, 200.0])
def test_finite_at_cosine_one_and_minus_one(
    kind: type[ArcFace], products: str, dtype: torch.dtype, sign: float, scale: float
) -> None:
    torch.manual_seed(0)
    loss = kind(64, 100, scale=scale, softmax=Softmax(products=products, focal=0.5))  # type: ignore[arg-type]
    x = (sign * loss.centres.detach() * 3).to(dtype).requires_grad_()
    loss.centres.data = x.detach().float() * sign
    cosine = torch.cosine_similarity(x.detach().float(), loss.centres.detach())
    assert (cosine.abs() >= 1).any()  # some are beyond one by rounding
    value = loss(x, torch.arange(100))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(loss.centres.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 5, 14, 1000])
@pytest.mark.parametrize("name", ["ArcFace", "ArcFace, 3 sub-centres", "CurricularFace"])
def test_rows_at_once_change_nothing(name: str, rows: int) -> None:
    def results(rows: int) -> list[Tensor]:
        loss = LOSSES[name][0]()
        x, w, labels = case(loss.sub_centres)
        loss.centres.data = w.view(loss.centres.shape)
        loss.softmax = Softmax(rows=rows, label_smoothing=0.1)
        value = loss(x.requires_grad_(), labels)
        return [value, *torch.autograd.grad(value, [x, loss.centres])]

    for found, wanted in zip(results(rows), results(BATCH), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("products", "scale", "kind", "precision"),
    [
        ("bfloat16", 30.0, ArcFace, 2e-2),
        ("bfloat16", 30.0, CurricularFace, 2e-2),
        ("float16", 30.0, ArcFace, 3e-3),
        ("float16", 30.0, CurricularFace, 3e-3),
        # a logit's rounding grows with the scale; CurricularFace's are products of cosines and round twice
        ("bfloat16", 64.0, ArcFace, 2.5e-2),
        ("bfloat16", 64.0, CurricularFace, 6.5e-2),
        ("float16", 64.0, ArcFace, 3e-3),
        ("float16", 64.0, CurricularFace, 5e-3),
    ],
)
def test_products_in_less_precision(products: str, scale: float, kind: type[ArcFace], precision: float) -> None:
    """The gradients point the same way, and differ by what rounding of logits explains."""

    def results(products: str) -> list[Tensor]:
        torch.manual_seed(0)
        loss = kind(32, 2000, scale, softmax=Softmax(products=products, label_smoothing=0.1))  # type: ignore[arg-type]
        labels = torch.randint(0, 2000, (96,))
        x = (loss.centres.detach()[labels] * 8 + torch.randn(96, 32) * 0.1).requires_grad_()
        value = loss(x, labels)
        return [value.detach(), *torch.autograd.grad(value, [x, loss.centres])]

    for found, wanted in zip(results(products), results("float32"), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() <= precision * wanted.norm()


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time, large ones alone; not those of `given`."""

    def __init__(self, least: int, given: Sequence[Tensor]) -> None:
        super().__init__()
        self.least, self.held, self.most = least, {}, 0  # type: ignore[var-annotated]
        self.given = {tensor.untyped_storage()._cdata for tensor in given}  # which views of them share

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        import weakref

        result = function(*arguments, **(keywords or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.nbytes() >= self.least and storage._cdata not in self.given | self.held.keys():
                    self.held[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.held.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.held.values()))
        return result


@pytest.mark.parametrize(
    ("kind", "subs", "softmax", "bound"),
    [
        (ArcFace, 1, Softmax(rows=32), 0.5),
        (ArcFace, 1, Softmax(rows=256), 2.0),
        (ArcFace, 1, Softmax(), 1.0),
        (CurricularFace, 1, Softmax(rows=32, label_smoothing=0.1), 0.6),
        (CurricularFace, 1, Softmax(rows=128), 2.0),
        (ArcFace, 3, Softmax(rows=128), 2.1),
        (ArcFace, 1, Softmax(rows=32, products="bfloat16"), 0.5),
    ],
)
def test_memory_beyond_inputs_parameters_and_gradients(
    kind: type[ArcFace], subs: int, softmax: Softmax, bound: float
) -> None:
    """In logits matrices. A normalised copy of the centres is part of it: a quarter of one at these sizes."""
    batch, size, classes = 256, 64, 5003
    more = {"sub_centres": subs} if subs > 1 else {}
    loss = kind(size, classes, softmax=softmax, **more)  # type: ignore[arg-type]
    x = torch.randn(batch, size, requires_grad=True)
    labels = torch.randint(0, classes, (batch,))
    with Live(least=classes * 4, given=[x, loss.centres]) as live:
        loss(x, labels).backward()
    gradients = loss.centres.numel() * 4
    assert loss.centres.grad is not None
    assert live.most >= gradients  # it does measure
    assert live.most - gradients <= bound * batch * classes * 4


def test_scheduled_margin_by_epoch() -> None:
    x, w, labels = case()
    loss = ArcFace(SIZE, CLASSES, margin=ScheduledMargin(start=0.3, growth=0.1, end=0.8))
    loss.centres.data = w[0]
    for epoch, margin in ((0, 0.3), (2, 0.5), (5, 0.8), (9, 0.8)):
        loss.set_epoch(epoch)
        torch.testing.assert_close(loss(x, labels), textbook(x, w, labels, 30, margin), rtol=1e-6, atol=0)
    other = ArcFace(SIZE, CLASSES, margin=ScheduledMargin(start=0.3, growth=0.1, end=0.8))
    other.load_state_dict(loss.state_dict())
    assert float(other.margin_of(labels)) == pytest.approx(0.8)


def test_scheduled_margin_without_the_loops_help() -> None:
    x, _, labels = case()
    loss = CosFace(SIZE, CLASSES, margin=ScheduledMargin(start=0.3, growth=-0.1, end=0.1, every=2))
    loss.set_epoch(7)  # has no say
    margins = []
    for _ in range(6):
        loss(x, labels)
        margins.append(float(loss.margin_of(labels)))
        loss.eval()(x, labels)  # evaluation doesn't count
        loss.train()
    assert margins == pytest.approx([0.3, 0.3, 0.2, 0.2, 0.1, 0.1])


def test_class_margins() -> None:
    loss = ArcFace(SIZE, CLASSES, margin=ClassMargins(least=0.05, most=0.5), class_counts=torch.tensor(COUNTS))
    assert float(loss.class_margins[0]) == pytest.approx(0.5)
    assert float(loss.class_margins[7]) == pytest.approx(0.05)
    assert float(loss.class_margins[8]) == pytest.approx(0.05 + 0.45 * (0.5 - 1000**-0.25) / (1 - 1000**-0.25))
    equal = ArcFace(4, 3, margin=ClassMargins(least=0.1, most=0.5), class_counts=[7, 7, 7])
    assert equal.class_margins.tolist() == pytest.approx([0.1] * 3)
    for counts, message in ((None, "need class_counts"), ([1, 2], r"shape \[2\]"), ([1, 0, 2], "values from 0")):
        with pytest.raises(UsageError, match=message):
            ArcFace(4, 3, margin=ClassMargins(least=0.1, most=0.5), class_counts=counts)


def test_elastic_margins_are_drawn_anew_and_seeded() -> None:
    x, w, labels = case()
    for kind in ("arc", "cos"):
        loss = ElasticFace(SIZE, CLASSES, 30, deviation=0.1, kind=kind)  # type: ignore[arg-type]
        loss.centres.data = w[0]
        torch.manual_seed(3)
        first, second = loss(x, labels), loss(x, labels)
        torch.manual_seed(3)
        margins = 0.5 + 0.1 * torch.randn(BATCH, dtype=torch.float64)
        drawn = {"angle" if kind == "arc" else "offset": margins}
        torch.testing.assert_close(first, textbook(x, w, labels, 30, **drawn), rtol=1e-9, atol=0)  # type: ignore[arg-type]
        assert first != second
        fixed = {"angle" if kind == "arc" else "offset": 0.5}
        torch.testing.assert_close(loss.eval()(x, labels), textbook(x, w, labels, 30, **fixed), rtol=1e-9, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [AdaFace, CurricularFace])
def test_state_is_complete(kind: type[AdaFace | CurricularFace]) -> None:
    x, _, labels = case()
    first, second = kind(SIZE, CLASSES), kind(SIZE, CLASSES)
    for _ in range(3):
        first(x.float(), labels)
    before = {key: value.clone() for key, value in first.state_dict().items()}
    first.eval()(x.float(), labels)
    first.margin_logits(x.float(), labels)
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())  # training alone moves it
    second.load_state_dict(before)
    first.train()
    assert torch.equal(first(x.float(), labels), second(x.float(), labels))
    expected = {"centres", "length_mean", "length_deviation"} if kind is AdaFace else {"centres", "t"}
    assert set(before) == expected


def test_adaface_with_a_batch_of_one_or_of_nan_keeps_its_state() -> None:
    loss = AdaFace(SIZE, CLASSES)
    x = torch.randn(1, SIZE, requires_grad=True)
    value = loss(x, torch.tensor([3]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]
    assert float(loss.length_deviation) == 100
    before = loss.length_mean.clone()
    loss(torch.full((2, SIZE), math.nan), torch.tensor([1, 2]))
    assert torch.equal(loss.length_mean, before)


@pytest.mark.parametrize("products", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [ArcFace, CosFace, AdaFace, CurricularFace])
def test_one_image_and_features_that_are_not_finite(kind: type[ArcFace], products: str) -> None:
    loss = kind(SIZE, CLASSES, softmax=Softmax(products=products))  # type: ignore[arg-type]
    x = torch.randn(1, SIZE, requires_grad=True)
    assert torch.isfinite(loss(x, torch.tensor([0])))
    for bad in (math.nan, math.inf):
        x = torch.randn(3, SIZE)
        x[1, 2] = bad
        value = loss(x.requires_grad_(), torch.tensor([0, 1, 2]))
        value.backward()
        assert value.isnan()
        assert x.grad[1].isnan().any()  # type: ignore[index]
        assert loss.centres.grad.isnan().any()  # type: ignore[union-attr]


def test_a_single_class_is_no_loss() -> None:
    for scale in (30.0, 100.0):
        loss = ArcFace(SIZE, 1, scale)
        x = torch.randn(4, SIZE, requires_grad=True)
        value = loss(x, torch.zeros(4, dtype=torch.long))
        value.backward()
        assert value == 0
        assert (x.grad == 0).all()  # type: ignore[union-attr]


def test_the_value_of_what_is_learnt_keeps_its_digits() -> None:
    loss = NormFace(SIZE, 2)
    loss.centres.data = torch.eye(2, SIZE) - torch.eye(2, SIZE).roll(1, 0)  # opposite
    value = loss(torch.eye(2, SIZE) - torch.eye(2, SIZE).roll(1, 0), torch.arange(2))
    assert float(value) == pytest.approx(math.log1p(math.exp(-60)), rel=1e-4)


def test_no_gradient_is_taken_that_nobody_wants() -> None:
    x, _, labels = case()
    loss = ArcFace(SIZE, CLASSES)
    with torch.no_grad():
        assert not loss(x.float(), labels).requires_grad
    loss(x.float(), labels).backward()
    assert loss.centres.grad is not None
    loss.requires_grad_(False)
    mine = x.float().requires_grad_()
    loss(mine, labels).backward()
    assert mine.grad is not None


def test_backward_twice_and_scaled() -> None:
    x, _, labels = case()
    loss = ArcFace(SIZE, CLASSES)
    value = loss(x.float(), labels)
    (value * 4).backward(retain_graph=True)
    first = loss.centres.grad.clone()  # type: ignore[union-attr]
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(loss.centres.grad, first * 1.5)


def test_partial_fc_compares_with_the_labels_and_a_sample() -> None:
    torch.manual_seed(0)
    loss = CosFace(8, 1000, margin=0.2, softmax=Softmax(sample=0.1))
    x, labels = torch.randn(6, 8), torch.tensor([5, 999, 5, 0, 7, 8])
    value = loss(x, labels)
    value.backward()
    touched = (loss.centres.grad.abs().sum(1) > 0).nonzero().flatten()  # type: ignore[union-attr]
    assert len(touched) == 100
    assert set(labels.tolist()) <= set(touched.tolist())
    whole = CosFace(8, 100, margin=0.2)
    whole.centres.data = loss.centres.detach()[touched]
    again = whole(x, torch.searchsorted(touched, labels))
    again.backward()
    assert torch.equal(again, value)
    assert torch.equal(loss.centres.grad[touched], whole.centres.grad)  # type: ignore[index]
    loss.centres.grad = None
    loss(x, labels).backward()
    other = (loss.centres.grad.abs().sum(1) > 0).nonzero().flatten()  # type: ignore[union-attr]
    assert not torch.equal(other, touched)  # another draw
    whole = CosFace(8, 1000, margin=0.2)
    whole.centres.data = loss.centres.detach()
    assert torch.equal(loss.eval()(x, labels), whole(x, labels))  # evaluation takes all


def test_partial_fc_takes_all_labels_of_a_batch_however_small_the_sample() -> None:
    loss = ArcFace(8, 50, softmax=Softmax(sample=0.01))
    assert torch.isfinite(loss(torch.randn(80, 8), torch.arange(80) % 50))


def test_a_sparse_gradient_leaves_other_centres_alone() -> None:
    torch.manual_seed(0)
    loss = ArcFace(8, 1000, softmax=Softmax(sample=0.05, sparse=True))
    optimizer = torch.optim.SparseAdam(loss.parameters(), lr=0.1)
    before = loss.centres.detach().clone()
    loss(torch.randn(6, 8), torch.arange(6)).backward()
    assert loss.centres.grad is not None
    assert loss.centres.grad.is_sparse
    optimizer.step()
    assert int((loss.centres.detach() != before).any(1).sum()) == 50


def test_settings_that_cannot_be() -> None:
    for wrong in (
        {"label_smoothing": 1.0},
        {"focal": -1.0},
        {"sample": 0.0},
        {"rows": 0},
        {"products": "int8"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
            Softmax(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never gets to"):
        ScheduledMargin(start=0.3, growth=-0.1, end=0.8)
    with pytest.raises(ValueError, match="never gets to"):
        ScheduledMargin(start=0.3, growth=math.nan, end=0.8)
    with pytest.raises(ValueError, match="focal is nan"):
        Softmax(focal=math.nan)
    for make in (
        lambda: CosFace(4, 9, margin=2.0),
        lambda: ArcFace(4, 9, margin=ScheduledMargin(start=0.3, growth=1.0, end=4.0)),
        lambda: AdaFace(4, 9, h=0.0),
        lambda: ElasticFace(4, 9, kind="both"),  # type: ignore[arg-type]
        lambda: CurricularFace(4, 9, momentum=0.0),
        lambda: ArcFace(4, 9, sub_centres=0),
        lambda: ArcFace(4, 9, scale=math.nan),
        lambda: ArcFace(4, 9, scale=math.inf),
        lambda: AdaFace(4, 9, h=math.nan),
        lambda: ArcFace(4, 9, margin="large"),  # type: ignore[arg-type]
        lambda: ArcFace(4, 9, margin=dict(start=0.1, growht=0.1, end=0.5)),  # type: ignore[arg-type]
        lambda: ArcFace(4, 9, softmax=dict(label_smoothing=2.0)),  # type: ignore[arg-type]
        lambda: ArcFace(4, 9, sub_centres=3, softmax=Softmax(sample=0.5)),
    ):
        with pytest.raises(UsageError):
            make()


def test_settings_may_be_written_as_in_an_experiment() -> None:
    growing: Any = dict(start=0.3, growth=0.1, end=0.8)
    by_class: Any = dict(least=0.05, most=0.5)
    smoothed: Any = dict(label_smoothing=0.1)
    assert ArcFace(4, 9, margin=growing).margin == ScheduledMargin(**growing)
    assert CosFace(4, 9, margin=by_class, class_counts=COUNTS).margin == ClassMargins(**by_class)
    for kind in (ArcFace, CosFace, NormFace, AdaFace, ElasticFace, CurricularFace):
        assert kind(4, 9, softmax=smoothed).softmax == Softmax(**smoothed)  # type: ignore[operator]


def test_hardness_doubles_the_largest_logit() -> None:
    """With t 1 a negative of cosine 1 has a logit of 2 s: at s 64 beyond what float32 exponentiates as it is."""
    torch.manual_seed(0)
    loss = CurricularFace(8, 50, scale=64.0).eval()
    loss.t.fill_(1.0)
    x = loss.centres.detach().roll(1, 0).requires_grad_()
    value = loss(x, torch.arange(50))
    value.backward()
    w = loss.centres.detach().double()[None]
    expected = textbook(x.detach().double(), w, torch.arange(50), 64.0, angle=0.5, t=1.0)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_small_gradients_of_float16_products_keep_their_digits() -> None:
    """Of a large batch every image's part is below what float16 holds with all digits."""

    def gradient(products: Any) -> Tensor:
        torch.manual_seed(0)
        loss = NormFace(32, 40, 1.0, softmax=Softmax(products=products))
        labels = torch.arange(16384) % 8
        loss(loss.centres.detach()[labels], labels).backward()
        found: Tensor = loss.centres.grad[8:]  # type: ignore[index]
        return found

    exact = gradient("float32")
    assert (gradient("float16") - exact).norm() < 0.01 * exact.norm()


def test_elastic_margins_are_never_below_zero() -> None:
    x, w, labels = case()
    loss = ElasticFace(SIZE, CLASSES, 30, margin=0.1, deviation=0.5, kind="cos")
    loss.centres.data = w[0]
    torch.manual_seed(3)
    found = loss(x, labels)
    torch.manual_seed(3)
    drawn = 0.1 + 0.5 * torch.randn(BATCH, dtype=torch.float64)
    assert drawn.min() < 0
    expected = textbook(x, w, labels, 30, offset=drawn.clamp(min=0.0))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_adafaces_lengths_are_clipped() -> None:
    torch.manual_seed(0)
    loss = AdaFace(SIZE, CLASSES, momentum=1.0)
    directions = torch.nn.functional.normalize(torch.randn(3, SIZE))
    loss(directions * torch.tensor([[1e4], [1e-6], [10.0]]), torch.tensor([0, 1, 2]))
    lengths = torch.tensor([100.0, 0.001, 10.0])
    torch.testing.assert_close(loss.length_mean, lengths.mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.length_deviation, lengths.std(), rtol=1e-4, atol=0)


def test_the_function_itself_guards_what_it_is_given() -> None:
    x, w, labels = case()
    x, w = x.float().requires_grad_(), w[0].float()
    expected = margin_softmax(x, w, labels, scale=30.0, angle=0.5)
    (wanted,) = torch.autograd.grad(expected, x)
    with torch.autocast("cpu", torch.bfloat16):
        value = margin_softmax(x, w, labels, scale=30.0, angle=0.5)
    assert torch.equal(value, expected)
    assert torch.equal(torch.autograd.grad(value, x)[0], wanted)
    for wrong, message in (
        ((x.bfloat16(), w.bfloat16(), labels), "float32 or float64"),
        ((x, w.double(), labels), "centres torch.float64"),
        ((x, w, labels.int()), "labels of torch.int64"),
        ((x, w, labels - 1), "labels from -1"),
        ((x[:, :-1], w, labels), "embeddings of shape"),
        ((x[:0], w, labels[:0]), "empty batch"),
    ):
        with pytest.raises(GuieError, match=message):
            margin_softmax(*wrong, scale=30.0)
