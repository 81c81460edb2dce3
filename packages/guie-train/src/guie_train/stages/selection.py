"""How the published checkpoint of a training is chosen: by retrieval among classes that training never sees."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from guie_core import Config, ExperimentError, GuieError, Slot
from guie_core.files import atomic_write, sync_directory
from guie_core.registry import build
from guie_datasets import Manifest
from guie_datasets.splits import TRAIN
from guie_train.fitting import Curve, Fit
from guie_train.planning.forecast import Outlook
from guie_train.planning.known import NotKnown
from guie_train.retrieval import Pairs, evaluate
from guie_train.retrieval.metrics import refused
from guie_train.retrieval.protocols import Expected

if TYPE_CHECKING:
    from guie_train.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How the published checkpoint is chosen: by retrieval among classes that training never sees (5th place, point 8).

    Args:
        protocol: which images ask and which answer.
        metric: the figure that decides; the earliest of equals wins.
        every: epochs between two evaluations; the last epoch is always evaluated.
        normalise: whether embeddings are L2-normalised first; the original compares them as they are.
        keep: "best" by the metric, or simply the "last" epoch.
        patience: training ends early after so many evaluations in a row without a better figure; 0: never.
        top_k: checkpoints of so many epochs with the best figures are kept, as `top-<epoch>.safetensors`; 0: none
            besides the chosen one.
    """

    protocol: Annotated[Config, Slot("protocols")]
    metric: str = "mP@5"
    every: int = 10
    normalise: bool = False
    keep: Literal["best", "last"] = "best"
    patience: int = 0
    top_k: int = 0

    def __post_init__(self) -> None:
        for name, least in {"every": 1, "patience": 0, "top_k": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it is {least} or more.")
        if problems := refused(self.metric, "metric"):
            raise ExperimentError(problems)

    def ranked(self, curves: list[Curve]) -> list[Curve]:
        """Those of the epochs that were evaluated, the best first, the earlier of equals before the later."""
        return sorted((c for c in curves if self.metric in c), key=lambda curve: -curve[self.metric])

    def enough(self, curves: list[Curve]) -> bool:
        """Whether patience has come to its end."""
        scores = [curve[self.metric] for curve in curves if self.metric in curve]
        return bool(scores) and 0 < self.patience < len(scores) - scores.index(max(scores))

    def chosen(self, curves: list[Curve]) -> int:
        """The epoch of the published checkpoint: the earliest with the best score, or the last."""
        if self.keep == "last":
            return int(curves[-1]["epoch"])
        return int(self.ranked(curves)[0]["epoch"])

    def figure(self, curves: list[Curve], epoch: int) -> dict[str, Any]:
        """What `Stage.selected` tells of the chosen epoch."""
        return {"metric": self.metric, "value": curves[epoch - 1][self.metric], "epoch": epoch}


class Selector:
    """Evaluates a training after its epochs, and keeps the checkpoints of those that are chosen, or best by validation.

    Called with the number of epochs done, the model in evaluation mode, it gives the figures. Until `finish`,
    checkpoints are called by their epochs alone, so that they are what the curves say whenever the training is killed,
    and however it goes on.

    Args:
        selection: by what, and how often.
        fit: the training.
        manifest: of the images.
        classes: labels [C] of the images that are trained on, ascending: the loss's classes.
        pairs: rows of the manifest that ask and that may answer.
        loss: the training's.
        inputs: what `embed` takes for so many rows of the manifest; asked for once.
        embed: embeddings [n, E] by the model as it is.
        keep_validated: whether checkpoints with the best validation loss and accuracy are written, besides the chosen.
    """

    def __init__(
        self,
        selection: Selection,
        fit: Fit,
        manifest: Manifest,
        classes: NDArray[Any],
        pairs: Pairs,
        loss: Any,
        inputs: Callable[[NDArray[np.int64]], Any],
        embed: Callable[[Any], Tensor],
        keep_validated: bool = True,
    ) -> None:
        self.selection = selection
        self.fit = fit
        self.loss = loss
        self.embed = embed
        self.keep_validated = keep_validated
        label = manifest.column("label")
        asked = np.unique(np.concatenate([pairs.queries, pairs.index]))
        self.pairs = Pairs(np.searchsorted(asked, pairs.queries), np.searchsorted(asked, pairs.index))
        self.labels, self.categories = label[asked], manifest.column("category")[asked]
        self.asked = inputs(asked)
        # losses that compare pairs have no logits
        can_validate = (manifest.column("split") == "valid") & hasattr(loss, "margin_logits")
        seen = np.flatnonzero(can_validate & np.isin(label, classes))
        self.seen = inputs(seen) if len(seen) else None
        self.targets = torch.from_numpy(np.searchsorted(classes, label[seen]))

    def __call__(self, epoch: int) -> Curve:
        selection, fit = self.selection, self.fit
        embedding = self.embed(self.asked).float()
        if selection.normalise:
            embedding = nn.functional.normalize(embedding)
        metrics = tuple(dict.fromkeys((selection.metric, "MRR@5")))
        curve = dict(evaluate(embedding.cpu(), self.labels, self.categories, self.pairs, metrics=metrics).overall)
        if self.seen is not None:
            curve |= _validate(self.loss, self.embed(self.seen), self.targets, fit.training.batch_size)
        curves = [*fit.curves, {"epoch": epoch, **curve}]
        wanted = self._names(curves, epoch == fit.training.epochs or selection.enough(curves))
        if epoch in wanted.values():
            fit.write_checkpoint(_selected(epoch))
        # what the state on the disk knows of is kept as well: after a kill, epochs since then may come out otherwise
        kept = {_selected(each) for each in (*wanted.values(), *self._names(fit.curves[: fit.saved_epochs]).values())}
        for path in fit.folder.glob("selected-*.safetensors"):
            if path.stem not in kept:
                path.unlink()
        return curve

    def finish(self, curves: list[Curve]) -> None:
        """Give the checkpoints the names that they have by all curves. A kill meanwhile costs nothing."""
        names: dict[int, list[str]] = {}
        for name, epoch in self._names(curves, ended=True).items():
            names.setdefault(epoch, []).append(name)
        for path in self.fit.folder.glob("selected-*.safetensors"):
            called = names.get(int(path.stem.rpartition("-")[2]))
            if called is None:
                path.unlink()
                continue
            for name in called[1:]:
                with open(path, "rb") as source, atomic_write(path.with_stem(name)) as file:
                    shutil.copyfileobj(source, file)
            os.replace(path, path.with_stem(called[0]))
        sync_directory(self.fit.folder)

    def _names(self, curves: list[Curve], ended: bool = False) -> dict[str, int]:
        """The epochs that are kept by these curves, by what their checkpoints are called in the end."""
        ranked = [int(curve["epoch"]) for curve in self.selection.ranked(curves)]
        found = {f"top-{epoch:04d}": epoch for epoch in ranked[: self.selection.top_k]}
        if ended or (ranked and self.selection.keep == "best"):
            found["chosen"] = self.selection.chosen(curves)
        for name, sign in (("valid loss", -1), ("valid accuracy", 1)) if self.keep_validated else ():
            if scored := [curve for curve in curves if name in curve]:
                best = max(scored, key=lambda curve: sign * curve[name])
                found[f"best-{name.replace(' ', '-')}"] = int(best["epoch"])
        return found


def looked_at(manifest: Manifest, pairs: Pairs) -> Manifest:
    """The images that a training depends on: those it learns from, validates on, and chooses a checkpoint by."""
    rows = np.isin(manifest.column("split"), (TRAIN, "valid"))
    rows[pairs.queries] = rows[pairs.index] = True
    return manifest.select(rows)


def _selected(epoch: int) -> str:
    """What a checkpoint of that epoch is called while the training goes on."""
    return f"selected-{epoch:04d}"


def _validate(loss: Any, embedding: Tensor, labels: Tensor, batch_size: int) -> Curve:
    """Loss and accuracy on margin-penalised logits, as the original logs them; in batches, since logits are [N, C]."""
    total, right = 0.0, 0
    labels = labels.to(embedding.device)
    for x, y in zip(embedding.split(batch_size), labels.split(batch_size), strict=True):
        logits = loss.margin_logits(x, y)
        total += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    return {"valid loss": total / len(labels), "valid accuracy": right / len(labels)}


def check_pairs(protocol: Config, where: str, manifest: Manifest, stage: str) -> None:
    """Raise what `answerable_pairs` raises, and warn where every query is sure to find a right answer."""
    pairs = answerable_pairs(protocol, where, manifest)
    if len(np.unique(manifest.column("label")[pairs.index])) == 1:
        log.warning(
            "%s: by %s, all images that may answer are of one class: every answer is right, and the scores tell "
            "nothing. Set more classes aside in recipe.splits (of UnseenClasses, fewer folds), or add data",
            stage,
            where,
        )


def pairs_of(protocol: Config, where: str, manifest: Manifest) -> Pairs:
    """Who asks and who answers by a protocol of this experiment; `where` is its key.

    Raises:
        GuieError: as the protocol does, with the key.
    """
    built = build("protocols", protocol, where=where)
    try:
        pairs: Pairs = built.pairs(manifest.column("label"), manifest.column("split"))
    except GuieError as error:
        raise GuieError(f"{where}: {error}") from error
    return pairs


def expected_pairs(protocol: Config, where: str, manifest: Stage[Manifest], outlook: Outlook) -> Expected:
    """How many images are asked by a protocol of this experiment, and how many answer, ahead of time.

    Raises:
        NotKnown: the protocol doesn't say, or it isn't known what there will be.
        GuieError: there is no such split, and the manifest is there.
    """
    built = build("protocols", protocol, where=where)
    if not callable(expected := getattr(built, "expected", None)):
        raise NotKnown(f"{protocol['type']} doesn't say how many images it takes")
    try:
        found: Expected = expected(outlook.images(manifest).splits)
    except GuieError as error:
        if outlook.ready(manifest):
            raise GuieError(f"{where}: {error}") from error
        raise NotKnown(f"{where}: {error} Or does it come with the data?") from error
    return found


def answerable_pairs(
    protocol: Config, where: str, manifest: Manifest, usable: NDArray[np.int64] | None = None
) -> Pairs:
    """Who asks and who answers by a protocol of this experiment.

    Of the rows `usable`, in ascending order, if they are given: the pairs are then positions among them. Images that
    cannot be decoded are not replaced by others, so that nobody has to know of them to tell who else is asked.

    Raises:
        GuieError: nobody asks, or no query has a right answer.
    """
    pairs, label = pairs_of(protocol, where, manifest), manifest.column("label")
    if usable is not None:
        pairs = Pairs(*(np.searchsorted(usable, rows[np.isin(rows, usable)]) for rows in (pairs.queries, pairs.index)))
        label = label[usable]
    classes, counts = np.unique(label[pairs.index], return_counts=True)
    # a query in the index does not answer itself
    relevant = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    own = np.isin(pairs.queries, pairs.index)
    if not any(relevant.get(int(label[row]), 0) > itself for row, itself in zip(pairs.queries, own, strict=True)):
        raise GuieError(
            f"{where}: none of {len(pairs.queries):,} queries has another image of its class to find; "
            "the classes need two images at least"
        )
    return pairs
