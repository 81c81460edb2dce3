"""What a frozen backbone takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from guie_core.registry import build
from guie_core.wording import size
from guie_models.backbones import Backbone
from guie_models.backbones.weights import sources
from guie_models.embedder import ReducedPrecision
from guie_train.planning.forecast import Missing, Outlook
from guie_train.planning.meta import Traced, on_meta, trace
from guie_train.planning.speeds import published


@dataclass(frozen=True)
class Frozen:
    """A backbone of an experiment without its weights, and what it takes to run it."""

    config: Mapping[str, Any]
    outlook: Outlook
    backbone: Backbone  #: on the meta device

    @classmethod
    def of(cls, config: Mapping[str, Any], outlook: Outlook) -> Frozen:
        """Built once for an outlook."""

        key = json.dumps(config, sort_keys=True, default=str)
        return cls(config, outlook, outlook.once(("backbone", key), lambda: on_meta(lambda: without_weights(config))))

    def traced(self, batch: int, dtype: str, shape: tuple[int, ...]) -> Traced:
        """A batch of images of [3, h, w] through it, its weights and arithmetic in `dtype`."""

        def run() -> Traced:
            images = torch.empty(batch, *shape, device="meta")
            network = self._reduced(dtype)
            with torch.inference_mode():
                return trace(lambda: network(images), network, images)

        return self.outlook.once((self.backbone, batch, dtype, shape), run)

    def _reduced(self, dtype: str) -> torch.nn.Module:
        if dtype == "float32":
            return self.backbone

        def make() -> torch.nn.Module:
            return ReducedPrecision(without_weights(self.config), getattr(torch, dtype))

        return self.outlook.once((self.backbone, dtype), lambda: on_meta(make))

    def time(self, images: int, batch: int, dtype: str, shape: tuple[int, ...]) -> tuple[float | None, bool, str]:
        """Seconds for so many images, whether that is the least, and what it rests on."""
        traced = self.traced(batch, dtype, shape)
        operations = traced.operations / batch
        work = f"{operations / 1e9:.1f} GFLOP" if operations >= 1e8 else f"{operations / 1e6:.1f} MFLOP"
        work += " an image"
        rate = published(self.outlook.profile, self.backbone.name, shape[-1], dtype)
        if rate is not None:
            return images / rate[0], False, f"{work}, {rate[1]}"
        seconds, at_least, basis = self.outlook.time(traced, 1, dtype)
        return None if seconds is None else seconds * images / batch, at_least, f"{work} {basis}"

    def missing(self) -> Iterator[Missing]:
        """Weights that are not on this machine."""
        for source in sources(self.config):
            if source.path is None:
                about = [f"about {size(4 * source.parameters)}"] if source.parameters else []
                about += [source.licence] if source.licence else []
                what = f"weights {source.what}" + (f" ({', '.join(about)})" if about else "")
                if source.page:
                    option = "--set recipe.backbone.weights=file:<path>"
                    yield Missing(what, source.page, f"fetched when they are needed; without a network: {option}")
                else:
                    yield Missing(what, "no such file or installed package: correct recipe.backbone.weights")


def without_weights(config: Mapping[str, Any]) -> Backbone:
    """The backbone of an experiment, without reading or fetching its weights, where it takes such."""
    plain = {name: value for name, value in config.items() if name != "weights"}
    built: Backbone = build("backbones", plain, where="recipe.backbone", weights="none")
    return built


def powers_below(count: int) -> Iterator[int]:
    """Powers of two below a number, the largest first."""
    power = 1 << max(0, (count - 1).bit_length() - 1)
    while power >= 1 and power < count:
        yield power
        power //= 2
