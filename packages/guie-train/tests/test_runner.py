"""Where a run goes, and what it is warned of before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from guie_core.experiment import Experiment
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_train import runner
from guie_train.planning.forecast import Forecast, Outlook
from guie_train.runner import default_folder
from guie_train.stage import Stage, Workspace

EXPERIMENT = Path(__file__).resolve().parents[3] / "experiments" / "quickstart.py"


@pytest.mark.parametrize(
    ("override", "variant"),
    [("recipe.seed=1", True), ("profile.workers=1", False), ("profile=cpu", False), ("", False)],
)
def test_what_changes_no_result_makes_no_variant(override: str, variant: bool) -> None:
    experiment = Experiment.load(EXPERIMENT, [override] if override else [], profile="cpu")
    name = f"quickstart-{experiment.digest[:6]}" if variant else "quickstart"
    assert default_folder(experiment) == Path("runs") / name


@dataclass(frozen=True, kw_only=True)
class Large(Stage[str]):
    """A stage that takes 6 GB of a GPU."""

    slug: ClassVar[str] = "large"

    def run(self, folder: Path, workspace: Workspace) -> None:
        (folder / "value").touch()

    def load(self, folder: Path) -> str:
        return (folder / "value").read_text()

    def forecast(self, outlook: Outlook) -> Forecast:
        return Forecast(device=6e9)


@dataclass(frozen=True, kw_only=True)
class Broken(Large):
    """One whose forecast fails."""

    def forecast(self, outlook: Outlook) -> Forecast:
        raise AttributeError("no such thing")


def test_an_estimate_stops_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "free_memory", lambda: ("the GPU, of whose 4 GB 3 GB are free,", 3_000_000_000))
    workspace = Workspace(tmp_path, profile("t4-16g"), Stop())
    runner._check_room([Large(name="large"), Broken(name="broken")], [], workspace)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: as far as it can be told ahead, the GPU, of whose 4 GB 3 GB are free, has 3.0 GB")
    assert second == "  large takes 6.0 GB"
    found = Outlook(workspace).forecast(Broken(name="broken"))
    assert (found.device, found.basis) == (None, "it can't be told: AttributeError: no such thing")
