"""The stage that prepares data: filters, duplicates, and when it's run again."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from guie_core import Config, GuieError
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_datasets import ClassFolders, Manifest, prepare
from guie_train.planning.forecast import Outlook
from guie_train.stage import Stage, Workspace
from guie_train.stages.data import Prepare, Split
from guie_train.stages.selection import check_pairs


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Classes of 1, 2, 3 and 4 images, the last of which is there twice."""
    generator = np.random.default_rng(0)
    for label in range(4):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        for number in range(label + 1):
            pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"class{label}" / f"{number}.png")
    again = tmp_path / "images" / "class3" / "again.png"
    again.write_bytes((tmp_path / "images" / "class3" / "0.png").read_bytes())
    return tmp_path / "images"


def made(images: Path, **arguments: Any) -> tuple[Prepare, Manifest]:
    stage = Prepare(name="prepare", data=[{"type": "folder", "root": str(images)}], **arguments)
    folder = images.parent / "out"
    folder.mkdir(exist_ok=True)
    stage.run(folder, cast(Workspace, None))
    return stage, stage.load(folder)


def test_filters_in_order(images: Path) -> None:
    filters = [{"type": "MinImages", "images": 2}, {"type": "MaxImages", "images": 3}]
    stage, manifest = made(images, filters=filters)
    assert np.bincount(manifest.column("label")).tolist() == [2, 3, 3]
    assert manifest.column("name").tolist()[0] == "class1"
    assert stage.summary(manifest) == "8 images of 3 classes; filters left out 2; quarantine.csv: 1 repeated"
    stage, manifest = made(images)
    assert stage.summary(manifest) == "10 images of 4 classes; quarantine.csv: 1 repeated"


def test_one_image_of_one_class(images: Path) -> None:
    for label in range(1, 4):
        shutil.rmtree(images / f"class{label}")
    stage, manifest = made(images)
    assert stage.summary(manifest) == "1 image of 1 class"
    does = stage.forecast(cast(Outlook, None)).does
    assert does == "1 image of 1 class, each read once, hashed and measured"


def test_scores_of_a_single_class_are_warned_of(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage, manifest = made(images)
    label = manifest.column("label")
    protocol = {"type": "LeaveOneOut", "split": "select"}
    for classes, select in ((1, "4 of 1 class"), (2, "7 of 2 classes")):
        parted = manifest.with_column("split", np.where(label >= 4 - classes, "select", "train"))
        line = Split(name="split", manifest=stage, splits=[]).summary(parted)
        assert line == f"select {select}, train {10 - int(select[0])} of {4 - classes} classes"
        caplog.clear()
        check_pairs(protocol, "recipe.selection.protocol", parted, "head")
        warning = "head: by recipe.selection.protocol, all images that may answer are of one class"
        assert [each.getMessage().startswith(warning) for each in caplog.records] == [True] * (classes == 1)
    alone = manifest.with_column("split", np.where(label == 0, "select", "train"))
    with pytest.raises(GuieError, match=r"recipe\.selection\.protocol: none of 1 queries has another image"):
        check_pairs(protocol, "recipe.selection.protocol", alone, "head")


def test_duplicates_can_be_kept(images: Path) -> None:
    assert np.bincount(made(images, keep_duplicates=True)[1].column("label")).tolist() == [1, 2, 3, 5]
    assert np.bincount(made(images)[1].column("label")).tolist() == [1, 2, 3, 4]


def test_what_its_key_depends_on(images: Path) -> None:
    def key(**arguments: Any) -> str:
        return Prepare(name="prepare", data=[{"type": "folder", "root": str(images)}], **arguments).key

    first = key()
    assert key() == first
    assert key(keep_duplicates=True) != first
    assert key(filters=[{"type": "MinImages", "images": 2}]) != key(filters=[{"type": "MinImages", "images": 3}])
    image = images / "class0" / "0.png"
    os.utime(image, ns=(0, 0))
    assert key() != first


def test_how_much_may_be_bad_is_not_in_its_key(images: Path, tmp_path: Path) -> None:
    """So that allowing more trains nothing anew, and allowing less is told."""
    (images / "class3" / "0.png").write_bytes(b"none")

    def stage(max_bad: float) -> Prepare:
        return Prepare(name="prepare", data=[{"type": "folder", "root": str(images)}], max_bad=max_bad)

    assert stage(0.2).key == stage(0.1).key == stage(0).key
    assert len(run(tmp_path / "store", stage(0.2))) == 10
    workspace = Workspace(tmp_path / "store", profile("cpu"), Stop())
    with pytest.raises(GuieError, match=r"1 of 11 images are bad .* raise recipe\.max_bad to 0\.091"):
        stage(0).check(workspace)
    stage(0.1).check(workspace)
    assert workspace.records["prepare"].reused  # what was refused has touched nothing


def test_a_filter_that_leaves_nothing_says_so(images: Path) -> None:
    with pytest.raises(GuieError, match=r"MinImages\(images=9.* leaves none of 10 images"):
        made(images, filters=[{"type": "MinImages", "images": 9}])


def test_settings_are_named_by_their_key(images: Path, tmp_path: Path) -> None:
    """What messages of data sets speak of is told as the experiment writes it."""
    (images / "class0" / "bad.png").write_bytes(b"none")
    with pytest.raises(GuieError, match=r"raise recipe\.max_bad to 0\.") as caught:
        made(images)
    assert " max_bad" not in str(caught.value)
    (tmp_path / "cars.csv").write_text("path;label\na;b\n")
    stage = Prepare(name="prepare", data=[{"type": "table", "file": str(tmp_path / "cars.csv")}])
    with pytest.raises(GuieError, match=r"recipe\.data\.0\.delimiter"):
        stage.run(tmp_path, cast(Workspace, None))


@pytest.fixture
def twice(images: Path) -> list[Config]:
    """The same pictures as a manifest and as a table, in which their classes are called otherwise, and one is new."""
    manifest, _ = prepare([ClassFolders(images)])
    manifest.write(images.parent / "photos.parquet")
    with open(images.parent / "cars.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label"])
        for path in sorted(images.glob("*/?.png")):
            table.writerow([path, f"car {path.parent.name}"])
    return [
        {"type": "table", "file": str(images.parent / "cars.csv")},
        {"type": "manifest", "path": str(images.parent / "photos.parquet")},
    ]


def run(folder: Path, stage: Stage[Any]) -> Manifest:
    workspace = Workspace(folder, profile("cpu"), Stop())
    return cast(Manifest, workspace.get(stage))


def test_no_image_is_in_two_splits_and_what_is_left_out_is_told(
    twice: list[Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Prepare(name="prepare", data=twice)
    stage = Split(name="split", manifest=whole, splits=[{"type": "HoldOutClasses", "classes": 3}])
    done = run(tmp_path / "store", stage)
    split = done.column("split")
    digests = [hashlib.sha256(Path(ref.path).read_bytes()).digest() for ref in done.images()]
    sets = [{digests[row] for row in np.flatnonzero(split == name)} for name in ("test", "train")]
    assert all(sets)
    assert sets[0].isdisjoint(sets[1])
    left_out = 20 - len(done)
    assert left_out
    line = stage.summary(done)
    both = len(done) - len(set(digests))
    assert line.endswith(
        f"; left out as they are in another split: {left_out}, in quarantine.csv"
        f"; in one split under several labels: {both}, in quarantine.csv"
    )
    warning = next(each.getMessage() for each in caplog.records if each.getMessage().startswith("split: "))
    assert warning.startswith("split: data sets share images, which are left out where another split has them: ")
    told = re.findall(r"(\d) of '(cars|images)' from 'train', in 'test' as '(cars|images)'", warning)
    assert sum(int(count) for count, *_ in told) == left_out
    assert "prepare: 10 of the 10 images of data set 1 are in data set 0 as well, under other labels" in caplog.text
    folder = Workspace(tmp_path / "store", profile("cpu"), Stop()).folder(stage)
    assert f"listed in {folder / 'quarantine.csv'}" in warning
    with open(folder / "quarantine.csv", newline="") as file:
        assert sum(row["kind"] == "left out" for row in csv.DictReader(file)) == left_out


def test_images_of_one_split_under_several_labels_are_warned_of(
    twice: list[Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare, splits = Prepare(name="prepare", data=twice), [{"type": "HoldOutClasses", "classes": 4}]
    for seed in range(20):  # until two classes with the same images are set aside together
        caplog.clear()
        stage = Split(name="split", manifest=prepare, splits=[{**splits[0], "seed": seed}])
        done = run(tmp_path / "store", stage)
        test = done.select(done.column("split") == "test")
        if several := len(test) - len(set(test.column("hash").tolist())):
            break
    assert several
    (warning,) = [each.getMessage() for each in caplog.records if "several labels" in each.getMessage()]
    assert f"{several} in 'test', of 'cars' and 'images'" in warning
    assert "each counts as a wrong answer to the other. Where two data sets show the same things, make one " in warning
    assert "; in one split under several labels: " in stage.summary(done)
    filters: list[Config] = [dict(type="DropSources", sources=["images"])]
    assert repr(filters[0]["sources"]) in warning
    alone = replace(stage, manifest=replace(prepare, filters=filters), splits=[dict(splits[0], classes=2)])
    caplog.clear()
    assert "several_labels" not in run(tmp_path / "store", alone).provenance
    assert "several labels" not in caplog.text


def test_images_that_splits_of_the_data_share_are_warned_of(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, _ = prepare([ClassFolders(images)])
    twice = manifest.select([*range(len(manifest)), 9, 9])  # in two classes, else it would be left out as repeated
    rows = len(twice)
    labels = np.where(np.arange(rows) == rows - 1, 4, twice.column("label"))
    splits = np.where(np.arange(rows) == 9, "test", np.where(np.arange(rows) == rows - 1, "select", ""))
    twice.with_column("label", labels).with_column("split", splits).write(images.parent / "photos.parquet")
    whole = Prepare(name="prepare", data=[{"type": "manifest", "path": str(images.parent / "photos.parquet")}])
    stage = Split(name="split", manifest=whole, splits=[])
    done = run(tmp_path / "store", stage)
    assert stage.summary(done).endswith("; in two splits of the data: 1")
    assert sorted(done.column("split")[done.column("split") != "train"]) == ["select", "test"]
    (warning,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("split: ")]
    assert "share images, and keep them: 1 in 'select' and 'test'. " in warning


def test_splits_are_named_by_their_key(images: Path, tmp_path: Path) -> None:
    splits: list[Config] = [{"type": "HoldOutClasses", "classes": 1}, {"type": "UnseenClasses", "folds": 9}]
    stage = Split(
        name="split",
        manifest=Prepare(name="prepare", data=[{"type": "folder", "root": str(images)}]),
        splits=splits,
    )
    with pytest.raises(GuieError, match=r"Set recipe\.splits\.1\.folds to 2\.\.3, or add data"):
        run(tmp_path / "store", stage)
    with pytest.raises(GuieError, match=r"Set recipe\.splits\.0\.classes to 1\.\.3, or add data"):
        run(tmp_path / "store", replace(stage, splits=[{"type": "HoldOutClasses", "classes": 4}]))
