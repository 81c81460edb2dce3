"""``guie data``: from raw downloads to a manifest, and what can be done with one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from guie_core import Entry
from guie_core.wording import did_you_mean

_MODULE = "guie_datasets.commands"

#: In the order in which they are used.
COMMANDS = (
    Entry("list", f"{_MODULE}.sets:list_", "List the data sets that can be prepared"),
    Entry("info", f"{_MODULE}.sets:info", "Show licence, origin, options and place of one data set"),
    Entry("download", f"{_MODULE}.download:download", "Fetch data sets from where their owners publish them"),
    Entry("prepare", f"{_MODULE}.prepare:prepare", "Make a manifest of data sets or of your own images"),
    Entry("verify", f"{_MODULE}.verify:verify", "Check that a manifest's images are there and unchanged"),
    Entry("stats", f"{_MODULE}.stats:stats", "Count what a manifest holds: images, classes, sizes, shapes"),
    Entry("show", f"{_MODULE}.show:show", "Draw a manifest's images, class by class, as a page or picture"),
    Entry("leaks", f"{_MODULE}.leaks:leaks", "Find the same or nearly the same images in two manifests or splits"),
    Entry("export", f"{_MODULE}.export:export", "Write a manifest's images as PNG, folders, a table or shards"),
)


class LazyGroup(click.Group):
    """Commands given as entries: listed by name and summary, each imported when it is invoked."""

    def __init__(self, *args: Any, entries: Sequence[Entry] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = {entry.name: entry for entry in entries}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.entries:
            return None
        command: click.Command = self.entries[cmd_name].load()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.entries:
            near = did_you_mean(args[0], self.entries) or f" Commands: {', '.join(self.entries)}."
            ctx.fail(f"{ctx.command_path} has no command {args[0]!r}.{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.summary) for entry in self.entries.values()])


@click.group(cls=LazyGroup, entries=COMMANDS, invoke_without_command=True)
@click.pass_context
def data(ctx: click.Context) -> None:
    """Prepare data sets and your own images, look at them, check and export them.

    Start with: guie data prepare PICTURES, where PICTURES is a folder with one folder of images for each class.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
