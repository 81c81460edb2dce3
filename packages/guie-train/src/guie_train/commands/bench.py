"""``guie bench``: what this machine does in a second, and two measurements beside each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection
from pathlib import Path

import click
from click.core import ParameterSource

from guie_core import GuieError, Interrupted, UsageError
from guie_core.files import explain, folder_option
from guie_core.wording import listing, shown
from guie_datasets.commands.outputs import check_beside, check_output
from guie_train.bench import PARTS


def _parts(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    named = [name.strip() for name in value.split(",")]
    if unknown := [name for name in named if name not in PARTS]:
        raise click.BadParameter(f"{unknown[0]!r} is no part; they are {', '.join(PARTS)}")
    return tuple(name for name in PARTS if name in named)


@click.group(invoke_without_command=True)
@click.option("--profile", "profile_name", default="auto", show_default=True, metavar="NAME", help="What to run on.")
@click.option(
    "--backbone",
    default="timm/vit_small_patch16_224",
    show_default=True,
    metavar="NAME",
    help="Whose features are computed; with random weights, which take as long as trained ones.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of the backbone's arithmetic [default: the profile's].",
)
@click.option(
    "--images",
    metavar="PATH|NAME",
    help="A folder, table, manifest, shards or data set, whose first images are read [default: made-up photos].",
)
@click.option(
    "--only", default=",".join(PARTS), callback=_parts, metavar="PART,...", help="Parts to measure [default: all]."
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 60), default=3.0, show_default=True, help="How long a part is measured."
)
@click.option(
    "--output",
    "-o",
    "--out",
    "output",
    type=click.Path(path_type=Path),
    default=Path("bench.json"),
    show_default=True,
    metavar="FILE",
    help="Where the figures go, for guie bench compare.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with a measurement that was stopped, or add to FILE: only what is missing."
)
@click.option(
    "--force", is_flag=True, help="Replace FILE even if another command made it, or parts are lost that it has."
)
@click.pass_context
def bench(
    ctx: click.Context,
    profile_name: str,
    backbone: str,
    dtype: str | None,
    images: str | None,
    only: tuple[str, ...],
    seconds: float,
    output: Path,
    resume: bool,
    force: bool,
) -> None:
    """Measure what this machine does in a second, with the code that trains.

    \b
    decode      image files to pixels
    backbone    images that lie ready to features
    extraction  image files to features
    head        steps of training at the 5th place's size: 15,003 classes, batches of 256
    search      nearest neighbours of 5,000 queries among 20,000 images

    Each part has a process of its own. Rates are medians of rounds; memory is the peak above what was held before.
    FILE is written, or replaced, when all parts are done. Until then those that are done are beside it, in
    bench.partial.json for bench.json. After Ctrl-C, --resume measures the others; without it all are measured anew.
    """
    if ctx.invoked_subcommand:
        for option in ctx.command.params:
            if option.name in ctx.params and ctx.get_parameter_source(option.name) is not ParameterSource.DEFAULT:
                raise UsageError(f"guie bench {ctx.invoked_subcommand} measures nothing: leave out {option.opts[0]}")
        return
    from guie_core.profiles import profile
    from guie_core.registry import lookup
    from guie_train.bench.results import Bench, is_bench, partial_of
    from guie_train.bench.running import bench as bench_
    from guie_train.bench.words import report

    inputs = [] if images is None else [Path(images).expanduser()]
    check_output(output, {".json": is_bench}, inputs=inputs, example="bench.json", force=force)
    partial = partial_of(output)
    check_beside(partial, output, is_bench, force=force)
    _check_writable(output, partial.name)
    lookup("backbones", backbone)
    chosen = profile({"type": profile_name, **({"dtype": dtype} if dtype else {})}, "--profile")
    former = partial if partial.exists() else output
    before = Bench.read(former) if resume and former.exists() else None
    if not force:
        _check_kept(output, {*only, *(before.parts if before else ())})
    if before is None and former is partial:
        click.echo(f"{shown(partial)} was stopped, and is begun anew; --resume goes on with it.", err=True)
    kept: list[Bench] = []

    def keep(found: Bench) -> None:
        with folder_option("--output"):
            found.write(partial if found.missing else output)
            if not found.missing:
                partial.unlink(missing_ok=True)
        kept.append(found)

    try:
        found = bench_(
            only, profile=chosen, backbone=backbone, images=images, seconds=seconds, before=before, keep=keep
        )
    except GuieError as error:
        if not kept and isinstance(error, Interrupted):
            error.args = ("nothing new was written",)
        elif kept:
            done, left = listing(kept[-1].parts), listing(kept[-1].missing)
            as_it_was = f"; {shown(output)} is as it was" * output.exists()
            error.args = (
                f"{error}\n{shown(partial)} has {done}{as_it_was}. The same command with --resume measures {left}",
            )
        raise
    click.echo(report(found))
    if not kept and former is output:
        click.echo(f"{shown(output)} lacks nothing.")
        return
    if not kept:  # of what was stopped, the parts that are there are all that is asked for now
        keep(found)
    click.echo(f"Wrote {shown(output)}.")


def _check_writable(output: Path, name: str) -> None:
    """Raise UsageError if no file `name` can be made where `output` is to be: in its folder, or where that would be
    made."""
    folder = next(parent for parent in output.absolute().parents if os.path.exists(parent))
    if not folder.is_dir():
        raise UsageError(f"--output {output} cannot be written: {shown(folder)} is a file. Choose another --output")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", suffix=".tmp"):  # as it will be
            pass
    except OSError as error:
        raise UsageError(f"{explain(error, output)} --output sets the file's folder and name") from error


def _check_kept(output: Path, parts: Collection[str]) -> None:
    """Raise UsageError if the file `output` has, or may have, parts that one with `parts` in its place would lack."""
    from guie_train.bench.results import Bench

    if not output.exists():
        return
    try:
        former = Bench.read(output)
    except UsageError as error:  # a newer guie's, for one
        raise UsageError(f"{error}\nChoose another --output, or add --force to replace it") from error
    if lost := [name for name in former.parts if name not in parts]:
        raise UsageError(
            f"{shown(output)} has {listing(lost)}, which would be lost. Measure {'it' if len(lost) == 1 else 'them'} "
            "as well, choose another --output, or add --force"
        )


@bench.command()
@click.argument("a", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("b", type=click.Path(path_type=Path), metavar="B.json")
def compare(a: Path, b: Path) -> None:
    """Set the figures of B beside those of A: ratios, and whether a difference is beyond the spread of the rounds.

    What differs between machines, versions and settings is named. Parts that did other work aren't compared.
    """
    from guie_train.bench.results import Bench
    from guie_train.bench.words import comparison

    click.echo(comparison((shown(a), Bench.read(a)), (shown(b), Bench.read(b))))
