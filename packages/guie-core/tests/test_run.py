# ruff: noqa: PT012 -- what is tested is the end of the block
from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guie_core import Experiment, GuieError, Interrupted, Run, UsageError
from guie_core.run import git_state

HEAD = "from mmengine.config import read_base\nwith read_base():\n    from ._base_.toy import recipe\n"


@pytest.fixture
def experiment(toys: Any, experiments: Path) -> Experiment:
    experiments.joinpath("toy.py").write_text(HEAD)
    return Experiment.load("experiments/toy.py", profile="cpu")


def changed(*overrides: str, profile: str = "cpu") -> Experiment:
    return Experiment.load("experiments/toy.py", overrides, profile=profile)


def read(path: str | Path = "runs/toy") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path, "run.json").read_text())
    return found


def test_record_of_a_run(experiment: Experiment) -> None:
    with Run.open("runs/toy", experiment) as run:
        assert read()["executions"][0]["status"] == "running"
        run.record(metrics={"mP@5": 0.5}, manifest="abc")
        run.log.info("a line")
        run.log.debug("for the file alone")
        logging.getLogger("guie_models.heads").info("another")
        logging.getLogger("timm").info("not this")
        warnings.warn("take care", stacklevel=1)
    record = read()
    assert record["schema"] == 1
    assert record["experiment"]["digest"] == experiment.digest
    assert record["experiment"]["resolved"] == experiment.resolved
    assert record["records"] == {"metrics": {"mP@5": 0.5}, "manifest": "abc"}
    (execution,) = record["executions"]
    assert execution["status"] == "finished"
    assert execution["started"] <= execution["finished"]
    assert execution["versions"]["guie-core"] == "0.1.0"
    assert {"plugin": "models", "distribution": "guie-models", "version": "0.1.0"} in execution["plugins"]
    log = Path("runs/toy/run.log").read_text()
    assert "INFO guie.run: a line" in log
    assert "DEBUG guie.run: for the file alone" in log
    assert "INFO guie_models.heads: another" in log
    assert "not this" not in log
    assert "take care" in log


@pytest.mark.parametrize(
    ("module", "command"),
    [
        (None, "guie-train toy.py --set 'a=b c'"),
        ("guie_train.__main__", "python -m guie_train toy.py --set 'a=b c'"),
        ("guie_core.cli", "python -m guie_core.cli toy.py --set 'a=b c'"),
    ],
)
def test_the_command_can_be_repeated(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, module: str | None, command: str
) -> None:
    program = "/bin/guie-train" if module is None else "/lib/guie_train/__main__.py"
    monkeypatch.setattr(sys, "argv", [program, "toy.py", "--set", "a=b c"])
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    Run.open("runs/toy", experiment).close()
    Run.open("runs/toy", experiment, command=["torchrun", "-m", "guie_train"]).close()
    assert [each["command"] for each in read()["executions"]] == [command, "torchrun -m guie_train"]


def test_logging_is_left_as_it_was(experiment: Experiment) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    with Run.open("runs/toy", experiment):
        assert len(root.handlers) == len(before[0]) + 1
    assert (list(root.handlers), root.level) == before


def test_second_execution_goes_on(experiment: Experiment) -> None:
    with Run.open("runs/toy", experiment) as run:
        run.record(a=1)
    with Run.open("runs/toy", changed(profile="v100-32g")) as run:  # the profile doesn't change the result
        assert run.records == {"a": 1}
        run.record(b=2)
    assert read()["records"] == {"a": 1, "b": 2}
    assert [e["profile"]["name"] for e in read()["executions"]] == ["cpu", "v100-32g"]


def test_another_experiment_in_the_same_directory(experiment: Experiment) -> None:
    Run.open("runs/toy", experiment).close()
    before = read()
    other = changed(
        "recipe.arcface.epochs=3", "recipe.head.out_features=8", "recipe.mode=exact", "recipe.head.dropout=0.1"
    )
    with pytest.raises(UsageError) as error:
        Run.open("runs/toy", other)
    assert str(error.value) == (
        "runs/toy holds a run of toy with other settings; 3 settings differ:\n"
        "  recipe.head.out_features  32 there, 8 now\n"
        "  recipe.arcface.epochs     5 there, 3 now\n"
        "  recipe.mode               - there, 'exact' now\n"
        "Choose another folder with --work-dir, or begin anew with --fresh: the former run is kept beside it."
    )
    assert read() == before
    assert error.value.exit_code == 2
    Path("experiments/toy.py").rename("experiments/other.py")
    with pytest.raises(UsageError, match=r"^runs/toy holds a run of another experiment \(toy\); 1 setting differs:\n"):
        Run.open("runs/toy", Experiment.load("experiments/other.py", ["recipe.seed=1"], profile="cpu"))
    assert read() == before


def test_fresh_run_keeps_the_former_one(experiment: Experiment) -> None:
    with Run.open("runs/toy", experiment) as run:
        run.record(a=1)
        (run.path / "checkpoint").write_text("precious")
    for expected in ("toy.1", "toy.2"):
        with Run.open("runs/toy", changed("recipe.seed=1"), fresh=True) as run:
            assert run.records == {}
            assert not (run.path / "checkpoint").exists()
        assert (Path("runs") / expected).is_dir()
    assert read("runs/toy.1")["records"] == {"a": 1}
    assert Path("runs/toy.1/checkpoint").read_text() == "precious"
    assert len(read()["executions"]) == 1


def test_folder_that_is_no_run_is_left_alone(experiment: Experiment) -> None:
    Path("photos").mkdir()
    Path("photos/cat.jpg").touch()
    for fresh in (False, True):
        with pytest.raises(UsageError) as error:
            Run.open("photos", experiment, fresh=fresh)
        assert str(error.value) == (
            "photos is not a run: it holds cat.jpg.\nNothing was changed. Choose another folder with --work-dir."
        )
    assert os.listdir("photos") == ["cat.jpg"]
    with pytest.raises(UsageError, match=r"photos/cat\.jpg is a file; a run needs a folder"):
        Run.open("photos/cat.jpg", experiment)
    Path("empty").mkdir()
    Run.open("empty", experiment).close()


def test_no_run_lies_in_another(experiment: Experiment) -> None:
    Run.open("runs/toy", experiment).close()
    for inner in ("runs/toy/inner", "runs/toy/deeper/inner"):
        for fresh in (False, True):
            with pytest.raises(UsageError) as error:
                Run.open(inner, experiment, fresh=fresh)
            assert str(error.value) == (
                f"{inner} lies in runs/toy, which is the folder of a run: it would be listed nowhere, and removed with "
                "that run.\nNothing was changed. Choose a folder outside with --work-dir."
            )
    assert sorted(os.listdir("runs/toy")) == ["run.json", "run.lock", "run.log"]
    Run.open("runs/toy/../beside", experiment).close()
    Path("run.json").touch()  # of something else
    Run.open("runs/toy", experiment).close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "runs/toy/run.json cannot be read (JSONDecodeError:"),
        ("[]", "runs/toy/run.json cannot be read (TypeError:"),
        ('{"schema": 1}', "runs/toy/run.json cannot be read (KeyError: 'experiment')."),
    ],
)
def test_record_that_cannot_be_read(experiment: Experiment, text: str, message: str) -> None:
    Run.open("runs/toy", experiment).close()
    Path("runs/toy/run.json").write_text(text)
    with pytest.raises(UsageError) as error:
        Run.open("runs/toy", experiment)
    assert str(error.value).startswith(message)
    assert "--fresh" in str(error.value)
    assert Path("runs/toy/run.json").read_text() == text


def test_record_of_a_later_guie(experiment: Experiment) -> None:
    Run.open("runs/toy", experiment).close()
    Path("runs/toy/run.json").write_text(json.dumps(read() | {"schema": 2}))
    with pytest.raises(UsageError, match=r"runs/toy/run.json is of format 2; this guie knows format 1\."):
        Run.open("runs/toy", experiment)


def test_only_one_process_at_a_time(experiment: Experiment) -> None:
    code = (
        "import fcntl, os, sys\n"
        "lock = os.open('runs/toy/run.lock', os.O_RDWR); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    Run.open("runs/toy", experiment).close()
    before = read()
    Path("runs/toy/run.lock").write_text("process 7 on host since yesterday\n")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        for fresh in (False, True):
            with pytest.raises(UsageError) as error:
                Run.open("runs/toy", experiment, fresh=fresh)
            assert str(error.value) == (
                "runs/toy is in use by process 7 on host since yesterday.\n"
                "Wait until that is done, or choose another folder with --work-dir."
            )
        other.communicate()
    assert read() == before
    Run.open("runs/toy", experiment).close()  # the lock went with the process


def test_own_second_run_in_one_directory_is_refused(experiment: Experiment) -> None:
    with Run.open("runs/toy", experiment), pytest.raises(UsageError, match=f"in use by process {os.getpid()} on"):
        Run.open("runs/toy", experiment)
    assert read()["executions"][0]["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Interrupted("stopped after epoch 3"), "interrupted", "stopped after epoch 3"),
        (KeyboardInterrupt(), "interrupted", None),
        (GuieError("no data"), "failed", "no data"),
        (ZeroDivisionError("x"), "failed", "ZeroDivisionError: x"),
    ],
)
def test_how_it_ended_is_recorded(experiment: Experiment, error: BaseException, status: str, text: str | None) -> None:
    with pytest.raises(type(error)), Run.open("runs/toy", experiment) as run:
        run.record(a=1)
        raise error
    (execution,) = read()["executions"]
    assert (execution["status"], execution.get("error")) == (status, text)
    assert ("Traceback" in Path("runs/toy/run.log").read_text()) == (status == "failed")
    with Run.open("runs/toy", experiment) as run:
        assert run.records == {"a": 1}


def test_killed_run_can_be_gone_on_with(experiment: Experiment, toys: Any) -> None:
    code = textwrap.dedent(
        f"""
        import importlib.metadata as m, os
        m.DistributionFinder.Context.path = property(lambda self: [{str(toys.path)!r}])
        from guie_core import Experiment, Run
        run = Run.open("runs/toy", Experiment.load("experiments/toy.py", profile="cpu"))
        run.record(a=1)
        os.kill(os.getpid(), 9)
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{toys.path}:{':'.join(sys.path)}"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    with Run.open("runs/toy", experiment) as run:
        assert run.records == {"a": 1}
    assert [execution["status"] for execution in read()["executions"]] == ["running", "finished"]


def test_what_a_killed_run_left_half_written_is_removed(experiment: Experiment) -> None:
    Run.open("runs/toy", experiment).close()
    for name in (".run.json.abcdefgh.tmp", "stages/.head.01234567.tmp"):
        Path("runs/toy", name).parent.mkdir(exist_ok=True)
        Path("runs/toy", name).write_text("half")
    Path("runs/toy/.hidden").touch()
    with Run.open("runs/toy", experiment):
        pass
    assert sorted(path.name for path in Path("runs/toy").rglob(".*")) == [".hidden"]


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """A function after which nothing can be written any more."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_that_ended_a_run_is_recorded_as_that(experiment: Experiment) -> None:
    def fail() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise GuieError("no room") from error

    with pytest.raises(GuieError), Run.open("runs/toy", experiment):
        fail()
    with pytest.raises(GuieError), Run.open("runs/toy", experiment):
        raise GuieError("no data")
    full, other = read()["executions"]
    assert (full["status"], full["error"], full["errno"]) == ("failed", "no room", "ENOSPC")
    assert "errno" not in other


@pytest.mark.parametrize("error", [GuieError("no data"), Interrupted("stopped after epoch 3")])
def test_full_disk_hides_nothing_of_what_ended_a_run(
    experiment: Experiment, full_disk: Callable[[], None], error: GuieError
) -> None:
    with pytest.raises(type(error)) as raised, Run.open("runs/toy", experiment):
        full_disk()
        raise error
    assert raised.value is error
    assert read()["executions"][0]["status"] == "running"  # as it last could be written


def test_full_disk_at_the_end(experiment: Experiment, full_disk: Callable[[], None]) -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(GuieError, match=r"run\.json could not be written"), Run.open("runs/toy", experiment):
        full_disk()
    assert logging.getLogger().handlers == before


def test_log_goes_without_what_the_disk_refuses(
    experiment: Experiment, full_disk: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GuieError, match="no data"), Run.open("runs/toy", experiment) as run:
        run.log.info("a line")
        full_disk()
        run.log.info("another")
        run.log.info("and another")
        raise GuieError("no data")
    # by itself; what else is logged comes to the screen too, once a test before has run a command
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert told.startswith("warning: The file is larger than this system allows: ")
    assert told.endswith("The log has a gap.")
    assert "run.log could not be written" in told
    assert "a line" in Path("runs/toy/run.log").read_text()


def test_facts_must_be_plain(experiment: Experiment) -> None:
    with Run.open("runs/toy", experiment) as run:
        for fact in (float("nan"), {1, 2}):
            with pytest.raises((TypeError, ValueError)):
                run.record(fact=fact)
        assert run.records == {}
    run.close("failed")  # after the end: nothing changes
    assert read()["executions"][0]["status"] == "finished"


def test_folder_that_cannot_be_made(experiment: Experiment) -> None:
    Path("file").touch()
    with pytest.raises(GuieError, match=r"A part of the path is a file, not a folder: .*could not be written"):
        Run.open("file/run", experiment)


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "a").touch()
    subprocess.run([*git, "add", "a"], check=True)
    assert git_state(tmp_path) == state | {"changed": True}
