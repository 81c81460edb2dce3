"""This process among those of the run, and what they send each other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from guie_core import GuieError

T = TypeVar("T")
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

    def all_gather(self, value: T) -> list[T]:
        """What each process has brought, in all of them. It has to be picklable."""
        found: list[Any] = [value] * self.count
        if self.count > 1:
            with _noticing():
                dist.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes."""
        if self.count == 1:
            return flag
        set_in = torch.tensor(int(flag))
        self.all_reduce(set_in)
        return bool(set_in)

    def from_first(self, answer: Callable[[], T]) -> T:
        """What the first process answers, broadcast to all; only it is asked. The answer has to be picklable.

        Raises:
            ElsewhereError: in the others, when the first fails to answer.
        """
        if not self.first:
            found: T = self.receive()
            return found
        with self.broadcasting() as said:
            said.append(answer())
        result: T = said[0]
        return result

    @contextmanager
    def broadcasting(self) -> Iterator[list[Any]]:
        """What the first process does in the block, while the others wait to `receive` what it adds to the list."""
        said: list[Any] = []
        try:
            yield said
        except BaseException as error:  # Ctrl-C too: the others must not wait for what never comes
            self._broadcast([None, str(error) or type(error).__name__, getattr(error, "exit_code", 1)])
            raise
        self._broadcast([said[0] if said else None, None, 0])

    def receive(self) -> Any:
        """What the first is `broadcasting`, which is waited for; None if that is nothing.

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
