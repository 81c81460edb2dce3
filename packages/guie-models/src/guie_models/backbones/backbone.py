"""What every backbone is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from guie_models.backbones.weights import state_digest


class Backbone(nn.Module):
    """A frozen network in evaluation mode: images [B, 3, h, w], normalised -> features [B, D].

    `train()` leaves it in evaluation mode; no parameter asks for a gradient.
    """

    name: str  #: of the architecture and its weights
    features: int  #: D
    image_size: int  #: the side of the images, in pixels, that it expects
    mean: tuple[float, float, float]  #: of the images it was trained on, subtracted after / 255
    std: tuple[float, float, float]  #: divided by
    licence: str  #: of the weights; "" where it isn't known
    digest: str  #: of the weights and the architecture, the same wherever the weights came from; for keys of features
    config: Mapping[str, Any]  #: dict(type=..., ...) that builds the same architecture again, without weights

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        architecture: str,
        config: Mapping[str, Any],
        features: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        licence: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.config = {"type": name, **config}
        self.features = features
        self.image_size = image_size
        self.mean = (float(mean[0]), float(mean[1]), float(mean[2]))
        self.std = (float(std[0]), float(std[1]), float(std[2]))
        self.licence = licence
        self.requires_grad_(False)
        self.train(False)
        self.digest = state_digest(network.state_dict(), architecture)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)
        return features

    def train(self, mode: bool = True) -> Any:
        return super().train(False)

    def extra_repr(self) -> str:
        return f"{self.name}, features={self.features}, image_size={self.image_size}"
