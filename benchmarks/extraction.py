"""Features of photos by a frozen network: guie's extraction beside plain loops, and beside its own two halves.

    python benchmarks/extraction.py [--model timm/vit_base_patch16_224] [--images 64] [--batch 16] [--rounds 3]
                                    [--threads 2] [--workers 2]

JPEGs of 640 x 480, parts of two photographs, read from files; a network with random weights, since speed doesn't depend
on them. All ways give float32 features of the same photos through the model's own view. Ways take turns within each
round and the best round counts; "processor" is images per second of processor time, all threads together, which says
more than the clock where a machine is shared (of a DataLoader's processes it is not known).

- Plain loops are what people write: Pillow, timm's transform, and the network in float32 on a batch (or on one image),
  one after the other in one thread, or with a DataLoader's processes ahead. --model open_clip/... has open_clip's
  network and transform in their place.
- "decoding alone" is guie's: photos to views, by as many workers; "model alone" the same batches, ready in memory.
  Extraction does both at once. On a GPU it can come near the slower of the two; on a CPU they share the cores, so that
  the sum of both is what can be had, and the last lines say how near to either extraction is.
- "uncached" is the model without `guie_train.allocator`: C's library takes the memory of a batch from the system anew.
- The cosine is that of features less the mean feature, which says what tells images apart; features of a random network
  are alike, and their plain cosine is nearly 1 whatever one does.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from guie_core import build
from guie_datasets import ImageRef, read_images
from guie_models.embedder import ReducedPrecision
from guie_train.allocator import caching_allocator
from guie_train.extraction import Extractor, features_of

Way = Callable[[], Tensor]
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_base_patch16_224")
    for name, default in (("images", 64), ("batch", 16), ("rounds", 3), ("threads", 2), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.model}, {options.images} photos, batches of {options.batch}, {options.threads} threads, "
        f"{options.workers} workers; torch {torch.__version__}, timm {timm.__version__}, {platform.machine()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), options.images)
        compare(options.model, paths, options.batch, options.rounds, options.workers)


def photos(folder: Path, count: int) -> list[str]:
    """JPEGs of 640 x 480: parts of two photographs, each of its own."""
    random = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    paths = []
    for number in range(count):
        source = sources[number % 2]
        scale = random.uniform(0.4, 1.0)
        width, height = int(source.width * scale), int(source.height * scale)
        left, top = (int(random.integers(0, room + 1)) for room in (source.width - width, source.height - height))
        part = source.crop((left, top, left + width, top + height)).resize((640, 480), Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{number}.jpg"))
        part.save(paths[-1], quality=90)
    return paths


class Files(Dataset[Tensor]):
    """As everybody writes it."""

    def __init__(self, paths: list[str], transform: Callable[[Any], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(Image.open(self.paths[number]).convert("RGB"))


def compare(model: str, paths: list[str], batch: int, rounds: int, workers: int) -> None:
    torch.manual_seed(0)
    backbone: Any = build("backbones", {"type": model, "weights": "none"}, where="model")
    settings = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
    view = build("views", {**settings, **backbone.view}, where="view")
    refs = [ImageRef(path) for path in paths]
    plain = Files(paths, transform_of(model, backbone))

    def network(images: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = backbone(images)
            return features

    def loop(size: int, processes: int) -> Tensor:
        return torch.cat([network(images) for images in DataLoader(plain, size, num_workers=processes)])

    extractors = {
        dtype: Extractor(
            build("backbones", {"type": model, "weights": "none"}, where="model"),
            CPU,
            compute=dtype,
            batch_size=batch,
            name=dtype,
        )
        for dtype in ("float32", "bfloat16")
    }
    for extractor in extractors.values():
        inner = extractor.network
        (inner.backbone if isinstance(inner, ReducedPrecision) else inner).load_state_dict(backbone.state_dict())
    seen = torch.stack([view(torch.from_numpy(image), 0) for image in read_images(refs, workers=0)])

    def decoding() -> Tensor:
        transform = lambda image: view(torch.from_numpy(image), 0)  # noqa: E731
        return torch.stack(list(read_images(refs, workers=workers, transform=transform))).mean((2, 3))

    def uncached(dtype: str) -> Tensor:
        return torch.cat([extractors[dtype](part) for part in seen.split(batch)])

    def alone(dtype: str) -> Tensor:
        with caching_allocator():
            return uncached(dtype)

    def autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.cat([network(part).float() for part in seen.split(batch)])

    ways: dict[str, Way] = {
        "plain loop, float32, one by one": partial(loop, 1, 0),
        "plain loop, float32": partial(loop, batch, 0),
        f"plain loop, float32, DataLoader of {workers} processes": partial(loop, batch, workers),
        "guie, decoding alone": decoding,
        "guie, model alone, float32, uncached": partial(uncached, "float32"),
        "guie, model alone, float32": partial(alone, "float32"),
        "guie, model alone, bfloat16, by autocast": autocast,
        "guie, model alone, bfloat16, uncached": partial(uncached, "bfloat16"),
        "guie, model alone, bfloat16": partial(alone, "bfloat16"),
        "guie, extraction, float32": partial(extraction, extractors["float32"], refs, view, workers),
        "guie, extraction, bfloat16": partial(extraction, extractors["bfloat16"], refs, view, workers),
    }
    report(ways, rounds, len(paths))


def extraction(extractor: Extractor, refs: list[ImageRef], view: Any, workers: int) -> Tensor:
    return features_of(extractor, refs, view, target=view.size, workers=workers)


def transform_of(model: str, backbone: Any) -> Callable[[Any], Tensor]:
    """The transform of the model's own library."""
    if model.startswith("open_clip/"):
        from open_clip.transform import image_transform

        transform: Callable[[Any], Tensor] = image_transform(
            backbone.image_size, is_train=False, mean=backbone.mean, std=backbone.std
        )
        return transform
    found = timm.create_model(model.removeprefix("timm/"))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=found))
    return transform


def report(ways: dict[str, Way], rounds: int, count: int) -> None:
    found = {name: way() for name, way in ways.items()}  # also warms up
    clock = dict.fromkeys(ways, float("inf"))
    processor = dict(clock)
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            way()
            clock[name] = min(clock[name], time.perf_counter() - begun[0])
            processor[name] = min(processor[name], time.process_time() - begun[1])
    first = clock["plain loop, float32"]
    reference = found["guie, model alone, float32"]
    print("\n| way | images/s | to the plain loop | images per processor second | mean, least cosine |")
    print("|---|---|---|---|---|")
    for name in ways:
        seconds = f"{count / processor[name]:.1f}" if "DataLoader" not in name else ""
        cosine = ""
        if "bfloat16" in name or "extraction" in name:
            mean = reference.mean(0)
            values = F.cosine_similarity(found[name] - mean, reference - mean)
            cosine = f"{values.mean():.5f}, {values.min():.5f}"
        print(f"| {name} | {count / clock[name]:.1f} | {first / clock[name]:.2f} | {seconds} | {cosine} |")
    print()
    decoding = clock["guie, decoding alone"]
    for dtype in ("float32", "bfloat16"):
        model, both = clock[f"guie, model alone, {dtype}"], clock[f"guie, extraction, {dtype}"]
        print(
            f"{dtype}: extraction takes {both / max(decoding, model):.2f} times the slower of decoding and model, "
            f"{both / (decoding + model):.2f} times their sum"
        )


if __name__ == "__main__":
    main()
