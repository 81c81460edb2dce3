"""The stage that packs what the contest takes: Submission."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from guie_core.wording import size
from guie_models import ExportReport
from guie_train.planning.forecast import LIBRARIES, Forecast, Outlook
from guie_train.prediction.models import MEMBER, find_model
from guie_train.prediction.submission import build_submission
from guie_train.stage import Stage, Workspace


@dataclass(frozen=True, kw_only=True)
class Submission(Stage[Path]):
    """The exported TorchScript model as the contest's submission.zip (5th place, point 10)."""

    slug: ClassVar[str] = "submission"
    export: Stage[list[ExportReport]]

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Write `submission.zip`."""
        exports = workspace.get(self.export)
        model = next(report.path for report in exports if report.path.name == MEMBER)
        build_submission(find_model(model, ("TorchScript",)), folder / "submission.zip")

    def forecast(self, outlook: Outlook) -> Forecast:
        """A copy of the export, which doesn't shrink."""
        export = outlook.forecast(self.export)
        return Forecast(
            does="saved_model.pt in a zip, not compressed",
            disk=export.disk,
            host=LIBRARIES,
            basis="seconds",
        )

    def load(self, folder: Path) -> Path:
        """The zip."""
        return folder / "submission.zip"

    def summary(self, output: Path) -> str:
        """Its size, and what to look at next."""
        return f"{output.name}, {size(output.stat().st_size)}; `guie submit check` runs it as the contest does"
