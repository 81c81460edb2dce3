"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# a package, and the siblings it may know
LAYERS = {
    "core": set(),
    "datasets": {"core"},
    "models": {"core"},
    "train": {"core", "datasets", "models"},
    "emoji": {"core", "datasets"},
}
HEAVY = {
    "cv2",
    "matplotlib",
    "mmengine",
    "numpy",
    "pandas",
    "pyarrow",
    "sklearn",
    "scipy",
    "tensorflow",
    "timm",
    "torch",
}


def _sources(package: str) -> list[Path]:
    folder = ROOT / f"packages/guie-{package}/src"
    return sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".pyi"})


def _metadata(package: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / f"packages/guie-{package}/pyproject.toml").read_text())["project"]
    return project


def _imports(source: Path) -> Iterator[tuple[str, int]]:
    """Modules that a file imports, in functions and for type checkers too, and those of targets named in strings."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module
            yield node.module, node.lineno
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and (target := re.fullmatch(r"(guie_\w+(?:\.\w+)*):\w+(?:\.\w+)*", node.value))
        ):
            yield target[1], node.lineno


def test_every_package_has_a_layer() -> None:
    assert {path.name.removeprefix("guie-") for path in (ROOT / "packages").glob("guie-*")} == set(LAYERS)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    sources = _sources(package)
    assert any(source.name == "plugin.py" for source in sources)
    allowed = {f"guie_{name}" for name in {package, *LAYERS[package]}}
    wrong = [
        f"{source.relative_to(ROOT)}:{line} {name}"
        for source in sources
        for name, line in _imports(source)
        if name.startswith("guie_") and name.partition(".")[0] not in allowed
    ]
    assert not wrong, f"guie-{package} knows {sorted(allowed)} only"


@pytest.mark.parametrize("package", LAYERS)
def test_dependencies_are_what_is_imported(package: str) -> None:
    """`pyproject.toml` declares every import (in an extra, where it's optional) and nothing else."""
    distributions = importlib.metadata.packages_distributions()
    imported = {
        canonicalize_name(distributions.get(top, [top])[0])
        for source in _sources(package)
        for name, _ in _imports(source)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names and top != f"guie_{package}"
        if not (source.stem == "testing" and top == "pytest")  # for test suites, which bring it
    }
    project = _metadata(package)
    required = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    extras = {
        canonicalize_name(Requirement(text).name)
        for texts in project.get("optional-dependencies", {}).values()
        for text in texts
    }
    assert imported - required - extras == set(), "imported and not declared"
    undeclared_by_mmengine = {"packaging"} if "mmengine" in required else set()
    assert required - imported - undeclared_by_mmengine == set(), "declared and not imported"


@pytest.mark.parametrize("package", LAYERS)
def test_siblings_are_required_as_the_layers_say(package: str) -> None:
    requirements = [Requirement(text) for text in _metadata(package)["dependencies"]]
    siblings = {requirement.name: requirement for requirement in requirements if requirement.name.startswith("guie-")}
    assert set(siblings) <= {f"guie-{name}" for name in LAYERS[package]}
    for name, requirement in siblings.items():
        version = _metadata(name.removeprefix("guie-"))["version"]
        assert version in requirement.specifier, f"{requirement} leaves out the {version} that stands beside it"
        assert all(part.operator in {">=", "<"} for part in requirement.specifier), f"{requirement} is no range"


def _loaded(code: str) -> set[str]:
    """Top-level modules that a fresh process has loaded after `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("package", LAYERS)
def test_importing_a_package_and_its_plugin_is_cheap(package: str) -> None:
    loaded = _loaded(f"import guie_{package}, guie_{package}.plugin")
    assert f"guie_{package}" in loaded
    assert loaded & HEAVY == set()


def test_core_never_imports_torch() -> None:
    loaded = _loaded(
        "import importlib, pkgutil, guie_core\n"
        "for module in pkgutil.walk_packages(guie_core.__path__, 'guie_core.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)"
    )
    assert "mmengine" in loaded
    assert loaded & {"torch", "torchvision", "timm"} == set()
