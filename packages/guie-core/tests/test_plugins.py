# ruff: noqa: E501 -- messages and code are quoted whole
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import guie_core.plugins
from guie_core import UsageError
from guie_core.plugins import load_plugin_files, plugins

CARS = """
    from guie_core import Entry, hookimpl

    @hookimpl
    def guie_heads():
        return [Entry("Cars", "cars_parts:Cars", "For cars")]
"""


def only_failure(site: Any) -> str:
    found = site.load()
    assert len(found.failures) == 1, [str(failure) for failure in found.failures]
    return str(found.failures[0])


def test_entries_are_stamped_with_kind_and_owner(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    entry = toys.load().find("heads", "Cars")
    assert entry.kind == "heads"
    assert entry.owner is not None
    assert (entry.owner.plugin, entry.owner.distribution, entry.owner.version) == ("cars", "guie-cars", "0.3")
    assert entry.label == "Cars (guie-cars 0.3)"
    assert "cars_parts" not in sys.modules  # nothing was imported for the listing


def test_plugin_that_fails_to_import_is_recorded_and_others_load(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", "import no_such_library")
    toys.add("dogs", "guie-dogs", "1.0", CARS)
    found = toys.load()
    assert [owner.plugin for owner in found.loaded] == ["core", "models", "train", "dogs"]
    (failure,) = found.failures
    assert str(failure) == (
        "plugin cars (guie-cars 0.3): importing it raised ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert "guie_cars_plugin.py" in failure.traceback
    with pytest.raises(UsageError) as error:
        found.find("heads", "Sedan")
    assert str(error.value) == (
        "'Sedan' is not among the heads.\n"
        "There are: BatchNormLinear (guie-models 0.1.0), Linear (guie-models 0.1.0), Cars (guie-dogs 1.0).\n"
        "Plugin cars (guie-cars 0.3) did not load: importing it raised ModuleNotFoundError: "
        "No module named 'no_such_library'"
    )


def test_plugin_that_exits_at_import_is_recorded(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", "raise SystemExit(3)")
    assert only_failure(toys) == "plugin cars (guie-cars 0.3): importing it raised SystemExit: 3"


def test_two_distributions_with_one_plugin_name(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    toys.add("cars", "other-cars", "2.0", CARS)
    found = toys.load()
    assert "cars" not in [owner.plugin for owner in found.loaded]
    assert sorted(str(failure) for failure in found.failures) == [
        f"plugin cars ({owner}): two packages bring a plugin called 'cars': guie-cars 0.3 (guie_cars_plugin) and "
        "other-cars 2.0 (other_cars_plugin). Neither was loaded; uninstall one."
        for owner in ("guie-cars 0.3", "other-cars 2.0")
    ]


def test_one_plugin_listed_twice_with_the_same_value_is_fine(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    toys.add("cars", "guie-cars-editable", "0.3", module="guie_cars_plugin")
    found = toys.load()
    assert not found.failures
    assert [owner.plugin for owner in found.loaded].count("cars") == 1


def test_name_of_a_built_in_plugin_is_taken(toys: Any) -> None:
    toys.add("models", "evil-models", "1.0", CARS)
    assert only_failure(toys) == (
        "plugin models (evil-models 1.0): the name 'models' is taken by guie-models. "
        "Its author has to choose another one."
    )
    assert plugins().find("heads", "Linear").label == "Linear (guie-models 0.1.0)"


def test_two_plugins_with_one_component_name(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    toys.add("dogs", "guie-dogs", "1.0", CARS.replace('"Cars"', '"cars"'))
    found = toys.load()
    assert not found.failures
    message = (
        "'Cars' of kind heads is offered twice, by plugin cars (guie-cars 0.3) and plugin dogs (guie-dogs 1.0).\n"
        "Disable one of them (GUIE_DISABLED_PLUGINS), or let the one that is meant to replace the other say so: "
        "Entry(..., overrides='cars:Cars')."
    )
    assert [str(conflict) for conflict in found.conflicts] == [message]
    with pytest.raises(UsageError) as error:
        found.find("heads", "Cars")
    assert str(error.value) == message
    assert found.find("heads", "Linear").name == "Linear"  # the others can be used


def test_override_is_explicit(toys: Any) -> None:
    code = CARS.replace('"Cars", ', '"Linear", ').replace('"For cars"', '"For cars", overrides="models:Linear"')
    toys.add("cars", "guie-cars", "0.3", code)
    found = toys.load()
    assert not found.conflicts
    assert found.find("heads", "Linear").label == "Linear (guie-cars 0.3)"


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        (
            "Linear",
            "model:Linear",
            "'Linear' overrides 'model:Linear', which is not there. Did you mean 'models:Linear'?",
        ),
        ("Cars", "models:Linear", "'Cars' overrides 'models:Linear': it must have the same name."),
    ],
)
def test_override_of_nothing(toys: Any, name: str, overrides: str, reason: str) -> None:
    code = CARS.replace('"Cars", ', f'"{name}", ').replace('"For cars"', f'"For cars", overrides="{overrides}"')
    toys.add("cars", "guie-cars", "0.3", code)
    assert only_failure(toys) == f"plugin cars (guie-cars 0.3): {reason}"
    assert plugins().find("heads", "Linear").label == "Linear (guie-models 0.1.0)"


def test_component_named_twice_within_a_plugin(toys: Any) -> None:
    twice = CARS.replace("[Entry", '[Entry("CARS", "cars_parts:Old", "Old"), Entry')
    toys.add("cars", "guie-cars", "0.3", twice)
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it offers 'Cars' of kind heads twice (cars_parts:Old, cars_parts:Cars)."
    )


def test_misspelt_hook(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS.replace("guie_heads", "guie_head"))
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it has the hook guie_head, which nothing calls. Did you mean 'guie_heads'?"
    )


def test_hook_of_a_package_that_is_not_installed(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS.replace("guie_heads", "guie_datasets"))
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it has the hook guie_datasets, whose kind is declared by guie-datasets. "
        "Is guie-datasets installed?\n"
        "A plugin that can do without it marks the hook @hookimpl(optionalhook=True)."
    )


def test_optional_hook_of_a_package_that_is_not_installed(toys: Any) -> None:
    optional = CARS.replace("@hookimpl", "@hookimpl(optionalhook=True)").replace("guie_heads", "guie_datasets")
    toys.add("cars", "guie-cars", "0.3", CARS + optional)
    found = toys.load()
    assert not found.failures
    assert found.find("heads", "Cars").name == "Cars"


def test_plugin_without_hooks(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS.replace("    @hookimpl\n", ""))
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it has no hooks. A hook is a function such as guie_datasets, decorated with "
        "guie_core.hookimpl, that returns entries. Not decorated: guie_heads."
    )


def test_one_hook_that_is_not_decorated(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS + "    def guie_losses():\n        return []\n")
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): some of its hooks lack the decorator guie_core.hookimpl. Not decorated: guie_losses."
    )


def test_hook_with_an_argument(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS.replace("guie_heads()", "guie_heads(registry)"))
    assert only_failure(toys).startswith(
        "plugin cars (guie-cars 0.3): a hook takes no arguments: Plugin 'cars (guie-cars"
    )


def test_hook_that_raises_takes_the_whole_plugin_out(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS + "\n    @hookimpl\n    def guie_losses():\n        return 1 / 0\n")
    found = toys.load()
    assert [str(failure) for failure in found.failures] == [
        "plugin cars (guie-cars 0.3): calling its hook guie_losses raised ZeroDivisionError: division by zero"
    ]
    assert "1 / 0" in found.failures[0].traceback
    with pytest.raises(UsageError, match="'Cars' is not among the heads"):
        found.find("heads", "Cars")


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "guie_heads must return a list of entries, and returned None."),
        ('"Cars"', "guie_heads must return a list of entries, and returned 'Cars'."),
        ("[dict]", "guie_heads must return guie_core.Entry objects, and gave <class 'dict'>."),
        (
            '[Entry("a b", "x:y", "z")]',
            "calling its hook guie_heads raised ValueError: the name 'a b' is not valid: "
            "letters, digits and @ _ . + - only, and '/*' at the end of a family",
        ),
        (
            '[Entry("a", "x.y", "z")]',
            "calling its hook guie_heads raised ValueError: the target 'x.y' of 'a' is not of the form "
            "'package.module:attribute'",
        ),
    ],
)
def test_hook_that_returns_something_else(toys: Any, returned: str, reason: str) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS.replace('[Entry("Cars", "cars_parts:Cars", "For cars")]', returned))
    assert only_failure(toys) == f"plugin cars (guie-cars 0.3): {reason}"


def test_plugin_for_another_version_is_not_imported(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", "raise RuntimeError('imported')", requires=["torch", "guie-core>=2,<3"])
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it needs guie-core<3,>=2, and guie-core 0.1.0 is installed. "
        "Upgrade the older of the two."
    )
    assert "guie_cars_plugin" not in sys.modules


def test_plugin_whose_guie_package_is_missing(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS, requires=["guie_datasets>=0.1", "guie-core>=0.1,<0.2"])
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it needs guie-datasets>=0.1, and guie-datasets is not installed. "
        "Install it: pip install 'guie-datasets>=0.1'"
    )


def test_requirement_of_an_extra_does_not_count(toys: Any) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS, requires=["guie-datasets>=9; extra == 'all'"])
    assert not toys.load().failures


def test_kind_declared_twice(toys: Any) -> None:
    code = 'from guie_core import Kind, hookimpl\n@hookimpl\ndef guie_kinds():\n    return [Kind("heads", "Mine")]\n'
    toys.add("cars", "guie-cars", "0.3", code)
    assert only_failure(toys) == (
        "plugin cars (guie-cars 0.3): it declares the kind 'heads', which guie-models 0.1.0 has declared already."
    )


def test_plugins_may_declare_kinds(toys: Any) -> None:
    code = """
        from guie_core import Entry, Kind, hookimpl
        @hookimpl
        def guie_kinds():
            return [Kind("wheels", "Wheels of cars")]
        @hookimpl
        def guie_wheels():
            yield Entry("round", "math:pi", "Round")
    """
    toys.add("cars", "guie-cars", "0.3", code)
    assert toys.load().find("wheels", "round").load() == pytest.approx(3.14159, abs=1e-5)


def test_unknown_kind(toys: Any) -> None:
    with pytest.raises(UsageError) as error:
        plugins().entries("head")
    assert str(error.value) == (
        "There is no kind 'head' of component. Did you mean 'heads'?\n"
        "Kinds: backbones, commands, heads, losses, optimizers, profiles, recipes."
    )
    with pytest.raises(UsageError, match=r"It belongs to guie-datasets\. Is guie-datasets installed\?"):
        plugins().entries("splits")


def test_disabled_plugins_are_not_imported(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.add("cars", "guie-cars", "0.3", "raise RuntimeError('imported')")
    toys.add("dogs", "guie-dogs", "1.0", CARS)
    monkeypatch.setenv("GUIE_DISABLED_PLUGINS", "cars, unheard-of")
    found = toys.load()
    assert not found.failures
    assert [owner.plugin for owner in found.disabled] == ["cars"]
    assert "dogs" in [owner.plugin for owner in found.loaded]
    with pytest.raises(
        UsageError, match=r"'Sedan' is not among the heads\.\n.*\nPlugin cars \(guie-cars 0\.3\) is disabled\."
    ):
        found.find("heads", "Sedan")


@pytest.mark.parametrize(("value", "expected"), [("", []), ("dogs", ["dogs"]), (" dogs , cars", ["cars", "dogs"])])
def test_allow_list_leaves_the_built_in_ones(
    toys: Any, monkeypatch: pytest.MonkeyPatch, value: str, expected: list[str]
) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    toys.add("dogs", "guie-dogs", "1.0", CARS.replace("Cars", "Dogs"))
    monkeypatch.setenv("GUIE_PLUGINS", value)
    assert [owner.plugin for owner in toys.load().loaded] == ["core", "models", "train", *expected]


def test_allow_list_with_a_plugin_that_is_not_installed(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.add("cars", "guie-cars", "0.3", CARS)
    monkeypatch.setenv("GUIE_PLUGINS", "car")
    assert only_failure(toys) == (
        "plugin car (no package): GUIE_PLUGINS asks for it, and it is not installed. Did you mean 'cars'?"
    )


def test_built_in_plugins_cannot_be_disabled(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIE_DISABLED_PLUGINS", "models")
    with pytest.raises(UsageError) as error:
        toys.load()
    assert str(error.value) == (
        "GUIE_DISABLED_PLUGINS names 'models', which is a part of guie itself and cannot be disabled.\n"
        "Uninstall guie-models instead if it is not wanted."
    )


def test_core_works_from_a_source_tree_that_is_not_installed(site: Any) -> None:
    for path in site.path.glob("*.dist-info/*"):
        path.unlink()
    assert "cpu" in [entry.name for entry in site.load().entries("profiles")]


LOCAL = """
from guie_core import Entry, hookimpl

class Mine:
    def __init__(self, in_features: int) -> None:
        self.in_features = in_features

@hookimpl
def guie_heads():
    return [Entry("Mine", f"{__name__}:Mine", "My own")]
"""


def test_local_file_is_a_plugin(toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-head.py").write_text(LOCAL)
    load_plugin_files(["my-head.py"])
    entry = plugins().find("heads", "Mine")
    assert entry.label == "Mine (my-head.py)"
    assert entry.load()(in_features=3).in_features == 3
    load_plugin_files([Path("my-head.py")])  # again: nothing happens
    assert plugins().find("heads", "Mine") == entry


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "mine.py",
            "import no_such_library",
            "importing it raised ModuleNotFoundError: No module named 'no_such_library'",
        ),
        ("mine.py", "def (", "importing it raised SyntaxError: invalid syntax (mine.py, line 1)"),
        ("mine.py", LOCAL.replace('"Mine"', '"Linear"'), "'Linear' of kind heads is offered twice, by plugin models"),
        ("mine.txt", LOCAL, "a plugin is a Python file (.py)."),
        ("", "", "there is no such file."),
    ],
)
def test_local_file_that_is_no_plugin(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        Path(name).write_text(text)
    with pytest.raises(UsageError) as error:
        load_plugin_files([name or "mine.py"])
    assert str(error.value).startswith(f"--plugin {name or 'mine.py'}: {message}")
    assert not guie_core.plugins._local_files  # the next call starts clean
    assert not plugins().conflicts


def test_family_stands_for_every_name_below_it(toys: Any) -> None:
    found = plugins()
    assert found.find("backbones", "timm/resnet18").name == "timm/*"
    assert found.find("backbones", "timm/a/b").family == "timm/"
    for name in ("timm/", "timm/*x", "open_clip/ViT"):
        if name != "timm/*x":
            with pytest.raises(UsageError, match="is not among the backbones"):
                found.find("backbones", name)


def test_exact_name_goes_before_the_family(toys: Any) -> None:
    code = CARS.replace("guie_heads", "guie_backbones").replace('"Cars", ', '"timm/resnet18", ')
    toys.add("cars", "guie-cars", "0.3", code)
    found = toys.load()
    assert found.find("backbones", "timm/resnet18").label == "timm/resnet18 (guie-cars 0.3)"
    assert found.find("backbones", "timm/resnet34").label == "timm/* (guie-models 0.1.0)"
