from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from guie_core import ExperimentError, Profile
from guie_core.plugins import plugins
from guie_core.profiles import CPU, Gpu, detect, gpus, profile, suited

NAMES = ["auto", "cpu", "v100-32g", "rtx3090-24g", "rtx4090-24g", "a100-80g", "h100-80g", "t4-16g", "p100-16g"]
# NVIDIA's published figures: memory in GB and compute capability
HARDWARE = {
    "v100-32g": (32, (7, 0)),
    "rtx3090-24g": (24, (8, 6)),
    "rtx4090-24g": (24, (8, 9)),
    "a100-80g": (80, (8, 0)),
    "h100-80g": (80, (9, 0)),
    "t4-16g": (16, (7, 5)),
    "p100-16g": (16, (6, 0)),
}


def test_all_profiles_are_offered() -> None:
    assert [e.name for e in plugins().entries("profiles") if e.owner and e.owner.plugin == "core"] == NAMES


@pytest.mark.parametrize("name", NAMES[1:])
def test_profiles_agree_with_the_hardware(name: str) -> None:
    found = profile(name)
    assert found.name == name
    assert found.summary.strip()
    assert pickle.loads(pickle.dumps(found)) == found
    if name == "cpu":
        assert (found.device, found.dtype, found.compute_capability) == ("cpu", "float32", None)
        return
    assert (found.memory_gb, found.compute_capability) == HARDWARE[name]
    # bfloat16 from 8.0 on, float16 tensor cores from 7.0 on
    assert found.dtype != "bfloat16" or HARDWARE[name][1] >= (8, 0)
    assert found.dtype != "float16" or HARDWARE[name][1] >= (7, 0)


def test_originals_compute_in_float16() -> None:
    assert {profile(name).dtype for name in ("v100-32g", "rtx3090-24g")} == {"float16"}


@pytest.mark.parametrize("name", ["v100-32g", "t4-16g", "p100-16g"])
def test_bfloat16_is_refused_below_8_0(name: str) -> None:
    with pytest.raises(ExperimentError, match=r"profile: bfloat16 needs compute capability 8.0, and .* has [67]\.[05]"):
        profile({"type": name, "dtype": "bfloat16"})
    assert profile({"type": "a100-80g", "dtype": "float16"}).dtype == "float16"


def test_settings_can_be_changed() -> None:
    changed = profile({"type": "cpu", "workers": 9, "batch": {"features": 3}})
    assert (changed.workers, dict(changed.batch)) == (9, {**CPU.batch, "features": 3})
    assert changed.micro_batch("features", 1) == 3
    assert changed.micro_batch("unheard", 1) == 1
    assert CPU.workers == 2  # the named one is as it was


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "cpu", "worker": 3}, "profile.worker: cpu has no setting 'worker'. Did you mean 'workers'?"),
        ({"type": "cpu", "name": "x"}, "profile.name: cpu has no setting 'name'."),
        ({"type": "cpu", "workers": "3"}, "profile.workers: expects a whole number, got the text '3'."),
        ({"type": "cpu", "workers": -1}, "profile: workers must be positive"),
        ({"type": "cpu", "batch": {"features": 0}}, "profile: batch.features must be positive"),
        ({"type": "cpu", "dtype": "float16"}, "profile: float16 is for GPUs: use float32 or bfloat16 on the CPU"),
        ({"type": 3}, "profile: expects the name of a profile, got the number 3."),
        ("gpu", "profile: 'gpu' is not among the profiles."),  # which "cpu" isn't like
        ("v100", "profile: 'v100' is not among the profiles. Did you mean v100-32g (guie-core 0.1.0)?"),
    ],
)
def test_settings_that_do_not_fit(config: object, message: str) -> None:
    with pytest.raises(ExperimentError) as error:
        profile(config)  # type: ignore[arg-type]
    assert str(error.value).splitlines()[1] == f"  {message}"


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name; the test writes it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "nvidia-smi"


def install(program: Path, output: str, code: int = 0) -> None:
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\nexit {code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Tesla V100-SXM2-32GB, 32768, 7.0, 550.54.15", "v100-32g"),
        ("NVIDIA GeForce RTX 3090, 24576, 8.6, 550.54.15", "rtx3090-24g"),
        ("NVIDIA GeForce RTX 4090, 24564, 8.9, 550.54.15", "rtx4090-24g"),
        ("NVIDIA A100-SXM4-80GB, 81920, 8.0, 550.54.15", "a100-80g"),
        ("NVIDIA H100 80GB HBM3, 81559, 9.0, 550.54.15", "h100-80g"),
        ("NVIDIA A10G, 23028, 8.6, 550.54.15", "rtx3090-24g"),
        ("Tesla T4, 15360, 7.5, 550.54.15", "t4-16g"),
        ("Tesla P100-PCIE-16GB, 16384, 6.0, 550.54.15", "p100-16g"),
    ],
)
def test_auto_finds_the_profile_of_the_gpu(nvidia_smi: Path, line: str, name: str) -> None:
    install(nvidia_smi, line + "\nTesla T4, 15360, 7.5, 550.54.15")
    assert profile("auto").name == name


@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [
        (Gpu("NVIDIA RTX A4000", 16.0, (8, 6), "1"), "bfloat16"),
        (Gpu("NVIDIA A100-SXM4-40GB", 40.0, (8, 0), "1"), "bfloat16"),
        (Gpu("Tesla V100-SXM2-16GB", 16.0, (7, 0), "1"), "float16"),
        (Gpu("NVIDIA GeForce GTX 1080 Ti", 11.0, (6, 1), "1"), "float32"),
        (Gpu("NVIDIA GeForce RTX 5090", 32.0, (12, 0), "1"), "bfloat16"),
        (Gpu("NVIDIA GeForce GTX 1650", 4.0, (7, 5), "1"), "float16"),
    ],
)
def test_unknown_gpu_gets_a_profile_to_its_measure(gpu: Gpu, dtype: str) -> None:
    found = suited(gpu)
    assert found.dtype == dtype
    assert found.memory_gb <= gpu.memory_gb * 1.1
    assert all(count >= 1 for count in found.batch.values())
    larger = max(profile(name).batch["features"] for name, (memory, _) in HARDWARE.items() if memory >= gpu.memory_gb)
    assert found.batch["features"] <= larger


@pytest.mark.parametrize(
    ("output", "code"), [("No devices were found", 0), ("", 9), ("x, [N/A], [N/A], 1", 0), ("a", 0)]
)
def test_without_a_usable_gpu_auto_is_the_cpu(nvidia_smi: Path, output: str, code: int) -> None:
    install(nvidia_smi, output, code)
    assert gpus() == []
    assert detect() == CPU


def test_without_nvidia_smi_auto_is_the_cpu(nvidia_smi: Path) -> None:
    if not os.path.exists("/usr/bin/nvidia-smi"):
        assert profile("auto") == CPU


def test_profiles_are_values() -> None:
    assert Profile("a", "b", batch={"x": 1}) == Profile("a", "b", batch={"x": 1})
    with pytest.raises(TypeError):
        CPU.batch["features"] = 1  # type: ignore[index]
