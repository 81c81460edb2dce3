"""The margin softmax: guie beside pytorch-metric-learning, the one-hot formulation, and the products that all need.

    python benchmarks/margin_softmax.py [--classes 15003 100000 1000000] [--batch 256] [--size 64] [--rounds 5]
                                        [--threads 2] [--limit 20]
    python benchmarks/margin_softmax.py --retrieval [--seeds 3] [--epochs 40] [--work-dir runs]

1. ArcFace (scale 30, margin .5), forward and backward twice, as a step of SAM does, without the optimiser. All ways
   have their turn in each round, and the best round counts; "processor" is the time that all threads together kept a
   core busy, which says more than the clock where a machine is shared. "memory" is the most that was held at one time
   beyond inputs, parameters and their gradients, in matrices of logits (batch x classes float32), by the measure of
   packages/guie-models/tests/test_losses_formulas.py (which sees no sparse tensors). A way that would hold more than
   `--limit` GB, or than the machine has free, is left out.
2. Whether products in bfloat16 cost retrieval anything: experiments/quickstart.py up to its evaluation, with both
   precisions and several seeds. Features are computed once, and kept below `--work-dir`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import runpy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
SCALE, MARGIN = 30.0, 0.5
PRODUCTS, GUIE = "three products alone", "guie"
ONE_HOT, PML = "one-hot (5th place)", "pytorch-metric-learning"
BFLOAT16, SPARSE = "guie, bfloat16 products", "guie, Partial FC .1, sparse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[15_003, 100_000, 1_000_000])
    for name, default in (("batch", 256), ("size", 64), ("rounds", 5), ("threads", 2), ("limit", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--retrieval", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--work-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before the libraries read it

    import torch

    torch.set_num_threads(options.threads)
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{options.threads} threads, {platform.machine()}, torch {torch.__version__}")
    if options.retrieval:
        retrieval(options)
        return
    for classes in options.classes:
        table(classes, options)


def ways(classes: int, size: int) -> dict[str, Callable[[], nn.Module]]:
    """What makes each loss, by name."""
    from guie_models import ArcFace, Softmax

    def guie(**softmax: Any) -> Callable[[], nn.Module]:
        return lambda: ArcFace(size, classes, SCALE, MARGIN, softmax=Softmax(**softmax))

    return {
        GUIE: guie(),
        "guie, rows=32": guie(rows=32),
        BFLOAT16: guie(products="bfloat16"),
        "guie, Partial FC .1": guie(sample=0.1),
        SPARSE: guie(sample=0.1, sparse=True),
        PML: lambda: pml(classes, size),
        ONE_HOT: lambda: one_hot(classes, size),
    }


def pml(classes: int, size: int) -> nn.Module:
    from pytorch_metric_learning.losses import ArcFaceLoss

    loss: nn.Module = ArcFaceLoss(classes, size, margin=math.degrees(MARGIN), scale=SCALE)
    return loss


def one_hot(classes: int, size: int) -> nn.Module:
    """The margin on the whole matrix, chosen by a one-hot one, as the 5th place's code and many others have it."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, linear, normalize

    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(classes, size))
            nn.init.xavier_uniform_(self.weight)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            cosine = linear(normalize(x), normalize(self.weight))
            sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
            phi = cosine * math.cos(MARGIN) - sine * math.sin(MARGIN)
            fallback = cosine - math.sin(math.pi - MARGIN) * MARGIN
            phi = torch.where(cosine > math.cos(math.pi - MARGIN), phi, fallback)
            target = torch.zeros_like(cosine).scatter_(1, labels.view(-1, 1), 1)
            return cross_entropy((target * phi + (1.0 - target) * cosine) * SCALE, labels)

    return OneHot()


def batch(options: argparse.Namespace, classes: int) -> tuple[Tensor, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch, options.size, generator=generator).requires_grad_()
    return x, torch.randint(0, classes, (options.batch,), generator=generator)


def step(loss: nn.Module, x: Tensor, labels: Tensor) -> None:
    for _ in range(2):
        x.grad = None
        loss.zero_grad(set_to_none=True)
        loss(x, labels).backward()


def products(x: Tensor, w: Tensor, dx: Tensor, dw: Tensor, z: Tensor) -> None:
    import torch

    for _ in range(2):
        torch.mm(x, w.T, out=z)
        torch.mm(z, w, out=dx)
        torch.mm(z.T, x, out=dw)


def memory(name: str, classes: int, options: argparse.Namespace) -> float:
    """Matrices of logits held beyond inputs, parameters and their gradients."""
    measure = runpy.run_path(str(ROOT / "packages/guie-models/tests/test_losses_formulas.py"))["Live"]
    loss = ways(classes, options.size)[name]()
    x, labels = batch(options, classes)
    with measure(least=classes * 4, given=[x, *loss.parameters()]) as live:
        loss(x, labels).backward()
    gradients = [parameter.grad for parameter in loss.parameters() if parameter.grad is not None]
    return float(live.most - sum(gradient.nbytes for gradient in gradients)) / (options.batch * classes * 4)


def free() -> int:
    """Bytes that the machine can give without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def table(classes: int, options: argparse.Namespace) -> None:
    """Print what all ways took, in turn, `--rounds` times."""
    import torch

    matrix, centres = options.batch * classes * 4, classes * options.size * 4
    print(f"\nbatch {options.batch}, {options.size} dimensions, {classes:,} classes; logits of {matrix / 1e6:.1f} MB")
    makers = ways(classes, options.size)
    # the same for more classes
    held = {name: memory(name, min(classes, 15_003), options) for name in makers if name != SPARSE}
    x, labels = batch(options, classes)
    w, dx, dw = torch.randn(classes, options.size), torch.empty_like(x), torch.empty(classes, options.size)
    z = torch.empty(options.batch, classes)
    works: dict[str, Callable[[], None]] = {PRODUCTS: lambda: products(x.detach(), w, dx, dw, z)}
    values: dict[str, float] = {}
    for name, make in makers.items():
        # beside the products' matrices and the centres, which all share but for one library
        needed = matrix + 2 * centres + held.get(name, 0) * matrix + 2 * centres
        limit = min(options.limit * 1e9, free())
        if needed > limit:
            print(f"left out: {name} would hold {needed / 1e9:.1f} GB in all, more than {limit / 1e9:.1f}")
            continue
        loss = make()
        for parameter in loss.parameters():
            parameter.data = w if parameter.shape == w.shape else w.T.contiguous()
        values[name] = float(loss.eval()(x, labels).detach())
        works[name] = partial(step, loss.train(), x, labels)
    wrong = [name for name, value in values.items() if abs(value / values[GUIE] - 1) > 0.01]
    assert not wrong, f"these are other losses: {wrong}, {values}"

    clock, processor = ({name: math.inf for name in works} for _ in range(2))
    for _ in range(options.rounds):
        for name, work in works.items():
            began, busy = time.perf_counter(), time.process_time()
            work()
            clock[name] = min(clock[name], time.perf_counter() - began)
            processor[name] = min(processor[name], time.process_time() - busy)

    ratios = f"{'to products':>13}{'to guie':>9}"
    print(f"{'':29}{'ms':>9}{ratios}{'processor ms':>14}{ratios}{'memory':>8}")
    for name in works:
        line = f"{name:29}"
        for taken, width in ((clock, 9), (processor, 14)):
            line += (
                f"{1000 * taken[name]:{width}.1f}{taken[name] / taken[PRODUCTS]:13.2f}{taken[name] / taken[GUIE]:9.2f}"
            )
        print(line + (f"{held[name]:8.2f}" if name in held else ""))


def retrieval(options: argparse.Namespace) -> None:
    """Print mP@5 of the trained head with products in both precisions."""
    from guie_core.experiment import Experiment
    from guie_train import runner
    from guie_train.retrieval import Evaluation

    scores: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for seed in range(options.seeds):
        for name, found in scores.items():
            experiment = Experiment.load(
                ROOT / "experiments/quickstart.py",
                overrides=(
                    f"recipe.seed={seed}",
                    f"recipe.arcface.epochs={options.epochs}",
                    f"recipe.loss.softmax.products={name}",
                    "recipe.classifier=None",
                    "recipe.augmentation=None",
                ),
            )
            folder = options.work_dir / f"products-{name}-{seed}"
            runner.train(experiment, work_dir=folder, stage="evaluate")
            for path in (folder / "stages" / "evaluate").glob("[0-9]*"):
                result, about = Evaluation.read(path)
                if about["name"] == "trained":
                    found.append(result.overall["mP@5"])
    print(f"\n{'mP@5 with seed':17}" + "".join(f"{seed:8}" for seed in range(options.seeds)) + f"{'mean':>8}")
    for name, found in scores.items():
        print(f"{name:17}" + "".join(f"{score:8.4f}" for score in found) + f"{statistics.mean(found):8.4f}")
    differences = [low - full for full, low in zip(*scores.values(), strict=True)]
    print(f"{'difference':17}" + "".join(f"{d:+8.4f}" for d in differences) + f"{statistics.mean(differences):+8.4f}")
    if options.seeds > 1:
        spreads = [statistics.stdev(values) for values in (differences, scores["float32"])]
        print(f"standard deviation of the difference {spreads[0]:.4f}, of float32 from seed to seed {spreads[1]:.4f}")


if __name__ == "__main__":
    main()
