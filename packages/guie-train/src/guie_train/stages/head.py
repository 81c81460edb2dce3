"""Stages that train the embedding: what they share, and FitHead."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_core import Config, GuieError, Slot, UsageError
from guie_core.files import atomic_write
from guie_core.profiles import Profile
from guie_core.registry import build, load
from guie_core.signature import signature
from guie_datasets import Manifest
from guie_datasets.splits import TRAIN
from guie_models.optimizers import build_optimizer, elementwise
from guie_train.device import device_of
from guie_train.feature_store import FeatureStore, usable
from guie_train.fitting import Curve, Fit, Resident, Training, keep_if_of, sampler_of, whole_batch
from guie_train.heads import LOSS_PROVIDES, HeadWithLoss, TrainedHead, build_loss, head_inputs
from guie_train.planning.backbones import without_weights
from guie_train.planning.forecast import Features, Forecast, Outlook, Trained, about
from guie_train.planning.known import known
from guie_train.planning.meta import on_meta, parameters, state_bytes
from guie_train.planning.training import Unsent, forecast_training
from guie_train.processes import AveragedGradients
from guie_train.retrieval import Pairs
from guie_train.stage import Stage, Workspace
from guie_train.stages.selection import Selection, Selector, answerable_pairs, check_pairs, looked_at


def _divides_classes(profile: Profile, processes: int) -> bool:
    return profile.divide == "classes" and processes > 1


def _dimension(stage: Stage[FeatureStore], workspace: Workspace) -> int | None:
    """How many features a view of an image gives, as far as it is known before there are any: of the backbone, if it
    can be built without numbers."""

    def stored() -> int | None:
        folder = workspace.folder(stage)
        return FeatureStore(folder).dimension if (folder / "store.json").exists() else None

    dimension: int | None = known(stored)
    if dimension is not None or (config := getattr(stage, "backbone", None)) is None:
        return dimension
    try:
        return int(on_meta(lambda: without_weights(config)).features)
    except Exception:  # nothing depends on it yet
        return None


@dataclass(frozen=True, kw_only=True)
class TrainsHead(Stage[TrainedHead]):
    """What stages that train a head with a margin loss on the training split have in common.

    Args:
        train: frozen features of the images that are trained on, as training sees them.
        valid: frozen features of the others. Images of either that could not be decoded are left out.
        training, selection: how, and which checkpoint is kept.
    """

    where: ClassVar[str]  # the key of `training` in the experiment, for messages
    result: ClassVar[type[TrainedHead]] = TrainedHead
    manifest: Stage[Manifest]
    train: Stage[FeatureStore]
    valid: Stage[FeatureStore]
    head: Annotated[Config, Slot("heads", provides=("in_features",))]
    loss: Annotated[Config, Slot("losses", provides=LOSS_PROVIDES)]
    training: Training
    selection: Selection
    seed: int = 0

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if there is nothing to train on or to choose by, or head or loss refuse their arguments."""
        manifest = workspace.get(self.manifest)
        images = manifest.select(manifest.column("split") == TRAIN)
        labels = images.column("label")
        sampler = sampler_of(self.training, images, labels, self.seed, f"{self.where}.sampler")
        self.training.steps(len(labels), sampler, self.where)
        self.training.warn(self.where)
        check_pairs(self.selection.protocol, "recipe.selection.protocol", manifest, self.name)
        self.check_loss(np.unique(labels, return_counts=True)[1], workspace)

    @abstractmethod
    def check_loss(self, class_counts: NDArray[np.int64], workspace: Workspace) -> None:
        """Raise GuieError if the loss, or what else is built for so many images of each class [C], is refused."""

    def pairs(self, workspace: Workspace, usable: NDArray[np.int64]) -> Pairs:
        """What the checkpoint is chosen by: positions among the rows of the manifest that can be decoded."""
        return answerable_pairs(
            self.selection.protocol, "recipe.selection.protocol", workspace.get(self.manifest), usable
        )

    def write_curves(self, folder: Path, in_features: int, curves: list[Curve]) -> None:
        """What `load` reads besides the chosen weights."""
        about = {"in_features": in_features, "chosen": self.selection.chosen(curves), "curves": curves}
        with atomic_write(folder / "curves.json", "w") as file:
            json.dump(about, file, indent=1)

    def load(self, folder: Path) -> TrainedHead:
        """The chosen head and its curves."""
        about: dict[str, Any] = json.loads((folder / "curves.json").read_text())
        return self.result(folder, self.head, about["in_features"], about["chosen"], about["curves"])

    def selected(self, output: TrainedHead) -> dict[str, Any]:
        """The score of the chosen epoch."""
        return self.selection.figure(output.curves, output.epoch)

    def summary(self, output: TrainedHead) -> str:
        """Which epoch was chosen, and its score."""
        metric, curve = self.selection.metric, output.curves[output.epoch - 1]
        return f"epoch {output.epoch} of {len(output.curves)} chosen: {metric} {curve[metric]:.3f} in selection"


@dataclass(frozen=True, kw_only=True)
class FitHead(TrainsHead):
    """Train the head on frozen features (5th place, points 4 to 8)."""

    slug: ClassVar[str] = "head"
    together: ClassVar[bool] = True
    where: ClassVar[str] = "recipe.arcface"

    def check_loss(self, class_counts: NDArray[np.int64], workspace: Workspace) -> None:
        """Raise GuieError if head or loss refuse their arguments, or the loss to be divided where it is to be."""
        if divided := _divides_classes(workspace.profile, workspace.processes.count):
            self._check_optimizer(workspace.processes.count)
        loss = self._loss(self._out_features(workspace), class_counts)
        if divided:
            HeadWithLoss(nn.Identity(), loss).divide(workspace.processes)

    def _out_features(self, workspace: Workspace) -> int:
        """The size of the embedding: of the head, built without numbers, or as the settings say where that needs them.

        Raises UsageError: the head refuses its arguments.
        """
        sizes = {**signature(load("heads", self.head["type"])).defaults, **self.head}
        stated: int = sizes.get("out_features", 64)
        if (dimension := _dimension(self.train, workspace)) is None:
            return stated
        try:
            head = on_meta(lambda: build("heads", self.head, where="recipe.head", in_features=dimension))
        except GuieError:
            raise
        except Exception:  # it needs numbers, or else it will be told when it is trained
            return stated
        return int(getattr(head, "out_features", stated))

    def _check_optimizer(self, processes: int) -> None:
        """Raise UsageError if the optimiser needs whole parameters, of which processes have but parts."""
        built = build_optimizer(self.training.optimizer, [nn.Parameter(torch.zeros(1, 1))], f"{self.where}.optimizer")
        if not elementwise(built):
            name = type(getattr(built, "base", built)).__name__
            raise UsageError(
                f"{self.where}.optimizer: {name} looks at whole parameters, or doesn't say otherwise "
                f'(`elementwise = True`), and with profile.divide="classes" each of {processes} processes has but a '
                'part of the class centres. Leave profile.divide at "images", or take an optimizer that treats each '
                "number by itself, such as SGD"
            )

    def _loss(self, embedding_size: int, class_counts: NDArray[np.int64]) -> nn.Module:
        return build_loss(self.loss, embedding_size, class_counts, "recipe.loss")

    def forecast(self, outlook: Outlook) -> Forecast:
        """Steps on features that stay on the device, counted on a batch of them."""
        images, features = outlook.images(self.manifest), outlook.given(self.train, Features)
        dimension = features.dimension
        train = images.of(TRAIN)
        counts = np.full(train.classes, max(1, train.images // train.classes))

        def make() -> HeadWithLoss:
            head = build("heads", self.head, where="recipe.head", in_features=dimension)
            return HeadWithLoss(head, self._loss(head.out_features, counts))

        model = on_meta(make)
        head: Any = model.head
        width = dimension + getattr(head, "size_features", 0)
        forecast = partial(
            forecast_training,
            outlook,
            training=self.training,
            images=train.images,
            others=images.all.images - train.images + (features.views - 1) * train.images,
            width=width,
            # chosen, last, and best by validation loss and accuracy, besides the best by the metric
            files=4 + min(self.selection.top_k, -(-self.training.epochs // self.selection.every)),
        )
        found, count = forecast(model), outlook.processes

        def divided() -> Forecast:
            """What the first of the processes takes where they divide the classes."""
            self._check_optimizer(count)
            part = on_meta(make)
            all_of_it = state_bytes(part.divide(Unsent(count - 1, count)))  # of the last, none has a larger part
            of_part = forecast(part)
            return replace(
                found,
                # between two epochs it has all centres in place of gradients
                device=(of_part.device or 0) + all_of_it - state_bytes(part),
                host=(of_part.host or 0) + all_of_it,
                seconds=of_part.seconds,
                at_least=of_part.at_least,
                basis=of_part.basis,
            )

        def lighter(memory: float) -> Iterator[str]:
            if count > 1 and (smaller := known(divided)) is not None and (smaller.device or 0) <= memory:
                yield "--set profile.divide=classes"

        found = divided() if _divides_classes(outlook.profile, count) else replace(found, lighter=lighter)
        does = (
            f"[{about(train)}, {width:,}] -> [{head.out_features}], {self.loss['type']} over "
            f"{'' if train.exact else 'about '}{train.classes:,} classes; {found.does}"
        )
        return replace(found, does=does, gives=Trained(parameters(head)[0]))

    def lower(self, profile: Profile) -> str:
        """Another device, which changes no result, and the settings that take most and do."""
        elsewhere = f"{super().lower(profile)}. " if profile.device == "cuda" else ""
        return f"{elsewhere}A lower recipe.arcface.batch_size takes less, and changes the result"

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write the chosen weights, checkpoints, the curves, and the state from which an interrupted run goes on."""
        train, valid = workspace.get(self.train), workspace.get(self.valid)
        manifest, kept = usable(workspace.get(self.manifest), train, valid)
        pairs = self.pairs(workspace, kept)
        workspace.processes.from_first(lambda: keep_if_of(looked_at(manifest, pairs), folder, self.name))
        device = device_of(workspace.profile)
        split = manifest.column("split")
        rows = np.flatnonzero(split == TRAIN)
        # classes of the training split alone, so that no centre stands for a class without images
        classes, labels, counts = np.unique(manifest.column("label")[rows], return_inverse=True, return_counts=True)

        torch.manual_seed(self.seed)
        head = build("heads", self.head, where="recipe.head", in_features=train.dimension)
        loss = self._loss(head.out_features, counts)
        model, processes = HeadWithLoss(head, loss), workspace.processes
        features, targets = head_inputs(head, train, manifest, rows, train.views), torch.from_numpy(labels)
        if not (folder / "state.pt").exists():  # which has it
            model.start(features, targets.repeat(train.views))
        whole = model.divide(processes) if _divides_classes(workspace.profile, processes.count) else None
        model = model.to(device)
        examples = Resident(features.to(device), targets.to(device), self.seed)
        del features  # on a GPU, they have been copied
        fit = Fit(
            model,
            examples,
            self.training,
            seed=self.seed,
            folder=folder,
            name=self.name,
            on_epoch=partial(workspace.on_epoch, self.name),
            sampler=sampler_of(self.training, manifest.select(rows), labels, self.seed),
            example=lambda row: str(manifest.images()[rows[row]]),
            processes=processes,
            # where classes are divided, every process sees the whole batch
            backward=AveragedGradients(processes) if processes.count > 1 and whole is None else whole_batch,
            whole=whole,
            cuda_graphs=workspace.profile.cuda_graphs,
        )

        def inputs(rows: NDArray[np.int64]) -> Tensor:
            return head_inputs(head, valid, manifest, rows).to(device)

        trained: Any = fit.evaluated
        selector = Selector(self.selection, fit, manifest, classes, pairs, trained.loss, inputs, trained.head)
        curves = fit.run(workspace.stop, selector, self.selection.enough, self.selection.every)
        fit.write_checkpoint("last")
        if not processes.first:
            return
        selector.finish(curves)
        self.write_curves(folder, train.dimension, curves)
