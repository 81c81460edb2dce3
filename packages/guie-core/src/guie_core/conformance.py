"""What a good plugin keeps to, beyond what the loader insists on. For ``guie plugins check`` and guie_core.testing."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, get_args

from .entry import Entry
from .errors import GuieError
from .plugins import Plugins
from .signature import Slot, signature
from .wording import did_you_mean

#: Importing a plugin's module must not bring these in: every listing and every --help would wait for them.
HEAVY = ("torch", "torchvision", "timm", "open_clip", "mmengine", "numpy", "pandas", "pyarrow", "PIL", "tensorflow")
#: Kinds whose entries bring data or weights of somebody, which have a licence.
LICENSED = ("datasets",)


def heavy_imports(module: str) -> list[str]:
    """Which of the heavy packages come in with `import module`, in a fresh interpreter.

    Raises:
        GuieError: the import fails there.
    """
    code = (
        f"import json, sys, importlib; importlib.import_module({module!r}); "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    path = {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | path
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:]
        raise GuieError(f"importing {module} in a fresh interpreter fails: {' '.join(last)}")
    names: list[str] = json.loads(result.stdout.splitlines()[-1])
    return names


def entry_findings(entry: Entry, plugins: Plugins) -> Iterator[str]:
    """What is wrong with an entry: its target, its signature, its slots, its licence."""
    if entry.kind in LICENSED and not entry.licence:
        yield "it names no licence; data of others has one (an SPDX expression, or 'LicenseRef-unknown')"
    try:
        target = entry.load()
    except GuieError as error:
        yield str(error)
        return
    if isinstance(target, type) or inspect.isroutine(target):
        yield from _signature_findings(entry, target, plugins)
    elif isinstance(target, types.ModuleType):
        yield f"the target {entry.target} is a module, not a class, function or value"


def _signature_findings(entry: Entry, target: Any, plugins: Plugins) -> Iterator[str]:
    try:
        found = signature(target)
    except (TypeError, ValueError) as error:
        yield f"its signature cannot be read: {error}"
        return
    if entry.family and "name" not in found.hints and not found.open:
        yield f"it is a family, and {entry.target} takes no argument 'name'"
    for name in _unresolved(target, found.hints):
        yield f"the type hint of {name!r} cannot be resolved, so its values go unchecked; import its names at run time"
    for name, hint in found.hints.items():
        for slot in _slots_in(hint):
            if slot.kind not in plugins.kinds:
                near = did_you_mean(slot.kind, plugins.kinds)
                yield f"the slot {name!r} is of kind {slot.kind!r}, which nothing declares.{near}"


def _unresolved(target: Any, hints: Any) -> list[str]:
    parameters = inspect.signature(target).parameters
    written = {name: p.annotation for name, p in parameters.items() if p.annotation is not p.empty}
    unknown = [name for name, hint in hints.items() if hint is Any]
    return [name for name in unknown if name in written and str(written[name]).split(".")[-1] != "Any"]


def _slots_in(hint: Any) -> Iterator[Slot]:
    if typing.get_origin(hint) is typing.Annotated:
        yield from (extra for extra in hint.__metadata__ if isinstance(extra, Slot))
    for inner in get_args(hint):
        yield from _slots_in(inner)


def plugin_findings(plugin: str, plugins: Plugins) -> Iterator[str]:
    """What is wrong with a loaded plugin as a whole."""
    from importlib import metadata

    from .hooks import GROUP

    for conflict in plugins.conflicts:
        if any(entry.owner and entry.owner.plugin == plugin for entry in conflict.entries):
            yield str(conflict)
    for point in metadata.entry_points(group=GROUP):
        if point.name == plugin:
            heavy = heavy_imports(point.module)
            if heavy:
                yield (
                    f"importing {point.module} also imports {', '.join(heavy)}, which every listing and --help waits "
                    "for; keep them out of that module and of its package's __init__"
                )
