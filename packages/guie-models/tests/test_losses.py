from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor

from guie_core import GuieError, UsageError
from guie_models.losses import ArcFace, Softmax
from guie_models.losses import margin_softmax as module
from guie_models.losses.margin_softmax import angular_margin, margin_softmax


def by_formula(x: Tensor, w: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """ArcFace as the paper writes it, with angles, row by row in float64; the recipe's fallback beyond pi - m."""
    total = torch.zeros((), dtype=torch.float64)
    for row, label in zip(x.double(), labels.tolist(), strict=True):
        cosine = torch.stack([row @ centre / (row.norm() * centre.norm()) for centre in w.double()])
        theta = torch.acos(cosine[label])
        if theta <= math.pi - margin:
            target = torch.cos(theta + margin)
        else:
            target = cosine[label] - math.sin(math.pi - margin) * margin
        logits = [scale * (target if j == label else cosine[j]) for j in range(len(w))]
        total = total - logits[label] + torch.logsumexp(torch.stack(logits), dim=0)
    return total / len(x)


def case(batch: int = 12, size: int = 8, classes: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of any length at all angles to their centres, some of them beyond pi - m."""
    torch.manual_seed(seed)
    w = torch.randn(classes, size, dtype=torch.float64) * torch.logspace(-2, 1, classes, dtype=torch.float64)[:, None]
    labels = torch.arange(batch) % classes
    away = torch.linspace(-1.5, 1.5, batch, dtype=torch.float64)[:, None]
    x = (
        away * w[labels] / w[labels].norm(dim=1, keepdim=True) + 0.2 * torch.randn(batch, size, dtype=torch.float64)
    ) * 7
    return x, w, labels


def gradients(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(loss, inputs)]


def with_centres(loss: ArcFace, w: Tensor) -> ArcFace:
    loss.centres.data = w.clone()
    return loss


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_the_papers(margin: float, dtype: torch.dtype) -> None:
    x, w, labels = case()
    loss = with_centres(ArcFace(8, 9, scale=30.0, margin=margin), w.to(dtype))
    mine = x.to(dtype).requires_grad_()
    value = loss(mine, labels)
    x.requires_grad_(), w.requires_grad_()
    expected = by_formula(x, w, labels, 30.0, margin)
    precision = 1e-10 if dtype == torch.float64 else 3e-5
    torch.testing.assert_close(value.double(), expected, rtol=precision, atol=0)
    for found, wanted in zip(gradients(value, mine, loss.centres), gradients(expected, x, w), strict=True):
        assert (found - wanted).abs().max() <= precision * wanted.abs().max()


def test_the_case_reaches_the_fallback() -> None:
    x, w, labels = case()
    theta = torch.acos(torch.cosine_similarity(x, w[labels]))
    assert (theta > math.pi - 0.5).sum() >= 2
    assert (theta < math.pi - 0.5).sum() >= 6


def test_gradcheck() -> None:
    x, w, labels = case()

    def value(x: Tensor, w: Tensor) -> Tensor:
        return margin_softmax(x, w, labels, scale=5.0, angle=0.5)

    assert torch.autograd.gradcheck(value, (x.requires_grad_(), w.requires_grad_()))


def test_pytorch_metric_learning_agrees() -> None:
    x, w, labels = case(batch=64, size=16, classes=30, seed=1)
    x, w = x.float(), w.float()
    theirs = ArcFaceLoss(30, 16, margin=math.degrees(0.5), scale=30)
    theirs.W.data = w.T.clone()
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = with_centres(ArcFace(16, 30), w)
    mine, other = loss(first, labels), theirs(second, labels)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=0)
    for found, wanted in zip(gradients(mine, first, loss.centres), gradients(other, second, theirs.W), strict=True):
        wanted = wanted.T if wanted.shape != found.shape else wanted
        assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("scale", [64.0, 1000.0])
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_smoothing_where_the_target_is_all_but_certain(scale: float, products: Any) -> None:
    """The other class has a probability that float32 cannot tell from 0, and is wanted all the same."""
    x, w = torch.tensor([[1.0, 0.125]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    mine, theirs = [
        (x.clone().to(t).requires_grad_(), w.clone().to(t).requires_grad_()) for t in (torch.float32, torch.float64)
    ]
    labels, softmax = torch.tensor([0]), Softmax(label_smoothing=0.1, products=products)
    value = margin_softmax(*mine, labels, scale=scale, softmax=softmax)
    cosine = torch.nn.functional.normalize(theirs[0]) @ torch.nn.functional.normalize(theirs[1]).T
    expected = torch.nn.functional.cross_entropy(scale * cosine, labels, label_smoothing=0.1)
    found = torch.autograd.grad(value, mine)
    for one, other in zip((value, *found), (expected, *torch.autograd.grad(expected, theirs)), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5 if products == "float32" else 1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("scale", [30.0, 64.0])
def test_finite_at_cosine_one_and_minus_one(dtype: torch.dtype, sign: float, scale: float) -> None:
    torch.manual_seed(0)
    loss = ArcFace(64, 500, scale=scale)
    labels = torch.arange(500)
    x = (sign * loss.centres.detach() * 3).to(dtype).requires_grad_()
    loss.centres.data = x.detach().float() * sign
    cosine = torch.cosine_similarity(x.detach().float(), loss.centres.detach())
    assert (cosine.abs() >= 1).any()  # some are beyond one by rounding
    value = loss(x, labels)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]
    assert torch.isfinite(loss.centres.grad).all()  # type: ignore[arg-type]


def test_margin_and_slope_at_the_ends() -> None:
    cosine = torch.tensor([1.0, 1.0 + 1e-6, -1.0, -1.0 - 1e-6], dtype=torch.float64)
    shifted, slope = angular_margin(cosine, 0.5)
    fallback = 0.5 * math.sin(math.pi - 0.5)
    wanted = [math.cos(0.5), math.cos(0.5), -1 - fallback, -1 - fallback]
    assert shifted.tolist() == pytest.approx(wanted, abs=2e-4)
    assert slope.tolist() == pytest.approx([math.cos(0.5), math.cos(0.5), 1, 1])


def test_the_margins_slope_is_its_derivative() -> None:
    cosine = torch.linspace(-0.999, 0.999, 401, dtype=torch.float64, requires_grad=True)
    shifted, slope = angular_margin(cosine, 0.5)
    (derivative,) = torch.autograd.grad(shifted.sum(), cosine)
    torch.testing.assert_close(slope.detach(), derivative, rtol=1e-12, atol=1e-12)
    angle = torch.acos(cosine.detach())
    near = angle <= math.pi - 0.5
    torch.testing.assert_close(shifted.detach()[near], torch.cos(angle + 0.5)[near], rtol=0, atol=1e-12)


def test_the_logits_are_what_the_loss_takes_the_softmax_of() -> None:
    x, w, labels = case()
    loss = with_centres(ArcFace(8, 9), w)
    logits, margin_logits = loss.logits(x), loss.margin_logits(x, labels)
    cosine = torch.cosine_similarity(x[:, None], w[None], dim=2)
    torch.testing.assert_close(logits, 30 * cosine)
    assert ((logits - margin_logits).abs() > 1e-9).sum() == len(x)
    assert (margin_logits.gather(1, labels[:, None]) < logits.gather(1, labels[:, None])).all()
    torch.testing.assert_close(torch.nn.functional.cross_entropy(margin_logits, labels), loss(x, labels))


def test_autocast_changes_nothing() -> None:
    x, w, labels = case(batch=64, size=32, classes=40)
    loss = with_centres(ArcFace(32, 40), w.float())
    results = []
    for enabled in (False, True):
        mine = x.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(mine, labels)
            value.backward()
        results.append((value.detach(), mine.grad, loss.centres.grad, loss.logits(x.float())))
        loss.centres.grad = None
        assert value.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_half_embeddings_get_half_gradients() -> None:
    x, w, labels = case()
    loss = with_centres(ArcFace(8, 9), w.float())
    half = x.half().requires_grad_()
    value = loss(half, labels)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == torch.float16


def test_centres_are_xavier_uniform_and_saved() -> None:
    torch.manual_seed(0)
    loss = ArcFace(64, 1000)
    bound = math.sqrt(6 / 1064)
    assert float(loss.centres.detach().abs().max()) <= bound
    assert float(loss.centres.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert list(loss.state_dict()) == ["centres"]


@pytest.mark.parametrize("sub_centres", [1, 3])
def test_centres_start_at_class_means(sub_centres: int) -> None:
    torch.manual_seed(0)
    loss = ArcFace(6, 5, sub_centres=sub_centres)
    drawn = loss.centres.detach().clone().reshape(sub_centres, 5, 6)
    embedding, labels = torch.randn(40, 6), torch.arange(40) % 4  # none of the last class
    loss.start(embedding, labels)
    centres = loss.centres.detach().reshape(sub_centres, 5, 6)
    length = drawn[0].norm(dim=1).mean()
    for label in range(4):
        mean = sum(x / x.norm() for x in embedding[labels == label])
        torch.testing.assert_close(centres[0, label], mean / torch.as_tensor(mean).norm() * length)
    assert torch.equal(centres[0, 4], drawn[0, 4])
    assert torch.equal(centres[1:], drawn[1:])
    with pytest.raises(UsageError, match="ArcFace"):
        loss.start(torch.randn(4, 7), labels[:4])


def test_no_matrix_of_logits_is_held_for_the_backward_pass() -> None:
    batch, classes = 64, 4001
    loss = ArcFace(16, classes)
    x = torch.randn(batch, 16, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(x, torch.randint(0, classes, (batch,)))
    assert not any(t.numel() >= batch * classes for t in saved)
    assert sum(t.numel() for t in saved) <= 2 * classes * 16 + 4 * batch * 16


@pytest.mark.parametrize(("labels", "least", "most"), [([0, 9], 0, 9), ([-1, 3], -1, 3)])
def test_labels_out_of_range(labels: list[int], least: int, most: int) -> None:
    loss = ArcFace(4, 9)
    for call in (loss, loss.margin_logits):
        with pytest.raises(GuieError, match=rf"9 classes, labels 0..8; this batch has labels from {least} to {most}"):
            call(torch.randn(2, 4), torch.tensor(labels))


def test_wrong_shapes() -> None:
    loss = ArcFace(4, 9)
    with pytest.raises(UsageError, match=r"shape \[B, 4\]; these are \[2, 5\]"):
        loss(torch.zeros(2, 5), torch.zeros(2))
    with pytest.raises(UsageError, match=r"one label an embedding: 2; there are labels of shape \[3\]"):
        loss(torch.zeros(2, 4), torch.zeros(3))
    with pytest.raises(UsageError, match="empty batch"):
        loss(torch.zeros(0, 4), torch.zeros(0))
    for arguments in ((0, 9), (4, 0), (4, 9, 0.0), (4, 9, 30.0, 4.0)):
        with pytest.raises(UsageError):
            ArcFace(*arguments)


@pytest.mark.parametrize("sign", [False, True])
def test_sums_of_bfloat16_are_those_of_float64(sign: bool) -> None:
    z = module._room(40, torch.empty(15_003, 1, dtype=torch.bfloat16))
    torch.manual_seed(0)
    z.copy_(torch.randn(z.shape) * 5 if sign else (torch.randn(z.shape) * 8).exp())
    for part in (z, z[:7]):
        before = part.clone()
        error = module._summed(part, torch.float32).double() - part.double().sum(1)
        assert bool((error.abs() <= 1e-5 * part.double().abs().sum(1)).all())
        assert torch.equal(part, before)
    roomless = z.contiguous()
    assert bool((module._summed(roomless, torch.float32) == roomless.sum(1, dtype=torch.float32)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_where_all_images_and_classes_look_alike(dtype: torch.dtype) -> None:
    """Sums of exponentials beyond 1e30."""
    classes = 3000
    torch.manual_seed(0)
    same = torch.randn(8, dtype=torch.float64)
    x = (same + 0.05 * torch.randn(5, 8, dtype=torch.float64)).requires_grad_()
    w = (same + 0.05 * torch.randn(classes, 8, dtype=torch.float64)).requires_grad_()
    labels = torch.arange(5)
    by_formula(x, w, labels, scale=64.0, margin=0.5).backward()
    mine = [tensor.detach().to(dtype).requires_grad_() for tensor in (x, w)]
    margin_softmax(*mine, labels, scale=64.0, angle=0.5).backward()
    for found, wanted in zip(mine, (x, w), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert (found.grad - wanted.grad).norm() <= (1e-4 if dtype == torch.float32 else 1e-9) * wanted.grad.norm()


def test_centres_may_lie_in_memory_in_any_order() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 4), torch.randint(0, 9, (6,))
    stored = torch.randn(4, 9, 2)
    found = []
    for centres in (stored.permute(2, 1, 0), stored.permute(2, 1, 0).contiguous()):
        w = centres.detach().requires_grad_()
        margin_softmax(x, w, labels, scale=30.0, angle=0.5).backward()
        found.append(w.grad)
    torch.testing.assert_close(*found)
