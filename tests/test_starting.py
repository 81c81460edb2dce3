"""What is imported before an answer, by the names of modules: it is what starting takes (`benchmarks/start.py`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "quickstart.py"
NETWORKS = {"timm", "open_clip", "torchvision", "tensorflow", "onnx", "onnxscript", "wandb"}
TABLES = {"pandas", "sklearn", "triton"}

# a local plugin without entries, which ends the process at the first step of any optimiser
FIRST_STEP = """
import os, sys
from guie_core import hookimpl
from torch.optim.optimizer import register_optimizer_step_pre_hook

@hookimpl
def guie_trackers():
    return []

def end(*step):
    print("loaded", *{name.partition(".")[0] for name in sys.modules}, flush=True)
    os._exit(0)

register_optimizer_step_pre_hook(end)
"""
COMMAND = f"""
import sys
from guie_train.__main__ import main
sys.argv = ["guie-train", {str(EXPERIMENT)!r}, *sys.argv[1:]]
try:
    main()
finally:
    print("loaded", *{{name.partition(".")[0] for name in sys.modules}})
"""


def loaded(*arguments: str, code: int = 0) -> set[str]:
    """Top-level modules that `guie-train` on the quickstart has loaded when it ends, with that exit code."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("loaded ")]
    return set(line.split()[1:])


def test_a_mistake_is_told_before_networks_are_imported() -> None:
    found = loaded("--set", "recipe.head.droput=0.2", code=2)
    assert "torch" in found
    assert found & (NETWORKS | TABLES) == set()


def test_a_head_begins_to_train_on_stored_features_without_a_network(tmp_path: Path) -> None:
    options = ["--work-dir", str(tmp_path / "runs" / "one"), "--profile", "cpu"]
    options += ["--set", 'recipe.data=[dict(type="emoji", styles=["twitter", "noto-v1"])]']
    options += ["--set", 'recipe.backbone=dict(type="timm/test_resnet", weights="none", image_size=32)']
    assert "timm" in loaded(*options, "--stage", "features valid")
    plugin = tmp_path / "first_step.py"
    plugin.write_text(FIRST_STEP)
    assert loaded(*options, "--plugin", str(plugin)) & NETWORKS == set()
