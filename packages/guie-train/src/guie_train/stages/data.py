"""Stages that make the manifest: Prepare and Split."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from guie_core import Config, GuieError, Slot
from guie_core.registry import build, lookup
from guie_core.signature import signature
from guie_core.spelling import spelled, told_as
from guie_core.wording import listing, plural, shown
from guie_datasets import Dataset, Extent, Manifest, apply_filters, prepare, split
from guie_datasets.checks import enough_max_bad
from guie_datasets.extent import united
from guie_datasets.places import NotThere
from guie_datasets.splits import TRAIN
from guie_train.planning.forecast import LIBRARIES, Forecast, Images, Missing, Outlook, about
from guie_train.planning.known import NotKnown, known
from guie_train.stage import NOT_IN_KEY, Stage, Workspace

log = logging.getLogger(__name__)
ROW = 100
"""Bytes of an image in a manifest, its path included."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Stage[Manifest]):
    """Data sets to one manifest: labels united, sizes and hashes read, bad images set apart (5th place, point 1).

    Then `filters` say, in order, which images are used at all.

    Args:
        where: the key of `data` in the experiment, for messages.
        instead: what else can be done where some of the data sets cannot be had, for people; "{names}" are those.
    """

    slug: ClassVar[str] = "prepare"
    cheap: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)
    data: list[Annotated[Config, Slot("datasets")]]
    filters: list[Annotated[Config, Slot("filters")]] = field(default_factory=list)
    keep_duplicates: bool = False
    max_bad: float = field(default=0.001, metadata=NOT_IN_KEY)
    where: str = field(default="recipe.data", metadata=NOT_IN_KEY)
    instead: str = field(default="", metadata=NOT_IN_KEY)

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write `manifest.parquet`, and to `quarantine.csv` what was left out or looks wrong."""
        filters = [build("filters", config, where=f"recipe.filters.{i}") for i, config in enumerate(self.filters)]
        with told_as(self._keys()):
            manifest, found = prepare(
                list(self._datasets().values()),
                max_bad=self.max_bad,
                keep_duplicates=self.keep_duplicates,
                quarantine=folder / "quarantine.csv",
            )
        for told in found.told:
            log.warning("%s: %s", self.name, spelled(told, self._keys()))
        apply_filters(manifest, filters).write(folder / "manifest.parquet")

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if more images were left out as bad, when more were allowed to be, than may be now."""
        found = workspace.get(self).provenance["datasets"]
        images, good = (sum(each[name] for each in found) for name in ("rows", "good"))
        if (bad := images - good) > self.max_bad * images:
            raise GuieError(
                f"{self.name}: {bad:,} of {plural(images, 'image')} are bad ({bad / images:.2%}), more than "
                f"recipe.max_bad = {self.max_bad:.2%} allows. The list is in "
                f"{workspace.folder(self) / 'quarantine.csv'}. Mend or remove them, or raise recipe.max_bad to "
                f"{enough_max_bad(bad, images):g}"
            )

    def fingerprint(self) -> str:
        """A digest of path, size and time of the files that the data sets read: changed data are prepared again.

        Raises:
            GuieError: data sets that are not there, or are laid out in another way: all of them are named.
        """
        paths: set[str] = set()
        problems: dict[str, str] = {}  # by the name of the data set
        datasets = self._datasets()
        for number, (name, dataset) in enumerate(datasets.items()):
            try:
                with told_as(self._keys(number)):
                    paths.update(map(os.fspath, dataset.sources()))
            except GuieError as error:
                problems[name] = str(error)
        if problems:
            raise GuieError(self._unavailable(problems, len(datasets)))
        whole = hashlib.blake2b(digest_size=16)
        for path in sorted(paths):
            try:
                about = os.stat(path)
            except OSError as error:
                raise GuieError(f"{path}: cannot be read: {error.strerror or error}") from error
            whole.update(b"%b\0%d %d\0" % (os.fsencode(path), about.st_size, about.st_mtime_ns))
        return whole.hexdigest()

    def forecast(self, outlook: Outlook) -> Forecast:
        """As many images as the data sets say they have; those that aren't there are named."""
        extents: list[Extent | None] = []
        missing: list[Missing] = []
        for number, (name, dataset) in enumerate(self._datasets().items()):
            extent = known(dataset.expected)
            extents.append(extent)
            missing += self._missing(dataset, number, f"data set {name}", extent)
        extent = None if None in extents else united(filter(None, extents))
        for i, config in enumerate(self.filters):
            one = build("filters", config, where=f"recipe.filters.{i}")
            extent = extent and one.expected(extent)
        if extent is None:
            return Forecast(basis="how many images there are is known when it is done", missing=missing)
        return Forecast(
            does=f"{_of(extent)}, each read once, hashed and measured",
            disk=ROW * extent.images,
            host=LIBRARIES + 100 * extent.images,
            basis="by your disk",
            gives=Images(extent),
            missing=missing,
        )

    def _missing(self, dataset: Dataset, number: int, what: str, extent: Extent | None) -> Iterator[Missing]:
        """What keeps a data set from being read, if anything."""
        what += f", {_of(extent)}" if extent else ""
        try:
            with told_as(self._keys(number)):
                next(iter(dataset.sources()), None)
        except NotThere as error:
            yield Missing(what, error.page, error.command)
        except GuieError as error:
            yield Missing(what, str(error))

    def _datasets(self) -> dict[str, Dataset]:
        """The data sets by name; one that comes again has its number in the name."""
        built: dict[str, Dataset] = {}
        for i, config in enumerate(self.data):
            name = config["type"] if config["type"] not in built else f"{config['type']} ({i})"
            built[name] = build("datasets", config, where=f"{self.where}.{i}")
        return built

    def _keys(self, of: int | None = None) -> dict[str, str]:
        """Where the experiment has what messages speak of: those of one data set, or of any of them."""
        keys: dict[str, str] = {}
        for i, config in enumerate(self.data):
            if of not in (None, i):
                continue
            for name in signature(lookup("datasets", config["type"]).load()).hints:
                keys[name] = f"{self.where}.{'N' if name in keys else i}.{name}="
        return {**keys, "max_bad": "recipe.max_bad="}

    def _unavailable(self, problems: dict[str, str], of: int) -> str:
        text = "\n".join(problems.values())
        if of > 1:
            text = f"{len(problems)} of {of} data sets in {self.where} cannot be used: {listing(problems)}\n{text}"
        instead = (
            self.instead.format(names=list(problems)) if len(problems) < of or "{names}" not in self.instead else ""
        )
        return f"{text}\n{instead}".rstrip()

    def load(self, folder: Path) -> Manifest:
        """The manifest; its `split` column is empty."""
        return Manifest.read(folder / "manifest.parquet")

    def summary(self, output: Manifest) -> str:
        """Images, classes, and how many were left out."""
        classes = len(np.unique(output.column("label")))
        findings = output.provenance["findings"]
        aside = f"; quarantine.csv: {findings}" if findings else ""
        left_out = sum(done["left_out"] for done in output.provenance.get("filters", ()))
        filtered = f"; filters left out {left_out:,}" if left_out else ""
        return f"{plural(len(output), 'image')} of {plural(classes, 'class')}{filtered}{aside}"


@dataclass(frozen=True, kw_only=True)
class Split(Stage[Manifest]):
    """Who may be used for what: each split takes its rows from those that are left; the rest is "train".

    No image is in two of them, under whatever labels: it stays in the first. Splits that the data have keep theirs.
    """

    slug: ClassVar[str] = "split"
    cheap: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)
    manifest: Stage[Manifest]
    splits: list[Annotated[Config, Slot("splits")]]

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write `manifest.parquet` with its `split` column set, and to `quarantine.csv` what was left out."""
        splits = [build("splits", config, where=f"recipe.splits.{i}") for i, config in enumerate(self.splits)]
        keys = [
            {name: f"recipe.splits.{i}.{name}=" for name in signature(lookup("splits", config["type"]).load()).hints}
            for i, config in enumerate(self.splits)
        ]
        manifest = workspace.get(self.manifest)
        done = split(manifest, splits, quarantine=folder / "quarantine.csv", settings=keys)
        if shared := [each for each in _left_out(done) if each["source"] != each["in_source"]]:
            log.warning(
                "%s: data sets share images, which are left out where another split has them: %s; listed in %s. Where "
                "they show the same things, use one of them, or make one table of them, with one label for each thing",
                self.name,
                listing(map(_told, shared), 5),
                shown(workspace.folder(self) / "quarantine.csv"),
            )
        if both := _shared(done):
            log.warning(
                "%s: splits that the data have share images, and keep them: %s. What is measured on one of them was "
                "seen in the other; guie data leaks %s shows them",
                self.name,
                listing((f"{each['images']:,} in {' and '.join(map(repr, each['splits']))}" for each in both), 5),
                shown(workspace.folder(self) / "manifest.parquet"),
            )
        if several := _several_labels(done):
            log.warning(
                "%s: images are in one split under several labels, byte for byte: %s; listed in %s. In training they "
                "contradict each other, and in scores each counts as a wrong answer to the other. %s",
                self.name,
                listing(map(_contradicting, several), 5),
                shown(workspace.folder(self) / "quarantine.csv"),
                _remedy(several),
            )
        done.write(folder / "manifest.parquet")

    def forecast(self, outlook: Outlook) -> Forecast:
        """A share of what is left for each split, as it says itself; the rest is trained on."""
        left = whole = outlook.images(self.manifest).all
        parts: dict[str, Extent] = {}
        for i, config in enumerate(self.splits):
            one = build("splits", config, where=f"recipe.splits.{i}")
            extent = one.expected(left)
            if extent is None:
                raise NotKnown(f"how many images {one.name!r} gets is known when it is done")
            parts[one.name] = extent
            left = left.less(extent, of_classes=one.whole_classes)
        parts = {TRAIN: left, **parts}
        return Forecast(
            does=", ".join(f"{name} {about(extent)}" for name, extent in parts.items()),
            disk=ROW * whole.images,
            host=LIBRARIES + 100 * whole.images,
            basis="seconds",
            gives=Images(whole, parts),
        )

    def load(self, folder: Path) -> Manifest:
        """The manifest with its `split` column set."""
        return Manifest.read(folder / "manifest.parquet")

    def summary(self, output: Manifest) -> str:
        """Images and classes of each split."""
        splits = Images.counted(output).splits
        parts = [f"{name} {part.images:,} of {plural(part.classes, 'class')}" for name, part in splits.items()]
        left_out = sum(each["images"] for each in _left_out(output))
        aside = f"; left out as they are in another split: {left_out:,}, in quarantine.csv" if left_out else ""
        shared = sum(each["images"] for each in _shared(output))
        both = f"; in two splits of the data: {shared:,}" if shared else ""
        several = sum(each["images"] for each in _several_labels(output))
        labels = f"; in one split under several labels: {several:,}, in quarantine.csv" if several else ""
        return ", ".join(parts) + aside + both + labels


def _of(extent: Extent) -> str:
    """ "about 141,900 images of 9,691 classes"."""
    return f"{'' if extent.exact else 'about '}{plural(extent.images, 'image')} of {plural(extent.classes, 'class')}"


def _left_out(manifest: Manifest) -> list[dict[str, Any]]:
    """What was left out of its splits, as `split` counts it."""
    found: list[dict[str, Any]] = manifest.provenance.get("left_out_of_splits", [])
    return found


def _shared(manifest: Manifest) -> list[dict[str, Any]]:
    """What splits of the data share, as `split` counts it."""
    found: list[dict[str, Any]] = manifest.provenance.get("shared_by_splits", [])
    return found


def _several_labels(manifest: Manifest) -> list[dict[str, Any]]:
    """What is in one split under several labels, as `split` counts it."""
    found: list[dict[str, Any]] = manifest.provenance.get("several_labels", [])
    return found


def _contradicting(several: Mapping[str, Any]) -> str:
    """ "12 in 'test', of 'cars' and 'photos'"."""
    return f"{several['images']:,} in {several['split']!r}, of {' and '.join(map(repr, several['sources']))}"


def _remedy(several: Iterable[Mapping[str, Any]]) -> str:
    """What to do about images that are there under several labels."""
    pairs = [each["sources"] for each in several]
    remedies = []
    if between := next((pair for pair in pairs if len(pair) > 1), None):
        remedies.append(
            "Where two data sets show the same things, make one table of them, with one label for each thing, or leave "
            f"one of them out: remove it from recipe.data, or add dict(type='DropSources', sources=[{between[1]!r}]) "
            "to recipe.filters"
        )
    if within := next((pair[0] for pair in pairs if len(pair) == 1), None):
        remedies.append(f"Within {within!r}, keep each image in the class that it shows")
    return ". ".join(remedies)


def _told(left_out: Mapping[str, Any]) -> str:
    """ "12 of 'cars' from 'train', in 'test' as 'photos'"."""
    return "{images:,} of {source!r} from {split!r}, in {in_split!r} as {in_source!r}".format(**left_out)
