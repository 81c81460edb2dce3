"""Points that Optuna suggests by what came of earlier ones; kept in a file, and the same if interrupted."""

from __future__ import annotations

import ast
import importlib.util
import logging
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guie_core import GuieError, Problem, UsageError
from guie_core.wording import shown

from .points import split_values

FILE = "study.db"
_NAME = "sweep"


@dataclass(frozen=True)
class Suggestion:
    """Where a setting's values are taken from: a range, whose ends belong to it, or choices."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # integers only
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> list[str]:
        """The values to check: those at the ends of the range, or all choices."""
        return list(self.choices) or [self.text(self.low), self.text(self.high)]

    def text(self, value: Any) -> str:
        """A value as it would stand after the = of --set."""
        return str(value) if self.choices else repr(int(value) if self.whole else float(value))

    def rounded(self, value: Any) -> Any:
        """A value of the distribution with four digits, which are enough to choose by and can be read."""
        if self.choices or self.whole:
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def distribution(self) -> Any:
        """As Optuna calls it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


def require_optuna() -> None:
    """Raise UsageError if Optuna isn't installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("--trials needs Optuna, which isn't installed. Run: pip install 'guie-train[sweep]'")


def read_suggestions(texts: Sequence[str], problems: list[Problem]) -> list[Suggestion]:
    """Suggestions from "key=low..high", "key=low..high:log" or "key=a,b,c"; what is wrong is added to `problems`."""
    found: dict[str, Suggestion] = {}
    for text in texts:
        key, equals, where = text.partition("=")
        key = key.strip()
        span = re.fullmatch(r"\s*([^:,]+?)\.\.([^:,]+?)(:log)?\s*", where)
        numbers = [_number(end) for end in span.groups()[:2]] if span else []
        if not equals or not key or (span and None in numbers) or (not span and len(split_values(where)) < 2):
            message = f"--suggest {text!r} is not of the form key=low..high, key=low..high:log or key=a,b,c."
            problems.append(
                Problem("", message, "For example: --suggest recipe.arcface.optimizer.base.lr=1e-4..1e-1:log")
            )
            continue
        if key in found:
            problems.append(Problem(key, "--suggest names this setting twice."))
        if not span:
            found[key] = Suggestion(key, choices=tuple(dict.fromkeys(split_values(where))))
            continue
        low, high = numbers
        assert low is not None
        assert high is not None
        if low >= high:
            problems.append(Problem(key, f"--suggest: {span[1]} is not below {span[2]}."))
        elif span[3] and low <= 0:
            problems.append(Problem(key, f"--suggest: a range with :log begins above 0, not at {span[1]}."))
        whole = isinstance(low, int) and isinstance(high, int)
        found[key] = Suggestion(key, low, high, log=bool(span[3]), whole=whole)
    return list(found.values())


def _number(text: str) -> float | int | None:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return None
    return value if type(value) in (int, float) and np.isfinite(value) else None


def _in_words(error: Exception, path: Path) -> GuieError:
    """What SQLite says, in its own words, and what to do: only a file that is damaged has to go."""
    found: BaseException = error
    while not isinstance(found, sqlite3.Error) and (deeper := getattr(found, "orig", None) or found.__cause__):
        found = deeper
    reason = str(found).partition("\n")[0]
    if isinstance(found, sqlite3.DatabaseError) and not isinstance(found, sqlite3.OperationalError):
        return GuieError(f"{shown(path)} cannot be used ({reason}); remove it to begin the sweep anew")
    return GuieError(
        f"{shown(path)} could not be written ({reason}).\n"
        "Nothing that was complete is lost. Run the same command again when that is mended."
    )


@dataclass(frozen=True)
class Trial:
    """A point that was tried, and what it scored; None: it failed."""

    params: dict[str, Any]  # as Optuna has them
    score: float | None


class Study:
    """The trials of a sweep, kept with Optuna in a SQLite file, which its dashboard can show.

    A trial is written when its point is done. Which point comes next follows from the seed and the trials so far alone:
    a sweep that was killed suggests the same point again, and ends as one that wasn't.

    Args:
        folder: the sweep's.
        suggestions: where values are taken from.
        seed: of the suggestions.
        experiment: digest of the experiment without them.

    Raises:
        UsageError: the folder has a study of other suggestions or another experiment.
        GuieError: the file cannot be read or written.
    """

    def __init__(self, folder: Path, suggestions: Sequence[Suggestion], seed: int, experiment: str) -> None:
        import optuna
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.pool import NullPool

        optuna.logging.disable_default_handler()  # guie's own handlers show what there is to say
        optuna.logging.set_verbosity(logging.WARNING)
        self._optuna = optuna
        self._seed = seed
        self._suggestions = {each.key: each for each in suggestions}
        self._space = {each.key: each.distribution() for each in suggestions}
        self._path = path = folder.absolute() / FILE
        folder.mkdir(parents=True, exist_ok=True)
        asked = [asdict(each) | {"choices": list(each.choices)} for each in suggestions]
        about: dict[str, Any] = {"suggest": asked, "seed": seed, "experiment": experiment}
        try:
            # connected by the path itself: in an address, some characters of a path mean something else
            connect = {"creator": lambda: sqlite3.connect(path, timeout=60), "poolclass": NullPool}  # none is kept open
            storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs=connect)
            self._study = optuna.create_study(
                study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True
            )
            known = dict(self._study.user_attrs)
            for key, value in about.items():
                if key not in known:
                    self._study.set_user_attr(key, value)
        except (StorageInternalError, SQLAlchemyError) as error:
            raise _in_words(error, path) from error
        differ = [key for key, value in about.items() if known.get(key, value) != value]
        if differ:
            what = {"suggest": "other --suggest", "seed": "another --seed", "experiment": "another experiment"}
            raise UsageError(
                f"{shown(folder)} has trials of {' and '.join(what[key] for key in differ)}.\n"
                "Choose another folder with --work-dir."
            )

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in order; a point that was tried again after it had failed is there once more."""
        return [Trial(trial.params, trial.value) for trial in self._study.get_trials(deepcopy=False)]

    @property
    def count(self) -> int:
        """How many points were suggested so far."""
        return sum("again" not in trial.user_attrs for trial in self._study.get_trials(deepcopy=False))

    def suggest(self) -> dict[str, Any]:
        """The parameters of the next point."""
        trials = self._study.get_trials(deepcopy=False)
        # neither asking nor an interruption leaves a trace in the file, and a sampler made anew has nothing to resume
        entropy = np.random.SeedSequence((self._seed, len(trials))).generate_state(1)
        sampler = self._optuna.samplers.TPESampler(seed=int(entropy[0]))
        memory = self._optuna.create_study(direction="maximize", sampler=sampler)
        memory.add_trials(trials)
        params = memory.ask(self._space).params
        return {key: self._suggestions[key].rounded(value) for key, value in params.items()}

    def values(self, params: Mapping[str, Any]) -> dict[str, str]:
        """Parameters as values of a point."""
        return {key: self._suggestions[key].text(value) for key, value in params.items()}

    def add(self, params: Mapping[str, Any], score: float | None, *, again: bool = False) -> None:
        """Keep what came out; `score` None: it failed. `again`: it had been tried before, and failed."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        state = self._optuna.trial.TrialState
        trial = self._optuna.trial.create_trial(
            state=state.FAIL if score is None else state.COMPLETE,
            params=dict(params),
            distributions=self._space,
            value=score,
            user_attrs={"again": True} if again else {},
        )
        try:
            self._study.add_trial(trial)
        except (StorageInternalError, SQLAlchemyError) as error:
            raise _in_words(error, self._path) from error
