"""The stage that leaves Python: Export."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

from guie_core import Config, ExperimentError, Interrupted, Problem, Slot
from guie_core.files import atomic_write
from guie_core.profiles import Profile
from guie_core.progress import bar
from guie_core.registry import build
from guie_core.wording import listing
from guie_datasets import Manifest, read_images
from guie_models import Embedder, ExportReport
from guie_models.exporters.onnx import Onnx
from guie_train.allocator import caching_allocator
from guie_train.heads import TrainedHead
from guie_train.planning.backbones import Frozen
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook, Trained
from guie_train.planning.known import known
from guie_train.planning.meta import parameters, state_bytes
from guie_train.stage import Stage, Workspace
from guie_train.stages.augmentation import Switched
from guie_train.stages.classifier import TrainedClassifier
from guie_train.stages.features import ViewConfig

_ONE_FILE = "it writes {name}, which {other} writes as well. Leave one of them out."
CODE = 180_000  # bytes of an exported file that are not weights
ONNX = 0.2e9
"""Bytes of memory that a first export to ONNX takes besides weights, for onnx, onnxscript, onnxruntime and what torch's
exporter makes itself ready with: `benchmarks/memory.py` on the quickstart, beside its export to TorchScript alone."""


@dataclass(frozen=True, kw_only=True)
class Export(Stage[list[ExportReport]]):
    """Write the embedder in formats that run elsewhere, each proven equal on real images.

    Args:
        split: the images of the proof are taken from it, evenly over its rows.
        images: how many.
    """

    slug: ClassVar[str] = "export"
    manifest: Stage[Manifest]
    head: Stage[TrainedHead]
    classifier: Stage[TrainedClassifier] | None
    backbone: Annotated[Config, Slot("backbones")]
    view: ViewConfig
    augmentation: Switched | None
    exporters: list[Annotated[Config, Slot("exporters")]]
    split: str = "test"
    images: int = 64

    def embedder(self, workspace: Workspace) -> Embedder:
        """The deployable model, with trained weights, on the CPU."""
        trained = workspace.get(self.head)
        backbone = trained.tune(build("backbones", self.backbone, where="recipe.backbone"))
        data: dict[str, Any] = {"size": backbone.image_size, "mean": backbone.mean, "std": backbone.std}
        classifier = workspace.get(self.classifier) if self.classifier else None
        augmentation = None
        if self.augmentation and classifier:
            augmentation = self.augmentation.build(classifier.categories, **data)
        embedder = Embedder(
            backbone,
            trained.build(),
            build("views", self.view, **data),
            augmentation,
            classifier.build() if classifier else None,
        )
        return embedder.eval()

    def check(self, workspace: Workspace) -> None:
        """Raise GuieError if an exporter refuses its settings or lacks what it needs, or two write the same file."""
        self._exporters()

    def _exporters(self) -> list[Any]:
        built = {
            f"recipe.exports.{i}": build("exporters", config, where=f"recipe.exports.{i}")
            for i, config in enumerate(self.exporters)
        }
        first: dict[str, str] = {}  # by the file's name
        problems = []
        for where, exporter in built.items():
            name = getattr(exporter, "filename", "")
            if name and first.setdefault(name, where) != where:
                problems.append(Problem(where, _ONE_FILE.format(name=name, other=first[name])))
        if problems:
            raise ExperimentError(problems)
        return list(built.values())

    def forecast(self, outlook: Outlook) -> Forecast:
        """The embedder's weights, once in each format. In memory they are three times, the model, what is written of
        it and what is read back; for ONNX four times, as measured with ViT-B."""
        frozen = Frozen.of(self.backbone, outlook)
        backbone = frozen.backbone
        stages = [stage for stage in (self.head, self.classifier) if stage is not None]
        parts = [outlook.given(stage, Trained).parameters for stage in stages]
        count = parameters(backbone)[0] + sum(parts)
        weights = state_bytes(backbone) + 4 * sum(parts)
        exporters = self._exporters()
        smaller = {"float16": 1 / 2, "int8": 1 / 4}
        files = [CODE + weights * smaller.get(getattr(each, "precision", ""), 1) for each in exporters]
        seconds, basis = None, "minutes, on the CPU"
        if outlook.profile.device == "cpu":
            # of each image, the backbone's features by the model, and by what is exported
            there = known(lambda: outlook.images(self.manifest).of(self.split).images)
            compared = self.images if there is None else min(self.images, there)
            side = backbone.image_size
            seconds, _, basis = frozen.time(compared * (1 + len(exporters)), 1, "float32", (3, side, side))
        return Forecast(
            does=f"one raw image -> its embedding, as {listing(config['type'] for config in self.exporters)}; "
            f"compared on {self.images} images",
            parameters=count,
            disk=sum(files),
            host=LIBRARIES + (ONNX + 4 * weights if any(isinstance(each, Onnx) for each in exporters) else 3 * weights),
            seconds=seconds,
            at_least=True,
            basis=basis,
        )

    def lower(self, profile: Profile) -> str:
        """Formats, since the CPU makes them whatever the profile is."""
        return "Leave formats out of recipe.exports; Safetensors takes least"

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write each exporter's files and `exports.json` with what the comparison found."""
        manifest = workspace.get(self.manifest)
        rows = np.flatnonzero(manifest.column("split") == self.split)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(self.images, len(rows))).astype(int))]
        refs = [manifest.images()[row] for row in rows]
        # one that cannot be decoded was told of by the stage that needed its features
        read = read_images(refs, workers=workspace.profile.workers, on_bad=lambda index, error: None)
        images = [torch.from_numpy(image) for image in read if image is not None]
        embedder = self.embedder(workspace)
        reports: list[ExportReport] = []
        with bar(len(self.exporters), self.name, unit="format") as progress, caching_allocator():
            for i, exporter in enumerate(self._exporters()):
                report = exporter.export(embedder, folder, images)
                for other, earlier in enumerate(reports):  # of exporters that don't say ahead what they write
                    if earlier.path.name == report.path.name:
                        told = _ONE_FILE.format(name=report.path.name, other=f"recipe.exports.{other}")
                        raise ExperimentError([Problem(f"recipe.exports.{i}", told)])
                reports.append(report)
                progress.advance(1)
                if workspace.stop and i + 1 < len(self.exporters):
                    raise Interrupted(f"{self.name}: {i + 1} of {len(self.exporters)} formats are written")
        with atomic_write(folder / "exports.json", "w") as file:
            json.dump([asdict(report) | {"path": Path(report.path).name} for report in reports], file, indent=1)

    def load(self, folder: Path) -> list[ExportReport]:
        """What the comparison of each export with the embedder found."""
        found = json.loads((folder / "exports.json").read_text())
        return [ExportReport(**report | {"path": folder / report["path"]}) for report in found]

    def summary(self, output: list[ExportReport]) -> str:
        """The files, which of them are without the test-time augmentation, and the worst of their differences."""
        worst = max(report.max_difference for report in output)
        files = [report.path.name + " (one view)" * bool(report.note) for report in output]
        return f"{', '.join(files)} equal the model within {worst:.0e}"
