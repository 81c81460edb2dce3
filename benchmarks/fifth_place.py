"""What experiments/5th_place.py asks of a machine, without data, weights or a GPU: counted, not run.

    python benchmarks/fifth_place.py [--threads 1] [--rounds 5]

Images and steps are those of the recipe. Operations and weights of ViT-H-14 are counted on torch's meta device, which
holds shapes and no numbers. One step of the head, with the recipe's head, loss and optimiser on random features, is
run on this machine's CPU, and the kernels that a GPU would have to launch for it are counted. Times are the counts over
published figures: the RTX 3090's measured images a second (timm, mixed precision), and the makers' peaks of float32
arithmetic, which no program reaches: "at least".
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

PRODUCTS, LANDMARKS, GPR, FOOD, KINDS = 141_900, 349_000 * 5 // 7, 10_000, 101 * 30, 130_000
TRAIN, CLASSES, STEPS, EPOCHS = 368_200, 15_003, 1_438, 1_000
MIXED_3090 = 184  # images a second, timm
PEAK = {"RTX 3090": 35.6e12, "V100": 15.7e12}  # float32 operations a second, from the makers' data sheets
LAUNCH = 5e-6  # seconds to launch a kernel: of this order on any machine
# operations of torch that launch nothing
VIEWS = {
    *("view", "as_strided", "reshape", "t", "transpose", "detach", "empty", "empty_like", "empty_strided", "slice"),
    *("select", "unsqueeze", "expand", "alias", "item", "_local_scalar_dense", "lift_fresh", "is_nonzero", "unbind"),
    *("split", "narrow", "squeeze", "permute", "resolve_conj"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before the libraries read it

    images = PRODUCTS + LANDMARKS + GPR + FOOD
    views = 2 * images + KINDS
    print(f"images       {images:,}, of which about {TRAIN:,} to train on; {KINDS:,} for the classifier")
    operations, tower, model = backbone()
    print(f"backbone     {operations / 1e9:.1f} GFLOP an image at 224 px")
    print(f"             {tower / 1e6:.0f} M weights of the model's {model / 1e6:.0f} M")
    print(f"             {4 * model / 1e9:.2f} GB to fetch, {4 * tower / 1e9:.2f} GB in memory and in the export")
    print(f"features     {views:,} images through a view, {views * 4096 / 1e9:.2f} GB in float32, half in float16")
    print(f"  mixed      {hours(views / MIXED_3090)} on an RTX 3090 at {MIXED_3090} images/s; V100: not published")
    for name, peak in PEAK.items():
        rate = peak / operations
        print(f"  float32    at least {hours(views / rate)} on the {name}: {rate:.0f} images/s at its peak")
    seconds, kernels = step(options.threads, options.rounds)
    print(f"head         {EPOCHS} epochs of {STEPS:,} steps, two passes each")
    print(
        f"  memory     {TRAIN * 1027 * 4 / 1e9:.2f} GB of features, {256 * CLASSES * 4 / 1e6:.1f} MB a matrix of logits"
    )
    print(f"  checkpoint {4 * (CLASSES * 64 + 1027 * 66 + 64) / 1e6:.1f} MB, every 10 epochs")
    print(
        f"  GPU        {kernels} kernels a step: {hours(EPOCHS * STEPS * kernels * LAUNCH)} if launching is what limits"
    )
    print(
        f"  this CPU   {1000 * seconds:.0f} ms a step on {options.threads} threads: {hours(EPOCHS * STEPS * seconds)}"
    )


def hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def backbone() -> tuple[int, int, int]:
    """Operations of the visual tower for an image, its weights, and those of the whole model."""
    import open_clip
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).eval()
        image = torch.zeros(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.visual(image)
    tower, whole = (sum(p.numel() for p in part.parameters()) for part in (model.visual, model))
    return counted.get_total_flops(), tower, whole


def step(threads: int, rounds: int) -> tuple[float, int]:
    """Seconds of a step of the head on this CPU, the best of `rounds`, and the kernels that it launches."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from guie_core import build
    from guie_core.experiment import Experiment
    from guie_train.fitting import Fit, Resident, Training
    from guie_train.stages.head import HeadWithLoss

    torch.set_num_threads(threads)
    recipe = Experiment.load(Path(__file__).parent.parent / "experiments" / "5th_place.py", profile="cpu").recipe
    model = HeadWithLoss(
        build("heads", recipe["head"], in_features=1024),
        build("losses", recipe["loss"], embedding_size=64, classes=CLASSES),
    )
    features, labels = torch.randn(256 * (rounds + 2), 1027), torch.randint(CLASSES, (256 * (rounds + 2),))
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(
            model, Resident(features, labels), Training(**recipe["arcface"]), seed=0, folder=Path(folder), name="head"
        )
        fit._begin_epoch()
        first, second, *rest = fit.examples.batches(0, fit._rows())
        fit._step(*first)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            fit._step(*second)
        times = []
        for batch in rest:
            begin = time.perf_counter()
            fit._step(*batch)
            times.append(time.perf_counter() - begin)
    names = [
        event.name.removeprefix("aten::")
        for event in recorded.events()
        if event.name.startswith("aten::") and not any(child.name.startswith("aten::") for child in event.cpu_children)
    ]
    return min(times), sum(name not in VIEWS for name in names)


if __name__ == "__main__":
    main()
