"""What every package has, and that the locks fit what the packages ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.name for path in (ROOT / "packages").glob("guie-*"))


def _project(package: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    return project


def _locked(lock: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_tells_what_it_is(package: str) -> None:
    folder, project = ROOT / "packages" / package, _project(package)
    assert project["name"] == package
    assert (folder / "README.md").read_text().startswith(f"# {package}\n")
    assert (folder / "src" / package.replace("-", "_") / "py.typed").is_file()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    versions = re.findall(r"^## \[?(\d[\w.]*)", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[:1] == [project["version"]], "the newest version in CHANGELOG.md is not pyproject.toml's"


@pytest.mark.parametrize("lock", ["cuda13", "cuda12"])
@pytest.mark.parametrize("package", PACKAGES)
def test_lock_holds_what_the_package_needs(package: str, lock: str) -> None:
    locked, project = _locked(lock), _project(package)
    extras = project.get("optional-dependencies", {})
    # guie-models[onnx] and guie-models[onnx-gpu] exclude each other; the locks have the latter
    texts = [*project["dependencies"], *(text for extra in extras if extra != "onnx" for text in extras[extra])]
    for requirement in map(Requirement, texts):
        if requirement.name in PACKAGES:
            continue
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"requirements/{lock}.txt lacks {requirement}"
        assert requirement.specifier.contains(
            version, prereleases=True
        ), f"requirements/{lock}.txt has {version}: {requirement}"


@pytest.mark.parametrize("lock", ["pytest", "tools"])
def test_pants_uses_the_tools_of_the_environment(lock: str) -> None:
    locked = _locked(lock)
    assert locked
    assert locked.items() <= _locked("cuda13").items()


@pytest.mark.parametrize("lock", ["cuda13", "cuda12", "pytest", "tools"])
def test_locks_hold_hashes_and_no_addresses(lock: str) -> None:
    lines = (ROOT / "requirements" / f"{lock}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==\S+ \\| {4}--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines)
    assert sum("==" in line for line in lines) == len(_locked(lock))


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "./pants test ::"
    assert re.search(rf"^[$ ]*{re.escape(command)}", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert re.search(rf"^{re.escape(command)}$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
