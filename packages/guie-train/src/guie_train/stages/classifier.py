"""The stage that trains the classifier which steers switched augmentation: FitClassifier."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from guie_core import GuieError
from guie_core.files import atomic_write
from guie_core.profiles import Profile
from guie_core.registry import build
from guie_datasets import Manifest
from guie_train.device import device_of
from guie_train.feature_store import FeatureStore, usable
from guie_train.fitting import Curve, Fit, Resident, Training, keep_if_of, sampler_of
from guie_train.planning.forecast import Features, Forecast, Outlook, Trained
from guie_train.planning.meta import on_meta
from guie_train.planning.training import forecast_training
from guie_train.stage import NOT_IN_KEY, Stage, Workspace, damage_told
from guie_train.stages.augmentation import Switched


class LinearClassifier(nn.Module):
    """A linear layer and its cross-entropy (5th place, point 9)."""

    def __init__(self, in_features: int, categories: int) -> None:
        super().__init__()
        self.linear = build("heads", {"type": "Linear"}, in_features=in_features, out_features=categories)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of features [B, D] with labels [B]."""
        return nn.functional.cross_entropy(self.linear(features), labels)


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier on disk, and the categories its outputs stand for.

    left_out: how many images of data of its own it didn't learn from, as they are reported on.
    """

    folder: Path
    categories: tuple[str, ...]
    in_features: int
    curves: list[Curve]
    left_out: int = 0

    def build(self) -> nn.Module:
        """The linear layer [D -> categories], in evaluation mode."""
        layer: nn.Module = build(
            "heads", {"type": "Linear"}, in_features=self.in_features, out_features=len(self.categories)
        )
        with damage_told(self.folder):
            tensors = load_file(self.folder / "last.safetensors")
        layer.load_state_dict({k.removeprefix("linear."): v for k, v in tensors.items()})
        return layer.eval()


@dataclass(frozen=True, kw_only=True)
class FitClassifier(Stage[TrainedClassifier]):
    """Train a linear classifier of categories on all images but the reported ones (5th place, point 9).

    Args:
        manifest: of the images that it learns from.
        split: a manifest with the reported images; None: it is `manifest`.
        reported: name of the split that no choice may see, also where `manifest` has the bytes of its images; None:
            there is none, and all images are used.
        folds: one part in so many is held out to measure accuracy, stratified by category.
        split_seed: of that.
        every: epochs between two measurements.
        augmentation: what the classifier steers.
    """

    slug: ClassVar[str] = "classifier"
    manifest: Stage[Manifest]
    split: Stage[Manifest] | None = None
    features: Stage[FeatureStore]
    training: Training
    reported: str | None = "test"
    folds: int = 20
    split_seed: int = 2021
    every: int = 20
    seed: int = 0
    augmentation: Switched | None = field(default=None, metadata=NOT_IN_KEY)

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if there are too few categories, or images of one, or not all that the augmentation names."""
        manifest = workspace.get(self.manifest)
        rows = self._rows(manifest, workspace)
        rest = manifest.column("category")[rows]
        categories, counts = np.unique(rest, return_counts=True)
        if len(categories) < 2:
            if not len(rows):
                raise GuieError(
                    "recipe.classifier.data: all of its images are also in the split that is reported on, which "
                    "nothing learns from; give it others"
                )
            there = f"all have {str(categories[0])!r}" if categories.any() else "they have none"
            raise GuieError(
                f"recipe.classifier: the images need two categories at least, and {there}; give the data sets a "
                "category, or leave the classifier out: classifier=None, augmentation=None"
            )
        if counts.min() < self.folds:
            raise GuieError(
                f"recipe.classifier: category {str(categories[counts.argmin()])!r} has {counts.min()} images; "
                f"lower recipe.classifier.folds from {self.folds}, or leave the classifier out"
            )
        kinds = np.unique(rest, return_inverse=True)[1]
        images = manifest.select(rows)
        sampler = sampler_of(self.training, images, kinds, self.seed, "recipe.classifier.training.sampler")
        self.training.steps(len(rest) * (self.folds - 1) // self.folds, sampler, "recipe.classifier.training")
        self.training.warn("recipe.classifier.training")
        if self.augmentation:
            self.augmentation.build(categories.tolist())

    def _rows(self, manifest: Manifest, workspace: Workspace) -> NDArray[np.intp]:
        """Row numbers of the images that it learns from."""
        whole = workspace.get(self.split or self.manifest)
        hidden = whole.column("hash")[whole.column("split") == self.reported]
        return np.flatnonzero(~np.isin(manifest.column("hash"), hidden))

    def forecast(self, outlook: Outlook) -> Forecast:
        """Steps on features that stay on the device, counted on a batch of them."""
        images, dimension = outlook.images(self.manifest), outlook.given(self.features, Features).dimension
        if self.augmentation and "" not in images.all.categories:
            self.augmentation.build(images.all.categories)
        categories = len(images.all.categories)
        count = images.all.images - (images.of(self.reported).images if self.reported and not self.split else 0)
        train = count * (self.folds - 1) // self.folds
        model = on_meta(lambda: LinearClassifier(dimension, categories))
        found = forecast_training(
            outlook, model, self.training, images=train, others=count - train, width=dimension, files=1
        )
        shapes = f"[about {train:,}, {dimension:,}] -> [{categories}]"
        return replace(found, does=f"{shapes}; {found.does}", gives=Trained(found.parameters))

    def lower(self, profile: Profile) -> str:
        """Another device, which changes no result, and what does."""
        elsewhere = f"{super().lower(profile)}. " if profile.device == "cuda" else ""
        return f"{elsewhere}A lower recipe.classifier.training.batch_size takes less, and changes the result"

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write the weights of the last epoch, the curves, and the state from which an interrupted run goes on."""
        store = workspace.get(self.features)
        manifest, _ = usable(workspace.get(self.manifest), store)
        from sklearn.model_selection import StratifiedKFold  # here: an experiment is checked a second sooner

        device = device_of(workspace.profile)
        rows = self._rows(manifest, workspace)
        keep_if_of(manifest.select(rows), folder, self.name)
        categories, labels = np.unique(manifest.column("category")[rows], return_inverse=True)
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.split_seed)
        train, valid = next(folds.split(rows, labels))
        hashes = manifest.column("hash")[rows]

        def part(chosen: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
            return torch.from_numpy(store.read(hashes[chosen])).to(device), torch.from_numpy(labels[chosen]).to(device)

        seen, targets = part(valid)

        torch.manual_seed(self.seed)
        model = LinearClassifier(store.dimension, len(categories)).to(device)
        fit = Fit(
            model,
            Resident(*part(train)),
            self.training,
            seed=self.seed,
            folder=folder,
            name=self.name,
            on_epoch=partial(workspace.on_epoch, self.name),
            sampler=sampler_of(self.training, manifest.select(rows[train]), labels[train], self.seed),
            cuda_graphs=workspace.profile.cuda_graphs,
        )

        def accuracy(epoch: int) -> Curve:
            right = model.linear(seen).argmax(1) == targets
            return {"valid accuracy": float(right.float().mean())}

        curves = fit.run(workspace.stop, accuracy, every=self.every)
        fit.write_checkpoint("last")
        about = {"categories": categories.tolist(), "in_features": store.dimension, "curves": curves}
        about["left_out"] = len(manifest) - len(rows) if self.split else 0
        with atomic_write(folder / "curves.json", "w") as file:
            json.dump(about, file, indent=1)

    def load(self, folder: Path) -> TrainedClassifier:
        """The classifier and its curves."""
        about: dict[str, Any] = json.loads((folder / "curves.json").read_text())
        return TrainedClassifier(
            folder, tuple(about["categories"]), about["in_features"], about["curves"], about["left_out"]
        )

    def summary(self, output: TrainedClassifier) -> str:
        """Its accuracy on the held-out part, and how many images of its own data were left out."""
        aside = f"; left out as they are reported on: {output.left_out:,}" if output.left_out else ""
        return f"{len(output.categories)} categories, accuracy {output.curves[-1]['valid accuracy']:.3f}{aside}"
