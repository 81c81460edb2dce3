"""docs/export.md and docs/models.md: the code of export runs, also where guie is not; the pages have every name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import guie_models
from guie_core.plugins import plugins
from guie_models import BatchNormLinear, Embedder, Squash, TimmBackbone

DOCS = Path(__file__).resolve().parent.parent / "docs"
EXPORT, MODELS = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("export", "models"))
WRITE, SCRIPT, ONNX, PROGRAM, LOAD, SAVED_MODEL = re.findall(r"```python\n(.*?)```", EXPORT, re.DOTALL)
WITHOUT_GUIE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("guie_models", "guie_core", "timm", *sys.argv[2:]):
            raise AssertionError(name + " was imported")
sys.meta_path.insert(0, Refuse())
"""


def _photos() -> list[Tensor]:
    whole = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in load_sample_images().images]
    return [whole[i % 2][:, 5 * i : 5 * i + 180 + 7 * i, : 300 - 11 * i].contiguous() for i in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Embedder, list[Tensor]]:
    """A folder in which the page's first block has been run, its embedder and its photos."""
    folder, photos = tmp_path_factory.mktemp("export"), _photos()
    backbone = TimmBackbone("test_vit", weights="none", image_size=224)
    torch.manual_seed(0)
    head = BatchNormLinear(backbone.features, 64)
    embedder = Embedder(backbone, head, Squash(224, backbone.mean, backbone.std))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(folder)
        views = torch.stack([embedder.view(photo) for photo in photos])
        sizes = torch.stack([guie_models.size_values(photo.shape[1], photo.shape[2], 224) for photo in photos])
        head.train()(torch.cat([backbone(views), sizes], dim=1))
        head.eval()
        exec(compile(WRITE, "docs/export.md", "exec"), {"embedder": embedder, "photos": photos})
    # as a phone held upright writes it: turned, and saying so; without loss, whatever its name says
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.fromarray(photos[3].permute(1, 2, 0).numpy()).transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "photo.jpg", format="PNG", exif=exif)
    return folder, embedder, photos


def test_every_exporter_writes(model: tuple[Path, Embedder, list[Tensor]]) -> None:
    names = {path.name for path in (model[0] / "model").iterdir()}
    told = set(re.findall(r"`([\w-]+\.(?:pt|onnx|pt2|safetensors|md))`", EXPORT.partition("In an experiment")[0]))
    assert names == told


@pytest.mark.parametrize(("code", "others"), [(SCRIPT, []), (ONNX, ["torch"]), (PROGRAM, [])])
def test_runs_elsewhere(model: tuple[Path, Embedder, list[Tensor]], code: str, others: list[str]) -> None:
    folder, embedder, photos = model
    script = WITHOUT_GUIE + code + "\nnp.save(sys.argv[1], np.asarray(embedding))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", script, "found.npy", *others],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = embedder(photos[3][None]).detach().numpy()
    np.testing.assert_allclose(np.load(folder / "found.npy"), expected, atol=1e-4)
    other = embedder(photos[4][None]).detach().numpy()
    assert np.abs(other - expected).max() > 1e-2  # so that being near means something


def test_loads_back(model: tuple[Path, Embedder, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, embedder, photos = model
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {"photos": photos}
    exec(compile(LOAD, "docs/export.md", "exec"), scope)
    torch.testing.assert_close(scope["embedding"], embedder.embed(photos))


def test_the_limits_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`\w+.*?) \| ([\de.-]+) \| (\.\d+) \| (all|\.\d+) \|$", EXPORT, re.MULTILINE)
    told = {
        name: (float(difference), float(cosine), 1.0 if part == "all" else float(part))
        for names, difference, cosine, part in rows
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert len(told) == 6
    for name, limits in told.items():
        found = eval(f"guie_models.{name}" if name.endswith(")") else f"guie_models.{name}()").limits
        assert (found.max_difference, found.min_cosine, found.min_agreement) == pytest.approx(limits)


def test_the_script_for_tensorflow_is_python() -> None:
    """It needs an environment that this one isn't."""
    compile(SAVED_MODEL, "docs/export.md", "exec")


def test_every_name_is_on_a_page() -> None:
    ours = [entry for entry in plugins().entries() if entry.owner and entry.owner.plugin == "models"]
    assert len(ours) > 20
    for entry in ours:
        page = EXPORT if entry.kind == "exporters" else MODELS
        assert re.search(rf"`{re.escape(entry.name.replace('/*', '/<'))}", page), f"{entry.kind} {entry.name}"
