"""The recipe of the 5th place: a margin head on frozen features, then the classifier that steers augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from guie_core import Config, ExperimentError, Problem, Slot
from guie_core.profiles import Profile
from guie_core.wording import did_you_mean
from guie_datasets import Manifest, decode
from guie_datasets.images.decoding import Method
from guie_datasets.splits import TRAIN
from guie_train.fitting import Training
from guie_train.report import Images, Report
from guie_train.stage import Stage, Workspace
from guie_train.stages.augmentation import Switched
from guie_train.stages.classifier import FitClassifier
from guie_train.stages.data import Prepare, Split
from guie_train.stages.evaluate import RAW, TRAINED, Evaluate
from guie_train.stages.export import Export
from guie_train.stages.features import Features, Part, Shape
from guie_train.stages.head import LOSS_PROVIDES, FitHead, TrainedHead
from guie_train.stages.selection import Selection
from guie_train.stages.submission import Submission

ViewConfig = Annotated[Config, Slot("views", defaults=("size", "mean", "std"))]


@dataclass(frozen=True, kw_only=True)
class Views:
    """How images are seen: by training, by validation and retrieval, and by the classifier (points 3 and 9)."""

    train: ViewConfig
    valid: ViewConfig
    classifier: ViewConfig


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How features are computed and kept.

    Args:
        compute: dtype of the backbone's arithmetic; "profile" leaves it to the hardware, which is faster, and gives
            features that differ in their last digits from one machine to another.
        dtype: on disk. The features of these backbones are of the order of 1, which float16 holds to three digits;
            training and evaluation compute in float32.
        decode: how images are decoded (`guie_datasets.decode`): "full"; "scaled", which is faster for large JPEGs and
            gives features that differ a little; "tensorflow", the pixels of the original.
    """

    compute: Literal["float32", "profile"] = "float32"
    dtype: Literal["float16", "float32"] = "float16"
    decode: Method = "full"


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """How the classifier is trained, and what it is measured on (5th place, point 9).

    Args:
        training: how.
        data: data sets that it learns from, by the category of their images; none: from the recipe's own data, all but
            what is reported on.
        folds: one part in so many is held out to measure accuracy, stratified by category.
        split_seed: of that.
        every: epochs between two measurements.
    """

    training: Training
    data: list[Annotated[Config, Slot("datasets")]] = field(default_factory=list)
    folds: int = 20
    split_seed: int = 2021
    every: int = 20

    def __post_init__(self) -> None:
        for name, least in {"folds": 2, "every": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is reported, on classes that no choice has seen.

    Args:
        protocol: which images ask and which answer; they are in its `split`, which nothing else uses.
        metrics: figures to report.
        pca: dimensions of the untrained baseline; 0 leaves it out.
    """

    protocol: Annotated[Config, Slot("protocols")]
    metrics: tuple[str, ...] = ("mP@5", "MRR@5", "Recall@1")
    pca: int = 64


@dataclass(frozen=True, kw_only=True)
class ArcFaceThenClassifier:
    """Frozen backbone, margin head, classifier, switched augmentation, evaluation, export (arXiv 2210.09495).

    Args:
        data: data sets, united in this order.
        without: those of them, by type, that are left out, for somebody who doesn't have them all.
        filters: which of their images are used at all, applied in this order; none means all.
        splits: who is set aside for what, in this order; what is left is trained on.
        backbone: gives the features; it is not trained.
        views: how it sees images.
        head: features to embedding.
        loss: on the embedding.
        arcface: how head and loss are trained.
        selection: which checkpoint is kept.
        classifier: None leaves it out, and switched augmentation with it.
        augmentation: None evaluates and exports a single view.
        features: how they are computed and kept.
        evaluation: what is reported; None reports nothing, where all is left to somebody else's test.
        exports: formats to write.
        submission: whether the TorchScript export is also packed as the contest's submission.zip.
        seed: of initialisation, order, dropout and random crops.
        keep_duplicates: keep images that are there more than once in a class.
        max_bad: the share of images that may be left out as unreadable, in preparation and again in decoding.
    """

    data: list[Annotated[Config, Slot("datasets")]]
    splits: list[Annotated[Config, Slot("splits")]]
    backbone: Annotated[Config, Slot("backbones")]
    views: Views
    head: Annotated[Config, Slot("heads", provides=("in_features",))]
    loss: Annotated[Config, Slot("losses", provides=LOSS_PROVIDES)]
    arcface: Training
    selection: Selection
    classifier: Classifier | None
    augmentation: Switched | None
    evaluation: Evaluation | None
    without: tuple[str, ...] = ()
    filters: list[Annotated[Config, Slot("filters")]] = field(default_factory=list)
    features: Stored = Stored()
    exports: list[Annotated[Config, Slot("exporters")]] = field(default_factory=list)
    submission: bool = False
    seed: int = 0
    keep_duplicates: bool = False
    max_bad: float = 0.001

    def __post_init__(self) -> None:
        there = [config["type"] for config in self.data]
        problems = [
            Problem("recipe.without", f"there is no data set {name!r} in recipe.data.{did_you_mean(name, there)}")
            for name in self.without
            if name not in there
        ]
        if not problems and set(self.without) >= set(there):
            problems = [Problem("recipe.without", "it leaves out every data set there is in recipe.data.")]
        if self.submission and all(config["type"] != "TorchScript" for config in self.exports):
            hint = "Add dict(type='TorchScript') to recipe.exports, or set recipe.submission=False."
            problems.append(Problem("recipe.submission", "the contest takes TorchScript, which isn't exported.", hint))
        if problems:
            raise ExperimentError(problems)

    def stages(self, profile: Profile) -> list[Stage[Any]]:
        """The stages, each after its inputs."""
        reported = self.evaluation.protocol.get("split", "test") if self.evaluation else ""
        prepare = Prepare(
            name="prepare",
            data=[config for config in self.data if config["type"] not in self.without],
            filters=self.filters,
            keep_duplicates=self.keep_duplicates,
            max_bad=self.max_bad,
            instead='To train on the others only, add --set "recipe.without={names}"' if len(self.data) > 1 else "",
        )
        split = Split(name="split", manifest=prepare, splits=self.splits)

        def features(
            name: str, view: Config, part: Part = "all", shape: Shape = "any", manifest: Stage[Manifest] = split
        ) -> Features:
            return Features(
                name=f"features {name}",
                manifest=manifest,
                part=part,
                reported=reported,
                shape=shape,
                backbone=self.backbone,
                view=view,
                seed=self.seed,
                compute=profile.dtype if self.features.compute == "profile" else self.features.compute,
                dtype=self.features.dtype,
                decode=self.features.decode,
                max_bad=self.max_bad,
            )

        train = features("train", self.views.train, "rest")
        valid = features("valid", self.views.valid)
        head = FitHead(
            name="head",
            manifest=split,
            train=train,
            valid=valid,
            head=self.head,
            loss=self.loss,
            training=self.arcface,
            selection=self.selection,
            seed=self.seed,
        )
        stages: list[Stage[Any]] = [prepare, split, train, valid, head]
        classifier, switched = None, {}
        if self.classifier:
            kinds: Stage[Manifest] = split
            part: Part = "rest"
            if self.classifier.data:
                kinds, part = self._classifiers_own(self.classifier.data), "all"
                stages.insert(1, kinds)
            whole = features("classifier", self.views.classifier, part, manifest=kinds)
            classifier = FitClassifier(
                name="classifier",
                manifest=kinds,
                features=whole,
                training=self.classifier.training,
                reported=reported if part == "rest" else None,
                folds=self.classifier.folds,
                split_seed=self.classifier.split_seed,
                every=self.classifier.every,
                seed=self.seed,
                augmentation=self.augmentation,
            )
            stages += [whole, classifier]
        if self.augmentation and classifier and self.evaluation:
            for name, view in self.augmentation.views().items():
                switched[name] = features(f"test {name}", view, "reported", "square" if name == "square" else "other")
            stages += switched.values()
        if self.evaluation:
            evaluate = Evaluate(
                name="evaluate",
                manifest=split,
                valid=valid,
                head=head,
                classifier=classifier,
                switched=switched,
                augmentation=self.augmentation,
                protocol=self.evaluation.protocol,
                metrics=self.evaluation.metrics,
                pca=self.evaluation.pca,
            )
            stages.append(evaluate)
        if self.exports:
            export = Export(
                name="export",
                manifest=split,
                head=head,
                classifier=classifier,
                backbone=self.backbone,
                view=self.views.valid,
                augmentation=self.augmentation,
                exporters=self.exports,
                split=reported or TRAIN,
            )
            stages.append(export)
            if self.submission:
                stages.append(Submission(name="submission", export=export))
        return stages

    def _classifiers_own(self, data: list[Config]) -> Prepare:
        return Prepare(
            name="prepare classifier",
            data=data,
            keep_duplicates=self.keep_duplicates,
            max_bad=self.max_bad,
            where="recipe.classifier.data",
            instead="To train without a classifier, and hence without switched augmentation, add "
            "--set recipe.classifier=None --set recipe.augmentation=None",
        )

    def report(self, workspace: Workspace) -> Report | None:
        """What the stages found, for a page; they are run where that hasn't happened. None without an evaluation."""
        if self.evaluation is None:
            return None
        stages = {stage.name: stage for stage in self.stages(workspace.profile)}
        manifest: Manifest = workspace.get(stages["split"])
        head: TrainedHead = workspace.get(stages["head"])
        refs, names = manifest.images(), manifest.column("name")
        return Report(
            systems=workspace.get(stages["evaluate"]),
            images=Images(
                labels=manifest.column("label"),
                splits=manifest.column("split"),
                image=lambda row: decode(refs[row].read()),
                caption=lambda row: str(names[row]),
            ),
            baseline=RAW,
            trained=TRAINED,
            curves=head.curves,
            chosen_epoch=head.epoch,
            exports=workspace.get(stages["export"]) if "export" in stages else (),
            seed=self.seed,
        )
