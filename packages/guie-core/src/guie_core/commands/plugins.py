"""``guie plugins``: what is there, whether it is sound, and a start for a plugin of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from guie_core.entry import Entry, Owner
from guie_core.errors import UsageError
from guie_core.plugins import Plugins
from guie_core.plugins import plugins as find_plugins
from guie_core.tables import table
from guie_core.wording import did_you_mean, plural


@click.group()
def plugins() -> None:
    """List, check and write plugins."""


@plugins.command("list")
@click.option("--kind", metavar="KIND", help="Only components of this kind, such as backbones.")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(kind: str | None, style: str) -> None:
    """List every component of every plugin, without importing any."""
    found = find_plugins()
    entries = found.entries(kind)
    if style == "json":
        click.echo(json.dumps(_as_json(found, entries), indent=2, ensure_ascii=False))
        return
    for name in [kind] if kind else found.kinds:
        shown = [entry for entry in entries if entry.kind == name]
        if not shown:
            continue
        click.echo(f"{name}: {found.kinds[name].summary}")
        click.echo(table([(e.name, _summary(e), str(e.owner)) for e in shown], wrap=1) + "\n")
    click.echo(f"{plural(len(found.loaded), 'plugin')}: {_owners(found.loaded)}.")
    if found.disabled:
        click.echo(f"disabled: {_owners(found.disabled)}.")
    for conflict in found.conflicts:
        click.echo(f"conflict: {conflict}")
    for failure in found.failures:
        click.echo(f"failed: {failure}")


def _summary(entry: Entry) -> str:
    return f"{entry.summary} [{entry.licence}]" if entry.licence else entry.summary


def _owners(owners: tuple[Owner, ...]) -> str:
    return ", ".join(f"{owner.plugin} ({owner})" for owner in owners)


def _as_json(found: Plugins, entries: list[Entry]) -> dict[str, Any]:
    def described(owner: Owner, **more: str) -> dict[str, str]:
        return {"plugin": owner.plugin, "distribution": owner.distribution, "version": owner.version, **more}

    return {
        "plugins": [
            *(described(owner, status="loaded") for owner in found.loaded),
            *(described(owner, status="disabled") for owner in found.disabled),
            *(described(failure.owner, status="failed", reason=failure.reason) for failure in found.failures),
        ],
        "kinds": {kind.name: kind.summary for kind in found.kinds.values()},
        "components": [
            {
                "kind": entry.kind,
                "name": entry.name,
                "summary": entry.summary,
                "target": entry.target,
                "licence": entry.licence,
                "origin": asdict(entry.origin) if entry.origin else None,
                "requires": list(entry.requires),
                **(described(entry.owner) if entry.owner else {}),
            }
            for entry in entries
        ],
        "conflicts": [str(conflict) for conflict in found.conflicts],
    }


@plugins.command()
@click.argument("name")
@click.pass_context
def check(ctx: click.Context, name: str) -> None:
    """Check the plugin NAME: load it, import every target, look at every signature.

    The exit code is 1 if anything is found.
    """
    from guie_core.conformance import entry_findings, plugin_findings

    found = find_plugins()
    failed = [f for f in found.failures if name in (f.owner.plugin, f.owner.distribution)]
    for failure in failed:
        click.echo(str(failure))
        if failure.traceback:
            click.echo(failure.traceback.rstrip())
    owners = [owner for owner in found.loaded if name in (owner.plugin, owner.distribution)]
    if any(name in (owner.plugin, owner.distribution) for owner in found.disabled):
        raise UsageError(f"the plugin {name} is disabled (GUIE_PLUGINS, GUIE_DISABLED_PLUGINS).")
    if not owners and not failed:
        known = [owner.plugin for owner in (*found.loaded, *(f.owner for f in found.failures))]
        near = did_you_mean(name, known) or f" Plugins: {', '.join(known)}."
        raise UsageError(f"there is no plugin {name!r}.{near}")
    count = len(failed)
    for owner in owners:
        click.echo(f"plugin {owner.plugin} ({owner})")
        for finding in plugin_findings(owner.plugin, found):
            count += 1
            click.echo(f"  problem: {finding}")
        for entry in (e for e in found.entries() if e.owner == owner):
            findings = list(entry_findings(entry, found))
            count += len(findings)
            click.echo(f"  {'problem' if findings else 'ok'}: {entry.kind} {entry.name} -> {entry.target}")
            for finding in findings:
                click.echo("    " + finding.replace("\n", "\n    "))
    click.echo(f"{plural(count, 'problem')} found." if count else "No problems found.")
    ctx.exit(1 if count else 0)


@plugins.command()
@click.argument("what", type=click.Choice(["dataset"]))
@click.argument("name")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=Path(), show_default="here", help="Where its folder goes."
)
def new(what: str, name: str, directory: Path) -> None:
    """Write the package of a new plugin, such as: guie plugins new dataset cars

    The package installs, works and passes its tests as it is; its data set reads one folder of images a class.
    """
    from guie_core.templates import write_plugin

    folder = write_plugin(what, name, directory)
    click.echo(f"Wrote {folder}. Next:")
    click.echo(f"  pip install -e {folder}")
    click.echo(f"  guie plugins check {name}")
    click.echo(f"  pytest {folder}")
