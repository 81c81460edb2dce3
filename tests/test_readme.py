"""The README's own code, run as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from guie_datasets import decode
from guie_emoji import Emoji

ROOT = Path(__file__).resolve().parent.parent
BLOCKS, TRAIN_BLOCKS = (
    re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for page in ("README.md", "packages/guie-train/README.md")
)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A home whose folder photos has 75 classes of six images."""
    for row in Emoji().rows():
        if row.label < 75:
            folder = tmp_path / "photos" / row.name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(decode(row.image.read()).transpose(1, 2, 0))
            image.save(folder / f"{len(list(folder.iterdir()))}.png")
    return tmp_path


def test_your_own_images(photos: Path) -> None:
    shutil.copytree(ROOT / "experiments", photos / "experiments")
    (photos / "experiments" / "mine.py").write_text(BLOCKS[0])
    small = ["recipe.backbone.type=timm/test_resnet", "recipe.backbone.weights=none", "recipe.backbone.image_size=32"]
    # a toy backbone and few epochs, and as few images a batch as 75 classes less 50 need; else as it stands
    small += ["recipe.arcface.epochs=4", "recipe.arcface.batch_size=64", "recipe.exports=[]"]
    command = [sys.executable, "-m", "guie_train", "experiments/mine.py"]
    command += [part for override in small for part in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=photos, env=ENVIRONMENT | {"HOME": str(photos)})
    assert done.returncode == 0, done.stderr
    assert "mP@5 of 300 queries of 50 unseen classes" in done.stdout
    assert len(list(photos.glob("runs/mine-*/report.html"))) == 1


@pytest.mark.parametrize("code", [BLOCKS[1], *TRAIN_BLOCKS])
def test_one_package_in_another_project(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
