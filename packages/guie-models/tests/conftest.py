from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from guie_models.backbones import TimmBackbone

SHAPES = ((50, 50), (1, 1), (1, 50), (50, 1), (61, 30), (77, 128), (96, 96), (203, 97), (97, 203), (31, 33))

torch.set_num_threads(1)  # tests run beside each other


@cache
def _photo(index: int) -> Tensor:
    return torch.from_numpy(load_sample_images().images[index].copy()).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="session")
def photo() -> Callable[..., Tensor]:
    """photo(height, width, index=0): a part of that size, uint8 [3, height, width], of one of two photographs."""

    def part(height: int, width: int, index: int = 0) -> Tensor:
        whole = _photo(index)
        top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 3
        return whole[:, top : top + height, left : left + width].contiguous()

    return part


@pytest.fixture(scope="session")
def photos(photo: Callable[..., Tensor]) -> list[Tensor]:
    """Twenty parts of photographs: square, odd, one pixel, 1:50 and 50:1."""
    return [photo(height, width, index) for index in (0, 1) for height, width in SHAPES]


@pytest.fixture(scope="session")
def backbone() -> TimmBackbone:
    """A small one with random weights, 96 px."""
    return TimmBackbone("test_vit", weights="none", image_size=96)
