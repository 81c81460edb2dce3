"""Components by name: look one up, check what an experiment says of it, build it.

:func:`build` and :func:`check` need nothing but the plugins. :func:`registry` gives the same components as an mmengine
``Registry`` for code that works with those; mmengine is imported only then.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from .entry import Entry
from .errors import ExperimentError, GuieError, Problem, UsageError
from .plugins import plugins
from .signature import Config as Config
from .signature import Signature, check_arguments, described, expected, signature
from .signature import Slot as Slot
from .wording import listing

if TYPE_CHECKING:
    from ._mmengine import Registry


def registry(kind: str) -> Registry:
    """The mmengine ``Registry`` of `kind`, scope "guie", filled with lazy entries.

    ``registry(kind).get(name)`` imports and returns the target, ``.build(dict(type=name, ...))`` builds it as
    :func:`build` does. Dotted names are not imported, and nothing is registered from outside: components come from
    plugins.

    Raises:
        UsageError: no plugin declares `kind`.
    """
    from ._mmengine import make_registry

    return make_registry(kind, plugins())


def lookup(kind: str, name: str, where: str = "") -> Entry:
    """The entry called `name`; for a name such as "timm/resnet18", the entry of the family "timm/*".

    Raises:
        UsageError: there is none; the message lists the nearest names and their owners. It begins with `where`.
    """
    try:
        return plugins().find(kind, name)
    except UsageError as error:
        raise UsageError(f"{where}: {error}" if where else str(error)) from None


def load(kind: str, name: str, where: str = "") -> Callable[..., Any]:
    """The class or function called `name`; a family's target with its argument ``name`` filled in.

    Raises:
        GuieError: there is none, or it cannot be imported.
    """
    entry = lookup(kind, name, where)
    target: Callable[..., Any] = entry.load()
    return functools.partial(target, name=name.removeprefix(entry.family)) if entry.family else target


def check(
    kind: str,
    config: Any,
    where: str,
    provides: Collection[str] = (),
    defaults: Collection[str] = (),
) -> list[Problem]:
    """All problems of ``config = dict(type=..., **arguments)`` against the component's signature; nothing is built.

    `provides` names arguments that the caller gives and `config` may not set; `defaults` those that the caller gives
    unless `config` does. The component's target is imported.
    """
    return _examine(kind, config, where, provides, defaults)[-1]


def build(kind: str, config: Mapping[str, Any], /, *, where: str = "", **provided: Any) -> Any:
    """Build the component that ``config = dict(type=..., **arguments)`` names.

    `provided` are arguments that the caller gives; those that `config` sets itself win, and those that the component
    does not take are left out, so that callers can offer more in later versions. Nested settings become dataclasses,
    lists become tuples and text becomes paths where the signature says so.

    Raises:
        ExperimentError: `config` doesn't fit the component, with all problems, or the component refuses its arguments.
        GuieError: the component cannot be imported.
    """
    place = where or kind
    target, found, converted, problems = _examine(kind, config, place, (), tuple(provided))
    if problems:
        raise ExperimentError(problems)
    given = {name: value for name, value in provided.items() if found.open or name in found.hints}
    try:
        return target(**{**given, **converted})
    except (ValueError, TypeError) as error:
        label = lookup(kind, config["type"]).label
        raise ExperimentError([Problem(place, f"{label} refused its arguments: {error}")]) from error
    except UsageError as error:
        if not where or isinstance(error, ExperimentError):  # of a component within it, which says where
            raise
        raise ExperimentError([Problem(where, str(error))]) from error


#: The component's target, its signature, the converted arguments, and the problems.
_Examined = tuple[Callable[..., Any], Signature, dict[str, Any], list[Problem]]


def _examine(kind: str, config: Any, where: str, provides: Collection[str], defaults: Collection[str]) -> _Examined:
    nothing = Signature({}, {}, True, ())

    def failed(message: str, place: str = where, hint: str = "") -> _Examined:
        return build, nothing, {}, [Problem(place, message, hint)]

    if not isinstance(config, Mapping):
        hint = f"Write dict(type={config!r})." if isinstance(config, str) else ""
        return failed(f"expects dict(type=...) of kind {kind}, got {described(config)}.", hint=hint)
    try:
        names = [entry.name for entry in plugins().entries(kind)]
    except UsageError as error:
        first, _, rest = str(error).partition("\n")
        return failed(first, hint=rest)
    if "type" not in config:
        there = ", ".join(config) or "nothing"
        return failed(
            f"has no 'type' that says which of the {kind} it is (it has {there}).", hint=f"{_these(kind, names)}"
        )
    name = config["type"]
    if not isinstance(name, str):
        return failed(f"expects the name of one of the {kind}, got {described(name)}.", f"{where}.type")
    try:
        entry = lookup(kind, name)
    except UsageError as error:
        first, _, rest = str(error).partition("\n")
        return failed(first, f"{where}.type", rest)
    try:
        target = load(kind, name)
        found = signature(entry.load())
    except GuieError as error:
        first, _, rest = str(error).partition("\n")
        return failed(first, f"{where}.type", rest)
    except (TypeError, ValueError):  # no signature to be had: the component itself is the judge
        found = nothing
    label = f"{name} ({entry.owner})"
    own = ("name",) if entry.family else ()
    arguments = {key: value for key, value in config.items() if key != "type"}
    converted, problems = check_arguments(
        found, arguments, where, label, check_slot, provides=(*provides, *own), defaults=defaults
    )
    return target, found, converted, problems


def check_slot(slot: Slot, config: Any, where: str) -> list[Problem]:
    return check(slot.kind, config, where, slot.provides, slot.defaults)


def _these(kind: str, names: list[str]) -> str:
    return f"The {kind} are: {listing(names)}." if names else f"No plugin offers any {kind}."


__all__ = ["Config", "Slot", "build", "check", "expected", "load", "lookup", "registry"]
