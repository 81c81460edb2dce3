"""`guie predict`: embeddings of any images by any form of a model, whatever happens meanwhile."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guie_core import files
from guie_core.cli import guie, run_command
from guie_datasets import Manifest, decode, export, prepare
from guie_datasets.sets.folders import ClassFolders
from guie_emoji import Emoji
from guie_models import (
    BatchNormLinear,
    Embedder,
    Linear,
    Onnx,
    Safetensors,
    Squash,
    SwitchedAugmentation,
    TimmBackbone,
    TorchScript,
    load,
)
from guie_train.prediction import models, predicting
from guie_train.prediction.kept import Kept

CLASSES, SIZE = 9, 32
torch.set_num_threads(1)  # tests run beside each other

Run = Callable[..., str]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/<class>/<image>, 6 of each of nine emoji; one/ and switched/: an embedder in three forms each."""
    folder = tmp_path_factory.mktemp("made")
    for row in Emoji().rows():
        if row.label < CLASSES:
            image = Image.fromarray(decode(row.image.read()).transpose(1, 2, 0))
            place = folder / "photos" / row.name
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / f"{len(list(place.iterdir()))}.png")
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", weights="none", image_size=SIZE)
    parts: tuple[Any, ...] = (
        backbone,
        BatchNormLinear(backbone.features, 16),
        Squash(SIZE, backbone.mean, backbone.std),
    )
    augmentation = SwitchedAugmentation(SIZE, backbone.mean, backbone.std, padded_for=(0, 2))
    images = [torch.randint(0, 256, (3, 40, 33 + n), dtype=torch.uint8) for n in range(7)]
    for name, embedder in {
        "one": Embedder(*parts),
        "switched": Embedder(*parts, augmentation, Linear(backbone.features, 4)),
    }.items():
        for exporter in (Safetensors(), TorchScript(), Onnx()):
            exporter.export(embedder, folder / name, images)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of all that."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("predict", ..., code=0): what the command prints, on stdout or on stderr where it fails."""

    def command(*arguments: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(guie, "guie", [*map(str, arguments), "--profile", "cpu"])
        out, errors = capsys.readouterr()
        assert ended.value.code == code, errors
        assert "Traceback" not in errors
        assert "This is a fault" not in errors
        return out if code == 0 else errors

    return command


def embeddings(path: Path | str) -> dict[str, Any]:
    """By path of the image."""
    table = pq.read_table(path)
    return dict(zip(table.column("path").to_pylist(), table.column("embedding").to_pylist(), strict=True))


def written_out(embedder: Embedder, path: Path) -> np.ndarray[Any, Any]:
    """The embedding of one view by the formula: Pillow, torch's own resize, numpy."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    view = torch.nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", antialias=True)[0] / 255
    mean, std = (torch.tensor(value)[:, None, None] for value in (embedder.backbone.mean, embedder.backbone.std))
    with torch.no_grad():
        features = embedder.backbone(((view - mean) / std)[None])[0].double().numpy()
    values = np.concatenate([features, [height / width, height / SIZE, width / SIZE]])
    state = {name: value.double().numpy() for name, value in embedder.head.state_dict().items()}
    norm = next(name.removesuffix("running_mean") for name in state if name.endswith("running_mean"))
    scaled = (values - state[f"{norm}running_mean"]) / np.sqrt(state[f"{norm}running_var"] + 1e-6)
    found = state["linear.weight"] @ scaled + state["linear.bias"]
    result: np.ndarray[Any, Any] = found / np.linalg.norm(found)
    return result


@pytest.mark.parametrize("form", ["one", "one/embedder.safetensors", "one/saved_model.pt", "one/model.onnx"])
def test_one_view_is_the_formula(here: Path, run: Run, form: str) -> None:
    out = run("predict", form, "photos", "-o", "e.parquet")
    assert f"e.parquet: {CLASSES * 6} embeddings of 16 dimensions by one/" in out
    embedder = load(here / "one" / "embedder.safetensors")
    found = embeddings("e.parquet")
    assert list(found) == [str(path) for path in sorted((here / "photos").rglob("*.png"))]
    for path, values in found.items():
        np.testing.assert_allclose(values, written_out(embedder, Path(path)), atol=2e-5)
    assert not list(here.glob("*.partial"))
    assert not list(here.glob("*.quarantine.csv"))


@pytest.mark.parametrize("form", ["switched", "switched/saved_model.pt"])
def test_switched_augmentation_is_that_of_one_image_at_a_time(here: Path, run: Run, form: str) -> None:
    run("predict", form, "photos", "-o", "e.parquet", "--batch-size", 7)
    embedder = load(here / "switched" / "embedder.safetensors")
    plain = load(here / "one" / "embedder.safetensors")
    differs = 0
    for path, values in embeddings("e.parquet").items():
        raw = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            np.testing.assert_allclose(values, embedder(raw)[0], atol=2e-5)
            differs += bool((embedder(raw) - plain(raw)).abs().max() > 1e-3)
    assert differs  # so that it was no single view


@pytest.mark.parametrize(("form", "waits"), [("embedder.safetensors", True), ("saved_model.pt", False)])
def test_a_model_in_the_threads_that_read_is_no_wait_for_data(
    here: Path, capsys: pytest.CaptureFixture[str], form: str, waits: bool
) -> None:
    with pytest.raises(SystemExit):
        run_command(guie, "guie", ["predict", f"one/{form}", "photos", "-o", "e.parquet", "--profile", "cpu"])
    progress = capsys.readouterr().err
    assert "54/54 images, 100 %" in progress
    assert ("data wait" in progress) == waits


def test_what_the_file_says(here: Path, run: Run) -> None:
    run("predict", "one", "photos", "-o", "e.parquet")
    file = pq.read_table("e.parquet")
    assert str(file.schema.field("embedding").type).startswith("fixed_size_list<")
    assert file.schema.field("embedding").type.list_size == 16
    names = sorted(path.name for path in (here / "photos").iterdir())
    for row in file.to_pylist():
        data = Path(row["path"]).read_bytes()
        assert row["hash"] == hashlib.blake2b(data, digest_size=16).digest()
        assert (row["offset"], row["length"], row["source"]) == (0, -1, "photos")
        assert (row["name"], row["label"]) == (Path(row["path"]).parent.name, names.index(row["name"]))
        assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-6)
    about = json.loads(file.schema.metadata[b"guie.predictions"])
    model = (here / "one" / "embedder.safetensors").read_bytes()
    assert about["model"]["hash"] == hashlib.blake2b(model, digest_size=16).hexdigest()
    assert about["options"]["normalise"] is True
    assert (about["images"], about["dimension"], about["bad"]) == (CLASSES * 6, 16, 0)


def test_numpy_has_the_same(here: Path, run: Run) -> None:
    run("predict", "one", "photos", "-o", "e.parquet")
    run("predict", "one", "photos", "-o", "e.npy")
    array = np.load("e.npy", allow_pickle=False)
    assert array.dtype == np.float32
    table = embeddings("e.parquet")
    np.testing.assert_array_equal(array, np.array(list(table.values()), np.float32))
    with open("e.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(table)
    assert {len(bytes.fromhex(row["hash"])) for row in rows} == {16}
    assert "is complete already" in run("predict", "one", "photos", "-o", "e.npy")


# what is embedded


def test_any_folder_and_images_by_name(here: Path, run: Run) -> None:
    run("predict", "one", "photos", "-o", "e.parquet")
    expected = embeddings("e.parquet")
    first, second = sorted((here / "photos").rglob("*.png"))[:2]
    (here / "mixed" / "deep" / "er").mkdir(parents=True)
    shutil.copy(first, here / "mixed" / "top.png")
    shutil.copy(second, here / "mixed" / "deep" / "er" / "low.png")
    (here / "mixed" / "notes.txt").write_text("no image")
    out = run("predict", "one", "mixed", first, "-o", "m.parquet")
    assert "1 passed over; listed in m.quarantine.csv" in out
    rows = pq.read_table("m.parquet").to_pylist()
    assert [Path(row["path"]).name for row in rows] == ["low.png", "top.png", first.name]
    assert {row["label"] for row in rows} == {None}
    for row, like in zip(rows, (second, first, first), strict=True):
        np.testing.assert_allclose(row["embedding"], expected[str(like)], atol=1e-6)
    assert "notes.txt" in Path("m.quarantine.csv").read_text()


@pytest.mark.parametrize("layout", ["manifest", "tfrecord", "webdataset", "table", "bare table"])
def test_tables_manifests_and_shards(here: Path, run: Run, layout: str) -> None:
    run("predict", "one", "photos", "-o", "e.parquet")
    expected = {row["hash"]: row["embedding"] for row in pq.read_table("e.parquet").to_pylist()}
    manifest, _ = prepare([ClassFolders("photos")])
    what = "images.parquet"
    manifest.write(what)
    if layout in ("tfrecord", "webdataset"):
        what = "shards"
        export(manifest, layout, what)  # type: ignore[arg-type]
    elif layout != "manifest":
        what = "images.csv"
        keep = ["path", "label"] if layout == "table" else ["path"]
        manifest.to_pandas()[keep].to_csv(what, index=False)
    run("predict", "one", what, "-o", "found.parquet")
    rows = pq.read_table("found.parquet").to_pylist()
    assert len(rows) == len(manifest) == len(expected)
    for row, label in zip(rows, manifest.column("label"), strict=True):
        np.testing.assert_allclose(row["embedding"], expected[row["hash"]], atol=1e-6)
        assert row["label"] == (None if layout == "bare table" else label)
        assert (row["length"] > 0) == (what == "shards")


def test_labels_of_two_data_sets_are_kept_apart(here: Path, run: Run) -> None:
    single = next((here / "photos").rglob("*.png"))
    run("predict", "one", "photos", single, "photos", "-o", "e.parquet", "--set", "0.category=things")
    rows = pq.read_table("e.parquet").to_pylist()
    count = CLASSES * 6
    assert [row["label"] for row in rows[:count]] == [n // 6 for n in range(count)]
    assert rows[count]["label"] is None
    assert [row["label"] for row in rows[count + 1 :]] == [CLASSES + n // 6 for n in range(count)]
    assert {row["category"] for row in rows} == {"things", ""}


def test_rows_without_a_label_are_images_as_well(here: Path, run: Run) -> None:
    first, second, third, *_ = sorted((here / "photos").rglob("*.png"))
    Path("t.csv").write_text(f"path,label,name\n{first},4,four\n{second},,\n{third},-1,\n,5,\n")
    run("predict", "one", "t.csv", "-o", "e.parquet", "--max-bad", "0.3")
    rows = pq.read_table("e.parquet").to_pylist()
    assert [(row["path"], row["label"], row["name"]) for row in rows] == [
        (str(first), 4, "four"),
        (str(second), None, ""),
        (str(third), None, ""),
    ]
    Path("texts.csv").write_text(f"path,label\n{first},apple\n{second},\n{third},pear\n")
    run("predict", "one", "texts.csv", "-o", "texts.parquet")
    assert [row["label"] for row in pq.read_table("texts.parquet").to_pylist()] == [0, None, 1]
    # what was predicted of unlabelled images names images as well as any table
    run("predict", "one", first, second, "-o", "unlabelled.parquet")
    run("predict", "one", "unlabelled.parquet", "-o", "again.parquet")
    assert embeddings("again.parquet") == embeddings("unlabelled.parquet")
    Path("empty.csv").write_text("path,x\n,1\n")
    message = run("predict", "one", "empty.csv", "-o", "f.parquet", code=2)
    assert "there is no image to embed; 1 other thing cannot be used, such as empty.csv, line 2: " in message


def test_an_image_without_a_suffix(here: Path, run: Run) -> None:
    path = next((here / "photos").rglob("*.png"))
    shutil.copy(path, "0123456789abcdef")
    run("predict", "one", "0123456789abcdef", path, "-o", "e.parquet")
    first, second = embeddings("e.parquet").values()
    np.testing.assert_allclose(first, second, atol=1e-6)


# stopped, killed, changed


def uninterrupted(run: Run, form: str) -> bytes:
    run("predict", form, "photos", "-o", "whole.parquet", "--batch-size", 8)
    return Path("whole.parquet").read_bytes()


@pytest.mark.parametrize(
    ("form", "kind"), [("one", models.OneView), ("switched", models.Switched), ("one/saved_model.pt", models.Script)]
)
def test_ctrl_c_and_the_same_command_again(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, form: str, kind: Any
) -> None:
    whole = uninterrupted(run, form)
    calls: list[int] = []
    embed = kind.embed

    def interrupting(self: Any, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 4:  # the first one is of opening the model
            signal.raise_signal(signal.SIGINT)
        return embed(self, images)

    monkeypatch.setattr(kind, "embed", interrupting)
    command = ("predict", form, "photos", "-o", "e.parquet", "--batch-size", 8)
    message = run(*command, code=130)
    assert "24 of 54 images are done and kept; the same command goes on" in message
    assert not Path("e.parquet").exists()
    run(*command)
    assert sum(calls[4:]) == 54 - 24 + 1
    assert Path("e.parquet").read_bytes() == whole
    assert not Path("e.parquet.partial").exists()


KILLED = """
import os, signal, sys
from guie_core import files
from guie_core.cli import guie, run_command
from guie_train.prediction import models, predicting
predicting.FLUSH_SECONDS = 0
calls, embed = [], models.OneView.embed
def fatal(self, images):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, images)
models.OneView.embed = fatal
run_command(guie, "guie", sys.argv[1:])
"""


def test_killed_and_the_same_command_again(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = uninterrupted(run, "one")
    command = ["predict", "one", "photos", "-o", "e.parquet", "--batch-size", "8"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command, "--profile", "cpu"], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(Path("e.parquet.partial").glob("[0-9]*.arrow"))) == 3
    seen: list[int] = []
    embed = models.OneView.embed
    monkeypatch.setattr(
        models.OneView, "embed", lambda self, images: [seen.append(len(images)), embed(self, images)][1]
    )
    run(*command)
    assert sum(seen) == 54 - 24 + 1
    assert Path("e.parquet").read_bytes() == whole


def test_a_full_disk_is_one_message_and_nothing_is_lost(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full while the second shard is written; a limit on the size of files stands for it."""
    whole = uninterrupted(run, "one")
    monkeypatch.setattr(predicting, "FLUSH_SECONDS", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    flush = predicting._Work._flush

    def full(self: Any, pending: Any, rows: Any) -> None:
        if self.done:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            flush(self, pending, rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def told(error: OSError, *path: Any) -> str:
        return explain(OSError(errno.ENOSPC, "no room", error.filename), *path)

    command = ("predict", "one", "photos", "-o", "e.parquet", "--batch-size", 8)
    explain = files.explain
    with monkeypatch.context() as patch:
        patch.setattr(predicting._Work, "_flush", full)
        patch.setattr(files, "explain", told)
        message = run(*command, code=1)
    assert ".arrow could not be written" in message
    assert "--output" in message
    assert len(list(Path("e.parquet.partial").glob("[0-9]*.arrow"))) == 1
    run(*command)
    assert Path("e.parquet").read_bytes() == whole


def test_a_complete_output_is_left_as_it_is(here: Path, run: Run) -> None:
    run("predict", "one", "photos", "-o", "e.parquet")
    before = Path("e.parquet").stat().st_mtime_ns
    out = run("predict", "one", "photos", "-o", "e.parquet")
    assert "e.parquet is complete already: 54 embeddings of 16 dimensions" in out
    assert "--fresh makes it anew" in out
    assert Path("e.parquet").stat().st_mtime_ns == before
    run("predict", "one", "photos", "-o", "e.parquet", "--fresh")
    assert Path("e.parquet").stat().st_mtime_ns > before


def test_another_model_or_other_images_are_told(here: Path, run: Run) -> None:
    command = ("predict", "one", "photos", "-o", "e.parquet")
    run(*command)
    shutil.copy("switched/embedder.safetensors", "one/embedder.safetensors")
    message = run(*command, code=2)
    assert "e.parquet is there already, and was made differently" in message
    assert (
        "the model is another: embedder.safetensors then, embedder.safetensors now, and not the same bytes" in message
    )
    message = run("predict", "one", "photos", "-o", "e.parquet", "--raw", code=2)
    assert "normalise was True, is False" in message
    run(*command, "--fresh")
    shutil.copy(next(Path("photos").rglob("*.png")), next(Path("photos").iterdir()) / "new.png")
    assert "the images are others: 54 then, 55 now" in run(*command, code=2)
    run(*command, "--fresh")
    some = next(Path("photos").rglob("*.png"))
    os.utime(some, ns=(0, 0))
    assert "as many, but not the same names or dates" in run(*command, code=2)


def test_a_stopped_prediction_of_something_else_is_told(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = models.OneView.embed
    with monkeypatch.context() as patch:
        patch.setattr(
            models.OneView, "embed", lambda self, images: [signal.raise_signal(signal.SIGINT), embed(self, images)][1]
        )
        patch.setattr(models, "_dimension", lambda model: 16)
        run("predict", "one", "photos", "-o", "e.parquet", code=130)
    message = run("predict", "switched", "photos", "-o", "e.parquet", code=2)
    assert "e.parquet.partial holds what a stopped prediction has done, which was made differently" in message
    assert "the model is another" in message
    assert "batch_size was 16, is 5" in run("predict", "one", "photos", "-o", "e.parquet", "--batch-size", 5, code=2)
    run("predict", "switched", "photos", "-o", "e.parquet", "--fresh")
    assert not Path("e.parquet.partial").exists()


def test_one_process_at_a_time(here: Path, run: Run) -> None:
    Path("e.parquet.partial").mkdir()
    with open("e.parquet.partial/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is writing e.parquet at this moment" in run(
            "predict", "one", "photos", "-o", "e.parquet", code=2
        )


# bad images


def test_bad_images_are_named_and_the_others_are_as_ever(here: Path, run: Run) -> None:
    run("predict", "one", "photos", "-o", "e.parquet", "--batch-size", 8)
    expected = embeddings("e.parquet")
    paths = sorted((here / "photos").rglob("*.png"))
    bad = [paths[3], paths[20]]
    bad[0].write_bytes(bad[0].read_bytes()[:90])
    bad[1].write_bytes(b"no image at all")
    command = ("predict", "one", "photos", "-o", "b.parquet", "--batch-size", 8)
    message = run(*command, code=1)
    assert "of 54 images cannot be used, more than --max-bad 0.001 allows" in message
    assert str(bad[0]) in message
    assert not Path("b.parquet").exists()
    assert "or add --max-bad 0.038: then the same command goes on with the others" in message
    out = run(*command, "--max-bad", "0.038")
    assert "2 bad; listed in b.quarantine.csv" in out
    with open("b.quarantine.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["place"] for row in listed] == [str(path) for path in bad]
    assert "not an image" in listed[1]["reason"]
    found = embeddings("b.parquet")
    assert found.keys() == expected.keys() - {str(path) for path in bad}
    for path, values in found.items():
        np.testing.assert_allclose(values, expected[path], atol=1e-6)
    about = json.loads(pq.read_schema("b.parquet").metadata[b"guie.predictions"])
    assert (about["images"], about["bad"]) == (52, 2)


def test_raising_max_bad_goes_on(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((here / "photos").rglob("*.png"))
    paths[30].write_bytes(b"")
    seen: list[int] = []
    embed = models.OneView.embed
    monkeypatch.setattr(
        models.OneView, "embed", lambda self, images: [seen.append(len(images)), embed(self, images)][1]
    )
    command = ("predict", "one", "photos", "-o", "b.parquet", "--batch-size", 8)
    assert "1 of 54 images cannot be used, more than" in run(*command, code=1)
    assert sum(seen) == 53 + 1  # so few are all looked at
    run(*command, code=1)
    assert sum(seen) == 54  # nothing is done again to say so again
    run(*command, "--max-bad", "0.1")
    assert sum(seen) == 54
    message = run(*command, "--max-bad", "0", code=1)
    assert "b.parquet is there already, without 1 of 54 images, more than --max-bad 0 allows" in message
    assert message.rstrip().endswith("or add --max-bad 0.019")


def test_of_many_images_not_all_are_looked_at(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "PATIENCE", 10)
    for path in sorted((here / "photos").rglob("*.png"))[3:6]:
        path.write_bytes(b"")
    command = ("predict", "one", "photos", "-o", "b.parquet", "--batch-size", 8)
    message = run(*command, code=1)
    assert "3 of 54 images cannot be used (16 were looked at), more than" in message
    assert "or add --max-bad 0.19, if no larger share of the others is bad: then" in message


def test_mended_removed_and_new_images_go_on_with_the_others(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted((here / "photos").rglob("*.png"))
    whole = paths[5].read_bytes()
    for path in (paths[5], paths[40]):
        path.write_bytes(b"no image")
    command = ("predict", "one", "photos", "-o", "b.parquet", "--batch-size", 8)
    message = run(*command, code=1)
    assert "Mend or remove them, or add --max-bad 0.038: then the same command goes on with the others" in message
    paths[5].write_bytes(whole)
    paths[40].unlink()
    shutil.copy(paths[0], paths[0].with_name("copy.png"))
    seen: list[int] = []
    embed = models.OneView.embed
    monkeypatch.setattr(
        models.OneView, "embed", lambda self, images: [seen.append(len(images)), embed(self, images)][1]
    )
    run(*command)
    assert seen == [1, 2]  # of opening the model; what is mended and what is new
    found = pq.read_table("b.parquet").to_pylist()
    run("predict", "one", "photos", "-o", "anew.parquet", "--batch-size", 8)
    anew = pq.read_table("anew.parquet").to_pylist()
    assert [row["path"] for row in found] == [str(path) for path in sorted((here / "photos").rglob("*.png"))]
    for row, other in zip(found, anew, strict=True):
        np.testing.assert_allclose(row.pop("embedding"), other.pop("embedding"), atol=1e-6)
        assert row == other
    assert not Path("b.quarantine.csv").exists()
    assert not Path("b.parquet.partial").exists()


def test_a_stopped_prediction_of_other_images_is_kept(here: Path, run: Run) -> None:
    some, *others = sorted((here / "photos").rglob("*.png"))
    others[3].write_bytes(b"")
    run("predict", "one", *others[:9], "-o", "b.parquet", code=1)
    message = run("predict", "one", some, "-o", "b.parquet", code=2)
    assert "b.parquet.partial holds what a stopped prediction of other images has done." in message
    # where nothing was embedded, nothing is lost
    run("predict", "one", others[3], "-o", "c.parquet", code=1)
    run("predict", "one", some, "-o", "c.parquet")
    run("predict", "switched", others[3], "-o", "c.npy", code=1)
    run("predict", "one", some, "-o", "c.npy")


@pytest.mark.parametrize("seed", range(3))
def test_results_are_found_by_their_keys(tmp_path: Path, seed: int) -> None:
    """Against a plain search; keys that come several times, in several shards."""
    random = np.random.default_rng(seed)
    here, wanted = (random.integers(0, 30, count).astype("S16") for count in (50, 80))
    kept = Kept(tmp_path)
    assert (kept.find(wanted) == -1).all()
    for first, last in ((0, 20), (20, 21), (21, 50)):
        columns = {
            "key": pa.array([key.ljust(16, b"\0") for key in here[first:last].tolist()], pa.binary(16)),
            "hash": pa.nulls(last - first, pa.binary(16)),
            "reason": pa.array([None if n % 7 else f"bad {n}" for n in range(first, last)], pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(np.arange(2 * first, 2 * last, dtype=np.float32), 2),
        }
        kept.add(pa.table(columns))
    for again in (kept, Kept(tmp_path)):
        free = {key: [n for n, other in enumerate(here) if other == key] for key in set(here.tolist())}
        expected = [free[key].pop(0) if free.get(key) else -1 for key in wanted.tolist()]
        np.testing.assert_array_equal(again.find(wanted), expected)
        numbers = random.permutation(50)
        taken = again.take(numbers)
        assert [value[0] for value in taken["embedding"].to_pylist()] == (2 * numbers).tolist()
        np.testing.assert_array_equal(np.flatnonzero(again.bad()), range(0, 50, 7))
        assert again.reason(21) == "bad 21"
        assert again.embeddings == 42


def test_all_bad_missing_and_changed(here: Path, run: Run) -> None:
    manifest, _ = prepare([ClassFolders("photos")])
    manifest.write("m.parquet")
    paths = sorted((here / "photos").rglob("*.png"))
    shutil.copy(paths[1], paths[0])
    paths[2].unlink()
    run("predict", "one", "m.parquet", "-o", "b.parquet", "--max-bad", "0.2")
    reasons = Path("b.quarantine.csv").read_text()
    assert "its bytes have changed since it was prepared" in reasons
    assert "No such file" in reasons
    assert Manifest.read("m.parquet").column("label").tolist()[:3] == [0, 0, 0]
    for path in paths[:5]:
        path.write_bytes(b"nothing")
    message = run("predict", "one", *paths[:5], "-o", "c.parquet", "--max-bad", "1", code=1)
    assert "None of the images can be used, 5 in all:" in message
    assert "--max-bad" not in message
    Path("t.csv").write_text("path\nnone.png\n")
    advice = "Paths of t.csv are taken from the table's folder"
    assert advice in run("predict", "one", "t.csv", "-o", "d.parquet", code=1)
    run("predict", "one", "t.csv", "-o", "d.parquet", "--set", "root=photos", code=1)


# other people's models


class Mean(nn.Module):
    """Mean colours, not normalised; NaN for black; fails on a single row; sees the raw range."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2] == 1:
            raise RuntimeError("too small")
        means = image.mean(dim=(2, 3))
        return means / (means > 0).float() * 3.0


class Flat(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(2, 3))[0]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    folder = tmp_path / "colours"
    folder.mkdir()
    for name, colour, size in (("a", (10, 20, 30), (9, 4)), ("b", (0, 0, 0), (5, 5)), ("c", (200, 1, 7), (5, 1))):
        Image.new("RGB", size, colour).save(folder / f"{name}.png")
    return folder


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_of_others(run: Run, tmp_path: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Mean()), "mean.pt")
    run("predict", "mean.pt", "colours", "-o", "raw.npy", "--raw", "--max-bad", "0.7")
    np.testing.assert_allclose(np.load("raw.npy"), [[30, 60, 90]], rtol=1e-6)
    reasons = Path("raw.quarantine.csv").read_text()
    assert "its embedding is not finite" in reasons
    assert "the model fails on it: " in reasons
    assert "too small" in reasons
    run("predict", "mean.pt", "colours", "-o", "unit.npy", "--max-bad", "0.7")
    np.testing.assert_allclose(np.load("unit.npy"), np.array([[1, 2, 3]]) / np.sqrt(14), rtol=1e-6)
    torch.jit.save(torch.jit.script(Flat()), "flat.pt")
    message = run("predict", "flat.pt", "colours", "-o", "flat.npy", code=1)
    assert "for one image it gives a tensor [3], not a tensor [1, D]" in message


def test_onnx_needs_to_know_its_view(here: Path, run: Run) -> None:
    run("predict", "one/model.onnx", "photos", "-o", "e.parquet")
    expected = embeddings("e.parquet")
    Path("alone").mkdir()
    shutil.copy("one/model.onnx", "alone/model.onnx")
    message = run("predict", "alone/model.onnx", "photos", "-o", "f.parquet", code=2)
    assert "nothing beside it says how" in message
    backbone = load(here / "one" / "embedder.safetensors").backbone
    view = f"dict(type='Squash', mean={backbone.mean}, std={backbone.std})"
    run("predict", "alone", "photos", "-o", "f.parquet", "--view", view)
    assert embeddings("f.parquet") == expected
    assert "stpd" in run(
        "predict", "alone", "photos", "-o", "g.parquet", "--view", "dict(type='Squash', stpd=1)", code=2
    )
    assert "--view" in run("predict", "alone", "photos", "-o", "g.parquet", "--view", "Squash", code=2)
    about = {"arguments": {"backbone": {**backbone.config, "weights": "none"}, "view": {"type": "Squash"}}}
    Path("alone/stage.json").write_text(json.dumps(about))
    run("predict", "alone", "photos", "-o", "g.parquet")
    assert embeddings("g.parquet") == expected


def test_onnx_has_one_view_and_says_so(here: Path, run: Run) -> None:
    note = "switched/model.onnx has one view of an image: its embeddings differ from those of the same model's other"
    command = ("predict", "switched/model.onnx", "photos", "-o", "e.parquet")
    assert note in run(*command)
    assert note in run(*command)  # which is complete already
    assert "view" not in run("predict", "one/model.onnx", "photos", "-o", "f.parquet")
    assert "view" not in run("predict", "switched", "photos", "-o", "g.parquet")
    # in a run's folder the export's own report tells
    Path("alone").mkdir()
    shutil.copy("switched/model.onnx", "alone/model.onnx")
    view = "dict(type='Squash', mean=(.5, .5, .5), std=(.5, .5, .5))"
    Path("alone/exports.json").write_text(json.dumps([{"path": "model.onnx", "note": "compared without"}]))
    assert "one view" in run("predict", "alone", "photos", "-o", "h.parquet", "--view", view)
    Path("alone/exports.json").write_text("[1]")
    assert "alone/exports.json is damaged" in run(
        "predict", "alone", "photos", "-o", "h.parquet", "--view", view, code=1
    )


def test_batches_end_before_the_memory_does(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("predict", "switched", "photos", "-o", "e.parquet")
    largest: list[int] = []
    embed = models.Switched.embed

    def measured(self: models.Switched, images: Any) -> Any:
        largest.append(sum(image.nbytes for image in images[:-1]))
        return embed(self, images)

    monkeypatch.setattr(predicting, "BYTES_AT_ONCE", 100_000)
    monkeypatch.setattr(models.Switched, "embed", measured)
    run("predict", "switched", "photos", "-o", "f.parquet")
    assert len(largest) > 5
    assert max(largest) < 100_000  # all but the last one that was added
    for path, values in embeddings("e.parquet").items():
        np.testing.assert_allclose(values, embeddings("f.parquet")[path], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.pt", "photos", "-o", "e.parquet"), "nothing.pt: no such file or folder. Name a run's folder or"),
        (("empty_runs", "photos", "-o", "e.parquet"), "no such file or folder. Did you mean 'empty run'? Name a run's"),
        (("one", "photos", "-o", "/proc/a.npy"), "/proc/a.npy could not be written"),
        (("photos", "photos", "-o", "e.parquet"), "photos: neither a run's folder nor one that holds a model"),
        (("empty run", "photos", "-o", "e.parquet"), "empty run: this run has exported no model"),
        (("one/README.md", "photos", "-o", "e.parquet"), "one/README.md: not a model that can be used here"),
        (("cut.safetensors", "photos", "-o", "e.parquet"), "cut.safetensors: not a safetensors file, or a damaged one"),
        (("cut.pt", "photos", "-o", "e.parquet"), "cut.pt: not a TorchScript file, or a damaged one"),
        (("cut.zip", "photos", "-o", "e.parquet"), "cut.zip: not a zip, or a damaged one"),
        (("other.zip", "photos", "-o", "e.parquet"), "other.zip holds model.pt, and no saved_model.pt at its top"),
        (("cut.onnx", "photos", "-o", "e.parquet"), "cut.onnx: not an ONNX file, or a damaged one"),
        (("one", "photo", "-o", "e.parquet"), "'photo' is neither a data set nor a file or folder here"),
        (("one", "hollow", "-o", "e.parquet"), "there is no image to embed"),
        (("one", "photos", "-o", "e.txt"), "--output e.txt: it must end in .parquet or .npy"),
        (("one", "photos", "-o", "photos"), "--output photos is a folder"),
        (
            ("one", "images.parquet", "-o", "images.parquet"),
            "--output images.parquet would replace images.parquet, which is",
        ),
        (("one", "cars.csv", "-o", "e.parquet"), "--set 'columns=dict(path="),
        (("one", "photos", "-o", "images.npy"), "images.csv, which goes with images.npy, is there already"),
        (("one", "images.csv", "-o", "images.npy"), "images.csv, which goes with images.npy, is read"),
        (
            ("one", "photos", "-o", "list.parquet"),
            "list.quarantine.csv, which goes with list.parquet, is there already",
        ),
        (("one", "photos", "-o", "mine.parquet"), "mine.parquet is there already, and was not made by guie predict"),
        (("one", "photos", "-o", "e.parquet", "--set", "catgory=x"), "catgory"),
        (("one", "list.txt", "-o", "e.parquet"), "list.txt: a file of unknown kind. Name a folder of class folders"),
        (("one", "list.txt", "-o", "e.parquet"), ".jpg, "),
        (("one", "list.txt", "-o", "e.parquet"), "A list of paths is a table with the column path"),
        (
            ("one", "photos", "-o", "e.parquet", "--view", "dict(type='Squash')"),
            "--view is for ONNX files; one/embedder",
        ),
    ],
)
def test_messages(here: Path, run: Run, arguments: tuple[str, ...], message: str) -> None:
    import zipfile

    for suffix, source in {
        "safetensors": "one/embedder.safetensors",
        "pt": "one/saved_model.pt",
        "zip": "one/saved_model.pt",
        "onnx": "one/model.onnx",
    }.items():
        Path(f"cut.{suffix}").write_bytes(Path(source).read_bytes()[:3000])
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("model.pt", b"")
    Path("empty run").mkdir()
    Path("empty run/run.json").write_text("{}")
    Path("hollow").mkdir()
    Path("list.txt").write_text("photos/a.jpg\n")
    Path("cars.csv").write_text("file,model\na.jpg,1\n")
    Path("mine.parquet").write_text("keep me")
    for name in ("images.parquet", "images.csv", "list.quarantine.csv"):
        Path(name).write_text("keep me")
    # a wrong name is wrong usage; what is in a file, or what the disk says, is not
    inside = arguments[0].startswith(("cut", "other")) or arguments[1] == "cars.csv" or arguments[-1] == "/proc/a.npy"
    errors = run("predict", *arguments, code=1 if inside else 2)
    assert message in errors
    assert Path("mine.parquet").read_text() == Path("images.parquet").read_text() == "keep me"
    assert not list(here.glob("*.partial"))
