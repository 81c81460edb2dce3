"""Which queries a report shows, and what is shown of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guie_train.retrieval import Evaluation


@dataclass(frozen=True)
class Neighbour:
    """One answer."""

    row: int
    rank: int
    distance: float
    right: bool
    counts: bool  # whether its rank is one of the first min(n, 5) that mP@5 looks at


@dataclass(frozen=True)
class Answer:
    """What one system answers to a query."""

    system: str
    neighbours: tuple[Neighbour, ...]
    hits: int  # among the ranks that count
    of: int


@dataclass(frozen=True)
class Example:
    """A query, and what the systems answer."""

    row: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Chosen:
    """Positions of queries to show, none of them twice."""

    gained: list[int]  # those that training helped most
    typical: list[int]  # drawn at random
    wrong: list[int]  # nothing right among the ranks that count, the most confident first


def choose(
    trained: Evaluation,
    baseline: Evaluation | None,
    labels: NDArray[np.int64],
    metric: str,
    *,
    count: int = 4,
    seed: int = 0,
) -> Chosen:
    """Pick up to `count` queries for each heading, the same for the same results and seed.

    Under a heading each is of another class; classes and, where scores decide, categories are as many as can be.

    Args:
        trained: what is shown.
        baseline: what it is compared with, on the same queries; None leaves `gained` empty.
        labels: [rows].
        metric: the figure by which queries are compared.
    """
    score = trained.per_query[metric]
    answered = ~np.isnan(score)
    order = np.random.default_rng(seed).permutation(len(score))
    order = order[answered[order]]
    shown: set[int] = set()  # classes, under any heading
    used: set[int] = set()  # queries

    def first(candidates: NDArray[np.int64], spread: bool = True) -> list[int]:
        found: list[int] = []
        classes: set[int] = set()
        seen: set[str] = set()
        # best are other categories and classes that are nowhere yet; where they run out, those not under this heading
        for fresh_category, fresh_class in ((spread, True), (False, True), (False, False)):
            for query in candidates.tolist():
                label, category = int(labels[trained.pairs.queries[query]]), str(trained.categories[query])
                known = label in (shown if fresh_class else classes) or query in used
                if len(found) < count and not known and not (fresh_category and category in seen):
                    found.append(query)
                    used.add(query)
                    classes.add(label)
                    shown.add(label)
                    seen.add(category)
        return found

    typical = first(order, spread=False)
    gained: list[int] = []
    if baseline is not None:
        gain = score - baseline.per_query[metric]
        best = order[np.argsort(-gain[order], kind="stable")]  # equals stay in their random order
        gained = first(best[gain[best] > 0])
    nearest = trained.neighbours.distances[:, 0]
    lost = order[score[order] == 0]
    wrong = first(lost[np.argsort(nearest[lost], kind="stable")])
    return Chosen(gained, typical, wrong)


def example(query: int, systems: Sequence[tuple[str, Evaluation]], ranks: int = 5) -> Example:
    """What each of the systems (name, result) answers to query number `query`."""
    answers = []
    for name, result in systems:
        counted = int(min(result.n_relevant[query], ranks))
        neighbours = tuple(
            Neighbour(int(row), rank, float(distance), bool(right), rank <= counted)
            for rank, (row, distance, right) in enumerate(
                zip(result.rows[query], result.neighbours.distances[query], result.relevant[query], strict=True), 1
            )
            if rank <= ranks and row >= 0
        )
        hits = sum(neighbour.right for neighbour in neighbours if neighbour.counts)
        answers.append(Answer(name, neighbours, hits, counted))
    return Example(int(systems[0][1].pairs.queries[query]), tuple(answers))
