"""MicroBatches: the gradients of the whole batch, whatever fits into the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from guie_core.interrupt import Stop
from guie_models.heads import BatchNormLinear
from guie_models.losses import AdaFace
from guie_train.fitting import Fit, Training
from guie_train.fitting.examples import Examples
from guie_train.fitting.images import Seen
from guie_train.fitting.micro_batches import MicroBatches

IMAGES, CLASSES = 13, 5


class Network(nn.Module):
    """A backbone with dropout, a head with batch norm and dropout, and a loss whose margin depends on the batch."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(8, 6, 4))
        self.head = BatchNormLinear(6, 4, dropout=0.3)
        self.loss = AdaFace(4, CLASSES, momentum=0.5)
        self.most = 0  # images at once that had activations
        self.double()

    def features(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.backbone(pixels).flatten(1)
        self.most = max(self.most, len(pixels) if out.requires_grad else 0)
        return out

    def criterion(self, features: Tensor, sizes: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.head(torch.cat([features, sizes], 1)), labels)
        return loss


def batch() -> tuple[Seen, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(IMAGES, 3, 6, 6, generator=generator, dtype=torch.float64)
    sizes = torch.rand(IMAGES, 3, generator=generator, dtype=torch.float64)
    return Seen(pixels, sizes), torch.randint(CLASSES, (IMAGES,), generator=generator)


def same(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=name)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 12, 13, 50])
def test_gradients_are_those_of_the_whole_batch(size: int) -> None:
    seen, labels = batch()
    whole, parts = Network(), Network()
    torch.manual_seed(2)
    loss = whole.criterion(whole.features(seen.pixels), seen.sizes, labels)
    loss.backward()
    torch.manual_seed(2)
    found = MicroBatches(size)(parts, seen, labels)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-12, atol=0)
    assert not found.requires_grad
    assert parts.most == min(size, IMAGES)
    same(whole, parts)


@pytest.mark.parametrize("size", [3, 5])
def test_dropout_in_the_backbone_draws_the_same_both_times(size: int) -> None:
    """Against one graph over all the parts, which draws once."""
    seen, labels = batch()
    graph, parts = Network(0.4), Network(0.4)
    torch.manual_seed(2)
    features = torch.cat([graph.features(part) for part in seen.pixels.split(size)])
    graph.criterion(features, seen.sizes, labels).backward()
    after = torch.rand(3)
    torch.manual_seed(2)
    MicroBatches(size)(parts, seen, labels)
    assert torch.equal(torch.rand(3), after)  # what is drawn next doesn't depend on the second pass
    same(graph, parts)


def test_gradients_are_scaled_and_the_loss_is_not() -> None:
    seen, labels = batch()
    plain, scaled = Network(), Network()
    for network, scale in ((plain, 1.0), (scaled, torch.tensor(8.0))):
        torch.manual_seed(2)
        network.value = MicroBatches(4)(network, seen, labels, scale)
    assert plain.value == scaled.value
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(other.grad, one.grad * 8)


class InMemory(Examples):
    device = torch.device("cpu")

    def __len__(self) -> int:
        return IMAGES

    def batches(self, epoch, rows):  # type: ignore[no-untyped-def]
        seen, labels = batch()
        for at in rows:
            yield Seen(seen.pixels[at], seen.sizes[at]), labels[at]


def test_a_training_with_sam_does_not_depend_on_the_size(tmp_path: Path) -> None:
    networks = []
    for size in (6, 4):
        network = Network()
        sam = {"type": "SAM", "rho": 0.05, "base": {"type": "SGD", "lr": 0.1}}  # Adam goes by the sign of rounding
        training = Training(epochs=3, batch_size=6, optimizer=sam, warmup_epochs=0)
        folder = tmp_path / str(size)
        folder.mkdir()
        Fit(network, InMemory(), training, seed=0, folder=folder, name="tune", backward=MicroBatches(size)).run(Stop())
        networks.append(network)
    assert [network.most for network in networks] == [6, 4]
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(value, networks[1].state_dict()[name], rtol=1e-7, atol=1e-9, msg=name)
