"""Several processes that make one run together: who they are, and how they agree.

`torchrun --nproc-per-node 2 -m guie_train EXPERIMENT` starts them, or SLURM's srun. All of them go through the same
stages in the same order. What only one can do, such as writing a file, the first does, and the others wait for it. They
share the run's folder, hence a file system.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # exported without saying so
from torch.distributed.rendezvous import rendezvous

from guie_core import GuieError, Interrupted, UsageError

T = TypeVar("T")
PATIENCE = timedelta(days=14)  # the others wait while the first prepares data; gloo notices at once who has died
STUCK = timedelta(minutes=10)  # NCCL, between GPUs, doesn't; what it sends belongs to a step, and takes no minute
LOST = re.compile(r"connection|peer|broken pipe|timed out|timeout|gloo/transport|remote process", re.IGNORECASE)


class ElsewhereError(GuieError):
    """The first process has failed, or was told to stop, and says why; this one has nothing to add."""

    def __init__(self, error: str, exit_code: int) -> None:
        super().__init__(error, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Methods that talk to the others are called by all of them, in the same order. They raise GuieError when one of the
    others has died.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those on this machine, which is also the number of its GPU
    gpus: Any = field(default=None, compare=False, repr=False)  # torch's group for what is sent from GPU to GPU

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks for all."""
        return self.rank == 0

    def launcher(self, environment: Mapping[str, str] = os.environ) -> list[str]:
        """What starts so many processes again, before the "-m"."""
        if "WORLD_SIZE" in environment:
            return ["torchrun", "--nproc-per-node", environment.get("LOCAL_WORLD_SIZE", str(self.count))]
        return ["srun", "--ntasks", str(self.count), "python"]

    def part(self, n: int) -> slice:
        """This process's share of n things in a row: shares differ by one at most, and all of them are everything."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def all_reduce(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, in one message for each dtype and device."""
        if self.count == 1:
            return
        together: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            together.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for alike in together.values():
            # a single large tensor is sent from where it is
            whole = alike[0] if len(alike) == 1 else torch.cat([tensor.reshape(-1) for tensor in alike])
            with _noticing():
                dist.all_reduce(whole, group=self.gpus if whole.is_cuda else None)
            if len(alike) > 1:
                for tensor, summed in zip(alike, whole.split([t.numel() for t in alike]), strict=True):
                    tensor.copy_(summed.view_as(tensor))

    def gather(self, tensor: Tensor, dim: int, length: int) -> Tensor:
        """All of what is `length` long along `dim`, and of which each process brings its `part`: on the CPU, in the
        first process. The others get back what they have."""
        if self.count == 1:
            return tensor
        mine = tensor.detach().cpu().contiguous()  # a GPU has no room for all
        with _noticing():
            if not self.first:
                dist.send(mine, 0)
                return tensor
            parts = [mine]
            for rank in range(1, self.count):
                here = replace(self, rank=rank).part(length)
                parts.append(mine.new_empty(*mine.shape[:dim], here.stop - here.start, *mine.shape[dim + 1 :]))
                dist.recv(parts[-1], rank)
        return torch.cat(parts, dim)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        if self.count == 1:
            return flag
        set_in = torch.tensor(int(flag))
        self.all_reduce(set_in)
        return bool(set_in)

    def told(self, answer: Callable[[], T]) -> T:
        """What the first process answers, broadcast to all; only it is asked. The answer has to be picklable.

        Raises:
            ElsewhereError: in the others, when the first fails to answer.
        """
        if not self.first:
            found: T = self.follow()
            return found
        with self.leading() as said:
            said.append(answer())
        result: T = said[0]
        return result

    @contextmanager
    def leading(self) -> Iterator[list[Any]]:
        """What the first process does in the block, while the others `follow`; they get what it adds to the list."""
        said: list[Any] = []
        try:
            yield said
        except BaseException as error:  # Ctrl-C too: the others must not wait for what never comes
            self._broadcast([None, str(error) or type(error).__name__, getattr(error, "exit_code", 1)])
            raise
        self._broadcast([said[0] if said else None, None, 0])

    def follow(self) -> Any:
        """Wait for the first to have done what it does alone.

        Raises:
            ElsewhereError: it failed.
        """
        answer, error, exit_code = self._broadcast([None, None, 0])
        if error is not None:
            raise ElsewhereError(error, exit_code)
        return answer

    def _broadcast(self, values: list[Any]) -> list[Any]:
        """The values that the first process gave."""
        if self.count > 1:
            with _noticing():
                dist.broadcast_object_list(values, src=0)
        return values

    def agreed(self, error: GuieError) -> GuieError:
        """What to raise of an error that all processes find alike: the first alone tells it."""
        return error if self.first else ElsewhereError(str(error), error.exit_code)

    def barrier(self) -> None:
        """Return when all processes have come here."""
        self.any(False)


ALONE = Processes()


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
            store=meeting_place(found, address, environment),
            rank=found.rank,
            world_size=found.count,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as error:
        raise GuieError(f"the {found.count} processes did not find each other at {address}: {error}") from error
    try:
        if on_gpus:
            check_apart(_everywhere(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid), found))
            found = replace(found, gpus=dist.new_group(backend="nccl", timeout=STUCK))
        if found.first:
            yield found
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield found
    finally:
        dist.destroy_process_group()


def _everywhere(value: str, processes: Processes) -> list[str]:
    """What each process has brought."""
    found: list[Any] = [None] * processes.count
    with _noticing():
        dist.all_gather_object(found, value)
    return found


def check_apart(gpus: Sequence[str]) -> None:
    """Raise UsageError unless each process, in order, has a GPU of its own."""
    for gpu in gpus:
        if (count := gpus.count(gpu)) > 1:
            ranks = [str(rank) for rank, each in enumerate(gpus) if each == gpu]
            raise UsageError(
                f"{count} of {len(gpus)} processes ({', '.join(ranks)}) share one GPU, and each needs its own. Start "
                "as many as a machine has GPUs: torchrun --nproc-per-node N, or srun --ntasks-per-node N"
            )


def meeting_place(processes: Processes, address: str, environment: Mapping[str, str]) -> Store:
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
    the others just exit. What one alone has found, such as an image that it can't read, it says itself."""
    try:
        yield
    except (UsageError, ElsewhereError, Interrupted) as error:
        if int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0) == 0:
            raise
        raise SystemExit(error.exit_code) from None


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


@contextmanager
def _noticing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise, when a peer's connection ends for instance
        reason = str(error).partition("\n")[0][:200]
        if not LOST.search(reason):
            raise GuieError(f"the processes of this run cannot talk to each other: {reason}") from error
        raise GuieError(
            "another process of this run has ended, so that this one cannot go on. What was saved is kept, and the "
            f"same command goes on from there ({reason})"
        ) from error
