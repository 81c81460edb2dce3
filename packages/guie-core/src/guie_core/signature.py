"""Checks what an experiment says against what a component takes, without building it.

The signature of a component's target is the one source of truth: its argument names and type hints. Understood are
numbers, text, booleans, paths, ``Literal``, lists and sequences, tuples, mappings, unions and ``None``, dataclasses
(nested groups of settings), and :class:`Slot` (a nested component). Other hints are left to the component itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .errors import ExperimentError, Problem
from .wording import did_you_mean, listing, nearest

#: Settings as an experiment writes them: ``dict(type="Linear", out_features=64)``.
Config = Mapping[str, Any]

_SEQUENCES = (list, Sequence, Collection, Iterable, set, frozenset, Set)


@dataclass(frozen=True, slots=True)
class Slot:
    """Marks an argument that names a component, in the annotation of the component that holds it.

    ``head: Annotated[Config, Slot("heads", provides=("in_features",))]`` takes ``dict(type="Linear", ...)``. The holder
    receives that mapping and builds it with ``build("heads", head, in_features=...)`` when it knows the rest.
    """

    kind: str
    provides: tuple[str, ...] = ()  #: arguments that the holder gives and an experiment may not set
    defaults: tuple[str, ...] = ()  #: arguments that the holder gives unless the experiment does


#: Checks the component in a slot: (slot, settings, where) -> problems. From guie_core.registry.
CheckSlot = Callable[[Slot, Any, str], list[Problem]]


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a class or function, with their hints resolved."""

    hints: Mapping[str, Any]  #: name -> hint; Any where there is none or it cannot be resolved
    defaults: Mapping[str, Any]  #: name -> default, for those that have one; a default_factory's result
    open: bool  #: takes any further argument (**kwargs)
    required: tuple[str, ...]


def signature(target: Any) -> Signature:
    """The signature of a class or function.

    Raises:
        ValueError, TypeError: `target` has none, as some built-in functions.
    """
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        return _dataclass_signature(target)
    hints: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    required = []
    is_open = False
    function: Any = inspect.unwrap(inspect.getattr_static(target, "__init__") if isinstance(target, type) else target)
    function = getattr(function, "__func__", function)
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            continue
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            defaults[name] = parameter.default
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        hints[name] = _resolve(annotation, getattr(function, "__globals__", {}))
    return Signature(hints, defaults, is_open, tuple(required))


def _dataclass_signature(target: type) -> Signature:
    namespaces: dict[str, dict[str, Any]] = {}
    for base in reversed(target.__mro__):
        for name in inspect.get_annotations(base):
            namespaces[name] = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
    hints: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    required = []
    for item in dataclasses.fields(target):
        if not item.init:
            continue
        hints[item.name] = _resolve(item.type, namespaces.get(item.name, {}))
        if item.default is not dataclasses.MISSING:
            defaults[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            defaults[item.name] = item.default_factory()
        else:
            required.append(item.name)
    return Signature(hints, defaults, False, tuple(required))


def _resolve(annotation: Any, namespace: dict[str, Any]) -> Any:
    # one at a time: a name that exists for type checkers only must not take the other hints with it
    holder = types.SimpleNamespace(__annotations__={"hint": annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)["hint"]
    except Exception:
        return Any


def check_arguments(
    found: Signature,
    values: Mapping[str, Any],
    where: str,
    label: str,
    check_slot: CheckSlot,
    *,
    provides: Collection[str] = (),
    defaults: Collection[str] = (),
    noun: str = "argument",
) -> tuple[dict[str, Any], list[Problem]]:
    """Check `values` against a signature; returns them converted (dataclasses, paths, tuples), and all problems.

    `provides` and `defaults` are those of :class:`Slot`.
    """
    converted: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        place = f"{where}.{name}" if where else name
        if name in provides:
            message = f"{label} gets {name!r} from what holds it; an experiment cannot set it."
            problems.append(Problem(place, message))
        elif name in found.hints:
            converted[name], wrong = convert(
                found.hints[name], value, place, check_slot, default=found.defaults.get(name, inspect.Parameter.empty)
            )
            problems += wrong
        elif found.open:
            converted[name] = value
        else:
            takes = f"It takes: {listing(found.hints, 40)}." if found.hints else f"It takes no {noun}s."
            message = f"{label} has no {noun} {name!r}.{did_you_mean(str(name), found.hints)}"
            problems.append(Problem(place, message, takes))
    misspelt = [name for name in values if name not in found.hints]
    for name in found.required:
        if name not in values and name not in provides and name not in defaults:
            # a misspelt name is one mistake, not two
            if any(nearest(str(wrong), [name]) for wrong in misspelt):
                continue
            problems.append(Problem(where, f"{label} needs the {noun} {name!r}: {expected(found.hints[name])}."))
    return converted, problems


def convert(
    hint: Any, value: Any, where: str, check_slot: CheckSlot, *, default: Any = inspect.Parameter.empty
) -> tuple[Any, list[Problem]]:
    """`value` as `hint` wants it, and what is wrong with it."""
    if type(value) is type(default) and value == default and not _slots(hint):
        return value, []
    if isinstance(default, Mapping) and isinstance(value, Mapping) and "type" in default and "type" not in value:
        value = {**default, **value}  # settings without a type adjust the default component
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        slot = next((extra for extra in hint.__metadata__ if isinstance(extra, Slot)), None)
        return (value, check_slot(slot, value, where)) if slot else convert(arguments[0], value, where, check_slot)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where, check_slot)
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return value, []
        near = did_you_mean(value, [a for a in arguments if isinstance(a, str)]) if isinstance(value, str) else ""
        return value, [Problem(where, f"expects {expected(hint)}, got {described(value)}.{near}")]
    wrong = [Problem(where, f"expects {expected(hint)}, got {described(value)}.{_aside((hint,), value)}")]
    base = origin or hint
    if base is None or base is type(None):
        return value, [] if value is None else wrong
    if base is bool:
        return value, [] if isinstance(value, bool) else wrong
    if base is int:
        return value, [] if isinstance(value, int) and not isinstance(value, bool) else wrong
    if base is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return (float(value), []) if fits else (value, wrong)
    if base is str:
        return value, [] if isinstance(value, str) else wrong
    if isinstance(base, type) and issubclass(base, os.PathLike):
        return (Path(value), []) if isinstance(value, str | os.PathLike) else (value, wrong)
    if base is tuple:
        return _convert_tuple(arguments, value, where, check_slot, wrong)
    if base in _SEQUENCES:
        if not isinstance(value, list | tuple | set | frozenset):
            return value, wrong
        items, problems = _convert_each([arguments[0] if arguments else Any] * len(value), value, where, check_slot)
        return (set(items) if base in (set, frozenset, Set) and not problems else items), problems
    if isinstance(base, type) and issubclass(base, Mapping):
        if not isinstance(value, Mapping):
            return value, wrong
        inner = arguments[1] if len(arguments) == 2 else Any
        converted, problems = {}, []
        for key, item in value.items():
            converted[key], found = convert(inner, item, f"{where}.{key}", check_slot)
            problems += found
        return converted, problems
    if isinstance(base, type) and dataclasses.is_dataclass(base):
        if isinstance(value, base):
            return value, []
        if not isinstance(value, Mapping):
            return value, wrong
        label = where.rpartition(".")[2] or base.__name__
        converted, problems = check_arguments(signature(base), value, where, label, check_slot, noun="setting")
        if problems:
            return value, problems
        try:
            return base(**converted), []
        except ValueError as error:  # its own __post_init__
            return value, [Problem(where, str(error))]
        except ExperimentError as error:  # which says of what setting
            return value, [dataclasses.replace(each, where=f"{where}.{each.where}") for each in error.problems]
    return value, []


def _slots(hint: Any) -> bool:
    if get_origin(hint) is Annotated and any(isinstance(extra, Slot) for extra in hint.__metadata__):
        return True
    return any(_slots(inner) for inner in get_args(hint))


def _understood(hint: Any) -> bool:
    """Whether `convert` judges values by this hint."""
    origin = get_origin(hint)
    if origin in (Annotated, Union, types.UnionType, Literal) or hint is Any or hint is None:
        return True
    base = origin or hint
    if not isinstance(base, type):
        return False
    simple = (bool, int, float, str, tuple, type(None), *_SEQUENCES)
    return base in simple or issubclass(base, os.PathLike | Mapping) or dataclasses.is_dataclass(base)


def _is_instance(value: Any, hint: Any) -> bool:
    try:
        return isinstance(value, hint)
    except TypeError:
        return False


def _convert_union(members: Sequence[Any], value: Any, where: str, check_slot: CheckSlot) -> tuple[Any, list[Problem]]:
    # `float | Tensor`: no experiment can write a Tensor, so the number is what is checked
    meant = [member for member in members if _understood(member) or _is_instance(value, member)]
    if all(member in (None, type(None)) for member in meant):
        meant = list(members)
    results = [(member, *convert(member, value, where, check_slot)) for member in meant]
    fitting = [(member, converted) for member, converted, problems in results if not problems]
    for member, converted in fitting:  # the exact type first: 3 is an int for `int | float`
        if type(converted) is type(value) or member is type(value):
            return converted, []
    if fitting:
        return fitting[0][1], []
    if value and isinstance(value, Mapping):
        settings = [
            (value.keys() - signature(member).hints.keys(), problems)
            for member, _, problems in results
            if isinstance(member, type) and dataclasses.is_dataclass(member)
        ]
        if settings:  # the group that knows most of the names is the one that was meant
            return value, min(settings, key=lambda found: (len(found[0]), len(found[1])))[1]
    deeper = [problems for _, _, problems in results if any(problem.where != where for problem in problems)]
    slots = [problems for member, _, problems in results if _slots(member) and isinstance(value, Mapping)]
    if deeper or slots:  # the member that was meant says more than "expects a or b"
        return value, min(deeper or slots, key=len)
    wanted = " or ".join(dict.fromkeys(expected(member) for member in members))
    return value, [Problem(where, f"expects {wanted}, got {described(value)}.{_aside(members, value)}")]


def _convert_tuple(
    arguments: Sequence[Any], value: Any, where: str, check_slot: CheckSlot, wrong: list[Problem]
) -> tuple[Any, list[Problem]]:
    if not isinstance(value, list | tuple):
        return value, wrong
    if not arguments:
        return tuple(value), []
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = [arguments[0]] * len(value)
    if len(arguments) != len(value):
        return value, wrong
    items, problems = _convert_each(arguments, value, where, check_slot)
    return tuple(items), problems


def _convert_each(
    hints: Iterable[Any], values: Iterable[Any], where: str, check_slot: CheckSlot
) -> tuple[list[Any], list[Problem]]:
    items, problems = [], []
    for index, (hint, value) in enumerate(zip(hints, values, strict=True)):
        item, found = convert(hint, value, f"{where}.{index}", check_slot)
        items.append(item)
        problems += found
    return items, problems


def expected(hint: Any) -> str:
    """A hint in words: "a number", "a list of text", "'a' or 'b'"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        slot = next((extra for extra in hint.__metadata__ if isinstance(extra, Slot)), None)
        return f"dict(type=...) of kind {slot.kind}" if slot else expected(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(expected(member) for member in arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    base = origin or hint
    simple: dict[Any, str] = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "text",
        None: "None",
        type(None): "None",
        Any: "a value",
    }
    if base in simple:
        return simple[base]
    if isinstance(base, type) and issubclass(base, os.PathLike):
        return "a path"
    if base is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} ({', '.join(expected(inner) for inner in arguments)})"
    if base is tuple or base in _SEQUENCES:
        inner = arguments[0] if arguments else Any
        return "a list" if inner is Any else f"a list, each {expected(inner)}"
    if isinstance(base, type) and (issubclass(base, Mapping) or dataclasses.is_dataclass(base)):
        return "settings, dict(...)"
    return getattr(base, "__name__", str(base))


def described(value: Any) -> str:
    """A value with its type, for messages: "the text '3'", "None", "a list of 2"."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}..."
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, list | tuple):
        text = repr(list(value))
        return text if len(text) <= 60 else f"a list of {len(value)}"
    if isinstance(value, Mapping):
        return f"settings ({listing(map(str, value), 5)})" if value else "empty settings"
    return f"{type(value).__name__} {value!r}"


def _aside(members: Sequence[Any], value: Any) -> str:
    """What somebody who wrote `value` where one of `members` is expected may have overlooked."""
    if isinstance(value, str):
        word = value.strip().capitalize()
        if word in ("True", "False") and bool in members:
            return f" Write {word}, without quotes."
        if word == "None" and type(None) in members:
            return " Write None, without quotes."
        if any(get_origin(m) in (tuple, *_SEQUENCES) or m in (tuple, *_SEQUENCES) for m in members):
            return f" Write [{value!r}] for a list of one."
    return ""
