"""``guie doctor``: what is installed, what the machine has, and whether the two fit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click

from guie_core.plugins import plugins
from guie_core.plugins import summary as plugins_summary
from guie_core.processors import processors
from guie_core.profiles import CPU, Gpu, gpus, suited
from guie_core.run import versions
from guie_core.tables import table
from guie_core.wording import plural, size

#: Free space below which a run is likely to fail: features of the quickstart and its exports fit into it.
LITTLE_SPACE = 2e9

# Asked in a process of its own: guie itself never imports torch, and a broken installation must not break the doctor.
_PROBE = """
import json, sys, warnings
facts = {}
try:
    import torch
    facts["torch"] = {"version": torch.__version__, "cuda": torch.version.cuda}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        facts["torch"]["available"] = torch.cuda.is_available()
        facts["torch"]["archs"] = torch.cuda.get_arch_list()
    facts["torch"]["warnings"] = [str(w.message) for w in caught]
except Exception as error:
    facts["torch_error"] = f"{type(error).__name__}: {error}"
try:
    import onnxruntime
    facts["onnxruntime"] = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
except Exception as error:
    facts["onnxruntime_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(facts))
"""

#: The last torch with kernels for Volta (V100) and Pascal (P100).
_CUDA12 = (
    "Install torch 2.7 of the CUDA 12 line: './setup cuda12' in guie's repository (requirements/cuda12.txt), "
    "or pip install 'torch==2.7.*' 'torchvision==0.22.*'."
)

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    level: Level
    text: str
    remedy: str = ""


@dataclass(slots=True)
class Section:
    title: str
    findings: list[Finding] = field(default_factory=list)


@click.command()
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def doctor(ctx: click.Context, style: str) -> None:
    """Examine this installation and this machine.

    The exit code is 1 if there is a problem.
    """
    found = gpus()
    facts = _probe()
    sections = [
        Section("installed", list(_installed())),
        Section("machine", list(_machine(found))),
        Section("torch", list(torch_findings(facts, found))),
        Section("onnxruntime", list(_onnxruntime(facts))),
        Section("disk", list(_disk())),
        Section("plugins", list(_plugins())),
    ]
    problems = sum(finding.level == "problem" for section in sections for finding in section.findings)
    if style == "json":
        click.echo(json.dumps({s.title: [vars_of(f) for f in s.findings] for s in sections}, indent=2))
    else:
        for section in sections:
            click.echo(section.title)
            click.echo(table([(f"{'' if f.level == 'ok' else f.level:7}", _text(f)) for f in section.findings]))
        click.echo(f"\n{plural(problems, 'problem')}." if problems else "\nNo problems.")
    ctx.exit(1 if problems else 0)


def vars_of(finding: Finding) -> dict[str, str]:
    return {"level": finding.level, "text": finding.text, "remedy": finding.remedy}


def _text(finding: Finding) -> str:
    return f"{finding.text} {finding.remedy}".strip()


def _probe() -> dict[str, Any]:
    try:
        result = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300, check=True)
        facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        reason = f"asking it in a process of its own failed: {error}"
        return {"torch_error": reason, "onnxruntime_error": reason}
    return facts


def _installed() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} ({sys.executable})")
    found = [f"{name} {version}" for name, version in versions().items()]
    yield Finding("ok", ", ".join(text for text in found if text.startswith("guie-")) or "no guie package is installed")
    yield Finding("ok", ", ".join(text for text in found if not text.startswith("guie-")))


def _machine(found: Sequence[Gpu]) -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("ok", f"{plural(processors(), 'processor')}, {size(memory)} of memory")
    for gpu in found:
        major, minor = gpu.compute_capability
        text = f"GPU {gpu.name}, {gpu.memory_gb:.0f} GB, compute capability {major}.{minor}, driver {gpu.driver}"
        yield Finding("ok", text)
    if not found:
        why = "nvidia-smi is not installed" if shutil.which("nvidia-smi") is None else "nvidia-smi reports none"
        yield Finding("note", f"no GPU: {why}.")
    chosen = suited(found[0]) if found else CPU
    yield Finding("ok", f"profile auto is {chosen.name}: {chosen.summary}")


def torch_findings(facts: dict[str, Any], found: Sequence[Gpu]) -> Iterator[Finding]:
    """What this torch can do on these GPUs. `facts` are those of the probe."""
    if "torch" not in facts:
        missing = "No module named 'torch'" in facts.get("torch_error", "")
        if missing:
            yield Finding("note", "torch is not installed: no models, no training.", "Install guie-train.")
        else:
            yield Finding("problem", f"torch cannot be imported: {facts.get('torch_error', 'unknown reason')}")
        return
    torch = facts["torch"]
    archs: list[str] = torch.get("archs", [])
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else "for the CPU only"
    yield Finding("ok", f"torch {torch['version']}, {build}{', kernels for ' + ' '.join(archs) if archs else ''}")
    for gpu in found:
        major, minor = gpu.compute_capability
        if not torch["cuda"]:
            text = f"this torch has no CUDA, so {gpu.name} is idle."
            yield Finding("problem", text, "Install a CUDA build of torch.")
            continue
        if not torch["available"]:
            said = f" It says: {torch['warnings'][0].splitlines()[0]}" if torch.get("warnings") else ""
            yield Finding(
                "problem",
                f"torch cannot use {gpu.name}.{said}",
                f"Driver {gpu.driver} may be too old for CUDA {torch['cuda']}: update it, or install a torch for an "
                "older CUDA.",
            )
        if archs and not has_kernels(archs, gpu.compute_capability):
            older = gpu.compute_capability < (7, 5)
            yield Finding(
                "problem",
                f"this torch has no kernels for {gpu.name} (compute capability {major}.{minor}).",
                _CUDA12 if older else "Install a newer torch.",
            )
        if gpu.compute_capability >= (8, 0):
            yield Finding("ok", f"dtypes of {gpu.name}: float32, float16, bfloat16")
        elif gpu.compute_capability >= (7, 0):
            yield Finding("ok", f"dtypes of {gpu.name}: float32, float16; bfloat16 is refused (it would be emulated)")
        else:
            yield Finding("ok", f"dtypes of {gpu.name}: float32; float16 is slow or inexact, bfloat16 is refused")
    if not found:
        yield Finding("ok", "dtypes of the CPU: float32, bfloat16; float16 is refused")


def has_kernels(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a torch built for `archs` ("sm_80", "compute_90") runs on a GPU.

    Machine code runs on its own major version, from its minor version on; PTX ("compute_") on everything newer.
    """
    major, minor = capability
    for arch in archs:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")  # sm_90a: for that GPU alone
        if not digits.isdecimal():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
        if kind == "compute" and built <= capability:
            return True
    return False


def _onnxruntime(facts: dict[str, Any]) -> Iterator[Finding]:
    if "onnxruntime" in facts:
        runtime = facts["onnxruntime"]
        yield Finding("ok", f"onnxruntime {runtime['version']}: {', '.join(runtime['providers'])}")
    elif "No module named" in facts.get("onnxruntime_error", ""):
        yield Finding("note", "onnxruntime is not installed: no ONNX exports.", "Install guie-models[onnx].")
    else:
        yield Finding("problem", f"onnxruntime cannot be imported: {facts.get('onnxruntime_error', 'unknown reason')}")


def _disk() -> Iterator[Finding]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for what, folder in (("the working directory", Path.cwd()), ("the cache of weights", cache)):
        there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))
        free = shutil.disk_usage(there).free
        text = f"{size(free)} free for {what} ({folder})"
        if free < LITTLE_SPACE:
            yield Finding("problem", f"only {text}.", "Make room before a run.")
        elif not os.access(there, os.W_OK):
            yield Finding("problem", f"{what} cannot be written ({folder}).")
        else:
            yield Finding("ok", text)


def _plugins() -> Iterator[Finding]:
    found = plugins()
    yield Finding("ok", plugins_summary(found))
    for owner in found.disabled:
        yield Finding("note", f"{owner.plugin} ({owner}) is disabled.")
    for failure in found.failures:
        yield Finding("problem", f"{failure.owner.plugin} ({failure.owner}) did not load: {failure.reason}")
    for conflict in found.conflicts:
        yield Finding("problem", str(conflict))
