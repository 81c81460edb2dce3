"""The markers of guie's hooks.

There is one hook a kind: a plugin's ``guie_<kind>()`` takes nothing and returns the entries that it offers. The hook
``guie_kinds()`` returns the kinds that the plugin declares, and each of them makes its own hook.
"""

from __future__ import annotations

import pluggy

PROJECT = "guie"
GROUP = "guie.plugins"  #: the entry-point group that plugins are found in
PREFIX = "guie_"
KINDS_HOOK = "guie_kinds"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

#: Who declares the kinds of guie's own packages: for the hint when a hook's package is not installed.
KNOWN_KINDS = {
    "profiles": "guie-core",
    "commands": "guie-core",
    "datasets": "guie-datasets",
    "filters": "guie-datasets",
    "splits": "guie-datasets",
    "samplers": "guie-datasets",
    "backbones": "guie-models",
    "views": "guie-models",
    "heads": "guie-models",
    "losses": "guie-models",
    "optimizers": "guie-models",
    "exporters": "guie-models",
    "stages": "guie-train",
    "recipes": "guie-train",
    "metrics": "guie-train",
    "protocols": "guie-train",
    "trackers": "guie-train",
}
