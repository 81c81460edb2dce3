"""The stage that runs the frozen backbone: Features."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from guie_core import Config, GuieError, Interrupted, Slot
from guie_core.processors import processors
from guie_core.registry import build, lookup
from guie_core.signature import signature
from guie_core.wording import plural, shown
from guie_datasets import BadImage, ImageRef, Manifest, read_images
from guie_datasets.checks import enough_max_bad
from guie_datasets.images.decoding import Method
from guie_datasets.images.tensorflow import import_tensorflow
from guie_models.backbones import Backbone
from guie_models.backbones.weights import fingerprint
from guie_train.device import device_of
from guie_train.extraction import Batch, Extractor, extract, view_seeds
from guie_train.feature_store import SHARD, Bad, FeatureStore, finite, state_of
from guie_train.heads import TrainedHead
from guie_train.planning.backbones import Frozen, powers_below
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook
from guie_train.planning.forecast import Features as StoredFeatures
from guie_train.planning.known import NotKnown, known
from guie_train.planning.meta import parameters
from guie_train.planning.speeds import decoding, with_decoding
from guie_train.stage import NOT_IN_KEY, Stage, Workspace
from guie_train.stages.selection import pairs_of

FLUSH_SECONDS = 10.0  # between two writes to the disk; what a kill can cost
HASH = 36  # bytes beside an image's features: its hash and a checksum
Shape = Literal["any", "square", "other"]
ViewConfig = Annotated[Config, Slot("views", defaults=("size", "mean", "std"))]


@dataclass(frozen=True, kw_only=True)
class Features(Stage[FeatureStore]):
    """Features of images through one view, in a store that other runs share (5th place, point 3).

    The key says what makes a feature, not which images there are: the manifest may change, or its split, and only
    images that the store lacks are computed.

    Args:
        manifest: of the images.
        splits: names of the splits whose images are looked at; None: of all.
        without: names of splits whose images are not.
        protocols: what asks or may answer by these is looked at as well, of whichever split; by their keys in the
            experiment, for messages.
        shape: only square images, or only others; as switched augmentation needs them.
        backbone: a component of kind "backbones".
        tuned: fine-tuning of the backbone; None: as it was pretrained.
        view: a component of kind "views"; size, mean and std are the backbone's unless given.
        seed: of the view's random choices.
        views: how often each image is seen by a view that draws at random; training then draws one of them an epoch.
        decode: how images are decoded, see `guie_datasets.decode`; "scaled" to suit the view's size.
        compute: dtype of the backbone's arithmetic, the profile's.
        dtype: of the features on disk. The rows of a recipe's backbone have values of about 1, which float16 holds to
            three digits; training and evaluation compute in float32.
        max_bad: so many may be left out because they cannot be decoded, as a share of the manifest's images, together
            with those that the stages `beside` leave out; and as a share of this stage's own, rounded up. They are
            listed in the store's `bad.csv`, and no later stage sees them.
        beside: stages that look at images of the same manifest before this one, which doesn't need their outputs. What
            they leave out is accepted: it isn't counted as this stage's.
    """

    slug: ClassVar[str] = "features"
    incremental: ClassVar[bool] = True
    together: ClassVar[bool] = True
    long: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)  # which decodes
    manifest: Stage[Manifest] = field(metadata=NOT_IN_KEY)
    splits: tuple[str, ...] | None = field(default=None, metadata=NOT_IN_KEY)
    without: tuple[str, ...] = field(default=(), metadata=NOT_IN_KEY)
    protocols: Mapping[str, Annotated[Config, Slot("protocols")]] = field(default_factory=dict, metadata=NOT_IN_KEY)
    shape: Shape = field(default="any", metadata=NOT_IN_KEY)
    backbone: Annotated[Config, Slot("backbones")]
    view: ViewConfig
    tuned: Stage[TrainedHead] | None = None
    seed: int = 0
    views: int = 1
    decode: Method = "full"
    dtype: Literal["float16", "float32"] = "float16"
    compute: str = "float32"
    max_bad: float = field(default=0.001, metadata=NOT_IN_KEY)
    beside: tuple[Features, ...] = field(default=(), metadata=NOT_IN_KEY)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """With the defaults of backbone and view spelt out, so that two ways to write one view share features."""
        plain = dict(super().arguments)
        targets = {name: lookup(f"{name}s", plain[name]["type"]).load() for name in ("backbone", "view")}
        for name, target in targets.items():
            plain[name] = signature(target).defaults | plain[name]
        if self.tuned is None:
            del plain["tuned"]
        if not getattr(targets["view"], "random", False):
            plain["seed"] = 0  # of a view that draws nothing
        plain["views"] = self._views
        return plain

    @cached_property
    def _views(self) -> int:
        """How often each image is seen: once by a view that draws nothing."""
        return self.views if getattr(lookup("views", self.view["type"]).load(), "random", False) else 1

    def fingerprint(self) -> str:
        """What the weights are, as far as it shows without loading them."""
        return fingerprint(self.backbone.get("weights", "hub"))

    def inputs(self, keyed: bool = False) -> list[Stage[Any]]:
        """All stages in the fields but those `beside`."""
        return [source for source in super().inputs(keyed) if source not in self.beside]

    def wants(self, split: str) -> bool:
        """Whether all images of this split are looked at."""
        return (self.splits is None or split in self.splits) and split not in self.without

    def rows(self, manifest: Manifest) -> NDArray[np.int64]:
        """Row numbers of the images whose features this stage provides."""
        names, split = np.unique(manifest.column("split"), return_inverse=True)
        chosen = np.array([self.wants(str(name)) for name in names], bool)[split]
        for where, protocol in self.protocols.items():
            pairs = pairs_of(protocol, where, manifest)
            chosen[pairs.queries] = chosen[pairs.index] = True
        if self.shape != "any":
            square = manifest.column("width") == manifest.column("height")
            chosen &= square if self.shape == "square" else ~square
        return np.flatnonzero(chosen)

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if TensorFlow is to decode and isn't there."""
        if self.decode == "tensorflow":
            import_tensorflow()

    def complete(self, folder: Path, workspace: Workspace) -> bool:
        """Whether the stage was done, and the store has every image, or all but those that may be left out."""
        return super().complete(folder, workspace) and self.has_all(folder, workspace)

    def has_all(self, folder: Path, workspace: Workspace) -> bool:
        """Whether the store has every image, whoever has added them."""
        if not (folder / "store.json").exists():
            return False
        images, store = self._images(workspace), FeatureStore(folder)
        return not len(store.missing(images.hashes, images.path)) and not self._limit(workspace).passed(store)

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Add the images that the store lacks; each process of the run a part of them, and none goes on where one was
        asked to stop."""
        processes, stopped = workspace.processes, None
        try:
            self.add(folder, workspace, processes.rank, processes.count)
        except Interrupted as error:
            stopped = error
        if processes.any(stopped is not None):
            raise stopped or Interrupted(f"{self.name}: the images of this process are done and kept")
        if processes.first and folder != workspace.folder(self):
            self._take_over(folder, workspace)
        self._check_bad(FeatureStore(folder), workspace)  # each has seen its own

    def _take_over(self, folder: Path, workspace: Workspace) -> None:
        """What is made again takes the place of a store that may hold images of other experiments, which stay. Those
        of this one don't: stages that share the store compute theirs in their turn."""
        try:
            theirs = FeatureStore(workspace.folder(self))
        except GuieError:  # there is none, or nothing of it can be read
            return
        store = FeatureStore(folder)
        if theirs.about == store.about:
            store.take_over(theirs, but=self._hashes(workspace))

    def _hashes(self, workspace: Workspace) -> NDArray[np.bytes_]:
        """The hashes, each once, of all images that stages of this experiment have in the store."""
        sharing = [other for other in workspace.stages if isinstance(other, Features) and other.key == self.key]
        hashes = [
            each._images(workspace).hashes
            for each in (self, *sharing)
            if known(partial(workspace.complete, each.manifest))  # else its images aren't in the store
        ]
        return np.unique(np.concatenate([np.empty(0, "S32"), *hashes]))

    def open(self, folder: Path, backbone: Backbone) -> FeatureStore:
        """The store in `folder` for what this stage computes with `backbone`, made if it isn't there."""
        about = {
            "backbone": self.arguments["backbone"],
            "weights": backbone.digest,
            "licence": backbone.licence,
            "view": self.arguments["view"],
            "seed": self.arguments["seed"],
            "decode": self.decode,
            "dtype": self.dtype,
            "compute": self.compute,
            "image_size": backbone.image_size,
            "dimension": backbone.features,
        }
        return FeatureStore(folder, about | ({"views": self._views} if self._views > 1 else {}))

    def network(self, workspace: Workspace) -> Backbone:
        """The backbone, tuned if it is to be."""
        backbone: Backbone = build("backbones", self.backbone, where="recipe.backbone")
        return backbone if self.tuned is None else workspace.get(self.tuned).tune(backbone)

    def seen_by(self, backbone: Backbone) -> Any:
        """The view of this stage, as it is for `backbone`."""
        return build("views", self.view, where="view", size=backbone.image_size, mean=backbone.mean, std=backbone.std)

    def add(self, folder: Path, workspace: Workspace, share: int = 0, shares: int = 1) -> None:
        """Add the images that the store lacks, batch by batch; an interruption loses no finished batch.

        Of `shares` processes that do this at once, each with a `share` of its own, from 0, each adds a part of the
        images. The parts don't depend on what the store has already, and their ends are ends of batches: the features
        are those of one process, bit for bit.

        Raises:
            Interrupted: the user asked to stop; what is done is kept.
            GuieError: too many images cannot be decoded, or features that are not finite.
        """
        images, limit = self._images(workspace), self._limit(workspace)
        batch_size = workspace.profile.micro_batch("features", 64)
        ours = images.select(_share(images.hashes, batch_size, share, shares))
        if (folder / "store.json").exists():
            store = FeatureStore(folder)  # before the backbone is built, which takes its time
            self._try_again(store, ours, workspace)
            self._check_bad(store, workspace)
            if not len(store.missing(ours.hashes, ours.path)):
                return
        backbone = self.network(workspace)
        store = self.open(folder, backbone)
        ours = ours.select(store.missing(ours.hashes, ours.path))
        refs, hashes = ours.refs, ours.hashes
        gathered, left_out = _Gathered(store), limit.count(store)
        accepted = frozenset(limit.beside.tolist())

        def on_bad(position: int, error: BadImage) -> None:
            nonlocal left_out
            state = state_of(refs[position].path)
            gathered.bad.append(Bad(hashes[position].decode(), error.place, error.reason, state))
            left_out += int(ours.rows[position]) not in accepted

        view = self.seen_by(backbone)
        target = getattr(view, "size", backbone.image_size)
        device = device_of(workspace.profile)
        part = f"{self.name} {share + 1}/{shares}" if shares > 1 else self.name
        batches = extract(
            Extractor(backbone, device, compute=self.compute, batch_size=batch_size, name=part),
            refs,
            view,
            target=target,
            seed=self.seed,
            views=store.views,
            decode=self.decode,
            workers=workspace.profile.workers,
            on_bad=on_bad,
        )
        with closing(batches):
            done = 0
            for batch in batches:
                done += batch.images
                self._check_finite(batch, refs)
                gathered.add(hashes[batch.positions], batch.features)
                too_many = limit.passed(left_out)
                # whole batches only: the ones that follow are then the same whether or not this run goes on
                if workspace.stop or too_many or done == len(refs) or gathered.due:
                    gathered.write()
                if too_many:
                    raise self._refusal(store, workspace)
                if workspace.stop and done < len(refs):
                    raise Interrupted(f"{self.name}: {done:,} of {len(refs):,} images are done and kept")

    def _try_again(self, store: FeatureStore, images: _Images, workspace: Workspace) -> None:
        """Decode the images that are listed as bad and whose files have changed. Where that isn't because they were
        mended, as in a copy of the data, they are listed as they are now."""
        missing = images.select(store.missing(images.hashes, images.path))
        changed = missing.select(np.flatnonzero(store.is_bad(missing.hashes)))
        refs, bad = changed.refs, []
        states = [state_of(ref.path) for ref in refs]

        def on_bad(position: int, error: BadImage) -> None:
            bad.append(Bad(changed.hashes[position].decode(), error.place, error.reason, states[position]))

        target = self.view.get("size", store.about.get("image_size"))
        for _ in read_images(refs, workers=workspace.profile.workers, method=self.decode, target=target, on_bad=on_bad):
            pass
        store.add_bad(bad)

    def _check_finite(self, batch: Batch, refs: Sequence[ImageRef]) -> None:
        fine = finite(batch.features, self.dtype)
        if not fine.all():
            raise GuieError(
                f"{self.name}: the features of {refs[batch.positions[int(np.argmin(fine))]]} are not finite, computed "
                f"in {self.compute} and kept in {self.dtype}; set recipe.features to dict(compute='float32', "
                "dtype='float32')"
            )

    def _images(self, workspace: Workspace) -> _Images:
        """Those whose features this stage provides."""
        manifest = workspace.get(self.manifest)
        return _Images(manifest, self.rows(manifest))

    def _beside(self, workspace: Workspace) -> list[tuple[FeatureStore, _Images]]:
        """The stores of the stages beside this one, so far as they are there, and their images."""
        folders = [(workspace.folder(other), other._images(workspace)) for other in self.beside]
        return [(FeatureStore(folder), images) for folder, images in folders if (folder / "store.json").exists()]

    def _limit(self, workspace: Workspace) -> _Limit:
        images = self._images(workspace)
        beside = [theirs.bad(store) for store, theirs in self._beside(workspace)]
        return _Limit(self.max_bad, images, np.unique(np.concatenate([np.empty(0, np.int64), *beside])))

    def _check_bad(self, store: FeatureStore, workspace: Workspace) -> None:
        if self._limit(workspace).passed(store):
            raise self._refusal(store, workspace)

    def _refusal(self, store: FeatureStore, workspace: Workspace) -> GuieError:
        limit = self._limit(workspace)
        stores = [(store, limit.own), *(each for each in self._beside(workspace) if len(each[1].bad(each[0])))]
        bad = {image.hash: image for store, theirs in stores for image in theirs.listed(store)}.values()
        first = "\n".join(f"  {image.place}: {image.reason}" for image in islice(bad, 10))
        more = f"\n  and {len(bad) - 10:,} more" if len(bad) > 10 else ""
        lists = " and ".join(dict.fromkeys(shown(store.folder / "bad.csv") for store, _ in stores))
        count = limit.count(store)
        why, enough = limit.why(count)
        raising = f"remove them and run again, or raise recipe.max_bad to {enough:g}"
        remedy = raising if enough else "replace them and run again"
        return GuieError(
            f"{self.name}: {count:,} of {plural(len(limit.own.rows), 'image')} cannot be decoded, {why}:\n{first}{more}"
            f"\nThe list is in {lists}. Mend or {remedy}; the features so far are kept"
        )

    def forecast(self, outlook: Outlook) -> Forecast:
        """The backbone on one batch, and as many images as are expected."""
        if outlook.ready(self):  # nobody asks what it would take, and the backbone need not be built
            store = outlook.workspace.get(self)
            return Forecast(gives=StoredFeatures(store.dimension, store.views))
        before = self._before(outlook)
        wanted, todo, exact = known(lambda: self._expected(outlook, before)) or (None, None, False)
        if sharing := self._sharing(before) or (before if todo == 0 else []):
            does = f"the same features as {' and '.join(repr(other.name) for other in sharing)}"
            return Forecast(does=does, disk=0, basis="nothing", gives=outlook.forecast(sharing[0]).gives)
        frozen = Frozen.of(self.backbone, outlook)
        backbone, batch = frozen.backbone, outlook.profile.micro_batch("features", 64)
        dimension = backbone.features
        image = tuple(self.seen_by(backbone)(torch.zeros(3, 8, 8, dtype=torch.uint8), self.seed).shape)
        views = self._views
        traced = frozen.traced(batch, self.compute, image)
        seconds, at_least, basis = frozen.time((todo or 0) * views, batch, self.compute, image)
        if seconds is not None and todo:
            seconds, basis = with_decoding(
                seconds, basis, todo, self._decoding(outlook, backbone), outlook.profile, processors()
            )
        count = "N" if wanted is None else f"{'' if exact else 'about '}{wanted:,}"
        seen = f", {views} views" if views > 1 else ""
        done = (
            f"; {wanted - todo:,} of them are there" if exact and wanted and todo is not None and todo < wanted else ""
        )
        on_gpu = outlook.profile.device == "cuda"
        # views beside the batch that the network has: those of it one by one, together (on a GPU, in pinned memory
        # too), and what is read ahead
        held = (3 + on_gpu) * batch + 4 * outlook.profile.workers * views
        weights = sum(value.numel() * value.element_size() for value in backbone.state_dict().values())
        return Forecast(
            does=f"[{count}, {', '.join(map(str, image))}]{seen} -> [{dimension:,}] each, {self.dtype}; "
            f"{backbone.name} on {batch} at once, in {self.compute}{done}",
            parameters=parameters(backbone)[0],
            trained=0,
            disk=(
                None
                if todo is None
                else (todo + self._copied(outlook)) * (views * dimension * np.dtype(self.dtype).itemsize + HASH)
            ),
            device=traced.peak,
            host=LIBRARIES + (weights if on_gpu else 0) + held * 4 * math.prod(image),
            seconds=None if wanted is None else seconds,
            at_least=at_least,
            basis=basis if wanted is not None else f"how many images is known when {self.manifest.name!r} is done",
            gives=StoredFeatures(dimension, views),
            missing=list(frozen.missing()),
            lighter=lambda memory: self._lighter(frozen, batch, image, memory),
        )

    def _decoding(self, outlook: Outlook, backbone: Backbone) -> float | None:
        """Seconds of a core for an image until the backbone takes it; None where the images aren't there yet."""
        manifest = outlook.manifest(self.manifest)
        if manifest is None:
            return None
        images, view = manifest.select(self.rows(manifest)).images(), self.seen_by(backbone)
        seeds = view_seeds(self.seed, self._views)

        def see(image: NDArray[np.uint8]) -> list[Any]:
            return [view(torch.from_numpy(image), seed) for seed in seeds]

        target = getattr(view, "size", backbone.image_size)
        return decoding(images, see, method=self.decode, target=target)

    def _before(self, outlook: Outlook) -> list[Features]:
        """The stages before this one that add to the same store, of the same manifest's images."""
        if (key := known(lambda: self.key)) is None:
            return []
        all_of_them: list[Features] = outlook.once((self.slug, key), list)
        before = [other for other in all_of_them if other.manifest == self.manifest]
        all_of_them.append(self)
        return before

    def _sharing(self, before: list[Features]) -> list[Features]:
        """The first that computes all that this asks for, whatever the images; none if there is no such."""
        return list(islice((each for each in before if each._covers(self)), 1))

    def _covers(self, other: Features) -> bool:
        """Whether this looks at all images that `other` does, whatever splits there are."""
        if self.shape not in ("any", other.shape):
            return False
        everything = self.splits is None and not self.without
        if not everything and any(each not in self.protocols.values() for each in other.protocols.values()):
            return False
        if other.splits is not None:
            return all(self.wants(split) for split in other.splits if other.wants(split))
        return self.splits is None and set(self.without) <= set(other.without)

    def _expected(self, outlook: Outlook, before: list[Features]) -> tuple[int, int, bool]:
        """How many images there will be features of, how many of them are left to compute, and whether it's counted."""
        manifest = outlook.manifest(self.manifest)
        if manifest is not None:
            hashes = np.unique(manifest.column("hash")[self.rows(manifest)])
            folder = outlook.workspace.folder(self)
            there = (folder / "store.json").exists()
            missing = hashes[FeatureStore(folder).missing(hashes)] if there else hashes
            missing = hashes if outlook.again(self) else missing
            for other in before:
                missing = np.setdiff1d(missing, manifest.column("hash")[other.rows(manifest)])
            return len(hashes), len(missing), True
        images = outlook.images(self.manifest)
        if self.shape == "square":
            raise NotKnown("how many images are square is not known")
        counts = {name: extent.images for name, extent in images.splits.items()}
        counts[""] = images.all.images - sum(counts.values())  # before there are splits
        wanted = {name: count for name, count in counts.items() if self.wants(name)}
        whole = [other for other in before if other.shape == "any"]
        todo = sum(count for name, count in wanted.items() if not any(other.wants(name) for other in whole))
        return sum(wanted.values()), todo, False

    def _copied(self, outlook: Outlook) -> int:
        """How many images of other experiments are taken over where the store is made again, by the first stage."""
        if not outlook.again(self):
            return 0
        folder = outlook.workspace.folder(self)
        if not (folder / "store.json").exists():
            return 0
        if outlook.once((self.slug, self.key), list)[0] is not self:
            return 0
        store, ours = FeatureStore(folder), self._hashes(outlook.workspace)
        return len(store) - int((~store.is_bad(ours)).sum()) + len(store.missing(ours))

    def _lighter(self, frozen: Frozen, batch: int, image: tuple[int, ...], memory: float) -> Iterator[str]:
        profile = frozen.outlook.profile
        if self.compute == "float32" != profile.dtype and frozen.traced(batch, profile.dtype, image).peak <= memory:
            yield "--set recipe.features.compute=profile"
        for count in powers_below(batch):
            if frozen.traced(count, self.compute, image).peak <= memory:
                yield f"--set profile.batch.features={count}"
                return

    def load(self, folder: Path) -> FeatureStore:
        """The store, which may hold more images than this stage asked for."""
        return FeatureStore(folder)

    def summary(self, output: FeatureStore) -> str:
        """What is in the store, which other stages may share."""
        bad = f"; {len(output.bad):,} that cannot be decoded are left out: bad.csv" if output.bad else ""
        views = f" of {output.views} views" if output.views > 1 else ""
        return f"{output.dimension} features{views} an image; the store has {plural(len(output), 'image')}{bad}"


@dataclass(frozen=True, eq=False)
class _Images:
    """Rows [n] of a manifest."""

    manifest: Manifest
    rows: NDArray[np.int64]

    @cached_property
    def hashes(self) -> NDArray[np.bytes_]:
        """Of their contents [n]."""
        hashes: NDArray[np.bytes_] = self.manifest.column("hash")[self.rows]
        return hashes

    @property
    def refs(self) -> list[ImageRef]:
        """Where they are."""
        images = self.manifest.images()
        return [images[row] for row in self.rows]

    def path(self, position: int) -> str:
        """The file of one of them."""
        return self.manifest.images()[int(self.rows[position])].path

    def select(self, positions: NDArray[np.int64]) -> _Images:
        """Those at these positions."""
        return _Images(self.manifest, self.rows[positions])

    def bad(self, store: FeatureStore) -> NDArray[np.int64]:
        """The rows of those that are listed as bad in a store, and whose files are as they were then."""
        listed = self.select(np.flatnonzero(store.is_bad(self.hashes)))
        mended = listed.hashes[store.missing(listed.hashes, listed.path)]
        return listed.rows[~np.isin(listed.hashes, mended)]

    def listed(self, store: FeatureStore) -> list[Bad]:
        """Those that are listed as bad in a store."""
        here = set(self.hashes.tolist())
        return [image for image in store.bad if image.hash.encode() in here]


@dataclass(frozen=True, eq=False)
class _Limit:
    """How many of a stage's `images` may be left out as bad, where the rows `beside` of their manifest are already."""

    max_bad: float
    images: _Images
    beside: NDArray[np.int64]

    @cached_property
    def own(self) -> _Images:
        """The images that nobody has left out before."""
        return self.images.select(np.flatnonzero(~np.isin(self.images.rows, self.beside)))

    def count(self, store: FeatureStore) -> int:
        """How many of them are bad in a store."""
        return len(self.own.bad(store))

    def passed(self, bad: int | FeatureStore) -> bool:
        """Whether so many of them, or those in a store, cannot be left out."""
        bad = bad if isinstance(bad, int) else self.count(bad)
        own, whole = len(self.own.rows), len(self.images.manifest)
        too_many = bad + len(self.beside) > self.max_bad * whole
        return bad > 0 and (too_many or bad > math.ceil(self.max_bad * own) or bad == own)

    def why(self, bad: int) -> tuple[str, float]:
        """Why so many cannot be left out, in words, and the `max_bad` that allows them; 0: none does."""
        own, all_of_them = len(self.own.rows), len(self.images.manifest)
        if bad == own:
            return "and there are no others", 0
        whole = bad + len(self.beside)
        enough = enough_max_bad(whole, all_of_them)
        if bad > math.ceil(enough * own):
            enough = enough_max_bad(bad, own)
        allows = f"more than max_bad = {self.max_bad:.2%} allows"
        if whole <= self.max_bad * all_of_them:
            return f"{bad / own:.2%} of them, {allows} of the images of one stage", enough
        others = f", with {len(self.beside):,} of other stages" if len(self.beside) else ""
        return f"{whole / all_of_them:.2%} of all {all_of_them:,}{others}, {allows}", enough


class _Gathered:
    """What isn't on the disk yet: the features, and the images that could not be decoded, since the last write."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.bad: list[Bad] = []
        self._clear()

    def _clear(self) -> None:
        self.bad.clear()
        self.hashes: list[NDArray[np.bytes_]] = []
        self.features: list[NDArray[np.float32]] = []
        self._deadline = time.monotonic() + FLUSH_SECONDS

    def add(self, hashes: NDArray[np.bytes_], features: NDArray[np.float32]) -> None:
        """Features [n, V, D] of images with these hashes [n]."""
        if len(hashes):
            self.hashes.append(hashes)
            self.features.append(features)

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return sum(map(len, self.hashes)) >= SHARD or time.monotonic() > self._deadline

    def write(self) -> None:
        """All of it is on the disk when this returns."""
        if self.hashes:
            self.store.append(np.concatenate(self.hashes), np.concatenate(self.features))
        self.store.add_bad(self.bad)
        self._clear()


def _share(hashes: NDArray[np.bytes_], batch_size: int, share: int, shares: int) -> NDArray[np.int64]:
    """Positions in `hashes` of the distinct images of one of so many shares: whole batches, side by side."""
    first = np.sort(np.unique(hashes, return_index=True)[1])
    batches = -(-len(first) // batch_size)
    start, end = (batch_size * (batches * each // shares) for each in (share, share + 1))
    return first[start:end]
