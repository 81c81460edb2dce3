"""A recipe with all its stages that takes seconds, and what it learns."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from guie_train.feature_store import FeatureStore

from .faults import Action, Fault, Outcome, Server

STAGES = (
    *("prepare", "prepare classifier", "split", "features train", "features valid", "head", "features classifier"),
    *("classifier", "features test square", "features test whole", "features test padded_crop", "features test padded"),
    *("evaluate", "export", "submission"),
)


# moments that a run meets one after the other, when it goes on after each: in every stage, in its record and its report
PLACES = [
    *(("/runs/small/", 3), ("/store/prepare/", 4), ("/store/prepare/", 6), ("/store/split/", 7)),
    *(("/store/features/", 4), ("/store/features/", 9), ("/store/head/", 4), ("/runs/small/", 70)),
    *(("/store/classifier/", 4), ("/store/evaluate/", 24), ("/store/export/", 6), ("/store/submission/", 4)),
    *(("/small/.report.html.", 1),),
]
ALL = os.environ.get("GUIE_ALL_MOMENTS", "0") != "0"


@dataclass(frozen=True)
class Chain:
    """Runs of one experiment on one set of pictures; of one that nobody disturbs, how many calls it makes, and what it
    learns."""

    server: Server
    data: Path
    calls: int
    learnt: dict[str, str]

    def run(self, work_dir: Path, fault: Fault | None = None) -> Outcome:
        """A run in `work_dir`, or one that goes on there."""
        return self.server.run(arguments(self.data, work_dir), fault)

    def each_moment(self, work_dir: Path, action: Action) -> Iterator[Outcome]:
        """Runs that go on after each other, each failing at the first moment at which none before it has.

        They come by the moments of going on too, such as the removal of what another has left. It takes one run each,
        of a stage at most, where failing once in a fresh run takes two whole ones. The n-th change of a path is the
        n-th of a process, so that runs which go on miss late ones: fresh runs follow, until one meets nothing new.
        """
        failed: list[str] = []
        while True:
            fresh = not work_dir.exists()
            outcome = self.run(work_dir, Fault(action, 0, but=tuple(failed)))
            if outcome.failed:
                failed.append(outcome.failed)
                yield outcome
                if outcome.code:
                    continue
                assert learnt(work_dir) == self.learnt  # what the disk refused to remove may lie there
            else:
                assert outcome.code == 0, outcome
                self.check_finishes(work_dir)
            shutil.rmtree(work_dir.parent)
            if fresh and not outcome.failed:
                return

    def check_finishes(self, work_dir: Path) -> None:
        """The same command ends with what an undisturbed run learns, and leaves nothing else behind."""
        done = self.run(work_dir)
        assert done.code == 0, done.err
        assert learnt(work_dir) == self.learnt
        assert not (left := leftovers(work_dir)), left


def draw(folder: Path) -> None:
    """Writes two sets of small pictures, each with its table: one to train on, one for the classifier."""
    _pictures(folder / "own", classes=16, images=4, seed=0)
    _pictures(folder / "kinds", classes=4, images=8, seed=1)


def _pictures(folder: Path, classes: int, images: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rows = []
    for label in range(classes):
        random = np.random.default_rng((seed, label))
        colour = tuple(random.integers(0, 256, 3).tolist())
        for number in range(images):
            size = (36, 48, 3) if number % 3 else (40, 40, 3)  # squares, and others, for the views of augmentation
            image = Image.fromarray(random.integers(90, 160, size, dtype=np.uint8))
            ImageDraw.Draw(image).ellipse((4 + number, 4, 24 + label, 20 + label), fill=colour)
            image.save(folder / f"{label}-{number}.png")
            rows.append((f"{label}-{number}.png", label, f"kind {label % 2}"))
    with open(folder / "table.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([("path", "label", "category"), *rows])


def arguments(data: Path, work_dir: Path) -> list[str]:
    """Of guie-train, for a run in `work_dir` on what `draw` wrote to `data`."""
    return ["experiments/quickstart.py", "--profile", "cpu", "--work-dir", str(work_dir), *_small(data)]


def _small(data: Path) -> Iterator[str]:
    for setting in (
        f"recipe.data=[dict(type='table', file='{data}/own/table.csv')]",
        f"recipe.classifier.data=[dict(type='table', file='{data}/kinds/table.csv')]",
        "recipe.splits.0.classes=4",
        "recipe.splits.1.folds=3",
        "recipe.backbone=dict(type='timm/test_resnet', weights='none', image_size=32)",
        "recipe.head.dropout=0.1",
        "recipe.arcface.epochs=3",
        "recipe.arcface.warmup_epochs=0",
        "recipe.arcface.batch_size=8",
        "recipe.arcface.keep_every=2",
        "recipe.selection.every=1",
        "recipe.classifier.training.epochs=2",
        "recipe.classifier.training.batch_size=8",
        "recipe.classifier.folds=4",
        "recipe.augmentation.padded_for=('kind 0',)",
        "recipe.evaluation.pca=8",
        "recipe.exports=[dict(type='TorchScript'), dict(type='Safetensors')]",
        "recipe.submission=True",
    ):
        yield from ("--set", setting)


def learnt(work_dir: Path) -> dict[str, str]:
    """Digests of all that a run in `work_dir` has made and that doesn't hold times of day or speeds."""
    store = work_dir.parent / "store"
    found = {
        str(path.relative_to(store)): _digest(path.read_bytes())
        for path in sorted(store.rglob("*"))
        if path.name in ("manifest.parquet", "quarantine.csv", "curves.json", "evaluation.json", "README.md")
        or path.suffix == ".safetensors"
    }
    for folder in sorted(
        (store / "features").glob("[!.]*")
    ):  # how they are cut into shards depends on where it stopped
        features = FeatureStore(folder)
        hashes = np.sort(np.concatenate([np.load(path)["hash"] for path in folder.glob("*.rows.npy")]))
        found[f"features/{folder.name}"] = _digest(features.read(hashes).tobytes())
    for path in sorted(store.glob("evaluate/[!.]*/*/evaluation.npz")):
        with np.load(path) as arrays:
            found[str(path.relative_to(store))] = _digest(b"".join(arrays[name].tobytes() for name in arrays.files))
    for path in sorted(store.glob("export/[!.]*/saved_model.pt")):
        with zipfile.ZipFile(path) as archive:  # its code names types by the order in which they were compiled
            tensors = [archive.read(name) for name in sorted(archive.namelist()) if "/data/" in name]
        found[str(path.relative_to(store))] = _digest(b"".join(tensors))
    for path in sorted(store.glob("submission/[!.]*/submission.zip")):
        with zipfile.ZipFile(path) as archive:
            (model,) = archive.namelist()
            same = archive.read(model) == (work_dir / "stages" / "export" / model).read_bytes()
        found[str(path.relative_to(store))] = "the exported model" if same else "another model"
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def leftovers(work_dir: Path) -> list[str]:
    """Names of what a finished run should not have left behind, in its folder and in the store."""
    finished = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.lock")
    store = work_dir.parent / "store"
    odd = [path for path in store.glob("*/*") if not finished.fullmatch(path.name)]
    odd += [path for path in work_dir.parent.rglob("*") if path.name.startswith(".") and path.suffix != ".lock"]
    return sorted({str(path.relative_to(work_dir.parent)) for path in odd})
