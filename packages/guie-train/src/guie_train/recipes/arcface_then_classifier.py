"""The recipe of the 5th place: a margin head on frozen features, then the classifier that steers augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from guie_core import Config, ExperimentError, Problem, Slot, UsageError
from guie_core.profiles import Profile
from guie_core.registry import build
from guie_core.wording import did_you_mean, ended
from guie_datasets import Manifest, decode
from guie_datasets.checks import check_max_bad, check_seed
from guie_datasets.images.decoding import Method
from guie_datasets.splits import TRAIN
from guie_train.device import compute_dtype
from guie_train.fitting import Training
from guie_train.heads import LOSS_PROVIDES, TrainedHead
from guie_train.planning.backbones import without_weights
from guie_train.planning.known import known
from guie_train.planning.meta import on_meta
from guie_train.report import Images, Report
from guie_train.retrieval import Protocol
from guie_train.retrieval.metrics import refused
from guie_train.retrieval.protocols import DISTRACTORS
from guie_train.stage import Stage, Workspace
from guie_train.stages.augmentation import Switched
from guie_train.stages.classifier import FitClassifier
from guie_train.stages.data import Prepare, Split
from guie_train.stages.evaluate import RAW, TRAINED, Evaluate
from guie_train.stages.export import Export
from guie_train.stages.features import Features, Shape, ViewConfig
from guie_train.stages.finetune import FineTune, FineTuning
from guie_train.stages.head import FitHead
from guie_train.stages.selection import Selection
from guie_train.stages.submission import Submission


@dataclass(frozen=True, kw_only=True)
class Views:
    """How images are seen: by training, by validation and retrieval, and by the classifier (points 3 and 9)."""

    train: ViewConfig
    valid: ViewConfig
    classifier: ViewConfig

    def check(self, backbone: Config) -> None:
        """Raise ExperimentError if a view refuses its settings both at 224 pixels and at the size of this backbone."""
        pixels: dict[str, Any] = {"size": 224, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        for name in ("train", "valid", "classifier"):
            view, where = getattr(self, name), f"recipe.views.{name}"
            try:
                build("views", view, where=where, **pixels)
            except UsageError:  # perhaps for its size, which is the backbone's: that takes a second to tell
                size = known(lambda: on_meta(lambda: without_weights(backbone)).image_size)
                build("views", view, where=where, **pixels | ({} if size is None else {"size": size}))


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How features are computed and kept.

    Args:
        compute: dtype of the backbone's arithmetic; "profile" leaves it to the hardware, which is faster, and gives
            features that differ in their last digits from one machine to another: that of the profile, and bfloat16 on
            CPUs that multiply it.
        dtype: on disk. The features of these backbones are of the order of 1, which float16 holds to three digits;
            training and evaluation compute in float32.
        views: how often the train view sees each image, if it draws at random; head training then takes one of them at
            random in each epoch. Computing, disk and memory grow with it. 1 is the original's: one draw for all epochs.
        decode: how images are decoded (`guie_datasets.decode`): "full"; "scaled", which is faster for large JPEGs and
            gives features that differ a little; "tensorflow", the pixels of the original.
    """

    compute: Literal["float32", "profile"] = "float32"
    dtype: Literal["float16", "float32"] = "float16"
    views: int = 1
    decode: Method = "full"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views is {self.views}; it is 1 or more.")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """How the classifier is trained, and what it is measured on (5th place, point 9).

    Args:
        training: how.
        data: data sets that it learns from, by the category of their images; none: from the recipe's own data. What is
            reported on is left out, byte for byte.
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
        pca: dimensions of the untrained baseline, fewer where there are fewer training images; 0 leaves it out.
    """

    protocol: Annotated[Config, Slot("protocols")]
    metrics: tuple[str, ...] = ("mP@5", "MRR@5", "Recall@1")
    pca: int = 64

    def __post_init__(self) -> None:
        problems = [each for i, name in enumerate(self.metrics) for each in refused(name, f"metrics.{i}")]
        if not self.metrics:
            problems.append(Problem("metrics", "it names no figure; 'mP@5' is the contest's."))
        if self.pca < 0:
            problems.append(Problem("pca", f"it is {self.pca}; it is a number of dimensions, or 0 for none."))
        if problems:
            raise ExperimentError(problems)


@dataclass(frozen=True, kw_only=True)
class ArcFaceThenClassifier:
    """Frozen or tuned backbone, margin head, classifier, switched augmentation, evaluation, export (arXiv 2210.09495).

    Args:
        data: data sets, united in this order.
        without: those of them, by type, that are left out, for somebody who doesn't have them all.
        filters: which of their images are used at all, applied in this order; none means all.
        splits: who is set aside for what, in this order; what is left is trained on.
        backbone: gives the features; it is not trained, but by `finetune`.
        views: how it sees images.
        head: features to embedding.
        loss: on the embedding.
        arcface: how head and loss are trained.
        selection: which checkpoint is kept.
        finetune: how the backbone is trained as well, after the head or with a new one; what comes later, among it the
            classifier, then works with the tuned backbone. None: it stays as it was pretrained.
        classifier: None leaves it out, and switched augmentation with it.
        augmentation: None evaluates and exports a single view.
        features: how they are computed and kept.
        evaluation: what is reported; None reports nothing, where all is left to somebody else's test.
        exports: formats to write.
        submission: whether the TorchScript export is also packed as the contest's submission.zip.
        seed: of initialisation, order, dropout and random crops.
        trackers: where curves are shown while it trains; nothing depends on them.
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
    finetune: FineTuning | None = None
    exports: list[Annotated[Config, Slot("exporters")]] = field(default_factory=list)
    submission: bool = False
    seed: int = 0
    trackers: list[Annotated[Config, Slot("trackers", provides=("folder",))]] = field(default_factory=list)
    keep_duplicates: bool = False
    max_bad: float = 0.001

    def __post_init__(self) -> None:
        there = [config["type"] for config in self.data]
        if not there:
            hint = 'For example: recipe.data=[dict(type="folder", root="pictures")], a folder of class folders.'
            raise ExperimentError([Problem("recipe.data", "it is empty; it names the data sets to train on.", hint)])
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
        checks: dict[str, Callable[[], object]] = {
            "recipe.seed": lambda: check_seed(self.seed),
            "recipe.max_bad": lambda: check_max_bad(self.max_bad),
            "recipe.classifier.split_seed": lambda: check_seed(self.classifier.split_seed if self.classifier else 0),
            "recipe.selection.protocol": lambda: _built(self.selection.protocol, "recipe.selection.protocol"),
            "recipe.evaluation.protocol": lambda: self.reported,
            "recipe.views": lambda: self.views.check(self.backbone),
            "recipe.arcface": lambda: self.arcface.check("recipe.arcface"),
        }
        if self.finetune:
            tuning = self.finetune.training
            checks["recipe.finetune.training"] = lambda: tuning.check("recipe.finetune.training")
        if self.classifier:
            fitting = self.classifier.training
            checks["recipe.classifier.training"] = lambda: fitting.check("recipe.classifier.training")
        for where, check in checks.items():
            try:
                check()
            except ExperimentError as error:
                problems += error.problems
            except UsageError as error:
                problems.append(Problem(where, ended(error)))
        if problems := problems or list(self._seen_before()):
            raise ExperimentError(problems)

    def _seen_before(self) -> Iterator[Problem]:
        """What is reported on, where it is trained on or takes part in the choice of the checkpoint."""
        reported, key = self.reported, "recipe.evaluation.protocol.split"
        hint = "Set classes of their own aside in recipe.splits for each."
        if reported == TRAIN:
            yield Problem(key, f"{TRAIN!r} is what is trained on, and a report is on what was not seen.", hint)
        chooses = _built(self.selection.protocol, "recipe.selection.protocol")
        for name in ("split", "distractor_splits"):
            splits = getattr(chooses, name, ())
            splits = DISTRACTORS if splits is None else splits
            if reported in ((splits,) if isinstance(splits, str) else splits):
                where, rule = f"recipe.selection.protocol.{name}", "what is reported on is not used for any choice"
                yield Problem(where, f"{reported!r} is what {key} reports on, and {rule}.", hint)

    @property
    def reported(self) -> str | None:
        """The split that no choice may see; None where nothing is reported."""
        if self.evaluation is None:
            return None
        return str(getattr(_built(self.evaluation.protocol, "recipe.evaluation.protocol"), "split", "test"))

    def stages(self, profile: Profile) -> list[Stage[Any]]:
        """The stages, each after its inputs."""
        reported = self.reported
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
            name: str,
            view: Config,
            manifest: Stage[Manifest] = split,
            **more: Any,
        ) -> Features:
            return Features(
                name=f"features {name}",
                manifest=manifest,
                backbone=self.backbone,
                view=view,
                seed=self.seed,
                compute=compute_dtype(profile) if self.features.compute == "profile" else "float32",
                dtype=self.features.dtype,
                decode=self.features.decode,
                max_bad=self.max_bad,
                **more,
            )

        on_frozen = self.finetune is None or self.finetune.start == "head"  # whether a head is trained on features
        # each image is looked at where it is used: another split computes those alone that have changed sides
        train = features("train", self.views.train, splits=(TRAIN,), views=self.features.views if on_frozen else 1)
        protocols = {"recipe.evaluation.protocol": self.evaluation.protocol} if self.evaluation else {}
        valid = features(
            "valid",
            self.views.valid,
            without=(TRAIN,),
            protocols={"recipe.selection.protocol": self.selection.protocol, **protocols},
            beside=(train,),
        )
        before = (train, valid)  # which have decoded every image, and what is left out then may be left out later
        # what the report looks at
        asked: dict[str, Any] = {"splits": (reported,), "protocols": protocols, "beside": before}
        stages: list[Stage[Any]] = [prepare, split, train, valid]
        trained: Stage[TrainedHead] | None = None
        if on_frozen:
            trained = FitHead(
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
            stages.append(trained)
        tuned: FineTune | None = None
        if self.finetune:
            trained = tuned = FineTune(
                name="finetune",
                manifest=split,
                train=train,
                valid=valid,
                start=trained,
                backbone=self.backbone,
                train_view=self.views.train,
                valid_view=self.views.valid,
                head=self.head,
                loss=self.finetune.loss or self.loss,
                training=self.finetune.training,
                blocks=self.finetune.blocks,
                head_lr=self.finetune.head_lr,
                centres_lr=self.finetune.centres_lr,
                layer_decay=self.finetune.layer_decay,
                selection=replace(self.selection, every=self.finetune.every),
                seed=self.seed,
                decode=self.features.decode,
                compute=profile.dtype if self.finetune.compute == "profile" else self.finetune.compute,
            )
            stages.append(tuned)
        assert trained is not None
        classifier, switched = None, {}
        if self.classifier:
            kinds: Stage[Manifest] = split
            of_them: dict[str, Any] = {"without": () if reported is None else (reported,), "beside": before}
            if self.classifier.data:
                kinds, of_them = self._classifiers_own(self.classifier.data), {}
                stages.insert(1, kinds)
            whole = features("classifier", self.views.classifier, kinds, **of_them, tuned=tuned)
            classifier = FitClassifier(
                name="classifier",
                manifest=kinds,
                split=None if kinds is split or reported is None else split,
                features=whole,
                training=self.classifier.training,
                reported=reported,
                folds=self.classifier.folds,
                split_seed=self.classifier.split_seed,
                every=self.classifier.every,
                seed=self.seed,
                augmentation=self.augmentation,
            )
            stages += [whole, classifier]
        if self.augmentation and classifier and self.evaluation:
            for name, view in self.augmentation.views().items():
                shape: Shape = "square" if name == "square" else "other"
                switched[name] = features(f"test {name}", view, **asked, shape=shape, tuned=tuned)
            stages += switched.values()
        if self.evaluation:
            seen = None
            if tuned:
                seen = features("test", self.views.valid, **asked, tuned=tuned)
                stages.append(seen)
            evaluate = Evaluate(
                name="evaluate",
                manifest=split,
                train=train,
                valid=valid,
                head=trained,
                tuned=seen,
                untuned=tuned.start if tuned else None,
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
                head=trained,
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
        head: TrainedHead = workspace.get(stages["finetune" if self.finetune else "head"])
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


def _built(protocol: Config, where: str) -> Protocol:
    found: Protocol = build("protocols", protocol, where=where)
    return found
