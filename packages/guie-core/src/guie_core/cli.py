"""The ``guie`` command. Its groups are the entries of kind "commands"; each is imported when it is invoked."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .errors import GuieError, Interrupted
from .plugins import load_plugin_files, plugins
from .registry import lookup
from .wording import did_you_mean


class PluginGroup(click.Group):
    """A group whose commands are the entries of kind "commands", listed without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(entry.name for entry in plugins().entries("commands"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        entry = lookup("commands", cmd_name)
        command = entry.load()
        if not isinstance(command, click.Command):
            raise GuieError(f"the command {entry.label} is not a click.Command but {command!r} ({entry.target}).")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            near = did_you_mean(args[0], known) or f" Commands: {', '.join(known)}."
            ctx.fail(f"there is no command {args[0]!r}.{near}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = sorted((entry.name, entry.summary) for entry in plugins().entries("commands"))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        for failure in plugins().failures:
            formatter.write_text(f"Plugin {failure.owner.plugin} ({failure.owner}) did not load: guie doctor")


def _load_files(ctx: click.Context, parameter: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...]:
    load_plugin_files(value)
    return value


#: ``--plugin path.py``, for any command.
plugin_option = click.option(
    "--plugin",
    "plugin_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    callback=_load_files,
    is_eager=True,
    expose_value=False,
    help="Load a Python file as a plugin. May be repeated.",
)


def _show_traceback(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["GUIE_TRACEBACK"] = "1"


traceback_option = click.option(
    "--traceback",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_traceback,
    help="Show where an error comes from (GUIE_TRACEBACK=1 does so too).",
)


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from .run import versions

        for name, version in versions().items():
            if name.startswith("guie-"):
                click.echo(f"{name} {version}")
        ctx.exit()


@click.group(
    cls=PluginGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@plugin_option
@traceback_option
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the installed versions."
)
@click.pass_context
def guie(ctx: click.Context) -> None:
    """Universal image embeddings: data sets, training, evaluation and export."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> None:
    """The console script ``guie``."""
    run_command(guie, "guie", args)


def run_command(command: click.Command, prog_name: str, args: Sequence[str] | None = None) -> None:
    """Run a click command as a program: errors become a message on stderr and an exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. Always raises SystemExit.
    """
    from .logs import to_console

    to_console()
    try:
        result: Any = command.main(None if args is None else list(args), prog_name, standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as error:
        _fail(str(error), error.exit_code, "stopped")
    except GuieError as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        command_path = error.ctx.command_path if error.ctx else prog_name
        _fail(f"{error.format_message()}\nTry '{command_path} --help'.", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("at once", 130, "stopped")
    except BrokenPipeError:  # `guie plugins list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        from .files import explain, of_the_disk

        said = of_the_disk(error)
        _fail(explain(said) if said else f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"{type(error).__name__}: {error}\n"
            f"This is a fault in {frame.filename}, line {frame.lineno}, and not in what you asked for.\n"
            "GUIE_TRACEBACK=1 shows how it came about.",
            1,
        )
    _leave(result if isinstance(result, int) else 0)


def _fail(message: str, code: int, what: str = "error") -> None:
    if os.environ.get("GUIE_TRACEBACK", "") not in ("", "0"):
        traceback.print_exc()
    print(f"{what}: {message}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> None:
    """Exit with `code`, also where Ctrl-C is pressed once more while libraries are taken down, which may take a second:
    all is said and done."""
    atexit.unregister(_ignore_interrupts)  # those that are registered last are called first
    atexit.register(_ignore_interrupts)
    sys.exit(code)


def _ignore_interrupts() -> None:
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
