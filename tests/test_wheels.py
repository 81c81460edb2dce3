"""The wheels, as somebody who has no checkout gets them: built, installed from a folder, and used."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.name for path in (ROOT / "packages").glob("guie-*"))
VENV = Path(os.environ.get("GUIE_VENV", sys.prefix))
# nothing of this repository's or of the process's own
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith(("GUIE_", "PEX"))}


def _run(*command: str | Path, **options: Any) -> str:
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    output: str = result.stdout
    return output


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel a package: what `pants package ::` has built when Pants runs this, else pip's."""
    folder = ROOT
    if not list(folder.glob("guie_*.whl")):
        folder = tmp_path_factory.mktemp("wheels")
        sources = tmp_path_factory.mktemp("sources")
        for package in PACKAGES:  # a copy, since setuptools builds beside the sources
            leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            shutil.copytree(ROOT / "packages" / package, sources / package, ignore=leftovers)
        pip: list[str | Path] = [
            VENV / "bin/python",
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
        ]
        _run(*pip, "-w", folder, *(sources / package for package in PACKAGES))
    found = {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("guie_*.whl")}
    assert sorted(found) == PACKAGES
    return found


def _environment(folder: Path, wheels: Path, *packages: str) -> Path:
    """The bin folder of a new environment with these packages and what they require. `wheels` has the siblings; the
    third-party libraries are lent by .venv, and pip must find every one that is required among them."""
    environment, lent = folder / "environment", folder / "lent"
    _run(VENV / "bin/python", "-m", "venv", "--without-pip", environment)
    python = environment / "bin/python"
    lent.mkdir()
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    for entry in Path(_run(VENV / "bin/python", "-c", where).strip()).iterdir():
        if not entry.name.startswith(("guie", "__editable__")):
            (lent / entry.name).symlink_to(entry)
    (Path(_run(python, "-c", where).strip()) / "lent.pth").write_text(f"{lent}\n")
    pip: list[str | Path] = [VENV / "bin/python", "-m", "pip", "--python", python, "install", "-q", "--no-index"]
    _run(*pip, "--find-links", wheels, *packages)
    return environment / "bin"


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with every package."""
    return _environment(tmp_path_factory.mktemp("installed"), next(iter(wheels.values())).parent, *PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_holds_every_file_of_the_source(package: str, wheels: dict[str, Path]) -> None:
    source = ROOT / "packages" / package / "src"
    files = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.parent.name.endswith(".egg-info")
    }
    with zipfile.ZipFile(wheels[package]) as wheel:
        names = set(wheel.namelist())
    assert files == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_says_what_pyproject_says(package: str, wheels: dict[str, Path]) -> None:
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheels[package]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    assert (metadata["Name"], metadata["Version"]) == (package, project["version"])
    assert metadata["License-Expression"] == project["license"]
    requirements = {Requirement(text) for text in metadata.get_all("Requires-Dist", [])}
    assert {requirement for requirement in requirements if requirement.marker is None} == {
        Requirement(text) for text in project["dependencies"]
    }
    assert not [requirement for requirement in requirements if "==" in str(requirement.specifier)], "an exact pin"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project.get("optional-dependencies", {}))


def test_plugins_list_shows_every_component(installed: Path) -> None:
    plugins = {package: importlib.import_module(f"{package.replace('-', '_')}.plugin") for package in PACKAGES}
    offered = {
        (package, hook.removeprefix("guie_"), entry.name)
        for package, plugin in plugins.items()
        for hook, function in vars(plugin).items()
        if hook.startswith("guie_") and hook != "guie_kinds"
        for entry in function()
    }
    assert {package for package, _, _ in offered} == set(PACKAGES)
    listed = json.loads(_run(installed / "guie", "plugins", "list", "--format", "json", cwd=installed))
    assert {plugin["distribution"]: plugin["status"] for plugin in listed["plugins"]} == dict.fromkeys(
        PACKAGES, "loaded"
    )
    assert {(item["distribution"], item["kind"], item["name"]) for item in listed["components"]} == offered


def test_components_of_the_wheels_import(installed: Path) -> None:
    _run(installed / "guie", "plugins", "check", "train", cwd=installed)


def test_quickstart_starts_from_the_wheels(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    quickstart = tmp_path / "experiments/quickstart.py"
    stages = _run(installed / "guie-train", quickstart, "--dry-run", cwd=tmp_path)
    assert "prepare" in stages
    assert "export" in stages


def test_models_alone_run_their_readme(wheels: dict[str, Path], tmp_path: Path) -> None:
    """guie-models without the rest: a head trained with ArcFace on one's own images, exported, loaded back."""
    scripts = _environment(tmp_path, next(iter(wheels.values())).parent, "guie-models")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "packages/guie-models/README.md").read_text(), re.DOTALL)
    before = """
import torch
from sklearn.datasets import load_sample_images
torch.set_num_threads(1)
torch.manual_seed(0)
whole = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
photos = [photo[:, 4 * i : 4 * i + 150 + i, : 300 - 2 * i] for photo in whole for i in range(6)]
labels = torch.tensor([0] * 6 + [1] * 6)
"""
    after = """
from importlib.metadata import distributions
import guie_models
print(guie_models.__file__)
print(*sorted(d.name for d in distributions() if d.name.startswith("guie")))
print(float((embedding - embedder(photos[0][None])).abs().max()) < 1e-4)
similar = embedder.embed(photos) @ embedder.embed(photos).T
print(bool(similar[:6, :6].min() > similar[:6, 6:].max()))
"""
    (tmp_path / "example.py").write_text(before + example + after)
    out = _run(scripts / "python", "-W", "ignore", "example.py", cwd=tmp_path)
    printed, file, packages, equal, told_apart = out.splitlines()
    assert re.match(r"saved_model\.pt: .* images/s; on 12 images .* the top-5 agree to 100", printed)
    assert Path(file).is_relative_to(tmp_path / "environment")
    assert packages == "guie-core guie-models"
    assert (equal, told_apart) == ("True", "True")
