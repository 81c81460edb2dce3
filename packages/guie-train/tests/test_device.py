"""Which device a profile runs on, and what is said where it can't."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from guie_core import GuieError
from guie_core.profiles import profile
from guie_train.device import OutOfMemory, device_of, within_memory

# torch.cuda.get_arch_list() of the wheels of the two locks
CUDA12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CUDA13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], built: list[str]) -> None:
    """A GPU, and a torch that was built for some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)


@pytest.mark.parametrize(
    ("name", "capability", "built", "lock"),
    [
        ("Tesla V100-SXM2-32GB", (7, 0), CUDA13, "cuda12"),
        ("Tesla P100-PCIE-16GB", (6, 0), CUDA13, "cuda12"),
        ("NVIDIA GeForce RTX 5090", (12, 0), CUDA12, "cuda13"),
        ("NVIDIA B200", (10, 0), CUDA12, "cuda13"),
        ("NVIDIA GeForce RTX 3090", (8, 6), ["sm_90", "compute_90"], "cuda13"),  # kernels and PTX for later ones
    ],
)
def test_a_torch_without_kernels_for_the_gpu(
    name: str, capability: tuple[int, int], built: list[str], lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, name, capability, built)
    with pytest.raises(GuieError) as raised:
        device_of(profile("v100-32g"))
    major, minor = capability
    assert f"has no kernels for {name} (compute capability {major}.{minor}; it has {', '.join(built)})" in str(
        raised.value
    )
    assert str(raised.value).endswith(f"Install the lock of the other line, requirements/{lock}.txt: ./setup {lock}")


@pytest.mark.parametrize(
    ("capability", "built"),
    [
        ((7, 0), CUDA12),
        ((6, 0), CUDA12),
        ((6, 1), CUDA12),  # kernels for 6.0 run on it
        ((7, 5), CUDA13),
        ((8, 6), CUDA12),
        ((8, 9), CUDA13),  # an RTX 4090, by the kernels for 8.6
        ((12, 0), CUDA13),
        ((12, 1), CUDA13),
        ((13, 0), CUDA13),  # one that isn't there yet: the driver compiles PTX for it
        ((10, 0), ["sm_80", "compute_90"]),
        ((9, 0), ["sm_80", "compute_90"]),
    ],
)
def test_a_torch_with_kernels_or_ptx_for_the_gpu(
    capability: tuple[int, int], built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, "a GPU", capability, built)
    assert device_of(profile("v100-32g")).type == "cuda"


def test_the_cpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(profile("cpu")).type == "cpu"
    with pytest.raises(GuieError, match="profile t4-16g needs a CUDA GPU"):
        device_of(profile("t4-16g"))


def says(error: type[Exception], text: str) -> Callable[[], object]:
    """As torch says it where there is a GPU."""

    def fail() -> None:
        raise error(text)

    return fail


@pytest.mark.parametrize(
    ("work", "last"),
    [
        (
            lambda: np.empty(1 << 50),
            "numpy: Unable to allocate 8.00 PiB for an array with shape (1125899906842624,)",
        ),
        (lambda: torch.empty(1 << 50), "torch: [enforce fail at alloc_cpu.cpp:"),
        (lambda: b"a" * (1 << 60), "lower this"),  # Python's own has no words
        (
            says(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB.\nMore"),
            "torch: CUDA out of memory.",
        ),
        (
            says(torch.AcceleratorError, "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
            "torch: CUDA error: out of memory",
        ),
        (
            says(RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "torch: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling",
        ),
        (says(RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "torch: cuDNN error: CUDNN_STATUS_ALLOC"),
        (
            says(RuntimeError, "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            "torch: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ),
    ],
)
def test_want_of_memory_is_told_with_what_to_lower(work: Callable[[], object], last: str) -> None:
    with pytest.raises(OutOfMemory) as told, within_memory(lambda: "head: the memory is too small. lower this"):
        work()
    text = str(told.value)
    assert text.startswith("head: the memory is too small. lower this")
    assert text.splitlines()[-1].startswith(last) or text.endswith(last)
    assert len(text.splitlines()) <= 2


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    ],
)
def test_other_errors_are_no_want_of_memory(text: str) -> None:
    with pytest.raises(RuntimeError, match=text.partition("(")[0]), within_memory(lambda: "lower this"):
        raise RuntimeError(text)
