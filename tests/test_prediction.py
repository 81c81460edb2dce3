"""The README's section on prediction and docs/how-to/predict.md: every command, run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch._dynamo  # loads triton, which crashes when TensorFlow was loaded before it
from PIL import Image

from guie_core.cli import guie, run_command
from guie_datasets import decode, export, prepare
from guie_datasets.sets.folders import ClassFolders
from guie_emoji import Emoji
from guie_models import BatchNormLinear, Embedder, Squash, TimmBackbone, save
from guie_train.cli import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text().partition("## Prediction")[2].partition("\n## ")[0]
PAGE = (ROOT / "docs" / "how-to" / "predict.md").read_text()
# a toy backbone and few epochs
SMALL = ["recipe.backbone.type=timm/test_resnet", "recipe.backbone.weights=none", "recipe.backbone.image_size=32"]
SMALL += ["recipe.data.0.styles=['google', 'twitter']", "recipe.splits.0.classes=100", "recipe.arcface.epochs=2"]
SMALL += ["recipe.classifier.training.epochs=2"]


def commands(page: str) -> list[list[str]]:
    """What is typed in a page: the arguments of `guie`."""
    lines = re.findall(r"^\$ (?:\.venv/bin/)?guie (.*?)(?: +#.*)?$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with what the pages speak of: a run, photos, a table, a manifest, shards, a solution."""
    folder = tmp_path_factory.mktemp("home")
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)  # tests run beside each other
    os.chdir(folder)
    overrides = [part for override in SMALL for part in ("--set", override)]
    try:
        run = [str(ROOT / "experiments" / "quickstart.py"), "--work-dir", "runs/quickstart", "--profile", "cpu"]
        with pytest.raises(SystemExit) as ended:
            run_command(train, "guie-train", [*run, *overrides])
        assert ended.value.code == 0
        answers: dict[str, list[str]] = {}
        Path("test-images").mkdir()
        for row in Emoji().rows():
            if row.label < 20:
                image = Image.fromarray(decode(row.image.read()).transpose(1, 2, 0))
                same = answers.setdefault(row.name, [])
                same.append(f"{row.label:02}{len(same):014}")
                (Path("photos") / row.name).mkdir(parents=True, exist_ok=True)
                image.save(Path("photos") / row.name / f"{same[-1]}.png")
                image.save(Path("test-images") / f"{same[-1]}.png")
        images = sorted(Path("photos").rglob("*.png"))
        for name, path in zip("ab", images, strict=False):
            Image.open(path).convert("RGB").save(f"{name}.jpg")
        Path("cars.csv").write_text("\n".join(["path", *map(str, images[:9])]))
        rows = [f"{first},{' '.join(others)},Public" for first, *others in answers.values()]
        Path("solution.csv").write_text("\n".join(["id,images,Usage", *rows]))
        manifest, _ = prepare([ClassFolders("photos")])
        manifest.write("photos.parquet")
        export(manifest, "tfrecord", "shards")
        shutil.copy("runs/quickstart/stages/export/model.onnx", "model.onnx")
        torch.manual_seed(0)
        backbone = TimmBackbone("test_resnet", weights="none", image_size=32)
        view = Squash(32, backbone.mean, backbone.std)
        save(Embedder(backbone, BatchNormLinear(backbone.features, 16), view), "embedder.safetensors")
        yield folder
    finally:
        os.chdir(before)
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_made_yet(home: Path) -> None:
    for name in ("embeddings.parquet", "submission.zip", "submission.embeddings.parquet"):
        (home / name).unlink(missing_ok=True)


def typed(arguments: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `guie` prints for them."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run_command(guie, "guie", [argument.replace("~", str(home)) for argument in arguments])
    out, errors = capsys.readouterr()
    assert ended.value.code == 0, (arguments, out, errors)
    return out


def test_the_readme(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands(README)
    assert [line[:2] for line in lines] == [
        ["predict", "runs/quickstart"],
        ["submit", "build"],
        ["submit", "check"],
        ["submit", "score"],
    ]
    predict, build, check, score = (typed(line, home, capsys) for line in lines)
    assert "embeddings.parquet: 120 embeddings of 64 dimensions by runs/quickstart/stages/export/" in predict
    assert "submission.zip: nothing failed." in build
    assert "v100-32g is not here, and nothing" in " ".join(check.split()) or torch.cuda.is_available()
    assert re.search(r"all +20 queries +0\.\d{4}", score)


def test_the_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands(PAGE)
    assert [line[0] for line in lines] == ["predict"] * 8 + ["submit"] * 3
    outputs = {line[line.index("--output") + 1]: typed(line, home, capsys) for line in lines[:8]}
    rows = {"embeddings.parquet": 120, "by-onnx.parquet": 120, "two.npy": 2, "folder.parquet": 120}
    rows |= {"cars.parquet": 9, "m.parquet": 120, "shards.npy": 120, "emoji.parquet": 6204}
    for name, out in outputs.items():
        assert out.startswith(f"{name}: {rows.pop(name):,} embeddings of "), out
    assert not rows
    np.testing.assert_array_equal(np.load("shards.npy").shape, (120, 16))
    columns = re.findall(r"^\| (`.*?) \|", PAGE.partition("## The output")[2].partition("\n## ")[0], re.MULTILINE)
    assert [name for line in columns for name in re.findall(r"`(\w+)`", line)] == pq.read_schema("m.parquet").names
    for line in lines[8:]:
        typed(line, home, capsys)


def test_the_code_of_the_page(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    typed(["predict", "embedder.safetensors", "photos", "--output", "embeddings.parquet"], home, capsys)
    exec(compile(code, "predict.md", "exec"), {})
    found = [re.findall(r"(\d{16})\.png", line) for line in capsys.readouterr().out.splitlines()]
    assert [len(line) for line in found] == [6, 6, 6]
    vectors = np.array(pq.read_table("embeddings.parquet").column("embedding").to_pylist())
    paths = pq.read_table("embeddings.parquet").column("path").to_pylist()
    for row, (itself, *nearest) in enumerate(found):
        distances = np.linalg.norm(vectors - vectors[row], axis=1)
        distances[row] = np.inf
        assert itself == Path(paths[row]).stem
        assert nearest == [Path(paths[number]).stem for number in np.argsort(distances, kind="stable")[:5]]
