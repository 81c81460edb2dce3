from __future__ import annotations

import numpy as np
import pytest
import torch

from guie_core import UsageError
from guie_models.augmentation import SwitchedAugmentation

SIZES = [(50, 50), (30, 40), (40, 30), (1, 1), (60, 61), (7, 7)]
CATEGORIES = [0, 0, 3, 8, 10, 1]
NEEDED = [
    ["square"],
    ["whole", "padded_crop", "padded"],
    ["whole", "padded_crop"],
    ["square"],
    ["whole", "padded_crop", "padded"],
    ["square"],
]


def recipes() -> SwitchedAugmentation:
    return SwitchedAugmentation(32, (0.5,) * 3, (0.5,) * 3, padded_for=(0, 8, 10))


def test_needed_is_the_recipes_table() -> None:
    augmentation = recipes()
    found = [augmentation.needed(*size, category) for size, category in zip(SIZES, CATEGORIES, strict=True)]
    assert found == NEEDED
    assert augmentation.needed(30, 40) == ["whole", "padded_crop"]
    assert SwitchedAugmentation(32, (0.5,) * 3, (0.5,) * 3).needed(30, 40, 0) == ["whole", "padded_crop"]


@pytest.mark.parametrize("array", [np.array, torch.tensor, list])
def test_masks_are_needed_for_many(array: type) -> None:
    heights, widths = array([h for h, _ in SIZES]), array([w for _, w in SIZES])
    masks = recipes().masks(heights, widths, array(CATEGORIES))
    found = [[name for name in SwitchedAugmentation.VIEWS if masks[name][i]] for i in range(len(SIZES))]
    assert found == NEEDED
    assert not recipes().masks(heights, widths)["padded"].any()


def test_views_are_the_recipes() -> None:
    augmentation = recipes()
    kinds = {
        name: (view.pad_to_square, view.center_crop, view.interpolation, view.antialias)
        for name in SwitchedAugmentation.VIEWS
        for view in [getattr(augmentation, name)]
    }
    assert kinds == {
        "square": (False, 0.9, "bicubic", True),
        "whole": (False, 1.0, "bicubic", True),
        "padded_crop": (True, 0.9, "bicubic", True),
        "padded": (True, 1.0, "bicubic", True),
    }


def test_combine_averages_the_views_of_each_image() -> None:
    augmentation = recipes()
    heights, widths = [h for h, _ in SIZES], [w for _, w in SIZES]
    masks = augmentation.masks(heights, widths, CATEGORIES)
    torch.manual_seed(0)
    every = {name: torch.randn(len(SIZES), 5) for name in SwitchedAugmentation.VIEWS}
    combined = augmentation.combine({name: every[name][mask] for name, mask in masks.items()}, masks)
    expected = torch.stack([torch.stack([every[name][i] for name in NEEDED[i]]).mean(0) for i in range(len(SIZES))])
    torch.testing.assert_close(combined, expected)


def test_combine_refuses_what_does_not_match() -> None:
    augmentation = recipes()
    masks = augmentation.masks([10, 10], [10, 20])
    with pytest.raises(UsageError, match="'padded_crop' is needed for 1 images; there are outputs of 0"):
        augmentation.combine({"square": torch.zeros(1, 4), "whole": torch.zeros(1, 4)}, masks)
    with pytest.raises(UsageError, match="'square' is needed for 1 images; there are outputs of 2"):
        augmentation.combine({"square": torch.zeros(2, 4)}, masks)
