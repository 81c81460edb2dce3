"""Errors for people: what is wrong, where, and what to do about it.

Every error that a user can cause is a :class:`GuieError`; its text is all that the command line prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GuieError(Exception):
    """Something that the user can act on. The command line prints its text and exits with `exit_code`."""

    exit_code = 1


class UsageError(GuieError):
    """What was asked for cannot be done: a wrong option, name or value (exit code 2)."""

    exit_code = 2


class Interrupted(GuieError):  # noqa: N818  # it is no error
    """Work was stopped on request and can be resumed (exit code 130)."""

    exit_code = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in an experiment."""

    where: str  #: the key, such as "recipe.head.dropout"; "" when it concerns the file as a whole
    message: str  #: what is wrong, in one sentence
    hint: str = ""  #: what would be right; may have several lines

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n{self.hint}" if self.hint else text


class ExperimentError(UsageError):
    """One or more mistakes in an experiment, all of them listed."""

    def __init__(self, problems: Sequence[Problem], source: str = "") -> None:
        """`source` says what they are in, for example the path of the experiment."""
        self.problems = tuple(problems)
        self.source = source
        count = f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}"
        lines = [f"{count} in {source}" if source else count]
        for problem in self.problems:
            lines += [f"  {line}" for line in str(problem).splitlines()]
        super().__init__("\n".join(lines))
