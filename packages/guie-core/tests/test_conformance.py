# ruff: noqa: E501 -- messages are quoted whole
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guie_core import UsageError
from guie_core.cli import main
from guie_core.testing import PluginContract

GOOD = """
    from guie_core import Entry, Kind, hookimpl

    @hookimpl
    def guie_kinds():
        return [Kind("datasets", "Data sets")]

    @hookimpl
    def guie_datasets():
        return [Entry("cars", "cars_parts:Cars", "Cars", licence="MIT")]
"""


def check(capsys: pytest.CaptureFixture[str], name: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plugins", "check", name])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().out


def test_sound_plugin(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toys.add("cars", "guie-cars", "0.3", GOOD)
    toys.module("cars_parts", "class Cars:\n    def __init__(self, root: str = '.') -> None: ...\n")
    toys.load()
    expected = "plugin cars (guie-cars 0.3)\n  ok: datasets cars -> cars_parts:Cars\nNo problems found.\n"
    assert check(capsys, "cars") == (0, expected)
    assert check(capsys, "guie-cars") == (0, expected)

    class TestPlugin(PluginContract):
        plugin = "cars"

    contract = TestPlugin()
    tests = [getattr(contract, name) for name in dir(contract) if name.startswith("test_")]
    assert len(tests) >= 4
    for test in tests:
        test()


def test_everything_that_can_be_wrong_with_a_plugin(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toys.module("numpy", "")  # stands for the real one, which takes long
    code = GOOD.replace(', licence="MIT"', "").replace("    from guie_core", "    import numpy\n    from guie_core", 1)
    more = """
    @hookimpl
    def guie_heads():
        return [Entry("Gone", "cars_parts:Gone", "x"), Entry("my/*", "cars_parts:Cars", "x"),
                Entry("Slotted", "cars_parts:Slotted", "x"), Entry("Module", "cars_parts:os", "x")]
    """
    toys.add("cars", "guie-cars", "0.3", code + more)
    toys.module(
        "cars_parts",
        """
        from __future__ import annotations
        import os
        from typing import TYPE_CHECKING, Annotated
        from guie_core import Config, Slot
        if TYPE_CHECKING:
            from torch import Tensor
        class Cars: ...
        class Slotted:
            def __init__(self, a: Tensor, b: Annotated[Config, Slot("lossses")]) -> None: ...
        """,
    )
    toys.load()
    code_, out = check(capsys, "cars")
    assert code_ == 1
    assert out == (
        "plugin cars (guie-cars 0.3)\n"
        "  problem: importing guie_cars_plugin also imports numpy, which every listing and --help waits for; keep them out "
        "of that module and of its package's __init__\n"
        "  problem: heads Gone -> cars_parts:Gone\n"
        "    Gone (guie-cars 0.3) could not be loaded: cars_parts has no 'Gone'. It has Annotated, Cars, Config, Slot, "
        "Slotted, TYPE_CHECKING, annotations, os.\n"
        "  problem: heads my/* -> cars_parts:Cars\n"
        "    it is a family, and cars_parts:Cars takes no argument 'name'\n"
        "  problem: heads Slotted -> cars_parts:Slotted\n"
        "    the type hint of 'a' cannot be resolved, so its values go unchecked; import its names at run time\n"
        "    the slot 'b' is of kind 'lossses', which nothing declares. Did you mean 'losses'?\n"
        "  problem: heads Module -> cars_parts:os\n"
        "    the target cars_parts:os is a module, not a class, function or value\n"
        "  problem: datasets cars -> cars_parts:Cars\n"
        "    it names no licence; data of others has one (an SPDX expression, or 'LicenseRef-unknown')\n"
        "7 problems found.\n"
    )

    class TestPlugin(PluginContract):
        plugin = "cars"

    contract = TestPlugin()
    contract.test_it_loads()
    for test, message in {
        contract.test_names_are_its_own_and_imports_are_light: "imports numpy",
        contract.test_targets_and_signatures: "heads my/.: it is a family",
        contract.test_data_has_a_licence: "no licence: .'cars'.",
    }.items():
        with pytest.raises(AssertionError, match=message):
            test()


def test_plugin_that_does_not_load(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toys.add("cars", "guie-cars", "0.3", "import no_such_library")
    toys.load()
    code, out = check(capsys, "cars")
    assert code == 1
    assert out.startswith("plugin cars (guie-cars 0.3): importing it raised ModuleNotFoundError: No module named")
    assert "Traceback (most recent call last)" in out
    assert out.endswith("1 problem found.\n")

    class TestPlugin(PluginContract):
        plugin = "cars"

    with pytest.raises(AssertionError, match="no_such_library"):
        TestPlugin().test_it_loads()


def test_guies_own_core_passes(capsys: pytest.CaptureFixture[str]) -> None:
    class TestCore(PluginContract):
        plugin = "core"

    contract = TestCore()
    for name in dir(contract):
        if name.startswith("test_"):
            getattr(contract, name)()


def test_new_plugin_installs_and_passes_its_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plugins", "new", "dataset", "fast-cars", "--directory", str(tmp_path)])
    assert exit_.value.code == 0
    folder = tmp_path / "guie-fast-cars"
    assert capsys.readouterr().out == (
        f"Wrote {folder}. Next:\n  pip install -e {folder}\n  guie plugins check fast-cars\n  pytest {folder}\n"
    )
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "pyproject.toml",
        "src/guie_fast_cars/__init__.py",
        "src/guie_fast_cars/dataset.py",
        "src/guie_fast_cars/plugin.py",
        "src/guie_fast_cars/py.typed",
        "tests/test_fast_cars.py",
    ]
    pytest.importorskip("guie_datasets.testing")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*pip, "--target", str(site), str(folder)], capture_output=True, text=True)
    if "No module named pip" in result.stderr:
        pytest.skip("needs pip")
    assert result.returncode == 0, result.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *(path for path in sys.path if path)])}
    for command in (
        [sys.executable, "-m", "guie_core.cli", "plugins", "check", "fast-cars"],
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr


def test_new_plugin_is_well_formed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["plugins", "new", "dataset", "cars", "--directory", str(tmp_path)])
    for tool in (["ruff", "check", "--select", "E,F,W,I,UP,B"], ["black", "-q", "--check", "-l", "120"]):
        if subprocess.run([sys.executable, "-m", tool[0], "--version"], capture_output=True).returncode:
            pytest.skip(f"needs {tool[0]}")
        result = subprocess.run([sys.executable, "-m", *tool, str(tmp_path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Cars", "'Cars' cannot be the name of a plugin"),
        ("class", "'class' cannot be the name of a plugin"),
        ("../x", "'../x' cannot be the name of a plugin"),
        ("models", "there is a plugin 'models' already, in guie-models 0.1.0"),
        ("taken", "guie-taken is there already"),
    ],
)
def test_names_that_a_new_plugin_cannot_have(
    toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    from guie_core.templates import write_plugin

    monkeypatch.chdir(tmp_path)
    (tmp_path / "guie-taken").mkdir()
    with pytest.raises(UsageError) as error:
        write_plugin("dataset", name, Path())
    assert str(error.value).startswith(message)
    assert os.listdir(tmp_path) == ["guie-taken"]


@pytest.mark.parametrize("name", ["folder", "Folder"])
def test_a_new_plugin_offers_nothing_that_is_there(toys: Any, tmp_path: Path, name: str) -> None:
    """Two entries of one name would make every command fail that looks it up."""
    from guie_core.templates import write_plugin

    toys.add(
        "others",
        "guie-others",
        "2.0",
        f"""
        from guie_core import Entry, Kind, hookimpl

        @hookimpl
        def guie_kinds():
            return [Kind("datasets", "Data sets")]

        @hookimpl
        def guie_datasets():
            return [Entry({name!r}, "others:Folder", "Images"), Entry("toys/*", "others:Folder", "A family")]
        """,
    )
    toys.load()
    with pytest.raises(UsageError) as error:
        write_plugin("dataset", name.lower(), tmp_path)
    assert str(error.value) == f"there is a data set {name!r} already, in guie-others 2.0. Choose another name."
    assert not list(tmp_path.glob("guie-folder*"))
    assert write_plugin("dataset", "toys", tmp_path).is_dir()  # a family's names have a slash
