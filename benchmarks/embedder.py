"""An embedder on CPUs: a plain loop over timm beside guie in float32, in bfloat16 and through its exports.

    python benchmarks/embedder.py [--model vit_base_patch32_224] [--weights none] [--images 32] [--batch 16]
                                  [--rounds 3] [--threads 2] [--directory DIR]

Every way makes the same embeddings of the same raw images: parts of two photographs, and emoji drawings. All resize
with guie's view of the model's own data configuration, inside the timing, so that what differs is how the network is
run. "one by one" is the loop that people write, `model(x[None])`; the other ways take batches of --batch, timm among
them, so two ratios are printed: to timm one by one and to timm in batches. Ways take turns within each round and the
best round counts; "processor" is images per second of processor time, all threads together, which says more than the
clock where a machine is shared. onnxruntime gets as many threads as torch and doesn't spin while it waits.

Cosine and top-5 compare with timm's embeddings, one by one in float32. So that they mean something with random weights,
whose features of all images are alike, the head's batch norm takes its statistics from these very features: what all
images share is subtracted, and the cosine is about what tells them apart. Megabytes are those of the exported file.
Exports land in --directory (a temporary one unless given). Needs guie-models[onnx], guie-emoji and scikit-learn.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor

from guie_core import build
from guie_datasets import decode
from guie_emoji import Emoji
from guie_models import BatchNormLinear, Embedder, Onnx, Program, TimmBackbone, TorchScript, size_values
from guie_models.exporters.parity import top5_agreement

Way = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_224")
    parser.add_argument("--weights", default="none")
    for name, default in (("images", 32), ("batch", 16), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = raw_images(options.images)
    embedder = build_embedder(options.model, options.weights, images)
    print(
        f"{options.model}, weights {options.weights}, {embedder.size} px, {len(images)} images, batches of"
        f" {options.batch}, {options.threads} threads; torch {torch.__version__}, timm {timm.__version__},"
        f" onnxruntime {onnxruntime.__version__}, {platform.machine()}"
    )
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        directory = options.directory or Path(temporary)
        plain = timm_ways(embedder, images, options.batch)
        sizes: dict[str, int] = {}
        ways = plain | guie_ways(embedder, images, options.batch)
        ways |= exported_ways(embedder, images, options.batch, options.threads, directory, sizes)
        compare(ways, sizes, options.rounds, len(images))


def raw_images(count: int) -> list[Tensor]:
    """uint8 [3, H, W]: half of them parts of two photographs, of many shapes, half emoji drawings."""
    random = torch.Generator().manual_seed(0)
    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    parts = []
    for i in range(count - count // 2):
        photo = photos[i % 2]
        height, width = (int(torch.randint(150, side, (1,), generator=random)) for side in photo.shape[1:])
        top, left = (
            int(torch.randint(0, whole - part + 1, (1,), generator=random))
            for whole, part in zip(photo.shape[1:], (height, width), strict=True)
        )
        parts.append(photo[:, top : top + height, left : left + width].contiguous())
    rows = list(Emoji().rows())
    chosen = torch.randperm(len(rows), generator=random)[: count // 2].tolist()
    return parts + [torch.from_numpy(decode(rows[row].image.read())) for row in chosen]


@torch.no_grad()
def build_embedder(model: str, weights: str, images: list[Tensor]) -> Embedder:
    torch.manual_seed(0)
    backbone = TimmBackbone(model, weights=weights)
    view = build(
        "views", backbone.view | dict(size=backbone.image_size, mean=backbone.mean, std=backbone.std), where="view"
    )
    features = torch.cat([backbone(view(image)[None]) for image in images])
    sizes = torch.stack([size_values(image.shape[1], image.shape[2], view.size) for image in images])
    head = BatchNormLinear(backbone.features, 64)
    head.norm.momentum = None  # the mean over what it sees, which is this one batch
    head.train()(torch.cat([features, sizes], dim=1))
    return Embedder(backbone, head, view)


def timm_ways(embedder: Embedder, images: list[Tensor], batch: int) -> dict[str, Way]:
    """timm's own model with the embedder's weights, as one would write it without guie."""
    backbone, head, view, size = embedder.backbone, embedder.head, embedder.view, embedder.size
    network = backbone.network

    def finish(features: Tensor, part: list[Tensor]) -> Tensor:
        sizes = torch.stack([size_values(image.shape[1], image.shape[2], size) for image in part])
        return F.normalize(head(torch.cat([features, sizes], dim=1)))

    def one_by_one() -> Tensor:
        return torch.cat([finish(network(view(image)[None]), [image]) for image in images])

    def in_batches() -> Tensor:
        parts = [images[i : i + batch] for i in range(0, len(images), batch)]
        return torch.cat([finish(network(torch.stack([view(x) for x in part])), part) for part in parts])

    return {"timm, one by one": one_by_one, "timm": in_batches}


def guie_ways(embedder: Embedder, images: list[Tensor], batch: int) -> dict[str, Way]:
    reduced = embedder.reduced(torch.bfloat16)
    return {
        "guie": partial(embedder.embed, images, batch),
        "guie in bfloat16, one by one": lambda: torch.cat([reduced(image[None]) for image in images]),
        "guie in bfloat16": partial(reduced.embed, images, batch),
    }


def exported_ways(
    embedder: Embedder, images: list[Tensor], batch: int, threads: int, directory: Path, sizes: dict[str, int]
) -> dict[str, Way]:
    """One way for each export, run without guie but for the view; `sizes` gets the bytes of each file."""
    ways: dict[str, Way] = {}

    def in_batches(run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        found = []
        for i in range(0, len(images), batch):
            part = images[i : i + batch]
            values = torch.stack([size_values(image.shape[1], image.shape[2], embedder.size) for image in part])
            found.append(run(torch.stack([embedder.view(image) for image in part]), values))
        return torch.cat(found)

    report = TorchScript().export(embedder, directory, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and exported on purpose
        script = torch.jit.load(report.path)
    raw = [image[None].float() for image in images]
    ways["TorchScript, one by one"] = lambda: torch.cat([script(image) for image in raw])
    sizes["TorchScript, one by one"] = report.bytes
    report = Program().export(embedder, directory, images)
    ways["torch.export"] = partial(in_batches, torch.export.load(report.path).module())
    sizes["torch.export"] = report.bytes
    for precision in ("float32", "float16", "int8"):
        name = f"onnxruntime, {precision}"
        # the table says how near it is: nothing is refused here
        report = Onnx(precision, max_difference=2.0, min_cosine=-1.0, min_agreement=0.0).export(
            embedder, directory, images
        )
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(report.path), settings, providers=["CPUExecutionProvider"])
        ways[name] = partial(in_batches, partial(run_onnx, session))
        sizes[name] = report.bytes
    return ways


def run_onnx(session: Any, images: Tensor, sizes: Tensor) -> Tensor:
    return torch.from_numpy(session.run(["embedding"], {"images": images.numpy(), "sizes": sizes.numpy()})[0])


def compare(ways: dict[str, Way], sizes: dict[str, int], rounds: int, count: int) -> None:
    found = {name: way() for name, way in ways.items()}  # also warms up: the first passes compile
    clock: dict[str, float] = {name: float("inf") for name in ways}
    processor = dict(clock)
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            way()
            clock[name] = min(clock[name], time.perf_counter() - begun[0])
            processor[name] = min(processor[name], time.process_time() - begun[1])
    single, batched = list(ways)[:2]
    expected = found[single]
    print(
        f"{'':<30} images/s  processor  to one by one  to batches   mean cosine  least cosine   top-5      MB\n"
        f"{'':<30} (ratios by the clock, by processor time)"
    )
    for name in ways:
        cosine = F.cosine_similarity(found[name].double(), expected.double())
        ratios = "".join(
            f"   {clock[base] / clock[name]:5.2f} {processor[base] / processor[name]:5.2f}"
            for base in (single, batched)
        )
        size = f"{sizes[name] / 1e6:8.1f}" if name in sizes else ""
        print(
            f"{name:<30} {count / clock[name]:8.1f} {count / processor[name]:10.1f}{ratios}"
            f" {float(cosine.mean()):13.6f} {float(cosine.min()):13.6f}"
            f" {top5_agreement(expected, found[name], tie=1e-4):7.1%} {size}",
            flush=True,
        )


if __name__ == "__main__":
    main()
