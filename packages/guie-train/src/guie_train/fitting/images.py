"""Images as examples: read, decoded and seen through a view while the network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guie_core import GuieError
from guie_datasets import BadImage, ImageRef, read_images
from guie_datasets.images.decoding import Method
from guie_datasets.images.reading import image_seed
from guie_train.fitting.examples import Examples


class Seen(NamedTuple):
    """Images as a network takes them: pixels [B, 3, h, w], and the size values [B, 3] of the images themselves."""

    pixels: Tensor
    sizes: Tensor


class Images(Examples):
    """Images on disk, which are looked at anew in each epoch. Threads read ahead of the network.

    Args:
        refs: where the N images are.
        labels: theirs, [N] int64, on the CPU.
        sizes: size values [N, 3] of the images, see `guie_models.size_values`; on the CPU.
        view: (image uint8 [3, H, W], seed) -> [3, h, w]. What it draws follows from the image, `seed` and the epoch, so
            that neither order nor interruptions matter.
        device: where the batches are wanted.
        target: the side, in pixels, that the view resizes to; for decode="scaled".
        decode: how images are decoded, see `guie_datasets.decode`.
        workers: threads.
        seed: of the view.
    """

    def __init__(
        self,
        refs: Sequence[ImageRef],
        labels: Tensor,
        sizes: Tensor,
        view: Callable[[Tensor, int], Tensor],
        device: torch.device,
        *,
        target: int,
        decode: Method = "full",
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        self.refs = refs
        self.labels = labels
        self.sizes = sizes
        self.view = view
        self.device = device
        self.target = target
        self.decode: Method = decode
        self.workers = workers
        self.seed = seed

    def __len__(self) -> int:
        return len(self.refs)

    def batches(self, epoch: int, rows: Iterable[Tensor]) -> Iterator[tuple[Seen, Tensor]]:
        """As `Examples.batches`. Raises GuieError for an image that cannot be read or decoded."""
        batches = list(rows)
        seed = image_seed(self.seed, epoch)

        def seen(image: NDArray[np.uint8]) -> Tensor:
            return self.view(torch.from_numpy(image), seed)

        images = read_images(
            [self.refs[row] for row in chain.from_iterable(batch.tolist() for batch in batches)],
            workers=self.workers,
            transform=seen,
            method=self.decode,
            target=self.target,
        )
        with closing(images):
            for batch in batches:
                try:
                    pixels = torch.stack(list(islice(images, len(batch))))
                except BadImage as error:
                    raise GuieError(
                        f"{error}; it could be decoded when features were made of it. Mend it and run again"
                    ) from error
                pixels = pixels.contiguous(memory_format=torch.channels_last)  # as convolutions are fastest
                yield (
                    Seen(self._moved(pixels), self._moved(self.sizes[batch])),
                    self._moved(self.labels[batch]),
                )

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device; a GPU isn't waited for."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor
