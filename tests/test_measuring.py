"""`guie bench` measures what the recipe does, and its page shows commands that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from guie_core.cli import main
from guie_core.experiment import Experiment
from guie_train.bench import parts, running
from guie_train.bench.memory import Memory
from guie_train.bench.meter import Rate
from guie_train.bench.results import Part

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how-to" / "bench.md").read_text()
COMMANDS = re.findall(r"^\$ guie (bench.*?)(?: +#.*)?$", PAGE, re.MULTILINE)


def test_head_loss_and_training_are_those_of_the_5th_place() -> None:
    recipe: Any = Experiment.load(ROOT / "experiments" / "5th_place.py", profile="cpu").recipe
    assert recipe["head"] == parts.HEAD
    assert recipe["loss"] == parts.LOSS
    assert {key: recipe["arcface"][key] for key in parts.TRAINING} == parts.TRAINING
    assert recipe["arcface"].keys() - parts.TRAINING.keys() <= {"keep_every"}
    assert recipe["views"]["valid"] == parts.VIEW
    asked = recipe["selection"]["protocol"]
    assert (asked["max_queries"], asked["max_index"]) == (parts.Sizes().queries, parts.Sizes().index)


def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the measuring itself, which other tests see to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.jpg").write_bytes(b"not looked at here")
    monkeypatch.setattr(running, "PHOTOS", 1)
    answer = Part("image", Rate(2.0, 1.0, 3.0, 8), Memory(1), {}, {})
    monkeypatch.setattr(running, "in_a_process", lambda name, task, folder: answer)
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            main(shlex.split(command))
        assert exit_.value.code == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.json")} == {"bench.json", "cpu.json", "resnet.json", "own.json"}
    assert "no difference beyond the spread" in capsys.readouterr().out
