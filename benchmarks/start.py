"""From a command to its answer: the first step of a training whose features are there, a mistake in an experiment, and
what others import before they do anything.

    python benchmarks/start.py [--rounds 5] [--work-dir DIR]

Each line is a process of its own, and all of them take turns, so that a machine that is busy is busy for all. Wall
seconds are from before the process is started; those of the processor are its own, children aside. Both end where the
work is done, before Python takes its modules apart; of a mistake alone they are those of the whole process. A training
ends within its first step, before the optimiser changes anything, hence each round does the same.

- "first step": `guie-train experiments/quickstart.py`, two of its six styles, features and split being there.
- "mistake": the same with a misspelt argument, until the error is on the screen.
- "torch, AdamW": importing torch and one step on one number, which no training can do without.
- the imports of peers, as their READMEs begin; a peer that isn't installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
TRAIN = [
    *(sys.executable, "-m", "guie_train", "experiments/quickstart.py", "--profile", "cpu"),
    *("--set", 'recipe.data=[dict(type="emoji", styles=["twitter", "noto-v1"])]'),
]
# a local plugin with no entries: torch tells it of the first step of any optimiser
STAMP = '''"""Ends the process at its first step of training."""

import os
import time

from guie_core import hookimpl
from torch.optim.optimizer import register_optimizer_step_pre_hook


@hookimpl
def guie_trackers():
    return []


def end(*step):
    print("step", time.monotonic(), time.process_time(), flush=True)
    os._exit(0)


register_optimizer_step_pre_hook(end)
'''
STEP = """
import torch
weight = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.AdamW([weight])
weight.sum().backward()
optimizer.step()
"""
END = """
import os, time
print("step", time.monotonic(), time.process_time(), flush=True)
os._exit(0)
"""
PEERS = {
    "timm": "import timm",
    "timm, open_clip": "import timm, open_clip",
    "pytorch_metric_learning": "from pytorch_metric_learning import losses, miners, distances, reducers, testers",
    "oml": "from oml.models import ViTExtractor",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where features are kept, to be used again")
    options = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work_dir or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        work = cases(folder)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for number in range(options.rounds + 1):
            for name, measure in work.items():
                found = measure()
                if number:  # the first round reads files from the disk that all others find in memory
                    times[name].append(found)
    floor = middle(times["torch, AdamW"])
    print(f"{'':32}{'wall s':>8}{'ratio':>7}{'processor s':>13}{'ratio':>7}")
    for name, rounds in times.items():
        wall, processor = middle(rounds)
        print(f"{name:32}{wall:8.2f}{wall / floor[0]:7.2f}{processor:13.2f}{processor / floor[1]:7.2f}")


def cases(folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
    """What is measured, by name: each gives the wall and processor seconds of one process."""
    stamp = folder / "stamp.py"
    stamp.write_text(STAMP)
    train = [*TRAIN, "--work-dir", str(folder / "runs" / "start")]
    # all features, and no head
    subprocess.run([*train, "--stage", "features train"], check=True, cwd=ROOT)
    subprocess.run([*train, "--stage", "features valid"], check=True, cwd=ROOT)
    found: dict[str, Callable[[], tuple[float, float]]] = {
        "first step": lambda: until_step([*train, "--plugin", str(stamp)]),
        "mistake": lambda: whole([*train, "--set", "recipe.head.droput=0.2"], code=2),
        "torch, AdamW": lambda: until_step([sys.executable, "-c", STEP + END]),
    }
    for name, line in PEERS.items():
        module = re.split(r"[ ,.]", name)[0]
        if importlib.util.find_spec(module) is not None:
            found[f"import {name}"] = lambda line=line: until_step([sys.executable, "-c", line + END])  # type: ignore[misc]
    return found


def until_step(command: list[str]) -> tuple[float, float]:
    """Seconds until a process prints "step", with the times at which it does."""
    begin = time.monotonic()
    out = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    _, end, processor = next(line for line in out.stdout.splitlines() if line.startswith("step ")).split()
    return float(end) - begin, float(processor)


def whole(command: list[str], code: int) -> tuple[float, float]:
    """Seconds of a process that ends with that exit code."""
    before, begin = os.times(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    took, after = time.monotonic() - begin, os.times()
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}, not {code}:\n{done.stderr}")
    return took, after.children_user + after.children_system - before.children_user - before.children_system


def middle(found: list[tuple[float, float]]) -> tuple[float, float]:
    """The medians of wall and of processor seconds."""
    return median(wall for wall, _ in found), median(processor for _, processor in found)


if __name__ == "__main__":
    main()
