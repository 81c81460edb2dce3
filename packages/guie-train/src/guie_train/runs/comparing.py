"""What differs between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guie_core.experiment import differences
from guie_core.record import RunRecord

from .scores import data_of, scores, selected

ABSENT = "-"


@dataclass(frozen=True)
class Difference:
    """Something that isn't the same in all runs: what, and how it is in each of them."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class ScoreLine:
    """One figure in each run; None where it has none."""

    system: str
    metric: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    differing: dict[str, list[Difference]]  # by aspect, such as "settings"
    same: list[str]  # the other aspects
    shared: list[str]  # stages whose outputs are the same in all runs
    own: list[str]  # stages that all have, and not all with the same outputs
    lacking: dict[str, list[bool]]  # stages that not all have, and which do
    scores: list[ScoreLine]  # reported
    selection: list[ScoreLine]  # by which checkpoints were chosen, unless all runs have come to their report


def compare(records: Sequence[RunRecord]) -> Comparison:
    """Compare runs; of several executions of one, the last."""
    aspects = {
        "settings": [Difference(key, tuple(values)) for key, *values in _settings(records)],
        "profile": [
            Difference(key.removeprefix("profile."), tuple(values))
            for key, *values in differences(*(record.last.get("profile", {}) for record in records), where="profile")
        ],
        "versions": _facts([_versions(record) for record in records]),
        "plugins": _facts([_plugins(record) for record in records]),
        "git": _facts([_git(record) for record in records]),
        "machine": _facts([_machine(record) for record in records]),
        "data": [fact for fact in _facts([data_of(record) for record in records]) if not _unrecorded(fact)],
    }
    keys = [{str(s["name"]): str(s["key"]) for s in record.records.get("stages", ())} for record in records]
    names = list(dict.fromkeys(name for each in keys for name in each))
    everywhere = [name for name in names if all(name in each for each in keys)]
    shared = [name for name in everywhere if len({each[name] for each in keys}) == 1]
    return Comparison(
        differing={name: found for name, found in aspects.items() if found},
        same=[name for name, found in aspects.items() if not found],
        shared=shared,
        own=[name for name in everywhere if name not in shared],
        lacking={name: [name in each for each in keys] for name in names if name not in everywhere},
        scores=_scores(records),
        selection=[] if all(map(scores, records)) else _selection(records),
    )


def _settings(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    return differences(*(record.experiment["resolved"]["recipe"] for record in records))


def _facts(facts: Sequence[Mapping[str, Any]]) -> list[Difference]:
    found = []
    for what in dict.fromkeys(what for each in facts for what in each):
        values = tuple(str(each.get(what, ABSENT)) for each in facts)
        if len(set(values)) > 1:
            found.append(Difference(what, values))
    return found


def _unrecorded(fact: Difference) -> bool:
    """Whether runs differ by this alone that older ones did not record it."""
    return fact.what == "splits" and len({*fact.values} - {ABSENT}) == 1


def _versions(record: RunRecord) -> dict[str, str]:
    """Without those of plugins, which are told as such."""
    own = {plugin["distribution"] for plugin in record.last.get("plugins", ())}
    versions: dict[str, str] = record.last.get("versions", {})
    return {"python": record.last.get("python", ABSENT)} | {k: v for k, v in versions.items() if k not in own}


def _plugins(record: RunRecord) -> dict[str, str]:
    return {each["plugin"]: f"{each['distribution']} {each['version']}" for each in record.last.get("plugins", ())}


def _git(record: RunRecord) -> dict[str, str]:
    git = record.last.get("git")
    if not git:
        return {"commit": "not in a repository"}
    return {"commit": git["commit"], "files changed since": "yes" if git["changed"] else "no"}


def _machine(record: RunRecord) -> dict[str, str]:
    return {key: str(value) for key, value in record.last.get("machine", {}).items()}


def _scores(records: Sequence[RunRecord]) -> list[ScoreLine]:
    found = [
        {(s.label, metric): value for s in scores(record) for metric, value in s.values.items()} for record in records
    ]
    lines = dict.fromkeys(line for each in found for line in each)
    return [ScoreLine(system, metric, tuple(each.get((system, metric)) for each in found)) for system, metric in lines]


def _selection(records: Sequence[RunRecord]) -> list[ScoreLine]:
    found = [{choice.metric: choice.value} if (choice := selected(record)) else {} for record in records]
    metrics = dict.fromkeys(metric for each in found for metric in each)
    return [ScoreLine("checkpoint", metric, tuple(each.get(metric) for each in found)) for metric in metrics]
