"""Where a run goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from guie_core.experiment import Experiment
from guie_core.profiles import CPU
from guie_train.runner import default_folder


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "photos"),
        (("recipe.seed=1",), "photos-0123ab"),
        (("profile.workers=1", "recipe.seed=1"), "photos-0123ab"),
        (("profile.workers=1", "profile=cpu"), "photos"),  # which change no result
    ],
)
def test_variants_lie_beside_each_other(overrides: tuple[str, ...], name: str) -> None:
    experiment = Experiment(Path("photos.py"), "photos", "", {}, CPU, overrides, {}, "0123abcdef")
    assert default_folder(experiment) == Path("runs") / name
