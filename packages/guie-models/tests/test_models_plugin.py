from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import pytest

import guie_models
from guie_core import check
from guie_core.plugins import plugins
from guie_core.testing import PluginContract


class TestPlugin(PluginContract):
    plugin: ClassVar[str] = "models"


def test_every_kind_and_name() -> None:
    found = {
        (entry.kind, entry.name) for entry in plugins().entries() if entry.owner and entry.owner.plugin == "models"
    }
    assert found == {
        ("backbones", "timm/*"),
        ("backbones", "open_clip/*"),
        ("backbones", "concat"),
        ("views", "Squash"),
        ("views", "CenterCrop"),
        ("views", "RandomSquareCrop"),
        ("heads", "BatchNormLinear"),
        ("heads", "Linear"),
        ("heads", "Whitened"),
        *(("heads", name) for name in ("PCA", "LinearBatchNormPReLU", "MLP", "MultiSampleDropout", "ParallelLinears")),
        ("heads", "GeM"),
        *(("losses", name) for name in ("ArcFace", "CosFace", "NormFace", "AdaFace", "ElasticFace", "CurricularFace")),
        ("losses", "pml/*"),
        ("optimizers", "SAM"),
        ("optimizers", "ASAM"),
        ("optimizers", "AdamW"),
        ("optimizers", "Adam"),
        ("optimizers", "SGD"),
        ("exporters", "TorchScript"),
        ("exporters", "Onnx"),
        ("exporters", "Program"),
        ("exporters", "Safetensors"),
        ("commands", "models"),
    }


@pytest.mark.parametrize("name", dir(guie_models))
def test_public_names_can_be_imported(name: str) -> None:
    assert getattr(guie_models, name).__doc__


def test_the_package_is_light_until_it_is_used() -> None:
    code = (
        "import sys, guie_models, guie_models.plugin; print([m for m in ('torch', 'timm', 'numpy') if m in"
        " sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_nested_mistake_is_found_before_anything_is_built() -> None:
    problems = check(
        "optimizers", {"type": "SAM", "base": {"type": "AdamW", "lrr": 1}}, "recipe.optimizer", ("params",)
    )
    assert [problem.where for problem in problems] == ["recipe.optimizer.base.lrr"]
    problems = check("heads", {"type": "BatchNormLinear", "droput": 0.2}, "recipe.head", ("in_features",))
    assert "has no argument 'droput'. Did you mean 'dropout'?" in str(problems[0])
