"""The memory that a plan foretells for the stages of an experiment, and the memory that they take.

    python benchmarks/memory.py [--case emoji ...] [--keep DIR]

Each stage runs on the CPU in a process of its own, as `guie-train EXPERIMENT --stage STAGE` would where the stages
before it are done. "Foretold" is what `--dry-run` says; "measured" is the most of that process's resident memory
(VmHWM) by the system's account. Both are with the libraries, whose part is told first: a process that has loaded the
experiment, and done nothing.

- "emoji": the quickstart, with all its stages.
- "ViT-S", "ViT-B": features, head and export of networks whose activations weigh more, and whose weights do; random
  weights. Long stages are stopped after some steps here and below, when they hold all that they will.
- "fine-tuning": all of a ViT-Ti, from a head.
- "large": head and classifier on 200,000 random features of 1,280 values, stored in 16 bits; nothing is decoded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUICKSTART = "quickstart.py"
TWO_STYLES = 'recipe.data=[dict(type="emoji", styles=["twitter", "noto-v1"])]'
SHORT = ("recipe.arcface.epochs=2", "recipe.selection.every=1", "recipe.classifier.training.epochs=2")


@dataclass(frozen=True)
class Case:
    """An experiment, and those of its stages that are measured; all if none is named.

    steps: what is measured is stopped after so many steps or batches of images, and random features stand for those
    that it would have computed; 0: it goes to its end. images: how many rows of nothing, and random features, stand for
    the data sets; 0: they are read.
    """

    experiment: str
    overrides: Sequence[str] = ()
    stages: Sequence[str] = ()
    steps: int = 0
    images: int = 0


def vit(name: str) -> Case:
    backbone = f'recipe.backbone=dict(type="timm/{name}", weights="none")'
    return Case(QUICKSTART, (TWO_STYLES, backbone, *SHORT), ("features train", "head", "export"), steps=6)


CASES = {
    "emoji": Case(QUICKSTART, SHORT, steps=40),
    "ViT-S": vit("vit_small_patch16_224"),
    "ViT-B": vit("vit_base_patch32_224"),
    "fine-tuning": Case(
        "3rd_place.py",
        (
            TWO_STYLES,
            'recipe.backbone=dict(type="timm/vit_tiny_patch16_224", weights="none")',
            "recipe.keep_duplicates=False",
            "recipe.arcface.epochs=1",
            "recipe.arcface.epoch_parts=1",
            "recipe.arcface.warmup_epochs=0",
            "recipe.selection.every=1",
            'recipe.selection.protocol=dict(type="LeaveOneOut", split="select")',
            "recipe.finetune.training.epochs=1",
            "recipe.finetune.training.batch_size=32",
            "recipe.finetune.every=1",
        ),
        ("head", "finetune"),
        steps=3,
    ),
    "large": Case(QUICKSTART, SHORT, ("head", "classifier"), steps=4, images=200_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for what the stages write, to go on from")
    options = parser.parse_args()
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{'':36}{'foretold':>12}{'measured':>12}{'measured / foretold':>22}")
    nothing = measured(Path(), CASES["emoji"], "")
    print(f"{'libraries':36}{megabytes(libraries())}{megabytes(nothing)}{nothing / libraries():>22.2f}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.case or CASES:
            for stage, foretold, found in compared(options.keep or Path(temporary), name):
                told = f"{name}, {stage}"
                print(f"{told:36}{megabytes(foretold)}{megabytes(found)}{found / foretold:>22.2f}", flush=True)


def megabytes(count: float) -> str:
    return f"{count / 1e6:>9,.0f} MB"


def libraries() -> float:
    from guie_train.planning.forecast import LIBRARIES

    return LIBRARIES


def compared(folder: Path, name: str) -> Iterator[tuple[str, float, float]]:
    """The stages of a case with the bytes that are foretold and those that are measured."""
    from guie_train.planning.plan import make_plan
    from guie_train.stages.data import Prepare
    from guie_train.stages.features import Features

    case = CASES[name]
    stages, workspace = opened(folder, case)
    last = max(number for number, stage in enumerate(stages) if not case.stages or stage.name in case.stages)
    done: set[str] = set()
    for stage in stages[: last + 1]:
        if case.images and isinstance(stage, Prepare):
            fill_manifest(workspace.folder(stage), case.images)
        plan = make_plan(stages, [stage], workspace)
        step = next(step for step in plan.steps if step.name == stage.name)
        wanted = stage.key not in done and (not case.stages or stage.name in case.stages)
        done.add(stage.key)
        if wanted:
            yield stage.name, plan.host(step) or float("nan"), measured(folder, case, stage.name)
        if (case.steps or case.images) and isinstance(stage, Features):
            fill_features(stage, workspace)
        elif not wanted:
            workspace.get(stage)


def opened(folder: Path, case: Case) -> tuple[list[Any], Any]:
    """The stages of a case, and the workspace of its outputs."""
    from guie_core.experiment import Experiment
    from guie_core.interrupt import Stop
    from guie_core.registry import build
    from guie_train.stage import Workspace

    path = ROOT / "experiments" / case.experiment
    experiment = Experiment.load(path, overrides=case.overrides, profile="cpu")
    recipe = build("recipes", experiment.recipe, where="recipe")
    store = folder / f"{case.images}-{case.steps}"
    return recipe.stages(experiment.profile), Workspace(store, experiment.profile, Stop())


def fill_manifest(folder: Path, images: int) -> None:
    """Put a manifest of images that don't exist where a stage would put its own."""
    import numpy as np

    from guie_datasets import Manifest

    label = np.arange(images) // 50
    columns = {
        "path": [f"{number}.jpg" for number in range(images)],
        "label": label,
        "category": [f"kind {number % 11}" for number in label],
        "width": np.where(np.arange(images) % 2, 640, 480),
        "height": np.full(images, 480),
        "hash": [f"{number:032x}" for number in range(images)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    Manifest.from_columns(columns, {"findings": 0}).write(folder / "manifest.parquet")
    finish(folder)


def fill_features(stage: Any, workspace: Any) -> None:
    """Random features where a stage has none yet."""
    import numpy as np

    folder, backbone = workspace.folder(stage), stage.network(workspace)
    manifest, store = workspace.get(stage.manifest), stage.open(folder, backbone)
    hashes = manifest.column("hash")[stage.rows(manifest)]
    hashes = hashes[store.missing(hashes)]
    generator = np.random.default_rng(0)
    for start in range(0, len(hashes), 8192):
        part = hashes[start : start + 8192]
        store.append(part, generator.standard_normal((len(part), backbone.features), np.float32))
    finish(folder)


def finish(folder: Path) -> None:
    (folder / "stage.json").write_text(json.dumps({"seconds": 0}))


class After:
    """What stages ask whether to stop: yes, after so many times; 0: no."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left == 0


def measured(folder: Path, case: Case, stage: str) -> int:
    """Bytes that a stage's process held at most."""
    program = f"import memory; memory.run({str(folder)!r}, memory.{case!r}, {stage!r})"
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, text=True
    )
    return int(found.stdout.split()[-1])


def run(folder: str, case: Case, stage: str) -> None:
    """Make the outputs of a stage anew, those before it being there; print the bytes that were held at most."""
    import guie_train.runner  # noqa: F401  what guie-train has imported by then
    from guie_core import Interrupted

    stages, workspace = opened(Path(folder), case)
    if stage:
        [chosen] = [each for each in stages if each.name == stage]
        for source in chosen.inputs():
            workspace.get(source)
        workspace.again = frozenset([chosen.key])
        workspace.stop = After(case.steps + 1 if case.steps else 0)  # it is asked once before it begins
        with contextlib.suppress(Interrupted):
            workspace.get(chosen)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) * 1024)


if __name__ == "__main__":
    main()
