"""What runs have scored, and their order by it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guie_core import UsageError
from guie_core.record import RunRecord
from guie_core.wording import did_you_mean, listing

TRAINED = "trained"  # the system that a run is about; others are what it is compared with
NOT_COMPARABLE = "Not all are of the same data and splits, so that not all can be compared"


@dataclass(frozen=True)
class Score:
    """The figures of one system; None where no query could be answered."""

    system: str
    augmented: bool
    values: dict[str, float | None]  # by metric, in the order of the experiment

    @property
    def label(self) -> str:
        """As tables call it."""
        return f"{self.system} (augmented)" if self.augmented else self.system


@dataclass(frozen=True)
class Selected:
    """The figure by which a run chose its checkpoint, on what is not reported on."""

    metric: str
    value: float
    epoch: int


def data_of(record: RunRecord) -> dict[str, str]:
    """What stands for the images of a run with their labels, and for their splits: scores on others answer other
    questions. What isn't known is left out, as the splits of a run that did not record them yet."""
    return {name: str(record.records[name]) for name in ("manifest", "splits") if name in record.records}


def same_data(runs: Iterable[Mapping[str, str]]) -> bool:
    """Whether runs were of the same data, each as `data_of` tells, as far as it is known."""
    told = list(runs)
    return all(len({each[name] for each in told if name in each}) <= 1 for name in ("manifest", "splits"))


def scores(record: RunRecord) -> list[Score]:
    """What a run reported, in the order of its report."""
    return [
        Score(
            str(each["system"]),
            bool(each["augmented"]),
            {key: value for key, value in each.items() if key not in ("system", "augmented", "dimension")},
        )
        for each in record.records.get("scores", ())
    ]


def headline(record: RunRecord, system: str = TRAINED) -> Score | None:
    """The score that a run is listed and ranked by: of what it exports, which is the trained system, with augmentation
    if there is any; or of another system in the same way."""
    return next((score for score in reversed(scores(record)) if score.system == system), None)


def selected(record: RunRecord) -> Selected | None:
    """The score that the run's checkpoint was chosen by; None before that."""
    found = record.records.get("selected")
    return None if found is None else Selected(str(found["metric"]), float(found["value"]), int(found["epoch"]))


@dataclass(frozen=True)
class Ranked:
    """A run and the figure it is ranked by."""

    record: RunRecord
    label: str
    value: float


def by_report(records: Sequence[RunRecord], metric: str | None, system: str) -> tuple[str, list[Ranked]]:
    """Runs by a reported metric of `system`, best first, and the metric: the first reported one unless named.

    Runs without that figure are left out.

    Raises UsageError: no run reports such a metric, or such a system.
    """
    _known("system", system, [score.system for record in records for score in scores(record)])
    found = [(record, score) for record in records if (score := headline(record, system))]
    metric = _known("metric", metric, [name for _, score in found for name in score.values])
    return metric, _ranked(
        Ranked(record, score.label, value) for record, score in found if (value := score.values.get(metric)) is not None
    )


def by_selection(records: Sequence[RunRecord], metric: str | None = None) -> tuple[str, list[Ranked]]:
    """Runs by the metric of selection, best first, and the metric: the first run's unless named.

    Raises UsageError: no run has chosen by that metric.
    """
    found = [(record, choice) for record in records if (choice := selected(record))]
    metric = _known("metric", metric, [choice.metric for _, choice in found])
    return metric, _ranked(
        Ranked(record, f"epoch {choice.epoch}", choice.value) for record, choice in found if choice.metric == metric
    )


def _ranked(found: Iterable[Ranked]) -> list[Ranked]:
    return sorted(found, key=lambda each: -each.value)  # of equals the one that began first


def _known(what: str, name: str | None, names: Sequence[str]) -> str:
    there = list(dict.fromkeys(names))
    if not there:
        raise UsageError("none of these runs has a score.")
    if name is None:
        return there[0]
    if name not in there:
        near = did_you_mean(name, there) or f" There are: {listing(there)}."
        raise UsageError(f"none of these runs has the {what} {name!r}.{near}")
    return name
