"""guie's components as mmengine registries. The one module that knows mmengine's Registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from mmengine.registry import Registry as _Registry

from .entry import Entry
from .errors import UsageError
from .plugins import Plugins
from .registry import build, load


class _Lazy:
    """What stands in the registry for a component until it is used."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.__module__ = entry.target.partition(":")[0]

    def __call__(self, **arguments: Any) -> Any:
        return self.entry.load()(**arguments)

    def __repr__(self) -> str:
        return f"<{self.entry.label}: {self.entry.target}>"


class Registry(_Registry):  # type: ignore[misc]  # mmengine has no types
    """An mmengine registry of guie's components, without its import of any dotted name."""

    def __init__(self, kind: str, entries: list[Entry]) -> None:
        super().__init__(kind, scope="guie")
        self.kind = kind
        for entry in entries:
            # in a conflict the first one stands here; looking the name up names both
            self._module_dict.setdefault(entry.name, _Lazy(entry))

    def get(self, key: str) -> Any:
        """Import the component called `key`, "guie." before it allowed.

        Raises:
            UsageError: there is none.
        """
        return load(self.kind, key.removeprefix(f"{self.scope}."))

    def __contains__(self, key: str) -> bool:
        try:
            self.get(key)
        except UsageError:
            return False
        return True

    def build(self, cfg: Mapping[str, Any], *, where: str = "", **provided: Any) -> Any:
        """Build what `cfg` names, as :func:`guie_core.build` does."""
        config = {key: value for key, value in dict.items(dict(cfg)) if key != "_scope_"}
        if isinstance(config.get("type"), str):
            config["type"] = config["type"].removeprefix(f"{self.scope}.")
        return build(self.kind, config, where=where, **provided)

    def register_module(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise UsageError(
            f"Components are not registered from outside: a plugin's hook guie_{self.kind} returns them.\n"
            "A local file is a plugin too: --plugin path.py, or guie_core.plugins.load_plugin_files([path])."
        )


_made: dict[str, tuple[Plugins, Registry]] = {}


def make_registry(kind: str, plugins: Plugins) -> Registry:
    """The registry of `kind`, made once for these plugins."""
    if kind not in _made or _made[kind][0] is not plugins:
        _made[kind] = (plugins, Registry(kind, plugins.entries(kind)))
    return _made[kind][1]
