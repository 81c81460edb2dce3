"""``guie data stats``: what a manifest holds, in figures and plots."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from guie_core.tables import table
from guie_core.wording import plural, shown
from guie_datasets.commands.outputs import check_output, force_option, page_of


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE.html", help="Write a page with plots too."
)
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@force_option
def stats(manifest: Path, output: Path | None, style: str, force: bool) -> None:
    """Count what MANIFEST holds: images, classes, images a class, sizes, shapes, bytes, duplicates.

    No image is decoded: sizes and hashes are in the manifest. With more than 2,000 images, formats and, where images
    are files of their own, bytes are estimated from that many.
    """
    import json

    from guie_datasets import Manifest
    from guie_datasets.inspecting.statistics import facts, statistics, write_statistics

    if output is not None:
        own = {".html": page_of("stats")}
        check_output(output, own, inputs=[manifest], example="stats.html", force=force)
    name = shlex.quote(shown(manifest))
    found = statistics(Manifest.read(manifest))
    if style == "json":
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo(table(facts(found, name), indent="", wrap=1))
        for column, parts in found.parts.items():
            click.echo(f"\nby {column}")
            rows = [
                (part.name or "(none)", plural(part.images, "image"), plural(part.classes, "class")) for part in parts
            ]
            click.echo(table(rows[:20], wrap=0))
            if len(rows) > 20:
                click.echo(f"  and {len(rows) - 20:,} more")
    if output is not None:
        command = f"guie data stats {name} --output {shlex.quote(shown(output))}"
        write_statistics(output, found, name=manifest.stem, command=command, manifest=name)
        click.echo(f"\nWrote {shown(output)}.", err=style == "json")
