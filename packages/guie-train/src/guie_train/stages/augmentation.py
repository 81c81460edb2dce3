"""Switched test-time augmentation in a recipe: its settings, and its views as components whose features are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guie_core import ExperimentError, Problem
from guie_core.wording import did_you_mean
from guie_models import SwitchedAugmentation

# for questions that need no pixels: which images are seen through which view
_NO_PIXELS: dict[str, Any] = {"size": 1, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Test-time augmentation that depends on the image's shape and category (5th place, point 10).

    Args:
        crop: share of the image that a centre crop keeps.
        padded_for: categories whose images are also seen whole, padded to a square.
    """

    crop: float = 0.9
    padded_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; it is the part of each side that stays, above 0 and up to 1.")

    def views(self) -> dict[str, dict[str, Any]]:
        """The augmentation's views by name, as components of kind "views"."""
        augmentation = SwitchedAugmentation(**_NO_PIXELS, crop=self.crop)
        views = {name: getattr(augmentation, name) for name in SwitchedAugmentation.VIEWS}
        return {
            name: {"type": "Squash", "pad_to_square": view.pad_to_square, "center_crop": view.center_crop}
            for name, view in views.items()
        }

    def build(self, categories: Sequence[str], **pixels: Any) -> SwitchedAugmentation:
        """The augmentation for a classifier of these categories; `pixels` are its size, mean and std.

        Raises:
            ExperimentError: the classifier knows no category of that name.
        """
        hint = f"The images have: {', '.join(categories)}."
        unknown = [
            Problem(
                "recipe.augmentation.padded_for",
                f"there is no category {name!r}.{did_you_mean(name, categories)}",
                hint,
            )
            for name in self.padded_for
            if name not in categories
        ]
        if unknown:
            raise ExperimentError(unknown)
        padded_for = [list(categories).index(name) for name in self.padded_for]
        return SwitchedAugmentation(**(_NO_PIXELS | pixels), crop=self.crop, padded_for=padded_for)
