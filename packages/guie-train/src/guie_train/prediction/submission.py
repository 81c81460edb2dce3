"""Submissions to the Google Universal Image Embedding contest: built from a model, and checked as its host runs them.

The contract: a zip with one file, `saved_model.pt`, TorchScript; it takes one raw image [1, 3, H, W], float 0..255, at
its own size, and gives [1, D] with D <= 64; 205,000 images in 9 hours are 158 ms an image, reading included.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import guie_models
from guie_core import GuieError, UsageError
from guie_core.files import atomic_write
from guie_core.profiles import Profile
from guie_core.wording import listing, plural, shown, size
from guie_models import TorchScript
from guie_train.prediction import host
from guie_train.prediction.models import MEMBER, ModelFile, extracted

MAX_DIMENSION = 64
MILLISECONDS = 158  # 9 hours over 200,000 index and 5,000 query images
TIMED = (480, 640)
_REPEATS = 5

Verdict = Literal["ok", "FAILED", "note"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. A "note" is to be known, and no failure."""

    verdict: Verdict
    what: str
    finding: str


def build_submission(model: ModelFile, output: Path) -> None:
    """Writes a submission's zip from a model, which is no ONNX file: TorchScript as it is, an embedder through its
    exporter, which compares what it wrote with the embedder.

    The same model gives the same bytes.

    Raises GuieError: the exporter finds a difference, or the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="guie-") as folder:
        if model.kind == "safetensors":
            embedder = guie_models.load(model.path)
            images = [torch.from_numpy(image) for image in pictures().values()]
            written = TorchScript().export(embedder, folder, images).path
            _pack(written, output)
        else:
            with extracted(model.path) as file:
                _pack(file, output)


def _pack(model: Path, output: Path) -> None:
    member = zipfile.ZipInfo.from_file(model, MEMBER)
    member.date_time = (1980, 1, 1, 0, 0, 0)  # the same bytes for the same model
    member.external_attr = 0o644 << 16
    # stored: weights don't compress
    with (
        atomic_write(output) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        open(model, "rb") as source,
        archive.open(member, "w") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)


def pictures() -> dict[str, NDArray[np.uint8]]:
    """Images of the shapes that go wrong, uint8 [3, H, W], by what they are; the same at each call.

    Smooth colours with noise, since a network that hasn't been trained tells flat images hardly apart.
    """
    random = np.random.default_rng(0)

    def picture(height: int, width: int) -> NDArray[np.uint8]:
        rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
        waves = [np.sin(6 * (rows * a + columns * b) + c) for a, b, c in random.uniform(0, 3, (3, 3))]
        smooth = 127.5 + 100 * np.stack(waves)
        return np.clip(smooth + random.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)

    gray = picture(200, 300)
    return {
        "timed": picture(*TIMED),
        "square": picture(256, 256),
        "tall": picture(640, 360),
        "one pixel": picture(1, 1),
        "1 x 300": picture(1, 300),
        "300 x 1": picture(300, 1),
        "strip 24 x 1200": picture(24, 1200),
        "odd 97 x 31": picture(97, 31),
        "grey (three equal channels)": np.repeat(gray[:1], 3, axis=0),
        "black": np.zeros((3, 64, 96), np.uint8),
        "white": np.full((3, 64, 96), 255, np.uint8),
    }


def check_submission(path: Path, profile: Profile) -> list[Check]:
    """What is right and wrong with a submission's zip.

    The model is run in a process of its own, with torch and without guie, on the profile's GPU where this machine has
    it, else on the CPU. Whether it's fast enough for the contest is judged on a GPU only.

    Raises UsageError: no such file.
    """
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file. `guie submit build MODEL` makes one")
    checks = [_check_members(path)]
    if checks[0].verdict == "FAILED":
        return checks
    checks.append(Check("note", "size", f"{size(path.stat().st_size)}; the contest's limit is not known"))
    device = "cuda" if profile.device == "cuda" and torch.cuda.is_available() else "cpu"
    images = pictures()
    try:
        found = _run(path, images, device)
    except GuieError as error:
        return [*checks, Check("FAILED", "loads", str(error))]
    if "error" in found:
        return [*checks, Check("FAILED", "loads", f"without guie, by torch {found['torch']}: {found['error']}")]
    version = f"by torch {found['torch']} in {found['load_seconds']:.1f} s, without guie and timm"
    checks.append(Check("ok", "loads", f"{version}; the contest ran torch 1.11, which is not tried here"))
    checks += _check_embeddings(found, images)
    checks.append(_check_time(found, profile))
    checks.append(Check("note", "memory", f"{size(found['memory'])} at most, torch included"))
    return checks


def _check_members(path: Path) -> Check:
    what = f"holds {MEMBER} alone"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        return Check("FAILED", what, f"not a zip, or a damaged one: {error}")
    if damaged:
        return Check("FAILED", what, f"{damaged} is damaged: its checksum is another")
    if names == [MEMBER]:
        return Check("ok", what, "yes")
    if any(name.endswith("saved_model.pb") for name in names):
        return Check("FAILED", what, "a TensorFlow SavedModel: the contest takes it, but guie can't check it")
    return Check("FAILED", what, f"it holds {listing(names)}")


def _check_embeddings(found: Mapping[str, Any], images: Mapping[str, NDArray[np.uint8]]) -> list[Check]:
    """Shapes, range, length and repeatability of what the model gave."""
    results: Mapping[str, Any] = found["images"]
    checks = []
    failing = [
        f"{_described(name, images)}: {result.get('error') or 'gives ' + str(result['shape'])}"
        for name, result in results.items()
        if "error" in result or len(result["shape"]) != 2 or result["shape"][0] != 1
    ]
    what = "any image [1, 3, H, W] gives [1, D]"
    if failing:
        return [Check("FAILED", what, "; ".join(failing[:3]) + (f"; {len(failing)} in all" if failing[3:] else ""))]
    checks.append(Check("ok", what, listing(_described(name, images) for name in images)))
    dimensions = sorted({result["shape"][1] for result in results.values()})
    fits = len(dimensions) == 1 and dimensions[0] <= MAX_DIMENSION
    checks.append(Check("ok" if fits else "FAILED", f"D is at most {MAX_DIMENSION}", listing(map(str, dimensions))))
    if len(dimensions) > 1:
        return checks
    values = np.array([result["values"] for result in results.values()])
    finite = np.isfinite(values).all(axis=1)
    wrong = [_described(name, images) for name, good in zip(results, finite, strict=True) if not good]
    checks.append(
        Check("FAILED" if wrong else "ok", "values are finite", f"not of {listing(wrong)}" if wrong else "yes")
    )
    if wrong:
        return checks
    length = np.linalg.norm(values, axis=1)
    if length.min() == 0:
        checks.append(Check("FAILED", "L2 norm", "0 for an image: it is as far from all others"))
    elif np.abs(length - 1).max() < 1e-3:
        checks.append(Check("ok", "L2 norm", "1"))
    else:
        text = f"{length.min():.3g} to {length.max():.3g}: allowed, and distances depend on it"
        checks.append(Check("note", "L2 norm", text))
    same = bool((values == values[0]).all())
    checks.append(
        Check("FAILED" if same else "ok", "tells images apart", "all embeddings are equal" if same else "yes")
    )
    again = all(found["again"][name] == result for name, result in results.items())
    checks.append(
        Check("ok" if again else "FAILED", "gives the same twice", "bit for bit" if again else "the second run differs")
    )
    checks.append(_check_uint8(found["uint8"], next(iter(results.values()))))
    return checks


def _check_uint8(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Check:
    """The host gives floats; a model that takes bytes too has one reason less to fail."""
    if "error" in found:
        return Check(
            "note", "takes uint8 as well", f"no, float 0..255 only, which is what the host gives: {found['error']}"
        )
    difference = float(np.abs(np.array(found["values"]) - expected["values"]).max())
    if difference < 1e-5:
        return Check("ok", "takes uint8 as well", "with the same result")
    return Check("note", "takes uint8 as well", f"its values then differ by {difference:.1e}; the host gives floats")


def _check_time(found: Mapping[str, Any], profile: Profile) -> Check:
    milliseconds = 1000 * statistics.median(found["seconds"])
    cpu = f"this CPU, {plural(found['threads'], 'thread')}"
    where = torch.cuda.get_device_name() if found["device"] == "cuda" else cpu
    measured = (
        f"{milliseconds:.0f} ms, the median of {len(found['seconds'])} images of {TIMED[0]} x {TIMED[1]} on {where}"
    )
    what = f"{MILLISECONDS} ms an image"
    if found["device"] == "cuda":
        known = profile.compute_capability in (None, torch.cuda.get_device_capability())
        other = "" if known else f"; it is not the GPU of {profile.name}, of which this says little"
        verdict: Verdict = "note" if not known else "ok" if milliseconds <= MILLISECONDS else "FAILED"
        return Check(verdict, what, f"{measured}{other}. Reading the image comes on top")
    if profile.device == "cuda":
        return Check("note", what, f"{measured}; {profile.name} is not here, and nothing is known of it")
    over = milliseconds > MILLISECONDS
    return Check("note" if over else "ok", what, f"{measured}" + ("; not judged without a GPU" if over else ""))


def _described(name: str, images: Mapping[str, NDArray[np.uint8]]) -> str:
    height, width = images[name].shape[1:]
    return f"landscape {height} x {width}" if name == "timed" else name


def _run(path: Path, images: Mapping[str, NDArray[np.uint8]], device: str) -> dict[str, Any]:
    """What host.py finds. Raises GuieError: the process was ended, or could not write."""
    with extracted(path) as model, tempfile.TemporaryDirectory(prefix="guie-") as folder:
        given, results = Path(folder) / "images.npz", Path(folder) / "results.json"
        arrays: dict[str, Any] = dict(images)
        np.savez(given, **arrays)
        command: Sequence[str | Path] = [sys.executable, "-I", host.__file__, model, given, results, device]
        done = subprocess.run([*command, str(_REPEATS)], capture_output=True, text=True, cwd=folder)
        if done.returncode < 0:
            name = signal.Signals(-done.returncode).name
            hint = "; most often that means that the memory was full" if name == "SIGKILL" else ""
            raise GuieError(f"the process that ran it was ended by signal {name}{hint}")
        if done.returncode or not results.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise GuieError(f"the process that ran it failed: {last}")
        found: dict[str, Any] = json.loads(results.read_text())
        return found
