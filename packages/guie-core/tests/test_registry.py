# ruff: noqa: E501 -- messages and code are quoted whole
from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from guie_core import ExperimentError, GuieError, UsageError, build, check, lookup
from guie_core.registry import registry


def problems(kind: str, config: Any, **options: Any) -> list[str]:
    return [str(problem) for problem in check(kind, config, "recipe.head", **options)]


def test_build_gives_what_the_caller_provides(toys: Any) -> None:
    head = build("heads", {"type": "BatchNormLinear", "dropout": 0}, in_features=7, unknown_to_it=1)
    assert head.settings == (7, 64, 0.0, 3)
    assert isinstance(head.settings[2], float)  # converted, as the hint says


def test_settings_win_over_what_the_caller_provides(toys: Any) -> None:
    assert build("heads", {"type": "Linear", "out_features": 3}, in_features=7, out_features=5).settings == (7, 3)


def test_family_gets_the_rest_of_the_name(toys: Any) -> None:
    backbone = build("backbones", {"type": "timm/tf_efficientnet_lite0", "weights": "none"})
    assert (backbone.name, backbone.weights) == ("tf_efficientnet_lite0", "none")
    assert build("backbones", {"type": "timm/ViT-H-14/laion2b_s32b_b79k"}).name == "ViT-H-14/laion2b_s32b_b79k"


def test_name_of_a_family_cannot_be_set_beside(toys: Any) -> None:
    assert problems("backbones", {"type": "timm/resnet18", "name": "resnet34"}) == [
        "recipe.head.name: timm/resnet18 (guie-models 0.1.0) gets 'name' from what holds it; an experiment cannot set it."
    ]


def test_wrong_argument(toys: Any) -> None:
    assert problems("heads", {"type": "BatchNormLinear", "droput": 0.2}, provides=("in_features",)) == [
        "recipe.head.droput: BatchNormLinear (guie-models 0.1.0) has no argument 'droput'. Did you mean 'dropout'?\n"
        "It takes: in_features, out_features, dropout, size_features."
    ]


def test_all_problems_are_found(toys: Any) -> None:
    config = {"type": "BatchNormLinear", "droput": 0.2, "out_features": "64", "in_features": 3}
    assert problems("heads", config, provides=("in_features",)) == [
        "recipe.head.droput: BatchNormLinear (guie-models 0.1.0) has no argument 'droput'. Did you mean 'dropout'?\n"
        "It takes: in_features, out_features, dropout, size_features.",
        "recipe.head.out_features: expects a whole number, got the text '64'.",
        "recipe.head.in_features: BatchNormLinear (guie-models 0.1.0) gets 'in_features' from what holds it; "
        "an experiment cannot set it.",
    ]


def test_missing_argument(toys: Any) -> None:
    assert problems("heads", {"type": "Linear"}) == [
        "recipe.head: Linear (guie-models 0.1.0) needs the argument 'in_features': a whole number."
    ]
    assert problems("heads", {"type": "Linear"}, defaults=("in_features",)) == []
    assert problems("heads", {"type": "Linear", "in_features": 3}, defaults=("in_features",)) == []


def test_misspelt_required_argument_is_one_mistake(toys: Any) -> None:
    assert problems("heads", {"type": "Linear", "in_feature": 3}) == [
        "recipe.head.in_feature: Linear (guie-models 0.1.0) has no argument 'in_feature'. Did you mean 'in_features'?\n"
        "It takes: in_features, out_features, extra."
    ]


def test_nested_component(toys: Any) -> None:
    assert problems("optimizers", {"type": "SAM", "base": {"type": "AdamW", "lr": "x"}}, provides=("params",)) == [
        "recipe.head.base.lr: expects a number, got the text 'x'."
    ]


def test_unknown_component(toys: Any) -> None:
    assert problems("heads", {"type": "BatchNormLinaer"}) == [
        "recipe.head.type: 'BatchNormLinaer' is not among the heads. Did you mean BatchNormLinear (guie-models 0.1.0)?"
    ]
    with pytest.raises(UsageError, match=r"^here: 'Linaer' is not among the heads\. Did you mean Linear"):
        lookup("heads", "Linaer", "here")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            "Linear",
            "recipe.head: expects dict(type=...) of kind heads, got the text 'Linear'.\nWrite dict(type='Linear').",
        ),
        ([], "recipe.head: expects dict(type=...) of kind heads, got []."),
        (
            {"dropout": 0.1},
            "recipe.head: has no 'type' that says which of the heads it is (it has dropout).\n"
            "The heads are: BatchNormLinear, Linear.",
        ),
        ({"type": 3}, "recipe.head.type: expects the name of one of the heads, got the number 3."),
    ],
)
def test_settings_that_name_no_component(toys: Any, config: Any, problem: str) -> None:
    assert problems("heads", config) == [problem]


def test_component_that_refuses_its_arguments(toys: Any) -> None:
    with pytest.raises(ExperimentError) as error:
        build("heads", {"type": "BatchNormLinear", "dropout": 2}, where="recipe.head", in_features=3)
    assert str(error.value) == (
        "1 problem\n"
        "  recipe.head: BatchNormLinear (guie-models 0.1.0) refused its arguments: dropout must be in [0, 1), not 2.0"
    )
    assert isinstance(error.value.__cause__, ValueError)


def test_a_refusal_in_words_is_told_with_its_key(toys: Any) -> None:
    toys.module(
        "picky",
        """
        from guie_core import ExperimentError, Problem, UsageError
        def alone(size=0): raise UsageError(f"Alone: size is {size}; it is 1 or more.")
        def within(): raise ExperimentError([Problem("recipe.head.base", "it is refused.")])
        """,
    )
    toys.add(
        "picky",
        "guie-picky",
        "0.3",
        """
        from guie_core import Entry, hookimpl
        @hookimpl
        def guie_heads():
            return [Entry("Alone", "picky:alone", "Refuses"), Entry("Within", "picky:within", "Refuses what it holds")]
        """,
    )
    toys.load()
    for where, told in {
        "recipe.head": "1 problem\n  recipe.head: Alone: size is 0; it is 1 or more.",
        "": "Alone: size is 0; it is 1 or more.",  # no experiment is spoken of
    }.items():
        with pytest.raises(UsageError) as error:
            build("heads", {"type": "Alone"}, where=where)
        assert str(error.value) == told
    with pytest.raises(ExperimentError) as error:
        build("heads", {"type": "Within"}, where="recipe.head")
    assert str(error.value) == "1 problem\n  recipe.head.base: it is refused."


def test_component_whose_library_is_missing(toys: Any) -> None:
    toys.module("needy", "import onnxruntime_that_is_missing\n")
    toys.add(
        "cars",
        "guie-cars",
        "0.3",
        """
        from guie_core import Entry, hookimpl
        @hookimpl
        def guie_heads():
            return [Entry("Needy", "needy:Needy", "Needs more", requires=("guie-cars[onnx]",)),
                    Entry("Gone", "toy_parts:Liner", "Not there")]
        """,
    )
    toys.load()
    with pytest.raises(GuieError) as error:
        lookup("heads", "Needy").load()
    assert str(error.value) == (
        "Needy (guie-cars 0.3) could not be imported from needy:Needy: ModuleNotFoundError: "
        "No module named 'onnxruntime_that_is_missing'\n"
        "Install what it needs: pip install 'guie-cars[onnx]'"
    )
    with pytest.raises(GuieError) as error:
        lookup("heads", "Gone").load()
    assert str(error.value) == (
        "Gone (guie-cars 0.3) could not be loaded: toy_parts has no 'Liner'. Did you mean 'Linear'?"
    )
    assert problems("heads", {"type": "Needy"})[0].startswith("recipe.head.type: Needy (guie-cars 0.3) could not be")


def test_mmengine_registry_holds_the_same(toys: Any) -> None:
    heads = registry("heads")
    assert heads is registry("heads")
    assert (heads.scope, heads.name, len(heads)) == ("guie", "heads", 2)
    assert heads.get("Linear") is lookup("heads", "Linear").load()
    assert heads.build({"type": "guie.Linear", "out_features": 3}, in_features=5).settings == (5, 3)
    assert registry("backbones").build({"type": "timm/x", "weights": "none"}).name == "x"
    assert "Linear" in heads
    assert "json" not in heads
    assert "BatchNormLinear" in repr(heads)


@pytest.mark.parametrize("name", ["json", "json.loads", "toy_parts.Linear", "mmengine.Config"])
def test_registry_imports_no_dotted_names(toys: Any, name: str) -> None:
    with pytest.raises(UsageError, match="is not among the heads"):
        registry("heads").get(name)
    with pytest.raises(ExperimentError, match="is not among the heads"):
        registry("heads").build({"type": name})


def test_nothing_registers_from_outside(toys: Any) -> None:
    with pytest.raises(UsageError, match="a plugin's hook guie_heads returns them"):
        registry("heads").register_module(module=dict)


def test_registry_of_an_unknown_kind(toys: Any) -> None:
    with pytest.raises(UsageError, match=r"There is no kind 'head' of component\. Did you mean 'heads'\?"):
        registry("head")


def test_mmengine_is_imported_for_its_registry_only() -> None:
    code = (
        "import sys; from guie_core import Entry, Slot, build, check, hookimpl, lookup; from guie_core.registry import registry;"
        "lookup('profiles', 'cpu').load(); loaded = set(sys.modules) & {'torch', 'numpy', 'mmengine'};"
        "registry('profiles'); print(sorted(loaded), 'mmengine' in sys.modules, 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[] True False\n"
