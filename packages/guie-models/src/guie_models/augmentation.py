"""Test-time augmentation that is switched by the image's aspect and by what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guie_core import UsageError
from guie_models.views import Squash


class SwitchedAugmentation(nn.Module):
    """Which views of an image are embedded and averaged (5th place, point 10).

    - a square image: "square", the centre crop of `crop` of each side; that view alone;
    - any other: "whole", squashed as it is, whose features also steer (a classifier reads them), and "padded_crop",
      padded to a square and centre-cropped; if the classifier finds one of the categories `padded_for` (numbers of its
      classes; the recipe's 0, 8 and 10), also "padded", padded to a square.

    The head's outputs, not normalised, are averaged over the views. All views are bicubic and antialiased, of side
    `size`, and are attributes by their names.
    """

    VIEWS = ("square", "whole", "padded_crop", "padded")
    STEERING = "whole"  # the view whose features the classifier reads

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop: float = 0.9,
        padded_for: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.size = size
        self.square = Squash(size, mean, std, center_crop=crop)
        self.whole = Squash(size, mean, std)
        self.padded_crop = Squash(size, mean, std, pad_to_square=True, center_crop=crop)
        self.padded = Squash(size, mean, std, pad_to_square=True)
        self.padded_for: Tensor
        self.register_buffer("padded_for", torch.tensor(list(padded_for), dtype=torch.int64))

    def pads(self, category: int) -> bool:
        """Whether images of this category get the view "padded". Scriptable."""
        return bool((self.padded_for == category).any())

    def needed(self, height: int, width: int, category: int = -1) -> list[str]:
        """Names of the views of an image of this size, in pixels, and category (-1: unknown)."""
        if height == width:
            return ["square"]
        return ["whole", "padded_crop", "padded"] if self.pads(category) else ["whole", "padded_crop"]

    def masks(self, heights: Any, widths: Any, categories: Any = None) -> dict[str, Tensor]:
        """`needed` for N images at once: by each view's name, which images need it, bool [N].

        `heights`, `widths` and `categories` (all unknown where None) are tensors or arrays [N].
        """
        square = torch.as_tensor(heights) == torch.as_tensor(widths)
        if categories is None:
            padded = torch.zeros_like(square)
        else:
            padded = torch.isin(torch.as_tensor(categories).to(self.padded_for), self.padded_for).to(square.device)
        return {"square": square, "whole": ~square, "padded_crop": ~square, "padded": ~square & padded}

    def combine(self, outputs: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """The average over each image's views: [N, E].

        `outputs` holds by each view's name the head's outputs [n, E], not normalised, of the images that `masks` [N]
        says need it, in their order. Raises UsageError where the numbers of rows don't agree.
        """
        some = next(iter(outputs.values()))
        count = len(next(iter(masks.values())))
        total = some.new_zeros(count, some.shape[1])
        views = some.new_zeros(count, 1)
        for name, mask in masks.items():
            rows = mask.nonzero()[:, 0].to(some.device)
            if len(rows) == 0:
                continue
            if name not in outputs or len(outputs[name]) != len(rows):
                there = len(outputs[name]) if name in outputs else 0
                raise UsageError(f"View {name!r} is needed for {len(rows)} images; there are outputs of {there}.")
            total.index_add_(0, rows, outputs[name])
            views.index_add_(0, rows, views.new_ones(len(rows), 1))
        return total / views
