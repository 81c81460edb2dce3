# ruff: noqa: E501 -- messages are quoted whole
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from guie_core import ExperimentError, GuieError, Interrupted, Problem, UsageError
from guie_core.cli import main, run_command

HEAVY = "{'torch', 'mmengine', 'numpy', 'timm', 'pandas', 'pyarrow', 'PIL'}"


def guie(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


@pytest.mark.parametrize(
    "args",
    [["--help"], [], ["plugins", "list"], ["plugins", "list", "--format", "json"], ["profiles", "list"], ["--version"]],
)
def test_help_and_listings_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom guie_core.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit as error:\n"
        f"    print(error.code, sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stderr.splitlines()[-1] == "0 []"
    assert result.stdout


def test_help_lists_the_commands_of_all_plugins(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toys.add(
        "cars",
        "guie-cars",
        "0.3",
        "from guie_core import Entry, hookimpl\n@hookimpl\ndef guie_commands():\n"
        "    return [Entry('wash', 'washing:wash', 'Wash the cars'), Entry('odd', 'washing:odd', 'No command')]\n",
    )
    toys.module("washing", "import click\n@click.command()\ndef wash():\n    print('clean')\nodd = 3\n")
    toys.add("dogs", "guie-dogs", "1.0", "import no_such_library")
    toys.load()
    code, out, err = guie(capsys)
    assert (code, err) == (0, "")
    assert "  doctor    Examine this installation and this machine\n" in out
    assert "  wash      Wash the cars\n" in out
    assert out.endswith("Plugin dogs (guie-dogs 1.0) did not load: guie doctor\n")
    assert "washing" not in sys.modules
    assert guie(capsys, "wash") == (0, "clean\n", "")
    assert guie(capsys, "odd") == (
        1,
        "",
        "error: the command odd (guie-cars 0.3) is not a click.Command but 3 (washing:odd).\n",
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["plugns"], "error: there is no command 'plugns'. Did you mean 'plugins'?\nTry 'guie --help'.\n"),
        (["xyzzy"], "error: there is no command 'xyzzy'. Commands: doctor, plugins, profiles.\nTry 'guie --help'.\n"),
        (["--halp"], "error: No such option '--halp'. Did you mean '--help'?\nTry 'guie --help'.\n"),
        (["plugins", "list", "--kind", "head"], "error: There is no kind 'head' of component. Did you mean 'heads'?\nKinds: backbones, commands, heads, losses, optimizers, profiles, recipes.\n"),
        (["plugins", "check", "modles"], "error: there is no plugin 'modles'. Did you mean 'models'?\n"),
        (["profiles", "show", "v100"], "error: 'v100' is not among the profiles. Did you mean v100-32g (guie-core 0.1.0)?\nProfiles: auto, cpu, v100-32g, rtx3090-24g, rtx4090-24g, a100-80g, h100-80g, t4-16g, p100-16g.\n"),
        (["--plugin", "nowhere.py", "plugins", "list"], "error: --plugin nowhere.py: there is no such file.\n"),
    ],
)  # fmt: skip
def test_wrong_usage(toys: Any, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert guie(capsys, *args) == (2, "", message)


def test_built_in_plugin_cannot_be_disabled(
    toys: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import guie_core.plugins

    monkeypatch.setenv("GUIE_DISABLED_PLUGINS", "core")
    guie_core.plugins._load.cache_clear()
    code, _, err = guie(capsys, "plugins", "list")
    assert code == 2
    assert err.startswith("error: GUIE_DISABLED_PLUGINS names 'core', which is a part of guie itself")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GuieError("no data"), 1, "error: no data\n"),
        (UsageError("wrong"), 2, "error: wrong\n"),
        (Interrupted("after epoch 3"), 130, "stopped: after epoch 3\n"),
        (ExperimentError([Problem("recipe.a", "is b.")], "x.py"), 2, "error: 1 problem in x.py\n  recipe.a: is b.\n"),
        (KeyboardInterrupt(), 130, "stopped: at once\n"),
        (click.Abort(), 130, "stopped: at once\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "error: No such file or directory: a.txt\n"),
    ],
)
def test_errors_become_messages_and_exit_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(fails, "fails", [])
    assert exit_.value.code == code
    assert capsys.readouterr() == ("", "\n" + message if isinstance(error, KeyboardInterrupt) else message)


def test_full_disk_is_said_whoever_meets_it(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def fills() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(SystemExit) as exit_:
        run_command(fills, "fills", [])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: The disk is full: ")


def test_fault_of_the_code_names_its_place(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise KeyError("x")

    for variable, traceback in (("0", False), ("1", True)):
        monkeypatch.setenv("GUIE_TRACEBACK", variable)
        with pytest.raises(SystemExit) as exit_:
            run_command(broken, "broken", [])
        err = capsys.readouterr().err
        assert exit_.value.code == 1
        assert f"error: KeyError: 'x'\nThis is a fault in {__file__}, line " in err
        assert err.startswith("Traceback") == traceback


def test_closed_pipe_is_no_traceback() -> None:
    command = f"'{sys.executable}' -m guie_core.cli plugins list --format json | head -c 1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert (result.stdout, result.stderr) == ("{", "")


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 130), ("GuieError('no')", 1), ("", 0)])
def test_ctrl_c_while_libraries_are_taken_down_changes_no_exit_code(error: str, code: int) -> None:
    text = f"""
import os, signal, click
from guie_core import GuieError
from guie_core.cli import run_command

class Library:
    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT):
        kill(process, number)

library = Library()

@click.command()
def command():
    {f"raise {error}" if error else "pass"}

run_command(command, "command", [])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr


def test_listing(toys: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    toys.add("cars", "guie-cars", "0.3", "import no_such_library")
    toys.add("dogs", "guie-dogs", "1.0", "")
    monkeypatch.setenv("GUIE_DISABLED_PLUGINS", "dogs")
    monkeypatch.setenv("COLUMNS", "80")
    toys.load()
    code, out, err = guie(capsys, "plugins", "list", "--kind", "heads")
    assert (code, err) == (0, "")
    assert out == (
        "heads: Heads\n"
        "  BatchNormLinear  Batch norm, then linear  guie-models 0.1.0\n"
        "  Linear           Linear                   guie-models 0.1.0\n"
        "\n"
        "3 plugins: core (guie-core 0.1.0), models (guie-models 0.1.0), train (guie-train 0.1.0).\n"
        "disabled: dogs (guie-dogs 1.0).\n"
        "failed: plugin cars (guie-cars 0.3): importing it raised ModuleNotFoundError: No module named 'no_such_library'\n"
    )
    _, out, _ = guie(capsys, "plugins", "list")
    assert [line.split(":")[0] for line in out.splitlines() if line and not line.startswith(" ")][:4] == [
        "profiles",
        "commands",
        "heads",
        "backbones",
    ]
    assert max(map(len, out.split("\n\n", 1)[0].splitlines())) <= 80


def test_listing_as_json(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toys.add("cars", "guie-cars", "0.3", "import no_such_library")
    toys.load()
    _, out, _ = guie(capsys, "plugins", "list", "--format", "json", "--kind", "backbones")
    found = json.loads(out)
    assert found["components"] == [
        {
            "kind": "backbones",
            "name": "timm/*",
            "summary": "Any model of timm",
            "target": "toy_parts:Backbone",
            "licence": "",
            "origin": None,
            "requires": [],
            "plugin": "models",
            "distribution": "guie-models",
            "version": "0.1.0",
        }
    ]
    assert [(plugin["plugin"], plugin["status"]) for plugin in found["plugins"]] == [
        ("core", "loaded"),
        ("models", "loaded"),
        ("train", "loaded"),
        ("cars", "failed"),
    ]
    assert found["plugins"][-1]["reason"].endswith("No module named 'no_such_library'")


def test_local_plugin_file(
    toys: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from guie_core import Entry, hookimpl\n@hookimpl\ndef guie_heads():\n"
        "    return [Entry('Mine', f'{__name__}:Mine', 'My own')]\nclass Mine: ...\n"
    )
    code, out, _ = guie(capsys, "--plugin", "mine.py", "plugins", "list", "--kind", "heads")
    assert code == 0
    assert "  Mine             My own                   mine.py\n" in out


def test_profiles_shown(toys: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert guie(capsys, "profiles", "show", "v100-32g") == (
        0,
        "v100-32g: NVIDIA V100, 32 GiB: 16 bits are float16; no bfloat16, no FlashAttention-2\n"
        "  device              cuda\n"
        "  memory              32 GiB\n"
        "  compute capability  7.0\n"
        "  dtype               float16\n"
        "  at once             512 in features, 16 in finetune\n"
        "  workers             8\n"
        "  checkpointing       yes\n"
        "  processes divide    images\n"
        "  CUDA graphs         yes\n",
        "",
    )
    _, out, _ = guie(capsys, "profiles", "show", "cpu", "--format", "json")
    assert json.loads(out)["device"] == "cpu"
    _, out, _ = guie(capsys, "profiles", "list", "--format", "json")
    assert [row["name"] for row in json.loads(out)][:2] == ["auto", "cpu"]
