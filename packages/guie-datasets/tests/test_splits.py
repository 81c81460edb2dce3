"""Splits against scikit-learn called directly, and what happens when there is too little to split."""

from __future__ import annotations

import csv
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from guie_core import GuieError, UsageError
from guie_datasets import Extent, HoldOutClasses, Manifest, Split, StratifiedImages, UnseenClasses, split

NAMES = ["landmarks", "products10k", "food101", "sketches"]


def make(
    labels: Sequence[int] | np.ndarray,
    splits: Sequence[str] | None = None,
    categories: Sequence[str] | None = None,
    images: Sequence[int] | None = None,
    sources: Sequence[str] | None = None,
) -> Manifest:
    """images: numbers that stand for the bytes; default: all differ."""
    labels = np.asarray(labels)
    shown = list(categories or (NAMES[label % 4 if label % 8 else 0] for label in labels))
    columns: dict[str, Any] = {
        "path": [f"{number}.jpg" for number in range(len(labels))],
        "label": labels,
        "category": shown,
        "width": np.ones(len(labels), int),
        "height": np.ones(len(labels), int),
        "hash": [f"{number:032x}" for number in (range(len(labels)) if images is None else images)],
        "source": list(sources or [""] * len(labels)),
    }
    return Manifest.from_columns(columns if splits is None else columns | {"split": list(splits)})


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """200 classes of 1 to 40 images, in no order."""
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(200), generator.integers(1, 41, 200))
    return make(generator.permutation(labels))


@pytest.mark.parametrize(("folds", "fold", "seed"), [(20, 0, 0), (20, 7, 0), (5, 4, 2021)])
def test_unseen_classes_are_scikit_learn_s(manifest: Manifest, folds: int, fold: int, seed: int) -> None:
    labels, categories = manifest.column("label"), manifest.column("category").astype(str)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    expected = list(splitter.split(np.zeros(len(labels)), categories, groups=labels))[fold][1]
    assert np.array_equal(UnseenClasses(folds, fold, seed).choose(manifest), expected)
    done = split(manifest, [UnseenClasses(folds, fold, seed)])
    assert np.flatnonzero(done.column("split") == "select").tolist() == expected.tolist()
    assert not set(labels[expected]) & set(labels[done.column("split") == "train"])
    assert set(categories[expected]) == set(NAMES)


@pytest.mark.parametrize(("folds", "fold", "seed", "least"), [(20, 0, 0, 20), (20, 3, 1, 20), (4, 1, 2021, 9)])
def test_stratified_images_are_scikit_learn_s(manifest: Manifest, folds: int, fold: int, seed: int, least: int) -> None:
    labels = manifest.column("label")
    rows = np.flatnonzero(np.bincount(labels)[labels] >= least)
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    expected = rows[list(splitter.split(rows, labels[rows]))[fold][1]]
    done = split(manifest, [StratifiedImages(folds, fold, seed, min_images=least)])
    assert np.flatnonzero(done.column("split") == "valid").tolist() == expected.tolist()
    small = np.bincount(labels)[labels] < least
    assert small.any()
    assert set(done.column("split")[small]) == {"train"}


def test_held_out_classes(manifest: Manifest) -> None:
    labels = manifest.column("label")
    done = split(manifest, [HoldOutClasses(30, seed=5)]).column("split")
    expected = np.random.default_rng(5).permutation(200)[:30]
    assert set(labels[done == "test"]) == set(expected)
    assert not set(labels[done == "train"]) & set(expected)
    other = split(manifest, [HoldOutClasses(30, seed=6)]).column("split")
    assert (other != done).any()


@pytest.mark.parametrize(("share", "classes"), [(0.15, 30), (0.0001, 1), (0.5, 100), (0.9949, 199)])
def test_a_share_of_the_classes(manifest: Manifest, share: float, classes: int) -> None:
    assert np.array_equal(HoldOutClasses(share).choose(manifest), HoldOutClasses(classes).choose(manifest))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.5, float("nan")])
def test_a_share_that_is_none(manifest: Manifest, share: float) -> None:
    with pytest.raises(UsageError, match=r"split 'test': classes is .*; set classes to a whole number, or to a share"):
        HoldOutClasses(share).choose(manifest)


# --- scikit-learn as the oracle, on whatever labels and categories

rows = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=4, max_size=80)


def expected_fold(
    splitter: StratifiedKFold | StratifiedGroupKFold, fold: int, *arrays: np.ndarray
) -> np.ndarray | None:
    """What scikit-learn gives; None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            chosen: np.ndarray = list(splitter.split(np.zeros(len(arrays[0])), *arrays))[fold][1]
        except ValueError:
            return None
    return chosen


@given(rows, st.integers(2, 5), st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_unseen_classes_of_any_rows(made: list[tuple[int, int]], folds: int, data: st.DataObject, seed: int) -> None:
    labels, categories = np.array([label for label, _ in made]), [NAMES[number] for _, number in made]
    fold = data.draw(st.integers(0, folds - 1))
    one = UnseenClasses(folds, fold, seed)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    expected = expected_fold(splitter, fold, np.array(categories), labels)
    assume(len(set(labels.tolist())) >= folds)
    manifest = make(labels, categories=categories)
    if expected is None or not len(expected):
        with pytest.raises(GuieError, match="split 'select'"):
            one.choose(manifest)
    else:
        assert np.array_equal(one.choose(manifest), expected)


@given(rows, st.integers(2, 5), st.data(), st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_stratified_images_of_any_rows(
    made: list[tuple[int, int]], folds: int, data: st.DataObject, seed: int, least: int
) -> None:
    labels = np.array([label for label, _ in made])
    eligible = np.flatnonzero(np.bincount(labels)[labels] >= least)
    fold = data.draw(st.integers(0, folds - 1))
    one, manifest = StratifiedImages(folds, fold, seed, min_images=least), make(labels)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    expected = expected_fold(splitter, fold, labels[eligible]) if len(eligible) else None
    if expected is None:
        with pytest.raises(GuieError, match="split 'valid'"):
            one.choose(manifest)
    else:
        assert np.array_equal(one.choose(manifest), eligible[expected])


def test_the_recipe_s_splits_in_order_on_what_is_left(manifest: Manifest) -> None:
    done = split(manifest, [HoldOutClasses(40), UnseenClasses(10), StratifiedImages(20)])
    names, labels = done.column("split"), manifest.column("label")
    assert set(names) == {"test", "select", "valid", "train"}
    classes = {name: set(labels[names == name]) for name in set(names)}
    assert classes["test"].isdisjoint(classes["select"] | classes["valid"] | classes["train"])
    assert classes["select"].isdisjoint(classes["valid"] | classes["train"])
    assert classes["valid"] <= classes["train"]
    # each as scikit-learn would on the rows that are left
    left = np.flatnonzero(names != "test")
    categories = manifest.column("category").astype(str)
    splitter = StratifiedGroupKFold(10, shuffle=True, random_state=0)
    chosen = next(iter(splitter.split(left, categories[left], groups=labels[left])))[1]
    assert np.flatnonzero(names == "select").tolist() == left[chosen].tolist()
    # labels that are encoded anew, as the original does between the two, make no difference
    left = np.flatnonzero((names != "test") & (names != "select"))
    anew = np.unique(labels[left], return_inverse=True)[1]
    rows = np.flatnonzero(np.bincount(anew)[anew] >= 20)
    chosen = next(iter(StratifiedKFold(20, shuffle=True, random_state=0).split(rows, anew[rows])))[1]
    assert np.flatnonzero(names == "valid").tolist() == left[rows[chosen]].tolist()


def test_everything_but_the_split_stays(manifest: Manifest) -> None:
    done = split(manifest, [HoldOutClasses(3)])
    assert done.digest == manifest.digest
    assert done.table.drop_columns(["split"]).equals(manifest.table.drop_columns(["split"]))
    assert set(manifest.column("split")) == {""}


def test_no_splits_make_everything_train(manifest: Manifest) -> None:
    assert set(split(manifest, []).column("split")) == {"train"}


def test_splits_of_a_data_set_are_kept() -> None:
    given = ["query", "", "", "index", "", "", "", ""]
    done = split(make([0, 0, 1, 1, 2, 2, 3, 3], given), [HoldOutClasses(1, seed=1)]).column("split")
    assert [name for name, before in zip(done, given, strict=True) if before] == ["query", "index"]
    assert set(done) == {"query", "index", "test", "train"}


LABELS = [0, 0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (HoldOutClasses(4), "'test': 4 classes are to be held out, but there are 4. Set classes to 1..3, or add data"),
        (HoldOutClasses(0), "'test': 0 classes are to be held out"),
        (
            UnseenClasses(),
            "'select': 4 classes, of whose categories the largest has 3 images, cannot be dealt into 20 folds. "
            "Set folds to 2..3, or add data",
        ),
        (
            StratifiedImages(),
            "'valid': of 4 classes the largest has 3 images; 20 folds of classes with at least 20 images cannot be "
            "made. Set folds to 2..3 and min_images to 3 or less, or add data",
        ),
        (StratifiedImages(folds=4, min_images=2), "'valid': of 4 classes the largest has 3 images; 4 folds"),
    ],
)
def test_too_little_to_split(one: Split, message: str) -> None:
    with pytest.raises(GuieError) as caught:
        split(make(LABELS), [one])
    assert message in str(caught.value)


@pytest.mark.parametrize("one", [HoldOutClasses(1), HoldOutClasses(0.5), UnseenClasses(), UnseenClasses(2)])
def test_one_class_is_never_set_aside(one: Split) -> None:
    with pytest.raises(GuieError) as caught:
        split(make([0, 0, 0]), [one])
    told = (
        f"split {one.name!r}: one class is left, and it is needed to train on: there must be two at least. Add "
        "classes, or let the splits before this one, in recipe.splits, take fewer"
    )
    assert str(caught.value) == told
    if isinstance(one, HoldOutClasses):  # in a plan as well
        with pytest.raises(GuieError) as caught:
            one.expected(Extent(3, 1, exact=True))
        assert str(caught.value) == told


@pytest.mark.parametrize(
    ("one", "labels", "advice"),
    [
        (UnseenClasses(), [0, 0, 1, 1], "Set folds to 2, or add data"),
        (UnseenClasses(3, 0), [0, 0, 1, 1], "Set folds to 2, or add data"),
        (StratifiedImages(), [0, 0, 1], "Set folds to 2 and min_images to 2 or less, or add data"),
        (StratifiedImages(), [0, 1], "Add images of the same classes, or remove 'valid' from recipe.splits"),
        (HoldOutClasses(2), [0, 0, 1, 1], "Set classes to 1, or add data"),
    ],
)
def test_advice_names_no_value_that_is_refused(one: Split, labels: list[int], advice: str) -> None:
    with pytest.raises(GuieError) as caught:
        split(make(labels, categories=["a"] * len(labels)), [one])
    assert str(caught.value).endswith(advice)


def test_settings_are_named_as_the_user_gives_them() -> None:
    keys = [{"folds": "recipe.splits.0.folds=", "min_images": "recipe.splits.0.min_images="}]
    with pytest.raises(
        GuieError, match=r"Set recipe\.splits\.0\.folds to 2\.\.3 and recipe\.splits\.0\.min_images to 3"
    ):
        split(make(LABELS), [StratifiedImages()], settings=keys)


def test_what_is_advised_works() -> None:
    assert set(split(make([0, 0, 1, 1], categories=["a"] * 4), [UnseenClasses(2)]).column("split")) == {
        "select",
        "train",
    }
    assert set(split(make(LABELS), [HoldOutClasses(3)]).column("split")) == {"test", "train"}
    assert set(split(make(LABELS), [UnseenClasses(folds=3)]).column("split")) == {"select", "train"}
    assert set(split(make(LABELS), [StratifiedImages(folds=3, min_images=3)]).column("split")) == {"valid", "train"}


@pytest.mark.parametrize("fold", [20, -1])
def test_folds_that_do_not_exist(manifest: Manifest, fold: int) -> None:
    for one in (UnseenClasses(fold=fold), StratifiedImages(fold=fold)):
        with pytest.raises(UsageError, match=f"there is no fold {fold} of 20"):
            split(manifest, [one])


@pytest.mark.parametrize("names", [("a", "a"), ("train",), ("",)])
def test_names_must_tell_splits_apart(manifest: Manifest, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="splits need names of their own"):
        split(manifest, [HoldOutClasses(2, name=name) for name in names])


@pytest.mark.parametrize("one", [HoldOutClasses(1), UnseenClasses(folds=2), StratifiedImages(folds=2)])
def test_data_that_are_split_already(one: Split) -> None:
    with pytest.raises(GuieError) as caught:
        split(make([0, 0, 1, 1], ["train", "test", "train", "query"]), [one])
    assert str(caught.value) == (
        f"split {one.name!r}: all 4 images have a split already, from their data: train 2, test 1, query 1. "
        f"Remove {one.name!r} from the experiment's recipe.splits, or prepare the data without their splits"
    )


@pytest.mark.parametrize("given", ["train", "test", "query"])
@pytest.mark.parametrize("one", [HoldOutClasses(3, name="unseen"), *(UnseenClasses(3, fold) for fold in range(3))])
def test_classes_of_which_images_are_assigned_are_not_set_aside(one: Split, given: str) -> None:
    labels = np.repeat(np.arange(8), 4)
    splits = [given if row % 4 == 0 and label < 4 else "" for row, label in enumerate(labels)]
    done = split(make(labels, splits, categories=["a", "b"] * 16), [one]).column("split")
    chosen = set(labels[done == one.name].tolist())
    assert chosen
    assert chosen <= {4, 5, 6, 7}
    assert all(set(done[labels == label]) == {one.name} for label in chosen)
    assert [name for name, before in zip(done, splits, strict=True) if before] == [given] * 4
    free = np.flatnonzero(labels >= 4)  # as if the others were not there
    alone = split(make(labels[free], categories=["a", "b"] * 8), [one]).column("split")
    assert done[free].tolist() == alone.tolist()


def test_images_of_such_classes_are() -> None:
    labels = np.repeat(np.arange(3), 20)
    splits = ["query"] * 2 + [""] * 58
    done = split(make(labels, splits), [StratifiedImages(folds=2, min_images=2)]).column("split")
    assert set(labels[done == "valid"].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("one", [HoldOutClasses(3), UnseenClasses(3)])
def test_too_few_classes_of_which_none_is_assigned(one: Split) -> None:
    with pytest.raises(GuieError) as caught:
        split(make(np.repeat(np.arange(4), 3), ["train", "", ""] * 2 + [""] * 6), [one])
    assert str(caught.value).startswith(f"split {one.name!r}: ")
    said = ". Classes are set aside whole: 2 of which some images have a split already are not"
    assert str(caught.value).endswith(said)


def test_a_split_that_the_data_have_already() -> None:
    manifest = make([0, 0, 1, 1, 2, 2], ["test", "test", "", "", "", ""])
    with pytest.raises(GuieError) as caught:
        split(manifest, [HoldOutClasses(1)])
    assert str(caught.value) == (
        "split 'test': 2 images have a split of that name already, from their data. Set name to another, or "
        "prepare the data without their splits"
    )
    assert set(split(manifest, [HoldOutClasses(1, name="unseen")]).column("split")) == {"test", "unseen", "train"}


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_are_none(seed: int) -> None:
    for kind in (HoldOutClasses, UnseenClasses, StratifiedImages):
        with pytest.raises(UsageError, match=f"seed is {seed}; it is a whole number from 0 to 4294967295"):
            kind(2, seed=seed)


def test_whole_numbers_of_numpy(manifest: Manifest) -> None:
    assert np.array_equal(HoldOutClasses(np.int64(3)).choose(manifest), HoldOutClasses(3).choose(manifest))  # type: ignore[arg-type]


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(GuieError, match=r"^nothing is left to train on: the data have the splits test 2$"):
        split(make([0, 0], ["test", "test"]), [])


# --- the same image under two labels

CLASSES, IMAGES = 12, 4
TWICE = np.repeat(np.arange(2 * CLASSES), IMAGES)  # each image in two sets, of classes of their own
SAME = list(range(CLASSES * IMAGES)) * 2
SETS = ["photos"] * (CLASSES * IMAGES) + ["cars"] * (CLASSES * IMAGES)
RECIPE = [HoldOutClasses(6), UnseenClasses(4), StratifiedImages(4, min_images=2)]


def hashes(manifest: Manifest, name: str) -> set[bytes]:
    return set(manifest.column("hash")[manifest.column("split") == name].tolist())


def test_an_image_is_in_one_split_only(tmp_path: Path) -> None:
    whole = make(TWICE, categories=["a"] * len(TWICE), images=SAME, sources=SETS)
    done = split(whole, RECIPE, quarantine=tmp_path / "left out.csv")
    found = [hashes(done, name) for name in ("test", "select", "valid", "train")]
    assert all(found)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(found, 2))
    # what is reported on is what it was
    test = np.isin(TWICE, np.random.default_rng(0).permutation(2 * CLASSES)[:6])
    assert done.select(done.column("split") == "test").images()[:] == whole.select(test).images()[:]
    labels = done.column("label")
    assert sorted(set(labels.tolist())) == list(range(len(set(labels.tolist()))))
    with open(tmp_path / "left out.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "conflict"]
    assert len(rows) == len(whole) - len(done)
    at = {f"{number}.jpg": number for number in range(len(whole))}
    for row in rows:
        kept = re.fullmatch(r"the same image as (\d+\.jpg), which is in split '(\w+)'", row["reason"])
        assert kept
        assert SAME[at[row["place"]]] == SAME[at[kept[1]]]
        assert kept[1] in done.column("path")
        assert kept[2] in ("test", "select", "valid")
    counted = done.provenance["left_out_of_splits"]
    assert sum(each["images"] for each in counted) == len(rows)
    assert {"source": "cars", "in_split": "test", "in_source": "photos"}.items() <= max(
        (each for each in counted if each["in_split"] == "test" and each["source"] == "cars"),
        key=lambda each: each["images"],
    ).items()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=30, max_size=120), st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_is_repeated(made: list[tuple[int, int]], own: bool) -> None:
    labels, images = [label for label, _ in made], [image for _, image in made]
    splits = ["train" if own and number % 5 == 0 else "" for number in range(len(made))]
    whole = make(labels, splits, categories=["a"] * len(made), images=images)
    try:
        done = split(whole, [HoldOutClasses(2), StratifiedImages(2, min_images=2)])
    except GuieError:
        assume(False)
    found = [hashes(done, name) for name in ("test", "valid", "train")]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(found, 2))
    assert set().union(*found) == set(whole.column("hash").tolist())  # none is lost altogether
    gone = len(whole) - len(done)
    assert gone == sum(each["images"] for each in done.provenance.get("left_out_of_splits", ()))


@pytest.mark.parametrize("left_out", [False, True])
def test_images_of_one_split_under_several_labels_are_counted(left_out: bool, tmp_path: Path) -> None:
    """Whether others are left out or not, and however often one is there under the same label."""
    splits = ["test"] * 6 + ["select", "query", "index", "index", *["train"] * 3]
    images = [0, 0, 0, 1, 1, 2, 3 if left_out else 4, 5, 5, 5, 3, 3, 6]
    labels = [0, 1, 2, 1, 1, 1, 0, 0, 0, 1, 0, 1, 0]
    sources = ["cars", "cars", "photos", "photos", "photos", "cars", *["photos"] * 7]
    whole = make(labels, splits, images=images, sources=sources)
    done = split(whole, [], quarantine=tmp_path / "table.csv")
    assert len(done) == (11 if left_out else 13)
    expected = [
        {"images": 1, "split": "test", "sources": ["cars", "photos"]},
        {"images": 1, "split": "query and index", "sources": ["photos"]},
        {"images": 1, "split": "train", "sources": ["photos"]},
    ][: 2 if left_out else 3]
    assert done.provenance["several_labels"] == expected
    with open(tmp_path / "table.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "conflict"]
    kept = [0, 1, 2, 7, 8, 9] if left_out else [0, 1, 2, 7, 8, 9, 10, 11]
    assert [row["place"] for row in rows] == [f"{number}.jpg" for number in kept]
    told = "the same image as 2.jpg, which is in split 'test' as well, under the label 2"
    assert rows[0]["reason"] == told
    assert rows[1]["reason"] == rows[2]["reason"] == told.replace("2.jpg", "0.jpg").replace("label 2", "label 0")
    assert rows[3]["reason"] == "the same image as 9.jpg, which is in split 'index' as well, under the label 1"


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 2, st.integers(0, 12)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_whatever_has_several_labels(made: list[tuple[int, int, int]]) -> None:
    names = ["train", "train", "test", "select"]
    label, image = [each[1] for each in made] + [0], [each[2] for each in made] + [99]
    done = split(make(label, [names[each[0]] for each in made] + ["train"], images=image), [])
    labels: dict[tuple[str, bytes], set[int]] = {}
    for where, what, its in zip(*map(done.column, ("split", "hash", "label")), strict=True):
        labels.setdefault((where, what), set()).add(its)
    counted = {each["split"]: each["images"] for each in done.provenance.get("several_labels", [])}
    assert counted == Counter(where for (where, _), its in labels.items() if len(its) > 1)


def test_splits_of_the_data_keep_their_images() -> None:
    splits = ["query", "index", "train", "", ""] + [""] * 8
    images = [0, 0, 0, 0, 1, *range(2, 10)]
    done = split(make([0, 0, 0, 1, 1, *[2, 2, 3, 3, 4, 4, 5, 5]], splits, images=images), [HoldOutClasses(1)])
    assert done.column("split")[:2].tolist() == ["query", "index"]
    assert done.column("path")[:3].tolist() == ["0.jpg", "1.jpg", "4.jpg"]
    assert "shared_by_splits" not in done.provenance


@pytest.mark.parametrize("splits", [[], [HoldOutClasses(1, name="unseen")]])
def test_images_that_splits_of_the_data_share_are_counted(splits: list[Split]) -> None:
    own = ["test", "select", "select", "val", "test", "query", "index", "train", "train", *[""] * 8]
    images = [0, 0, 0, 0, 1, 1, 1, 2, 0, *range(3, 11)]
    done = split(make([*[0] * 9, *[1, 1, 2, 2, 3, 3, 4, 4]], own, images=images), splits)
    assert done.column("split")[:7].tolist() == own[:7]
    assert {tuple(each["splits"]): each["images"] for each in done.provenance["shared_by_splits"]} == {
        ("select", "test"): 1,
        ("select", "val"): 1,
        ("test", "val"): 1,
        ("index", "test"): 1,
        ("query", "test"): 1,
    }
    assert [each["images"] for each in done.provenance["left_out_of_splits"]] == [1]


def test_all_that_would_be_trained_on_is_set_aside_too() -> None:
    told = "split 'train': 2 images, all of which are in another split as well, byte for byte. "
    for sources, remedy in (
        (["photos", "photos", "cars", "cars"], "Use one only of the data sets that have the same images"),
        (["photos"] * 4, "The data have them in several classes: keep each image in the class that it shows"),
    ):
        with pytest.raises(GuieError) as caught:
            split(make([0, 0, 1, 1], images=[0, 1, 0, 1], sources=sources), [HoldOutClasses(1)])
        assert str(caught.value) == told + remedy


def test_what_splits_choose_is_what_they_choose_of_different_images() -> None:
    """The original's split is its split, whatever is left out then."""
    categories = ["a"] * len(TWICE)
    plain = split(make(TWICE, categories=categories), RECIPE)
    done = split(make(TWICE, categories=categories, images=SAME), RECIPE)
    rows = [int(path.removesuffix(".jpg")) for path in done.column("path")]
    assert len(rows) < len(plain)
    assert done.column("split").tolist() == plain.column("split")[rows].tolist()
