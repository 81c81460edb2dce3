"""What is counted on the meta device, against formulas and real networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guie_core import UsageError, build
from guie_train.planning.known import NotKnown
from guie_train.planning.meta import on_meta, parameters, state_bytes, step, trace


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_the_operations_of_vit_h_14_are_those_of_its_formula() -> None:
    backbone = on_meta(lambda: build("backbones", {"type": "open_clip/ViT-H-14/laion2b_s32b_b79k", "weights": "none"}))
    images = meta(2, 3, 224, 224)
    with torch.inference_mode():
        found = trace(lambda: backbone(images), backbone, images)
    patches, width, mlp = (224 // 14) ** 2, 1280, 5120
    tokens = patches + 1
    stem = patches * (14 * 14 * 3) * width
    layer = tokens * (4 * width**2 + 2 * width * mlp) + 2 * tokens**2 * width  # projections, mlp, attention
    assert found.operations == 2 * 2 * (stem + 32 * layer + width * 1024)
    assert parameters(backbone) == (632_076_800, 0)
    assert state_bytes(backbone) == 4 * 632_076_800


def test_attention_makes_no_matrix_of_tokens_by_tokens() -> None:
    layer = on_meta(lambda: nn.MultiheadAttention(64, 2, batch_first=True).eval().requires_grad_(False))
    tokens = meta(8, 2048, 64)
    with torch.inference_mode():
        found = trace(lambda: layer(tokens, tokens, tokens, need_weights=False), layer, tokens)
    assert found.peak < 8 * 2 * 2048 * 2048 * 4 / 5


def test_the_peak_of_a_frozen_network_is_that_of_its_widest_place() -> None:
    network = on_meta(lambda: nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 10)).requires_grad_(False))
    inputs = meta(32, 100)
    with torch.inference_mode():
        found = trace(lambda: network(inputs), network, inputs)
    weights = 4 * (100 * 400 + 400 + 400 * 10 + 10)
    # the hidden layer before and after its ReLU, and what came in
    assert found.peak == weights + 4 * 32 * (100 + 400 + 400)
    assert found.operations == 2 * 32 * (100 * 400 + 400 * 10)
    assert found.kernels == 3


def test_the_peak_of_a_training_step_by_hand() -> None:
    """A step of plain SGD on two layers: saved activations, and one gradient after the other."""
    network = on_meta(lambda: nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 10)))
    inputs = meta(32, 100)

    def backward() -> None:
        network(inputs).sum().backward()

    found = trace(backward, network, inputs)
    first, second, rows = 4 * (100 * 400 + 400), 4 * (400 * 10 + 10), 4 * 32
    forward = first + second + rows * (100 + 400 + 10)  # the ReLU is kept, its input isn't
    # at the end of the backward pass the hidden gradient stands beside all gradients of weights
    at_first_layer = first + second + rows * (100 + 400) + (first + second)
    assert forward < at_first_layer <= found.peak <= at_first_layer + rows * (400 + 10) + 8


def test_moments_of_the_optimizer_and_sams_copy_of_the_weights_are_counted() -> None:
    def peak(optimizer: dict[str, Any]) -> int:
        model = on_meta(lambda: Regression(2000))
        built = on_meta(lambda: build("optimizers", optimizer, params=model.parameters()))
        inputs, labels = meta(4, 2000), meta(4)
        return trace(lambda: step(model, built, inputs, labels, 1.0), model, inputs, labels).peak

    weights = 4 * 2000 * 2000
    plain, adam = peak({"type": "SGD", "lr": 0.1}), peak({"type": "AdamW"})
    sam = peak({"type": "SAM", "base": {"type": "SGD", "lr": 0.1}})
    assert plain == pytest.approx(2 * weights, rel=0.02) or plain == pytest.approx(3 * weights, rel=0.02)
    assert adam - plain >= 2 * weights
    assert sam >= 3 * weights  # weights, gradients, and the weights to go back to


class Regression(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width, bias=False)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return (self.layer(inputs).sum(1) - labels).square().mean()


@pytest.mark.parametrize(
    "loss",
    [
        {"type": "ArcFace"},
        {"type": "ArcFace", "sub_centres": 3},
        {"type": "ArcFace", "margin": {"least": 0.1, "most": 0.5}},
        {"type": "CurricularFace"},
        {"type": "AdaFace"},
        {"type": "CosFace", "softmax": {"label_smoothing": 0.1, "focal": 2.0}},
    ],
    ids=str,
)
def test_losses_are_counted_as_large_as_their_matrix_of_logits(loss: dict[str, Any]) -> None:
    batch, classes = 64, 3000

    def make() -> nn.Module:
        built: nn.Module = build("losses", loss, embedding_size=16, classes=classes, class_counts=[9] * classes)
        return built

    module = on_meta(make)
    embedding, labels = meta(batch, 16).requires_grad_(), torch.empty(batch, dtype=torch.long, device="meta")
    found = trace(lambda: module(embedding, labels).backward(), module, embedding, labels)
    logits = 4 * batch * classes
    assert logits <= found.peak - state_bytes(module) <= 3 * logits + 4 * state_bytes(module)


def test_what_looks_at_numbers_is_not_known_and_mistakes_stay_mistakes() -> None:
    with pytest.raises(NotKnown, match="can't be counted without numbers"):
        on_meta(lambda: torch.ones(3).tolist())
    with pytest.raises(UsageError, match="embedding_size is 0"):
        on_meta(lambda: build("losses", {"type": "ArcFace"}, embedding_size=0, classes=3))
    images = meta(1)
    with pytest.raises(NotKnown, match="can't be counted without numbers"):
        trace(lambda: images.numpy())


def test_times_are_the_larger_of_arithmetic_and_memory_kernel_by_kernel() -> None:
    left, right = meta(512, 512), meta(512, 512)
    found = trace(lambda: (left @ right).relu(), left, right)
    product, moved = 2 * 512**3, 4 * 512 * 512
    assert found.work == {(product, 3 * moved): 1, (0, 2 * moved): 1}
    assert found.seconds(product, 1e30) == pytest.approx(1.0)
    assert found.seconds(1e30, moved) == pytest.approx(5.0)
    assert found.seconds(product, 2 * moved) == pytest.approx(1.5 + 1.0)
