"""Several backbones as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guie_core import Config, Slot, UsageError, build
from guie_models.backbones.backbone import Backbone
from guie_models.backbones.weights import Source, sources


class Concatenated(Backbone):
    """The features of several backbones, one after the other (10th place: ViT-B, L and H, frozen): [B, D1 + D2 + ...].

    backbones: dict(type=..., ...) each. Images come as the first backbone expects them, at the largest side of all;
    each of the others gets them with its own mean and std, resized (bicubic, antialiased) where its side is smaller.
    normalise: whether each backbone's features are divided by their length first, so that none outweighs another.
    weights: "none" builds all with random weights, whatever their settings say.

    Raises UsageError for no backbones, or one that gives tokens, and whatever the backbones raise.
    """

    def __init__(
        self,
        backbones: Sequence[Annotated[Config, Slot("backbones")]],
        normalise: bool = False,
        weights: str = "",
    ) -> None:
        if not backbones:
            raise UsageError("concat: backbones is empty; name one at least.")
        settings: Mapping[str, Any] = {"weights": weights} if weights else {}
        built: list[Backbone] = [
            build("backbones", {**config, **settings}, where=f"backbones.{i}") for i, config in enumerate(backbones)
        ]
        if tokens := [part.name for part in built if part.config.get("output") == "tokens"]:
            raise UsageError(f"concat: {tokens[0]} gives tokens, which can't be put beside other features.")
        first, size = built[0], max(part.image_size for part in built)
        super().__init__(
            _Parts(built, normalise, size),
            name="concat",
            architecture=f"concat {normalise} " + " ".join(part.digest for part in built),
            config={"backbones": [dict(part.config) for part in built], "normalise": normalise},
            features=sum(part.features for part in built),
            image_size=size,
            mean=first.mean,
            std=first.std,
            licence=(
                " AND ".join(dict.fromkeys(part.licence for part in built)) if all(p.licence for p in built) else ""
            ),
            view=first.view,
        )

    @classmethod
    def sources(cls, backbones: Sequence[Config], weights: str = "", **settings: Any) -> list[Source]:
        """Where the weights of each come from: see `guie_models.backbones.weights.sources`."""
        own: Mapping[str, Any] = {"weights": weights} if weights else {}
        return [source for config in backbones for source in sources({**config, **own})]

    def blocks(self) -> list[list[str]]:
        """One after the other: those of the first backbone, then those of the second."""
        parts: Any = self.network
        return [
            [f"parts.{i}.network.{name}" for name in block]
            for i, part in enumerate(parts.parts)
            for block in part.blocks()
        ]


class _Parts(nn.Module):
    def __init__(self, parts: Sequence[Backbone], normalise: bool, size: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.normalise = normalise
        self.sizes = [part.image_size for part in parts]
        self.size = size
        # from the first backbone's normalisation to each one's: x * scale + shift
        first = parts[0]
        for i, part in enumerate(parts):
            means, stds = (
                torch.tensor([a, b]).reshape(2, 3, 1, 1) for a, b in ((first.mean, part.mean), (first.std, part.std))
            )
            self.register_buffer(f"scale_{i}", stds[0] / stds[1])
            self.register_buffer(f"shift_{i}", (means[0] - means[1]) / stds[1])

    def forward(self, images: Tensor) -> Tensor:
        features = []
        for i, part in enumerate(self.parts):
            own = images if i == 0 else images * self.get_buffer(f"scale_{i}") + self.get_buffer(f"shift_{i}")
            if self.sizes[i] != self.size:
                side = [self.sizes[i], self.sizes[i]]
                own = F.interpolate(own, size=side, mode="bicubic", align_corners=False, antialias=True)
            found = part(own)
            features.append(F.normalize(found) if self.normalise else found)
        return torch.cat(features, dim=1)
