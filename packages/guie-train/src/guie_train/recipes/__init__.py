"""Recipes: stages in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guie_core.errors import ExperimentError
from guie_core.wording import shown

if TYPE_CHECKING:
    from guie_core.experiment import Experiment


def recipe_of(experiment: Experiment) -> Any:
    """The recipe of an experiment. Raises ExperimentError, which names its file, for what the recipe itself refuses."""
    from guie_core.registry import build

    try:
        return build("recipes", experiment.recipe, where="recipe")
    except ExperimentError as error:
        raise ExperimentError(error.problems, shown(experiment.path)) from None
