"""What the package offers as a plugin, and that it is light until used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import guie_datasets
from guie_core import build, check
from guie_core.testing import PluginContract


class TestPlugin(PluginContract):
    plugin = "datasets"


def test_public_names_are_there() -> None:
    assert {"Manifest", "ImageRef", "Row", "Dataset", "prepare", "split", "decode", "read_images"} <= set(
        dir(guie_datasets)
    )
    for name in guie_datasets.__all__:
        assert getattr(guie_datasets, name) is not None


def test_no_torch_and_nothing_heavy_at_import() -> None:
    code = (
        "import sys, guie_datasets, guie_datasets.plugin;"
        "heavy = {'numpy', 'pyarrow', 'pandas', 'PIL', 'sklearn'} & set(sys.modules);"
        "[getattr(guie_datasets, name) for name in guie_datasets.__all__];"
        "import guie_datasets.testing;"
        "print(heavy or '{}', {'torch', 'tensorflow', 'timm'} & set(sys.modules) or '{}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{}", "{}"]


def test_components_are_built_from_settings(tmp_path: Path) -> None:
    dataset = build(
        "datasets", {"type": "folder", "root": str(tmp_path), "category": {"a": "b"}}, where="recipe.data.0"
    )
    assert isinstance(dataset, guie_datasets.ClassFolders)
    shards = build("datasets", {"type": "tfrecord", "folder": str(tmp_path), "source": "x", "labels": [0, 9]})
    assert shards.labels == (0, 9)
    assert build("splits", {"type": "HoldOutClasses", "classes": 3}) == guie_datasets.HoldOutClasses(3)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("datasets", {"type": "folder", "rot": "x"}, "no argument 'rot'"),
        ("datasets", {"type": "folder", "root": 3}, "expects"),
        ("splits", {"type": "UnseenClasses", "folds": "20"}, "expects a whole number"),
        ("splits", {"type": "HoldOutClasses"}, "needs the argument 'classes'"),
    ],
)
def test_mistakes_in_settings_are_found(kind: str, settings: dict[str, object], message: str) -> None:
    problems = check(kind, settings, "recipe.x")
    assert message in " ".join(map(str, problems))


def test_a_manifest_knows_its_class() -> None:
    manifest = guie_datasets.Manifest.from_columns(
        {"path": ["a", "b"], "label": np.array([0, 1]), "width": [1, 1], "height": [1, 1], "hash": ["0" * 32, "1" * 32]}
    )
    assert repr(manifest).startswith("<Manifest: 2 images of 2 classes")
