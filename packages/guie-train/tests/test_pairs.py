"""Features of NumPy files beside those that are computed here: what is compared, and what is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from guie_core import GuieError
from guie_datasets import ImageRef
from guie_train.pairs import _all_finite, _cosines, _same_lengths

FOLDER = Path("embs")


def test_a_length_of_zero_on_both_sides_is_the_same_and_hides_no_other() -> None:
    here = torch.tensor([0.0, 2.0, 3.0])
    _same_lengths(here, here, 0.1, FOLDER)
    with pytest.raises(GuieError, match=r"features of length 4 in the files instead of 2; were they scaled\?"):
        _same_lengths(here, torch.tensor([0.0, 4.0, 3.0]), 0.1, FOLDER)
    with pytest.raises(GuieError, match="features of length 5 in the files instead of 0;"):
        _same_lengths(here, torch.tensor([5.0, 2.0, 3.0]), 0.1, FOLDER)
    with pytest.raises(GuieError, match="features of length 0 in the files instead of 2;"):
        _same_lengths(here, torch.tensor([0.0, 0.0, 3.0]), 0.1, FOLDER)


def test_features_that_are_zero_on_both_sides_are_alike() -> None:
    here = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    there = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    assert _cosines(here, there).tolist() == pytest.approx([1, 0, 1])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (70_000, "the value 70,000, and float16 ends at 65,504."),
        (-70_000, "the value -70,000, and float16 ends at -65,504."),
    ],
)
def test_a_value_that_is_too_large_is_told_with_its_sign(value: float, told: str) -> None:
    block = np.ones((2, 3), np.float32)
    block[1, 1] = value
    images = [ImageRef(f"{number}.png") for number in range(2)]
    with pytest.raises(GuieError) as refused:
        _all_finite([FOLDER / "emb_0.npy"], [block], "float16", images, np.arange(2))
    assert f"emb_0.npy: row 1, of 1.png, has {told}" in str(refused.value)
