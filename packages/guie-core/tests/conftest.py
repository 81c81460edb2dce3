# ruff: noqa: E501 -- messages and code are quoted whole
"""Distributions made for a test: real dist-info folders and modules, and nothing else installed."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest

import guie_core.plugins
from guie_core.plugins import Plugins

TOY_MODELS = """
    from guie_core import Entry, Kind, hookimpl

    @hookimpl
    def guie_kinds():
        return [Kind("heads", "Heads"), Kind("backbones", "Backbones"), Kind("losses", "Losses"),
                Kind("optimizers", "Optimizers")]

    @hookimpl
    def guie_heads():
        return [Entry("BatchNormLinear", "toy_parts:BatchNormLinear", "Batch norm, then linear"),
                Entry("Linear", "toy_parts:Linear", "Linear")]

    @hookimpl
    def guie_backbones():
        return [Entry("timm/*", "toy_parts:Backbone", "Any model of timm")]

    @hookimpl
    def guie_losses():
        return [Entry("ArcFace", "toy_parts:ArcFace", "Angular margin")]

    @hookimpl
    def guie_optimizers():
        return [Entry("AdamW", "toy_parts:AdamW", "Adam"), Entry("SAM", "toy_parts:SAM", "Sharpness-aware")]
"""

TOY_PARTS = """
    from __future__ import annotations

    from collections.abc import Sequence
    from dataclasses import dataclass, field
    from pathlib import Path
    from typing import TYPE_CHECKING, Annotated, Literal

    from guie_core import Config, Slot

    if TYPE_CHECKING:
        from nowhere import Unknown

    class BatchNormLinear:
        def __init__(self, in_features: int, out_features: int = 64, dropout: float = 0.0, size_features: int = 3) -> None:
            if not 0 <= dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), not {dropout}")
            self.settings = (in_features, out_features, dropout, size_features)

    class Linear:
        def __init__(self, in_features: int, out_features: int = 64, extra: Unknown = None) -> None:
            self.settings = (in_features, out_features)

    class Backbone:
        def __init__(self, name: str, weights: str = "hub", image_size: int | None = None) -> None:
            self.name, self.weights, self.image_size = name, weights, image_size

    class ArcFace:
        def __init__(self, embedding_size: int, classes: int, scale: float = 30.0, margin: float = 0.5) -> None: ...

    class AdamW:
        def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> None: ...

    class SAM:
        def __init__(self, params, base: Annotated[Config, Slot("optimizers", provides=("params",))], rho: float = 0.05):
            self.base = base

    @dataclass(frozen=True)
    class Training:
        epochs: int = 10
        optimizer: Annotated[Config, Slot("optimizers", provides=("params",))] = field(
            default_factory=lambda: dict(type="AdamW", lr=0.01))

        def __post_init__(self) -> None:
            if self.epochs < 1:
                raise ValueError("epochs must be positive")

    @dataclass(frozen=True, kw_only=True)
    class Recipe:
        backbone: Annotated[Config, Slot("backbones")]
        head: Annotated[Config, Slot("heads", provides=("in_features",))]
        loss: Annotated[Config, Slot("losses", provides=("embedding_size", "classes"))] = field(
            default_factory=lambda: dict(type="ArcFace"))
        arcface: Training = field(default_factory=Training)
        classifier: Training | None = None
        extra_heads: list[Annotated[Config, Slot("heads", provides=("in_features",))]] = field(default_factory=list)
        named: dict[str, Annotated[Config, Slot("heads", provides=("in_features",))]] = field(default_factory=dict)
        mode: Literal["fast", "exact"] = "fast"
        groups: tuple[str, ...] = ()
        pair: tuple[int, float] = (1, 0.5)
        cache: Path | None = None
        weights: Sequence[float] = ()
        seed: int = 0
        verify: bool = True
"""

TOY_TRAIN = """
    from guie_core import Entry, Kind, hookimpl

    @hookimpl
    def guie_kinds():
        return [Kind("recipes", "Recipes")]

    @hookimpl
    def guie_recipes():
        return [Entry("Toy", "toy_parts:Recipe", "A toy")]
"""


class Site:
    """A folder that stands for site-packages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.add("core", "guie-core", "0.1.0", module="guie_core.plugin")

    def add(
        self,
        plugin: str,
        distribution: str,
        version: str,
        code: str | None = None,
        *,
        requires: Sequence[str] = (),
        module: str = "",
    ) -> None:
        """Install a distribution with one plugin; its code goes into a module of its own."""
        module = module or f"{distribution}_plugin".replace("-", "_")
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        info.joinpath("METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")
        info.joinpath("entry_points.txt").write_text(f"[guie.plugins]\n{plugin} = {module}\n")
        if code is not None:
            self.module(module, code)

    def module(self, name: str, code: str) -> None:
        self.path.joinpath(f"{name}.py").write_text(textwrap.dedent(code))

    def toys(self) -> None:
        """Stand-ins for guie-models and guie-train."""
        self.module("toy_parts", TOY_PARTS)
        self.add("models", "guie-models", "0.1.0", TOY_MODELS)
        self.add("train", "guie-train", "0.1.0", TOY_TRAIN)

    def load(self) -> Plugins:
        importlib.invalidate_caches()
        return guie_core.plugins.reload()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Only guie-core is installed, and what the test adds."""
    path = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(path))
    monkeypatch.setattr(metadata.DistributionFinder.Context, "path", property(lambda self: [str(path)]))
    monkeypatch.delenv("GUIE_PLUGINS", raising=False)
    monkeypatch.delenv("GUIE_DISABLED_PLUGINS", raising=False)
    importlib.invalidate_caches()
    guie_core.plugins._load.cache_clear()
    made = Site(path)
    yield made
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(path)) or name.startswith("guie_local_"):
            del sys.modules[name]
    guie_core.plugins._local_files.clear()
    guie_core.plugins._load.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def toys(site: Site) -> Site:
    site.toys()
    site.load()
    return site


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of experiments, which is the working directory's folder `experiments`."""
    folder = tmp_path / "experiments"
    (folder / "_base_").mkdir(parents=True)
    folder.joinpath("_base_", "toy.py").write_text(
        textwrap.dedent(
            '''
            """The base."""
            recipe = dict(
                type="Toy",
                backbone=dict(type="timm/resnet18", weights="none"),
                head=dict(type="BatchNormLinear", dropout=0.1, out_features=32),
                arcface=dict(epochs=5, optimizer=dict(type="SAM", base=dict(type="AdamW", lr=0.01))),
            )
            '''
        )
    )
    monkeypatch.chdir(tmp_path)
    return folder
