"""How well embeddings retrieve: neighbours, figures a query, and their means overall and by category."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guie_core import GuieError
from guie_core.files import atomic_write

from .metrics import Metric, metric
from .protocols import Pairs
from .search import Matrix, Neighbours, search

if TYPE_CHECKING:
    import torch

FORMAT = 1
NEIGHBOURS = 5  # of each query that are kept


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What became of each query, and the means.

    Attributes:
        pairs: row numbers of queries [Q] and index [N].
        neighbours: [Q, k], positions in `pairs.index`; :attr:`rows` has row numbers.
        relevant: bool [Q, k], whether a neighbour has the query's label.
        n_relevant: int64 [Q], images of the query's label in the index, itself not counted.
        categories: texts [Q], of the queries.
        per_query: metric name -> float64 [Q]; nan for queries that cannot be answered.
    """

    pairs: Pairs
    neighbours: Neighbours
    relevant: NDArray[np.bool_]
    n_relevant: NDArray[np.int64]
    categories: NDArray[np.str_]
    per_query: dict[str, NDArray[np.float64]]

    @property
    def rows(self) -> NDArray[np.int64]:
        """int64 [Q, k]: row numbers of the neighbours, -1 where there are fewer."""
        found = self.neighbours.indices
        return np.where(found >= 0, self.pairs.index[found], -1)

    @property
    def overall(self) -> dict[str, float]:
        """Metric name -> mean over the queries that can be answered; nan if there is none."""
        return {name: _mean(values) for name, values in self.per_query.items()}

    @property
    def by_category(self) -> dict[str, dict[str, float]]:
        """Category -> metric name -> mean, in alphabetical order."""
        return {
            str(category): {name: _mean(values[self.categories == category]) for name, values in self.per_query.items()}
            for category in np.unique(self.categories)
        }

    @property
    def queries(self) -> dict[str, int]:
        """Category -> number of queries, whether they can be answered or not."""
        return _counts(self.categories)

    @property
    def unanswerable(self) -> int:
        """How many queries have no right image in the index; means leave them out."""
        return int((self.n_relevant == 0).sum())

    @property
    def unanswerable_by_category(self) -> dict[str, int]:
        """Category -> number of queries that have no right image in the index; categories without any are left out."""
        return _counts(self.categories[self.n_relevant == 0])

    def in_rows(self, rows: ArrayLike) -> Evaluation:
        """The same with row r of the evaluated table called ``rows[r]``: back to the rows of a larger table."""
        names = np.asarray(rows, dtype=np.int64)
        return replace(self, pairs=Pairs(names[self.pairs.queries], names[self.pairs.index]))

    def write(self, folder: str | Path, **about: Any) -> None:
        """Write `evaluation.json`, to be read by people too, with `about` in it, and `evaluation.npz` to `folder`."""
        folder = Path(folder)
        arrays: dict[str, NDArray[Any]] = {
            "queries": self.pairs.queries,
            "index": self.pairs.index,
            "indices": self.neighbours.indices,
            "distances": self.neighbours.distances,
            "relevant": self.relevant,
            "n_relevant": self.n_relevant,
            "categories": self.categories,
        }
        arrays |= {f"metric {name}": values for name, values in self.per_query.items()}
        with atomic_write(folder / "evaluation.npz") as file:
            np.savez(file, allow_pickle=False, **arrays)
        summary = {
            "format": FORMAT,
            "about": about,
            "queries": len(self.pairs.queries),
            "index": len(self.pairs.index),
            "unanswerable": self.unanswerable,
            "overall": _plain(self.overall),
            "by_category": {
                category: {"queries": self.queries[category], **_plain(values)}
                for category, values in self.by_category.items()
            },
        }
        with atomic_write(folder / "evaluation.json", "w") as file:
            json.dump(summary, file, indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, folder: str | Path) -> tuple[Evaluation, dict[str, Any]]:
        """What :meth:`write` wrote, and its `about`.

        Raises:
            GuieError: it is not there, damaged, or of a later version.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
            version, about = summary["format"], dict(summary["about"])
            if version == FORMAT:
                with np.load(folder / "evaluation.npz", allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in arrays.files}
                return (
                    cls(
                        Pairs(found["queries"], found["index"]),
                        Neighbours(found["indices"], found["distances"]),
                        found["relevant"],
                        found["n_relevant"],
                        found["categories"],
                        {n.removeprefix("metric "): v for n, v in found.items() if n.startswith("metric ")},
                    ),
                    about,
                )
        except Exception as error:  # zip files fail in a dozen ways
            raise GuieError(f"the evaluation in {folder} cannot be read ({error}); run its stage again") from error
        raise GuieError(
            f"the evaluation in {folder} has format {version}, and this guie-train reads {FORMAT}; update it"
        )


def evaluate(
    embeddings: Matrix,
    labels: ArrayLike,
    categories: ArrayLike,
    pairs: Pairs,
    metrics: Sequence[str | Metric] = ("mP@5", "MRR@5"),
    k: int = NEIGHBOURS,
    *,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Find the neighbours of `pairs.queries` in `pairs.index` and score them.

    Distances are Euclidean between the embeddings as they are: normalise them first where the model's are meant to be.
    A query never finds its own row, and neighbours that are equally far stand in the order of their rows.

    Args:
        embeddings: [N, E], numpy or torch.
        labels: ints [N]; what has the query's label is right.
        categories: texts [N]; figures are also given for each.
        pairs: who asks and who answers, as row numbers.
        metrics: names such as "mP@5", or metrics.
        k: neighbours to keep; more are searched where a metric looks at more ranks, and kept then.
        device: where the search runs.

    Raises:
        UsageError: there is no such metric.
        GuieError: there is no query, lengths that differ, or what :func:`search` raises.
    """
    scorers = [metric(name) if isinstance(name, str) else name for name in metrics]
    label, category = np.asarray(labels), np.asarray(categories)
    if not len(embeddings) == len(label) == len(category):
        raise GuieError(
            f"{len(embeddings)} embeddings, {len(label)} labels and {len(category)} categories: "
            "each row needs one of each"
        )
    if not len(pairs.queries):
        raise GuieError("there is no query to evaluate")
    if not len(pairs.index):
        raise GuieError("the index is empty, so no query can be answered")
    for name, numbers in (("queries", pairs.queries), ("index", pairs.index)):
        if not 0 <= numbers.min() <= numbers.max() < len(label):
            raise GuieError(
                f"the {name} has rows {numbers.min()} to {numbers.max()}; there are rows 0 to {len(label) - 1}"
            )
    times = np.bincount(pairs.index, minlength=len(label))
    if times.max() > 1:
        raise GuieError(f"the index has row {times.argmax()} {times.max()} times; a repeated answer would count twice")

    asked = label[pairs.queries]
    classes, inverse = np.unique(label, return_inverse=True)
    there = np.bincount(inverse[pairs.index], minlength=len(classes))
    n_relevant = there[inverse[pairs.queries]] - times[pairs.queries]  # itself doesn't count

    depth = max([k, *(scorer.ranks(n_relevant) for scorer in scorers)])
    neighbours = search(
        embeddings[pairs.queries],
        embeddings[pairs.index],
        depth,
        query_ids=pairs.queries,
        index_ids=pairs.index,
        device=device,
    )
    found = neighbours.indices
    relevant = (found >= 0) & (label[pairs.index[found]] == asked[:, None])
    return Evaluation(
        pairs,
        neighbours,
        relevant,
        n_relevant,
        category[pairs.queries].astype(str),
        {scorer.name: scorer(relevant, n_relevant) for scorer in scorers},
    )


def _mean(values: NDArray[np.float64]) -> float:
    answered = values[~np.isnan(values)]
    return float(answered.mean()) if len(answered) else float("nan")


def _counts(categories: NDArray[np.str_]) -> dict[str, int]:
    names, counts = np.unique(categories, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def _plain(figures: dict[str, float]) -> dict[str, float | None]:
    """With None for nan, which JSON doesn't know."""
    return {name: None if np.isnan(value) else value for name, value in figures.items()}
