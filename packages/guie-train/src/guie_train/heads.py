"""Heads with their losses: what is trained on features, what it takes of them, and what is on disk afterwards."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_core import Config, UsageError
from guie_core.registry import build
from guie_datasets import Manifest
from guie_models.backbones import Backbone
from guie_models.views import size_values
from guie_train.feature_store import FeatureStore
from guie_train.fitting import Curve
from guie_train.processes import Processes
from guie_train.stage import damage_told

LOSS_PROVIDES = ("embedding_size", "classes", "class_counts")
"""What a loss is given, as far as it takes it; `class_counts` [C] are the images of each class in training."""

ROWS = 2048  # features that are read at once: of larger pieces, glibc keeps some when they are let go of


def build_loss(config: Config, embedding_size: int, class_counts: NDArray[np.int64], where: str) -> nn.Module:
    """A loss on embeddings [B, E] over classes of so many training images each [C]."""
    loss: nn.Module = build(
        "losses",
        config,
        where=where,
        embedding_size=embedding_size,
        classes=len(class_counts),
        class_counts=class_counts.tolist(),
    )
    return loss


class HeadWithLoss(nn.Module):
    """A head and its loss, which owns the class centres: what is trained, and saved, together."""

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.loss = loss

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of features [B, D] with labels [B]."""
        loss: Tensor = self.loss(self.head(features), labels)
        return loss

    @property
    def starts(self) -> bool:
        """Whether the head can begin with what training features tell."""
        return callable(getattr(self.head, "start", None))

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Begin with what training features [N, D] with labels [N] tell, if the head can, and with class centres that
        suit it, if the loss can. Others stay as they were drawn."""
        if not self.starts:
            return
        head: Any = self.head
        head.start(features, labels)
        if callable(start := getattr(self.loss, "start", None)):
            self.head.eval()
            with torch.no_grad():
                embedding = torch.cat([self.head(part) for part in features.split(ROWS)])
            self.head.train()
            start(embedding, labels)

    def divide(self, processes: Processes) -> HeadWithLoss:
        """Keep the class centres of this process's part of the classes. Returns all as it was, but in processes other
        than the first, which have no use for its numbers, on the meta device.

        Raises:
            UsageError: the loss has no centres that can be divided.
        """
        if not callable(divide := getattr(self.loss, "divide", None)):
            raise UsageError(
                f"recipe.loss: {type(self.loss).__name__} has no class centres that processes could divide among them; "
                'leave profile.divide at "images".'
            )
        whole = deepcopy(self)
        divide(processes)
        return whole if processes.first else whole.to("meta")


@dataclass(frozen=True)
class TrainedHead:
    """A head on disk, and how it came to be."""

    folder: Path
    config: Config
    in_features: int
    epoch: int  # of the chosen checkpoint
    curves: list[Curve]

    def build(self) -> nn.Module:
        """The head with its chosen weights, in evaluation mode."""
        head: nn.Module = build("heads", self.config, in_features=self.in_features)
        head.load_state_dict(self.part("head"))
        return head.eval()

    def part(self, name: str) -> dict[str, Tensor]:
        """The chosen tensors of a part of what was trained, such as "head" or "loss", by their names in it."""
        from safetensors import safe_open

        start = f"{name}."
        path = self.folder / "chosen.safetensors"
        with damage_told(self.folder), safe_open(path, "pt") as file:  # the others may be gigabytes
            names = [name for name in list(file.keys()) if name.startswith(start)]  # it can't be iterated over
            return {name.removeprefix(start): file.get_tensor(name) for name in names}

    def tune(self, backbone: Backbone) -> Backbone:
        """`backbone` as the head was trained with it: as it is."""
        return backbone


def with_sizes(head: nn.Module, features: Tensor, sizes: Tensor) -> Tensor:
    """What `head` takes of features [N, D] and size values [N, 3]: both, if it asks for these (point 3)."""
    return torch.cat([features, sizes], 1) if getattr(head, "size_features", 0) else features


def head_inputs(
    head: nn.Module, store: FeatureStore, manifest: Manifest, rows: NDArray[np.int64], views: int = 1
) -> Tensor:
    """What `head` takes for these rows [N, D (+ 3)]: features, and size values if it asks for them (point 3).

    With several views they come view after view, [V * N, D (+ 3)].
    """
    hashes, sizes = manifest.column("hash")[rows], sizes_of(manifest, rows, store.about["image_size"])
    inputs = torch.empty(views, len(rows), store.dimension + (3 if getattr(head, "size_features", 0) else 0))
    for view in range(views):
        for part in range(0, len(rows), ROWS):  # so that there is one copy of the features, not two
            found = torch.from_numpy(store.read(hashes[part : part + ROWS], view))
            inputs[view, part : part + ROWS] = with_sizes(head, found, sizes[part : part + ROWS])
    return inputs.flatten(0, 1)


def sizes_of(manifest: Manifest, rows: NDArray[np.int64], image_size: int) -> Tensor:
    """Size values [N, 3] of the images in these rows, as a backbone of that side has them."""
    height, width = (torch.from_numpy(manifest.column(name)[rows].astype(np.float32)) for name in ("height", "width"))
    return size_values(height, width, image_size)
