"""`guie runs` on runs written by hand: what it says of them, and what it takes away."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guie_core.cli import main
from guie_core.record import find_runs

HEAVY = "{'torch', 'mmengine', 'numpy', 'timm', 'pandas', 'pyarrow', 'PIL', 'optuna', 'matplotlib', 'sklearn'}"
RECIPE: dict[str, Any] = {
    "type": "Toy",
    "arcface": {"epochs": 30, "rate": 0.1},
    "data": [{"type": "emoji"}],
    "classifier": {"epochs": 3},
}
SCORES = [
    {"system": "raw features", "augmented": False, "dimension": 9, "mP@5": 0.25, "MRR@5": 0.3},
    {"system": "trained", "augmented": False, "dimension": 4, "mP@5": 0.5, "MRR@5": 0.6},
    {"system": "trained", "augmented": True, "dimension": 4, "mP@5": 0.55, "MRR@5": None},
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def guie(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["runs", *args])
    out, err = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, out, err


def ok(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code, out, err = guie(capsys, *args)
    assert (code, err) == (0, "")
    return out


def run(name: str, *, minute: int = 0, status: str = "finished", **changes: Any) -> Path:
    """Write a run of one execution of ninety seconds, with outputs by stage and key."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    execution: dict[str, Any] = {
        "status": status,
        "started": f"2026-03-01T10:{minute:02}:00+00:00",
        "finished": f"2026-03-01T10:{minute + 1:02}:30+00:00",
        "command": "guie-train toy.py",
        "profile": {"name": "cpu", "device": "cpu", "dtype": "float32"},
        "python": "3.11.7",
        "versions": {"guie-core": "0.1.0", "torch": "2.14.1"},
        "plugins": [{"plugin": "core", "distribution": "guie-core", "version": "0.1.0"}],
        "failed_plugins": [],
        "machine": {"host": "here", "system": "Linux", "processors": 2},
        "git": {"commit": "c0ffee", "changed": False},
        **changes.pop("execution", {}),
    }
    if status == "running":
        del execution["finished"]
    stages = changes.pop("stages", {})
    records = {
        "manifest": "5eed",
        "stages": [
            {"name": stage, "key": key, "seconds": 2.5, "reused": False, "summary": f"{stage} is done"}
            for stage, key in stages.items()
        ],
        **changes.pop("records", {}),
    }
    experiment = {"name": "toy", "path": "toy.py", "overrides": [], "digest": "d" * 32}
    experiment["resolved"] = {"recipe": changes.pop("recipe", RECIPE)}
    record = {"schema": 1, "experiment": experiment, "records": records, "executions": [execution]}
    assert not changes
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "run.lock").touch()
    for stage, key in stages.items():
        kept = output(stage, key)
        link = folder / "stages" / stage
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(kept, link.parent))
    return folder


def output(stage: str, name: str, count: int = 1000) -> Path:
    """A folder of `count` bytes in the store."""
    folder = Path("runs/store") / stage / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(json.dumps({"arguments": {"seed": 5, "parts": [{"split_seed": 7}]}}))
    (folder / "data").write_bytes(b"x" * (count - (folder / "stage.json").stat().st_size))
    return folder


@contextmanager
def locked(path: Path, text: str = "process 9 on here") -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        yield


def in_store() -> set[str]:
    return {str(path.relative_to("runs/store")) for path in Path("runs/store").glob("*/*") if path.is_dir()}


# --- list ---


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    run("late", minute=5, status="failed", execution={"error": "no"})
    run("sweep/early", records={"selected": {"metric": "mP@5", "value": 0.4, "epoch": 3}, "scores": SCORES})
    run("killed", minute=2, status="running")
    Path("runs/broken").mkdir()
    Path("runs/broken/run.json").write_text("{}")
    assert ok(capsys, "list").splitlines() == [
        "run          status    started           profile  time  selection   reported",
        "sweep/early  finished  2026-03-01 10:00  cpu      90 s  mP@5 0.400  mP@5 0.550",
        "killed       killed    2026-03-01 10:02  cpu      -     -           -",
        "late         failed    2026-03-01 10:05  cpu      90 s  -           -",
        "runs/broken/run.json cannot be read (KeyError: 'schema').",
    ]
    rows = json.loads(ok(capsys, "list", "--format", "json"))
    assert rows[0] == {
        "name": "sweep/early",
        "path": "runs/sweep/early",
        "experiment": "toy",
        "set": [],
        "status": "finished",
        "started": "2026-03-01T10:00:00+00:00",
        "seconds": 90.0,
        "profile": "cpu",
        "selection": {"metric": "mP@5", "value": 0.4, "epoch": 3},
        "report": {"system": "trained (augmented)", "mP@5": 0.55, "MRR@5": None},
    }
    assert [row["status"] for row in rows] == ["finished", "killed", "failed", "damaged"]


def test_no_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert ok(capsys, "list") == "No runs below runs. guie-train EXPERIMENT makes one; --folder looks elsewhere.\n"
    assert ok(capsys, "list", "--format", "json") == "[]\n"
    Path("runs").touch()
    assert guie(capsys, "list")[0] == 2
    for command in ("list", "best", "clean"):
        code, _, err = guie(capsys, command, "--folder", "rnus")
        assert (code, err) == (2, "error: there is no folder rnus; --folder names the folder of the runs.\n")


@pytest.mark.parametrize(
    "args",
    [["--help"], ["list"], ["show", "a"], ["compare", "a", "b"], ["best"], ["clean"]],
)
def test_listings_import_nothing_heavy(args: list[str]) -> None:
    run("a", records={"scores": SCORES}, stages={"head": "aa"})
    run("b", records={"scores": SCORES}, stages={"head": "bb"})
    code = (
        "import sys\nfrom guie_core.cli import main\n"
        f"try:\n    main({['runs', *args]!r})\nexcept SystemExit as error:\n"
        f"    print(error.code, sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert done.stdout


def test_help_of_sweep_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom guie_core.cli import main\n"
        "try:\n    main(['sweep', '--help'])\nexcept SystemExit as error:\n"
        f"    print(error.code, sorted(set(sys.modules) & {HEAVY}), file=sys.stderr)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "never by the score of" in done.stdout


# --- show ---


def test_show_of_a_run_that_is_running(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", status="running")
    (started,) = [line for line in ok(capsys, "show", "a").splitlines() if line.startswith("  started")]
    assert started == "  started     2026-03-01 10:00"


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(
        "a",
        stages={"head": "aa", "export": "ee"},
        records={"scores": SCORES, "selected": {"metric": "mP@5", "value": 0.4, "epoch": 3}},
    )
    (folder / "report.html").touch()
    (Path("runs/store/export/ee") / "model.onnx").write_bytes(b"x" * 2000)
    out = ok(capsys, "show", "a")
    lines = out.splitlines()
    assert lines[0] == "a: finished"
    for expected in (
        "  experiment  toy.py, digest dddddddddddddddddddddddddddddddd",
        "  started     2026-03-01 10:00, took 90 s",
        "  git         c0ffee",
        "  manifest    5eed",
        "  seeds       head seed 5, head parts.0.split_seed 7, export seed 5, export parts.0.split_seed 7",
        "  plugins     core (guie-core 0.1.0)",
        "  versions    guie-core 0.1.0, torch 2.14.1",
        "  report      runs/a/report.html",
        "  model       runs/a/stages/export/model.onnx  2.0 kB",
        "  head    aa  2.5 s  head is done",
        "selection: mP@5 0.4000 at epoch 3",
        "  trained (augmented)    0.5500         -",
        "  recipe.arcface.epochs = 30",
        "  recipe.data.0.type = 'emoji'",
    ):
        assert expected in lines
    whole = json.loads(ok(capsys, "show", "runs/a", "--format", "json"))
    assert whole["resolved"] == {"recipe": RECIPE}
    assert whole["records"]["manifest"] == "5eed"


def test_show_a_run_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", status="failed", execution={"error": "GuieError: two\nlines", "git": None})
    lines = ok(capsys, "show", "a").splitlines()
    assert lines[:3] == ["a: failed", "  GuieError: two", "  lines"]
    assert "  git         not in a repository" in lines
    planned = [{"name": name, "key": f"{name[0]}0"} for name in ("split", "head", "evaluate")]
    done = {"planned": planned, "failed": "head"}
    run("b", status="failed", stages={"split": "s0"}, records=done, execution={"error": "no"})
    lines = ok(capsys, "show", "b").splitlines()
    assert lines[lines.index("stages") :][1:4] == ["  split  s0  2.5 s   split is done", "  head   h0  failed", ""]
    run("c", stages={"split": "s0"}, records=done)  # gone on with since
    assert "failed" not in ok(capsys, "show", "c")


def test_a_name_that_no_run_has(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = guie(capsys, "show", "quickstrat")
    assert (code, err) == (
        2,
        "error: there is no run 'quickstrat', and none at all below runs; --folder names another.\n",
    )
    run("quickstart")
    code, _, err = guie(capsys, "show", "quickstrat")
    assert (code, err) == (2, "error: there is no run 'quickstrat' below runs. Did you mean 'quickstart'?\n")
    assert guie(capsys, "compare", "quickstart") == (2, "", "error: it takes two runs or more to compare.\n")


# --- compare ---


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"prepare": "p0", "head": "aa", "export": "ee"}, records={"scores": SCORES})
    other = json.loads(json.dumps(RECIPE)) | {"classifier": None}
    other["arcface"]["epochs"] = 100
    other["data"].append({"type": "cars"})
    better = [SCORES[0], SCORES[1] | {"mP@5": 0.625}, SCORES[2]]
    run(
        "b",
        minute=3,
        stages={"prepare": "p0", "head": "bb"},
        recipe=other,
        records={"scores": better, "manifest": "feed"},
        execution={
            "profile": {"name": "v100-32g", "device": "cuda", "dtype": "float32"},
            "versions": {"guie-core": "0.2.0", "torch": "2.7.1"},
            "plugins": [{"plugin": "core", "distribution": "guie-core", "version": "0.2.0"}],
            "git": {"commit": "decaf", "changed": True},
        },
    )
    assert (
        ok(capsys, "compare", "a", "b")
        == """\
  A  a  finished  2026-03-01 10:00  90 s
  B  b  finished  2026-03-01 10:03  90 s

settings: 3 differ
  recipe.arcface.epochs: 30 in A, 100 in B
  recipe.data.1: not set in A, {'type': 'cars'} in B
  recipe.classifier: {'epochs': 3} in A, None in B

profile: 2 differ
  name: 'cpu' in A, 'v100-32g' in B
  device: 'cpu' in A, 'cuda' in B

versions: 1 differs
  torch: 2.14.1 in A, 2.7.1 in B

plugins: 1 differs
  core: guie-core 0.1.0 in A, guie-core 0.2.0 in B

git: 2 differ
  commit: c0ffee in A, decaf in B
  files changed since: no in A, yes in B

data: 1 differs
  manifest: 5eed in A, feed in B

the same: machine

stages
  of both, same outputs   prepare
  of both, other outputs  head
  of A only               export

scores
                         A         B     B - A
  trained  mP@5     0.5000    0.6250   +0.1250
  trained  MRR@5    0.6000    0.6000   +0.0000
  the same in both: raw features, trained (augmented)
"""
    )


def test_compare_several(capsys: pytest.CaptureFixture[str]) -> None:
    for name, epochs in (("a", 30), ("b", 100), ("c", 30)):
        run(name, recipe=RECIPE | {"arcface": {"epochs": epochs}}, stages={"head": f"{epochs}"})
    out = ok(capsys, "compare", "a", "b", "c")
    assert "\nsettings: 1 differs\n  recipe.arcface.epochs: 30 in A and C, 100 in B\n" in out
    assert "\nthe same: profile, versions, plugins, git, machine, data\n" in out
    assert "\n  of all, other outputs  head\n" in out
    found = json.loads(ok(capsys, "compare", "a", "b", "c", "--format", "json"))
    assert found["runs"] == ["a", "b", "c"]
    assert found["differing"] == {"settings": [{"what": "recipe.arcface.epochs", "values": ["30", "100", "30"]}]}


def test_compare_runs_that_did_not_come_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"prepare": "p0", "head": "aa", "evaluate": "ee"}, records={"scores": SCORES})
    run("b", minute=2, status="failed", stages={"prepare": "p0"}, execution={"error": "no room for it"})
    run("c", minute=4, stages={"prepare": "p0", "head": "cc", "evaluate": "ff"}, records={"scores": SCORES})
    out = ok(capsys, "compare", "a", "b")
    assert "\n\nB failed: no room for it\n" in out
    assert "\n  of A only              head, evaluate\n" in out
    assert out.endswith("\nscores: only A has any\n")
    out = ok(capsys, "compare", "b", "a", "c")
    assert "\n  of B and C only       head, evaluate\n" in out
    assert out.endswith("\nscores\n  the same in these: raw features, trained, trained (augmented)\n")
    better = [SCORES[0], SCORES[1] | {"mP@5": 0.625}, SCORES[2]]
    run("d", minute=6, records={"scores": better})
    out = ok(capsys, "compare", "b", "a", "d")
    assert "                         B         C     C - B\n  trained  mP@5     0.5000    0.6250   +0.1250\n" in out


def test_compare_runs_without_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    """As points of a sweep are."""
    for minute, value in enumerate((0.4, 0.5)):
        run("ab"[minute], minute=minute, records={"selected": {"metric": "mP@5", "value": value, "epoch": 3}})
    assert ok(capsys, "compare", "a", "b").endswith(
        "\n\nselection\n"
        "                           A         B     B - A\n"
        "  checkpoint  mP@5    0.4000    0.5000   +0.1000\n"
    )
    found = json.loads(ok(capsys, "compare", "a", "b", "--format", "json"))
    assert found["selection"] == [{"system": "checkpoint", "metric": "mP@5", "values": [0.4, 0.5]}]
    run("c", minute=3, records={"selected": {"metric": "mP@5", "value": 0.4, "epoch": 2}, "scores": SCORES})
    out = ok(capsys, "compare", "a", "c")
    assert out.endswith("\nselection\n  the same in both: checkpoint\n\nscores: only B has any\n")
    run("d", minute=4, records={"selected": {"metric": "mP@5", "value": 0.3, "epoch": 2}, "scores": SCORES})
    assert "selection" not in ok(capsys, "compare", "c", "d")
    run("e", minute=5)
    assert ok(capsys, "compare", "a", "e").endswith("\nselection: only A has any\n")


# --- best ---


def scored(name: str, minute: int, trained: float | None, selected: float, metric: str = "mP@5", **facts: Any) -> None:
    figures = [{"system": "trained", "augmented": False, "dimension": 4, "mP@5": trained, "MRR@5": 1 - (trained or 0)}]
    figures += [{"system": "raw features", "augmented": False, "dimension": 4, "mP@5": 0.9, "MRR@5": 0.1}]
    choice = {"metric": metric, "value": selected, "epoch": 2}
    run(name, minute=minute, records={"scores": figures, "selected": choice, **facts})


def ranking(out: str) -> list[tuple[str, str]]:
    return [(name, value) for value, name in re.findall(r"^ +\d+  (\d\.\d{4})  (\S+)", out, re.MULTILINE)]


def test_best(capsys: pytest.CaptureFixture[str]) -> None:
    assert guie(capsys, "best") == (2, "", "error: there are no runs below runs; --folder names another.\n")
    run("unscored")
    assert guie(capsys, "best") == (2, "", "error: none of these runs has a score.\n")
    scored("a", 1, 0.5, 0.3)
    scored("b", 2, 0.7, 0.1)
    scored("c", 3, 0.5, 0.2)
    scored("d", 4, None, 0.4, metric="MRR@5")
    out = ok(capsys, "best")
    assert out.splitlines()[0] == "mP@5 reported"
    assert ranking(out) == [("b", "0.7000"), ("a", "0.5000"), ("c", "0.5000")]
    assert out.splitlines()[-1] == "2 runs without that score left out"
    assert ranking(ok(capsys, "best", "--metric", "MRR@5"))[0] == ("d", "1.0000")
    assert {value for _, value in ranking(ok(capsys, "best", "--system", "raw features"))} == {"0.9000"}
    assert ranking(ok(capsys, "best", "--selection")) == [("a", "0.3000"), ("c", "0.2000"), ("b", "0.1000")]
    assert ranking(ok(capsys, "best", "--selection", "--metric", "MRR@5")) == [("d", "0.4000")]
    rows = json.loads(ok(capsys, "best", "--format", "json"))
    assert (rows[0]["name"], rows[0]["metric"], rows[0]["value"]) == ("b", "mP@5", 0.7)


def test_best_and_the_list_have_one_figure_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """That of what is exported, although it is the worse one here."""
    worse = [SCORES[0], SCORES[1], SCORES[2] | {"mP@5": 0.45}]
    run("a", records={"scores": worse})
    scored("b", 2, 0.475, 0.1)
    listed = re.findall(r"^(\S+) .* mP@5 (\d\.\d+)$", ok(capsys, "list"), re.MULTILINE)
    assert listed == [("a", "0.450"), ("b", "0.475")]
    assert ranking(ok(capsys, "best")) == [("b", "0.4750"), ("a", "0.4500")]
    assert "trained (augmented)" in ok(capsys, "best")


def test_best_by_what_nobody_has(capsys: pytest.CaptureFixture[str]) -> None:
    scored("a", 1, 0.5, 0.3)
    code, _, err = guie(capsys, "best", "--metric", "mP@6")
    assert (code, err) == (2, "error: none of these runs has the metric 'mP@6'. Did you mean 'mP@5'?\n")
    code, _, err = guie(capsys, "best", "--system", "PCA-64")
    assert (code, err) == (2, "error: none of these runs has the system 'PCA-64'. There are: trained, raw features.\n")


@pytest.mark.parametrize("others", [{"manifest": "feed"}, {"splits": "0dd"}], ids=["data", "splits"])
def test_best_says_where_data_differ(others: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    scored("a", 1, 0.5, 0.3, splits="e7e")
    scored("like a", 3, 0.5, 0.3, splits="e7e")
    scored("older", 4, 0.5, 0.3)  # than that splits are recorded: of what is known, all is the same
    assert "same data" not in ok(capsys, "best")
    assert "splits" not in ok(capsys, "compare", "a", "older")
    scored("b", 2, 0.7, 0.1, **{"splits": "e7e", **others})
    assert "Not all are of the same data and splits" in ok(capsys, "best")
    assert re.search("(splits|manifest): .* in A, .* in B", ok(capsys, "compare", "a", "b"))


# --- clean ---


def test_clean_removes_what_no_run_refers_to(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"head": "aa", "features": "ff"})
    run("sweep/point", stages={"head": "cc"})
    Path("runs/sweep/sweep.json").write_text("{}")
    run("going", status="running", records={"planned": [{"name": "head", "key": "pp"}]})
    output("head", "pp.partial")
    output("head", "bb", 1500)
    output("head", "dd.partial")
    output("features", "gg", 3000)
    before = in_store()
    out = ok(capsys, "clean")
    assert out.splitlines() == [
        "  outputs             runs/store/head/bb             1.5 kB",
        "  unfinished outputs  runs/store/head/dd.partial     1.0 kB",
        "Features that no run refers to: 1 store, 3.0 kB. --features removes them.",
        "2.5 kB in all. Nothing was removed: --yes does it.",
    ]
    assert in_store() == before
    assert ok(capsys, "clean", "--yes").splitlines()[-1] == "2.5 kB removed."
    assert in_store() == {"head/aa", "features/ff", "head/cc", "head/pp.partial", "features/gg"}
    assert ok(capsys, "clean", "--features", "--yes").splitlines()[-1] == "3.0 kB removed."
    assert in_store() == {"head/aa", "features/ff", "head/cc", "head/pp.partial"}
    assert ok(capsys, "clean", "--yes") == "There is nothing to remove below runs.\n"


def test_clean_below_a_sweep_keeps_what_other_runs_use(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"head": "aa"})
    run("sweep/point", stages={"head": "cc"})
    Path("runs/sweep/sweep.json").write_text("{}")
    assert ok(capsys, "clean", "--folder", "runs/sweep", "--yes") == "There is nothing to remove below runs/sweep.\n"
    assert in_store() == {"head/aa", "head/cc"}


def test_clean_named_runs_and_what_only_they_used(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"prepare": "p0", "head": "aa"})
    run("b", stages={"prepare": "p0", "head": "bb"})
    rows = [line.split()[:2] for line in ok(capsys, "clean", "b", "runs/b", "--yes").splitlines()]
    assert rows[:2] == [["run", "runs/b"], ["outputs", "runs/store/head/bb"]]
    assert sorted(os.listdir("runs")) == ["a", "store"]
    assert in_store() == {"prepare/p0", "head/aa"}
    assert guie(capsys, "clean", "b", "--yes")[0] == 2


def test_clean_through_a_link_and_a_path_with_dots(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"head": "aa"})
    run("b", stages={"head": "bb"})
    Path("elsewhere").symlink_to("runs")
    assert ok(capsys, "clean", "--folder", "elsewhere") == "There is nothing to remove below elsewhere.\n"
    ok(capsys, "clean", "elsewhere/../runs/b", "--folder", "elsewhere", "--yes")
    assert in_store() == {"head/aa"}


def test_clean_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", status="failed")
    run("b", status="interrupted")
    run("sweep/c", status="failed")
    told = ok(capsys, "clean", "--yes").splitlines()
    assert told[0].startswith("Runs that failed: 2, ")
    assert told[0].endswith(". --failed removes them, and what only they refer to.")
    assert told[1:] == ["There is nothing to remove below runs."]
    assert ok(capsys, "clean", "../runs/a", "--folder", "runs").count("Runs that failed: 1, ") == 1
    assert "Runs that failed" not in ok(capsys, "clean", "--failed", "--yes")
    assert [record.path.name for record in find_runs("runs")[0]] == ["b"]


def test_clean_a_whole_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    run("sweep/one", stages={"head": "aa"})
    run("sweep/two", stages={"head": "bb"})
    run("c", stages={"head": "bb"})
    Path("runs/sweep/sweep.json").write_text("{}")
    Path("runs/sweep/study.db").touch()
    assert [line.split()[0] for line in ok(capsys, "clean", "sweep").splitlines()[:4]] == [
        "run",
        "run",
        "sweep",
        "outputs",
    ]
    ok(capsys, "clean", "sweep", "--yes")
    assert sorted(os.listdir("runs")) == ["c", "store"]
    assert in_store() == {"head/bb"}


def test_clean_leaves_what_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("a", status="running", stages={"head": "aa"})
    output("head", "bb")
    with locked(folder / "run.lock"):
        code, out, err = guie(capsys, "clean", "a", "--yes")
        assert (code, out) == (2, "")
        assert err == "error: runs/a is in use by process 9 on here.\nNothing was removed.\n"
    run("sweep/one")
    Path("runs/sweep/sweep.json").write_text("{}")
    with locked(Path("runs/sweep/run.lock")):
        assert guie(capsys, "clean", "sweep", "--yes")[2].startswith("error: runs/sweep is in use by process 9")
    with locked(Path("runs/store/head/.bb.lock")):
        lines = ok(capsys, "clean", "--yes").splitlines()
        assert lines[-2:] == ["runs/store/head/bb stays: a process is making it at this moment.", "0 bytes removed."]
    assert in_store() == {"head/aa", "head/bb"}


def test_clean_keeps_the_outputs_of_a_run_whose_record_is_damaged(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("a", stages={"head": "aa"})
    (folder / "run.json").write_text("{")
    ok(capsys, "clean", "--yes")
    assert in_store() == {"head/aa"}


def test_clean_takes_up_a_removal_that_was_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", stages={"head": "aa"})
    Path("runs/.b.0123abcd.tmp/stages").mkdir(parents=True)
    output("head", ".aa.0123abcd.tmp")
    output("head", ".aa.partial.0123abcd.tmp")
    ok(capsys, "clean", "--yes")
    assert sorted(os.listdir("runs")) == ["a", "store"]
    assert in_store() == {"head/aa"}
