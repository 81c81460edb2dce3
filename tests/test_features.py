"""guie features: built ahead, by several processes, killed, damaged and mended, and exchanged as NumPy files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guie_core.cli import guie, run_command
from guie_core.experiment import Experiment
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_core.registry import build
from guie_datasets import Manifest
from guie_train import pairs
from guie_train.commands.features import features
from guie_train.feature_store import FeatureStore
from guie_train.stage import Workspace
from guie_train.stages.features import Features

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-to" / "features.md").read_text()
EXPERIMENT = ROOT / "experiments" / "quickstart.py"
SMALL = [
    "recipe.data.0.styles=['google']",
    "recipe.splits.0.classes=100",
    "recipe.backbone.type=timm/test_resnet",
    "recipe.backbone.weights=none",
    "recipe.backbone.image_size=32",
]
CROPS = ["recipe.views.train=dict(type='RandomSquareCrop')", "recipe.features.views=2"]
IMAGES = 1034 - 100 - 47  # of one style: those that are trained on, without the reported and those to select by

Guie = Callable[..., str]


def settings(work: Path, *more: str) -> list[str]:
    overrides = [part for override in (*SMALL, *more) for part in ("--set", override)]
    return ["--profile", "cpu", "--work-dir", str(work / "runs" / "small"), *overrides]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Guie:
    """What a command of guie prints on stdout, and on stderr too where it is to fail."""

    def command(*arguments: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(guie, "guie", [*map(str, arguments)])
        out, errors = capsys.readouterr()
        assert ended.value.code == code, errors + out
        assert "Traceback" not in errors
        return out if code == 0 else out + errors

    return command


def stage(work: Path, name: str, *more: str) -> tuple[Features, Workspace]:
    loaded = Experiment.load(EXPERIMENT, overrides=(*SMALL, *more), profile="cpu")
    stages = build("recipes", loaded.recipe, where="recipe").stages(profile("cpu"))
    found = next(each for each in stages if each.name == f"features {name}")
    return found, Workspace(work / "runs" / "store", profile("cpu"), Stop())


def store(work: Path, name: str = "train", *more: str) -> FeatureStore:
    found, workspace = stage(work, name, *more)
    return FeatureStore(workspace.folder(found))


def manifest_of(work: Path) -> Manifest:
    """The split manifest of a folder in which features have been built."""
    return Manifest.read(next((work / "runs" / "store" / "split").glob("*/manifest.parquet")))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the features of training have been built by one process."""
    work = tmp_path_factory.mktemp("built")
    with pytest.raises(SystemExit) as ended:
        run_command(guie, "guie", ["features", "build", str(EXPERIMENT), "--stage", "train", *settings(work)])
    assert ended.value.code == 0
    return work


def test_what_is_built_ahead_is_found(built: Path, run: Guie) -> None:
    told = run("features", "build", EXPERIMENT, "--stage", "features train", *settings(built))
    assert f"the store has {IMAGES} images" in told
    trained = run("train", EXPERIMENT, "--stage", "features train", *settings(built))
    line = next(line for line in trained.splitlines() if "features train" in line)
    assert "reused" in line
    refused = run("features", "build", EXPERIMENT, "--stage", "trian", *settings(built), code=2)
    assert "no features 'trian'. Did you mean 'train'? It has: train, valid, classifier" in refused
    parts = "there are parts 1/2 to 2/2"
    for share, told in {
        "3/2": parts,
        "0/2": parts,
        "2/1": "there is one part, 1/1",
        "half": "it is two numbers",
    }.items():
        refused = run("features", "build", EXPERIMENT, "--share", share, *settings(built), code=2)
        assert f"--share {share}: {told}" in refused


def test_info_says_what_made_them(built: Path, run: Guie) -> None:
    folder = store(built).folder
    (about,) = json.loads(run("features", "info", folder, "--format", "json"))
    assert about["images"] == IMAGES
    assert about["backbone"]["type"] == "timm/test_resnet"
    assert about["view"]["type"] == "Squash"
    assert (about["dtype"], about["compute"], about["dimension"], about["views"]) == ("float16", "float32", 96, 1)
    assert about["bytes"] > IMAGES * 96 * 2
    assert "timm/test_resnet" in run("features", "info", folder)
    run("train", EXPERIMENT, "--stage", "features train", *settings(built))
    words = run("features", "info", built / "runs" / "small")  # those of a run
    assert f"  images    {IMAGES:,}\n" in words
    assert "features  96 of each, float16, computed in float32\n" in words
    assert re.search(r"used by +\S*runs/small \(train\)\n", words)


def test_info_says_how_many_of_them_an_experiment_uses(built: Path, tmp_path: Path, run: Guie) -> None:
    folder = store(built).folder
    wanted = int((manifest_of(built).column("split") == "train").sum())
    words = run("features", "info", folder, "--experiment", EXPERIMENT, *settings(built))
    assert re.search(rf"\btrain uses {wanted:,}\b(?! and lacks)", words)
    (about,) = json.loads(
        run("features", "info", folder, "--format", "json", "--experiment", EXPERIMENT, *settings(built))
    )
    assert {"stage": "features train", "images": wanted, "missing": 0} in about["uses"]
    other = [*settings(built), "--set", "recipe.backbone.image_size=40"]
    assert "it uses none of them" in run("features", "info", folder, "--experiment", EXPERIMENT, *other)
    elsewhere = run("features", "info", folder, "--experiment", EXPERIMENT, *settings(tmp_path))
    assert "it uses none of them" in elsewhere
    assert "go with --experiment" in run("features", "info", folder, "--profile", "cpu", code=2)
    assert "neither a store, nor a run that has some" in run("features", "info", built, code=1)


def test_two_processes_share_the_images_and_give_the_same_bits(built: Path, tmp_path: Path, run: Guie) -> None:
    command = [sys.executable, "-c", GUIE, "features", "build", str(EXPERIMENT), "--stage", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, "--share", f"{number}/2", *settings(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for number in (1, 2)
    ]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert any(f"the store has {IMAGES} images" in out for out, _ in told)
    manifest = manifest_of(tmp_path)
    hashes = manifest.column("hash")[manifest.column("split") == "train"]
    shared, alone = store(tmp_path), store(built)
    assert len(shared) == IMAGES
    assert shared.verify() == []
    np.testing.assert_array_equal(shared.read(hashes), alone.read(hashes))
    assert f"the store has {IMAGES} images" in run(
        "features", "build", EXPERIMENT, "--stage", "train", *settings(tmp_path)
    )


GUIE = "import sys; from guie_core.cli import guie, run_command; run_command(guie, 'guie', sys.argv[1:])"


def test_nobody_else_makes_what_several_are_adding_to(built: Path, run: Guie) -> None:
    found, workspace = stage(built, "train")
    (workspace.folder(found) / "stage.json").unlink()
    build = ["features", "build", EXPERIMENT, "--stage", "train", *settings(built)]
    with workspace.sharing(found), workspace.sharing(found):  # two of them
        assert "another process is making" in run(*build, code=1)
    assert f"the store has {IMAGES} images" in run(*build)


KILLED = """
import os, signal, sys
from guie_core.cli import guie, run_command
from guie_train import feature_store
from guie_train.stages import features

features.FLUSH_SECONDS = 0.0  # every batch is written at once
append, left = feature_store.FeatureStore.append, int(sys.argv[1])

def killed(self, hashes, values):
    global left
    left -= 1
    append(self, hashes, values)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

feature_store.FeatureStore.append = killed
run_command(guie, "guie", sys.argv[2:])
"""


def test_a_kill_costs_what_was_not_written_and_changes_no_bit(built: Path, tmp_path: Path, run: Guie) -> None:
    arguments = ["features", "build", str(EXPERIMENT), "--stage", "train", *settings(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "7", *arguments],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )
    assert done.returncode == -9, done.stderr
    assert len(store(tmp_path)) == 7 * 16  # the profile's batches
    run(*arguments)
    manifest = manifest_of(tmp_path)
    hashes = manifest.column("hash")[manifest.column("split") == "train"]
    np.testing.assert_array_equal(store(tmp_path).read(hashes), store(built).read(hashes))


def test_killed_after_the_last_image(built: Path, run: Guie) -> None:
    # all features are there, and what says that the stage is done isn't
    found, workspace = stage(built, "train")
    (workspace.folder(found) / "stage.json").unlink()
    assert f"the store has {IMAGES} images" in run(
        "features", "build", EXPERIMENT, "--stage", "train", *settings(built)
    )
    assert (workspace.folder(found) / "stage.json").exists()


def test_damage_is_found_let_go_of_and_computed_again(built: Path, tmp_path: Path, run: Guie) -> None:
    before = store(built)
    manifest = manifest_of(built)
    hashes = manifest.column("hash")[manifest.column("split") == "train"]
    expected = before.read(hashes).copy()
    (shard,) = before.shards()
    data = bytearray(shard.read_bytes())
    data[100 * before.row_bytes + 5] ^= 0x40
    shard.write_bytes(data)
    used = run("features", "export", EXPERIMENT, "train", tmp_path / "embs", *settings(built), code=1)
    assert "at least 1 row differs from its checksum; `guie features verify" in used
    assert not (tmp_path / "embs").exists()
    told = run("features", "verify", before.folder, code=1)
    assert "1 row differs from its checksum" in told
    assert "--repair lets go of that" in told
    assert f"{IMAGES - 1} images are left" in run("features", "verify", before.folder, "--repair")
    assert f"{IMAGES - 1} images, nothing is wrong" in run("features", "verify", before.folder)
    run("features", "build", EXPERIMENT, "--stage", "train", *settings(built))
    np.testing.assert_allclose(store(built).read(hashes), expected, atol=1e-3)  # in another batch


def test_an_export_that_meets_damage_leaves_no_file_and_goes_on_after_the_repair(
    built: Path, tmp_path: Path, run: Guie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "ROWS", 300)
    found = store(built)
    manifest = manifest_of(built)
    hashes = manifest.column("hash")[manifest.column("split") == "train"]
    (shard,) = found.shards()
    row = np.load(shard.with_suffix(".rows.npy"))["hash"].tolist().index(hashes[-1])
    whole = shard.read_bytes()
    damaged = bytearray(whole)
    damaged[row * found.row_bytes + 5] ^= 0x40
    shard.write_bytes(damaged)
    folder = tmp_path / "embs"
    export = ["features", "export", EXPERIMENT, "train", folder, "--split", "train", *settings(built)]
    try:
        assert "at least 1 row differs from its checksum" in run(*export, code=1)
    finally:
        shard.write_bytes(whole)
    assert not list(tmp_path.rglob("*.npy*"))
    assert f"features of {len(hashes)} images" in run(*export)
    parts = [np.load(folder / f"emb_{number}.npy") for number in range(3)]
    assert [len(part) for part in parts] == [300, 300, len(hashes) - 600]
    np.testing.assert_array_equal(np.concatenate(parts), store(built).read(hashes))
    assert [len(np.load(folder / f"label_{number}.npy")) for number in range(3)] == [len(part) for part in parts]
    assert len(list(folder.iterdir())) == 6


def test_pairs_of_the_original_go_out_and_come_back(built: Path, tmp_path: Path, run: Guie) -> None:
    folder = tmp_path / "embs" / "train"
    export = ["features", "export", EXPERIMENT, "train", folder, "--split", "train", "--sizes", *settings(built)]
    told = run(*export)
    manifest = manifest_of(built)
    rows = np.flatnonzero(manifest.column("split") == "train")
    assert f"features of {len(rows)} images" in told
    found, labels = np.load(folder / "emb_0.npy"), np.load(folder / "label_0.npy")
    assert (found.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(found[:, :96], store(built).read(manifest.column("hash")[rows]))
    height, width = (manifest.column(name)[rows].astype(np.float64) for name in ("height", "width"))
    np.testing.assert_allclose(found[:, 96:], np.stack([height / width, height / 32, width / 32], 1), rtol=1e-6)
    np.testing.assert_array_equal(labels, np.unique(manifest.column("label")[rows], return_inverse=True)[1])
    assert "holds features already" in run(*export, code=1)

    # the original cuts at 250,000 images, and reads emb_10 before emb_2
    cuts = np.array_split(np.arange(len(rows)), 12)
    for number, part in enumerate(cuts):
        np.save(folder / f"emb_{number}.npy", found[part])
        np.save(folder / f"label_{number}.npy", labels[part])
    into = ["features", "import", EXPERIMENT, "train", folder, "--split", "train", *settings(tmp_path)]
    told = run(*into)
    assert f"features of {len(rows)} images, {len(rows)} of them new" in told
    assert "a cosine of 1.0000 at least" in told
    np.testing.assert_array_equal(
        store(tmp_path).read(manifest.column("hash")[rows]), store(built).read(manifest.column("hash")[rows])
    )
    assert f"{len(rows)} images, 0 of them new" in run(*into)
    # what is left is computed as ever
    assert f"the store has {IMAGES} images" in run(
        "features", "build", EXPERIMENT, "--stage", "train", *settings(tmp_path)
    )


def test_pairs_of_other_images_are_refused(built: Path, tmp_path: Path, run: Guie) -> None:
    folder = tmp_path / "embs"
    run("features", "export", EXPERIMENT, "train", folder, "--split", "train", *settings(built))
    found, labels = np.load(folder / "emb_0.npy"), np.load(folder / "label_0.npy")
    count = len(labels)

    def refused(emb: np.ndarray, label: np.ndarray, *options: str) -> str:
        np.save(folder / "emb_0.npy", emb)
        np.save(folder / "label_0.npy", label)
        into = ["features", "import", EXPERIMENT, "train", folder, "--split", "train", *options]
        return run(*into, *settings(tmp_path), code=1)

    assert f"has features of {count - 1} images, and features train has {count} in split" in refused(
        found[1:], labels[1:]
    )
    assert "label_0.npy has int64 [3]" in refused(found, labels[:3])
    assert "should have features [n, D]" in refused(found[:, 0], labels)
    assert "95 values a row, and timm/test_resnet gives 96 features" in refused(found[:, 1:], labels)
    assert "whose cosine to those of the files is" in refused(-found, labels)
    normalised = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert re.search(
        r"of length 1 in the files instead of \d+\.?\d*; were they normalised\?", refused(normalised, labels)
    )
    assert "were they scaled?" in refused(found * 1.5, labels)
    for value, told in {
        np.nan: "features that are not finite (NaN), as 2 other rows in ",
        -np.inf: "features that are not finite (infinite), as 2 other rows in ",
        1e6: "the value 1,000,000, and float16 ends at 65,504, as 2 other rows in ",
    }.items():
        damaged = found.copy()
        damaged[[700, 701, count - 1], [5, 95, 0]] = value  # none of those that are computed
        image = manifest_of(built).images()[np.flatnonzero(manifest_of(built).column("split") == "train")[700]]
        assert f"emb_0.npy: row 700, of {image}, has {told}" in refused(damaged, labels)
    alike = labels.copy()
    alike[0] = alike[1]
    assert "its labels don't group the images as the manifest's do" in refused(found, alike)
    sizes = np.ones((count, 3), np.float32)
    assert "row 0 has the size values [1.0, 1.0, 1.0], and " in refused(np.hstack([found, sizes]), labels)
    (folder / "label_0.npy").unlink()
    assert "label_0.npy is missing" in run(
        "features", "import", EXPERIMENT, "train", folder, *settings(tmp_path), code=1
    )
    assert not list((tmp_path / "runs" / "store").glob("features/*/*.rows.npy"))  # nothing was added
    (folder / "emb_0.npy").unlink()
    assert "holds no emb_<n>.npy" in run("features", "import", EXPERIMENT, "train", folder, *settings(built), code=1)
    assert "no image in split 'tset'; it has train" in run(
        "features", "export", EXPERIMENT, "train", folder, "--split", "tset", *settings(built), code=1
    )


def test_the_page(built: Path, run: Guie, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/how-to/features.md: its commands can be said, and its code runs."""
    commands = re.findall(r"^\$ guie (features \w+) (.*?)(?: &| +#.*)?$", PAGE, re.MULTILINE)
    assert len(commands) >= 8
    for name, arguments in commands:
        _, verb = name.split()
        # parsed, not run
        assert features.commands[verb].make_context(verb, shlex.split(arguments)).params
    run("train", EXPERIMENT, "--stage", "features train", *settings(built))
    monkeypatch.chdir(built)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code.replace("runs/quickstart", "runs/small"), scope)
    assert scope["features"].shape == (len(scope["train"]), 96)


def test_the_first_commands_of_the_page_run_in_their_order_in_a_new_folder(
    tmp_path: Path, run: Guie, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiments").symlink_to(EXPERIMENT.parent)
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```console\n(.*?)```", PAGE, re.DOTALL)
    assert block
    commands = re.findall(r"^\$ guie (features .*?)(?: +#.*)?$", block[1], re.MULTILINE)
    told = ""
    for command in commands:
        of_experiment = [*settings(Path()), "--work-dir", "runs/quickstart"] * ("experiments/" in command)
        told += run(*shlex.split(command), *of_experiment)
    assert len(commands) == 5
    assert "train uses " in told
    assert "nothing is wrong" in told
    # what is built ahead is no run's yet
    for verb in ("info", "verify"):
        for folder in ("runs/quickstart", "runs"):
            refused = run("features", verb, folder, code=1)
            assert f"{folder}: no features: neither a store, nor a run that has some. " in refused
            (advice,) = re.findall(r"There are some in runs/store: guie (.*)", refused)
            assert advice == f"features {verb} runs/store"


def test_several_views_are_kept_and_trained_on(tmp_path: Path, run: Guie) -> None:
    crops = ["recipe.data.0.styles=['google', 'twitter']", *CROPS]
    short = ["recipe.arcface.epochs=2", *crops]
    run("train", EXPERIMENT, "--stage", "head", *settings(tmp_path, *short))
    found = store(tmp_path, "train", *crops)
    assert (found.views, len(found)) == (2, 2 * IMAGES)
    hashes = manifest_of(tmp_path).column("hash")
    hashes = hashes[manifest_of(tmp_path).column("split") == "train"]
    assert not np.array_equal(found.read(hashes, 0), found.read(hashes, 1))
    one, workspace = stage(tmp_path, "train", *crops[:2])
    single = workspace.get(one)
    np.testing.assert_allclose(found.read(hashes, 0), single.read(hashes), atol=1e-2)  # the draw of a single view
    two, _ = stage(tmp_path, "train", *crops)
    assert one.key != two.key
    # of a view that draws nothing there is nothing to keep
    assert stage(tmp_path, "train", CROPS[1])[0].key == stage(tmp_path, "train")[0].key
    assert "views is 0; it is 1 or more" in run(
        "train", EXPERIMENT, "--dry-run", *settings(tmp_path, "recipe.features.views=0"), code=2
    )
