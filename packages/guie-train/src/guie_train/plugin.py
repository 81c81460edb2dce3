"""What guie-train offers: kinds, entries and commands. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from guie_core import Entry, Kind, hookimpl


@hookimpl
def guie_kinds() -> Iterable[Kind]:
    """The kinds that guie-train builds."""
    return [
        Kind("recipes", "stages in order, and the settings they take"),
        Kind("stages", "the steps of a recipe"),
        Kind("metrics", "figures of retrieval"),
        Kind("protocols", "which images ask and which answer"),
        Kind("trackers", "where curves are shown while a run trains"),
    ]


@hookimpl
def guie_recipes() -> Iterable[Entry]:
    """The recipes of guie-train."""
    return [
        Entry(
            "ArcFaceThenClassifier",
            "guie_train.recipes.arcface_then_classifier:ArcFaceThenClassifier",
            "Margin head on frozen features, then the classifier for switched augmentation (arXiv 2210.09495)",
        )
    ]


@hookimpl
def guie_stages() -> Iterable[Entry]:
    """The stages of guie-train."""
    return [
        Entry("Prepare", "guie_train.stages.data:Prepare", "Data sets to one manifest"),
        Entry("Split", "guie_train.stages.data:Split", "Who may be used for what"),
        Entry("Features", "guie_train.stages.features:Features", "Features of images through one view"),
        Entry("FitHead", "guie_train.stages.head:FitHead", "Train head and margin loss on features"),
        Entry("FineTune", "guie_train.stages.finetune:FineTune", "Train the backbone, too, on images"),
        Entry("FitClassifier", "guie_train.stages.classifier:FitClassifier", "Train the classifier of categories"),
        Entry("Evaluate", "guie_train.stages.evaluate:Evaluate", "Retrieval of raw, PCA and trained embeddings"),
        Entry("Export", "guie_train.stages.export:Export", "Formats that run elsewhere, proven equal"),
        Entry("Submission", "guie_train.stages.submission:Submission", "The contest's submission.zip"),
    ]


@hookimpl
def guie_metrics() -> Iterable[Entry]:
    """The metrics of guie-train."""
    metrics = "guie_train.retrieval.metrics"
    return [
        Entry("mP@k", f"{metrics}:MeanPrecisionAt", "Precision over the first min(relevant, k) ranks, the contest's"),
        Entry("MRR@k", f"{metrics}:ReciprocalRankAt", "1 / rank of the first hit within k"),
        Entry("Recall@k", f"{metrics}:RecallAt", "Share of queries with a hit within k"),
        Entry("mAP@k", f"{metrics}:MeanAveragePrecisionAt", "Average precision within k"),
        Entry("MAP@R", f"{metrics}:MeanAveragePrecisionAtR", "Average precision within the number of relevant images"),
        Entry("R-precision", f"{metrics}:RPrecision", "Precision within the number of relevant images"),
    ]


@hookimpl
def guie_protocols() -> Iterable[Entry]:
    """The protocols of guie-train."""
    protocols = "guie_train.retrieval.protocols"
    return [
        Entry("LeaveOneOut", f"{protocols}:LeaveOneOut", "Every image of a split asks all others of it"),
        Entry(
            "FirstAgainstSecond",
            f"{protocols}:FirstAgainstSecond",
            "The first image of a class asks for the second among distractors (5th place, point 8)",
        ),
    ]


@hookimpl
def guie_trackers() -> Iterable[Entry]:
    """The trackers of guie-train."""
    trackers = "guie_train.trackers"
    return [
        Entry("TensorBoard", f"{trackers}:TensorBoard", "Event files for TensorBoard in the run's folder"),
        Entry("MLflow", f"{trackers}:MLflow", "A run of MLflow, on a server or in a file"),
        Entry("WandB", f"{trackers}:WandB", "A run of Weights & Biases"),
    ]


@hookimpl
def guie_commands() -> Iterable[Entry]:
    """The commands of guie-train."""
    commands = "guie_train.commands"
    return [
        Entry("train", "guie_train.cli:train", "Train an experiment: from its data sets to report and exports"),
        Entry("sweep", f"{commands}.sweep:sweep", "Train an experiment with several values of its settings"),
        Entry("runs", f"{commands}.runs:runs", "List, show, compare, rank and clean up runs"),
        Entry("bench", f"{commands}.bench:bench", "Measure what this machine does in a second, and compare"),
        Entry("features", f"{commands}.features:features", "Compute features ahead, check and exchange them"),
        Entry("predict", f"{commands}.predict:predict", "Embed images with a trained model, to Parquet or NumPy"),
        Entry("submit", f"{commands}.submit:submit", "Build, check and score a submission to the contest"),
    ]
