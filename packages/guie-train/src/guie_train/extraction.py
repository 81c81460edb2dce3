"""From images on disk to features of a frozen backbone, as fast as the hardware goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_core.progress import bar, write
from guie_datasets import BadImage, ImageRef, read_images
from guie_datasets.images.decoding import Method
from guie_models.embedder import ReducedPrecision
from guie_train.allocator import caching_allocator
from guie_train.device import OutOfMemory, out_of_memory


@dataclass(frozen=True)
class Batch:
    """What came of images that lie side by side.

    positions: [n] of those that could be decoded. features: [n, V, D], theirs. images: how many they are with those
    that could not be decoded.
    """

    positions: list[int]
    features: NDArray[np.float32]
    images: int


class Extractor:
    """A frozen backbone on its device: images [n, 3, h, w] -> features [n, D], float32 on that device.

    It computes batches of one size, the last one padded: shapes that stay the same are what devices and their libraries
    are fastest with, and a row never depends on how many there are. Where the memory is too small for a batch, it goes
    on with halves, and says so.

    Args:
        backbone: it is moved, and cast if `compute` isn't float32: hand over a copy of a network that is still needed.
        device: where it computes.
        compute: dtype of its weights and arithmetic. Weights are cast once, as `Embedder.reduced` does it: autocast
            holds both copies and casts them for every batch. The features' cosine to those of float32 is above .999
            either way (`benchmarks/extraction.py`).
        batch_size: images at once.
        name: what messages call the work.
    """

    def __init__(
        self, backbone: nn.Module, device: torch.device, *, compute: str = "float32", batch_size: int = 64, name: str
    ) -> None:
        # as convolutions are fastest; other networks don't care
        network = backbone.to(device).to(memory_format=torch.channels_last)
        self.network = network if compute == "float32" else ReducedPrecision(network, getattr(torch, compute))
        self.device = device
        self.batch_size = batch_size
        self.name = name

    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, D] of images [n, 3, h, w] on the CPU. A GPU still computes them when this returns.

        Raises:
            OutOfMemory: the memory is too small for a single image.
        """
        while True:
            try:
                with torch.inference_mode():
                    parts = [self._batch(part) for part in images.split(self.batch_size)]
                    return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:  # what torch raises for want of memory is a kind of it
                if not out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            self._halve(reason)  # here, where the exception holds no tensors any more

    def _batch(self, images: Tensor) -> Tensor:
        count = len(images)
        if count < self.batch_size:
            images = torch.cat([images, images.new_zeros(self.batch_size - count, *images.shape[1:])])
        images = images.contiguous(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        features: Tensor = self.network(images)[:count]
        return features.float()

    def _halve(self, reason: str) -> None:
        if self.batch_size == 1:
            raise OutOfMemory(
                f"{self.name}: the memory is too small for one image at once ({reason}). Choose a profile whose dtype "
                "has 16 bits with recipe.features.compute='profile', a smaller backbone, or smaller images"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        before, self.batch_size = self.batch_size, self.batch_size // 2
        write(
            f"{self.name}: out of memory with {before} images at once; going on with {self.batch_size} "
            f"(profile setting batch.features)"
        )


def extract(
    extractor: Extractor,
    refs: Sequence[ImageRef],
    view: Callable[[Tensor, int], Tensor],
    *,
    target: int,
    seed: int = 0,
    views: int = 1,
    decode: Method = "full",
    workers: int = 0,
    on_bad: Callable[[int, BadImage], object] | None = None,
) -> Generator[Batch, None, None]:
    """Features of images, in their order, with a progress bar that tells how long the model waited for images.

    Threads decode and make views ahead of the model; on a GPU, the copies to and from it overlap with its work. Two
    batches of views are held, and 4 images a worker. What a batch holds follows from `refs` and the extractor's batch
    size alone.

    Args:
        extractor: the model.
        refs: where the images are.
        view: (image uint8 [3, H, W], seed) -> [3, h, w]. What it draws should follow from the image and the seed, so
            that neither order nor interruptions matter.
        target: the side, in pixels, that the view resizes to; for decode="scaled".
        seed: of the view.
        views: V, how often an image is seen: with `seed` first, and with seeds that follow from it.
        decode: how images are decoded, see `guie_datasets.decode`.
        workers: threads.
        on_bad: called with the position and the error for an image that cannot be decoded, which then has no row.

    Raises:
        BadImage: an image cannot be decoded, and there is no `on_bad`.
        GuieError: an image cannot be read; or as the extractor.
    """
    seeds = view_seeds(seed, views)

    def seen(image: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode():
            pixels = torch.from_numpy(image)
            return torch.stack([view(pixels, each) for each in seeds])

    def bad(position: int, error: BadImage) -> None:
        if on_bad is None:
            raise error
        on_bad(position, error)

    size = max(1, extractor.batch_size // views)
    images = read_images(
        refs,
        workers=workers,
        window=size + 4 * workers,  # the next batch is there when the model is done with one
        transform=seen,
        method=decode,
        target=target,
        on_bad=bad,
    )
    ahead = 1 if extractor.device.type == "cuda" else 0  # batches that the model may still be working at
    started: deque[tuple[list[int], Tensor | None, int]] = deque()
    with bar(len(refs), extractor.name) as progress, closing(images), caching_allocator():
        for start in range(0, len(refs), size):
            with progress.waiting():
                batch = list(islice(images, size))
            positions = [position for position, image in enumerate(batch, start) if image is not None]
            pixels = [image for image in batch if image is not None]
            started.append((positions, extractor(torch.cat(pixels)) if pixels else None, len(batch)))
            last = start + len(batch) == len(refs)
            while len(started) > (0 if last else ahead):
                positions, features, count = started.popleft()
                rows = torch.empty(0, 1) if features is None else features.cpu()
                progress.advance(count)
                yield Batch(positions, rows.numpy().reshape(len(positions), views, rows.shape[1]), count)


def view_seeds(seed: int, views: int) -> list[int]:
    """The seeds of an image's views: `seed` itself, and others that follow from it and are far from its neighbours'."""
    more = np.random.SeedSequence(seed).generate_state(max(0, views - 1), np.uint64) >> np.uint64(1)
    return [seed, *more.tolist()]


def features_of(
    extractor: Extractor, refs: Sequence[ImageRef], view: Callable[[Tensor, int], Tensor], **options: Any
) -> Tensor:
    """Features [N, D] of images, in memory; options as those of `extract`. Raises BadImage as well."""
    batches = [torch.from_numpy(batch.features[:, 0]) for batch in extract(extractor, refs, view, **options)]
    return torch.cat(batches)
