"""Processes: real ones, connected by gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # exported without saying so

from guie_core import GuieError, Interrupted, UsageError
from guie_train.processes import (
    ALONE,
    ElsewhereError,
    Processes,
    check_apart,
    launched,
    launching,
    one_voice,
    rendezvous_store,
)
from guie_train.processes.launching import TOLD

InProcesses = Callable[[int, Callable[[Processes], Any]], list[Any]]


def test_sums_are_those_of_all_and_the_same_everywhere(in_processes: InProcesses) -> None:
    def all_reduce(processes: Processes) -> list[Any]:
        tensors = [
            torch.full((2, 3), 1.0 + processes.rank),
            torch.arange(4) * (processes.rank + 1),
            torch.tensor(0.5, dtype=torch.float64),
            torch.ones(5) * 10**processes.rank,
        ]
        processes.all_reduce(*tensors)
        return [tensor.tolist() for tensor in tensors]

    expected = [[[6.0] * 3] * 2, [0, 6, 12, 18], 1.5, [111.0] * 5]
    assert in_processes(3, all_reduce) == [expected] * 3


def test_the_first_answers_for_all(in_processes: InProcesses) -> None:
    assert in_processes(2, lambda processes: processes.from_first(lambda: f"of {processes.rank}")) == ["of 0", "of 0"]
    assert in_processes(2, lambda processes: processes.any(processes.rank == 1)) == [True, True]
    assert in_processes(2, lambda processes: processes.any(False)) == [False, False]


def test_the_first_has_all_parts(in_processes: InProcesses) -> None:
    whole = torch.arange(2 * 7 * 3).view(2, 7, 3)

    def gather(processes: Processes) -> tuple[bool, torch.Tensor]:
        mine = whole[:, processes.part(7)]
        found = processes.gather(mine, 1, 7)
        return found is mine, found

    (_, first), *others = in_processes(3, gather)
    assert torch.equal(first, whole)
    assert [same for same, _ in others] == [True, True]
    assert ALONE.gather(whole, 1, 7) is whole


@pytest.mark.parametrize(("error", "code"), [(GuieError("no space"), 1), (Interrupted("stopped"), 130)])
def test_the_failure_of_the_first_ends_all(error: GuieError, code: int, in_processes: InProcesses) -> None:
    def fail(processes: Processes) -> None:
        def answer() -> None:
            raise error

        processes.from_first(answer)

    first, second = in_processes(2, fail)
    assert type(first) is type(error)
    assert isinstance(second, ElsewhereError)
    assert (str(second), second.exit_code) == (str(error), code)


def test_a_process_that_dies_is_noticed(in_processes: InProcesses) -> None:
    def die(processes: Processes) -> None:
        processes.barrier()
        if processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.barrier()

    survivor, killed = in_processes(2, die)
    assert killed is None
    assert isinstance(survivor, GuieError)
    assert "another process of this run has ended" in str(survivor)
    assert "same command" in str(survivor)


def test_a_restart_finds_nothing_of_those_that_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun gives all attempts the same store."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in (("ADDR", "127.0.0.1"), ("PORT", str(store.port))):
        monkeypatch.setenv(f"MASTER_{name}", value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")

    def meet(rank: int, attempt: int) -> Store:
        return rendezvous_store(Processes(rank, 2), "env://", {"TORCHELASTIC_RESTART_COUNT": str(attempt)})

    meet(0, 0).set("address of 0", "somewhere")
    assert meet(1, 0).check(["address of 0"])
    assert not meet(1, 1).check(["address of 0"])


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (UsageError("no such option"), True),
        (Interrupted("saved"), True),
        (Processes(1, 2).agreed(GuieError("the loss is not finite")), True),
        (GuieError("an image that only this one has read"), False),
    ],
)
def test_what_all_find_is_told_once(error: GuieError, silent: bool) -> None:
    with pytest.raises(type(error)), one_voice({"RANK": "0"}):
        raise error
    with pytest.raises(SystemExit if silent else GuieError) as told, one_voice({"RANK": "1"}):
        raise error
    if silent:
        assert told.value.code == error.exit_code
    assert Processes(0, 2).agreed(error) is error


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The variables that torchrun sets, but for RANK, while its store is there."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    found = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    at_sigterm = signal.getsignal(signal.SIGTERM)
    yield found
    signal.signal(signal.SIGTERM, at_sigterm)
    del store


def test_nobody_ends_before_the_first_tells(torchrun: dict[str, str]) -> None:
    """torchrun ends all as soon as one has ended, and what the first would have said was lost."""
    ends: list[str] = []

    def other() -> None:
        def find() -> None:
            found.set()
            raise UsageError("no such option")

        with pytest.raises(SystemExit), one_voice(torchrun | {"RANK": "1"}):
            find()
        told = rendezvous_store(Processes(1, 2), "env://", torchrun).check([TOLD])
        ends.append("after it was told" if told else "before")

    found = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    found.wait()
    with pytest.raises(UsageError), one_voice(torchrun | {"RANK": "0"}):
        raise UsageError("no such option")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # the message isn't printed yet
    thread.join()
    assert ends == ["after it was told"]


def test_what_the_first_never_tells_another_does(torchrun: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "TELLING", timedelta(milliseconds=50))
    with pytest.raises(UsageError, match="not on this machine"), one_voice(torchrun | {"RANK": "1"}):
        raise UsageError("not on this machine")


def test_processes_that_share_a_gpu_are_refused() -> None:
    check_apart(["GPU-0", "GPU-1"])
    with pytest.raises(UsageError, match=r"2 of 3 processes \(0, 2\) share one GPU"):
        check_apart(["GPU-0", "GPU-1", "GPU-0"])


def test_what_else_is_wrong_is_not_told_as_a_process_that_has_ended(in_processes: InProcesses) -> None:
    def alone(processes: Processes) -> None:
        processes.all_reduce(torch.zeros(3, dtype=torch.int16))  # which gloo doesn't know

    for error in in_processes(2, alone):
        assert isinstance(error, GuieError)
        assert "has ended" not in str(error)
        assert "cannot talk to each other" in str(error)


@pytest.mark.parametrize(("n", "count"), [(10, 3), (2, 3), (0, 2), (256, 4)])
def test_parts_are_everything_and_alike(n: int, count: int) -> None:
    parts = [list(range(n))[Processes(rank, count).part(n)] for rank in range(count)]
    assert [thing for part in parts for thing in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_asked_of_anybody() -> None:
    tensor = torch.ones(2)
    ALONE.all_reduce(tensor)
    assert tensor.tolist() == [1, 1]
    assert ALONE.any(True)
    assert ALONE.from_first(lambda: 3) == 3


def test_who_has_started_them() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "SLURM_STEP_NUM_TASKS": "4"}
    assert launched(torchrun) == (Processes(3, 4, 1), "env://")
    srun = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "31"}
    assert launched(srun | {"SLURM_STEP_NODELIST": "node07"}) == (Processes(2, 4, 0), "tcp://node07:20031")
    assert launched({}) == (ALONE, "")
    # a batch script that starts one process has the job's tasks, of which it is none
    assert launched({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}) == (ALONE, "")


@pytest.mark.parametrize("nodes", ["node[07-12,15],other", "node07,other"])
def test_the_first_machine_of_slurm(nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": nodes}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launched(srun)[1] == "tcp://node07:20000"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho from-scontrol\necho other\n")
    scontrol.chmod(0o755)
    assert subprocess.run([scontrol], capture_output=True, text=True).stdout.split()[0] == "from-scontrol"
    assert launched(srun)[1] == "tcp://from-scontrol:20000"
    assert launched(srun | {"MASTER_ADDR": "there", "MASTER_PORT": "5"})[1] == "tcp://there:5"


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "zero", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    ],
)
def test_variables_that_make_no_sense(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"SLURM_LOCALID|RANK"):
        launched(wrong)
