"""Where a run goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from guie_core.experiment import Experiment
from guie_train.runner import default_folder

EXPERIMENT = Path(__file__).resolve().parents[3] / "experiments" / "quickstart.py"


@pytest.mark.parametrize(
    ("override", "variant"),
    [("recipe.seed=1", True), ("profile.workers=1", False), ("profile=cpu", False), ("", False)],
)
def test_what_changes_no_result_makes_no_variant(override: str, variant: bool) -> None:
    experiment = Experiment.load(EXPERIMENT, [override] if override else [], profile="cpu")
    name = f"quickstart-{experiment.digest[:6]}" if variant else "quickstart"
    assert default_folder(experiment) == Path("runs") / name
