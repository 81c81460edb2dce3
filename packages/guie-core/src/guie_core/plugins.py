"""The loader: finds plugins, isolates those that fail, and says what pluggy passes over in silence.

A plugin is an entry point of group ``guie.plugins`` (or a local file) whose hooks return entries. Each is loaded by
itself: a plugin that fails is recorded with its distribution, version and traceback, and the others still load. The
plugins of guie's own packages come the same way, but cannot be switched off one by one, since each builds on the other.

Environment variables:
    GUIE_PLUGINS: names of the plugins to load beside guie's own, separated by commas; empty for none.
    GUIE_DISABLED_PLUGINS: names of plugins not to load. Both are read before anything is imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from .entry import Entry, Kind, Owner
from .errors import UsageError
from .hooks import GROUP, KINDS_HOOK, KNOWN_KINDS, PREFIX, PROJECT, hookspec
from .wording import did_you_mean, listing, nearest, plural, shown

#: guie's own plugins with the distributions they come from, in the order of their layers.
BUILT_IN = {"core": "guie-core", "datasets": "guie-datasets", "models": "guie-models", "train": "guie-train"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A plugin that was found and could not be used."""

    owner: Owner
    reason: str  #: what is wrong and what to do; may have several lines
    traceback: str = ""  #: when its own code raised

    def __str__(self) -> str:
        return f"plugin {self.owner.plugin} ({self.owner}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two plugins that offer one name."""

    kind: str
    name: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        owners = " and ".join(f"plugin {e.owner.plugin} ({e.owner})" for e in self.entries if e.owner)
        other = self.entries[0].owner.plugin if self.entries[0].owner else ""
        return (
            f"{self.name!r} of kind {self.kind} is offered twice, by {owners}.\n"
            f"Disable one of them (GUIE_DISABLED_PLUGINS), or let the one that is meant to replace the other say so: "
            f"Entry(..., overrides='{other}:{self.entries[0].name}')."
        )


@dataclass(slots=True)
class _Candidate:
    """A plugin on its way through the loader."""

    owner: Owner
    load: Callable[[], Any]
    distribution: metadata.Distribution | None = None
    plugin: Any = None
    implementations: dict[str, dict[str, Any]] = field(default_factory=dict)  # hook name -> pluggy's options


class _RejectedError(Exception):
    """Why a candidate cannot be used."""


class Plugins:
    """All plugins of this process. Made by :func:`plugins`."""

    def __init__(
        self,
        loaded: Iterable[Owner],
        failures: Iterable[Failure],
        disabled: Iterable[Owner],
        kinds: Mapping[str, Kind],
        entries: Iterable[Entry],
    ) -> None:
        self.loaded = tuple(loaded)
        self.failures = tuple(failures)
        self.disabled = tuple(disabled)
        self.kinds = dict(kinds)
        self._named: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in self.kinds}
        for entry in entries:
            self._named[entry.kind].setdefault(entry.name.casefold(), []).append(entry)

    def entries(self, kind: str | None = None) -> list[Entry]:
        """The entries of `kind`, or of all kinds, in the order in which plugins were loaded.

        Raises:
            UsageError: no plugin declares `kind`.
        """
        if kind is None:
            return [entry for name in self.kinds for entry in self.entries(name)]
        return [entry for named in self._of(kind).values() for entry in named]

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The names that more than one plugin offers. They cannot be looked up until that is settled."""
        return tuple(
            Conflict(kind, entries[0].name, tuple(entries))
            for kind, named in self._named.items()
            for entries in named.values()
            if len(entries) > 1
        )

    def find(self, kind: str, name: str) -> Entry:
        """The entry called `name`, or the entry of the family that `name` belongs to.

        Raises:
            UsageError: there is none, or two plugins offer it. The message lists the nearest names with their owners,
                and the plugins that failed to load.
        """
        named = self._of(kind)
        entries = [e for e in named.get(name.casefold(), []) if e.name == name and not e.family]
        if entries and len(named[name.casefold()]) > 1:
            raise UsageError(str(Conflict(kind, name, tuple(named[name.casefold()]))))
        if entries:
            return entries[0]
        families = [e for group in named.values() for e in group if e.family and name.startswith(e.family)]
        families = [e for e in families if len(name) > len(e.family)]
        if families:
            longest = max(families, key=lambda e: len(e.family))
            same = [e for e in families if e.family == longest.family]
            if len(same) > 1:
                raise UsageError(str(Conflict(kind, longest.name, tuple(same))))
            return longest
        raise UsageError(self._unknown(kind, name))

    def _of(self, kind: str) -> dict[str, list[Entry]]:
        if kind in self._named:
            return self._named[kind]
        lines = [f"There is no kind {kind!r} of component.{did_you_mean(kind, self.kinds)}"]
        if kind in KNOWN_KINDS:
            lines.append(f"It belongs to {KNOWN_KINDS[kind]}. Is {KNOWN_KINDS[kind]} installed?")
        else:
            lines.append(f"Kinds: {listing(sorted(self.kinds), 30)}.")
        raise UsageError("\n".join([*lines, *self._missing_lines()]))

    def _unknown(self, kind: str, name: str) -> str:
        entries = self.entries(kind)
        by_name = {entry.name: entry for entry in entries}
        near = [by_name[found].label for found in nearest(name, by_name)]
        lines = [f"{name!r} is not among the {kind}."]
        if near:
            lines[0] += f" Did you mean {' or '.join(near)}?"
        elif entries:
            owned = [entry.label for entry in entries]
            lines.append(f"There are: {listing(owned)}.")
        else:
            lines.append(f"No plugin offers any {kind}.")
        return "\n".join([*lines, *self._missing_lines()])

    def _missing_lines(self) -> list[str]:
        lines = []
        for failure in self.failures:
            first = failure.reason.splitlines()[0]
            lines.append(f"Plugin {failure.owner.plugin} ({failure.owner}) did not load: {first}")
        lines += [f"Plugin {owner.plugin} ({owner}) is disabled." for owner in self.disabled]
        return lines


def plugins() -> Plugins:
    """All plugins, loaded once a process.

    Raises:
        UsageError: GUIE_DISABLED_PLUGINS names one of guie's own plugins.
    """
    return _load(tuple(_local_files))


def reload() -> Plugins:
    """Look for plugins again, for example after one was installed."""
    _load.cache_clear()
    return plugins()


def load_plugin_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Load local files as plugins (``--plugin path.py``), for the rest of this process.

    A file is imported as module ``guie_local_<file name>``; its entries name their targets with
    ``f"{__name__}:MyClass"``.

    Raises:
        UsageError: a file isn't there, or it fails as a plugin.
    """
    for path in map(Path, paths):
        path = path.absolute()
        if not path.is_file():
            raise UsageError(f"--plugin {shown(path)}: there is no such file.")
        if path.suffix != ".py":
            raise UsageError(f"--plugin {shown(path)}: a plugin is a Python file (.py).")
        if path in _local_files:
            continue
        _local_files.append(path)
        failed = [failure for failure in plugins().failures if failure.owner == _local_owner(path)]
        clashes = [c for c in plugins().conflicts if any(entry.owner == _local_owner(path) for entry in c.entries)]
        if failed or clashes:
            _local_files.remove(path)
            raise UsageError(f"--plugin {shown(path)}: {failed[0].reason if failed else clashes[0]}")


def local_files() -> tuple[Path, ...]:
    """The files loaded so, for a process that is started to work with the same plugins."""
    return tuple(_local_files)


_local_files: list[Path] = []


@functools.lru_cache(maxsize=1)
def _load(local_files: tuple[Path, ...]) -> Plugins:
    failures: list[Failure] = []
    candidates, disabled = _candidates(local_files, failures)
    ready = [c for c in candidates if _attempt(c, failures, functools.partial(_import, c))]
    kinds: dict[str, Kind] = {}
    declared_by: dict[str, Owner] = {}
    ready = [c for c in ready if _attempt(c, failures, functools.partial(_declare, c, kinds, declared_by))]
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(_specifications(kinds))
    ready = [c for c in ready if _attempt(c, failures, functools.partial(_register, c, manager, kinds))]
    entries: list[Entry] = []
    usable = []
    for candidate in ready:
        offered: list[Entry] = []
        if _attempt(candidate, failures, functools.partial(_collect, candidate, manager, kinds, offered)):
            entries += offered
            usable.append(candidate)
    entries, unfit = _overridden(entries)
    for owner, reason in unfit:
        failures.append(Failure(owner, reason))
        entries = [entry for entry in entries if entry.owner != owner]
        usable = [c for c in usable if c.owner != owner]
    return Plugins([c.owner for c in usable], failures, disabled, kinds, entries)


def _attempt(candidate: _Candidate, failures: list[Failure], step: Callable[[], None]) -> bool:
    """Run `step`; when it fails, record why and go on with the other plugins."""
    try:
        step()
    except _RejectedError as error:
        cause = "".join(traceback.format_exception(error.__cause__)) if error.__cause__ else ""
        failures.append(Failure(candidate.owner, str(error), cause))
        return False
    return True


def _names(variable: str) -> list[str] | None:
    value = os.environ.get(variable)
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def _candidates(local_files: Iterable[Path], failures: list[Failure]) -> tuple[list[_Candidate], list[Owner]]:
    """What is installed and wanted, guie's own plugins first; nothing is imported."""
    allowed, blocked = _names("GUIE_PLUGINS"), _names("GUIE_DISABLED_PLUGINS") or []
    for name in blocked:
        if name in BUILT_IN:
            raise UsageError(
                f"GUIE_DISABLED_PLUGINS names {name!r}, which is a part of guie itself and cannot be disabled.\n"
                f"Uninstall {BUILT_IN[name]} instead if it is not wanted."
            )
    found: dict[str, list[tuple[metadata.EntryPoint, Owner]]] = {}
    for point in metadata.entry_points(group=GROUP):
        name, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        found.setdefault(point.name, []).append((point, Owner(point.name, name, version)))
    order = [*(name for name in BUILT_IN if name in found), *sorted(set(found) - set(BUILT_IN))]
    candidates: list[_Candidate] = []
    disabled: list[Owner] = []
    if "core" not in found:  # guie_core runs from a source tree that isn't installed
        candidates.append(
            _Candidate(Owner("core", "guie-core", ""), lambda: importlib.import_module("guie_core.plugin"))
        )
    for name in order:
        points = sorted(found[name], key=lambda item: str(item[1]))  # not the order of sys.path
        if name in BUILT_IN:
            strangers = [item for item in points if item[1].distribution != BUILT_IN[name]]
            for _, owner in strangers:
                reason = f"the name {name!r} is taken by {BUILT_IN[name]}. Its author has to choose another one."
                failures.append(Failure(owner, reason))
            points = [item for item in points if item not in strangers]
        elif name in blocked or (allowed is not None and name not in allowed):
            disabled += [owner for _, owner in points]
            continue
        if len({point.value for point, _ in points}) > 1:
            both = " and ".join(f"{owner} ({point.value})" for point, owner in points)
            for _, owner in points:
                reason = f"two packages bring a plugin called {name!r}: {both}. Neither was loaded; uninstall one."
                failures.append(Failure(owner, reason))
            continue
        candidates += [_Candidate(owner, point.load, point.dist) for point, owner in points[:1]]
    for name in allowed or []:
        if name not in found:
            reason = f"GUIE_PLUGINS asks for it, and it is not installed.{did_you_mean(name, found)}"
            failures.append(Failure(Owner(name, "no package", ""), reason))
    for path in local_files:
        candidates.append(_Candidate(_local_owner(path), functools.partial(_import_file, path)))
    return candidates, disabled


def _local_owner(path: Path) -> Owner:
    return Owner(path.stem, shown(path), "")


def _import_file(path: Path) -> ModuleType:
    name = "guie_local_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _unmet(distribution: metadata.Distribution) -> str:
    """Which of guie's packages the distribution needs in another version than the installed one; "" when none."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        name = canonicalize_name(requirement.name)
        if name not in KNOWN_KINDS.values() or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        needs = f"it needs {name}{requirement.specifier}"
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "guie-core":  # it runs, so it is a source tree; nothing to compare with
                continue
            return f"{needs}, and {name} is not installed. Install it: pip install '{name}{requirement.specifier}'"
        if not requirement.specifier.contains(installed, prereleases=True):
            return f"{needs}, and {name} {installed} is installed. Upgrade the older of the two."
    return ""


def _import(candidate: _Candidate) -> None:
    """Import the plugin and find its hooks."""
    if candidate.distribution is not None and (unmet := _unmet(candidate.distribution)):
        raise _RejectedError(unmet)
    try:
        candidate.plugin = candidate.load()
    except (Exception, SystemExit) as error:
        raise _RejectedError(f"importing it raised {type(error).__name__}: {error}") from error
    parser = pluggy.PluginManager(PROJECT)
    for name in dir(candidate.plugin):
        options = parser.parse_hookimpl_opts(candidate.plugin, name)
        if options is not None:
            candidate.implementations[options["specname"] or name] = dict(options, attribute=name)
    if not candidate.implementations:
        raise _RejectedError(
            f"it has no hooks. A hook is a function such as {PREFIX}datasets, decorated with guie_core.hookimpl, that "
            "returns entries." + _undecorated(candidate, ())
        )


def _undecorated(candidate: _Candidate, kinds: Iterable[str]) -> str:
    hooks = {KINDS_HOOK, *(PREFIX + kind for kind in (*KNOWN_KINDS, *kinds))}
    names = [
        n for n in sorted(hooks) if callable(getattr(candidate.plugin, n, None)) and n not in candidate.implementations
    ]
    return f" Not decorated: {', '.join(names)}." if names else ""


def _declare(candidate: _Candidate, kinds: dict[str, Kind], declared_by: dict[str, Owner]) -> None:
    """Take in the kinds that the plugin declares."""
    if KINDS_HOOK not in candidate.implementations:
        return
    declared: list[Kind] = []
    for kind in _call(candidate, KINDS_HOOK):
        if not isinstance(kind, Kind):
            raise _RejectedError(f"{KINDS_HOOK} must return guie_core.Kind objects, and gave {kind!r}.")
        if kind.name in declared_by:
            raise _RejectedError(
                f"it declares the kind {kind.name!r}, which {declared_by[kind.name]} has declared already."
            )
        declared.append(kind)
    for kind in declared:
        kinds[kind.name] = kind
        declared_by[kind.name] = candidate.owner


def _call(candidate: _Candidate, hook: str) -> list[Any]:
    """Call one hook of one plugin, so that what goes wrong can be said of it."""
    function = getattr(candidate.plugin, candidate.implementations[hook]["attribute"])
    try:
        result = function()
        if isinstance(result, str | bytes | Entry | Kind) or not isinstance(result, Iterable):
            raise _RejectedError(f"{hook} must return a list of entries, and returned {result!r}.")
        return list(result)
    except _RejectedError:
        raise
    except (Exception, SystemExit) as error:
        raise _RejectedError(f"calling its hook {hook} raised {type(error).__name__}: {error}") from error


def _specifications(kinds: Mapping[str, Kind]) -> type:
    """What pluggy checks hooks against: one specification a kind, and one for the kinds themselves."""

    def specification(name: str, summary: str) -> Callable[[], Iterable[Entry]]:
        def hook() -> Iterable[Entry]:
            raise NotImplementedError  # only its signature is used

        hook.__name__, hook.__doc__ = name, summary
        return hookspec(hook)

    hooks = {kind.hook: specification(kind.hook, kind.summary) for kind in kinds.values()}
    return type("Specifications", (), {**hooks, KINDS_HOOK: specification(KINDS_HOOK, "Kinds of component")})


def _register(candidate: _Candidate, manager: pluggy.PluginManager, kinds: Mapping[str, Kind]) -> None:
    """Hand the plugin to pluggy, after checking what pluggy ignores."""
    hooks = [KINDS_HOOK, *(kind.hook for kind in kinds.values())]
    for name, options in candidate.implementations.items():
        if name in hooks or options["optionalhook"]:
            continue
        kind = name.removeprefix(PREFIX)
        if kind in KNOWN_KINDS:
            raise _RejectedError(
                f"it has the hook {name}, whose kind is declared by {KNOWN_KINDS[kind]}. Is {KNOWN_KINDS[kind]} "
                f"installed?\nA plugin that can do without it marks the hook @hookimpl(optionalhook=True)."
            )
        near = did_you_mean(name, hooks) or f" Hooks: {listing(hooks, 30)}."
        raise _RejectedError(f"it has the hook {name}, which nothing calls.{near}")
    if missed := _undecorated(candidate, kinds):
        raise _RejectedError(f"some of its hooks lack the decorator guie_core.hookimpl.{missed}")
    try:
        manager.register(candidate.plugin, name=f"{candidate.owner.plugin} ({candidate.owner})")
    except pluggy.PluginValidationError as error:
        raise _RejectedError(f"a hook takes no arguments: {error}") from error
    except ValueError as error:  # registered already, under another name
        raise _RejectedError(f"its module is loaded as another plugin already: {error}") from error


def _collect(
    candidate: _Candidate, manager: pluggy.PluginManager, kinds: Mapping[str, Kind], entries: list[Entry]
) -> None:
    """Call the plugin's hooks and stamp its entries; all of them are taken, or none."""
    offered: list[Entry] = []
    for caller in manager.get_hookcallers(candidate.plugin) or []:
        kind = caller.name.removeprefix(PREFIX)
        if kind not in kinds:
            continue
        for entry in _call(candidate, caller.name):
            if not isinstance(entry, Entry):
                raise _RejectedError(f"{caller.name} must return guie_core.Entry objects, and gave {entry!r}.")
            offered.append(replace(entry, kind=kind, owner=candidate.owner))
    offered.sort(key=lambda entry: list(kinds).index(entry.kind))  # stable: pluggy calls in no given order
    seen: dict[tuple[str, str], Entry] = {}
    for entry in offered:
        key = (entry.kind, entry.name.casefold())
        if key in seen:
            raise _RejectedError(
                f"it offers {entry.name!r} of kind {entry.kind} twice ({seen[key].target}, {entry.target})."
            )
        seen[key] = entry
    entries += offered


def _overridden(entries: list[Entry]) -> tuple[list[Entry], list[tuple[Owner, str]]]:
    """`entries` without those that another one replaces by name, and the owners whose replacement finds nothing."""
    replaced: list[Entry] = []
    unfit: list[tuple[Owner, str]] = []
    for entry in entries:
        if not entry.overrides:
            continue
        assert entry.owner is not None
        plugin, _, name = entry.overrides.partition(":")
        targets = [
            e for e in entries if e.kind == entry.kind and e.name == name and e.owner and e.owner.plugin == plugin
        ]
        if name != entry.name:
            unfit.append((entry.owner, f"{entry.name!r} overrides {entry.overrides!r}: it must have the same name."))
        elif not targets or plugin == entry.owner.plugin:
            there = [
                f"{e.owner.plugin}:{e.name}" for e in entries if e.kind == entry.kind and e.owner and e is not entry
            ]
            near = did_you_mean(entry.overrides, there)
            unfit.append((entry.owner, f"{entry.name!r} overrides {entry.overrides!r}, which is not there.{near}"))
        else:
            replaced += targets
    return [entry for entry in entries if entry not in replaced], unfit


def summary(found: Plugins) -> str:
    """One line: "5 plugins, 42 components, 1 failed"."""
    text = f"{plural(len(found.loaded), 'plugin')}, {plural(len(found.entries()), 'component')}"
    return text + (f", {len(found.failures)} failed" if found.failures else "")
