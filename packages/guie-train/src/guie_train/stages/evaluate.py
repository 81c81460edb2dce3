"""The stage that measures retrieval on what was set aside: Evaluate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_core import Config, GuieError, Slot
from guie_core.wording import plural
from guie_datasets import Manifest
from guie_datasets.splits import TRAIN
from guie_models.heads import PCA
from guie_train.feature_store import FeatureStore, usable
from guie_train.heads import TrainedHead, head_inputs
from guie_train.planning.forecast import LIBRARIES, Features, Forecast, Outlook
from guie_train.planning.known import known
from guie_train.planning.training import READING
from guie_train.report import System
from guie_train.retrieval import Evaluation, Pairs, evaluate
from guie_train.retrieval.evaluation import NEIGHBOURS
from guie_train.retrieval.search import thread_bytes
from guie_train.stage import Stage, Workspace
from guie_train.stages.augmentation import Switched
from guie_train.stages.classifier import TrainedClassifier
from guie_train.stages.selection import answerable_pairs, check_pairs, expected_pairs

log = logging.getLogger(__name__)

FOUND = 200  # bytes that are kept of a query: its neighbours, and what it asks for
RAW, TRAINED = "raw features", "trained"  # what all are compared with, and what is exported
UNTUNED = "before tuning"  # the head that fine-tuning began with, on frozen features
Embed = Callable[[FeatureStore, NDArray[np.int64]], Tensor]  # (features, rows [N]) to an embedding [N, E]


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage[list[System]]):
    """Compare raw features, PCA and the trained head, also as it was before its backbone was tuned, on what was set
    aside; with and without switched augmentation.

    All embeddings are L2-normalised, so that Euclidean distance orders them as the cosine does. PCA is fitted on the
    training images, as training sees them: nobody else needs them as the report sees its own. With augmentation, the
    outputs of an image's views are averaged before they are normalised.
    """

    slug: ClassVar[str] = "evaluate"
    manifest: Stage[Manifest]
    train: Stage[FeatureStore]
    valid: Stage[FeatureStore]
    head: Stage[TrainedHead]
    classifier: Stage[TrainedClassifier] | None
    tuned: Stage[FeatureStore] | None  # features by the backbone that the head was trained with; None: `valid` are
    untuned: Stage[TrainedHead] | None  # the head for `valid` that tuning began with, if there is one
    augmentation: Switched | None
    switched: Mapping[str, Stage[FeatureStore]]  # features of the augmentation's views, by name
    protocol: Annotated[Config, Slot("protocols")]
    metrics: tuple[str, ...]
    pca: int

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if there is nothing to report on, or no such PCA; warn of one that few images don't span."""
        manifest = workspace.get(self.manifest)
        check_pairs(self.protocol, "recipe.evaluation.protocol", manifest, self.name)
        if (store := known(lambda: FeatureStore(workspace.folder(self.train)))) is not None:
            self._check_pca(store.dimension)
        images = int((manifest.column("split") == TRAIN).sum())
        if (most := self._components(images)) < self.pca:
            log.warning(
                "%s: recipe.evaluation.pca: %d training images span %d dimensions at most, and the report has PCA-%d "
                "instead of PCA-%d. Lower it, or add data",
                *(self.name, images, most, most, self.pca),
            )

    def _components(self, images: int) -> int:
        """How many principal components so many images have: what is left of the space is the same for all of them, and
        its directions would be drawn by rounding."""
        return min(self.pca, max(images - 1, 0))

    def _check_pca(self, dimension: int) -> None:
        if self.pca > dimension:
            raise GuieError(
                f"recipe.evaluation.pca: {self.pca} dimensions of {dimension:,} features; lower it to {dimension} at "
                "the most, or to 0 for none"
            )

    def forecast(self, outlook: Outlook) -> Forecast:
        """PCA's features in memory, and later those of what is reported on: as read, normalised, and for the search. Of
        its time, what fitting PCA and searching in known dimensions need at the least."""
        dimension = outlook.given(self.valid, Features).dimension
        self._check_pca(dimension)
        asked = expected_pairs(self.protocol, "recipe.evaluation.protocol", self.manifest, outlook)
        images = outlook.images(self.manifest)
        baselines = 1 + bool(self.pca) + bool(self.untuned)
        variants = 2 if self.switched and not self.tuned else 1
        systems = baselines * variants + (2 if self.switched else 1)
        fitted = images.of(TRAIN).images if self.pca else 0
        number = "" if all(extent.exact for extent in images.splits.values()) else "about "
        searched = variants * (dimension * (1 + bool(self.untuned)) + self.pca)
        threads = torch.get_num_threads()
        searching = threads * thread_bytes(-(-asked.queries // threads), asked.index, dimension, NEIGHBOURS)
        seconds, basis = None, "seconds, on the CPU"
        if outlook.profile.device == "cpu":
            single, double = outlook.speed("float32"), outlook.speed("float64")
            assert single.operations is not None  # a CPU is measured
            assert double.operations is not None
            search = 2 * asked.queries * asked.index * searched
            seconds = search / single.operations + 2 * fitted * dimension**2 / double.operations
            basis = f"search {single.basis}" + f", PCA {double.basis}" * bool(self.pca)
        return Forecast(
            does=f"{systems} systems on {number}{plural(asked.queries, 'query')} among {number}"
            f"{plural(asked.index, 'image')}",
            disk=systems * (asked.queries * (FOUND + 8 * len(self.metrics)) + 8 * asked.index),
            host=LIBRARIES + max(fitted, 3 * asked.images) * dimension * 4 + READING * dimension * 4 + searching,
            seconds=seconds,
            at_least=True,
            basis=basis,
        )

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write a numbered folder for each system."""
        train, store = workspace.get(self.train), workspace.get(self.valid)
        whole = workspace.get(self.manifest)
        manifest, numbers = usable(whole, train, store)
        split = manifest.column("split")
        pairs = answerable_pairs(self.protocol, "recipe.evaluation.protocol", whole, numbers)
        rows = np.unique(np.concatenate([pairs.queries, pairs.index]))
        pairs = Pairs(np.searchsorted(rows, pairs.queries), np.searchsorted(rows, pairs.index))
        labels, categories = manifest.column("label")[rows], manifest.column("category")[rows]

        def by(stage: Stage[TrainedHead]) -> Embed:
            head = workspace.get(stage).build()
            return lambda store, at: head(head_inputs(head, store, manifest, at))

        systems: dict[str, Embed] = {RAW: lambda store, at: torch.from_numpy(store.read(manifest.column("hash")[at]))}
        fitted = np.flatnonzero(split == TRAIN)
        if components := self._components(len(fitted)):
            pca = PCA.fit(systems[RAW](train, fitted), components)
            systems[f"PCA-{components}"] = lambda store, at: pca(systems[RAW](store, at))
        if self.untuned:
            systems[UNTUNED] = by(self.untuned)
        systems[TRAINED] = by(self.head)

        tuned = workspace.get(self.tuned) if self.tuned else store
        with torch.inference_mode():
            augmented = self._augmented(workspace, manifest, rows)
            number = 0
            for name, embed in systems.items():
                # the views of the augmentation are the tuned backbone's, which is no baseline
                for switched in (False, True) if augmented and (not self.tuned or name == TRAINED) else (False,):
                    features = tuned if name == TRAINED else store
                    space = augmented(embed) if augmented and switched else embed(features, rows)
                    found = evaluate(nn.functional.normalize(space), labels, categories, pairs, self.metrics)
                    found.in_rows(numbers[rows]).write(
                        folder / str(number), name=name, dimension=space.shape[1], augmented=switched
                    )
                    number += 1

    def _augmented(
        self, workspace: Workspace, manifest: Manifest, rows: NDArray[np.int64]
    ) -> Callable[[Embed], Tensor] | None:
        """A function that gives the mean [N, E] over the views of `rows` of an embedding."""
        if self.augmentation is None or self.classifier is None:
            return None
        stores = {name: workspace.get(stage) for name, stage in self.switched.items()}
        classifier = workspace.get(self.classifier)
        augmentation = self.augmentation.build(classifier.categories)
        height, width = (torch.from_numpy(manifest.column(name)[rows]) for name in ("height", "width"))
        # the classifier sees the view that steers, and square images have none
        steered = augmentation.masks(height, width)[augmentation.STEERING]
        category = torch.full((len(rows),), -1)
        features = stores[augmentation.STEERING].read(manifest.column("hash")[rows[steered.numpy()]])
        category[steered] = classifier.build()(torch.from_numpy(features)).argmax(1)
        masks = augmentation.masks(height, width, category)

        def embedded(embed: Embed) -> Tensor:
            outputs = {name: embed(stores[name], rows[mask.numpy()]) for name, mask in masks.items() if mask.any()}
            return augmentation.combine(outputs, masks)

        return embedded

    def load(self, folder: Path) -> list[System]:
        """The systems, in the order in which reports show them."""
        systems = []
        for path in sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name)):
            result, about = Evaluation.read(path)
            systems.append(System(about["name"], about["dimension"], about["augmented"], result))
        return systems

    def scores(self, output: list[System]) -> list[dict[str, Any]]:
        """The means of each system."""
        return [system.scores for system in output]

    def summary(self, output: list[System]) -> str:
        """The first metric of each system with one view, and of what is exported with its augmentation."""
        metric = self.metrics[0]
        shown = [system for system in output if not system.augmented or system.name == TRAINED]
        return f"{metric} " + ", ".join(
            f"{system.result.overall[metric]:.3f} {system.name}{' with augmentation' * system.augmented}"
            for system in shown
        )
