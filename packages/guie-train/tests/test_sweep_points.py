"""Values of sweeps: read, named, suggested; and a study that goes on as if nothing had happened."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest

from guie_core import GuieError, Problem, UsageError
from guie_train.sweeping.points import check_keys, grid_points, labels, read_grid, split_values
from guie_train.sweeping.study import FILE, Study, Suggestion, Trial, read_suggestions, require_optuna


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("10,30", ["10", "30"]),
        ("1e-3, 1e-2", ["1e-3", "1e-2"]),
        ("dict(type='Arc', m=0.3),dict(type='Cos')", ["dict(type='Arc', m=0.3)", "dict(type='Cos')"]),
        ("[1,2],(3,4)", ["[1,2]", "(3,4)"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("timm/resnet18,timm/resnet50", ["timm/resnet18", "timm/resnet50"]),
        ("~/a b,~/c", ["~/a b", "~/c"]),  # no Python
        ("one", ["one"]),
        ("", [""]),
        ("1,,2", ["1", "", "2"]),
    ],
)  # fmt: skip
def test_values_between_commas(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_every_combination_is_a_point() -> None:
    problems: list[Problem] = []
    grid = read_grid(["recipe.a=1,2", " recipe.b = x , y "], problems)
    assert problems == []
    assert grid_points(grid) == [
        {"recipe.a": "1", "recipe.b": "x"},
        {"recipe.a": "1", "recipe.b": "y"},
        {"recipe.a": "2", "recipe.b": "x"},
        {"recipe.a": "2", "recipe.b": "y"},
    ]


def test_what_is_wrong_with_grids_is_told_at_once() -> None:
    problems: list[Problem] = []
    grid = read_grid(
        ["recipe.a", "=1", "recipe.b=", "recipe.c=1,,2", "recipe.d=1,1", "recipe.e=1", "recipe.e=2"], problems
    )
    assert [problem.message.partition(" is not")[0] for problem in problems] == [
        "--grid 'recipe.a'",
        "--grid '=1'",
        "--grid 'recipe.b='",
        "--grid 'recipe.c=1,,2'",
        "--grid names the value 1 twice.",
        "--grid names this setting twice.",
    ]
    problems.clear()
    check_keys(
        [*grid, "profile.workers", "recipe.selection.metric", "recipe.selection.every", "recipe"],
        ["recipe.e = 3", "recipe.f=1"],
        problems,
    )
    assert [(problem.where, problem.message) for problem in problems] == [
        ("recipe.e", "is swept, and --set gives it one value as well."),
        ("profile.workers", "a profile changes speed and memory, never the result; there is nothing to sweep."),
        ("recipe.selection.metric", "points are ranked by it, so it has to be the same for all."),
        ("recipe", "points are ranked by it, so it has to be the same for all."),
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["recipe.arcface.epochs", "recipe.loss.margin"], ["epochs", "margin"]),
        (["recipe.arcface.epochs", "recipe.classifier.training.epochs"], ["arcface.epochs", "training.epochs"]),
        (["recipe.splits.0.seed", "recipe.splits.1.seed"], ["splits.0.seed", "splits.1.seed"]),
        (["recipe.seed", "recipe.splits.1.seed"], ["recipe.seed", "splits.1.seed"]),
        (["recipe.without.0"], ["without.0"]),
    ],
)
def test_keys_are_as_short_as_tells_them_apart(keys: list[str], expected: list[str]) -> None:
    assert labels(keys) == expected


def test_where_values_are_suggested_from() -> None:
    problems: list[Problem] = []
    texts = ["a=0.2..0.6", "b=1e-4..1e-1:log", "c=10..100", "d=relu,gelu,relu", "e=-1..1", "f=8..256:log"]
    assert read_suggestions(texts, problems) == [
        Suggestion("a", 0.2, 0.6),
        Suggestion("b", 1e-4, 1e-1, log=True),
        Suggestion("c", 10, 100, whole=True),
        Suggestion("d", choices=("relu", "gelu")),
        Suggestion("e", -1, 1, whole=True),
        Suggestion("f", 8, 256, log=True, whole=True),
    ]
    assert problems == []
    assert [each.ends for each in read_suggestions(["a=0.2..0.6", "c=10..100", "d=x,y"], problems)] == [
        ["0.2", "0.6"],
        ["10", "100"],
        ["x", "y"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "is not of the form"),
        ("a=3", "is not of the form"),
        ("a=x..y", "is not of the form"),
        ("a=1..2:lin", "is not of the form"),
        ("a=1..1e999", "is not of the form"),
        ("=1..2", "is not of the form"),
        ("a=2..1", "2 is not below 1"),
        ("a=0..1:log", "begins above 0"),
    ],
)
def test_suggestions_that_are_none(text: str, message: str) -> None:
    problems: list[Problem] = []
    read_suggestions([text], problems)
    (problem,) = problems
    assert message in problem.message
    read_suggestions(["a=1..2", "a=1..2"], problems)
    assert problems[-1] == Problem("a", "--suggest names this setting twice.")


SPACE = [
    Suggestion("x", -4.0, 4.0),
    Suggestion("n", 1, 64, log=True, whole=True),
    Suggestion("how", choices=("a", "b")),
]


def height(params: dict[str, Any]) -> float | None:
    """The higher the nearer to x = 1, n = 8, how = b; fails where x is far below."""
    if params["x"] < -3:
        return None
    return -((params["x"] - 1) ** 2) - math.log2(params["n"] / 8) ** 2 - (params["how"] == "a")


def test_a_study_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole = Study(tmp_path / "whole", SPACE, 7, "digest")
    for _ in range(13):  # ten are drawn at random, the others by what came of those
        params = whole.suggest()
        assert whole.suggest() == params  # asking leaves no trace
        whole.add(params, height(params))
    for trials in (3, 8, 2):
        study = Study(tmp_path / "parts", SPACE, 7, "digest")
        for _ in range(trials):
            params = study.suggest()
            study.add(params, height(params))
    assert study.trials == whole.trials
    assert any(trial.score is None for trial in whole.trials)
    assert {type(value) for trial in whole.trials for value in trial.params.values()} == {float, int, str}
    other = Study(tmp_path / "other", SPACE, 8, "digest")
    assert other.suggest() != whole.trials[0].params


def test_what_is_suggested_follows_from_the_scores(tmp_path: Path) -> None:
    space = [Suggestion("x", -4.0, 4.0)]
    near, far = Study(tmp_path / "near", space, 0, "digest"), Study(tmp_path / "far", space, 0, "digest")
    for _ in range(12):
        params = near.suggest()
        near.add(params, -abs(params["x"] - 3))
        params = far.suggest()
        far.add(params, -abs(params["x"] + 3))
    assert [trial.params for trial in near.trials[:10]] == [trial.params for trial in far.trials[:10]]
    assert all(a.params["x"] > b.params["x"] for a, b in zip(near.trials[10:], far.trials[10:], strict=True))


def test_trials_that_failed_can_be_made_good(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, 0, "digest")
    params = study.suggest()
    study.add(params, None)
    study.add(params, 0.5, again=True)
    assert study.trials == [Trial(params, None), Trial(params, 0.5)]
    assert study.count == 1


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "what? 100%20 {x} #1"
    Study(folder, SPACE, 0, "digest")
    Study(folder, SPACE, 0, "digest")
    assert [path.name for path in folder.iterdir()] == [FILE]
    for other, word in (
        ((SPACE[:2], 0, "digest"), "other --suggest"),
        ((SPACE, 1, "digest"), "another --seed"),
        ((SPACE, 0, "of another"), "another experiment"),
    ):
        with pytest.raises(UsageError, match=rf"has trials of {word}\.\nChoose another folder with --work-dir"):
            Study(folder, *other)


def test_a_damaged_study(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(GuieError, match=r"study\.db cannot be used \(file is not a database\); remove it"):
        Study(tmp_path, SPACE, 0, "digest")


def test_a_study_that_the_disk_takes_nothing_more_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def full(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made = connect(*args, **kwargs)
        made.execute("PRAGMA max_page_count = 1")  # no more than it has
        return made

    study = Study(tmp_path, SPACE, 0, "digest")
    study.add(study.suggest(), 0.5)
    monkeypatch.setattr(sqlite3, "connect", full)
    small = Study(tmp_path, SPACE, 0, "digest")

    def fill() -> None:
        for _ in range(50):
            small.add(small.suggest(), 0.5)

    with pytest.raises(GuieError, match=r"study\.db could not be written \(database or disk is full\)\.\nNothing that"):
        fill()
    monkeypatch.undo()
    study = Study(tmp_path, SPACE, 0, "digest")
    before = study.count
    study.add(study.suggest(), 0.5)
    assert study.count == before + 1


@pytest.mark.parametrize("begun", ["nothing", "tables", "the study"])
def test_a_study_that_cannot_be_begun_on_this_disk(begun: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written first is refused elsewhere in Optuna than what comes after it."""
    connect = sqlite3.connect

    def read_only(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made = connect(*args, **kwargs)
        made.execute("PRAGMA query_only = 1")
        return made

    if begun != "nothing":
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / FILE}")
        if begun == "the study":
            optuna.create_study(study_name="sweep", storage=storage, direction="maximize")
        storage.remove_session()
        storage.engine.dispose()
    monkeypatch.setattr(sqlite3, "connect", read_only)
    message = r"study\.db could not be written \(attempt to write a readonly database\)\.\nNothing that .* Run the same"
    with pytest.raises(GuieError, match=message) as error:
        Study(tmp_path, SPACE, 0, "digest")
    assert "remove" not in str(error.value)
    monkeypatch.undo()
    study = Study(tmp_path, SPACE, 0, "digest")
    study.add(study.suggest(), 0.5)


def test_a_study_keeps_its_file_open_no_longer_than_it_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is refused: its folder may be removed, or be on a disk that is to be taken out."""
    made, connect = [], sqlite3.connect

    def kept(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        made.append(connect(*args, **kwargs))
        return made[-1]

    def all_are_closed() -> None:
        assert made
        for connection in made:
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                connection.execute("SELECT 1")
        made.clear()

    monkeypatch.setattr(sqlite3, "connect", kept)
    study = Study(tmp_path, SPACE, 0, "digest")
    all_are_closed()
    study.add(study.suggest(), 0.5)
    assert (study.count, len(study.trials)) == (1, 1)
    all_are_closed()
    with pytest.raises(UsageError):
        Study(tmp_path, SPACE, 1, "digest")
    all_are_closed()
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(GuieError):
        Study(tmp_path, SPACE, 0, "digest")
    all_are_closed()


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'guie-train\[sweep\]'"):
        require_optuna()


def test_suggested_numbers_can_be_read() -> None:
    assert Suggestion("a", 0.0, 1.0).rounded(0.123456789) == 0.1235
    assert Suggestion("a", 0.12341, 0.12349).rounded(0.12348) == 0.12349  # never outside
    assert Suggestion("a", 1, 10**6, whole=True).rounded(123457) == 123457
