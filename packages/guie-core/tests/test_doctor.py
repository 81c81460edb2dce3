# ruff: noqa: E501 -- messages are quoted whole
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from guie_core.cli import main
from guie_core.commands import doctor as doctor_module
from guie_core.commands.doctor import has_kernels, torch_findings
from guie_core.profiles import Gpu

V100 = Gpu("Tesla V100-SXM2-32GB", 32.0, (7, 0), "550.54.15")
H100 = Gpu("NVIDIA H100 80GB HBM3", 79.6, (9, 0), "550.54.15")
# torch.cuda.get_arch_list() of the wheels on the package index
TORCH_2_14 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
TORCH_2_7 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def facts(archs: list[str], **more: object) -> dict[str, Any]:
    return {"torch": {"version": "2.14.1+cu130", "cuda": "13.0", "available": True, "archs": archs, **more}}


def found(facts: dict[str, Any], *gpus: Gpu) -> list[tuple[str, str]]:
    return [(f.level, f"{f.text} {f.remedy}".strip()) for f in torch_findings(facts, gpus)]


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (TORCH_2_14, (7, 0), False),
        (TORCH_2_14, (6, 0), False),
        (TORCH_2_14, (7, 5), True),
        (TORCH_2_14, (8, 9), True),  # machine code for 8.6 runs on 8.9
        (TORCH_2_14, (9, 0), True),
        (TORCH_2_14, (10, 3), True),
        (TORCH_2_14, (11, 0), False),
        (TORCH_2_7, (7, 0), True),
        (TORCH_2_7, (6, 1), True),
        (TORCH_2_7, (12, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),  # PTX is compiled for what came later
        (["compute_80"], (7, 5), False),
        (["sm_90a"], (9, 0), True),
        (["gfx90a", "nonsense"], (9, 0), False),
    ],
)
def test_kernels(archs: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert has_kernels(archs, capability) is expected


def test_v100_under_current_torch() -> None:
    assert found(facts(TORCH_2_14), V100) == [
        ("ok", "torch 2.14.1+cu130, CUDA 13.0, kernels for sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"),
        (
            "problem",
            "this torch has no kernels for Tesla V100-SXM2-32GB (compute capability 7.0). Install torch 2.7 of the "
            "CUDA 12 line: './setup cuda12' in guie's repository (requirements/cuda12.txt), or pip install "
            "'torch==2.7.*' 'torchvision==0.22.*'.",
        ),
        ("ok", "dtypes of Tesla V100-SXM2-32GB: float32, float16; bfloat16 is refused (it would be emulated)"),
    ]
    assert [level for level, _ in found(facts(TORCH_2_7), V100)] == ["ok", "ok"]


def test_modern_gpu() -> None:
    assert found(facts(TORCH_2_14), H100)[1:] == [("ok", "dtypes of NVIDIA H100 80GB HBM3: float32, float16, bfloat16")]


def test_gpu_newer_than_torch() -> None:
    blackwell = Gpu("NVIDIA RTX 5090", 32.0, (12, 0), "1")
    assert found(facts(TORCH_2_7), blackwell)[1] == (
        "problem",
        "this torch has no kernels for NVIDIA RTX 5090 (compute capability 12.0). Install a newer torch.",
    )


def test_driver_too_old() -> None:
    warning = "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\nMore"
    assert found(facts([], available=False, warnings=[warning]), H100)[1] == (
        "problem",
        "torch cannot use NVIDIA H100 80GB HBM3. It says: CUDA initialization: The NVIDIA driver on your system is too "
        "old (found version 11040). Driver 550.54.15 may be too old for CUDA 13.0: update it, or install a torch for an "
        "older CUDA.",
    )


def test_torch_for_the_cpu() -> None:
    assert found(facts([], cuda=None, available=False), H100)[1] == (
        "problem",
        "this torch has no CUDA, so NVIDIA H100 80GB HBM3 is idle. Install a CUDA build of torch.",
    )
    assert found(facts([], cuda=None, available=False))[1] == (
        "ok",
        "dtypes of the CPU: float32, bfloat16; float16 is refused",
    )


def test_torch_missing_or_broken() -> None:
    assert found({"torch_error": "ModuleNotFoundError: No module named 'torch'"}) == [
        ("note", "torch is not installed: no models, no training. Install guie-train.")
    ]
    assert found({"torch_error": "OSError: libcudart.so.13: cannot open shared object file"}) == [
        ("problem", "torch cannot be imported: OSError: libcudart.so.13: cannot open shared object file")
    ]


@pytest.fixture
def fake_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nvidia-smi reports a V100, and torch is a module of its own that was built without it."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'Tesla V100-SXM2-32GB, 32768, 7.0, 550.54.15'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    modules = tmp_path / "modules"
    modules.mkdir()
    modules.joinpath("torch.py").write_text(
        "__version__ = '2.14.1+cu130'\n"
        "class version: cuda = '13.0'\n"
        "class cuda:\n"
        "    is_available = staticmethod(lambda: True)\n"
        f"    get_arch_list = staticmethod(lambda: {TORCH_2_14!r})\n"
    )
    modules.joinpath("onnxruntime.py").write_text("raise ImportError('libcublas is missing')\n")
    monkeypatch.setenv("PYTHONPATH", f"{modules}{os.pathsep}{os.pathsep.join(path for path in sys.path if path)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor_module, "LITTLE_SPACE", 0)
    return tmp_path


def test_report(toys: Any, fake_machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.add("cars", "guie-cars", "0.3", "import no_such_library")
    toys.load()
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--format", "json"])
    assert exit_.value.code == 1
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["installed", "machine", "torch", "onnxruntime", "disk", "plugins"]
    problems = [item["text"] for section in report.values() for item in section if item["level"] == "problem"]
    assert problems == [
        "this torch has no kernels for Tesla V100-SXM2-32GB (compute capability 7.0).",
        "onnxruntime cannot be imported: ImportError: libcublas is missing",
        "cars (guie-cars 0.3) did not load: importing it raised ModuleNotFoundError: No module named 'no_such_library'",
    ]
    machine = [item["text"] for item in report["machine"]]
    assert "GPU Tesla V100-SXM2-32GB, 32 GB, compute capability 7.0, driver 550.54.15" in machine
    assert machine[-1].startswith("profile auto is v100-32g: ")
    assert any(str(fake_machine) in item["text"] for item in report["disk"])
    assert "guie-core 0.1.0, guie-cars 0.3, guie-models 0.1.0, guie-train 0.1.0" in [
        item["text"].replace("guie-cars 0.3, guie-core 0.1.0", "guie-core 0.1.0, guie-cars 0.3")
        for item in report["installed"]
    ]


def test_report_fits_into_80_columns(
    toys: Any, fake_machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["doctor"])
    out = capsys.readouterr().out
    assert "  problem  this torch has no kernels for Tesla V100-SXM2-32GB (compute\n" in out
    assert out.endswith("\n\n2 problems.\n")
    long = [line for line in out.splitlines() if len(line) > 80 and " " in line.strip()]
    assert all(str(fake_machine) in line or sys.executable in line for line in long)
