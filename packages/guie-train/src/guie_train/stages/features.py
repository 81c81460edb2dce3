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
from guie_core.wording import plural
from guie_datasets import BadImage, Manifest, read_images
from guie_datasets.images.decoding import Method
from guie_datasets.images.tensorflow import import_tensorflow
from guie_models.backbones import Backbone
from guie_models.backbones.weights import fingerprint
from guie_train.device import autocast, device_of
from guie_train.feature_store import SHARD, Bad, FeatureStore
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
        decode: how images are decoded, see `guie_datasets.decode`; "scaled" to suit the view's size.
        compute: dtype of the backbone's arithmetic, the profile's.
        dtype: of the features on disk. The rows of a recipe's backbone have values of about 1, which float16 holds to
            three digits; training and evaluation compute in float32.
        max_bad: the share of the images that may be left out because they cannot be decoded. They are listed in the
            store's `bad.csv`, and no later stage sees them.
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
    decode: Method = "full"
    dtype: Literal["float16", "float32"] = "float16"
    compute: str = "float32"
    max_bad: float = field(default=0.001, metadata=NOT_IN_KEY)

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

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if TensorFlow is to decode and isn't there."""
        if self.decode == "tensorflow":
            import_tensorflow()

    def complete(self, folder: Path, workspace: Workspace) -> bool:
        """Whether the store has every image, or all but those that may be left out."""
        if not (folder / "store.json").exists():
            return False
        manifest, store = workspace.get(self.manifest), FeatureStore(folder)
        hashes = manifest.column("hash")[self.rows(manifest)]
        return not len(store.missing(hashes)) and not self._too_many(store.is_bad(hashes).sum(), len(hashes))

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
                "decode": self.decode,
                "dtype": self.dtype,
                "compute": self.compute,
                "image_size": backbone.image_size,
                "dimension": backbone.features,
            },
        )
        wanted = manifest.column("hash")[rows]
        known_bad = int(store.is_bad(wanted).sum())
        if self._too_many(known_bad, len(wanted)):
            raise self._refusal(store, wanted)
        missing = store.missing(wanted)
        rows, hashes = rows[missing], wanted[missing]
        refs = [manifest.images()[row] for row in rows]

        def seen(image: NDArray[np.uint8]) -> Tensor:
            # a random crop follows from the image's content, so that neither order nor interruptions matter
            out: Tensor = view(torch.from_numpy(image), self.seed)
            return out

        batch_size = workspace.profile.micro_batch("features", 64)
        bad: list[Bad] = []

        def on_bad(index: int, error: BadImage) -> None:
            bad.append(Bad(hashes[index].decode(), error.place, error.reason))

        images = read_images(
            refs,
            workers=workspace.profile.workers,
            transform=seen,
            method=self.decode,
            target=getattr(view, "size", backbone.image_size),
            on_bad=on_bad,
        )
        with bar(len(refs), self.name, unit="image") as progress, torch.inference_mode(), closing(images):
            pending: list[NDArray[Any]] = []
            good: list[int] = []  # positions of the pending rows
            written, due = 0, time.monotonic() + FLUSH_SECONDS
            for start in range(0, len(refs), batch_size):
                with progress.waiting():
                    batch = list(islice(images, batch_size))
                there = [position for position, image in enumerate(batch, start) if image is not None]
                if there:
                    seen_images = [image for image in batch if image is not None]
                    features = _embed(backbone, seen_images, batch_size, device, self.compute).astype(self.dtype)
                    if not np.isfinite(features).all():
                        worst = refs[there[int(np.flatnonzero(~np.isfinite(features).all(1))[0])]]
                        raise GuieError(
                            f"{self.name}: the features of {worst} are not finite, computed in {self.compute} and kept "
                            f"in {self.dtype}; set recipe.features to dict(compute='float32', dtype='float32')"
                        )
                    pending.append(features)
                    good += there
                done = start + len(batch)
                too_many = self._too_many(known_bad + len(bad), len(wanted))
                progress.advance(len(batch))
                # whole batches only: the ones that follow are then the same whether or not this run goes on
                full = done == len(refs) or done - written >= SHARD or time.monotonic() > due
                if workspace.stop or too_many or full:
                    if pending:
                        store.append(hashes[good], np.concatenate(pending))
                    store.add_bad(bad)
                    known_bad += len(bad)
                    bad.clear()
                    pending, good, written, due = [], [], done, time.monotonic() + FLUSH_SECONDS
                if too_many:
                    raise self._refusal(store, wanted)
                if workspace.stop and done < len(refs):
                    raise Interrupted(f"{self.name}: {done:,} of {len(refs):,} images are done and kept")

    def _too_many(self, bad: int, of: int) -> bool:
        """Whether so many images of the stage cannot be left out."""
        return bad > self.max_bad * of or 0 < bad == of

    def _refusal(self, store: FeatureStore, hashes: NDArray[np.bytes_]) -> GuieError:
        share = store.is_bad(hashes).mean()
        here = set(hashes.tolist())
        bad = [image for image in store.bad if image.hash.encode() in here]
        first = "\n".join(f"  {image.place}: {image.reason}" for image in bad[:10])
        more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        return GuieError(
            f"{self.name}: {len(bad):,} of {plural(len(hashes), 'image')} cannot be decoded ({share:.2%}), more than "
            f"max_bad = {self.max_bad:.2%} allows:\n{first}{more}\nThe list is in {store.folder / 'bad.csv'}. Mend or "
            "remove them and run again, or raise recipe.max_bad; the features so far are kept"
        )

    def load(self, folder: Path) -> FeatureStore:
        """The store, which may hold more images than this stage asked for."""
        return FeatureStore(folder)

    def summary(self, output: FeatureStore) -> str:
        """What is in the store, which other stages may share."""
        bad = f"; {len(output.bad):,} that cannot be decoded are left out: bad.csv" if output.bad else ""
        return f"{output.dimension} features an image; the store has {plural(len(output), 'image')}{bad}"


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
