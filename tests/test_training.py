"""docs/how-to/train.md: its commands train, and curves come to trackers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from guie_core.cli import guie, run_command
from guie_train import trackers
from guie_train.trackers import Tracker

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "train.md").read_text()
SMALL = [
    "recipe.data.0.styles=['google', 'twitter']",
    "recipe.splits.0.classes=700",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
    "recipe.arcface.epochs=10",
    "recipe.arcface.batch_size=128",
]
COMMANDS = [
    shlex.split(line) for line in re.findall(r"^\$ guie-train experiments/quickstart\.py (.*)$", PAGE, re.MULTILINE)
]


class Notes(Tracker):
    """Keeps what it gets."""

    got: ClassVar[list[tuple[int, dict[str, float]]]] = []

    def __init__(self, folder: Path) -> None:
        pass

    def write(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.got.append((epoch, dict(figures)))

    def close(self) -> None:
        pass


def train(folder: Path, options: list[str]) -> Path:
    """Up to the head; the folder of its outputs."""
    small = [part for override in SMALL for part in ("--set", override)]
    arguments = ["train", str(ROOT / "experiments" / "quickstart.py"), "--profile", "cpu", "--work-dir", str(folder)]
    with pytest.raises(SystemExit) as ended:
        run_command(guie, "guie", [*arguments, "--stage", "head", *small, *options])
    assert ended.value.code == 0
    return folder / "stages" / "head"


def test_every_command_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "TensorBoard", Notes)
    assert len(COMMANDS) == 3
    names = []
    for number, options in enumerate(COMMANDS):
        head = train(tmp_path / str(number), options)
        names.append(sorted(path.name for path in head.glob("*.safetensors")))
        curves = json.loads((head / "curves.json").read_text())["curves"]
        assert len(curves) == 10
        scored = sorted((c for c in curves if "mP@5" in c), key=lambda curve: -curve["mP@5"])
        if number == 1:
            best = {f"top-{int(curve['epoch']):04d}.safetensors" for curve in scored[:3]}
            assert set(names[1]) == {"chosen.safetensors", "epoch-0010.safetensors", "last.safetensors", *best}
    assert names[0] == names[2] == ["chosen.safetensors", "last.safetensors"]

    wanted = [
        (int(curve["epoch"]), {f"head/{name}": value for name, value in curve.items() if name != "epoch"})
        for curve in curves
    ]
    assert Notes.got == wanted
    train(tmp_path / "2", COMMANDS[2])
    assert len(Notes.got) == 10  # it has them
    train(tmp_path / "3", COMMANDS[2])
    assert Notes.got[10:] == wanted  # a run of its own, whose head another has trained


def test_every_setting_of_the_page_is_one() -> None:
    from guie_core.registry import check

    named = re.findall(r"`(arcface|selection)\.(\w+)`", PAGE)
    assert len(named) >= 6
    values = {"clip": "scaled", "max_norm": 1.0, "ema_decay": 0.9}
    recipe: dict[str, object] = {"type": "ArcFaceThenClassifier"}
    for part in ("arcface", "selection"):
        recipe[part] = {name: values.get(name, 1) for of, name in named if of == part}
    found = "\n".join(map(str, check("recipes", recipe, "recipe")))
    assert not re.search(r"has no (argument|setting)|expects", found), found
