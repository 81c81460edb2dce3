"""How a setting is given: a library's messages name it, and who calls the library says what the user writes.

Messages have the forms "set complete to false", "follow_links=True", and, for names with "_", which are no words, the
name alone.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping

from .errors import GuieError

# what a value looks like in a message; a full stop behind it is not its own
_VALUE = r"""dict\([^()]*\)|\[[^]]*]|'[^']*'|"[^"]*"|[^\s;()]*[^\s;().,:]"""
_WORDS = {"true": "True", "false": "False", "none": "None"}


def spelled(text: str, settings: Mapping[str, str]) -> str:
    """A message with settings as the user gives them.

    settings: the name in messages -> what the user writes before the value: "--max-bad ", "--set complete=",
    "recipe.max_bad=". An option is added, other settings are set; what follows --set is quoted for the shell.
    """
    for name, start in settings.items():
        option, key = start.startswith("-"), start.rstrip("= ")

        def given(match: re.Match[str], start: str = start, option: bool = option, key: str = key) -> str:
            verb, between, value = match["verb"] or "", match["between"], match["value"]
            value = _WORDS.get(value, value)
            if not option:
                return f"{verb}{key}{between}{value}"
            if between == " to " and verb != "set ":  # "raise max_bad to 0.1"
                return f"{verb}{key}{between}{value}"
            before, separator, rest = start.partition("--set ")
            written = f"{before}{separator}{shlex.quote(rest + _bare(value))}" if separator else f"{start}{value}"
            return f"add {written}" if verb == "set " else f"{verb}{written}"

        whole = rf"(?<![\w.'-])(?<!--set ){re.escape(name)}"
        text = re.sub(rf"(?P<verb>\b(?:set|raise) )?{whole}(?P<between> to |=)(?P<value>{_VALUE})", given, text)
        if "_" in name:
            text = re.sub(rf"{whole}(?![\w=])", lambda match, key=key: key, text)  # type: ignore[misc]
    return text


def _bare(value: str) -> str:
    """A quoted text without its quotes, which a shell would eat."""
    return value[1:-1] if value[0] in "'\"" else value


@contextlib.contextmanager
def told_as(settings: Mapping[str, str]) -> Iterator[None]:
    """Errors of the block name settings as `spelled` does."""
    try:
        yield
    except GuieError as error:
        error.args = (spelled(str(error), settings), *error.args[1:])
        raise
