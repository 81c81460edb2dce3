"""Which queries are shown."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from guie_train.report.pictures import choose, example
from guie_train.retrieval import Evaluation, Pairs, evaluate

Results = tuple[Evaluation, Evaluation, NDArray[np.int64]]


@pytest.fixture(scope="module")
def results() -> Results:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 60, 300)
    labels[:5] = np.arange(100, 105)  # alone in their class
    centres = rng.standard_normal((105, 8))
    categories = np.array(["a", "b", "c", "d", "e"])[labels % 5]
    pairs = Pairs(rng.permutation(300), np.arange(300))
    good, bad = (
        evaluate(
            (centres[labels] + noise * rng.standard_normal((300, 8))).astype(np.float32), labels, categories, pairs
        )
        for noise in (0.5, 1.0)
    )
    return good, bad, labels


def test_chooses_by_gain_by_chance_and_by_failure(results: Results) -> None:
    good, bad, labels = results
    chosen = choose(good, bad, labels, "mP@5")
    before, after = bad.per_query["mP@5"], good.per_query["mP@5"]
    assert len(chosen.typical) == len(chosen.gained) == len(chosen.wrong) == 4
    others = [
        q
        for q in range(300)
        if labels[good.pairs.queries[q]] not in {labels[good.pairs.queries[t]] for t in chosen.typical}
    ]
    assert after[chosen.gained[0]] - before[chosen.gained[0]] == np.nanmax(after[others] - before[others])
    assert all(after[chosen.gained] > before[chosen.gained])
    assert all(after[chosen.wrong] == 0)
    picked = chosen.typical + chosen.gained + chosen.wrong
    assert not np.isnan(after[picked]).any()
    assert len({int(labels[good.pairs.queries[query]]) for query in picked}) == 12
    for group in (chosen.gained, chosen.wrong):
        assert len({str(good.categories[query]) for query in group}) == 4


def test_choice_follows_from_results_and_seed(results: Results) -> None:
    good, bad, labels = results
    assert choose(good, bad, labels, "mP@5", seed=1) == choose(good, bad, labels, "mP@5", seed=1)
    assert choose(good, bad, labels, "mP@5", seed=1).typical != choose(good, bad, labels, "mP@5", seed=2).typical


def test_shows_fewer_where_there_are_fewer(results: Results) -> None:
    good, _, labels = results
    chosen = choose(good, good, labels, "mP@5", count=500)
    assert chosen.gained == []
    assert len(chosen.typical) == len(np.unique(labels[good.pairs.queries[good.n_relevant > 0]]))
    assert not set(chosen.typical) & set(chosen.wrong)
    assert choose(good, None, labels, "mP@5").gained == []


def test_an_example_tells_what_the_evaluation_found(results: Results) -> None:
    good, bad, labels = results
    for query in range(0, 300, 7):
        shown = example(query, [("raw", bad), ("trained", good)])
        assert shown.row == good.pairs.queries[query]
        assert [answer.system for answer in shown.answers] == ["raw", "trained"]
        for answer, result in zip(shown.answers, (bad, good), strict=True):
            assert [n.row for n in answer.neighbours] == result.rows[query].tolist()
            assert [n.right for n in answer.neighbours] == [
                labels[n.row] == labels[shown.row] for n in answer.neighbours
            ]
            assert [n.counts for n in answer.neighbours] == [
                n.rank <= result.n_relevant[query] for n in answer.neighbours
            ]
            if answer.of:
                assert answer.hits / answer.of == pytest.approx(result.per_query["mP@5"][query])
