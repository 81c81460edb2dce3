"""The points of a sweep: which values of which settings, all of them checked before the first one runs."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from guie_core import Experiment, ExperimentError, Problem
from guie_core.wording import shown
from guie_train.recipes import recipe_of
from guie_train.runs.outputs import name_of_point


@dataclass(frozen=True)
class Point:
    """An experiment, and the values that make it: by the key of the setting, as they would stand after --set's =."""

    values: Mapping[str, str]
    experiment: Experiment

    @property
    def words(self) -> str:
        """As people are told of it: "epochs=10, margin=0.3"."""
        return ", ".join(
            f"{label}={text}" for label, text in zip(labels(self.values), self.values.values(), strict=True)
        )

    @property
    def folder(self) -> str:
        """Name of its run's folder: readable, and another one whenever the experiment is."""
        readable = re.sub(r"[^\w.+=,-]+", "_", self.words.replace(", ", ","))[:80]
        return name_of_point(readable, self.experiment)


def labels(keys: Iterable[str]) -> list[str]:
    """The ends of keys, as short as tells them apart: of recipe.arcface.epochs "epochs", beside recipe.loss.margin."""
    paths = [key.split(".") for key in keys]

    def clear(path: list[str], length: int) -> bool:
        end = path[-length:]
        return not end[0].isdigit() and sum(other[-length:] == end for other in paths) == 1

    lengths = [next((n for n in range(1, len(path)) if clear(path, n)), len(path)) for path in paths]
    return [".".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]


def grid_points(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of values, those of the last key changing fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def check_keys(keys: Iterable[str], overrides: Iterable[str], problems: list[Problem]) -> None:
    """Add what is wrong with sweeping `keys` to `problems`."""
    given = {override.partition("=")[0].strip() for override in overrides}
    for key in keys:
        if key.partition(".")[0] == "profile":
            problems.append(
                Problem(key, "a profile changes speed and memory, never the result; there is nothing to sweep.")
            )
        if key in ("recipe", "recipe.selection", "recipe.selection.metric") or key.startswith(
            "recipe.selection.protocol"
        ):
            problems.append(Problem(key, "points are ranked by it, so it has to be the same for all."))
        if key in given:
            problems.append(Problem(key, "is swept, and --set gives it one value as well."))


def read_grid(texts: Sequence[str], problems: list[Problem]) -> dict[str, list[str]]:
    """The values of each "key=value,value,..."; what is wrong is added to `problems`."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip()
        values = split_values(listed)
        if not equals or not key or not all(values):
            hint = "For example: --grid recipe.arcface.epochs=10,30"
            problems.append(Problem("", f"--grid {text!r} is not of the form key=value,value,...", hint))
            continue
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice or key in grid:
            what = f"the value {twice[0]}" if twice else "this setting"
            problems.append(Problem(key, f"--grid names {what} twice."))
        grid[key] = values
    return grid


def split_values(text: str) -> list[str]:
    """Parts of `text` between its commas, but for commas within brackets or quotes."""
    try:
        node = ast.parse(f"({text},)", mode="eval").body
    except (SyntaxError, ValueError):  # such as paths and other text that no Python is
        return [part.strip() for part in text.split(",")]
    whole = f"({text},)"
    elements = node.elts if isinstance(node, ast.Tuple) else []
    return [(ast.get_source_segment(whole, each) or "").strip() for each in elements] or [""]


def load_points(
    path: Path, overrides: Sequence[str], profile: str | None, points: Iterable[Mapping[str, str]]
) -> list[Point]:
    """The points of the experiment at `path`, all of them checked; of those with the same settings, the first.

    Raises:
        ExperimentError: with all problems of all points.
        UsageError: there is no such experiment.
    """
    found: dict[str, Point] = {}
    problems: dict[tuple[str, str], Problem] = {}
    for values in points:
        try:
            point = load_point(path, overrides, profile, values)
        except ExperimentError as error:
            for problem in error.problems:
                problems.setdefault((problem.where, problem.message), problem)
        else:
            found.setdefault(point.experiment.digest, point)
    if problems:
        raise ExperimentError(list(problems.values()), shown(path))
    return list(found.values())


def load_point(path: Path, overrides: Sequence[str], profile: str | None, values: Mapping[str, str]) -> Point:
    """One point, checked; raises as `load_points` does."""
    experiment = Experiment.load(path, [*overrides, *(f"{key}={text}" for key, text in values.items())], profile)
    recipe_of(experiment)
    return Point(dict(values), experiment)
