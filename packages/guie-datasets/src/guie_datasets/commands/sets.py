"""``guie data list`` and ``guie data info``: which data sets there are, and what is to be known about one."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Any

import click

from guie_core import Entry, lookup
from guie_core.plugins import plugins
from guie_core.tables import table
from guie_datasets.commands.options import data_folder_option
from guie_datasets.licences import commercial, in_words, is_own


@click.command("list")
@click.option("--commercial-ok", is_flag=True, help="Only those whose owners allow commercial use, and your own.")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(commercial_ok: bool, style: str) -> None:
    """List the data sets that can be prepared, with licence, size and whether commercial use is allowed."""
    entries = plugins().entries("datasets")
    if commercial_ok:
        entries = [entry for entry in entries if commercial(entry)]
    if style == "json":
        click.echo(json.dumps([_as_json(entry) for entry in entries], indent=2, ensure_ascii=False))
        return
    rows = []
    for entry in entries:
        rows.append((entry.name, entry.summary))
        if not is_own(entry):
            size = entry.origin.size if entry.origin else ""
            about = [entry.licence or "licence not known", size, f"commercial use: {in_words(entry)}"]
            rows.append(("", "; ".join(filter(None, about))))
    click.echo(table(rows))
    click.echo("\nMore about one: guie data info NAME. To prepare one, or a folder of your own: guie data prepare NAME")


def _as_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "licence": entry.licence,
        "origin": asdict(entry.origin) if entry.origin else None,
        "own": is_own(entry),
        "commercial": commercial(entry),
        "owner": str(entry.owner),
    }


@click.command()
@click.argument("name")
@data_folder_option
def info(name: str) -> None:
    """Show what is to be known about the data set NAME: licence, origin, options, place and how to prepare it."""
    from guie_datasets.about import about

    entry = lookup("datasets", name)
    found = about(entry)
    click.echo(f"{entry.label}: {entry.summary}\n")
    if found.doc:
        click.echo(f"{found.doc}\n")
    if is_own(entry):
        rows = [("licence", "that of your own images"), ("commercial use", "yours to say")]
    else:
        rows = [("licence", entry.licence or "not known"), ("commercial use", in_words(entry))]
    if origin := entry.origin:
        rows += [("page", origin.url), ("size", origin.size or "not known"), ("cite as", origin.citation or "-")]
    click.echo(table(rows))
    if found.options:
        click.echo("\nOptions (in an experiment: arguments; of guie data prepare: --set OPTION=VALUE):")
        options = []
        for option in found.options:
            default = "required" if option.required else f"default {option.default}"
            options += [
                (option.name, f"{option.takes}; {default}"),
                *([("", option.meaning)] if option.meaning else []),
            ]
        click.echo(table(options, wrap=1))
    if found.place:
        click.echo("\nOn disk:\n" + textwrap.indent(found.place, "  "))
    click.echo()
    if found.downloads:
        click.echo(f"To fetch it:       guie data download {name}")
    needs = "".join(f" --set {option.name}=..." for option in found.options if option.usual)
    click.echo(f"To prepare it:     guie data prepare {name}{needs}")
    arguments = "".join(f", {option.name}=..." for option in found.options if option.usual)
    click.echo(f'In an experiment:  data=[dict(type="{name}"{arguments})]')
