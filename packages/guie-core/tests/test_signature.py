from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import pytest

from guie_core.errors import ExperimentError, Problem
from guie_core.signature import Config, Slot, convert, expected, signature

if TYPE_CHECKING:
    from nowhere import Unknown


def no_slots(slot: Slot, value: Any, where: str) -> list[Problem]:
    return [Problem(where, f"slot of {slot.kind}")] if value != "fine" else []


@dataclass(frozen=True)
class Settings:
    epochs: int
    rate: float = 0.1


@dataclass(frozen=True)
class Range:
    least: float
    most: float

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, above most, {self.most}.")


@dataclass(frozen=True)
class Named:
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if "" in self.names:
            raise ExperimentError([Problem("names", "one is empty.", "Give it a name.")])


class Opaque:
    """A class that no experiment can write, such as a Tensor."""


@pytest.mark.parametrize(
    ("hint", "value", "result"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "a", "a"),
        (Path, "/tmp/x", Path("/tmp/x")),
        (int | None, None, None),
        (Optional[int], 3, 3),  # noqa: UP045
        (int | float, 3, 3),
        (float | str, "a", "a"),
        (Literal["a", "b"], "b", "b"),
        (tuple[int, float], [1, 2], (1, 2.0)),
        (tuple[str, ...], ["a", "b"], ("a", "b")),
        (tuple[str, ...], [], ()),
        (list[float], (1, 2), [1.0, 2.0]),
        (Sequence[Path], ["a"], [Path("a")]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Mapping[str, Settings], {"a": {"epochs": 1}}, {"a": Settings(1)}),
        (Settings, {"epochs": 3, "rate": 1}, Settings(3, 1.0)),
        (Settings | None, {"epochs": 3}, Settings(3)),
        (list[Settings], [{"epochs": 3}], [Settings(3)]),
        (float | Settings | Range, {"least": 1, "most": 2}, Range(1.0, 2.0)),
        (float | Settings | Range, {"epochs": 1}, Settings(1)),
        (frozenset[str], ["a", "a"], {"a"}),
        (Any, {"x": object}, {"x": object}),
        (Annotated[int, "a remark"], 3, 3),
        (float | Opaque, 1, 1.0),
        (Opaque | None, "left to the component", "left to the component"),
        (Opaque, "left to the component", "left to the component"),
    ],
)
def test_values_that_fit(hint: Any, value: Any, result: Any) -> None:
    converted, problems = convert(hint, value, "here", no_slots)
    assert problems == []
    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (int, True, "here: expects a whole number, got True."),
        (int, 0.5, "here: expects a whole number, got the number 0.5."),
        (float, True, "here: expects a number, got True."),
        (float, "0,5", "here: expects a number, got the text '0,5'."),
        (bool, 1, "here: expects True or False, got the number 1."),
        (bool, "true", "here: expects True or False, got the text 'true'. Write True, without quotes."),
        (int | None, "none", "here: expects a whole number or None, got the text 'none'. Write None, without quotes."),
        (str, None, "here: expects text, got None."),
        (float | Opaque, "fast", "here: expects a number or Opaque, got the text 'fast'."),
        (Path, 3, "here: expects a path, got the number 3."),
        (
            Literal["fast", "exact"],
            "fats",
            "here: expects 'fast' or 'exact', got the text 'fats'. Did you mean 'fast'?",
        ),
        (Literal[1, 2], True, "here: expects 1 or 2, got True."),
        (
            list[int],
            "abc",
            "here: expects a list, each a whole number, got the text 'abc'. Write ['abc'] for a list of one.",
        ),
        (
            tuple[str, ...],
            "abc",
            "here: expects a list, each text, got the text 'abc'. Write ['abc'] for a list of one.",
        ),
        (list[int], [1, "a"], "here.1: expects a whole number, got the text 'a'."),
        (tuple[int, float], [1, 2, 3], "here: expects a list of 2 (a whole number, a number), got [1, 2, 3]."),
        (dict[str, int], {"a": "b"}, "here.a: expects a whole number, got the text 'b'."),
        (Settings, 3, "here: expects settings, dict(...), got the number 3."),
        (
            Settings | None,
            {"epoch": 3},
            "here.epoch: here has no setting 'epoch'. Did you mean 'epochs'?\nIt takes: epochs, rate.",
        ),
        (Settings, {"rate": 0.1}, "here: here needs the setting 'epochs': a whole number."),
        (float | Settings | Range, {"least": 1}, "here: here needs the setting 'most': a number."),
        (Range | Settings, {"least": 2, "most": 1}, "here: least is 2.0, above most, 1.0."),
        (Range | Settings, {"least": 2, "most": "a"}, "here.most: expects a number, got the text 'a'."),
        (list[Named], [{"names": [""]}], "here.0.names: one is empty.\nGive it a name."),
        (Range | None, {"least": 2, "most": 1}, "here: least is 2.0, above most, 1.0."),
        (
            Settings | Range,
            {"least": 2, "mots": 1},
            "here.mots: here has no setting 'mots'. Did you mean 'most'?\nIt takes: least, most.",
        ),
        (list[Settings] | None, [{"epochs": 0.5}], "here.0.epochs: expects a whole number, got the number 0.5."),
        (Annotated[Config, Slot("heads")] | None, {"type": "x"}, "here: slot of heads"),
        (list[Annotated[Config, Slot("heads")]], ["fine", "x"], "here.1: slot of heads"),
    ],
)
def test_values_that_do_not_fit(hint: Any, value: Any, problem: str) -> None:
    _, problems = convert(hint, value, "here", no_slots)
    assert [str(found) for found in problems] == [problem]


def test_default_is_taken_whatever_its_hint() -> None:
    assert convert(int, None, "here", no_slots, default=None) == (None, [])


def test_settings_without_a_type_adjust_the_default() -> None:
    seen: list[Any] = []

    def check_slot(slot: Slot, value: Any, where: str) -> list[Problem]:
        seen.append(value)
        return []

    default = {"type": "AdamW", "lr": 0.1}
    converted, _ = convert(Annotated[Config, Slot("optimizers")], {"lr": 1}, "here", check_slot, default=default)
    assert converted == {"type": "AdamW", "lr": 1}
    assert seen == [converted]
    converted, _ = convert(Annotated[Config, Slot("optimizers")], {"type": "SGD"}, "", check_slot, default=default)
    assert converted == {"type": "SGD"}


def test_hint_that_cannot_be_resolved_leaves_the_others() -> None:
    def function(a: Unknown, b: int, c: Annotated[Config, Slot("heads")], *args: int, d: str = "x") -> None: ...

    found = signature(function)
    assert found.hints["a"] is Any
    assert found.hints["b"] is int
    assert found.hints["c"].__metadata__ == (Slot("heads"),)
    assert list(found.hints) == ["a", "b", "c", "d"]
    assert found.required == ("a", "b", "c")
    assert not found.open


@dataclass(frozen=True)
class Longer(Settings):
    name: str = ""


def test_inherited_dataclass_fields() -> None:
    found = signature(Longer)
    assert dict(found.hints) == {"epochs": int, "rate": float, "name": str}
    assert found.required == ("epochs",)


def test_further_keyword_arguments() -> None:
    class Open:
        def __init__(self, a: int = 1, **rest: float) -> None: ...

    found = signature(Open)
    assert found.open
    assert dict(found.defaults) == {"a": 1}


def test_class_without_arguments() -> None:
    class Bare: ...

    assert dict(signature(Bare).hints) == {}


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Annotated[Config, Slot("heads")] | None, "dict(type=...) of kind heads or None"),
        (list[str], "a list, each text"),
        (Mapping[str, int], "settings, dict(...)"),
        (tuple, "a list"),
    ],
)
def test_hints_in_words(hint: Any, words: str) -> None:
    assert expected(hint) == words
