"""Head training at the 5th place's size: guie's loop beside one built the original's way, and beside the bare step.

    python benchmarks/head_training.py [--threads 2] [--rounds 5] [--steps 10] [--workers 0]
    python benchmarks/head_training.py --epochs 10          # whole epochs of guie's loop, and how long the other's are
    python benchmarks/head_training.py --epochs 10 --processes 2    # and under torchrun, images or classes divided
    python benchmarks/head_training.py --memory             # of the stage, from its features on disk

368,200 features of 1,027 values, 15,003 classes, batches of 256, SAM around AdamW (recipe of the 5th place, points 2 to
6), on random numbers: what is computed doesn't depend on them.

- "the original's way": a Dataset over arrays, a DataLoader that shuffles, the margin by a one-hot matrix, SAM in two
  steps over a list of parameters, gradients clipped at 1,000; float32.
- "guie": `Fit` as the stage runs it, in float32 and with bfloat16 products.
- "the bare step": the same head, loss and optimiser, again and again on one batch, with no loop around.
- "the loop alone": guie's loop with no step in it: it draws, selects, counts, and looks whether to stop.

Each has a process of its own, so that what C's allocator has learnt from one way does not change the times of another:
where it maps each matrix of logits (15.4 MB) anew, MALLOC_MMAP_THRESHOLD_=4194304, the original's way takes some five
times as long, and guie's the same. All have their turn in each round, a way's fastest step counts. "processor" is the
time that all threads together kept a core busy, which says more than the clock where a machine is shared (there take
`--threads 1`). "memory" is the process's own (RssAnon; pages of a mapped file are the system's to take back), beyond
what it had after its imports.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
IMAGES, DIMENSION, SIZES, CLASSES, SIZE, BATCH = 368_200, 1024, 3, 15_003, 64, 256
SAM = {"type": "SAM", "rho": 0.05, "base": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}}
ORIGINAL, GUIE, BFLOAT16, ALONE = "the original's way", "guie", "guie, bfloat16 products", "the loop alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("rounds", 5), ("steps", 10), ("workers", 0), ("epochs", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--divide", default="", help=argparse.SUPPRESS)  # with --folder, to what torchrun starts
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before the libraries read it

    import torch

    torch.set_num_threads(options.threads)
    if options.divide:
        one_of_several(options)
        return
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{options.threads} threads, {platform.machine()}, torch {torch.__version__}")
    if options.memory:
        memory(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.epochs:
            epochs(options, Path(folder))
        else:
            steps(options, Path(folder))


def data() -> tuple[Tensor, Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    features = torch.empty(IMAGES, DIMENSION + SIZES).normal_(generator=generator)
    return features, torch.randint(CLASSES, (IMAGES,), generator=generator)


def head_with_loss(products: str) -> nn.Module:
    import torch

    from guie_models import ArcFace, BatchNormLinear, Softmax
    from guie_train.heads import HeadWithLoss

    torch.manual_seed(0)
    loss = ArcFace(SIZE, CLASSES, scale=30.0, margin=0.5, softmax=Softmax(products=products))  # type: ignore[arg-type]
    return HeadWithLoss(BatchNormLinear(DIMENSION, SIZE), loss)


class Clock:
    """What `Fit` asks after each step whether to stop: notes when, and says so after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.times = [(time.perf_counter(), time.process_time())]

    def __bool__(self) -> bool:
        self.times.append((time.perf_counter(), time.process_time()))
        self.left -= 1
        return self.left <= 0


def taken(times: list[tuple[float, float]]) -> tuple[float, float]:
    """The fastest step, by the clock and of the processor; the first of a round is not counted."""
    pairs = list(itertools.pairwise(times[1:]))
    return tuple(min(after[i] - before[i] for before, after in pairs) for i in (0, 1))  # type: ignore


def guie(
    features: Tensor, labels: Tensor, products: str, folder: Path, count: int, alone: bool = False
) -> Callable[[], Any]:
    """Rounds of guie's loop; `alone`, with no step in it."""
    import torch

    from guie_core import Interrupted
    from guie_train.fitting import Fit, Resident, Training

    folder.mkdir()
    training = Training(epochs=1000, batch_size=BATCH, optimizer=SAM)
    fit = Fit(head_with_loss(products), Resident(features, labels), training, seed=0, folder=folder, name=products)

    if alone:
        loss = torch.zeros(())
        fit.train_step.take = lambda inputs, labels: loss  # type: ignore[method-assign]

    def work() -> tuple[float, float]:
        clock: Any = Clock(count + 1)
        with contextlib.suppress(Interrupted):
            fit.run(clock)
        return taken(clock.times)

    return work


def bare(features: Tensor, labels: Tensor, products: str, count: int) -> Callable[[], Any]:
    """Rounds of the step alone, as guie's loop makes it: passes, ascent, clipping, AdamW."""
    from guie_models.optimizers import build_optimizer
    from guie_train.allocator import caching_allocator

    model = head_with_loss(products)
    optimizer: Any = build_optimizer(SAM, model.parameters())
    x, y = features[:BATCH].clone(), labels[:BATCH].clone()

    def closure() -> Tensor:
        loss: Tensor = model(x, y)
        loss.backward()
        return loss

    def work() -> tuple[float, float]:
        clock = Clock(count + 1)
        with caching_allocator():
            while not clock:
                optimizer.step(closure, max_norm=1000.0)
        return taken(clock.times)

    return work


def original(features: Tensor, labels: Tensor, workers: int, count: int) -> Callable[[], Any]:
    """Rounds of a loop as the 5th place's code has it."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    one_hot = runpy.run_path(str(ROOT / "benchmarks" / "margin_softmax.py"))["one_hot"]

    class Arrays(Dataset[Any]):
        def __init__(self) -> None:
            self.features, self.labels = features.numpy(), labels.numpy()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, row: int) -> Any:
            return torch.from_numpy(self.features[row]), torch.tensor(self.labels[row])

    neck = nn.Sequential(nn.BatchNorm1d(DIMENSION + SIZES, eps=1e-6, affine=False), nn.Linear(DIMENSION + SIZES, SIZE))
    arc = one_hot(CLASSES, SIZE)
    parameters = [*neck.parameters(), *arc.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    perturbed: dict[Any, Tensor] = {}

    def backward(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = arc(neck(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1000.0)
        return loss

    @torch.no_grad()
    def first_step() -> None:
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in parameters if p.grad is not None]), p=2)
        for p in parameters:
            if p.grad is not None:
                perturbed[p] = p.grad * (0.05 / (norm + 1e-12))
                p.add_(perturbed[p])

    @torch.no_grad()
    def second_step() -> None:
        for p in parameters:
            p.sub_(perturbed[p])
        optimizer.step()

    def endless() -> Iterator[Any]:
        loader = DataLoader(Arrays(), BATCH, shuffle=True, drop_last=True, num_workers=workers)
        while True:
            yield from loader

    batches = endless()

    def work() -> tuple[float, float]:
        clock, total = Clock(count + 1), 0.0
        while not clock:
            x, y = next(batches)
            loss = backward(x, y)
            first_step()
            backward(x, y)
            second_step()
            total += loss.item()
        assert total > 0
        return taken(clock.times)

    return work


def ways(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[Tensor, Tensor], Callable[[], Any]]]:
    """What makes the rounds of each way, from features and labels."""
    count = options.steps
    return {
        ORIGINAL: lambda x, y: original(x, y, options.workers, count),
        GUIE: lambda x, y: guie(x, y, "float32", folder / "float32", count),
        f"{GUIE}: the bare step": lambda x, y: bare(x, y, "float32", count),
        BFLOAT16: lambda x, y: guie(x, y, "bfloat16", folder / "bfloat16", count),
        f"{BFLOAT16}: the bare step": lambda x, y: bare(x, y, "bfloat16", count),
        ALONE: lambda x, y: guie(x, y, "float32", folder / "alone", count, alone=True),
    }


_work: Callable[[], Any]  # of this process


def begin(name: str, options: argparse.Namespace, folder: Path) -> None:
    global _work
    _work = ways(options, folder)[name](*data())


def turn() -> Any:
    return _work()


def steps(options: argparse.Namespace, folder: Path) -> None:
    """Print what a step takes, each way."""
    found: dict[str, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as running:
        own = {
            name: running.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=begin, initargs=(name, options, folder))
            )
            for name in ways(options, folder)
        }
        for _ in range(options.rounds):
            for name, process in own.items():
                found.setdefault(name, []).append(process.submit(turn).result())
    best = {name: [min(each[i] for each in rounds) for i in (0, 1)] for name, rounds in found.items()}
    head = (
        f"{'':40}{'ms a step':>10}{'samples/s':>11}{'to the original':>17}{'processor ms':>14}{'to the original':>17}"
    )
    print(head)
    for name, (clock, busy) in best.items():
        line = f"{name:40}{1000 * clock:10.1f}{BATCH / clock:11,.0f}{best[ORIGINAL][0] / clock:17.2f}"
        print(line + f"{1000 * busy:14.1f}{best[ORIGINAL][1] / busy:17.2f}")
    for name in (GUIE, BFLOAT16):
        over = [best[ALONE][i] / best[f"{name}: the bare step"][i] for i in (0, 1)]
        print(f"{name}: the loop is {100 * over[0]:.1f} % of the bare step (processor {100 * over[1]:.1f} %)")
    for name in (ORIGINAL, GUIE, BFLOAT16):
        print(f"{name}: {best[name][0] * (IMAGES // BATCH):.0f} s an epoch of {IMAGES // BATCH:,} steps, by these")


def epochs(options: argparse.Namespace, folder: Path) -> None:
    """Print the time of whole epochs of guie's loop, and of the original's way by some steps of it."""
    features, labels = data()
    original_step = original(features, labels, options.workers, options.steps)
    print(f"{ORIGINAL}: {original_step()[0] * (IMAGES // BATCH):.0f} s an epoch, by {options.steps} steps", flush=True)
    for name, products in ((GUIE, "float32"), (BFLOAT16, "bfloat16")):
        train_epochs(name, features, labels, products, folder / products, options.epochs)
    print(f"{ORIGINAL}: {original_step()[0] * (IMAGES // BATCH):.0f} s an epoch, by {options.steps} steps", flush=True)
    if options.processes > 1:
        del features, labels, original_step  # each process has its own
        for divide in ("images", "classes"):
            torchrun = ["torch.distributed.run", "--nproc-per-node", str(options.processes), __file__]
            share = ["--threads", str(max(1, options.threads // options.processes)), "--divide", divide]
            program = [
                sys.executable,
                "-m",
                *torchrun,
                *share,
                "--epochs",
                str(options.epochs),
                "--folder",
                str(folder),
            ]
            subprocess.run(program, check=True)


def train_epochs(
    name: str, features: Tensor, labels: Tensor, products: str, folder: Path, epochs: int, **several: Any
) -> None:
    """Train guie's way, and print how long each epoch took and what the loss was in the end."""
    from guie_core.interrupt import Stop
    from guie_train.fitting import Fit, Resident, Training

    folder.mkdir(exist_ok=True)
    ends = [time.perf_counter()]
    curves = Fit(
        several.pop("model", None) or head_with_loss(products),
        Resident(features, labels),
        Training(epochs=epochs, batch_size=BATCH, optimizer=SAM),
        seed=0,
        folder=folder,
        name=name,
        on_epoch=lambda curves: ends.append(time.perf_counter()),
        **several,
    ).run(Stop())
    times = [after - before for before, after in itertools.pairwise(ends)]
    listed = ", ".join(f"{each:.0f}" for each in times)
    losses = ", ".join(f"{curve['loss']:.4f}" for curve in curves)
    print(f"{name}: {epochs} epochs in {sum(times):.0f} s ({listed}); losses {losses}", flush=True)


def one_of_several(options: argparse.Namespace) -> None:
    """What torchrun starts: whole epochs, shared with the others as the stage shares them."""
    from guie_train.fitting import whole_batch
    from guie_train.processes import AveragedGradients, joined

    with joined() as processes:
        model: Any = head_with_loss("float32")
        by_class = options.divide == "classes"
        several = {
            "model": model,
            "processes": processes,
            "whole": model.divide(processes) if by_class else None,
            "backward": whole_batch if by_class else AveragedGradients(processes),
        }
        name = f"{GUIE}, {processes.count} processes that divide the {options.divide}"
        train_epochs(name, *data(), "float32", Path(options.folder) / options.divide, options.epochs, **several)


def memory(options: argparse.Namespace) -> None:
    """Print what the stage holds at most, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("write", "train"):  # so that what writing needed isn't counted
            program = f"import head_training; head_training.{part}({folder!r}, {options.steps})"
            subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT / "benchmarks")


def stage(folder: str) -> Any:
    """The stage, on features and a manifest that are there already."""
    from guie_datasets import Manifest
    from guie_train.feature_store import FeatureStore
    from guie_train.fitting import Training
    from guie_train.stage import Stage
    from guie_train.stages.head import FitHead
    from guie_train.stages.selection import Selection

    @dataclass(frozen=True, kw_only=True)
    class Rows(Stage[Manifest]):
        slug: ClassVar[str] = "rows"

        def run(self, folder: Path, workspace: Any) -> None:
            raise NotImplementedError

        def complete(self, folder: Path, workspace: Any) -> bool:
            return True

        def load(self, _: Path) -> Manifest:
            return Manifest.read(Path(folder) / "manifest.parquet")

    @dataclass(frozen=True, kw_only=True)
    class Stored(Stage[FeatureStore]):
        slug: ClassVar[str] = "stored"

        def run(self, folder: Path, workspace: Any) -> None:
            raise NotImplementedError

        def complete(self, folder: Path, workspace: Any) -> bool:
            return True

        def load(self, _: Path) -> FeatureStore:
            return FeatureStore(Path(folder) / "features")

    protocol = {"type": "FirstAgainstSecond", "split": "select", "distractors": 3, "seed": 0}
    return FitHead(
        name="head",
        manifest=Rows(name="rows"),
        train=Stored(name="features"),
        valid=Stored(name="features"),
        head={"type": "BatchNormLinear", "out_features": SIZE},
        loss={"type": "ArcFace", "scale": 30.0, "margin": 0.5},
        training=Training(epochs=1000, batch_size=BATCH, optimizer=SAM),
        selection=Selection(protocol=protocol, metric="MRR@5"),
    )


def write(folder: str, count: int) -> None:
    """The manifest, and the features in float32 as the 5th place's experiment stores them."""
    import numpy as np

    from guie_datasets import Manifest
    from guie_train.feature_store import FeatureStore

    generator = np.random.default_rng(0)
    select = 789 * 2
    rows = IMAGES + select
    label = np.concatenate([np.arange(IMAGES) % CLASSES, CLASSES + np.arange(select) // 2])
    hashes = [f"{number:032x}" for number in range(rows)]
    columns = {
        "path": [f"{number}.jpg" for number in range(rows)],
        "label": label,
        "split": ["train"] * IMAGES + ["select"] * select,
        "width": np.full(rows, 640),
        "height": np.full(rows, 480),
        "hash": hashes,
    }
    Manifest.from_columns(columns).write(Path(folder) / "manifest.parquet")
    about = {"dimension": DIMENSION, "dtype": "float32", "image_size": 224}
    store = FeatureStore(Path(folder) / "features", about)
    for part in range(0, rows, 20_000):
        chosen = hashes[part : part + 20_000]
        store.append(chosen, generator.standard_normal((len(chosen), DIMENSION), np.float32))


def train(folder: str, count: int) -> None:
    """Train for some steps, and print the most that was held."""
    import json

    from guie_core import Interrupted
    from guie_core.profiles import profile
    from guie_train.stage import Workspace

    made = stage(folder)
    for source in made.inputs():
        place = Path(folder) / "store" / source.slug / source.key
        place.mkdir(parents=True, exist_ok=True)
        (place / "stage.json").write_text(json.dumps({"seconds": 0}))
    clock: Any = Clock(count + 1)
    peak, running = 0, True
    before = own()

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, own())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.suppress(Interrupted):
        workspace = Workspace(Path(folder) / "store", profile("cpu"), type("No", (), {"__bool__": lambda _: False})())
        for source in made.inputs():
            workspace.get(source)
        workspace.stop = clock
        place = Path(folder) / "trained"
        place.mkdir()
        made.run(place, workspace)
    running = False
    watcher.join()
    features = IMAGES * (DIMENSION + SIZES) * 4
    parameters = (CLASSES * SIZE + (DIMENSION + SIZES) * SIZE + SIZE) * 4
    logits = BATCH * CLASSES * 4
    needed = features + parameters + 2 * parameters + 2 * logits
    print(
        f"head training, {IMAGES:,} x {DIMENSION + SIZES}: {(peak - before) / 1e6:,.0f} MB at most; features "
        f"{features / 1e6:,.0f}, parameters {parameters / 1e6:.1f}, optimiser {2 * parameters / 1e6:.1f}, two matrices "
        f"of logits {2 * logits / 1e6:.1f}, together {needed / 1e6:,.0f} MB: {(peak - before) / needed:.2f} times that"
    )


def own() -> int:
    """Bytes of this process's own memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
