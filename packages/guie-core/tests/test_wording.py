"""The small pieces that messages are made of."""

from __future__ import annotations

import pytest

from guie_core.wording import duration, ended, nearest, plural


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (1, "query", "1 query"),
        (5000, "query", "5,000 queries"),
        (2, "key", "2 keys"),
        (2, "class", "2 classes"),
        (3, "batch", "3 batches"),
    ],
)
def test_plural(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.21, "3.2 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7500, "2 h 05 min"),
        (71 * 3600 + 59 * 60, "71 h 59 min"),
        (3 * 86_400, "3 days"),
        (4308 * 3600 + 47 * 60, "180 days"),
    ],
)
def test_durations_are_told_in_what_people_plan_by(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a fault", "a fault."), ("a fault. ", "a fault."), ("a comma?", "a comma?"), (OSError("a fault.."), "a fault.")],
)
def test_what_others_say_ends_once(text: object, sentence: str) -> None:
    assert ended(text) == sentence


@pytest.mark.parametrize(
    ("name", "candidates", "near"),
    [
        ("gpu", ["cpu", "auto"], []),
        ("cpux", ["cpu"], ["cpu"]),
        ("CPU", ["cpu"], ["cpu"]),
        ("cup", ["cpu"], ["cpu"]),
        ("", ["a"], []),
        ("fats", ["fast"], ["fast"]),
    ],
)
def test_only_what_is_alike_is_near(name: str, candidates: list[str], near: list[str]) -> None:
    assert nearest(name, candidates) == near
