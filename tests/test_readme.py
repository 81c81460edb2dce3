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

from guie_datasets import Manifest, decode
from guie_emoji import Emoji

ROOT = Path(__file__).resolve().parent.parent
BLOCKS, TRAIN_BLOCKS = (
    re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for page in ("README.md", "packages/guie-train/README.md")
)
README = (ROOT / "README.md").read_text()
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A home whose folder photos has twenty classes of six images, and the repository's experiments beside it."""
    for row in Emoji().rows():
        if row.label < 20:
            folder = tmp_path / "photos" / row.name
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(decode(row.image.read()).transpose(1, 2, 0))
            image.save(folder / f"{len(list(folder.iterdir()))}.png")
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    return tmp_path


def _run(home: Path, *command: str) -> str:
    """What a command of the README prints, run in the folder that it would be typed in."""
    scripts = Path(os.environ.get("GUIE_VENV", sys.prefix)) / "bin"
    line = [str(scripts / command[0]), *command[1:]]
    done = subprocess.run(line, capture_output=True, text=True, cwd=home, env=ENVIRONMENT | {"HOME": str(home)})
    assert done.returncode == 0, done.stderr
    return done.stdout


# a toy backbone and few epochs; else as it stands
SMALL = ["recipe.backbone.type=timm/test_resnet", "recipe.backbone.weights=none", "recipe.backbone.image_size=32"]
SMALL += ["recipe.arcface.epochs=4", "recipe.exports=[dict(type='Safetensors')]"]


def test_your_own_images(photos: Path) -> None:
    """The commands of the README's section, one after the other."""
    section = README.partition("## Your own images")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ \.venv/bin/(.*?)(?: +#.*)?$", section, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["guie", "guie", "guie", "guie-train"]
    prepare, stats, show, train = (
        command.replace("~", str(photos)).split() for command in commands  # as a shell would
    )
    assert "120 images of 20 classes" in _run(photos, *prepare)
    assert re.search(r"classes +20", _run(photos, *stats))
    _run(photos, *show)
    assert "data:image/" in (photos / "photos.html").read_text()
    overrides = [part for override in SMALL for part in ("--set", override)]
    out = _run(photos, *train, *overrides)
    assert "of 36 queries of 6 unseen classes" in out  # three in ten
    (report,) = photos.glob("runs/own_images-*/report.html")
    assert (report.parent / "stages" / "export" / "embedder.safetensors").is_file()


def test_any_data_is_an_entry(photos: Path) -> None:
    """The README's experiment: a table, and a manifest that was prepared before."""
    rows = ["path,label"]
    rows += [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (photos / "cars.csv").write_text("\n".join(rows[:61]))
    _run(photos, "guie", "data", "prepare", "photos")
    (photos / "experiments" / "mine.py").write_text(BLOCKS[0])
    out = _run(photos, "guie-train", "experiments/mine.py", "--stage", "split", "--profile", "cpu")
    assert "180 images of 30 classes" in out  # labels of two data sets are kept apart
    # half of the pictures are in both: they would be trained on by one label, and reported on by the other
    assert "; left out as they are in another split: " in out
    manifest = Manifest.read(photos / "runs" / "mine" / "stages" / "split" / "manifest.parquet")
    pictures: dict[bytes, set[str]] = {}
    for ref, split in zip(manifest.images(), manifest.column("split"), strict=True):
        pictures.setdefault(ref.read(), set()).add(split)
    assert all(len(splits) == 1 for splits in pictures.values())
    assert set.union(*pictures.values()) == {"test", "select", "train"}


@pytest.mark.parametrize("code", [BLOCKS[1], *TRAIN_BLOCKS])
def test_one_package_in_another_project(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
