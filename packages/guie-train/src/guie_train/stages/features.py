"""The stage that runs the frozen backbone: Features."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from guie_core import Config, GuieError, Interrupted, Slot
from guie_core.progress import bar
from guie_core.registry import build, lookup
from guie_core.signature import signature
from guie_datasets import Manifest, read_images
from guie_models.backbones import Backbone
from guie_models.backbones.weights import fingerprint
from guie_train.device import autocast, device_of
from guie_train.feature_store import SHARD, FeatureStore
from guie_train.stage import NOT_IN_KEY, Stage, Workspace

FLUSH_SECONDS = 30.0  # between two shards on disk; what a kill can cost
Part = Literal["all", "reported", "rest"]
Shape = Literal["any", "square", "other"]


@dataclass(frozen=True, kw_only=True)
class Features(Stage[FeatureStore]):
    """Features of images through one view, in a store that other runs share (5th place, point 3).

    The key says what makes a feature, not which images there are: the manifest may change, or its split, and only
    images that the store lacks are computed.

    Args:
        manifest: of the images.
        part: "all" images, those of the split "reported" on, or the "rest": never a finer choice, so that another
            split of the rest finds all its features here.
        reported: the name of that split.
        shape: only square images, or only others; as switched augmentation needs them.
        backbone: a component of kind "backbones".
        view: a component of kind "views"; size, mean and std are the backbone's unless given.
        seed: of the view's random choices.
        compute: dtype of the backbone's arithmetic, the profile's.
        dtype: of the features on disk. The rows of a recipe's backbone have values of about 1, which float16 holds to
            three digits; training and evaluation compute in float32.
    """

    slug: ClassVar[str] = "features"
    incremental: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)  # which decodes
    manifest: Stage[Manifest] = field(metadata=NOT_IN_KEY)
    part: Part = field(default="all", metadata=NOT_IN_KEY)
    reported: str = field(default="test", metadata=NOT_IN_KEY)
    shape: Shape = field(default="any", metadata=NOT_IN_KEY)
    backbone: Annotated[Config, Slot("backbones")]
    view: Annotated[Config, Slot("views", defaults=("size", "mean", "std"))]
    seed: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    compute: str = "float32"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """With the defaults of backbone and view spelt out, so that two ways to write one view share features."""
        plain = dict(super().arguments)
        for name, kind in (("backbone", "backbones"), ("view", "views")):
            target = lookup(kind, plain[name]["type"]).load()
            plain[name] = signature(target).defaults | plain[name]
        if not getattr(target, "random", False):
            plain["seed"] = 0  # of a view that draws nothing
        return plain

    def fingerprint(self) -> str:
        """What the weights are, as far as it shows without loading them."""
        return fingerprint(self.backbone.get("weights", "hub"))

    def rows(self, manifest: Manifest) -> NDArray[np.int64]:
        """Row numbers of the images whose features this stage provides."""
        chosen = np.ones(len(manifest), bool)
        if self.part != "all":
            chosen &= (manifest.column("split") == self.reported) == (self.part == "reported")
        if self.shape != "any":
            square = manifest.column("width") == manifest.column("height")
            chosen &= square if self.shape == "square" else ~square
        return np.flatnonzero(chosen)

    def complete(self, folder: Path, workspace: Workspace) -> bool:
        """Whether the store has every image."""
        if not (folder / "store.json").exists():
            return False
        manifest = workspace.get(self.manifest)
        return not len(FeatureStore(folder).missing(manifest.column("hash")[self.rows(manifest)]))

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Add the images that the store lacks, batch by batch; an interruption loses no finished batch."""
        manifest = workspace.get(self.manifest)
        rows = self.rows(manifest)
        device = device_of(workspace.profile)
        backbone: Backbone = build("backbones", self.backbone, where="recipe.backbone").to(device)
        view = build("views", self.view, where="view", size=backbone.image_size, mean=backbone.mean, std=backbone.std)
        store = FeatureStore(
            folder,
            {
                "backbone": self.arguments["backbone"],
                "weights": backbone.digest,
                "licence": backbone.licence,
                "view": self.arguments["view"],
                "seed": self.seed,
                "dtype": self.dtype,
                "compute": self.compute,
                "image_size": backbone.image_size,
                "dimension": backbone.features,
            },
        )
        rows = rows[store.missing(manifest.column("hash")[rows])]
        hashes = manifest.column("hash")[rows]
        refs = [manifest.images()[row] for row in rows]

        def seen(image: NDArray[np.uint8]) -> Tensor:
            # a random crop follows from the image's content, so that neither order nor interruptions matter
            out: Tensor = view(torch.from_numpy(image), self.seed)
            return out

        batch_size = workspace.profile.micro_batch("features", 64)
        images = read_images(refs, workers=workspace.profile.workers, transform=seen)
        with bar(len(refs), self.name, unit="image") as progress, torch.inference_mode(), closing(images):
            pending: list[NDArray[Any]] = []
            written, due = 0, time.monotonic() + FLUSH_SECONDS
            for start in range(0, len(refs), batch_size):
                with progress.waiting():
                    batch = list(islice(images, batch_size))
                features = _embed(backbone, batch, batch_size, device, self.compute).astype(self.dtype)
                if not np.isfinite(features).all():
                    bad = refs[start + int(np.flatnonzero(~np.isfinite(features).all(1))[0])]
                    raise GuieError(
                        f"{self.name}: the features of {bad} are not finite, computed in {self.compute} and kept in "
                        f"{self.dtype}; set recipe.features to dict(compute='float32', dtype='float32')"
                    )
                pending.append(features)
                done = start + len(batch)
                progress.advance(len(batch))
                # whole batches only: the ones that follow are then the same whether or not this run goes on
                if workspace.stop or done == len(refs) or done - written >= SHARD or time.monotonic() > due:
                    store.append(hashes[written:done], np.concatenate(pending))
                    pending, written, due = [], done, time.monotonic() + FLUSH_SECONDS
                if workspace.stop and done < len(refs):
                    raise Interrupted(f"{self.name}: {done:,} of {len(refs):,} images are done and kept")

    def load(self, folder: Path) -> FeatureStore:
        """The store, which may hold more images than this stage asked for."""
        return FeatureStore(folder)

    def summary(self, output: FeatureStore) -> str:
        """What is in the store, which other stages may share."""
        return f"{output.dimension} features an image; the store has {len(output):,} images"


def _embed(
    backbone: Backbone, batch: list[Tensor], batch_size: int, device: torch.device, compute: str
) -> NDArray[np.float32]:
    """Features [n, D] of n <= batch_size images; the batch is padded, so that a row never depends on n."""
    images = torch.stack(batch + [torch.zeros_like(batch[0])] * (batch_size - len(batch)))
    images = images.to(device, memory_format=torch.channels_last)
    with autocast(device, compute):
        features: Tensor = backbone(images)[: len(batch)]
    result: NDArray[np.float32] = features.float().cpu().numpy()
    return result
