"""Who asks whom: against the rules in words, written with pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from guie_core import GuieError
from guie_core.registry import build
from guie_datasets import Extent
from guie_train.retrieval import FirstAgainstSecond, LeaveOneOut
from guie_train.retrieval.protocols import Expected

SPLITS = np.array(["train"] * 400 + ["valid"] * 60 + ["select"] * 90 + ["test"] * 50)


def table(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    label = np.concatenate(
        [
            rng.integers(0, 150, 460),
            rng.integers(150, 200, 90),
            rng.integers(200, 220, 50),
        ]  # test classes have the last
    )
    frame = pd.DataFrame({"label": label, "split": SPLITS})
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)


def recipe(
    frame: pd.DataFrame, distractors: int, seed: int, max_index: int, max_queries: int
) -> tuple[pd.Index, pd.Index]:
    """5th place, point 8, in the words of data frames."""
    select = frame[frame["split"] == "select"]
    first = select[~select["label"].duplicated()]
    later = select[select["label"].duplicated()]
    second = later[~later["label"].duplicated()]
    others = frame[frame["split"].isin(["train", "valid"])]
    others = others[~others["label"].duplicated()]
    others = others.sample(n=distractors * len(second), random_state=seed).sort_values("label")
    index = pd.concat([second.sort_values("label"), others])
    return first.sort_values("label").index[:max_queries], index.index[:max_index]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("distractors", "max_index", "max_queries"), [(3, 20_000, 5_000), (1, 30, 7), (0, 20, 20)])
def test_first_against_second_is_the_recipes(seed: int, distractors: int, max_index: int, max_queries: int) -> None:
    frame = table(seed)
    protocol = FirstAgainstSecond(distractors=distractors, seed=seed, max_index=max_index, max_queries=max_queries)
    pairs = protocol.pairs(frame["label"].to_numpy(), frame["split"].to_numpy())
    queries, index = recipe(frame, distractors, seed, max_index, max_queries)
    assert pairs.queries.tolist() == queries.tolist()
    assert pairs.index.tolist() == index.tolist()


def test_what_is_set_aside_for_reporting_is_no_distractor() -> None:
    frame = table(0)
    pairs = FirstAgainstSecond().pairs(frame["label"], frame["split"])
    assert set(frame["split"][pairs.index]) == {"select", "train", "valid"}
    assert set(frame["split"][pairs.queries]) == {"select"}
    assert not set(pairs.queries) & set(pairs.index)


def test_a_class_with_one_image_asks_in_vain() -> None:
    labels, splits = [7, 7, 8, 1, 2, 3, 4], ["select"] * 3 + ["train"] * 4
    pairs = FirstAgainstSecond(distractors=2).pairs(labels, splits)
    assert pairs.queries.tolist() == [0, 2]
    assert pairs.index[0] == 1
    assert len(pairs.index) == 3


def test_distractors_run_out_and_leave_out_the_classes_that_ask() -> None:
    labels, splits = [7, 7, 9, 9, 7, 1, 1, 2], ["select"] * 4 + ["train"] * 4
    pairs = FirstAgainstSecond(distractors=3).pairs(labels, splits)
    assert pairs.index.tolist() == [1, 3, 5, 7]  # not row 4, of class 7


def test_leave_one_out_takes_the_split() -> None:
    pairs = LeaveOneOut("b").pairs([1, 2, 1, 2], ["a", "b", "b", "a"])
    assert pairs.queries.tolist() == pairs.index.tolist() == [1, 2]


def test_an_absent_split_and_one_without_answers_are_named() -> None:
    with pytest.raises(GuieError, match="no image is in split 'test'; the splits are: 'a', 'b'"):
        LeaveOneOut().pairs([1, 2], ["a", "b"])
    with pytest.raises(GuieError, match="no class of split 'select' has two images"):
        FirstAgainstSecond().pairs([1, 2], ["select", "select"])


def test_experiments_build_them_by_name() -> None:
    assert build("protocols", {"type": "LeaveOneOut", "split": "select"}) == LeaveOneOut("select")
    config = {"type": "FirstAgainstSecond", "seed": 3, "distractor_splits": ["train"]}
    assert build("protocols", config) == FirstAgainstSecond(seed=3, distractor_splits=("train",))


def extents(frame: pd.DataFrame) -> dict[str, Extent]:
    return {str(name): Extent(len(part), part["label"].nunique(), exact=True) for name, part in frame.groupby("split")}


def test_what_is_expected_of_splits_is_what_comes_of_them() -> None:
    frame = table(0)
    # two images of each class that asks; of the others, classes that are in one split
    frame = frame[~frame["label"].isin(frame[frame["split"] == "valid"]["label"]) | (frame["split"] == "valid")]
    counts = frame[frame["split"] == "select"]["label"].value_counts()
    frame = frame[~frame["label"].isin(counts[counts < 2].index)].reset_index(drop=True)
    for protocol in (
        LeaveOneOut("test"),
        FirstAgainstSecond(),
        FirstAgainstSecond(distractors=1),
        FirstAgainstSecond(max_index=30, max_queries=7),
        FirstAgainstSecond(distractors=1000, distractor_splits=("valid",)),
    ):
        pairs = protocol.pairs(frame["label"].to_numpy(), frame["split"].to_numpy())
        asked = np.union1d(pairs.queries, pairs.index)
        assert protocol.expected(extents(frame)) == Expected(len(pairs.queries), len(pairs.index), len(asked))


def test_a_split_that_is_not_there_is_told_with_the_nearest_name() -> None:
    frame = table(0)
    told = r"no image is in split 'tset'; the splits are: 'select', 'test', 'train', 'valid'. Did you mean 'test'\?"
    with pytest.raises(GuieError, match=told):
        LeaveOneOut("tset").pairs(frame["label"], frame["split"])
    with pytest.raises(GuieError, match=told):
        FirstAgainstSecond("tset").expected(extents(frame))
    splits = ("train", "tset")
    with pytest.raises(GuieError, match=told):
        FirstAgainstSecond(distractor_splits=splits).pairs(frame["label"], frame["split"])
    with pytest.raises(GuieError, match=told):
        FirstAgainstSecond(distractor_splits=splits).expected(extents(frame))


def test_distractors_come_from_training_and_validation_as_far_as_there_are_such() -> None:
    labels, splits = [7, 7, 1, 2, 3, 4], ["select"] * 2 + ["train"] * 2 + ["test"] * 2
    assert FirstAgainstSecond().pairs(labels, splits).index.tolist() == [1, 2, 3]
    splits[4:] = ["valid"] * 2
    assert set(FirstAgainstSecond(distractors=4).pairs(labels, splits).index.tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("setting", [{"distractors": -1}, {"max_index": 0}, {"max_queries": 0}])
def test_settings_that_leave_nothing_to_ask(setting: dict[str, int]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^{name} is -?\d; it is \d or more\.$"):
        FirstAgainstSecond(**setting)
