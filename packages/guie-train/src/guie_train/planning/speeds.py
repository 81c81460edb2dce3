"""How fast hardware is: measured where that was published, else the makers' peaks; of the machine at hand, a probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from guie_core import GuieError
from guie_core.profiles import Profile
from guie_datasets import ImageRef, read_images
from guie_datasets.images.decoding import Method

PROBE_SECONDS = 0.2


@dataclass(frozen=True)
class Speed:
    """Operations and bytes of memory a second; operations None: not known, and `basis` says why."""

    operations: float | None
    bandwidth: float
    basis: str


@dataclass(frozen=True)
class Peak:
    """What a GPU's maker says that it can do, which no program reaches: operations a second, by dtype, and bytes."""

    gpu: str
    bandwidth: float
    float32: float
    half: float  #: float16 or bfloat16 with float32 sums, dense, on tensor cores where it has them


# From NVIDIA's data sheets and architecture papers (Volta WP-08608, GA102 v2, Ada, A100, H100, T4, Pascal WP-08019).
# Of V100, A100, H100 and P100 the SXM boards, the faster ones. Products in float32 are without TF32, as torch's are.
PEAKS = {
    "v100-32g": Peak("V100", 900e9, 15.7e12, 125e12),
    "rtx3090-24g": Peak("RTX 3090", 936e9, 35.6e12, 71e12),
    "rtx4090-24g": Peak("RTX 4090", 1008e9, 82.6e12, 165.2e12),
    "a100-80g": Peak("A100", 2039e9, 19.5e12, 312e12),
    "h100-80g": Peak("H100", 3350e9, 67e12, 989e12),
    "t4-16g": Peak("T4", 320e9, 8.1e12, 65e12),
    "p100-16g": Peak("P100", 732e9, 10.6e12, 21.2e12),
}

# Images a second of a frozen network in mixed precision: timm, results/benchmark-infer-amp-nchw-*.csv, of which
# pt240-cu124-rtx3090 and pt291-cu128-4090. By the name of open_clip's or timm's architecture, and the images' side.
_TIMM = {
    ("vit_huge_patch14_clip_224", 224): {"rtx3090-24g": 183.9, "rtx4090-24g": 401.9},
    ("vit_large_patch14_clip_224", 224): {"rtx3090-24g": 359.7, "rtx4090-24g": 785.0},
    ("vit_large_patch14_clip_336", 336): {"rtx3090-24g": 157.7, "rtx4090-24g": 343.6},
    ("vit_so400m_patch14_siglip_384", 384): {"rtx3090-24g": 80.8},
}
_AS_TIMM = {
    "open_clip/ViT-H-14": "vit_huge_patch14_clip_224",
    "open_clip/ViT-L-14": "vit_large_patch14_clip_224",
    "open_clip/ViT-L-14-336": "vit_large_patch14_clip_336",
    "open_clip/ViT-SO400M-14-SigLIP-384": "vit_so400m_patch14_siglip_384",
}


def published(profile: Profile, backbone: str, image_size: int, dtype: str) -> tuple[float, str] | None:
    """Images a second of a frozen backbone on the profile's GPU, and where that is from; None: nobody has said."""
    if dtype == "float32":
        return None
    family, _, name = backbone.partition("/")
    if family == "timm":
        architecture = name.partition(".")[0]
    else:
        architecture = _AS_TIMM.get(f"{family}/{name.partition('/')[0]}", "")
    rate = _TIMM.get((architecture, image_size), {}).get(profile.name)
    if rate is None:
        return None
    return rate, f"{rate:.0f} images/s, published (timm, {PEAKS[profile.name].gpu}, mixed precision)"


def speed_of(profile: Profile, dtype: str) -> Speed:
    """That of the profile's device: of the CPU as a probe finds it, of a GPU its maker's peak."""
    if profile.device == "cpu":
        operations, bandwidth = probe(dtype)
        return Speed(operations, bandwidth, f"at {operations / 1e9:.0f} GFLOP/s in {dtype}, measured here")
    peak = PEAKS.get(profile.name)
    if peak is None:
        return Speed(None, 1.0, f"not known: nothing is published of the profile {profile.name}")
    operations = peak.float32 if dtype == "float32" else peak.half
    limits = f"{operations / 1e12:.1f} TFLOP/s in {dtype} and {peak.bandwidth / 1e9:,.0f} GB/s"
    return Speed(operations, peak.bandwidth, f"at the maker's peak, {limits}")


@cache
def probe(dtype: str) -> tuple[float, float]:
    """Operations and bytes a second of this machine's CPU: the best of some products of 1024 x 1024, and of copies."""
    left = torch.ones(1024, 1024, dtype=getattr(torch, dtype))
    right, out = torch.ones_like(left), torch.empty_like(left)
    product = _best(lambda: torch.mm(left, right, out=out))
    large = torch.ones(8 << 20)
    target = torch.empty_like(large)
    copy = _best(lambda: target.copy_(large))
    return 2 * 1024**3 / product, 2 * 4 * len(large) / copy


def decoding(
    refs: Sequence[ImageRef], see: Callable[[NDArray[np.uint8]], object], *, method: Method, target: int
) -> float | None:
    """Seconds of a core for an image that is read, decoded and seen: the mean of some of `refs`, evenly over all; None
    where they can't be read.

    The first, which also loads what decodes, doesn't count. It ends after half of the time for a probe.
    """
    few = [refs[number] for number in np.unique(np.linspace(0, len(refs) - 1, min(64, len(refs))).astype(int))]
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    images = read_images(
        few, workers=0, transform=see, method=method, target=target, on_bad=lambda position, error: None
    )
    try:
        with closing(images):
            begin = time.perf_counter()
            for _ in images:
                end = time.perf_counter()
                times.append(end - begin)
                if sum(times[1:]) > PROBE_SECONDS / 2:
                    break
                begin = time.perf_counter()
    except GuieError:
        return None
    finally:
        torch.set_num_threads(threads)
    counted = times[1:] or times
    return sum(counted) / len(counted) if counted else None


def with_decoding(
    seconds: float, basis: str, images: int, decoding: float | None, profile: Profile, cores: int
) -> tuple[float, str]:
    """Seconds of a network that is given so many images by the profile's workers, and what that rests on.

    Args:
        seconds, basis: of the network alone.
        decoding: seconds of a core for an image; None: not known.
        cores: of the machine.
    """
    if decoding is None:
        return seconds, f"{basis}; without decoding, which is measured on the images"
    basis += f"; decoding {1e3 * decoding:.1f} ms of a core an image, measured here"
    if profile.device == "cpu":  # both take the same cores
        return seconds + images * decoding / cores, basis
    read = images * decoding / max(1, min(profile.workers, cores))
    return (max(seconds, read) if profile.workers else seconds + read), basis


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest run within half of the time for a probe."""
    work()
    times: list[float] = []
    until = time.perf_counter() + PROBE_SECONDS / 2
    while not times or time.perf_counter() < until:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
