"""Features of NumPy files beside those that are computed here: what is compared, and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from guie_core import GuieError
from guie_train.pairs import _cosines, _same_lengths

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
