"""One HTML file that shows what a run found, to somebody who was not there.

It holds everything: pictures as data, curves as SVG, no scripts, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from guie_core import GuieError
from guie_core.wording import duration
from guie_datasets.inspecting.pages import write_page
from guie_datasets.inspecting.pictures import encode
from guie_train.retrieval import Evaluation

from .curves import charts
from .pictures import Example, choose, example

PICTURES = 1_400_000  # characters that pictures may take, so that the page stays below 2 MB
PURPOSES = {
    "train": "the head learns from them",
    "valid": "same classes, other images: is it learning by heart?",
    "select": "other classes: which epoch is kept",
    "test": "other classes, in no choice: all scores on this page",
}
EXPLAINED = {
    "mP": "of the first {k} neighbours, the share that shows the same class "
    "(fewer ranks count for a class that has fewer other images)",
    "MRR": "1 / rank of the first right neighbour, 0 if it is not among the first {k}",
    "Recall": "share of queries with a right neighbour among the first {k}",
    "mAP": "average precision over the first {k} neighbours",
}


@dataclass(frozen=True)
class System:
    """One way to embed images, and how well it retrieves."""

    name: str  # "raw features", "PCA-64", "trained"
    dimension: int
    augmented: bool  # with switched test-time augmentation
    result: Evaluation

    @property
    def scores(self) -> dict[str, Any]:
        """Its figures as `guie_train.stage.Stage.scores` tells them; a mean over no query is None."""
        means = self.result.overall.items()
        return {"system": self.name, "augmented": self.augmented, "dimension": self.dimension} | {
            name: None if math.isnan(mean) else round(mean, 6) for name, mean in means
        }


class Export(Protocol):
    """What an exporter found; guie_models.ExportReport is one."""

    @property
    def path(self) -> Path: ...
    @property
    def bytes(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def max_difference(self) -> float: ...
    @property
    def min_cosine(self) -> float: ...
    @property
    def top5_agreement(self) -> float: ...
    @property
    def speed(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def prepared(self) -> bool: ...


@dataclass(frozen=True)
class StageLine:
    """What became of a stage."""

    name: str
    seconds: float
    reused: bool
    summary: str = ""


@dataclass(frozen=True, eq=False)
class Images:
    """The rows that results speak of.

    Attributes:
        labels: [rows].
        splits: texts [rows].
        image: row -> uint8 [3, H, W]; called only for the rows that are shown.
        caption: row -> what it shows, "red-apple"; "" where nobody knows.
        detail: row -> what else is to be said of it, "drawn by Google"; "" for nothing.
    """

    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    image: Callable[[int], NDArray[np.uint8]]
    caption: Callable[[int], str] = lambda row: ""
    detail: Callable[[int], str] = lambda row: ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a report page says.

    Attributes:
        name: of the experiment.
        summary: the first line of its docstring.
        command: that makes the page again.
        systems: in the order of tables. They answer the same queries.
        images: the rows that the systems' results speak of.
        baseline: name of the system that others are compared with.
        trained: name of the system that the page is about.
        augmented: whether headline and pictures show it and the baseline with switched augmentation, as it is exported,
            if there is such a variant.
        metric: the figure of the headline; the first of the results' by default.
        curves: one a epoch: "epoch", "loss", "lr", and scores in the epochs where they were measured.
        chosen_epoch: of the checkpoint that was kept.
        exports: what the exporters found.
        stages: in order.
        profile: its name; machine: what it ran on; finished: when; versions: of what mattered; seconds: in all.
        seed: of the random examples.
        pictures: examples under each heading.
    """

    systems: Sequence[System]
    images: Images
    name: str = ""
    command: str = ""
    summary: str = ""
    baseline: str = "raw features"
    trained: str = "trained"
    augmented: bool = True
    metric: str = ""
    curves: Sequence[Mapping[str, float]] = ()
    chosen_epoch: int | None = None
    exports: Sequence[Export] = ()
    stages: Sequence[StageLine] = ()
    profile: str = ""
    machine: str = ""
    finished: str = ""
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    pictures: int = 4

    def variant(self, name: str, augmented: bool) -> System | None:
        """The system of that name, in the wanted variant if it has it."""
        found = [system for system in self.systems if system.name == name]
        return next((system for system in found if system.augmented == augmented), found[0] if found else None)

    @property
    def worse(self) -> str:
        """That training made retrieval worse than the baseline is, in words; "" where it did not."""
        trained = self.variant(self.trained, self.augmented)
        baseline = trained and self.variant(self.baseline, trained.augmented)
        if not trained or not baseline:
            return ""
        metric = self.metric or next(iter(trained.result.per_query))
        after, before = trained.result.overall[metric], baseline.result.overall[metric]
        if not after < before:
            return ""
        return (
            f"Training made it worse: {metric} is {after:.3f}, and {before:.3f} with {baseline.name}. Most often there "
            "are too few classes or images to learn from, or too many epochs. experiments/own_images.py has a head for "
            "few classes"
        )


def render(report: Report, path: str | Path) -> Path:
    """Write the page to `path` and return it.

    Raises:
        GuieError: there is no system, they answer different queries, a metric is missing, or the disk is full.
    """
    filters: dict[str, Callable[..., str]] = {
        "number": _number,
        "signed": _signed,
        "duration": duration,
        "tiny": _tiny,
    }
    return write_page(path, "template.html", package="guie_train.report", filters=filters, **_Page(report).fields())


class _Page:
    """What the template is filled with."""

    def __init__(self, report: Report) -> None:
        self.report = report
        if not report.systems:
            raise GuieError("a report needs the results of one system at least")
        first = report.systems[0].result
        for system in report.systems[1:]:
            if not np.array_equal(system.result.pairs.queries, first.pairs.queries):
                raise GuieError(
                    f"{system.name} and {report.systems[0].name} answer different queries; compare like with like"
                )
        self.metrics = list(first.per_query)
        self.metric = report.metric or self.metrics[0]
        if self.metric not in self.metrics:
            raise GuieError(f"the results have no metric {self.metric!r}; they have {', '.join(self.metrics)}")
        self.trained = report.variant(report.trained, report.augmented) or report.systems[-1]
        self.baseline = report.variant(report.baseline, self.trained.augmented)
        if self.baseline is self.trained:
            self.baseline = None

    def fields(self) -> dict[str, Any]:
        report = self.report
        examples = self._examples()
        mentioned = [row for group in examples for shown in group["examples"] for row in _rows(shown)]
        return {
            "report": report,
            "metric": self.metric,
            "metrics": self.metrics,
            "explained": {name: _explained(name) for name in self.metrics if _explained(name)},
            "trained": self.trained,
            "baseline": self.baseline,
            "score": self.trained.result.overall[self.metric],
            "before": self.baseline.result.overall[self.metric] if self.baseline else None,
            "tested": self._tested(),
            "queries": len(self.trained.result.pairs.queries),
            "unanswerable": self.trained.result.unanswerable,
            "systems": self._systems(),
            "augmentation": any(system.augmented for system in report.systems),
            "categories": self._categories(),
            "groups": examples,
            "pictures": encode(mentioned, report.images.image, PICTURES),
            "charts": charts(report.curves, report.chosen_epoch),
            "splits": self._splits(),
            "classes": len(np.unique(report.images.labels)),
            "longest": max((stage.seconds for stage in report.stages if not stage.reused), default=0.0),
        }

    def _tested(self) -> str:
        """What the queries are, "300 unseen classes"."""
        images = self.report.images
        asked = np.unique(images.labels[self.trained.result.pairs.queries])
        known = np.isin(asked, images.labels[images.splits == "train"]).any()
        return f"{len(asked):,} {'' if known else 'unseen '}class{'' if len(asked) == 1 else 'es'}"

    def _systems(self) -> list[dict[str, Any]]:
        """Systems by name, each with its variants."""
        groups: dict[str, dict[str, Any]] = {}
        for system in self.report.systems:
            group = groups.setdefault(system.name, {"name": system.name, "dimension": system.dimension, "variants": []})
            overall = system.result.overall
            group["variants"].append({"augmented": system.augmented, "overall": overall, "score": overall[self.metric]})
        return list(groups.values())

    def _categories(self) -> dict[str, Any]:
        """A table of the headline's figure: a row a category, a column a system, and the gain of the trained one."""
        systems = self.report.systems
        scores = [system.result.by_category for system in systems]
        result = self.trained.result
        rows: list[dict[str, Any]] = []
        for category, count in result.queries.items():
            values = [score[category][self.metric] for score in scores]
            gain = None
            if self.baseline:
                gain = values[systems.index(self.trained)] - values[systems.index(self.baseline)]
                gain = None if math.isnan(gain) else gain
            finite = [value for value in values if not math.isnan(value)]
            rows.append(
                {
                    "name": category or "(none)",
                    "queries": count,
                    "unanswerable": result.unanswerable_by_category.get(category, 0),
                    "values": values,
                    "best": max(finite, default=None),
                    "gain": gain,
                }
            )
        widest = max((abs(row["gain"]) for row in rows if row["gain"] is not None), default=0) or 1
        return {"rows": rows, "widest": widest}

    def _examples(self) -> list[dict[str, Any]]:
        report, trained, baseline = self.report, self.trained, self.baseline
        chosen = choose(
            trained.result,
            baseline.result if baseline else None,
            report.images.labels,
            self.metric,
            count=report.pictures,
            seed=report.seed,
        )
        shown = ([(baseline.name, baseline.result)] if baseline else []) + [(trained.name, trained.result)]
        before = baseline.name if baseline else ""
        failed = int((trained.result.per_query[self.metric] == 0).sum())
        answered = int((trained.result.n_relevant > 0).sum())
        groups = [
            ("Typical", f"Drawn at random (seed {report.seed}), not picked.", chosen.typical),
            (
                "Where training helped most",
                f"The queries whose score grew most over {before}; picked, so these flatter.",
                chosen.gained,
            ),
            (
                "Still wrong",
                f"Nothing right among the ranks that count, as for {failed:,} of {answered:,} queries. "
                "Those whose nearest neighbour is closest: where the embedding is surest, and mistaken.",
                chosen.wrong,
            ),
        ]
        return [
            {"title": title, "text": text, "examples": [example(query, shown) for query in queries]}
            for title, text, queries in groups
            if queries
        ]

    def _splits(self) -> list[dict[str, Any]]:
        images = self.report.images
        names = [str(name) for name in np.unique(images.splits)]
        names.sort(key=lambda name: (list(PURPOSES).index(name) if name in PURPOSES else len(PURPOSES), name))
        return [
            {
                "name": name or "(none)",
                "images": int((images.splits == name).sum()),
                "classes": len(np.unique(images.labels[images.splits == name])),
                "purpose": PURPOSES.get(name, ""),
            }
            for name in names
        ]


def _explained(metric: str) -> str:
    """What a figure says, for those who don't know it; "" for figures of others."""
    stem, _, ranks = metric.rpartition("@")
    if metric == "Recall@1":
        return "share of queries whose nearest neighbour is right"
    return EXPLAINED[stem].format(k=ranks) if stem in EXPLAINED and ranks.isdecimal() else ""


def _rows(shown: Example) -> list[int]:
    return [shown.row, *(neighbour.row for answer in shown.answers for neighbour in answer.neighbours)]


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 3) -> str:
    if value is None or math.isnan(value):
        return "\u2013"
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def _tiny(value: float) -> str:
    """A small difference, "3·10⁻⁷"."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(value))
    if exponent >= -2:
        return f"{value:.3g}"
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value / 10.0**exponent:.1f}·10{power}"
