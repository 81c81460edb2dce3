"""Options that several commands have."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from guie_datasets.checks import MOST_SEED
from guie_datasets.places import absolute


def _use(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.with_resource(_environment("GUIE_DATA", str(absolute(value))))


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable until the command is over."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class _Share(click.FloatRange):
    """From 0 to 1; click's own range takes nan, with which nothing would be too much."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        share: float = super().convert(value, param, ctx)
        if math.isnan(share):
            self.fail(f"{share} is not in the range 0<=x<=1.", param, ctx)
        return share


#: Where the named data sets lie.
data_folder_option = click.option(
    "--data-folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    expose_value=False,
    is_eager=True,
    callback=_use,
    help="Where the data sets lie [default: $GUIE_DATA, or ./data].",
)

max_bad_option = click.option(
    "--max-bad",
    type=_Share(),
    default=0.001,
    show_default=True,
    metavar="SHARE",
    help="The share of bad images that is passed over; more are an error. 0.01 is 1 %.",
)

#: How messages name it.
MAX_BAD = {"max_bad": "--max-bad "}


def seed_option(what: str) -> Callable[[Any], Any]:
    """--seed. what: what it chooses, for the help."""
    return click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True, help=what)


workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Threads that read images [default: one a core, at most 8].",
)
