"""A run computes the features that it uses, and another split those alone that it lacks."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from guie_core import GuieError, Interrupted
from guie_core.experiment import Experiment
from guie_core.interrupt import Stop
from guie_core.profiles import profile
from guie_core.registry import build
from guie_train.feature_store import FeatureStore
from guie_train.planning.forecast import Outlook
from guie_train.planning.plan import Step, make_plan
from guie_train.runner import _chosen
from guie_train.stage import Stage, Workspace
from guie_train.stages.features import Features

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "quickstart.py"
CLASSES, IMAGES = 20, 4
VIEWS = {  # all different, so that each has a store of its own
    "train": "dict(type='CenterCrop')",
    "valid": "dict(type='Squash')",
    "classifier": "dict(type='RandomSquareCrop')",
}


def write_table(folder: Path, classes: Iterable[int]) -> Path:
    """Pictures of noise, some square and some not, of two kinds."""
    folder.mkdir(exist_ok=True)
    rows = []
    for label in classes:
        random = np.random.default_rng(label)
        for number in range(IMAGES):
            name = f"{label}-{number}.png"
            size = (40, 40, 3) if number % 2 else (36, 48, 3)
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
            rows.append((name, label, f"kind {label % 2}"))
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "category"), *rows])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("pictures"), range(CLASSES))


def settings(table: Path, *more: str) -> Iterator[str]:
    yield f"recipe.data=[dict(type='table', file='{table}')]"
    yield from (f"recipe.views.{name}={view}" for name, view in VIEWS.items())
    yield from (
        "recipe.splits.0.classes=4",
        "recipe.splits.1.folds=4",
        "recipe.backbone=dict(type='timm/test_resnet', weights='none', image_size=32)",
        "recipe.arcface.epochs=2",
        "recipe.arcface.batch_size=8",
        "recipe.selection.every=1",
        "recipe.classifier.training.epochs=2",
        "recipe.classifier.training.batch_size=8",
        "recipe.classifier.folds=4",
        "recipe.augmentation.padded_for=('kind 0',)",
        "recipe.evaluation.pca=8",
        "recipe.exports=[]",
        "recipe.max_bad=0.02",
    )
    yield from more


def stages(table: Path, *more: str) -> dict[str, Stage[Any]]:
    loaded = Experiment.load(EXPERIMENT, overrides=[*settings(table, *more)], profile="cpu")
    made = build("recipes", loaded.recipe, where="recipe").stages(profile("cpu"))
    return {stage.name: stage for stage in made}


def run(folder: Path, made: dict[str, Stage[Any]]) -> Workspace:
    workspace = Workspace(folder, profile("cpu"), Stop())
    for stage in made.values():
        workspace.get(stage)
    return workspace


def rows(workspace: Workspace, made: dict[str, Stage[Any]]) -> dict[str, int]:
    """How many images the store of each view has, whoever has asked for them."""
    return {name: len(workspace.get(stage)) for name, stage in made.items() if name.startswith("features")}


def test_each_image_through_the_views_that_look_at_it(table: Path, tmp_path: Path) -> None:
    made = stages(table)
    workspace = run(tmp_path, made)
    split = workspace.get(made["split"]).column("split")
    count = {name: int((split == name).sum()) for name in np.unique(split)}
    assert count["train"] + count["select"] + count["test"] == CLASSES * IMAGES
    found = rows(workspace, made)
    assert found["features train"] == count["train"]
    assert found["features valid"] == count["select"] + count["test"]
    assert found["features classifier"] == count["train"] + count["select"]


def test_the_plan_counts_what_is_computed(table: Path, tmp_path: Path) -> None:
    made = stages(table)
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    for name in ("prepare", "split"):
        workspace.get(made[name])
    outlook = Outlook(workspace, ready=lambda stage: workspace.complete(stage))
    foretold = {name: outlook.forecast(made[name]).disk for name in ("features train", "features valid")}
    workspace = run(tmp_path, made)
    for name, disk in foretold.items():
        assert disk == len(workspace.get(made[name])) * (workspace.get(made[name]).row_bytes + 36)


def test_a_plan_counts_the_images_that_are_there(table: Path, tmp_path: Path) -> None:
    """Also those of a store that was left when all its images were there, and nothing said so yet."""
    made = list(stages(table).values())
    stage = next(each for each in made if each.name == "features train")
    made = made[: made.index(stage) + 1]
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    images = len(workspace.get(stage))
    (workspace.folder(stage) / "stage.json").unlink()

    def plan(*again: Stage[Any]) -> Step:
        return make_plan(made, again, Workspace(tmp_path, profile("cpu"), Stop())).steps[-1]

    step = plan()
    assert (step.state, step.forecast.disk) == ("to do", 0)
    assert f"; {images} of them are there" in step.forecast.does
    Workspace(tmp_path, profile("cpu"), Stop()).get(stage)
    whole = images * (FeatureStore(workspace.folder(stage)).row_bytes + 36)
    assert (plan().state, plan(stage).state, plan(stage).forecast.disk) == ("done before", "again", whole)


def test_the_time_of_features_counts_decoding_once_the_images_are_there(table: Path, tmp_path: Path) -> None:
    made = list(stages(table).values())
    at = [stage.name for stage in made].index("features train") + 1
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    assert "; without decoding" in make_plan(made[:at], [], workspace).steps[-1].forecast.basis
    for stage in made[: at - 1]:
        workspace.get(stage)
    found = make_plan(made[:at], [], workspace).steps[-1].forecast
    assert re.search(r"; decoding \d+\.\d ms of a core an image, measured here$", found.basis)


def test_another_split_computes_what_has_changed_sides(table: Path, tmp_path: Path) -> None:
    first, second = stages(table), stages(table, "recipe.splits.1.seed=7")
    assert first["features train"].key == second["features train"].key
    before = rows(run(tmp_path / "both", first), first)
    workspace = run(tmp_path / "both", second)
    after = rows(workspace, second)
    one, other = (workspace.get(made["split"]).column("split") for made in (first, second))
    assert after["features train"] - before["features train"] == ((other == "train") & (one != "train")).sum() > 0
    assert after["features valid"] - before["features valid"] == ((other != "train") & (one == "train")).sum() > 0
    afresh = run(tmp_path / "afresh", second)
    for name in ("head", "classifier"):
        path = workspace.folder(second[name]) / "last.safetensors"
        found, expected = load_file(path), load_file(afresh.folder(second[name]) / path.name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("where", ["train", "select", "test"])
def test_images_that_cannot_be_decoded_are_left_out_of_every_view(table: Path, tmp_path: Path, where: str) -> None:
    made = stages(table)
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = workspace.get(made["split"])
    row = int(np.flatnonzero(manifest.column("split") == where)[0])
    path = Path(manifest.images()[row].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # after it was prepared
    try:
        workspace = run(tmp_path, made)
    finally:
        path.write_bytes(whole)
    view = "features train" if where == "train" else "features valid"
    (bad,) = workspace.get(made[view]).bad
    assert path.name in bad.place


@pytest.mark.parametrize("where", ["train", "select"])
def test_an_image_that_was_mended_is_tried_again(table: Path, tmp_path: Path, where: str) -> None:
    made = stages(table)
    view = made["features train" if where == "train" else "features valid"]
    assert isinstance(view, Features)
    first = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = first.get(made["split"])
    row = int(np.flatnonzero(manifest.column("split") == where)[0])
    path = Path(manifest.images()[row].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        assert len(first.get(view)) == len(view.rows(manifest)) - 1
        again = Workspace(tmp_path, profile("cpu"), Stop())
        assert again.complete(view)  # nothing has changed
        os.rename(path, path.with_suffix(".away"))
        assert again.complete(view)  # nor is there anything to try
    finally:
        path.write_bytes(whole)
    mended = Workspace(tmp_path, profile("cpu"), Stop()).get(view)
    assert mended.bad == ()
    expected = Workspace(tmp_path / "afresh", profile("cpu"), Stop()).get(view)
    hashes = manifest.column("hash")[view.rows(manifest)]
    np.testing.assert_array_equal(mended.read(hashes), expected.read(hashes))


def test_a_training_that_was_interrupted_goes_on_where_an_image_that_it_does_not_see_was_mended(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = stages(table)
    first = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = first.get(made["split"])
    path = Path(manifest.images()[int(np.flatnonzero(manifest.column("split") == "test")[0])].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    first.on_epoch = lambda stage, _: first.stop.request()
    try:
        with pytest.raises(Interrupted):
            first.get(made["head"])
    finally:
        path.write_bytes(whole)
    found = Workspace(tmp_path, profile("cpu"), Stop()).get(made["head"])
    assert not [each for each in caplog.records if "begins anew" in each.getMessage()]
    expected = Workspace(tmp_path / "afresh", profile("cpu"), Stop()).get(made["head"])
    one, other = (load_file(each.folder / "last.safetensors") for each in (found, expected))
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("name", ["head", "classifier"])
def test_a_training_that_was_interrupted_begins_anew_with_an_image_that_was_mended(
    table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    made = stages(table)
    first = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = first.get(made["split"])
    row = int(np.flatnonzero(manifest.column("split") == "train")[0])
    path = Path(manifest.images()[row].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    def ask(stage: str, _: object) -> None:
        if stage == name:
            first.stop.request()

    first.on_epoch = ask
    try:
        with pytest.raises(Interrupted):
            first.get(made[name])
    finally:
        path.write_bytes(whole)
    found = Workspace(tmp_path, profile("cpu"), Stop()).get(made[name])
    warning = f"{name}: the images that can be decoded are no longer those of the training that was interrupted; it "
    warning += f"begins anew, with {int((manifest.column('split') != 'test').sum())} images"
    assert [each.getMessage() for each in caplog.records].count(warning) == 1
    expected = Workspace(tmp_path / "afresh", profile("cpu"), Stop()).get(made[name])
    assert sorted(each.name for each in found.folder.iterdir()) == sorted(
        each.name for each in expected.folder.iterdir()
    )
    one, other = (load_file(each.folder / "last.safetensors") for each in (found, expected))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_bad_image_of_another_copy_of_the_data_builds_no_backbone(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies have files of other times, and the same bytes."""
    copies = [tmp_path / "a" / "table.csv", tmp_path / "b" / "table.csv"]
    views = []
    for copy in copies:
        shutil.copytree(table.parent, copy.parent)
        view = stages(copy)["features train"]
        assert isinstance(view, Features)
        views.append(view)
    manifest, _ = [Workspace(tmp_path, profile("cpu"), Stop()).get(view.manifest) for view in views]
    name = Path(manifest.images()[int(views[0].rows(manifest)[0])].path).name
    for number, copy in enumerate(copies):
        path = copy.parent / name
        path.write_bytes(path.read_bytes()[:-1000])
        os.utime(path, ns=(number, number))
    assert views[0].key == views[1].key
    Workspace(tmp_path, profile("cpu"), Stop()).get(views[0])
    with monkeypatch.context() as patched:
        patched.setattr(Features, "network", lambda *_: pytest.fail("the backbone is built"))
        for number in (1, 0, 1):
            store = Workspace(tmp_path, profile("cpu"), Stop()).get(views[number])
            assert [Path(bad.place).name for bad in store.bad] == [name]


def test_features_that_are_made_again_leave_those_of_other_splits(table: Path, tmp_path: Path) -> None:
    first, second = stages(table), stages(table, "recipe.splits.1.seed=7")
    for made in (first, second):
        workspace = Workspace(tmp_path, profile("cpu"), Stop())
        store = workspace.get(made["features train"])
    folder = workspace.folder(second["features train"])
    manifest = workspace.get(first["split"])
    everything = np.unique(manifest.column("hash")[np.flatnonzero(manifest.column("split") == "train")])
    assert not len(store.missing(everything))
    before = store.read(everything)
    damaged = folder / "00000.features"
    data = bytearray(damaged.read_bytes())
    data[:: store.row_bytes] = bytes(byte ^ 1 for byte in data[:: store.row_bytes])  # of every image
    damaged.write_bytes(data)
    again = Workspace(tmp_path, profile("cpu"), Stop(), again=frozenset([second["features train"].key]))
    after = again.get(second["features train"])
    split = again.get(second["split"]).column("split")
    assert len(after) == (split == "train").sum()  # of the others, which are damaged, none
    Workspace(tmp_path, profile("cpu"), Stop()).get(first["features train"])

    again = Workspace(tmp_path, profile("cpu"), Stop(), again=frozenset([second["features train"].key]))
    after = again.get(second["features train"])
    assert after.verify() == []
    np.testing.assert_array_equal(after.read(everything), before)


ONE_VIEW = [f"recipe.views.{name}=dict(type='Squash')" for name in VIEWS]
OTHER = "f" * 32  # an image of another experiment


@pytest.mark.parametrize("name", ["features train", "features valid", "features classifier"])
@pytest.mark.parametrize("own", [False, True])
def test_features_that_are_made_again_are_made_of_all_images(table: Path, tmp_path: Path, name: str, own: bool) -> None:
    """Of this experiment, where its stages share a store; others have what they had."""
    data = write_table(tmp_path / "kinds", classes=range(100, 108)) if own else table
    made = stages(table, *ONE_VIEW, *[f"recipe.classifier.data=[dict(type='table', file='{data}')]"] * own)
    sharing = {f"features {each}" for each in VIEWS}
    assert len({made[each].key for each in sharing}) == 1
    workspace = run(tmp_path, made)
    store = FeatureStore(workspace.folder(made["features valid"]))
    parts = [workspace.get(made["split"]), workspace.get(made["prepare classifier" if own else "prepare"])]
    hashes = np.unique(np.concatenate([part.column("hash") for part in parts])).astype("U32")
    expected, about = store.read(hashes), store.about
    for path in store.shards():
        path.unlink()
        path.with_suffix(".rows.npy").unlink()
    stale = FeatureStore(store.folder, {key: value for key, value in about.items() if key != "version"})
    everything = [*hashes.tolist(), OTHER]
    stale.append(everything, np.ones((len(everything), stale.dimension)))

    _, again = _chosen([*made.values()], None, name)
    assert sharing <= {each.name for each in again}
    planned = make_plan([*made.values()], again, Workspace(tmp_path, profile("cpu"), Stop(), stages=[*made.values()]))
    disk = [step.forecast.disk for step in planned.steps if step.name in sharing]
    images = [48 + 1, 32, 32 if own else 0]  # the first takes over that of the other experiment
    assert disk == [count * (stale.row_bytes + 36) for count in images]
    keys = frozenset(each.key for each in again)
    workspace = Workspace(tmp_path, profile("cpu"), Stop(), stages=[*made.values()], again=keys)
    for stage in made.values():
        workspace.get(stage)
    after = FeatureStore(store.folder)
    np.testing.assert_array_equal(after.read(hashes), expected)
    np.testing.assert_array_equal(after.read(np.array([OTHER])), np.ones((1, after.dimension)))


def test_features_that_are_made_again_leave_those_of_stages_that_are_not(table: Path, tmp_path: Path) -> None:
    """As with --stage, which ends a run before they would have their turn."""
    made = stages(table, *ONE_VIEW)
    workspace = run(tmp_path, made)
    hashes = np.unique(workspace.get(made["split"]).column("hash")).astype("U32")
    expected = FeatureStore(workspace.folder(made["features valid"])).read(hashes)
    chosen, again = _chosen([*made.values()], "features train", "features train")
    keys = frozenset(each.key for each in again)
    workspace = Workspace(tmp_path, profile("cpu"), Stop(), stages=chosen, again=keys)
    for stage in chosen:
        workspace.get(stage)
    assert Workspace(tmp_path, profile("cpu"), Stop()).complete(made["features valid"])
    np.testing.assert_array_equal(FeatureStore(workspace.folder(made["features valid"])).read(hashes), expected)


def test_what_may_be_bad_is_counted_over_training_and_validation(table: Path, tmp_path: Path) -> None:
    made = stages(table, "recipe.max_bad=0.02")  # one of 80
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = workspace.get(made["split"])
    chosen = [int(np.flatnonzero(manifest.column("split") == where)[0]) for where in ("train", "test")]
    paths = [Path(manifest.images()[row].path) for row in chosen]
    kept = [path.read_bytes() for path in paths]
    try:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole[: len(whole) // 2])
        workspace.get(made["features train"])
        with pytest.raises(GuieError) as caught:
            workspace.get(made["features valid"])
        raised = stages(table, "recipe.max_bad=0.025")  # as the message has it
        for name in ("features train", "features valid"):
            Workspace(tmp_path, profile("cpu"), Stop()).get(raised[name])
    finally:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole)
    told = str(caught.value)
    assert told.startswith(
        "features valid: 1 of 32 images cannot be decoded, 2.50% of all 80, with 1 of other stages, more than "
        "max_bad = 2.00% allows:\n"
    )
    assert all(path.name in told for path in paths)
    assert "raise recipe.max_bad to 0.025; " in told


def test_one_stage_does_not_lose_all_that_the_whole_may(table: Path, tmp_path: Path) -> None:
    made = stages(table, "recipe.max_bad=0.05")  # four of 80, and two of 32
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = workspace.get(made["split"])
    chosen = np.flatnonzero(manifest.column("split") == "test")[:3]
    paths = [Path(manifest.images()[row].path) for row in chosen]
    kept = [path.read_bytes() for path in paths]
    try:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(GuieError) as caught:
            workspace.get(made["features valid"])
    finally:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole)
    assert str(caught.value).startswith(
        "features valid: 3 of 32 images cannot be decoded, 9.38% of them, more than max_bad = 5.00% allows of the "
        "images of one stage:\n"
    )
    assert "raise recipe.max_bad to 0.094; " in str(caught.value)


def test_what_was_left_out_before_training_stops_nothing_after_it(table: Path, tmp_path: Path) -> None:
    """Few images of test are no square, and two of them more than max_bad is of those alone."""
    made = stages(table, "recipe.max_bad=0.04")
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = workspace.get(made["split"])
    stage = made["features test padded_crop"]
    assert isinstance(stage, Features)
    chosen = stage.rows(manifest)
    assert len(chosen) * 0.04 < 1
    paths = [Path(manifest.images()[row].path) for row in chosen[:2]]
    kept = [path.read_bytes() for path in paths]
    try:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole[: len(whole) // 2])
        workspace = run(tmp_path, made)
        assert len(workspace.get(stage).bad) == 2
        # what breaks only then is told all the same
        late = Path(manifest.images()[chosen[2]].path)
        paths.append(late)
        kept.append(late.read_bytes())
        late.write_bytes(kept[-1][: len(kept[-1]) // 2])
        again = Workspace(tmp_path, profile("cpu"), Stop(), again=frozenset([stage.key]))
        again.get(stage)
        others = [Path(manifest.images()[row].path) for row in chosen[3:]]
        paths += others
        kept += [path.read_bytes() for path in others]
        for path in others:
            path.write_bytes(b"")
        again = Workspace(tmp_path, profile("cpu"), Stop(), again=frozenset([stage.key]))
        with pytest.raises(
            GuieError, match=rf"^features test padded_crop: {len(others) + 1} of {len(others) + 1} images"
        ):
            again.get(stage)
    finally:
        for path, whole in zip(paths, kept, strict=True):
            path.write_bytes(whole)


def test_a_classifier_does_not_learn_from_what_is_reported_on(table: Path, tmp_path: Path) -> None:
    """Of data of its own as well, which have the same images here under other labels."""

    def trained(folder: str, classes: Iterable[int]) -> tuple[Any, dict[str, torch.Tensor], str]:
        data = write_table(tmp_path / folder, classes)
        made = stages(table, f"recipe.classifier.data=[dict(type='table', file='{data}')]")
        workspace = Workspace(tmp_path / "store", profile("cpu"), Stop())
        found = workspace.get(made["classifier"])
        split = workspace.get(made["split"])
        line = made["classifier"].summary(found)
        return split, load_file(found.folder / "last.safetensors"), line

    split, weights, line = trained("all", range(CLASSES))
    test = split.column("split") == "test"
    assert line.endswith(f"; left out as they are reported on: {test.sum()}")
    rest = sorted(map(int, np.unique(split.column("original_label")[~test])))
    _, expected, line = trained("rest", rest)
    assert "left out" not in line
    assert len(rest) == CLASSES - 4
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


@pytest.mark.parametrize("where", ["train", "select"])
def test_a_protocol_that_asks_images_of_training_finds_them(table: Path, tmp_path: Path, where: str) -> None:
    """Those alone that it draws, and the same ones where an image among them turns out to be damaged."""
    made = stages(table, "recipe.selection.protocol=dict(type='FirstAgainstSecond', distractors=1)")
    workspace = Workspace(tmp_path, profile("cpu"), Stop())
    manifest = workspace.get(made["split"])
    valid = made["features valid"]
    assert isinstance(valid, Features)
    asked = valid.rows(manifest)
    split = manifest.column("split")
    drawn = asked[split[asked] == "train"]
    assert len(drawn) == (split == "select").sum() // IMAGES  # one for each class
    row = drawn[0] if where == "train" else int(np.flatnonzero(split == where)[0])
    path = Path(manifest.images()[row].path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        workspace = run(tmp_path, made)
    finally:
        path.write_bytes(whole)
    assert len(workspace.get(valid)) == len(asked) - 1
    assert path.name in workspace.get(valid).bad[0].place


def test_a_report_that_asks_images_of_training_finds_them_through_every_view(table: Path, tmp_path: Path) -> None:
    protocol = "dict(type='FirstAgainstSecond', split='test', distractors=1)"
    made = stages(table, f"recipe.evaluation.protocol={protocol}")
    workspace = run(tmp_path, made)
    split = workspace.get(made["split"]).column("split")
    for name in ("features test whole", "features valid"):
        stage = made[name]
        assert isinstance(stage, Features)
        drawn = split[stage.rows(workspace.get(made["split"]))] == "train"
        assert 0 < drawn.sum() <= (split == "test").sum() // IMAGES
    assert len(workspace.get(made["evaluate"])) > 2


def test_a_split_that_a_protocol_names_and_nobody_makes_is_told_with_its_key(table: Path, tmp_path: Path) -> None:
    made = stages(table, "recipe.selection.protocol=dict(type='LeaveOneOut', split='valid')")
    with pytest.raises(GuieError, match=r"^recipe\.selection\.protocol: no image is in split 'valid'"):
        Workspace(tmp_path, profile("cpu"), Stop()).get(made["features valid"])
