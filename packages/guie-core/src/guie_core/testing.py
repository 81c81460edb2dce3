"""Tests that every plugin should pass, to be subclassed with pytest::

    from guie_core.testing import PluginContract

    class TestPlugin(PluginContract):
        plugin = "cars"          # the name of its entry point

Contracts of single kinds come from the package that declares the kind: ``guie_datasets.testing.DatasetContract``.
"""

from __future__ import annotations

from typing import ClassVar

from .conformance import LICENSED, entry_findings, plugin_findings
from .entry import Entry
from .plugins import plugins


class PluginContract:
    """An installed plugin loads, is light to list, and what it offers can be used."""

    plugin: ClassVar[str]

    def entries(self) -> list[Entry]:
        return [entry for entry in plugins().entries() if entry.owner and entry.owner.plugin == self.plugin]

    def test_it_loads(self) -> None:
        failed = [str(failure) for failure in plugins().failures if failure.owner.plugin == self.plugin]
        assert not failed, "\n".join(failed)
        there = [owner.plugin for owner in plugins().loaded]
        assert self.plugin in there, f"{self.plugin!r} is not installed; installed are {there}"

    def test_it_offers_something(self) -> None:
        assert self.entries() or self.plugin in [owner.plugin for owner in plugins().loaded]

    def test_names_are_its_own_and_imports_are_light(self) -> None:
        findings = list(plugin_findings(self.plugin, plugins()))
        assert not findings, "\n".join(findings)

    def test_targets_and_signatures(self) -> None:
        findings = [f"{e.kind} {e.name}: {finding}" for e in self.entries() for finding in entry_findings(e, plugins())]
        assert not findings, "\n".join(findings)

    def test_data_has_a_licence(self) -> None:
        missing = [entry.name for entry in self.entries() if entry.kind in LICENSED and not entry.licence]
        assert not missing, f"no licence: {missing}"
