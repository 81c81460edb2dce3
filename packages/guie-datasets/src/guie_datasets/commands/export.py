"""``guie data export``: a manifest's images in other layouts."""

from __future__ import annotations

from pathlib import Path

import click

from guie_core import UsageError
from guie_core.files import folder_option
from guie_core.spelling import told_as
from guie_core.wording import plural, shown
from guie_datasets.commands.options import MAX_BAD, max_bad_option, workers_option
from guie_datasets.layouts import FORMATS, OPTIONS, Format
from guie_datasets.places import expanded

_SAID = {"method": "--decode", "per_shard": "--per-shard", "link": "--link"}


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="The layout.")
@click.option("--output", "-o", type=click.Path(), metavar="DIR", required=True, help="A new folder for it.")
@click.option("--split", metavar="NAME", help="Only the images of this split.")
@click.option(
    "--decode",
    "method",
    type=click.Choice(["full", "tensorflow"]),
    show_default="full",
    help="How --to png decodes: tensorflow has the pixels of the 5th place's tfrec2png.py.",
)
@click.option(
    "--per-shard",
    type=click.IntRange(1),
    show_default="5000",
    metavar="N",
    help="Images in each shard of tfrecord and webdataset.",
)
@click.option("--link", is_flag=True, help="--to folder makes hard links to images that are files of their own.")
@max_bad_option
@workers_option
def export(
    manifest: Path,
    to: Format,
    output: str,
    split: str | None,
    method: str | None,
    per_shard: int | None,
    link: bool,
    max_bad: float,
    workers: int | None,
) -> None:
    """Write the images of MANIFEST in another layout. What was stopped goes on when the command is repeated.

    \b
    png         PNG files and label-noresize.csv, as the 5th place's tfrec2png.py leaves them
    folder      a folder for each class, with the images' own bytes
    csv         label.csv: path, label, category, ...; no image is read
    tfrecord    TFRecord shards of encoded images and labels; what the classes are called is in classes.csv
    webdataset  tar shards of encoded images, labels (.cls) and what else is known (.json)
    """
    from guie_datasets import Manifest
    from guie_datasets.exporting import CLASSES
    from guie_datasets.exporting import export as export_

    given = {"method": method, "per_shard": per_shard, "link": link or None}
    if strange := [_SAID[name] for name in given if given[name] is not None and name not in OPTIONS[to]]:
        takes = f". It takes {' and '.join(_SAID[name] for name in OPTIONS[to])}" if OPTIONS[to] else ""
        raise UsageError(f"--to {to} takes no {' and no '.join(strange)}{takes}")
    with folder_option("--output"), told_as(MAX_BAD):
        found = export_(
            Manifest.read(manifest),
            to,
            output,
            split=split,
            method=method,  # type: ignore[arg-type]
            per_shard=per_shard,
            link=link,
            max_bad=max_bad,
            workers=workers,
        )
    click.echo(f"{shown(expanded(output))}: {plural(found.images - found.count('bad'), 'image')} as {to}.")
    if to == "tfrecord":
        classes = shown(expanded(output) / CLASSES)
        click.echo(f"TFRecords hold images and labels; what the classes are called is in {classes}.")
    if found:
        click.echo(f"{found}; listed in {shown(expanded(output) / 'quarantine.csv')}.")
