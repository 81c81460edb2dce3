"""``guie data leaks``: images that two manifests or splits have in common."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from guie_core import UsageError
from guie_core.spelling import told_as
from guie_core.wording import shown
from guie_datasets.commands.options import MAX_BAD, max_bad_option, workers_option
from guie_datasets.commands.outputs import check_beside, check_output, force_option, page_of, table_of


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path), required=False)
@click.option("--split-a", metavar="NAME", help="Only this split of A.")
@click.option("--split-b", metavar="NAME", help="Only this split of B (of A, where there is no B).")
@click.option(
    "--distance",
    type=click.IntRange(0, 64),
    default=8,
    show_default=True,
    metavar="BITS",
    help="How far the 64-bit hashes of nearly the same images may be apart; 0 to 11 are fast.",
)
@click.option("--flipped", is_flag=True, help="Count a mirrored image as the same.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A page (.html) with the images side by side, and a table (.csv) of the same name; or the table alone.",
)
@max_bad_option
@workers_option
@force_option
@click.pass_context
def leaks(
    ctx: click.Context,
    a: Path,
    b: Path | None,
    split_a: str | None,
    split_b: str | None,
    distance: int,
    flipped: bool,
    output: Path | None,
    max_bad: float,
    workers: int | None,
    force: bool,
) -> None:
    """Find images of B that are in A as well: the same bytes, or the same picture compressed, scaled, brightened or
    slightly cropped. Without B, the splits of A are compared with each other: what one shares with those used before.

    Images are read once; their hashes are kept beside the manifest, in NAME.hashes-1.npy. The exit code is 1 if
    anything is found.

    \b
    guie data leaks runs/quickstart/stages/split/manifest.parquet
    guie data leaks train.parquet test.parquet --output leaks.html
    """
    from guie_core.interrupt import interruptible
    from guie_datasets import Manifest
    from guie_datasets.inspecting.leaks import (
        COLUMNS,
        Comparison,
        compare_splits,
        default_table,
        splits_of,
        unreadable,
        write_leaks,
        write_table,
    )
    from guie_datasets.inspecting.similarity import Fingerprints, find_leaks, fingerprints, kept_beside
    from guie_datasets.manifest import column_is

    if output is not None:
        own = {".html": page_of("leaks"), ".csv": table_of(COLUMNS)}
        check_output(output, own, inputs=[path for path in (a, b) if path], example="leaks.html", force=force)
        if output.suffix.lower() != ".csv":
            check_beside(default_table(output), output, own[".csv"], force=force)
    if b is None and (split_a is None) != (split_b is None):
        raise UsageError("--split-a and --split-b belong together where there is one manifest")
    manifests = {path: Manifest.read(path) for path in (a, b) if path}
    if b is None and split_b is None:
        splits_of(manifests[a])
    for path, split in ((a, split_a), (b or a, split_b)):  # before an hour of reading
        if split is not None:
            column_is(manifests[path], "split", split)
    with interruptible(), told_as(MAX_BAD):

        def read(path: Path) -> Fingerprints:
            return fingerprints(manifests[path], kept_beside(path), workers=workers, max_bad=max_bad)

        def side(path: Path, prints: Fingerprints, split: str | None) -> tuple[str, Fingerprints]:
            if split is None:
                return shown(path), prints
            name = split if b is None else f"{shown(path)} ({split})"
            return name, prints.select(column_is(prints.manifest, "split", split))

        first = read(a)
        second = first if b is None else read(b)
        if b is None and split_b is None:
            comparisons = compare_splits(first, distance=distance, flipped=flipped, workers=workers)
        else:
            (name_a, side_a), (name_b, side_b) = side(a, first, split_a), side(b or a, second, split_b)
            found = find_leaks(side_a, side_b, distance=distance, flipped=flipped, workers=workers)
            comparisons = [Comparison(name_a, name_b, found, one=b is None)]
    lines = [f"{comparison}." for comparison in comparisons]
    if warning := unreadable([first] if b is None else [first, second]):
        lines.append(f"{warning}.")
    click.echo("\n".join(lines))
    if output is not None:
        written = [default_table(output)]
        write_table(written[0], comparisons)
        if output.suffix.lower() == ".html":
            written.append(output)
            names = shlex.join([shown(path) for path in (a, b) if path])
            options = "".join(
                f" --split-{side} {shlex.quote(name)}" for side, name in (("a", split_a), ("b", split_b)) if name
            )
            options += f" --distance {distance}{' --flipped' * flipped} --output {shlex.quote(shown(output))}"
            title = f"{shown(a)} and {shown(b)}" if b else f"Splits of {shown(a)}"
            write_leaks(output, comparisons, title=title, lines=lines, command=f"guie data leaks {names}{options}")
        click.echo(f"Wrote {' and '.join(shown(path) for path in written)}.")
    if any(len(comparison.leaks) for comparison in comparisons):
        ctx.exit(1)
