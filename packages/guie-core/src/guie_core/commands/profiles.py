"""``guie profiles``: the hardware that guie knows."""

from __future__ import annotations

import json

import click

from guie_core.errors import ExperimentError, UsageError
from guie_core.plugins import plugins
from guie_core.profiles import Profile, profile
from guie_core.tables import table


@click.group()
def profiles() -> None:
    """List and show the profiles of hardware.

    A profile changes speed and memory, never the result.
    """


@profiles.command("list")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(style: str) -> None:
    """List the profiles."""
    entries = plugins().entries("profiles")
    if style == "json":
        rows = [{"name": entry.name, "summary": entry.summary, "owner": str(entry.owner)} for entry in entries]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        click.echo(table([(entry.name, entry.summary, str(entry.owner)) for entry in entries], wrap=1))


@profiles.command()
@click.argument("name")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
def show(name: str, style: str) -> None:
    """Show the settings of the profile NAME; "auto" shows what this machine gets."""
    try:
        found = profile(name, where=name)
    except ExperimentError as error:
        raise UsageError("\n".join(p.message + (f"\n{p.hint}" if p.hint else "") for p in error.problems)) from None
    if style == "json":
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    click.echo(f"{found.name}: {found.summary}")
    click.echo(table(_rows(found)))


def _rows(found: Profile) -> list[tuple[str, str]]:
    capability = ".".join(map(str, found.compute_capability)) if found.compute_capability else "-"
    return [
        ("device", found.device),
        ("memory", f"{found.memory_gb:g} GiB" if found.memory_gb else "-"),
        ("compute capability", capability),
        ("dtype", found.dtype),
        ("at once", ", ".join(f"{count} in {stage}" for stage, count in found.batch.items()) or "-"),
        ("workers", str(found.workers)),
        ("checkpointing", "yes" if found.checkpointing else "no"),
        ("processes divide", found.divide),
        ("CUDA graphs", "-" if found.device == "cpu" else "yes" if found.cuda_graphs else "no"),
    ]
