"""Stages that make the manifest: Prepare and Split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from guie_core import Config, Slot
from guie_core.registry import build
from guie_datasets import Manifest, prepare, split
from guie_train.stage import Stage, Workspace


@dataclass(frozen=True, kw_only=True)
class Prepare(Stage[Manifest]):
    """Data sets to one manifest: labels united, sizes and hashes read, bad images set apart (5th place, point 1)."""

    slug: ClassVar[str] = "prepare"
    cheap: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("guie-datasets",)
    data: list[Annotated[Config, Slot("datasets")]]
    max_bad: float = 0.001

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write `manifest.parquet`, and to `quarantine.csv` what was left out or looks wrong."""
        datasets = [build("datasets", config, where=f"recipe.data.{i}") for i, config in enumerate(self.data)]
        manifest, _ = prepare(datasets, max_bad=self.max_bad, quarantine=folder / "quarantine.csv")
        manifest.write(folder / "manifest.parquet")

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """Path, size and time of the files that the data sets read, so that changed data are prepared again."""
        paths = sorted(
            {
                path
                for i, config in enumerate(self.data)
                for path in build("datasets", config, where=f"recipe.data.{i}").sources()
            }
        )
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

    def load(self, folder: Path) -> Manifest:
        """The manifest; its `split` column is empty."""
        return Manifest.read(folder / "manifest.parquet")

    def summary(self, output: Manifest) -> str:
        """Images, classes, and how many were left out."""
        classes = len(np.unique(output.column("label")))
        findings = output.provenance["findings"]
        aside = f"; quarantine.csv: {findings}" if findings else ""
        return f"{len(output):,} images of {classes:,} classes{aside}"


@dataclass(frozen=True, kw_only=True)
class Split(Stage[Manifest]):
    """Who may be used for what: each split takes its rows from those that are left; the rest is "train"."""

    slug: ClassVar[str] = "split"
    cheap: ClassVar[bool] = True
    manifest: Stage[Manifest]
    splits: list[Annotated[Config, Slot("splits")]]

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write `manifest.parquet` with its `split` column set."""
        splits = [build("splits", config, where=f"recipe.splits.{i}") for i, config in enumerate(self.splits)]
        split(workspace.get(self.manifest), splits).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        """The manifest with its `split` column set."""
        return Manifest.read(folder / "manifest.parquet")

    def summary(self, output: Manifest) -> str:
        """Images of each split."""
        names, counts = np.unique(output.column("split"), return_counts=True)
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
