"""Options that several commands have."""

from __future__ import annotations

import os
from pathlib import Path

import click


def _use(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        os.environ["GUIE_DATA"] = str(value.expanduser().absolute())


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
    type=click.FloatRange(0, 1),
    default=0.001,
    show_default=True,
    metavar="SHARE",
    help="The share of bad images that is passed over; more are an error. 0.01 is 1 %.",
)

#: How messages name it.
MAX_BAD = {"max_bad": "--max-bad "}

workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Threads that read images [default: one a core, at most 8].",
)
