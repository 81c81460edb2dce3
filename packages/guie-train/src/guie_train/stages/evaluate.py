"""The stage that measures retrieval on what was set aside: Evaluate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from guie_core import Config, Slot
from guie_core.registry import build
from guie_datasets import Manifest
from guie_models import SwitchedAugmentation
from guie_models.heads import PCA
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_train.feature_store import FeatureStore
from guie_train.retrieval import Evaluation, Pairs, evaluate
from guie_train.stage import Stage, Workspace
from guie_train.stages.augmentation import Switched, padded_classes
from guie_train.stages.classifier import TrainedClassifier
from guie_train.stages.head import TrainedHead, head_inputs

RAW, TRAINED = "raw features", "trained"  # the system that all are compared with, and the one that is exported


@dataclass(frozen=True)
class System:
    """One way to embed the test images, and how well it retrieves."""

    name: str
    dimension: int
    augmented: bool
    result: Evaluation


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage[list[System]]):
    """Compare raw features, PCA and the trained head on the test rows, with and without switched augmentation.

    All embeddings are L2-normalised, so that Euclidean distance orders them as the cosine does. PCA is fitted on the
    training rows. With augmentation, the outputs of an image's views are averaged before they are normalised.
    """

    slug: ClassVar[str] = "evaluate"
    manifest: Stage[Manifest]
    valid: Stage[FeatureStore]
    head: Stage[TrainedHead]
    classifier: Stage[TrainedClassifier] | None
    switched: Mapping[str, Stage[FeatureStore]]
    augmentation: Switched | None
    protocol: Annotated[Config, Slot("protocols")]
    metrics: tuple[str, ...]
    pca: int

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write a folder for each system, in order of their names' numbers."""
        manifest, store = workspace.get(self.manifest), workspace.get(self.valid)
        split = manifest.column("split")
        pairs = build("protocols", self.protocol, where="recipe.evaluation.protocol").pairs(
            manifest.column("label"), split
        )
        rows = np.unique(np.concatenate([pairs.queries, pairs.index]))
        pairs = Pairs(np.searchsorted(rows, pairs.queries), np.searchsorted(rows, pairs.index))
        labels, categories = manifest.column("label")[rows], manifest.column("category")[rows]
        views = self._views(workspace, manifest, rows)

        head = workspace.get(self.head).build()
        embeddings: dict[str, Callable[[FeatureStore, NDArray[np.int64]], Tensor]] = {
            RAW: lambda features, at: torch.from_numpy(features.read(manifest.column("hash")[at])),
            TRAINED: lambda features, at: head(head_inputs(head, features, manifest, at)),
        }
        if self.pca:
            train = np.flatnonzero(split == "train")
            pca = PCA.fit(torch.from_numpy(store.read(manifest.column("hash")[train])), self.pca)
            embeddings[f"PCA-{self.pca}"] = lambda features, at: pca(embeddings[RAW](features, at))

        number = 0
        for name in (n for n in (RAW, f"PCA-{self.pca}", TRAINED) if n in embeddings):
            for augmented in (False, True) if views else (False,):
                with torch.inference_mode():
                    if augmented:
                        space = _averaged(embeddings[name], views, rows)
                    else:
                        space = embeddings[name](store, rows)
                    space = nn.functional.normalize(space)
                result = evaluate(space, labels, categories, pairs, metrics=self.metrics)
                result.in_rows(rows).write(folder / f"{number}", name=name, dimension=space.shape[1], augmented=augmented)
                number += 1

    def _views(
        self, workspace: Workspace, manifest: Manifest, rows: NDArray[np.int64]
    ) -> list[tuple[FeatureStore, NDArray[np.bool_]]]:
        """For each view of switched augmentation its features, and which of `rows` are seen through it."""
        if self.augmentation is None or self.classifier is None:
            return []
        stores = {name: workspace.get(stage) for name, stage in self.switched.items()}
        classifier = workspace.get(self.classifier)
        height, width = (torch.from_numpy(manifest.column(name)[rows]) for name in ("height", "width"))
        # only images that aren't square are classified, and by their "whole" view
        category = torch.zeros(len(rows), dtype=torch.long)
        other = (height != width).numpy()
        with torch.inference_mode():
            whole = torch.from_numpy(stores["whole"].read(manifest.column("hash")[rows[other]]))
            category[torch.from_numpy(other)] = classifier.build()(whole).argmax(1)
        masks = SwitchedAugmentation.masks(
            height, width, category, padded_classes(self.augmentation, classifier.categories)
        )
        return [(stores[name], mask.numpy()) for name, mask in masks.items()]

    def load(self, folder: Path) -> list[System]:
        """The systems in the order in which reports show them."""
        return [_read(path) for path in sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))]

    def summary(self, output: list[System]) -> str:
        """The first metric of the best variant of each system."""
        metric = self.metrics[0]
        best: dict[str, float] = {}
        for system in output:
            best[system.name] = max(best.get(system.name, 0.0), system.result.overall[metric])
        return f"{metric} " + ", ".join(f"{score:.3f} {name}" for name, score in best.items())


def _averaged(
    embed: Callable[[FeatureStore, NDArray[np.int64]], Tensor],
    views: list[tuple[FeatureStore, NDArray[np.bool_]]],
    rows: NDArray[np.int64],
) -> Tensor:
    """The mean [N, E] over each image's views of what `embed` gives for them."""
    total: Tensor | None = None
    count = torch.zeros(len(rows), 1)
    for store, seen in views:
        if not seen.any():
            continue
        part = embed(store, rows[seen])
        if total is None:
            total = torch.zeros(len(rows), part.shape[1])
        total[torch.from_numpy(seen)] += part
        count[torch.from_numpy(seen)] += 1
    assert total is not None  # every image has a view
    return total / count
