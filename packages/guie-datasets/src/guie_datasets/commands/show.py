"""``guie data show``: contact sheets."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from guie_core.wording import plural, shown
from guie_datasets.commands.options import seed_option, workers_option
from guie_datasets.commands.outputs import check_output, force_option, page_of, picture_of


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--classes", type=click.IntRange(1), default=12, show_default=True, metavar="N", help="How many classes.")
@click.option(
    "--images", type=click.IntRange(1), default=8, show_default=True, metavar="M", help="Images of each class."
)
@click.option(
    "--class", "only", multiple=True, metavar="NAME|LABEL", help="This class, and no others. May be repeated."
)
@click.option("--split", metavar="NAME", help="Only images of this split.")
@click.option("--source", metavar="NAME", help="Only images of this source.")
@seed_option("Chooses classes and images.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A page (.html) or a picture (.jpg, .png, .webp) [default: MANIFEST's name and .html, here].",
)
@workers_option
@force_option
def show(
    manifest: Path,
    classes: int,
    images: int,
    only: tuple[str, ...],
    split: str | None,
    source: str | None,
    seed: int,
    output: Path | None,
    workers: int | None,
    force: bool,
) -> None:
    """Show images of MANIFEST, class by class, drawn at random: on a page, or as one picture.

    An image that cannot be read is shown as a tile that says why.

    \b
    guie data show pictures.parquet
    guie data show pictures.parquet --class cat --class 17 --images 40 --output cats.jpg
    """
    from guie_datasets import Manifest
    from guie_datasets.inspecting.sheets import FORMATS, check_fits, choose, sheets, write_sheets

    path = output or Path(f"{manifest.stem}.html")
    own = {".html": page_of("show"), **dict.fromkeys(FORMATS, picture_of("show"))}
    check_output(path, own, inputs=[manifest], example="images.html", force=force)
    opened = Manifest.read(manifest)
    groups = choose(opened, classes=classes, images=images, only=only, split=split, source=source, seed=seed)
    check_fits(path, [len(group) for group in groups])
    found = sheets(opened, groups, workers=workers)
    options = [f"--classes {classes} --images {images} --seed {seed}"]
    options += [f"--class {shlex.quote(each)}" for each in only]
    options += [f"--{name} {shlex.quote(value)}" for name, value in (("split", split), ("source", source)) if value]
    command = f"guie data show {shlex.quote(shown(manifest))} {' '.join(options)} --output {shlex.quote(shown(path))}"
    tiles = [tile for sheet in found for tile in sheet.tiles]
    summary = f"{plural(len(tiles), 'image')} of {len(found):,} class{'' if len(found) == 1 else 'es'}"
    drawn = "" if only else f", drawn at random (seed {seed})"
    write_sheets(path, found, name=manifest.stem, summary=f"{summary}{drawn}.", command=command)
    bad = [tile for tile in tiles if tile.image is None]
    click.echo(f"{shown(path)}: {summary}.")
    if bad:
        click.echo(f"{plural(len(bad), 'image')} cannot be shown; the first is {bad[0].place}: {bad[0].reason}")
