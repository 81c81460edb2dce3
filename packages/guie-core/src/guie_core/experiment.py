"""Experiments: a Python file that names a recipe and its settings.

The file is one of mmengine's pure-Python configs. It may take pieces from other files beside it::

    from mmengine.config import read_base

    with read_base():
        from ._base_.fifth_place import recipe

    recipe.update(backbone=dict(type="timm/resnet50"), arcface=dict(epochs=30))
    profile = "auto"

``update`` goes into nested settings, and what isn't named stays. Where it names another ``type``, the settings of the
former component do not stay: they were not meant for the new one. (mmengine's own ``update`` would keep them.)
``_delete_=True`` among nested settings starts them afresh as well.

Loading checks everything that can be checked without running: names, arguments and their types, at any depth.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ExperimentError, Problem, UsageError
from .files import digest
from .profiles import Profile
from .profiles import profile as find_profile
from .registry import check
from .signature import Config as Config
from .signature import Slot as Slot
from .signature import described
from .wording import did_you_mean, ended, listing, nearest, shown

KEYS = ("recipe", "profile")


@dataclass(frozen=True, slots=True)
class Experiment:
    """A loaded and checked experiment. Made by :meth:`load`."""

    path: Path
    name: str  #: the file's name without ".py"
    doc: str  #: its docstring: source, command, what to expect
    recipe: dict[str, Any]  #: plain settings, ``{"type": ..., ...}``
    profile: Profile
    overrides: tuple[str, ...]  #: as given, "recipe.arcface.epochs=3"
    resolved: dict[str, Any]  #: recipe and profile as plain JSON values
    digest: str  #: of the recipe as resolved, without the profile, which doesn't change the result

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), profile: str | Mapping[str, Any] | None = None
    ) -> Experiment:
        """Read, override and check an experiment.

        Args:
            path: the experiment's file.
            overrides: "key=value" each, applied in order. The value is a Python literal (3, 0.5, True, None, [1, 2],
                dict(type="Linear")), else text.
            profile: used instead of the file's; overrides below "profile" change its settings all the same.

        Raises:
            ExperimentError: with all problems of the experiment.
            UsageError: there is no such file.
        """
        path = Path(path)
        source = shown(path)
        doc, values = _read(path, source)
        problems: list[Problem] = []
        plain = {}
        for key, value in values.items():
            plain[key] = _plain(value, key, problems)
        if "recipe" not in plain:
            problems.append(Problem("", "it names no recipe.", 'Write recipe = dict(type="...", ...).'))
        if profile is not None:
            plain["profile"] = dict(profile) if isinstance(profile, Mapping) else profile
        for override in overrides:
            apply_override(plain, override, problems)
        chosen = plain.get("profile", "auto")
        if profile is not None:  # also where an override names another
            name = profile.get("type", "auto") if isinstance(profile, Mapping) else profile
            chosen = {**chosen, "type": name} if isinstance(chosen, Mapping) else profile
        found = None
        try:
            found = find_profile(chosen)
        except ExperimentError as error:
            problems += error.problems
        if "recipe" in plain:
            wrong = check("recipes", plain["recipe"], "recipe")
            # a value that isn't plain has been reported; what the check says of it is noise
            reported = {problem.where for problem in problems}
            problems += [problem for problem in wrong if problem.where not in reported]
        if problems or found is None:
            raise ExperimentError(problems, source)
        recipe = plain["recipe"]
        return cls(
            path=path,
            name=path.stem,
            doc=doc,
            recipe=recipe,
            profile=found,
            overrides=tuple(overrides),
            resolved={"recipe": recipe, "profile": found.as_dict()},
            digest=digest(json.dumps({"recipe": recipe}, sort_keys=True, allow_nan=False)),
        )


def differences(*settings: Any, where: str = "recipe") -> list[tuple[str, ...]]:
    """Where sets of plain settings differ: (key, the value in each), "-" for one that isn't there."""
    if all(isinstance(each, Mapping) for each in settings):
        found = []
        for key in dict.fromkeys(key for each in settings for key in each):
            found += differences(*(each.get(key, _ABSENT) for each in settings), where=f"{where}.{key}")
        return found
    if all(isinstance(each, list) for each in settings):
        # by position, so that one more element of a long list is told as just that
        return differences(*(dict(enumerate(each)) for each in settings), where=where)
    first = settings[0]
    if all(each == first and type(each) is type(first) for each in settings):
        return []
    return [(where, *("-" if each is _ABSENT else repr(each) for each in settings))]


_ABSENT = object()


# --- reading ---


def _read(path: Path, source: str) -> tuple[str, dict[str, Any]]:
    """The docstring and the values of an experiment's file."""
    if path.is_dir():
        raise UsageError(f"{source} is a folder; name one of its experiments: {_beside(path)}.")
    if not path.is_file():
        raise UsageError(f"there is no experiment {source}.{_instead(path)}")
    if path.suffix != ".py":
        raise UsageError(f"{source} is not an experiment: an experiment is a Python file (.py).")
    tree = _parse(path, source)
    files = _check_bases(path, tree, source, (path.resolve(),))
    own = _assigned(tree)
    strange = [
        Problem(name, f"is not a key of an experiment (line {line}).{did_you_mean(name, KEYS)}", _ASSIGN)
        for name, line in own.items()
        if name not in KEYS and not name.startswith("_")
    ]
    if strange:
        raise ExperimentError(strange, source)
    values = _execute(path, source, files)
    return ast.get_docstring(tree) or "", {key: values[key] for key in KEYS if key in values}


_ASSIGN = "Keys: recipe, profile. A name for use within the file begins with _."


def _beside(folder: Path) -> str:
    return listing(sorted(path.name for path in folder.glob("*.py")))


def _instead(path: Path) -> str:
    """What there is instead of an experiment that isn't there, with a leading space; an ending ".py" may be left out,
    and the folder "experiments" as well."""
    folder, name = path.parent, path.name.removesuffix(".py")
    own, below = (sorted(place.glob("*.py")) for place in (folder, folder / "experiments"))
    there = {each.stem: shown(each) for each in below} | {each.stem: each.name for each in own}
    if near := nearest(name, there, 1):
        return f" Did you mean {there[near[0]]!r}?"
    listed = [shown(each) for each in below] if folder == Path() else [each.name for each in own]
    return f" There are {listing(listed)}." if listed else ""


def _parse(path: Path, source: str) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        text = f"\n{error.text.strip()}" if error.text else ""
        raise ExperimentError([Problem(f"{shown(path)}:{error.lineno}", f"{ended(error.msg)}{text}")], source) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ExperimentError([Problem("", f"{shown(path)} cannot be read: {error}")], source) from None


def _check_bases(path: Path, tree: ast.Module, source: str, chain: tuple[Path, ...]) -> set[Path]:
    """Check the files that `path` takes pieces from, before mmengine does and says less; returns them and `path`."""
    files = {path.resolve()}

    def wrong(line: int, message: str, hint: str = "") -> ExperimentError:
        return ExperimentError([Problem(f"{shown(path)}:{line}", message, hint)], source)

    example = "Write:  with read_base():\n            from ._base_.fifth_place import recipe"
    blocks = [node for node in tree.body if isinstance(node, ast.With)]
    for block in blocks:
        call = block.items[0].context_expr
        is_read_base = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "read_base"
        if not is_read_base or len(block.items) > 1:
            raise wrong(block.lineno, "the only 'with' that an experiment can have is read_base().", example)
    if len(blocks) > 1:
        raise wrong(blocks[1].lineno, "there are two blocks 'with read_base()'; put their imports into one.")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            raise wrong(node.lineno, "pieces of another experiment are imported within 'with read_base():'.", example)
    for node in blocks[0].body if blocks else []:
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            raise wrong(node.lineno, "'with read_base()' takes lines 'from .file import name' and no others.", example)
        if not node.level:
            message = f"{node.module!r} is imported absolutely; experiments import each other relatively."
            raise wrong(node.lineno, message, example)
        base = path.absolute().parent.joinpath(*[".."] * (node.level - 1), *node.module.split(".")).with_suffix(".py")
        base = base.resolve()
        if not base.is_file():
            near = did_you_mean(base.stem, [p.stem for p in base.parent.glob("*.py")]) if base.parent.is_dir() else ""
            raise wrong(node.lineno, f"there is no file {shown(base)}, which it takes pieces from.{near}")
        if base in chain:
            raise wrong(node.lineno, f"{shown(base)} takes pieces from itself, by way of this file.")
        inner = _parse(base, source)
        files |= _check_bases(base, inner, source, (*chain, base))
        there = {*_assigned(inner), *_imported(inner)}
        for alias in node.names:
            if alias.name != "*" and alias.name not in there and not _imports_all(inner):
                near = did_you_mean(alias.name, there) or f" It has {listing(sorted(there))}."
                raise wrong(node.lineno, f"{shown(base)} has no {alias.name!r}.{near}")
    return files


def _assigned(tree: ast.Module) -> dict[str, int]:
    """Names that a file assigns at its top level, with the line."""
    found: dict[str, int] = {}
    for node in tree.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        for target in targets:
            for name in ast.walk(target) if isinstance(target, ast.Tuple | ast.List) else [target]:
                if isinstance(name, ast.Name):
                    found.setdefault(name.id, node.lineno)
    return found


def _imported(tree: ast.Module) -> set[str]:
    nodes = [node for block in tree.body if isinstance(block, ast.With) for node in block.body]
    return {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def _imports_all(tree: ast.Module) -> bool:
    return "*" in _imported(tree)


_reading = threading.Lock()


def _execute(path: Path, source: str, files: set[Path]) -> dict[str, Any]:
    """Let mmengine run the file and the files it takes pieces from."""
    from mmengine.config import Config as MmengineConfig

    try:
        with _mended_mmengine():
            loaded = MmengineConfig.fromfile(str(path.absolute()), lazy_import=True)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() in files]
        place = f"{shown(Path(frames[-1].filename).resolve())}:{frames[-1].lineno}" if frames else ""
        message = str(error) if isinstance(error, AttributeError) else f"{type(error).__name__}: {error}"
        raise ExperimentError([Problem(place, message)], source) from error
    values: dict[str, Any] = loaded._to_lazy_dict()
    return values


@contextlib.contextmanager
def _mended_mmengine() -> Iterator[None]:
    """Within the block, mmengine's settings follow a changed type, and it knows the standard library."""
    import mmengine.config.config as module
    import mmengine.config.utils as utils

    original: Any = module.ConfigDict
    is_builtin = utils._is_builtin_module

    def is_standard(name: str) -> bool:
        # mmengine looks at paths, which fails in a virtual environment whose Python is not below /usr: there
        # `from math import pi` would become something to be imported later. `from __future__` has to stay that way,
        # since mmengine may put statements before it.
        root = name.split(".")[0]
        return root in sys.stdlib_module_names - {"__future__"} or name.startswith("mmengine.config")

    class Settings(original):  # type: ignore[misc]  # mmengine has no types
        def update(self, *args: Any, **kwargs: Any) -> None:
            for other in (*args, kwargs):
                for key, value in dict.items(dict(other)):
                    mine = dict.get(self, key)
                    if isinstance(mine, dict) and isinstance(value, dict) and not _starts_afresh(mine, value):
                        mine.update(value)
                    else:
                        self[key] = _without_delete(value)

        merge = update

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                there = [str(key) for key in self]
                near = did_you_mean(name, there) or f" There are {listing(there)}."
                raise AttributeError(f"there are no settings {name!r} here.{near}") from None

    with _reading:
        module.ConfigDict, utils._is_builtin_module = Settings, is_standard
        try:
            yield
        finally:
            module.ConfigDict, utils._is_builtin_module = original, is_builtin
            original.lazy = False


def _starts_afresh(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return bool(new.get("_delete_")) or ("type" in new and new["type"] != old.get("type"))


def _without_delete(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_delete(item) for key, item in dict.items(value) if key != "_delete_"}
    return value


def _plain(value: Any, where: str, problems: list[Problem]) -> Any:
    """`value` as JSON knows it: dictionaries, lists, text, numbers, booleans and None."""
    if isinstance(value, dict):
        plain = {}
        for key, item in dict.items(value):
            if not isinstance(key, str):
                problems.append(Problem(where, f"the name of a setting must be text, not {described(key)}."))
            plain[str(key)] = _plain(item, f"{where}.{key}", problems)
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}.{index}", problems) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(Problem(where, f"expects a finite number, got {value!r}."))
        return None
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    name = getattr(value, "module", None)
    if type(value).__module__.startswith("mmengine.config"):
        message = f"is {value} imported from {name}; an experiment names components by text."
        problems.append(Problem(where, message, "guie plugins list shows the names."))
    else:
        kind = type(value).__name__
        message = f"is a {kind}; an experiment holds settings, lists, text, numbers, True, False and None only."
        problems.append(Problem(where, message))
    return None


# --- overriding ---


def apply_override(values: dict[str, Any], override: str, problems: list[Problem], keys: Sequence[str] = KEYS) -> None:
    """Apply "key=value" to plain values, in place; what is wrong with it is added to `problems`.

    The key's first part is one of `keys`. Whether the component takes the value is for `check` to say.
    """
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        message = f"--set {override!r} is not of the form key=value."
        problems.append(Problem("", message, f"For example: --set {_example(values, keys[0])}"))
        return
    if path[0] not in keys:
        near = did_you_mean(path[0], keys)
        problems.append(Problem(key, f"--set can change what is below {' or '.join(keys)}.{near}"))
        return
    if path[0] == "profile" and len(path) > 1 and not isinstance(values.get("profile"), dict):
        values["profile"] = {"type": values.get("profile", "auto")}
    try:
        _check_finished(text.strip())
        value = _plain(_literal(text), key, problems)
    except ValueError as error:
        message, _, hint = str(error).partition("\n")
        problems.append(Problem(key, f"--set: {message}", hint))
        return
    place: Any = values
    for depth, name in enumerate(path[:-1]):
        where = ".".join(path[: depth + 1])
        if isinstance(place, dict):
            # settings that the file leaves out: the signature says whether they can be
            place = place.setdefault(name, {}) if place.get(name) is not None else _insert(place, name)
        elif (index := _index(place, name, where, problems)) is None:
            return
        else:
            place = place[index]
        if not isinstance(place, dict | list):
            problems.append(Problem(key, f"--set: {where} is {described(place)}, which has no parts to set."))
            return
    if isinstance(place, list):
        index = _index(place, path[-1], key, problems)
        if index is not None:
            place[index] = value
    elif path[-1] == "type" and place.get("type", value) != value:
        place.clear()  # as update() does: the settings of one component are not another's
        place["type"] = value
    else:
        place[path[-1]] = value


def _example(values: Mapping[str, Any], key: str) -> str:
    """An override below `key` that changes nothing, for a shell: of what is there that which lies least deep."""
    places: list[tuple[str, Any]] = [(key, values.get(key))]
    for where, place in places:  # grows meanwhile
        if isinstance(place, list):
            places += [(f"{where}.{index}", item) for index, item in enumerate(place)]
        elif isinstance(place, Mapping):
            places += [(f"{where}.{name}", item) for name, item in place.items() if name != "type"]
        elif where != key:
            text = place if isinstance(place, str) and _literal(place) == place else repr(place)
            return shlex.quote(f"{where}={text}")
    return f"{key}.NAME=VALUE"


def _insert(place: dict[str, Any], name: str) -> dict[str, Any]:
    place[name] = {}
    new: dict[str, Any] = place[name]
    return new


def _index(place: list[Any], name: str, where: str, problems: list[Problem]) -> int | None:
    if name.isdecimal() and int(name) < len(place):
        return int(name)
    holder = where.rpartition(".")[0]
    there = f"its elements are 0 to {len(place) - 1}" if place else "it is empty"
    problems.append(Problem(where, f"--set: {holder} is a list and has no {name!r}: {there}."))
    return None


def _check_finished(text: str) -> None:
    """Raise ValueError for what was meant to be Python, but breaks off: it would become text, which nobody meant."""
    try:
        ast.parse(text, mode="eval")
    except SyntaxError as error:
        reason = error.msg.partition(" (")[0]
        open_bracket = "was never closed" in reason
        if text.startswith("dict(") or (text.startswith(("[", "{", "(")) and open_bracket):
            hint = f"{'Close the bracket' if open_bracket else 'Mend it'}; what is meant as text goes into quotes."
            raise ValueError(f"{text} is not Python: {ended(reason)}\n{hint}") from None
    except ValueError:
        pass


def _literal(text: str) -> Any:
    """A Python literal, in which ``dict(a=1)`` is one too; anything else is text."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return text
    return _literal_node(tree.body, text.strip())


def _literal_node(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"{text!r} cannot be understood; write dict(name=value, ...).")
        return {str(keyword.arg): _literal_node(keyword.value, text) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal_node(item, text) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {ast.literal_eval(k): _literal_node(v, text) for k, v in zip(node.keys, node.values, strict=True) if k}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ast.get_source_segment(text, node)  # [a, b]: text each
