"""Who the processes of a run are, by what has started them, and how they find each other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # exported without saying so
from torch.distributed.rendezvous import rendezvous

from guie_core import GuieError, Interrupted, UsageError
from guie_train.processes.group import ALONE, ElsewhereError, Processes

PATIENCE = timedelta(days=14)  # the others wait while the first prepares data; gloo notices at once who has died
TOLD, TELLING = "told", timedelta(minutes=1)  # what the first leaves in the store; how long the others wait for it
STUCK = timedelta(minutes=10)  # NCCL, between GPUs, doesn't; what it sends belongs to a step, and takes no minute


@contextmanager
def joined(environment: Mapping[str, str] = os.environ, *, on_gpus: bool = False) -> Iterator[Processes]:
    """The processes of this run, connected to each other. Within, only the first is heard.

    Args:
        environment: the launcher's variables.
        on_gpus: whether each computes on a GPU, which is then torch's current one.

    Raises:
        GuieError: they do not find each other.
        UsageError: the launcher's variables make no sense, or two of them would share a GPU.
    """
    found, address = launched(environment)
    if found.count == 1:
        yield found
        return
    if on_gpus:  # srun may show each process its own alone
        torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
    try:
        dist.init_process_group(
            "gloo",
            store=rendezvous_store(found, address, environment),
            rank=found.rank,
            world_size=found.count,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise GuieError(f"the {found.count} processes did not find each other at {address}: {error}") from error
    try:
        if on_gpus:
            check_apart(found.all_gather(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)))
            found = replace(found, gpus=dist.new_group(backend="nccl", timeout=STUCK))
        if found.first:
            yield found
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield found
    finally:
        dist.destroy_process_group()


def check_apart(gpus: Sequence[str]) -> None:
    """Raise UsageError unless each process, in order, has a GPU of its own."""
    for gpu in gpus:
        if (count := gpus.count(gpu)) > 1:
            ranks = [str(rank) for rank, each in enumerate(gpus) if each == gpu]
            raise UsageError(
                f"{count} of {len(gpus)} processes ({', '.join(ranks)}) share one GPU, and each needs its own. Start "
                "as many as a machine has GPUs: torchrun --nproc-per-node N, or srun --ntasks-per-node N"
            )


def rendezvous_store(processes: Processes, address: str, environment: Mapping[str, str]) -> Store:
    """Where processes leave word for each other; empty at first.

    torchrun keeps one store over restarts, and torch trusts it to be a new one: a process would find the addresses of
    those that have ended, and wait for them.
    """
    store, *_ = next(rendezvous(address, processes.rank, processes.count, timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    return PrefixStore(f"attempt {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def one_voice(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """What all processes would say, such as that an option is wrong, or that they were stopped, the first says alone;
    the others just exit. What one alone has found, such as an image that it can't read, it says itself.

    torchrun ends all as soon as one has ended: the others exit once the first is about to speak, which nothing keeps
    it from then. One that has waited for that in vain speaks itself: it may be the only one that finds a file missing.
    """
    try:
        yield
    except (UsageError, ElsewhereError, Interrupted) as error:
        store = _agent_store(environment)
        if int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0) == 0:
            if store is not None:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                store.set(TOLD, "")
            raise
        if store is not None:
            try:
                store.wait([TOLD], TELLING)
            except dist.DistNetworkError:  # torchrun itself has ended
                pass
            except dist.DistStoreError:
                raise error from None
        raise SystemExit(error.exit_code) from None


def _agent_store(environment: Mapping[str, str]) -> Store | None:
    """torchrun's own; None where something else has started the processes, which lets each of them end by itself."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        return rendezvous_store(*launched(environment), environment)
    except (RuntimeError, ValueError, UsageError):  # the error at hand says more
        return None


def launched(environment: Mapping[str, str]) -> tuple[Processes, str]:
    """Who this process is, by the variables that torchrun or srun have set, and where all of them meet.

    Raises:
        UsageError: some are missing or are no numbers.
    """
    if "WORLD_SIZE" in environment:  # torchrun; also who sets torch's variables by hand
        names, address = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "env://"
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # of srun alone: a batch script itself has one task
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "localhost"))
        # a port that two jobs on one machine do not share
        port = environment.get("MASTER_PORT") or 20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000
        address = f"tcp://{host}:{port}"
    else:
        return ALONE, ""
    try:
        processes = Processes(*(int(environment[name]) for name in names))
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the variables {', '.join(names)}, which say how many processes there are, are not all set to numbers "
            f"({error}). Start with: torchrun --nproc-per-node N -m guie_train EXPERIMENT"
        ) from None
    if not 0 <= processes.rank < processes.count:
        raise UsageError(f"{names[0]}={processes.rank} is not one of {processes.count} processes ({names[1]}).")
    return processes, address


def _first_host(nodes: str) -> str:
    """The first machine of SLURM's list, such as "node[07-12,15],other"."""
    if scontrol := shutil.which("scontrol"):
        listed = subprocess.run([scontrol, "show", "hostnames", nodes], capture_output=True, text=True, timeout=30)
        if listed.returncode == 0 and listed.stdout.strip():
            return listed.stdout.split()[0]
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return match[1] + (match[2] or "") if match else nodes
