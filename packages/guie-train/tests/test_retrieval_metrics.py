"""Figures of retrieval against their definitions, written out over Python lists."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guie_core import UsageError
from guie_train.retrieval import metric, metrics
from guie_train.retrieval.metrics import (
    MeanAveragePrecisionAt,
    MeanAveragePrecisionAtR,
    MeanPrecisionAt,
    Metric,
    RecallAt,
    ReciprocalRankAt,
    RPrecision,
)


def mp(hits: list[bool], n: int, k: int) -> float:
    counted = min(n, k)
    return sum(hits[j - 1] for j in range(1, counted + 1)) / counted


def mrr(hits: list[bool], n: int, k: int) -> float:
    for rank, hit in enumerate(hits[:k], 1):
        if hit:
            return 1 / rank
    return 0.0


def recall(hits: list[bool], n: int, k: int) -> float:
    return 1.0 if True in hits[:k] else 0.0


def average_precision(hits: list[bool], n: int, k: int) -> float:
    return sum(hits[: j + 1].count(True) / (j + 1) for j in range(k) if hits[j]) / min(n, k)


def map_at_r(hits: list[bool], n: int, k: int) -> float:
    return average_precision(hits, n, n)


def r_precision(hits: list[bool], n: int, k: int) -> float:
    return hits[:n].count(True) / n


Make = Callable[[int], Metric]
Definition = Callable[[list[bool], int, int], float]
DEFINITIONS: dict[Make, Definition] = {
    MeanPrecisionAt: mp,
    ReciprocalRankAt: mrr,
    RecallAt: recall,
    MeanAveragePrecisionAt: average_precision,
    lambda k: MeanAveragePrecisionAtR(): map_at_r,
    lambda k: RPrecision(): r_precision,
}
NAMES = ["mP", "MRR", "Recall", "mAP", "MAP@R", "R-precision"]

RANKS = 12


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[list[bool]], list[int]]:
    rows = draw(st.lists(st.lists(st.booleans(), min_size=RANKS, max_size=RANKS), min_size=1, max_size=8))
    counts = [draw(st.integers(sum(row), max(sum(row), RANKS))) for row in rows]
    return rows, counts


@pytest.mark.parametrize(("make", "definition"), DEFINITIONS.items(), ids=NAMES)
@given(answer=answers(), k=st.integers(1, RANKS))
def test_is_what_its_definition_says(
    make: Make, definition: Definition, answer: tuple[list[list[bool]], list[int]], k: int
) -> None:
    rows, counts = answer
    found = make(k)(np.array(rows), np.array(counts))
    assert found.dtype == np.float64
    for value, hits, n in zip(found, rows, counts, strict=True):
        if n == 0:
            assert math.isnan(value)
        else:
            assert value == pytest.approx(definition(hits, n, k), abs=1e-12)


@pytest.mark.parametrize("make", DEFINITIONS, ids=NAMES)
def test_a_perfect_answer_is_one_and_none_is_zero(make: Make) -> None:
    for n in (1, 3, RANKS):
        score = make(5)
        assert score([[rank < n for rank in range(RANKS)]], [n]) == [1.0]
        assert score([[False] * RANKS], [n]) == [0.0]


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(metrics)
    assert results.attempted >= 12
    assert results.failed == 0


@pytest.mark.parametrize(("name", "ranks"), [("mP@5", 5), ("Recall@10", 10), ("mAP@100", 100), ("MRR@1", 1)])
def test_names_are_read_and_written(name: str, ranks: int) -> None:
    found = metric(name)
    assert found.name == name
    assert found.k == ranks
    assert found.ranks(np.array([3, 700])) == ranks


def test_metrics_at_r_look_as_deep_as_the_largest_class() -> None:
    assert RPrecision().ranks(np.array([3, 700, 0])) == 700


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UsageError, match=r"metric 'mp@5'[\s\S]*mP@k"):
        metric("mp@5")
    with pytest.raises(UsageError, match="metric 'Accuracy'"):
        metric("Accuracy")
    with pytest.raises(UsageError, match=r"mP@5 for example"):
        metric("mP@k")
    with pytest.raises(UsageError, match=r"mP@0 looks at no rank"):
        metric("mP@0")


def test_shapes_and_counts_are_checked() -> None:
    score = MeanPrecisionAt(5)
    with pytest.raises(UsageError, match="looks at 5 ranks; only 3 are given"):
        score([[True, False, False]], [2])
    with pytest.raises(UsageError, match=r"relevant must be \[queries, ranks\]"):
        score([True] * 5, [2])
    with pytest.raises(UsageError, match=r"not \[1, 5\] and \[2\]"):
        score([[True] * 5], [5, 5])
    with pytest.raises(UsageError, match="query 1 has 2 hits, yet n_relevant says 1"):
        score([[False] * 5, [True, True, False, False, False]], [1, 1])
