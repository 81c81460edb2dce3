"""What a profile asks for, on the machine at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from guie_core import GuieError
from guie_core.commands.doctor import has_kernels
from guie_core.processors import multiplies_bfloat16
from guie_core.profiles import Profile
from guie_core.wording import size

FULL = re.compile(r"allocate memory|out of memory|_ALLOC(ATION)?_FAILED")
"""How torch tells of memory that is too small where it has no class for it: its CPU allocator, CUDA, cuBLAS, cuDNN."""


class OutOfMemory(GuieError):  # noqa: N818  # as the field says it
    """The memory of the device is too small for what was tried."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it is torch's, NumPy's or Python's for want of memory. torch has a class for what its allocator on a GPU
    finds; what CUDA's libraries find, and its allocator on the CPU, it raises as RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and FULL.search(str(error)) is not None


@contextmanager
def within_memory(message: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemory where there is too little: a `message` of what that was and what to lower, and the error's own
    first line, with whose it is."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        whose = "torch" if isinstance(error, RuntimeError) else type(error).__module__.partition(".")[0]
        reason = str(error).partition("\n")[0]  # Python's own has none
        raise OutOfMemory(f"{message()}\n{whose}: {reason}" if reason else message()) from error


def device_of(profile: Profile) -> torch.device:
    """The device that `profile` runs on.

    Raises:
        GuieError: it needs a GPU and torch finds none, or torch has no kernels for the one it finds.
    """
    if profile.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GuieError(
            f"profile {profile.name} needs a CUDA GPU and torch {torch.__version__} finds none; "
            "`--profile cpu` runs on the processor, `guie doctor` says what is here"
        )
    capability, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if not has_kernels(built, capability):
        line = "cuda12" if capability < (7, 5) else "cuda13"  # of Volta and Pascal, CUDA 13 knows nothing any more
        raise GuieError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (compute capability "
            f"{capability[0]}.{capability[1]}; it has {', '.join(built)}). Install the lock of the other line, "
            f"requirements/{line}.txt: ./setup {line}"
        )
    return torch.device("cuda")


def free_memory() -> tuple[str, int]:
    """The GPU, in words, and the bytes of its memory that are free."""
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, of whose {size(total)} {size(free)} are free,", free


def compute_dtype(profile: Profile) -> str:
    """What a frozen backbone computes in fastest: the profile's dtype, or bfloat16 on CPUs that multiply it."""
    if profile.device == "cpu" and profile.dtype == "float32" and multiplies_bfloat16():
        return "bfloat16"
    return profile.dtype


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """A context in which matrix products run in `dtype`; "float32" leaves everything as it is."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")


def random_state(device: torch.device) -> torch.Tensor:
    """Of torch's generator of that device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Set torch's generator of that device to what `random_state` gave."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
