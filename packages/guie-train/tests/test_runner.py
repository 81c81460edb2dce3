"""Where a run goes, and which stages it takes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from guie_core import UsageError
from guie_core.experiment import Experiment
from guie_core.profiles import CPU
from guie_train.processes import Processes
from guie_train.runner import _chosen, _started, default_folder
from guie_train.stage import Stage, Workspace


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "photos"),
        (("recipe.seed=1",), "photos-0123ab"),
        (("profile.workers=1", "recipe.seed=1"), "photos-0123ab"),
        (("profile.workers=1", "profile=cpu"), "photos"),  # which change no result
    ],
)
def test_variants_lie_beside_each_other(overrides: tuple[str, ...], name: str) -> None:
    experiment = Experiment(Path("photos.py"), "photos", "", {}, CPU, overrides, {}, "0123abcdef")
    assert default_folder(experiment) == Path("runs") / name


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage[None]):
    """Makes nothing of nothing, or of what another has made."""

    slug: ClassVar[str] = "nothing"
    source: Stage[Any] | None = None

    def run(self, folder: Path, workspace: Workspace) -> None:
        """Do nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""


def test_the_stages_that_are_run_again() -> None:
    split = Nothing(name="split")
    head = Nothing(name="head", source=split)
    stages: list[Stage[Any]] = [split, head, Nothing(name="evaluate", source=head)]
    assert _chosen(stages, None, "head") == (stages, stages[1:])
    assert _chosen(stages, "head", "head")[0] == stages[:2]
    for last, start in (("head", "evaluate"), ("split", "head")):
        with pytest.raises(UsageError) as error:
            _chosen(stages, last, start)
        assert str(error.value) == (
            f"--from {start!r} comes after --stage {last!r}, so that nothing would be run again.\n"
            f"Begin with {last!r} or a stage before it, or stop after {start!r} or later."
        )


@pytest.mark.parametrize(
    ("program", "module", "started"),
    [
        ("/bin/guie-train", None, "-m guie_train a.py"),
        ("/bin/guie", None, "-m guie_core.cli a.py"),
        ("/lib/guie_train/__main__.py", "guie_train.__main__", "-m guie_train a.py"),
    ],
)
def test_the_command_of_several_processes_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, program: str, module: str | None, started: str
) -> None:
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [program, "a.py"])
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert " ".join(_started(Processes(0, 2))) == f"torchrun --nproc-per-node 2 {started}"
    monkeypatch.delenv("WORLD_SIZE")
    assert " ".join(_started(Processes(0, 2))) == f"srun --ntasks 2 python {started}"
