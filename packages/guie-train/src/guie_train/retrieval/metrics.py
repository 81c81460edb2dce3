"""Figures of retrieval, one value a query.

A metric is called with `relevant`, bool [Q, k], whether the neighbour at each rank is right, and `n_relevant`, int [Q],
how many right images the index holds for the query; it gives float64 [Q]. A query without any right image in the index
cannot be answered and gets nan: means leave it out, and its count is shown beside them.

Below, rel(j) is 1 if the neighbour at rank j = 1, 2, ... is right, else 0, and n is the query's `n_relevant`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guie_core import Problem, UsageError
from guie_core.registry import load, lookup

Values = NDArray[np.float64]


class Metric(ABC):
    """One figure for each query."""

    k: int | None  #: ranks that it looks at; None: as many as the query has right images

    @property
    @abstractmethod
    def name(self) -> str:
        """As it is written in experiments and tables, "mP@5"."""

    @abstractmethod
    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        """[Q], where all n_relevant are above 0 and `relevant` has all ranks that the metric looks at."""

    def ranks(self, n_relevant: NDArray[np.int64]) -> int:
        """How many neighbours the metric needs for these queries."""
        return self.k if self.k is not None else int(n_relevant.max(initial=1))

    def __call__(self, relevant: ArrayLike, n_relevant: ArrayLike) -> Values:
        """float64 [Q] from bool [Q, k] and int [Q]; nan where n_relevant is 0.

        Raises:
            UsageError: shapes that don't fit, too few ranks, or more hits than there are right images.
        """
        hits = np.asarray(relevant, dtype=bool)
        count = np.asarray(n_relevant, dtype=np.int64)
        if hits.ndim != 2 or count.shape != hits.shape[:1]:
            raise UsageError(
                f"{self.name}: relevant must be [queries, ranks] and n_relevant [queries], "
                f"not {list(hits.shape)} and {list(count.shape)}"
            )
        needed = self.ranks(count)
        if hits.shape[1] < needed:
            raise UsageError(f"{self.name} looks at {needed} ranks; only {hits.shape[1]} are given")
        if (hits.sum(1) > count).any():
            query = int((hits.sum(1) > count).argmax())
            raise UsageError(
                f"{self.name}: query {query} has {hits[query].sum()} hits, yet n_relevant says {count[query]}; "
                "a prediction that is repeated counts once, and the query itself doesn't count"
            )
        result = np.full(len(hits), np.nan)
        asked = count > 0
        result[asked] = self.score(hits[asked, :needed], count[asked])
        return result


@dataclass(frozen=True)
class _At(Metric):
    k: int = 5
    label: ClassVar[str]

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"{self.name} looks at no rank; the number after the @ is 1 or more")

    @property
    def name(self) -> str:
        return f"{self.label}@{self.k}"


@dataclass(frozen=True)
class MeanPrecisionAt(_At):
    """mP@k of the Google Universal Image Embedding Challenge; its mean over the queries is the contest's score.

        mP@k = 1 / min(n, k) * sum of rel(j) over j = 1..min(n, k)

    Only the first min(n, k) ranks count: unlike precision@k, a query with few right images can reach 1, and hits behind
    rank min(n, k) count nothing.

    >>> metric = MeanPrecisionAt(5)
    >>> metric([[1, 0, 1, 0, 0]], [3])  # ranks 1 to 3 count: 2 of 3
    array([0.66666667])
    >>> metric([[0, 1, 0, 0, 0]], [1])  # only rank 1 counts
    array([0.])
    >>> metric([[1, 1, 0, 1, 1]], [40])
    array([0.8])
    >>> metric([[0, 0, 0, 0, 0]], [0])  # cannot be answered
    array([nan])
    """

    label: ClassVar[str] = "mP"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        counted = np.minimum(n_relevant, self.k)
        within = np.arange(relevant.shape[1]) < counted[:, None]
        return np.asarray((relevant & within).sum(1) / counted, np.float64)


@dataclass(frozen=True)
class ReciprocalRankAt(_At):
    """MRR@k: the reciprocal rank of the first hit, 0 if there is none among the first k.

        MRR@k = 1 / min {j <= k: rel(j) = 1}

    What the 5th place's own validation calls MAP5 is MRR@5 (arXiv 2210.09495; 5th place, point 8).

    >>> ReciprocalRankAt(5)([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], [2, 2])
    array([0.33333333, 0.        ])
    """

    label: ClassVar[str] = "MRR"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        return np.asarray(relevant.any(1) / (relevant.argmax(1) + 1), np.float64)


@dataclass(frozen=True)
class RecallAt(_At):
    """Recall@k as metric learning uses the word (also CMC@k, hit rate): 1 if one of the first k is right.

        Recall@k = max of rel(j) over j = 1..k

    It is not the share of the n right images that are found.

    >>> RecallAt(1)([[1, 0], [0, 1]], [3, 3])
    array([1., 0.])
    >>> RecallAt(2)([[1, 0], [0, 1]], [3, 3])
    array([1., 1.])
    """

    label: ClassVar[str] = "Recall"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        return np.asarray(relevant.any(1), np.float64)


@dataclass(frozen=True)
class MeanAveragePrecisionAt(_At):
    """mAP@k: precision at each hit among the first k, over the hits that were possible there.

        mAP@k = 1 / min(n, k) * sum of rel(j) * P(j) over j = 1..k,   P(j) = 1/j * (rel(1) + ... + rel(j))

    Other definitions divide by n, or by the number of hits; with min(n, k) a perfect answer is 1 for any n.

    >>> MeanAveragePrecisionAt(5)([[1, 0, 1, 0, 0]], [2])  # (1/1 + 2/3) / 2
    array([0.83333333])
    """

    label: ClassVar[str] = "mAP"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        return np.asarray(_precision_at_hits(relevant) / np.minimum(n_relevant, self.k), np.float64)


@dataclass(frozen=True)
class MeanAveragePrecisionAtR(Metric):
    """MAP@R: average precision over the first R = n ranks (Musgrave et al., arXiv 2003.08505, section 3.2).

        MAP@R = 1 / n * sum of rel(j) * P(j) over j = 1..n,   P(j) = 1/j * (rel(1) + ... + rel(j))

    >>> MeanAveragePrecisionAtR()([[1, 0, 1, 1]], [3])  # (1/1 + 2/3) / 3
    array([0.55555556])
    """

    k = None
    name = "MAP@R"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        within = np.arange(relevant.shape[1]) < n_relevant[:, None]
        return np.asarray(_precision_at_hits(relevant & within) / n_relevant, np.float64)


@dataclass(frozen=True)
class RPrecision(Metric):
    """R-precision: the share of right images among the first R = n ranks.

        R-precision = 1 / n * sum of rel(j) over j = 1..n

    >>> RPrecision()([[1, 0, 1, 1]], [3])  # ranks 1 to 3 count: 2 of 3
    array([0.66666667])
    """

    k = None
    name = "R-precision"

    def score(self, relevant: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> Values:
        within = np.arange(relevant.shape[1]) < n_relevant[:, None]
        return np.asarray((relevant & within).sum(1) / n_relevant, np.float64)


def metric(name: str) -> Metric:
    """The metric called `name`: "mP@5" is the component "mP@k" with k = 5, "R-precision" the component of that name.

    Raises:
        UsageError: there is no such metric.

    >>> metric("mP@5")
    MeanPrecisionAt(k=5)
    """
    stem, at, ranks = name.rpartition("@")
    if at and ranks.isdecimal():
        lookup("metrics", f"{stem}@k", f"metric {name!r}")
        try:
            found: Metric = load("metrics", f"{stem}@k")(k=int(ranks))
        except ValueError as error:
            raise UsageError(f"metric {name!r}: {error}") from error
        return found
    lookup("metrics", name, f"metric {name!r}")
    if name.endswith("@k"):
        raise UsageError(f"metric {name!r}: say how many ranks in place of the k, {name[:-1]}5 for example")
    found = load("metrics", name)()
    return found


def refused(name: str, where: str) -> list[Problem]:
    """What is wrong with the name of a metric that an experiment gives at the key `where`; nothing, as a rule."""
    try:
        metric(name)
    except UsageError as error:
        first, _, rest = str(error).partition("\n")
        return [Problem(where, first, rest)]
    return []


def _precision_at_hits(relevant: NDArray[np.bool_]) -> Values:
    """[Q]: the sum over hits of the precision at their rank."""
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    return np.asarray(np.where(relevant, precision, 0.0).sum(1), np.float64)
