"""How many classes are enough: experiments/own_images.py on parts of a data set, beside what is there without training.

    python benchmarks/own_images.py [--data "dict(type='emoji')"] [--classes 10 20 50 100 200 400] [--draws 5]
        [--image-size 128] [--folder FOLDER]

For each number of classes, so many draws of them. Each is a run of its own: three in ten of its classes are reported
on, which neither training nor the choice of the checkpoint sees. Compared on them are the backbone's raw features,
their principal components, the 5th place's head (64 numbers, begun at random, as in experiments/quickstart.py), and
the experiment as it stands. The table has the means over the draws; in brackets the mean difference to raw features in
the same draw, and its standard error. Features are computed once. With FOLDER all of it stays there, and the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

import numpy as np

from guie_core.experiment import Experiment
from guie_train import runner
from guie_train.retrieval import Evaluation

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "own_images.py"
METRICS = ("mP@5", "Recall@1")
WAYS = {
    "begun at random, 64": (
        "recipe.head=dict(type='BatchNormLinear', out_features=64, dropout=0.3)",
        "recipe.arcface.epochs=40",
        "recipe.arcface.optimizer.base.lr=1e-2",
    ),
    "own_images": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="dict(type='emoji')")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 20, 50, 100, 200, 400])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the experiment, all runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        for count in options.classes:
            draws = [
                scores(
                    folder,
                    f"{count}-{seed}",
                    f"recipe.data=[{options.data}]",
                    f"recipe.backbone.image_size={options.image_size}",
                    f"recipe.filters=[dict(type='SampleClasses', classes={count}, seed={seed})]",
                    *options.set,
                )
                for seed in range(options.draws)
            ]
            show(count, draws)


def scores(folder: Path, draw: str, *overrides: str) -> dict[str, list[float]]:
    """Of one draw of classes: the figures [METRICS] of each system, by name. Its runs are in `folder`, one each way."""
    found: dict[str, list[float]] = {}
    for way, changed in WAYS.items():
        run = folder / f"{draw}-{way.partition(',')[0].replace(' ', '-')}"
        experiment = Experiment.load(EXPERIMENT, overrides=(*overrides, *changed, "recipe.exports=[]"), profile="auto")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runner.train(experiment, work_dir=run)
        for place in sorted((run / "stages" / "evaluate").glob("[0-9]*")):
            result, about = Evaluation.read(place)
            name = way if about["name"] == "trained" else f"{about['name']}, {about['dimension']}"
            found[name] = [result.overall[metric] for metric in METRICS]
    return found


def show(count: int, draws: Sequence[dict[str, list[float]]]) -> None:
    """Print the table of one number of classes."""
    print(f"\n{count} classes, {len(draws)} draws")
    raw = np.array([next(iter(draw.values())) for draw in draws])
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        gain = values - raw
        error = gain.std(0, ddof=1) / len(draws) ** 0.5 if len(draws) > 1 else np.full(len(METRICS), np.nan)
        figures = (
            f"{metric} {values[:, k].mean():.3f} ({gain[:, k].mean():+.3f} +- {error[k]:.3f})"
            for k, metric in enumerate(METRICS)
        )
        print(f"  {name:24} " + "   ".join(figures), flush=True)


if __name__ == "__main__":
    main()
