"""Features that several processes compute: asked to stop, all of them stop, and go on with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from guie_core import Interrupted
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_datasets import Manifest
from guie_train.planning.forecast import Forecast
from guie_train.planning.plan import make_plan
from guie_train.processes import ALONE, Processes
from guie_train.stage import Stage, Workspace
from guie_train.stages.features import Features

InProcesses = Callable[[int, Callable[[Processes], Any]], list[Any]]
CPU = replace(profile("cpu"), workers=0, batch={"features": 4})
IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class Noise(Stage[Manifest]):
    """Images of noise."""

    slug: ClassVar[str] = "noise"
    root: str

    def run(self, folder: Path, workspace: Workspace) -> None:
        generator = np.random.default_rng(0)
        paths = [str(Path(self.root) / f"{number}.png") for number in range(IMAGES)]
        for path in paths:
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        sizes = [32] * IMAGES
        hashes = [f"{number:032x}" for number in range(IMAGES)]
        columns = {"path": paths, "label": range(IMAGES), "split": ["train"] * IMAGES, "width": sizes, "height": sizes}
        Manifest.from_columns({**columns, "hash": hashes}).write(folder / "manifest.parquet")

    def load(self, folder: Path) -> Manifest:
        return Manifest.read(folder / "manifest.parquet")


class Late(Stop):
    """Asks to stop, for good, once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def stage(root: Path) -> Features:
    return Features(
        name="features",
        manifest=Noise(name="noise", root=str(root)),
        backbone={"type": "timm/test_vit", "weights": "none", "image_size": 32},
        view={"type": "Squash"},
    )


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_one_that_is_asked_to_stop_stops_all(tmp_path: Path, in_processes: InProcesses, asked: tuple[int, ...]) -> None:
    made = stage(tmp_path)

    def computed(folder: str, processes: Processes, stop: Stop) -> np.ndarray:
        workspace = Workspace(tmp_path / folder, CPU, stop, processes=processes)
        return workspace.get(made).read(workspace.get(made.manifest).column("hash"))

    Workspace(tmp_path / "parts", CPU, Stop()).get(made.manifest)

    def stopped(processes: Processes) -> np.ndarray:
        return computed("parts", processes, Late(3) if processes.rank in asked else Stop())

    for error in in_processes(2, stopped):
        assert isinstance(error, Interrupted), error
        assert str(error).startswith("features: ")
    expected = computed("whole", ALONE, Stop())
    for found in in_processes(2, lambda processes: computed("parts", processes, Stop())):
        np.testing.assert_array_equal(found, expected)


def test_a_plan_tells_how_many_are_there(tmp_path: Path) -> None:
    made, workspace = stage(tmp_path), Workspace(tmp_path / "store", CPU, Stop())
    workspace.get(made.manifest)

    def planned() -> Forecast:
        return make_plan([made.manifest, made], [], workspace).steps[1].forecast

    whole = planned()
    assert "are there" not in whole.does
    made.add(workspace.folder(made), workspace, 0, 2)
    half = planned()
    assert half.does == f"{whole.does}; {IMAGES // 2} of them are there"
    assert whole.disk is not None
    assert half.disk == whole.disk / 2
