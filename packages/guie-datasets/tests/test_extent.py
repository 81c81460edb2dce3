"""How large data sets are expected to be, and what filters and splits make of that."""

from __future__ import annotations

import numpy as np
import pytest

from guie_datasets import (
    GLR2021,
    GPR1200,
    DropClasses,
    DropSources,
    Extent,
    Food101,
    HoldOutClasses,
    Manifest,
    MaxImages,
    Products10K,
    SampleClasses,
    StratifiedImages,
    Universal130k,
    UnseenClasses,
)
from guie_datasets.extent import united


def test_the_published_sets_with_the_options_of_the_recipe(tmp_path) -> None:
    sets = [
        Products10K(tmp_path),
        GLR2021(tmp_path, drop_classes=2000),
        GPR1200(tmp_path, without=("iNat",)),
        Food101(tmp_path, max_images=30),
    ]
    extents = [each.expected() for each in sets]  # none of them is there
    assert [extent.classes for extent in extents] == [9_691, 5_000, 1_000, 101]
    assert [extent.images for extent in extents] == [141_900, round(349_000 * 5 / 7), 10_000, 3_030]
    whole = united(extents)
    assert (whole.images, whole.classes, whole.exact) == (404_216, 15_792, False)
    assert len(whole.categories) == 8  # the strata of the recipe
    assert Universal130k(tmp_path).expected().categories[0] == "apparel"
    assert len(Universal130k(tmp_path).expected().categories) == 11


def test_food101_by_its_authors_splits(tmp_path) -> None:
    assert Food101(tmp_path, split="train").expected().images == 75_750
    assert Food101(tmp_path, split="test").expected().images == 25_250
    assert Food101(tmp_path, split="test", max_images=300).expected().images == 25_250
    assert Food101(tmp_path, split="own").expected().images == 101_000


@pytest.fixture
def manifest() -> Manifest:
    """60 classes of 40 images each, of three categories."""
    label = np.repeat(np.arange(60), 40)
    return Manifest.from_columns(
        {
            "path": [f"/{row}.jpg" for row in range(len(label))],
            "label": label,
            "category": [f"kind {value % 3}" for value in label],
            "source": ["set"] * len(label),
            "width": np.full(len(label), 8),
            "height": np.full(len(label), 8),
            "hash": [f"{row:032x}" for row in range(len(label))],
        }
    )


def extent(manifest: Manifest) -> Extent:
    return Extent(len(manifest), len(np.unique(manifest.column("label"))), ("kind 0", "kind 1", "kind 2"), exact=True)


@pytest.mark.parametrize("one", [MaxImages(7), DropClasses(11), SampleClasses(0.25), SampleClasses(5)])
def test_filters_of_equal_classes_keep_what_is_expected(one, manifest: Manifest) -> None:
    expected, kept = one.expected(extent(manifest)), one.apply(manifest)
    assert (expected.images, expected.classes) == (len(kept), len(np.unique(kept.column("label"))))
    assert not expected.exact


def test_what_depends_on_the_rows_is_not_known_before(manifest: Manifest) -> None:
    assert DropSources(["set"]).expected(extent(manifest)) is None
    assert MaxImages(7, source="set").expected(extent(manifest)) is None


@pytest.mark.parametrize("one", [HoldOutClasses(0.2), HoldOutClasses(6), UnseenClasses(20), StratifiedImages(20)])
def test_splits_of_equal_classes_set_aside_what_is_expected(one, manifest: Manifest) -> None:
    expected, rows = one.expected(extent(manifest)), one.choose(manifest)
    assert expected.images == pytest.approx(len(rows), rel=0.05)
    assert expected.classes == len(np.unique(manifest.column("label")[rows]))
