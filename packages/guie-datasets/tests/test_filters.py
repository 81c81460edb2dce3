"""Filters against pandas called directly, and what happens when they leave nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guie_core import GuieError, UsageError, build
from guie_datasets import (
    DropClasses,
    DropSources,
    Filter,
    KeepSources,
    Manifest,
    MaxImages,
    MinImages,
    SampleClasses,
    apply_filters,
)
from guie_datasets.filters import sample_classes, sample_images


def make(labels: Sequence[int] | np.ndarray, sources: Sequence[str] | None = None) -> Manifest:
    return Manifest.from_columns(
        {
            "path": [f"{number}.jpg" for number in range(len(labels))],
            "label": np.asarray(labels),
            "source": sources or ["s"] * len(labels),
            "width": np.ones(len(labels), int),
            "height": np.ones(len(labels), int),
            "hash": [f"{number:032x}" for number in range(len(labels))],
        },
        {"made_by": "a test"},
    )


def rows_of(manifest: Manifest) -> list[int]:
    return [int(path.removesuffix(".jpg")) for path in manifest.column("path")]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """120 classes of 1 to 40 images, in no order."""
    generator = np.random.default_rng(3)
    return generator.permutation(np.repeat(np.arange(120), generator.integers(1, 41, 120)))


label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)


# --- on labels alone


@given(label_lists, st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=60, deadline=None)
def test_classes_are_those_that_pandas_samples(labels: list[int], seed: int, data: st.DataObject) -> None:
    there = pd.Series(list(dict.fromkeys(labels)))
    keep = data.draw(st.integers(1, len(there)))
    expected = set(there.sample(n=keep, random_state=seed))
    assert sample_classes(labels, keep=keep, seed=seed) == expected
    assert sample_classes(np.array(labels), drop=len(there) - keep, seed=seed) == expected


@given(label_lists, st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_images_are_those_that_pandas_samples_in_its_order(labels: list[int], n: int, seed: int) -> None:
    frame = pd.DataFrame({"label": labels})
    groups = [group for _, group in frame.groupby("label", sort=False)]
    expected = pd.concat([g.sample(n=n, random_state=seed) if len(g) > n else g for g in groups])
    assert sample_images(labels, n, seed).tolist() == expected.index.tolist()


def test_what_cannot_be_sampled() -> None:
    with pytest.raises(UsageError, match=r"of 2 classes 3 cannot be kept. Choose 1 to 2"):
        sample_classes([5, 5, 7], keep=3)
    with pytest.raises(UsageError, match=r"of 2 classes 2 cannot be dropped. Choose 0 to 1"):
        sample_classes([5, 5, 7], drop=2)
    with pytest.raises(UsageError, match="n is 0; it is 1 or more"):
        sample_images([5, 5, 7], 0)
    with pytest.raises(TypeError, match="keep or drop"):
        sample_classes([5, 5, 7])


# --- on manifests


@pytest.mark.parametrize("least", [1, 2, 17, 38])
def test_min_images(labels: np.ndarray, least: int) -> None:
    frame = pd.DataFrame({"label": labels})
    expected = frame[frame.groupby("label")["label"].transform("size") >= least]
    kept = MinImages(least).apply(make(labels))
    assert rows_of(kept) == expected.index.tolist()
    assert kept.column("label").tolist() == (expected["label"].rank(method="dense").astype(int) - 1).tolist()


@pytest.mark.parametrize(("most", "seed"), [(1, 0), (17, 0), (17, 5), (100, 0)])
def test_max_images(labels: np.ndarray, most: int, seed: int) -> None:
    groups = pd.Series(labels).groupby(labels)
    expected = pd.concat([g.sample(n=most, random_state=seed) if len(g) > most else g for _, g in groups])
    kept = MaxImages(most, seed).apply(make(labels))
    assert rows_of(kept) == sorted(expected.index)
    assert kept.column("label").tolist() == expected.sort_index().tolist()


@pytest.mark.parametrize("one", [DropClasses(100, 4), SampleClasses(20, 4), SampleClasses(0.1667, 4)])
def test_classes_at_random(labels: np.ndarray, one: Filter) -> None:
    chosen = set(pd.Series(pd.unique(labels)).sample(n=20, random_state=4))
    kept = one.apply(make(labels))
    assert rows_of(kept) == [row for row, label in enumerate(labels) if label in chosen]
    assert sorted(set(kept.column("label"))) == list(range(20))


def test_sources() -> None:
    manifest = make([0, 1, 2, 3, 4], ["a", "b", "a", "c", "b"])
    assert rows_of(KeepSources(["a", "c"]).apply(manifest)) == [0, 2, 3]
    kept = DropSources(["a"]).apply(manifest)
    assert rows_of(kept) == [1, 3, 4]
    assert kept.column("label").tolist() == [0, 1, 2]


def test_a_filter_of_one_source_leaves_the_others_alone() -> None:
    manifest = make([0, 0, 0, 1, 2, 2, 2, 3], ["a"] * 4 + ["b"] * 4)
    assert rows_of(MinImages(2, source="b").apply(manifest)) == [0, 1, 2, 3, 4, 5, 6]
    assert rows_of(DropClasses(1, source="a").apply(manifest))[-4:] == [4, 5, 6, 7]
    assert len(rows_of(MaxImages(1, source="b").apply(manifest))) == 6


def test_several_in_order_each_on_what_is_left() -> None:
    manifest = make([0, 0, 0, 1, 1, 2])
    assert rows_of(apply_filters(manifest, [MinImages(2), MaxImages(1)]))[1] in (3, 4)
    with pytest.raises(GuieError, match=r"MinImages.* leaves none of 3 images"):
        apply_filters(manifest, [MaxImages(1), MinImages(2)])
    assert apply_filters(manifest, []) is manifest


def test_what_was_done_is_in_the_provenance() -> None:
    kept = apply_filters(make([0, 0, 0, 1, 1, 2]), [MinImages(2), MaxImages(2, seed=3)])
    assert kept.provenance == {
        "made_by": "a test",
        "filters": [
            {"type": "guie_datasets.filters:MinImages", "images": 2, "source": "", "left_out": 1},
            {"type": "guie_datasets.filters:MaxImages", "images": 2, "seed": 3, "source": "", "left_out": 1},
        ],
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "KeepSources", "sources": ["gpr120"]}, "there is no source 'gpr120'. Did you mean 'gpr1200'?"),
        ({"type": "MinImages", "images": 1, "source": "x"}, "MinImages: there is no source 'x'. There are: gpr1200"),
        ({"type": "DropClasses", "classes": 3}, "of 3 classes 3 cannot be dropped. Choose 0 to 2"),
        ({"type": "DropClasses", "classes": -1}, "of 3 classes -1 cannot be dropped"),
        ({"type": "SampleClasses", "classes": 1.5}, "a share between 0 and 1"),
        ({"type": "MaxImages", "images": 0}, "images is 0; it is 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(GuieError) as caught:
        build("filters", config).apply(make([0, 1, 2], ["gpr1200"] * 3))
    assert message in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_are_none(seed: int) -> None:
    said = f"seed is {seed}; it is a whole number from 0 to 4294967295"
    for kind in (MaxImages, DropClasses, SampleClasses):
        with pytest.raises(UsageError, match=f"{kind.__name__}: {said}"):
            kind(2, seed=seed)
    with pytest.raises(UsageError, match=said):
        sample_classes([1, 2], keep=1, seed=seed)
    with pytest.raises(UsageError, match=said):
        sample_images([1, 1], 1, seed)


def test_numbers_of_numpy(labels: np.ndarray, tmp_path: Path) -> None:
    given = [SampleClasses(np.int64(20), np.int64(4)), MaxImages(np.int32(3)), SampleClasses(np.float64(0.5))]  # type: ignore[arg-type]
    kept = apply_filters(make(labels), given)
    assert kept.digest == apply_filters(make(labels), [SampleClasses(20, 4), MaxImages(3), SampleClasses(0.5)]).digest
    kept.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").provenance == kept.provenance


def test_one_source_as_text_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"such as \['a'\]"):
        KeepSources("a").apply(make([0], ["a"]))
