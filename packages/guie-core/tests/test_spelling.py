# ruff: noqa: E501 -- messages are quoted whole
"""Settings in messages, said as the user gives them."""

from __future__ import annotations

import shlex

import pytest

from guie_core import ExperimentError, GuieError, Interrupted, Problem, UsageError
from guie_core.experiment import apply_override
from guie_core.spelling import spelled, told_as

COMMAND = {name: f"--set {name}=" for name in ("complete", "follow_links", "columns", "delimiter", "splits")}
COMMAND |= {"max_bad": "--max-bad "}
EXPERIMENT = {name: f"recipe.data.0.{name}=" for name in COMMAND} | {"max_bad": "recipe.max_bad="}


@pytest.mark.parametrize(
    ("text", "command", "experiment"),
    [
        ("or set complete to false to go on", "or add --set complete=False to go on", "or set recipe.data.0.complete to False to go on"),
        ("set follow_links to true.", "add --set follow_links=True.", "set recipe.data.0.follow_links to True."),
        ("follow_links=True allows it", "--set follow_links=True allows it", "recipe.data.0.follow_links=True allows it"),
        ("links (see follow_links)", "links (see --set follow_links)", "links (see recipe.data.0.follow_links)"),
        ("more than max_bad = 0.10% allows", "more than --max-bad = 0.10% allows", "more than recipe.max_bad = 0.10% allows"),
        ("raise max_bad to 0.17.", "raise --max-bad to 0.17.", "raise recipe.max_bad to 0.17."),
        ("or raise max_bad", "or raise --max-bad", "or raise recipe.max_bad"),
        ("Name it: columns=dict(label=...)", "Name it: --set 'columns=dict(label=...)'", "Name it: recipe.data.0.columns=dict(label=...)"),
        ("; set delimiter=';'", "; add --set 'delimiter=;'", "; set recipe.data.0.delimiter=';'"),
        ("set splits to train,val. Or", "add --set splits=train,val. Or", "set recipe.data.0.splits to train,val. Or"),
        ("no splits, columns or delimiter here is complete", None, None),
        ("recipe.max_bad, --max-bad and my_max_bad", None, None),
    ],
)  # fmt: skip
def test_spelled(text: str, command: str | None, experiment: str | None) -> None:
    assert spelled(text, COMMAND) == (command or text)
    assert spelled(text, EXPERIMENT) == (experiment or text)
    assert spelled(text, {}) == text
    for settings in (COMMAND, EXPERIMENT):
        assert spelled(spelled(text, settings), settings) == spelled(text, settings)


@pytest.mark.parametrize("text", ["set complete to false", "set delimiter=';'", "columns=dict(path='a b', label='c')"])
def test_what_is_said_works_in_a_shell(text: str) -> None:
    words = shlex.split(spelled(text, COMMAND))
    values: dict[str, dict[str, object]] = {"x": {}}
    apply_override(values, f"x.{words[words.index('--set') + 1]}", [], ["x"])
    expected = {"complete": False, "delimiter": ";", "columns": {"path": "a b", "label": "c"}}
    assert values["x"].items() <= expected.items()
    assert values["x"]


@pytest.mark.parametrize("kind", [GuieError, UsageError, Interrupted])
def test_errors_stay_what_they_are(kind: type[GuieError]) -> None:
    cause = OSError("first")
    with pytest.raises(kind) as caught, told_as(COMMAND):
        raise kind("raise max_bad") from cause
    assert str(caught.value) == "raise --max-bad"
    assert caught.value.__cause__ is cause
    with pytest.raises(ExperimentError) as listed, told_as(COMMAND):
        raise ExperimentError([Problem("x", "set complete to false")])
    assert "add --set complete=False" in str(listed.value)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(ValueError, match=r"^raise max_bad$"), told_as(COMMAND):
        raise ValueError("raise max_bad")
