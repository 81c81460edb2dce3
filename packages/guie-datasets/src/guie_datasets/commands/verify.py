"""``guie data verify``: whether a manifest's images are there and unchanged."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from guie_core.wording import plural, shown
from guie_datasets.commands.options import workers_option
from guie_datasets.commands.outputs import check_beside, is_quarantine

_SHOWN = 10


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--decode", is_flag=True, help="Decode every image too, which finds damage that the hashes were made of.")
@workers_option
@click.pass_context
def verify(ctx: click.Context, manifest: Path, decode: bool, workers: int | None) -> None:
    """Check that the images of MANIFEST are where it says, with the bytes that were prepared.

    What is wrong is listed beside it, in NAME.verify.csv. The exit code is 1 if anything is.
    """
    from guie_datasets import Manifest
    from guie_datasets.inspecting.verification import verify_manifest

    table = manifest.with_name(f"{manifest.name.removesuffix('.parquet')}.verify.csv")
    check_beside(table, manifest, is_quarantine, force=None)
    found = verify_manifest(Manifest.read(manifest), decode=decode, workers=workers)
    if not found:
        table.unlink(missing_ok=True)
        click.echo(f"{shown(manifest)}: {plural(found.images, 'image')}, nothing is wrong.")
        return
    found.write(table)
    for finding in itertools.islice(found, _SHOWN):  # there may be millions
        click.echo(f"  {finding.place}: {finding.reason}")
    if len(found) > _SHOWN:
        click.echo(f"  and {len(found) - _SHOWN:,} more")
    click.echo(f"{shown(manifest)}: of {plural(found.images, 'image')} {found}; listed in {shown(table)}.")
    ctx.exit(1)
