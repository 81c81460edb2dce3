"""Evaluations against a computation over Python lists, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from guie_core import GuieError, UsageError
from guie_train.retrieval import Evaluation, LeaveOneOut, Pairs, evaluate
from guie_train.retrieval.metrics import RPrecision

Table = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_], np.random.Generator]
CATEGORIES = np.array(["Animals", "Food & Drink", "<b>"])


@pytest.fixture
def table() -> Table:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, 150)
    centres = rng.standard_normal((40, 6))
    embeddings = (centres[labels] + 0.7 * rng.standard_normal((150, 6))).astype(np.float32)
    return embeddings, labels, CATEGORIES[labels % 3], rng


def naive_mp5(embeddings: NDArray[np.float32], labels: NDArray[np.int64], pairs: Pairs) -> dict[int, float | None]:
    scores: dict[int, float | None] = {}
    for q in pairs.queries.tolist():
        others = [j for j in pairs.index.tolist() if j != q]
        others.sort(key=lambda j: (float(((embeddings[q].astype(float) - embeddings[j].astype(float)) ** 2).sum()), j))
        right = [labels[j] == labels[q] for j in others]
        n = min(sum(right), 5)
        scores[q] = sum(right[:n]) / n if n else None
    return scores


def test_scores_are_the_definitions_over_all_distances(table: Table) -> None:
    embeddings, labels, categories, rng = table
    pairs = Pairs(rng.permutation(150)[:90], rng.permutation(150)[:100])  # some rows in both, some classes in one only
    expected = naive_mp5(embeddings, labels, pairs)
    result = evaluate(embeddings, labels, categories, pairs)
    answered = [value for value in expected.values() if value is not None]

    assert result.overall["mP@5"] == pytest.approx(np.mean(answered))
    assert result.unanswerable == list(expected.values()).count(None) > 0
    for value, query in zip(result.per_query["mP@5"], pairs.queries, strict=True):
        assert value == pytest.approx(expected[query], nan_ok=True) if expected[query] is not None else np.isnan(value)
    for category, figures in result.by_category.items():
        own = [v for q, v in expected.items() if v is not None and categories[q] == category]
        assert figures["mP@5"] == pytest.approx(np.mean(own))
        asked = sum(categories[q] == category for q in expected)
        assert result.queries[category] == asked
        assert result.unanswerable_by_category.get(category, 0) == asked - len(own)
    assert list(result.by_category) == sorted(CATEGORIES)


def test_neighbours_are_rows_and_never_the_query_itself(table: Table) -> None:
    embeddings, labels, categories, _ = table
    embeddings[:] = 0  # everything ties
    pairs = LeaveOneOut("test").pairs(labels, ["test"] * 150)
    result = evaluate(embeddings, labels, categories, pairs)
    assert result.rows[0].tolist() == [1, 2, 3, 4, 5]
    assert result.rows[3].tolist() == [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(result.relevant, labels[result.rows] == labels[:, None])


def test_evaluating_a_part_and_naming_its_rows_is_evaluating_the_whole(table: Table) -> None:
    embeddings, labels, categories, rng = table
    rows = np.sort(rng.permutation(150)[:80])
    whole = evaluate(embeddings, labels, categories, Pairs(rows, rows))
    part = evaluate(embeddings[rows], labels[rows], categories[rows], Pairs(np.arange(80), np.arange(80)))
    np.testing.assert_array_equal(part.in_rows(rows).rows, whole.rows)
    assert part.overall == whole.overall


def test_tensors_and_arrays_give_the_same(table: Table) -> None:
    embeddings, labels, categories, _ = table
    pairs = Pairs(np.arange(150), np.arange(150))
    tensor = torch.from_numpy(embeddings).requires_grad_()
    assert (
        evaluate(tensor, labels, categories, pairs).overall == evaluate(embeddings, labels, categories, pairs).overall
    )


def test_searches_as_deep_as_the_metrics_look(table: Table) -> None:
    embeddings, labels, categories, _ = table
    pairs = Pairs(np.arange(150), np.arange(150))
    result = evaluate(embeddings, labels, categories, pairs, metrics=("Recall@20", RPrecision()), k=3)
    assert set(result.overall) == {"Recall@20", "R-precision"}
    assert result.rows.shape == (150, 20)
    tiny = evaluate(embeddings[:3], labels[:3], categories[:3], Pairs(np.arange(3), np.arange(3)), metrics=["mP@5"])
    assert tiny.rows[:, 2:].tolist() == [[-1] * 3] * 3


def test_nothing_to_answer_is_nan_and_counted() -> None:
    result = evaluate(np.eye(3, dtype=np.float32), [0, 1, 2], ["x"] * 3, Pairs(np.arange(3), np.arange(3)))
    assert np.isnan(result.overall["mP@5"])
    assert result.unanswerable == 3
    assert result.unanswerable_by_category == {"x": 3}


def test_is_written_and_read_back(table: Table, tmp_path: Path) -> None:
    embeddings, labels, categories, _ = table
    result = evaluate(embeddings, labels, categories, Pairs(np.arange(0, 150, 2), np.arange(60)))
    result.write(tmp_path / "0", name="trained", dimension=6)
    again, about = Evaluation.read(tmp_path / "0")
    assert about == {"name": "trained", "dimension": 6}
    np.testing.assert_array_equal(again.rows, result.rows)
    np.testing.assert_array_equal(again.neighbours.distances, result.neighbours.distances)
    assert again.overall == result.overall
    assert again.by_category == result.by_category
    assert again.unanswerable_by_category == result.unanswerable_by_category
    summary = json.loads((tmp_path / "0" / "evaluation.json").read_text())
    assert summary["overall"] == result.overall
    assert summary["by_category"]["Animals"]["queries"] == result.queries["Animals"]


def test_damaged_and_later_files_are_explained(table: Table, tmp_path: Path) -> None:
    embeddings, labels, categories, _ = table
    evaluate(embeddings, labels, categories, Pairs(np.arange(9), np.arange(60))).write(tmp_path)
    with pytest.raises(GuieError, match="cannot be read"):
        Evaluation.read(tmp_path / "elsewhere")
    path = tmp_path / "evaluation.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GuieError, match=r"cannot be read .* run its stage again"):
        Evaluation.read(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"format": 2, "about": {}}')
    with pytest.raises(GuieError, match="has format 2"):
        Evaluation.read(tmp_path)


def test_errors_say_what_does_not_fit(table: Table) -> None:
    embeddings, labels, categories, _ = table
    every = Pairs(np.arange(150), np.arange(150))
    with pytest.raises(GuieError, match="150 embeddings, 149 labels"):
        evaluate(embeddings, labels[1:], categories, every)
    with pytest.raises(GuieError, match="no query"):
        evaluate(embeddings, labels, categories, Pairs(np.arange(0), np.arange(9)))
    with pytest.raises(GuieError, match="index is empty"):
        evaluate(embeddings, labels, categories, Pairs(np.arange(9), np.arange(0)))
    with pytest.raises(GuieError, match=r"index has rows 100 to 199; there are rows 0 to 149"):
        evaluate(embeddings, labels, categories, Pairs(np.arange(9), np.arange(100, 200)))
    with pytest.raises(GuieError, match="index has row 4 2 times"):
        evaluate(embeddings, labels, categories, Pairs(np.arange(9), np.array([4, 5, 4])))
    with pytest.raises(UsageError, match="'accuracy'"):
        evaluate(embeddings, labels, categories, every, metrics=["accuracy"])
