"""Runs in words: lists, one run in full, several beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from guie_core.record import RunRecord
from guie_core.tables import table
from guie_core.wording import duration, listing, plural, shown, size

from .comparing import Comparison, Difference, ScoreLine
from .finding import name_of
from .outputs import LINKS
from .scores import headline, scores, selected

REPORT, EXPORT = "report.html", "export"


def as_json(record: RunRecord, folder: Path) -> dict[str, Any]:
    """One run of a list, for machines: times in ISO 8601 and seconds."""
    choice, score = selected(record), headline(record)
    return {
        "name": name_of(record.path, folder),
        "path": str(record.path),
        "experiment": record.experiment["name"],
        "set": record.experiment.get("overrides", []),
        "status": record.status,
        "started": record.started,
        "seconds": record.seconds,
        "profile": profile_of(record),
        "selection": {"metric": choice.metric, "value": choice.value, "epoch": choice.epoch} if choice else None,
        "report": {"system": score.label, **score.values} if score else None,
    }


def profile_of(record: RunRecord) -> str:
    """The name of the profile of the last execution."""
    return str(record.last.get("profile", {}).get("name", "-"))


def list_lines(records: Sequence[RunRecord], folder: Path) -> list[str]:
    """A table of runs."""
    rows = [("run", "status", "started", "profile", "time", "selection", "reported")]
    for record in records:
        choice, score = selected(record), headline(record)
        metric, value = next(iter(score.values.items()), ("", None)) if score else ("", None)
        rows.append(
            (
                name_of(record.path, folder),
                record.status,
                moment(record.started),
                profile_of(record),
                _took(record),
                f"{choice.metric} {choice.value:.3f}" if choice else "-",
                f"{metric} {value:.3f}" if value is not None else "-",
            )
        )
    return table(rows, indent="", width=1000).splitlines()


def _took(record: RunRecord) -> str:
    return duration(record.seconds) if record.seconds else "-"


def moment(iso: str) -> str:
    """A time of a record as a clock on the wall would show it."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso or "-"


def show_lines(record: RunRecord, folder: Path) -> Iterator[str]:
    """All there is to say of a run."""
    last, experiment = record.last, record.experiment
    yield f"{name_of(record.path, folder)}: {record.status}"
    if error := last.get("error"):
        yield table([(line,) for line in str(error).splitlines()], width=1000)
    facts = [("experiment", f"{experiment['path']}, digest {experiment['digest']}")]
    facts += [("set", override) for override in experiment.get("overrides", [])]
    times = moment(record.started)
    if record.seconds:  # of executions that have ended
        times += f", took {duration(record.seconds)}"
    if len(record.executions) > 1:
        times += (
            f" in {plural(len(record.executions), 'execution')}, the last on {moment(str(last.get('started', '')))}"
        )
    facts += [("started", times), ("command", str(last.get("command", "-"))), ("profile", _profile(last))]
    facts += [("machine", _machine(last)), ("git", _git(last.get("git")))]
    facts += [("manifest", str(record.records.get("manifest", "-"))), ("seeds", listing(seeds(record), 100))]
    facts += [("plugins", listing(_plugins(last), 100))]
    facts += [("failed plugin", str(failure)) for failure in last.get("failed_plugins", ())]
    facts += [("versions", listing((f"{name} {version}" for name, version in last.get("versions", {}).items()), 100))]
    facts += [("report", shown(path)) for path in [record.path / REPORT] if path.exists()]
    facts += [("model", f"{shown(path)}  {size(path.stat().st_size)}") for path in models(record)]
    yield table(facts, wrap=1)

    if rows := _stages(record):
        yield "\nstages"
        yield table(rows, wrap=3)
    if choice := selected(record):
        yield f"\nselection: {choice.metric} {choice.value:.4f} at epoch {choice.epoch}"
    if found := scores(record):
        yield "\nscores"
        metrics = list(dict.fromkeys(metric for score in found for metric in score.values))
        header = ("", *(f"{metric:>8}" for metric in metrics))
        yield table([header, *((s.label, *(_number(s.values.get(m)) for m in metrics)) for s in found)], wrap=0)
    yield "\nsettings"
    yield table([(f"{key} = {value!r}",) for key, value in leaves(experiment["resolved"]["recipe"], "recipe")])


def _stages(record: RunRecord) -> list[tuple[str, str, str, str]]:
    """A row for each stage that is done, and for the one that failed."""
    failed = record.records.get("failed") if record.status == "failed" else None
    rows = [
        (s["name"], s["key"], "reused" if s.get("reused") else duration(s.get("seconds", 0.0)), s.get("summary", ""))
        for s in record.records.get("stages", ())
        if s["name"] != failed
    ]
    planned = record.records.get("planned", ())
    return rows + [(s["name"], s["key"], "failed", "") for s in planned if s["name"] == failed]


def leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The settings in `value`, each by its own key."""
    inner = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
    if not inner:
        yield where, value
    for key, item in inner.items():
        yield from leaves(item, f"{where}.{key}")


def seeds(record: RunRecord) -> list[str]:
    """Every seed among the arguments of the stages that the run has done, such as "head seed 0"."""
    found = []
    for stage in record.records.get("stages", ()):
        name = str(stage["name"])
        try:
            about = json.loads((record.path / LINKS / name.replace(" ", "-") / "stage.json").read_text())
        except (OSError, ValueError):  # taken away since
            continue
        for key, value in leaves(about.get("arguments", {}), name):
            setting = key.removeprefix(f"{name}.")
            if setting.rpartition(".")[2].endswith("seed"):
                found.append(f"{name} {setting} {value}")
    return found


def models(record: RunRecord) -> list[Path]:
    """The model files that the run has exported."""
    folder = record.path / LINKS / EXPORT
    return [path for path in sorted(folder.glob("*")) if path.is_file() and path.suffix != ".json"]


def _profile(execution: Mapping[str, Any]) -> str:
    profile = execution.get("profile", {})
    return f"{profile.get('name', '-')}, {profile.get('device', '-')}, {profile.get('dtype', '-')}"


def _machine(execution: Mapping[str, Any]) -> str:
    machine = execution.get("machine", {})
    about = [str(machine.get("host", "-")), str(machine.get("system", "-"))]
    return f"{', '.join(about)}, {machine.get('processors', '-')} processors, Python {execution.get('python', '-')}"


def _git(git: Mapping[str, Any] | None) -> str:
    if not git:
        return "not in a repository"
    return f"{git['commit']}{', and files were changed since' if git['changed'] else ''}"


def _plugins(execution: Mapping[str, Any]) -> list[str]:
    return [f"{each['plugin']} ({each['distribution']} {each['version']})" for each in execution.get("plugins", ())]


def _number(value: float | None, signed: bool = False) -> str:
    return f"{'-':>8}" if value is None else f"{value:{'+' if signed else ''}8.4f}"


def comparison_lines(found: Comparison, records: Sequence[RunRecord], names: Sequence[str]) -> Iterator[str]:
    """What differs between runs, which are called A, B, C ... below a first list of them."""
    letters = [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(names))]
    about = list(zip(letters, names, records, strict=True))
    rows = [(letter, name, r.status, moment(r.started), _took(r)) for letter, name, r in about]
    yield table(rows, wrap=1)
    for letter, _, record in about:
        if record.status == "failed" and (error := str(record.last.get("error", ""))):
            yield f"\n{letter} failed: {error}"
    for aspect, differing in found.differing.items():
        yield f"\n{aspect}: {_count(len(differing))}"
        absent = "not set" if aspect == "settings" else "not there"
        yield from (f"  {each.what}: {_in_words(each, letters, absent)}" for each in differing)
    if found.same:
        yield f"\nthe same: {', '.join(found.same)}"
    everybody = "both" if len(names) == 2 else "all"
    stages = [(f"of {everybody}, same outputs", ", ".join(found.shared))] * bool(found.shared)
    stages += [(f"of {everybody}, other outputs", ", ".join(found.own))] * bool(found.own)
    lacking: dict[str, list[str]] = {}
    for stage, there in found.lacking.items():
        lacking.setdefault(_joined([letter for letter, has in zip(letters, there, strict=True) if has]), []).append(
            stage
        )
    stages += [(f"of {who} only", ", ".join(names)) for who, names in lacking.items()]
    if stages:
        yield "\nstages"
        yield table(stages, wrap=1)
    yield from _score_lines("selection", found.selection, letters)
    yield from _score_lines("scores", found.scores, letters)


def _score_lines(heading: str, lines: Sequence[ScoreLine], letters: Sequence[str]) -> Iterator[str]:
    """Scores of the runs that have any, and differences from the first of them."""
    which = [n for n in range(len(letters)) if any(line.values[n] is not None for line in lines)]
    if not which:
        return
    first, *others = (letters[n] for n in which)
    if not others:
        yield f"\n{heading}: only {first} has any"
        return
    yield f"\n{heading}"
    by_system: dict[str, list[tuple[str, list[float | None]]]] = {}
    for line in lines:
        by_system.setdefault(line.system, []).append((line.metric, [line.values[n] for n in which]))
    same = [name for name, found in by_system.items() if all(len(set(values)) == 1 for _, values in found)]
    rows = [("", "", *(f"{x:>8}" for x in (first, *others)), *(f"{f'{x} - {first}':>8}" for x in others))]
    for system, found in by_system.items():
        for metric, values in found if system not in same else ():
            base = values[0]
            gains = [None if base is None or value is None else value - base for value in values[1:]]
            rows.append((system, metric, *map(_number, values), *(_number(gain, signed=True) for gain in gains)))
    if len(rows) > 1:
        yield table(rows, wrap=0, width=1000)
    if same:
        who = "both" if len(which) == len(letters) == 2 else "all" if len(which) == len(letters) else "these"
        yield f"  the same in {who}: {listing(same)}"


def _count(number: int) -> str:
    return f"{number} differ{'s' if number == 1 else ''}"


def _in_words(difference: Difference, letters: Sequence[str], absent: str) -> str:
    """ "30 in A and C, 100 in B"; `absent` is said of what a run hasn't."""
    having: dict[str, list[str]] = {}
    for letter, value in zip(letters, difference.values, strict=True):
        having.setdefault(value, []).append(letter)
    return ", ".join(f"{absent if v == '-' else _short(v)} in {_joined(who)}" for v, who in having.items())


def _joined(letters: Sequence[str]) -> str:
    return letters[0] if len(letters) == 1 else f"{', '.join(letters[:-1])} and {letters[-1]}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
