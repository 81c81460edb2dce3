"""Sweeps of a small experiment: stopped, gone on with, ranked by what runs choose by; and the room they take."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it
from PIL import Image

from guie_core import ExperimentError, GuieError, Interrupted, Problem
from guie_core.cli import main, run_command
from guie_core.run import acquire
from guie_datasets import decode
from guie_emoji import Emoji
from guie_train import runner
from guie_train.cli import train
from guie_train.stage import Stage
from guie_train.stages.data import Prepare
from guie_train.stages.evaluate import Evaluate
from guie_train.stages.features import Features
from guie_train.stages.head import FitHead
from guie_train.sweeping.points import Point
from guie_train.sweeping.study import Study, Suggestion
from guie_train.sweeping.sweep import Sweep, Swept

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["recipe.backbone.type=timm/test_resnet", "recipe.backbone.weights=none", "recipe.backbone.image_size=32"]
SMALL += ["recipe.exports=[]", "recipe.selection.every=1", "recipe.evaluation.pca=32"]
GRID = ["--grid", "recipe.loss.margin=0.3,0.5", "--grid", "recipe.arcface.epochs=2,4"]
FOLDER = Path("runs/sweep")
PAGE = (ROOT / "docs" / "how-to" / "runs.md").read_text()
# the page's experiment, on the small images
QUICKSTART = """
from mmengine.config import read_base

with read_base():
    from .own_images import recipe

recipe.update(backbone=dict(type="timm/test_resnet", weights="none", image_size=32), head=dict(dropout=0.3))
recipe.update(arcface=dict(epochs=4), selection=dict(every=1), exports=[dict(type="Safetensors")])
recipe.update(evaluation=dict(pca=32))
profile = "cpu"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of six images, and the repository's experiments."""
    home = tmp_path_factory.mktemp("home")
    for row in Emoji().rows():
        if row.label < 12:
            folder = home / "photos" / row.name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(decode(row.image.read()).transpose(1, 2, 0))
            image.save(folder / f"{len(list(folder.iterdir()))}.png")
    shutil.copytree(ROOT / "experiments", home / "experiments")
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `home` to work in; one thread, for the same bits."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def guie(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(command: str, *args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run_command(train, command, args) if command == "guie-train" else main([command, *args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, out, err

    return call


def sweep(*args: str) -> list[str]:
    overrides = [part for override in SMALL for part in ("--set", override)]
    return ["sweep", "experiments/own_images.py", "--profile", "cpu", "--work-dir", str(FOLDER), *overrides, *args]


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Press Ctrl-C when so many points have begun."""

    def at(number: int) -> None:
        begun: list[int] = []

        def pressed(*args: Any, **kwargs: Any) -> Path:
            begun.append(1)
            if len(begun) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return runner.train(*args, **kwargs)

        monkeypatch.setattr("guie_train.sweeping.sweep.train", pressed)

    return at


def go_on_with(err: str) -> list[str]:
    """The command that an interrupted sweep tells."""
    (line,) = re.findall(r"Go on with: guie (.*)$", err, re.MULTILINE)
    return shlex.split(line)


def runs() -> dict[str, dict[str, Any]]:
    """The records of the points, by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*/run.json"))}


def values(record: dict[str, Any]) -> tuple[float, int]:
    recipe = record["experiment"]["resolved"]["recipe"]
    return recipe["loss"]["margin"], recipe["arcface"]["epochs"]


def best_of_curves(folder: str) -> float:
    """What the head stage wrote down, epoch by epoch."""
    curves = json.loads((FOLDER / folder / "stages" / "head" / "curves.json").read_text())["curves"]
    return max(float(curve["mP@5"]) for curve in curves)


def table(out: str) -> list[tuple[float, str]]:
    """Score and folder of the ranked points."""
    rows = re.findall(r"^ +\d+ +(\d\.\d{4}) .* (\S+)$", out, re.MULTILINE)
    return [(float(score), folder) for score, folder in rows]


def test_a_grid_is_gone_on_with_and_ranked_by_selection(
    guie: Callable[..., tuple[int, str, str]], ctrl_c: Callable[[int], None]
) -> None:
    ctrl_c(3)
    code, out, err = guie(*sweep(*GRID))
    assert code == 130, err
    assert "4 points of own_images on cpu -> runs/sweep, each to stage 'head'" in out
    assert [record["executions"][-1]["status"] for record in runs().values()].count("finished") == 2

    code, out, err = guie(*go_on_with(err))
    assert code == 0, err
    assert out.count(" was done before: ") == 2
    found = runs()
    assert sorted(map(values, found.values())) == [(0.3, 2), (0.3, 4), (0.5, 2), (0.5, 4)]
    ranked = table(out)
    assert {folder: score for score, folder in ranked} == pytest.approx(
        {folder: best_of_curves(folder) for folder in found}, abs=1e-4
    )
    assert [score for score, _ in ranked] == sorted((score for score, _ in ranked), reverse=True)

    # what is reported on has been looked at by no point, and what they share was computed once
    assert not Path("runs/store/evaluate").exists()
    assert not any("scores" in record["records"] for record in found.values())
    assert sum("reused" in s and s["reused"] for r in found.values() for s in r["records"]["stages"]) >= 12
    assert len(list(Path("runs/store/features").glob("*/store.json"))) == 1

    # the command at the end reports on the best, whose head is there
    (command,) = re.findall(r"^To report on the best: guie-train (.*)$", out, re.MULTILINE)
    code, out, err = guie("guie-train", *shlex.split(command))
    assert code == 0, err
    best = ranked[0][1]
    assert (FOLDER / best / "report.html").is_file()
    record = runs()[best]
    assert {s["name"]: s["reused"] for s in record["records"]["stages"]}["head"]
    assert [score["system"] for score in record["records"]["scores"]] == ["raw features", "PCA-32", "trained"]

    # without the others, only their heads go
    others = [f"sweep/{folder}" for _, folder in ranked[1:]]
    code, out, err = guie("runs", "clean", *others, "--yes")
    assert (code, err) == (0, "")
    assert len(list(Path("runs/store/head").glob("*/stage.json"))) == 1
    assert guie("runs", "clean")[1] == "There is nothing to remove below runs.\n"
    code, out, err = guie("guie-train", *shlex.split(command))
    assert all(stage["reused"] for stage in runs()[best]["records"]["stages"])


def test_trials_are_the_same_whether_or_not_interrupted(
    guie: Callable[..., tuple[int, str, str]], ctrl_c: Callable[[int], None]
) -> None:
    asked = ["--suggest", "recipe.loss.margin=0.2..0.6", "--suggest", "recipe.arcface.epochs=1..3", "--seed", "3"]
    code, out, err = guie(*sweep("--trials", "3", *asked))
    assert code == 0, err
    whole = {values(record): best_of_curves(folder) for folder, record in runs().items()}
    assert len(whole) == 3
    FOLDER.rename("runs/whole")

    ctrl_c(2)
    code, out, err = guie(*sweep("--trials", "3", *asked))
    assert code == 130, err
    code, out, err = guie(*go_on_with(err))
    assert code == 0, err
    assert {values(record): best_of_curves(folder) for folder, record in runs().items()} == whole
    assert len(table(out)) == 3

    code, out, err = guie(*sweep("--trials", "4", *asked))
    assert code == 0, err
    assert out.count("trial 4/4: ") == 1
    assert len(table(out)) == 4
    assert whole.items() <= {values(record): best_of_curves(folder) for folder, record in runs().items()}.items()

    code, out, err = guie(*sweep("--trials", "4", *asked[:-1], "4"))
    assert code == 2
    assert "runs/sweep has trials of another --seed." in err


# a sweep that is killed, by nobody else, when its point of this number has trained its first epoch
KILLED = """
import os, signal, sys
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it
from guie_core.cli import main
from guie_train import trackers
from guie_train.sweeping import sweep

number, *command = sys.argv[1:]
begun, run, track = [], sweep.train, trackers.Tracking.__call__

def train(*args, **kwargs):
    begun.append(args)
    return run(*args, **kwargs)

def on_epoch(self, stage, curves):
    track(self, stage, curves)
    if stage == "head" and len(begun) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)

sweep.train, trackers.Tracking.__call__ = train, on_epoch
main(command)
"""


@pytest.mark.parametrize(
    "asked",
    [GRID, ["--trials", "4", "--suggest", "recipe.loss.margin=0.2..0.6", "--set", "recipe.arcface.epochs=2"]],
    ids=["grid", "trials"],
)
def test_of_a_sweep_that_is_killed_nothing_is_lost_and_nothing_double(
    asked: list[str], guie: Callable[..., tuple[int, str, str]]
) -> None:
    for number in (1, 3):
        command = [sys.executable, "-c", KILLED, str(number), *sweep(*asked)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert [record["executions"][-1]["status"] for record in runs().values()].count("running") == 1
    before = runs()
    code, out, err = guie(*sweep(*asked))
    assert code == 0, err
    # the third was under way
    assert re.findall(r"^(?:point|trial) (\d)/4: (?!.*was done before)", out, re.MULTILINE) == ["3", "4"]
    found = runs()
    assert len(found) == len(table(out)) == 4
    assert before.keys() <= found.keys()
    assert {folder: score for score, folder in table(out)} == pytest.approx(
        {folder: best_of_curves(folder) for folder in found}, abs=1e-4
    )
    heads = [path for path in Path("runs/store/head").iterdir() if path.is_dir()]
    assert sorted(path.name for path in heads) == sorted(
        (FOLDER / folder / "stages" / "head").resolve().name for folder in found
    )
    if "--trials" in asked:
        assert Study(FOLDER, [Suggestion("recipe.loss.margin", 0.2, 0.6)], 0, digest()).count == 4


def digest() -> str:
    """Of the experiment without what is suggested, as the study has it."""
    with sqlite3.connect(FOLDER / "study.db") as study:
        ((text,),) = study.execute("SELECT value_json FROM study_user_attributes WHERE key = 'experiment'")
    return str(json.loads(text))


def test_a_sweep_that_is_stopped_while_points_are_checked_goes_on(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        runner.check(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr("guie_train.sweeping.sweep.check", pressed)
        code, _, err = guie(*sweep("--grid", "recipe.arcface.epochs=1,2"))
    assert code == 130, err
    assert not runs()
    code, out, err = guie(*go_on_with(err))
    assert code == 0, err
    assert len(table(out)) == 2


def test_points_of_a_dry_run_that_is_stopped_are_not_refused(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*_: Any, **__: Any) -> None:
        raise Interrupted("the plan is made")

    monkeypatch.setattr("guie_train.sweeping.sweep.check_ahead", pressed)
    code, _, err = guie(*sweep("--grid", "recipe.arcface.epochs=1,2", "--dry-run"))
    assert (code, err) == (130, "stopped: the plan is made\n")


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]]:
    """Has runs of a stage fail, all by the same words; gives the stages that were tried."""

    def make(kind: type[Stage[Any]], fails: Callable[[Any], bool]) -> list[Any]:
        run, tried = kind.run, list[Any]()

        def failing(self: Any, folder: Path, workspace: Any) -> None:
            tried.append(self)
            if fails(self):
                raise GuieError("the disk makes noises")
            run(self, folder, workspace)

        monkeypatch.setattr(kind, "run", failing)
        return tried

    return make


def test_a_point_that_fails_is_told_and_tried_again_when_asked(
    guie: Callable[..., tuple[int, str, str]],
    wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]],
) -> None:
    grid = ["--grid", "recipe.loss.margin=0.4,0.3", "--set", "recipe.arcface.epochs=1"]
    wrong(FitHead, lambda stage: stage.loss["margin"] == 0.4)

    def failures() -> int:
        (failed,) = [each for each in runs().values() if values(each)[0] == 0.4]
        return [each["status"] for each in failed["executions"]].count("failed")

    code, out, err = guie(*sweep(*grid))
    assert code == 1
    assert "\nerror: the disk makes noises\n" in err
    assert err.splitlines()[-1] == "error: 1 of 2 points failed; --retry tries them again."
    assert len(table(out)) == 1
    (folder,) = re.findall(r"^ +- +failed +0.4 .* (\S+)$", out, re.MULTILINE)
    assert re.search(r"^  head +\w{16} +failed$", guie("runs", "show", f"sweep/{folder}")[1], re.MULTILINE)
    assert failures() == 1
    code, out, err = guie(*sweep(*grid))
    assert code == 1
    assert "point 1/2: margin=0.4 failed before: " in err
    assert failures() == 1
    code, out, err = guie(*sweep(*grid, "--retry"))
    assert code == 1
    assert failures() == 2


def test_the_stage_that_failed_in_an_earlier_execution_is_not_told_of_the_last(
    guie: Callable[..., tuple[int, str, str]],
    wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]],
) -> None:
    wrong(FitHead, lambda stage: True)
    _, *asked = sweep("--set", "recipe.arcface.epochs=1")
    assert guie("guie-train", *asked)[0] == 1
    assert re.search(r"^  head +\w{16} +failed$", guie("runs", "show", "sweep")[1], re.MULTILINE)
    shutil.rmtree("photos")
    assert guie("guie-train", *asked)[0] == 1
    shown = guie("runs", "show", "sweep")[1]
    assert "photos" in shown
    assert not re.search(r"^  head +\w{16} +failed$", shown, re.MULTILINE)


def test_what_is_refused_is_told_before_the_first_point_runs(guie: Callable[..., tuple[int, str, str]]) -> None:
    grid = ["--grid", "recipe.arcface.epochs=1", "--grid", "recipe.loss.margin=0.3,9", "--grid"]
    code, out, err = guie(*sweep(*grid, "recipe.splits.0.classes=4,300", "--dry-run"))
    assert code == 1
    assert re.findall(r"^error: point (\d)/4: ", err, re.MULTILINE) == ["2", "3", "4"]
    code, out, err = guie(*sweep(*grid, "recipe.splits.0.classes=4,300", "--set", "recipe.arcface.batch_size=8"))
    assert code == 1
    assert re.findall(r"^error: point (\d)/4: ", err, re.MULTILINE) == ["2", "3", "4"]
    assert err.count("300 classes are to be held out, but there are 12") == 1
    assert err.count("classes=300: the same as above\n") == 1
    assert err.count("ArcFace: margin is 9.0; it is an angle in radians, from 0 to below pi.") == 1
    assert re.findall(r"^(point \d)/4", out, re.MULTILINE) == ["point 1"]
    assert len(table(out)) == len(runs()) == 1
    assert err.splitlines()[-1] == "error: 3 of 4 points failed; --retry tries them again."


def test_a_fault_that_shows_before_a_point_runs_can_be_looked_into(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: FitHead, workspace: Any) -> None:
        if self.loss["margin"] == 0.5:
            raise TypeError("'NoneType' object is not iterable")

    monkeypatch.setattr(FitHead, "check", faulty)
    code, out, err = guie(*sweep("--grid", "recipe.loss.margin=0.3,0.5", "--set", "recipe.arcface.epochs=1"))
    assert code == 1
    assert (
        "error: point 2/2: margin=0.5: TypeError: 'NoneType' object is not iterable\n"
        "Where it came from is in runs/sweep/sweep.log\n" in err
    )
    log = (FOLDER / "sweep.log").read_text()
    assert "point 2/2: margin=0.5" in log
    assert "in faulty" in log
    assert re.search(r"^ +- +failed +0.5 +-$", out, re.MULTILINE)  # it has no run


def test_a_point_that_is_refused_leaves_nothing_in_the_store(guie: Callable[..., tuple[int, str, str]]) -> None:
    assert guie(*sweep("--grid", "recipe.arcface.epochs=1", "--set", "recipe.splits.0.classes=300"))[0] == 1
    assert [path.name for path in Path("runs/store/split").iterdir() if path.is_dir()] == []


def test_a_stage_that_is_the_same_in_other_points_fails_in_them_as_well(
    guie: Callable[..., tuple[int, str, str]], wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]]
) -> None:
    grid = ["--grid", "recipe.loss.margin=0.3,0.4,0.5", "--set", "recipe.arcface.epochs=1"]
    tried = wrong(Features, lambda stage: True)
    code, out, err = guie(*sweep(*grid))
    assert (code, len(tried)) == (1, 2)
    assert err.count("error: the disk makes noises\n") == 1
    assert err.count("error: the same as above\n") == 1
    assert err.splitlines()[-1] == (
        "error: 2 of 3 points failed, and 1 was left out: in it, stage 'features train' would do what it did in two "
        "that failed in it by the same error. Mend that, and add --retry."
    )
    assert "\n2 points without a score\n" in out
    assert len(runs()) == 2
    assert guie(*sweep(*grid))[0] == 1
    assert len(tried) == 3  # of the other
    code, out, err = guie(*sweep(*grid, "--retry"))
    assert err.splitlines()[-1].startswith("error: 2 of 3 points failed, and 1 was left out: ")


def test_points_that_do_other_work_are_run(
    guie: Callable[..., tuple[int, str, str]], wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]]
) -> None:
    """Of two seeds one fails in features, which all points of it share."""
    grid = ["--grid", "recipe.seed=0,1", "--grid", "recipe.loss.margin=0.3,0.4,0.5", "--set", "recipe.arcface.epochs=1"]
    tried = wrong(Features, lambda stage: stage.seed == 0)
    code, out, err = guie(*sweep(*grid))
    assert code == 1
    assert [stage.seed for stage in tried] == [0, 0, 1, 1]
    assert len(table(out)) == 3
    assert err.splitlines()[-1].startswith("error: 2 of 6 points failed, and 1 was left out: ")


def test_values_that_share_nothing_may_each_be_at_fault(
    guie: Callable[..., tuple[int, str, str]], wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]]
) -> None:
    grid = ["--grid", "recipe.loss.margin=0.3,0.4,0.5", "--set", "recipe.arcface.epochs=1"]
    tried = wrong(FitHead, lambda stage: stage.loss["margin"] < 0.45)
    code, out, err = guie(*sweep(*grid))
    assert (code, len(tried), len(table(out))) == (1, 3, 1)
    assert err.splitlines()[-1] == "error: 2 of 3 points failed; --retry tries them again."


def test_what_all_points_fail_by_is_told_once(guie: Callable[..., tuple[int, str, str]]) -> None:
    grid = ["--grid", "recipe.arcface.epochs=1,2,3", "--set", "recipe.splits.0.classes=300"]
    code, _, err = guie(*sweep(*grid))
    assert code == 1
    assert err.count("300 classes are to be held out, but there are 12") == 1
    assert err.count(": the same as above\n") == 1
    assert err.splitlines()[-1].startswith("error: 2 of 3 points failed, and 1 was left out: in it, stage 'split' ")
    shutil.rmtree("photos")  # of which no key can be told
    _, _, err = guie(*sweep(*grid))
    assert err.splitlines()[-1].startswith("error: 2 of 3 points failed, and 1 was left out: in it, stage 'prepare' ")
    assert not runs()


def test_trials_end_by_an_error_that_is_not_of_their_values(guie: Callable[..., tuple[int, str, str]]) -> None:
    asked = ["--suggest", "recipe.loss.margin=0.2..0.6", "--set", "recipe.splits.0.classes=300", "--trials", "5"]
    code, _, err = guie(*sweep(*asked))
    assert code == 1
    assert err.splitlines()[-1].startswith("error: 2 of 5 trials failed, and 3 were left out: in them, stage 'split' ")
    assert len(runs()) == 2
    code, _, err = guie(*sweep(*asked))  # with two new ones
    assert err.splitlines()[-1].startswith("error: 4 of 5 trials failed, and 1 was left out: ")


def test_trials_that_were_scored_are_ranked_though_others_are_left_out(
    guie: Callable[..., tuple[int, str, str]],
    wrong: Callable[[type[Stage[Any]], Callable[[Any], bool]], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ["--suggest", "recipe.loss.margin=0.2..0.6", "--set", "recipe.arcface.epochs=1", "--trials", "4"]
    with monkeypatch.context() as patched:
        run, tried = FitHead.run, list[FitHead]()

        def failing(self: FitHead, folder: Path, workspace: Any) -> None:
            tried.append(self)
            if len(tried) < 4:
                raise GuieError("the disk makes noises")
            run(self, folder, workspace)

        patched.setattr(FitHead, "run", failing)
        code, out, err = guie(*sweep(*asked))
    assert (code, len(tried)) == (1, 4)
    assert err.splitlines()[-1] == "error: 3 of 4 trials failed; --retry tries them again."
    ranked = table(out)
    assert len(ranked) == 1

    shutil.rmtree("runs/store")
    wrong(Features, lambda stage: True)  # which the trials have in common
    code, out, err = guie(*sweep(*asked, "--retry"))
    assert table(out) == ranked
    assert err.splitlines()[-1].startswith("error: 2 of 4 trials failed, and 1 was left out: in it, stage 'features ")
    code, out, err = guie(*sweep(*asked[:-1], "6", "--retry"))
    assert table(out) == ranked
    assert err.splitlines()[-1].startswith("error: 2 of 6 trials failed, and 3 were left out: in them, stage ")


def test_scores_on_other_splits_are_not_ranked_as_one(guie: Callable[..., tuple[int, str, str]]) -> None:
    grid = ["--grid", "recipe.splits.0.seed=1,2", "--set", "recipe.arcface.epochs=1"]
    code, out, err = guie(*sweep(*grid))
    assert code == 0, err
    assert len(table(out)) == 2
    told = "Not all are of the same data and splits, so that not all can be compared"
    assert out.endswith(f"\n{told}.\n")
    assert f"\n{told}: guie runs compare A B\n" in guie("runs", "best", "--selection")[1]


def test_want_of_memory_is_of_the_values(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("guie_train.heads.HeadWithLoss.forward", full)
    code, _, err = guie(*sweep("--grid", "recipe.head.out_features=64,32,16"))
    assert code == 1
    assert err.count("error: the same as above") == 2
    assert err.splitlines()[-1] == "error: 3 of 3 points failed, all by the same error; --retry tries them again."


@pytest.mark.parametrize(  # in the work of one point, and in the checks before the first
    ("number", "stage"), [(errno.ENOSPC, FitHead), (errno.EDQUOT, Prepare), (errno.EROFS, FitHead)]
)
def test_a_full_disk_is_of_no_point(
    number: int,
    stage: type[Stage[Any]],
    guie: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def full(self: Stage[Any], *_: Any) -> None:
        tried.append(self)
        raise OSError(number, os.strerror(number))

    grid = ["--grid", "recipe.loss.margin=0.3,0.4", "--set", "recipe.arcface.epochs=1"]
    asked = ["--suggest", "recipe.loss.margin=0.2..0.6", "--trials", "2", "--set", "recipe.arcface.epochs=1"]
    for arguments in (grid, asked):
        with monkeypatch.context() as patched:
            patched.setattr(stage, "run", full)
            code, out, err = guie(*sweep(*arguments))
        assert (code, len(tried)) == (1, 1)
        assert re.fullmatch(
            r"error: (The disk is full|Your disk quota is used up|The disk is read-only): .*, or choose \S*.*folder.* "
            r"\(--work-dir\), and run the same command again\.\n",
            err[err.index("error: ") :],
            re.DOTALL,
        )
        code, out, err = guie(*sweep(*arguments))
        assert (code, len(table(out))) == (0, 2), err
        assert "failed" not in out + err
        shutil.rmtree("runs")
        tried.clear()


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], GuieError]:
    """What ends a sweep in the folder `sweep` whose point fails by an error."""

    def by(error: Exception) -> GuieError:
        def check(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("guie_train.sweeping.sweep.check", check)
        point: Any = SimpleNamespace(experiment=None, values={}, words="x=1", folder="x=1")
        with pytest.raises(GuieError) as told:
            Sweep(tmp_path / "sweep", ["guie", "sweep"], full=True).over([point])
        return told.value

    return by


def test_an_error_of_the_disk_that_is_in_words_already_is_told_as_it_is(
    ended: Callable[[Exception], GuieError]
) -> None:
    error = GuieError("no room")
    error.__cause__ = full = OSError(errno.ENOSPC, "full")
    told = ended(error)
    assert (told, told.__cause__) == (error, full)  # not itself, or whoever follows the causes never ends


def test_of_a_full_disk_that_names_no_file_the_folder_of_the_sweep_is_told(
    ended: Callable[[Exception], GuieError], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    text = str(ended(OSError(errno.ENOSPC, "full")))
    assert text.startswith(f"The disk is full: {folder} could not be written. ")
    assert f" are free in {folder}." in text
    text = str(ended(OSError(errno.EROFS, "read-only", "some.file")))
    assert text.startswith("The disk is read-only: some.file could not be written.")


def test_points_that_are_equal_are_told(guie: Callable[..., tuple[int, str, str]]) -> None:
    grid = ["--grid", "recipe.arcface.epochs=1,2", "--set", "recipe.splits.1.folds=8"]  # eight classes are left
    code, out, err = guie(*sweep(*grid))
    assert code == 0
    assert "select 6 of 1 class," in out
    assert err.count("warning: head: by recipe.selection.protocol, all images that may answer are of one class") == 2
    assert [score for score, _ in table(out)] == [1, 1]
    assert "\nThe first 2 are equal: their scores don't tell which is best.\n" in out


def test_what_is_wrong_with_the_points_is_told_before_the_first(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = guie(*sweep("--grid", "recipe.loss.margn=0.3,0.5", "--grid", "recipe.arcface.epochs=ten,3,0"))
    assert code == 2
    assert err.startswith("error: 3 problems in experiments/own_images.py\n")
    for text in ("Did you mean 'margin'?", "got the text 'ten'", "epochs is 0"):
        assert text in err
    code, _, err = guie(*sweep("--trials", "3", "--suggest", "recipe.arcface.epochs=0..3"))
    assert code == 2
    assert "epochs is 0" in err
    code, _, err = guie(*sweep("--grid", "recipe.seed", "--grid", "profile=cpu,auto"))
    assert code == 2
    assert err.startswith("error: 2 problems in the points\n")
    for wrong in ([], ["--trials", "3"], ["--suggest", "recipe.seed=1..2"], [*GRID, "--trials", "3"]):
        code, _, err = guie(*sweep(*wrong))
        assert (code, err) == (2, "error: name the points: with --grid, or with --trials and --suggest.\n")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = guie(*sweep(*GRID))
    assert (code, err) == (2, "error: a sweep is one process, not several: start it without torchrun or srun.\n")
    assert not Path("runs").exists()


def test_points_that_a_component_refuses_are_told_before_the_first(guie: Callable[..., tuple[int, str, str]]) -> None:
    grid = ["--grid", "recipe.head.dropout=0.1,2", "--grid", "recipe.loss.margin=0.3,9"]
    grid += ["--set", "recipe.arcface.epochs=1"]
    told = [
        (2, "dropout=0.1, margin=9", "recipe.loss: "),
        (3, "dropout=2, margin=0.3", "recipe.head: "),
        (4, "dropout=2, margin=9", "recipe.head: "),
    ]

    def check(err: str) -> None:
        for number, words, error in told:
            start = re.escape(f"error: point {number}/4: {words}: ")
            assert re.search(rf"^{start}(1 problem in .*\n  {re.escape(error)}|the same as above$)", err, re.MULTILINE)

    for again in range(2):  # without data, and with them
        code, out, err = guie(*sweep(*grid, "--dry-run"))
        assert (code, out.count("runs/sweep/dropout=")) == (1, 4)
        assert err.splitlines()[-1] == "error: 3 of 4 points would fail."
        check(err)
        assert Path("runs").exists() == bool(again)
        code, out, err = guie(*sweep(*grid))
        assert (code, len(table(out)), len(runs())) == (1, 1, 1)
        check(err)
        assert "failed before" not in err
    code, out, err = guie(*sweep("--trials", "2", "--suggest", "recipe.head.dropout=0.1..2", "--dry-run"))
    assert code == 1
    assert err.startswith("error: value 2/2: dropout=2.0: 1 problem in ")
    assert err.endswith("error: 1 of 2 values would fail.\n")


def test_a_combination_that_is_refused_does_not_hold_up_the_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = [Suggestion("recipe.seed", 0, 9, whole=True)]

    def load(values: Mapping[str, str]) -> Point:
        raise ExperimentError([Problem("recipe", f"no {values['recipe.seed']}.")])

    made = Sweep(FOLDER, ["guie", "sweep"])
    for trials in (2, 3):
        assert made.by(lambda: Study(FOLDER, space, 0, "digest"), trials, load) == Swept([], trials, failed=trials)
        assert Study(FOLDER, space, 0, "digest").count == trials
    assert capsys.readouterr().err.count("recipe: no ") == 2 + 3


def test_folders_that_no_sweep_can_have(guie: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = guie(*sweep(*GRID, "--dry-run"))
    assert code == 0
    assert out.count("runs/sweep/margin=") == 4
    assert not Path("runs").exists()
    FOLDER.mkdir(parents=True)
    (FOLDER / "sweep.json").touch()
    code, _, err = guie("guie-train", "experiments/own_images.py", "--profile", "cpu", "--work-dir", str(FOLDER))
    assert (code, err.startswith("error: runs/sweep is the folder of a sweep.")) == (2, True)
    (FOLDER / "sweep.json").rename(FOLDER / "cat.jpg")
    code, _, err = guie(*sweep(*GRID))
    assert code == 2
    assert err.startswith("error: runs/sweep is not a sweep: it holds cat.jpg.\n")
    in_file = [part.replace("runs/sweep", "runs/sweep/cat.jpg") for part in sweep(*GRID)]
    for command in (in_file, [*in_file, "--dry-run"]):
        code, _, err = guie(*command)
        told = "error: runs/sweep/cat.jpg is a file; a sweep needs a folder. Choose another with --work-dir.\n"
        assert (code, err) == (2, told)
    (FOLDER / "cat.jpg").rename(FOLDER / "run.json")
    code, _, err = guie(*sweep(*GRID))
    assert (code, err.startswith("error: runs/sweep is a run; ")) == (2, True)
    (FOLDER / "run.json").unlink()
    lock = acquire(FOLDER)
    code, _, err = guie(*sweep(*GRID))
    os.close(lock)
    assert code == 2
    assert f"runs/sweep is in use by process {os.getpid()} " in err


def test_a_run_or_sweep_within_another_is_refused(guie: Callable[..., tuple[int, str, str]]) -> None:
    """It would be listed nowhere, and go with the other one."""
    run = ("guie-train", "experiments/own_images.py", "--profile", "cpu", "--work-dir")
    for folder, file in ((FOLDER, "sweep.json"), (Path("runs/small"), "run.json")):
        folder.mkdir(parents=True)
        for name in (file, "run.lock"):
            (folder / name).touch()
    for inner, around in (("runs/sweep/margin=0.3", FOLDER), ("runs/small/a/b", Path("runs/small"))):
        for dry in ([], ["--dry-run"]):
            code, _, err = guie(*run, inner, *dry)
            assert (code, err.startswith(f"error: {inner} lies in {around}, which is the folder of a ")) == (2, True)
        code, _, err = guie(*(inner if part == str(FOLDER) else part for part in sweep(*GRID)))
        assert (code, err.startswith(f"error: {inner} lies in {around}, which is the folder of a")) == (2, True)
        assert not Path(inner).exists()
    Path("sweep.json").touch()  # of something else
    code, _, err = guie(*run, "runs/beside", "--dry-run")
    assert code == 0, err
    code, _, err = guie(*(part.replace("runs/sweep", "runs/other") for part in sweep(*GRID, "--dry-run")))
    assert code == 0, err


def test_a_run_that_ends_with_its_evaluation_is_listed_with_its_score(
    guie: Callable[..., tuple[int, str, str]]
) -> None:
    _, *asked = sweep("--set", "recipe.arcface.epochs=1", "--stage", "evaluate")
    code, out, err = guie("guie-train", *asked)
    assert code == 0, err
    ((told,),) = [re.findall(r"mP@5 .*(\d\.\d{3}) trained$", line) for line in out.splitlines() if " evaluate " in line]
    assert re.findall(r"mP@5 (\d\.\d{3})$", guie("runs", "list")[1], re.MULTILINE) == [told]
    assert [f"{float(value):.3f}" for value in re.findall(r"1  (0\.\d{4})  ", guie("runs", "best")[1])] == [told]


def test_a_report_has_no_components_that_no_image_has_a_part_in(guie: Callable[..., tuple[int, str, str]]) -> None:
    """A few images span fewer dimensions than they have features: other directions would be drawn by rounding."""
    _, *asked = sweep("--set", "recipe.arcface.epochs=1", "--set", "recipe.evaluation.pca=64", "--stage", "evaluate")
    code, out, err = guie("guie-train", *asked)
    assert code == 0, err
    (images,) = re.findall(r"split .*train (\d+) of", out)
    assert int(images) < 64
    least = int(images) - 1
    told = f"recipe.evaluation.pca: {images} training images span {least} dimensions at most, and the report has PCA-"
    assert err.count(f"warning: evaluate: {told}{least} instead of PCA-64") == 1
    scores = json.loads((FOLDER / "run.json").read_text())["records"]["scores"]
    found = [(score["system"], score["dimension"]) for score in scores]
    assert (f"PCA-{least}", least) in found
    assert "PCA-64" not in dict(found)


def test_scores_that_no_stage_tells_are_those_of_the_report(
    guie: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a plugin's recipe that is older than `Stage.scores`."""
    _, *asked = sweep("--set", "recipe.arcface.epochs=1")
    found = []
    for folder in ("told", "untold"):
        assert guie("guie-train", *asked, "--work-dir", f"runs/{folder}")[0] == 0
        found.append(json.loads(Path(f"runs/{folder}/run.json").read_text())["records"]["scores"])
        monkeypatch.setattr(Evaluate, "scores", Stage.scores)
    assert found[0] == found[1] != []


def test_the_page_of_commands(guie: Callable[..., tuple[int, str, str]]) -> None:
    """docs/how-to/runs.md, every command as it stands there but for the number of trials."""
    folder = Path("experiments")
    base = (folder / "quickstart.py").read_text().replace("._base_.fifth_place", ".fifth_place")
    (folder / "_base_" / "quickstart.py").write_text(base)
    own = folder / "own_images.py"
    own.write_text(own.read_text().replace("from .quickstart", "from ._base_.quickstart"))
    (folder / "quickstart.py").write_text(QUICKSTART)

    said: dict[str, str] = {}
    for line in re.findall(r"^\$ (guie.*?)(?: +#.*)?$", PAGE, re.MULTILINE):
        command, *arguments = shlex.split(line.replace("--trials 20", "--trials 2"))
        code, out, err = guie(command, *arguments) if command == "guie-train" else guie(*arguments)
        assert code == 0, f"{line}\n{err}"
        said[line] = out

    def of(start: str) -> str:
        (found,) = [out for line, out in said.items() if line.startswith(start)]
        return found

    assert [line.split()[:2] for line in of("guie runs list").splitlines()[1:]] == [
        ["quickstart", "finished"],
        ["less-dropout", "finished"],
    ]
    assert of("guie runs show").startswith("quickstart: finished\n")
    assert "recipe.head.dropout: 0.3 in A, 0.1 in B" in of("guie runs compare")
    assert {name for name in re.findall(r"0\.\d{4}  (\S+)", of("guie runs best --metric"))} == {
        "quickstart",
        "less-dropout",
    }
    grid = of("guie sweep experiments/quickstart.py --grid")
    assert len(table(grid)) == 6
    heading = next(line.split() for line in grid.splitlines() if line.endswith(" run"))
    assert heading in [line.split() for line in PAGE.splitlines()]
    assert len(re.findall(r"0\.\d{4}  (\S+)", of("guie runs best --selection"))) == 2
    assert said["guie runs clean"] == "There is nothing to remove below runs.\n"
    assert of("guie runs clean quickstart-sweep").splitlines()[-1].endswith(" removed.")
    assert sorted(path.name for path in Path("runs").iterdir()) == ["less-dropout", "quickstart", "store", "tuned"]
