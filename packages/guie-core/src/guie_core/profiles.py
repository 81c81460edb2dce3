"""Profiles: the hardware to run on, and the settings that suit it.

A profile changes speed and memory, never the result: the effective batch, the schedule and the seeds belong to the
recipe, and `batch` only says how many images or rows go through the device at once. Numbers computed in another dtype
differ in their last digits, within the tolerances that the recipes state.

dtype follows the hardware. bfloat16 needs compute capability 8.0: below it torch emulates it, slowly. V100 (7.0) and T4
(7.5) have float16 tensor cores. P100 (6.0) multiplies float16 at twice the rate of float32 but also accumulates in it,
so that sums over a thousand features lose digits: its profile stays with float32.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from .errors import ExperimentError, Problem, UsageError
from .plugins import plugins


@dataclass(frozen=True, slots=True)
class Profile:
    """A piece of hardware and how to use it."""

    name: str
    summary: str
    device: Literal["cpu", "cuda"] = "cuda"
    memory_gb: float = 0.0  #: memory of the GPU in GiB; 0 for the CPU, whose memory is the machine's
    compute_capability: tuple[int, int] | None = None  #: (8, 6) for an RTX 3090
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"  #: of frozen networks and of autocast
    batch: Mapping[str, int] = field(default_factory=dict)  #: stage -> images or rows at once (micro-batch)
    workers: int = 4  #: threads or processes that decode images
    checkpointing: bool = False  #: recompute activations to save memory where a backbone is trained
    #: what several processes divide among them where a head is trained: the images of a batch, each process having all
    #: class centres; or the classes, whose centres, gradients and moments then need not fit into one GPU
    divide: Literal["images", "classes"] = "images"
    #: where heads are trained on a GPU by one process, launch a step at once instead of kernel by kernel
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.dtype == "bfloat16" and self.compute_capability and self.compute_capability < (8, 0):
            major, minor = self.compute_capability
            raise ValueError(
                f"bfloat16 needs compute capability 8.0, and {self.name} has {major}.{minor}: use float16 or float32"
            )
        if self.dtype == "float16" and self.device == "cpu":
            raise ValueError("float16 is for GPUs: use float32 or bfloat16 on the CPU")
        small = [stage for stage, count in self.batch.items() if count < 1]
        if small or self.workers < 0:
            raise ValueError(f"{'batch.' + small[0] if small else 'workers'} must be positive")
        object.__setattr__(self, "batch", MappingProxyType(dict(self.batch)))

    def micro_batch(self, stage: str, default: int) -> int:
        """How many images or rows `stage` puts through the device at once."""
        return self.batch.get(stage, default)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for run.json."""
        return {
            "name": self.name,
            "device": self.device,
            "memory_gb": self.memory_gb,
            "compute_capability": list(self.compute_capability) if self.compute_capability else None,
            "dtype": self.dtype,
            "batch": dict(self.batch),
            "workers": self.workers,
            "checkpointing": self.checkpointing,
            "divide": self.divide,
            "cuda_graphs": self.cuda_graphs,
        }

    def __reduce__(self) -> tuple[Any, ...]:  # a MappingProxyType doesn't pickle
        values = {name: getattr(self, name) for name in self.__slots__} | {"batch": dict(self.batch)}
        return _restore, (values,)


def _restore(values: dict[str, Any]) -> Profile:
    return Profile(**values)


# Micro-batches: "features" is what goes through a frozen ViT-H-14 at 224 px, the largest backbone of the recipes, with
# room to spare; "finetune" is what the same network can train with (16 on 24 GB and mixed precision is published).
CPU = Profile(
    "cpu", "Any machine without a GPU: float32", device="cpu", batch={"features": 16, "finetune": 4}, workers=2
)
V100_32G = Profile(
    "v100-32g",
    "NVIDIA V100, 32 GiB: 16 bits are float16; no bfloat16, no FlashAttention-2",
    memory_gb=32,
    compute_capability=(7, 0),
    dtype="float16",
    batch={"features": 512, "finetune": 16},
    workers=8,
    checkpointing=True,
)
RTX3090_24G = Profile(
    "rtx3090-24g",
    "NVIDIA RTX 3090, 24 GiB: 16 bits are float16, as in the original",
    memory_gb=24,
    compute_capability=(8, 6),
    dtype="float16",
    batch={"features": 512, "finetune": 16},
    workers=8,
    checkpointing=True,
)
RTX4090_24G = Profile(
    "rtx4090-24g",
    "NVIDIA RTX 4090, 24 GiB: 16 bits are bfloat16",
    memory_gb=24,
    compute_capability=(8, 9),
    dtype="bfloat16",
    batch={"features": 512, "finetune": 16},
    workers=12,
    checkpointing=True,
)
A100_80G = Profile(
    "a100-80g",
    "NVIDIA A100, 80 GiB: 16 bits are bfloat16",
    memory_gb=80,
    compute_capability=(8, 0),
    dtype="bfloat16",
    batch={"features": 1024, "finetune": 64},
    workers=12,
)
H100_80G = Profile(
    "h100-80g",
    "NVIDIA H100, 80 GiB: 16 bits are bfloat16",
    memory_gb=80,
    compute_capability=(9, 0),
    dtype="bfloat16",
    batch={"features": 1024, "finetune": 64},
    workers=16,
)
T4_16G = Profile(
    "t4-16g",
    "NVIDIA T4, 16 GiB: 16 bits are float16",
    memory_gb=16,
    compute_capability=(7, 5),
    dtype="float16",
    batch={"features": 256, "finetune": 8},
    workers=4,
    checkpointing=True,
)
P100_16G = Profile(
    "p100-16g",
    "NVIDIA P100, 16 GiB: float32, no tensor cores",
    memory_gb=16,
    compute_capability=(6, 0),
    dtype="float32",
    batch={"features": 128, "finetune": 4},
    workers=4,
    checkpointing=True,
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What nvidia-smi says of a GPU."""

    name: str
    memory_gb: float
    compute_capability: tuple[int, int]
    driver: str


def gpus() -> list[Gpu]:
    """The GPUs of this machine, from nvidia-smi; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in output.splitlines() if (gpu := _parse_gpu(line))]


def _parse_gpu(line: str) -> Gpu | None:
    try:
        name, memory, capability, driver = (part.strip() for part in line.split(","))
        major, minor = capability.split(".")
        return Gpu(name, float(memory) / 1024, (int(major), int(minor)), driver)
    except ValueError:  # "[N/A]", or a driver that doesn't know the question
        return None


def detect() -> Profile:
    """The profile for the first GPU of this machine: the named one that fits, or one made to its measure; or cpu."""
    found = gpus()
    return suited(found[0]) if found else CPU


def suited(gpu: Gpu) -> Profile:
    """The profile for `gpu`: one of the same compute capability that fits into its memory, else one made to measure."""
    known = (V100_32G, RTX3090_24G, RTX4090_24G, A100_80G, H100_80G, T4_16G, P100_16G)
    # cards report a little less than they are sold with
    fitting = [profile for profile in known if profile.memory_gb <= gpu.memory_gb * 1.1]
    same = [profile for profile in fitting if profile.compute_capability == gpu.compute_capability]
    if same:
        return max(same, key=lambda profile: profile.memory_gb)
    base = max(fitting, key=lambda profile: profile.memory_gb, default=T4_16G)
    scale = min(1.0, gpu.memory_gb / base.memory_gb)
    dtype: Literal["float32", "float16", "bfloat16"]
    dtype = (
        "bfloat16" if gpu.compute_capability >= (8, 0) else "float16" if gpu.compute_capability >= (7, 0) else "float32"
    )
    sixteen = "" if dtype == "float32" else "16 bits are "
    return replace(
        base,
        name="auto",
        summary=f"{gpu.name}, {gpu.memory_gb:.0f} GiB: {sixteen}{dtype}, made to measure",
        memory_gb=round(gpu.memory_gb, 1),
        compute_capability=gpu.compute_capability,
        dtype=dtype,
        batch={stage: max(1, int(count * scale)) for stage, count in base.batch.items()},
    )


def profile(config: str | Mapping[str, Any] = "auto", where: str = "profile") -> Profile:
    """The profile called `config`, or ``dict(type=name, workers=8, ...)``: that profile with some settings changed.

    Raises:
        ExperimentError: there is no such profile or setting; all problems are listed.
    """
    from .registry import check_slot, lookup
    from .signature import check_arguments, described, signature

    changes = dict(config) if isinstance(config, Mapping) else {"type": config}
    name = changes.pop("type", "auto")
    if not isinstance(name, str):
        raise ExperimentError([Problem(where, f"expects the name of a profile, got {described(name)}.")])
    try:
        loaded = lookup("profiles", name).load()
    except UsageError as error:
        first, _, rest = str(error).partition("\n")
        if "Did you mean" in first:
            rest = "\n".join([f"Profiles: {', '.join(e.name for e in plugins().entries('profiles'))}.", rest]).strip()
        raise ExperimentError([Problem(where, first, rest)]) from None
    found: Profile = loaded() if callable(loaded) else loaded
    known = signature(Profile)
    known = replace(known, hints={k: v for k, v in known.hints.items() if k not in ("name", "summary")}, required=())
    converted, problems = check_arguments(known, changes, where, found.name, check_slot, noun="setting")
    if problems:
        raise ExperimentError(problems)
    if "batch" in converted:  # the stages that aren't named keep their size
        converted["batch"] = {**found.batch, **converted["batch"]}
    try:
        return replace(found, **converted)
    except ValueError as error:
        raise ExperimentError([Problem(where, str(error))]) from None
