"""Settings of switched test-time augmentation in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guie_core import ExperimentError, Problem


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Test-time augmentation that depends on the image's shape and category (5th place, point 10).

    Args:
        crop: share of the image that a centre crop keeps.
        padded_for: categories whose images are also seen whole, padded to a square.
    """

    crop: float = 0.9
    padded_for: tuple[str, ...] = ()


def padded_classes(settings: Switched, categories: Sequence[str]) -> list[int]:
    """The classifier's outputs that stand for `settings.padded_for`.

    Raises:
        ExperimentError: the classifier knows no such category.
    """
    unknown = [name for name in settings.padded_for if name not in categories]
    if unknown:
        raise ExperimentError(
            [
                Problem("recipe.augmentation.padded_for", f"no category {name!r}", f"The images have: {', '.join(categories)}.")
                for name in unknown
            ],
            "the experiment",
        )
    return [list(categories).index(name) for name in settings.padded_for]
