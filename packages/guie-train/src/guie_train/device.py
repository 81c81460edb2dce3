"""What a profile asks for, on the machine at hand."""

from __future__ import annotations

import torch

from guie_core import GuieError
from guie_core.profiles import Profile


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
    capability = torch.cuda.get_device_capability()
    # kernels of the same major version and a lower minor one run as well
    built = [
        divmod(int(arch.removeprefix("sm_").rstrip("a")), 10) for arch in torch.cuda.get_arch_list() if "sm_" in arch
    ]
    if not any(major == capability[0] and minor <= capability[1] for major, minor in built):
        raise GuieError(
            f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} "
            f"(compute capability {capability[0]}.{capability[1]}; it has {', '.join(torch.cuda.get_arch_list())}). "
            "For Volta and Pascal install the lock of the CUDA 12 line, requirements/cuda12.txt"
        )
    return torch.device("cuda")


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """A context in which matrix products run in `dtype`; "float32" leaves everything as it is."""
    return torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32")
