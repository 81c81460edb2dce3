from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guie_core import UsageError
from guie_core.record import RunRecord, find_runs, holder


def write(path: str, *executions: dict[str, Any], **records: Any) -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    experiment = {"name": "toy", "path": "toy.py", "overrides": [], "digest": "ab" * 16, "resolved": {"recipe": {}}}
    whole = {"schema": 1, "experiment": experiment, "records": records, "executions": list(executions)}
    (folder / "run.json").write_text(json.dumps(whole))
    (folder / "run.lock").touch()
    return folder


def execution(status: str, started: str, finished: str = "", **facts: Any) -> dict[str, Any]:
    return {"status": status, "started": started, **({"finished": finished} if finished else {}), **facts}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


FIRST = execution("interrupted", "2026-01-01T10:00:00+00:00", "2026-01-01T10:01:30+00:00")
KILLED = execution("running", "2026-01-01T11:00:00+00:00")
LAST = execution("finished", "2026-01-01T12:00:00+00:00", "2026-01-01T12:00:10+00:00")


def test_times_are_of_all_executions() -> None:
    record = RunRecord.read(write("a", FIRST, KILLED, LAST, scores=[1]))
    assert (record.status, record.started, record.seconds) == ("finished", FIRST["started"], 100)
    assert record.records == {"scores": [1]}


def test_a_clock_that_was_set_back_takes_no_time() -> None:
    back = execution("finished", "2026-01-01T12:00:00+00:00", "2026-01-01T11:00:00+00:00")
    assert RunRecord.read(write("a", FIRST, back)).seconds == 90


def test_who_runs_and_who_was_killed() -> None:
    path = write("a", KILLED)
    assert (holder(path), RunRecord.read(path).status) == ("", "killed")
    code = (
        "import fcntl, os, sys\nlock = os.open('a/run.lock', os.O_RDWR)\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
        "os.write(lock, b'process 7')\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert (holder(path), RunRecord.read(path).status) == ("process 7", "running")
        process.communicate()
    assert RunRecord.read(path).status == "killed"


def test_runs_are_found_in_the_order_in_which_they_began() -> None:
    for path, executions in {"runs/late": [LAST], "runs/sweep/early": [FIRST], "runs/middle": [KILLED, LAST]}.items():
        write(path, *executions)
    write("runs/store/head/ab", LAST)  # outputs of stages, whatever they hold
    write("runs/late/inner", LAST)
    write("runs/.hidden", LAST)
    os.symlink("late", "runs/again")
    Path("runs/empty").mkdir()
    Path("runs/broken").mkdir()
    Path("runs/broken/run.json").write_text("{")
    found, damaged = find_runs("runs")
    assert [str(each.path) for each in found] == ["runs/sweep/early", "runs/middle", "runs/late"]
    assert list(damaged) == [Path("runs/broken")]
    assert damaged[Path("runs/broken")].startswith("runs/broken/run.json cannot be read (JSONDecodeError: ")
    assert find_runs("nowhere") == ([], {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a/run.json cannot be read (TypeError: "),
        ('{"schema": 2}', "a/run.json is of format 2; this guie knows format 1."),
        ('{"schema": 1}', "a/run.json cannot be read (KeyError: 'experiment')."),
        (
            '{"schema": 1, "executions": [], "experiment": {"name": "", "digest": "", "resolved": {"recipe": {}}}}',
            "a/run.json cannot be read (ValueError: it has no executions).",
        ),
        (b"\xff", "a/run.json cannot be read (UnicodeDecodeError: "),
    ],
)
def test_what_is_no_record(text: str | bytes, message: str) -> None:
    Path("a").mkdir()
    Path("a/run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as error:
        RunRecord.read("a")
    assert str(error.value).startswith(message)


def test_a_folder_without_a_run() -> None:
    with pytest.raises(UsageError, match=r"^nowhere is not a run: it has no run\.json\.$"):
        RunRecord.read("nowhere")
