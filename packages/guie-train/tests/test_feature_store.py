"""FeatureStore: found by content, resumable, refused when made by something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guie_core import GuieError
from guie_datasets import Manifest
from guie_train.feature_store import Bad, FeatureStore

ABOUT = {"dimension": 5, "dtype": "float16", "backbone": {"type": "timm/x"}}


def hashes(*numbers: int) -> np.ndarray:
    return np.array([f"{number:032x}" for number in numbers])


def rows(*numbers: int) -> np.ndarray:
    return np.array([[n + d / 8 for d in range(5)] for n in numbers], np.float32)


def test_reads_in_any_order_across_shards(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(3, 1), rows(3, 1))
    store.append(hashes(9), rows(9))
    np.testing.assert_array_equal(store.read(hashes(9, 1, 3, 1)), rows(9, 1, 3, 1))
    again = FeatureStore(tmp_path)
    np.testing.assert_array_equal(again.read(hashes(1, 9)), rows(1, 9))
    assert len(again) == 3


def test_missing_names_each_distinct_image_once_in_order(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    assert store.missing(hashes(5, 2, 5, 7)).tolist() == [0, 1, 3]
    store.append(hashes(2), rows(2))
    assert store.missing(hashes(5, 2, 5, 7)).tolist() == [0, 3]
    with pytest.raises(GuieError, match="2 of 3 images have no features"):
        store.read(hashes(5, 2, 7))


def test_a_shard_whose_hashes_were_not_written_does_not_count(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1), rows(1))
    np.save(tmp_path / "00001.features.npy", rows(2))  # what a kill between the two files leaves
    again = FeatureStore(tmp_path, ABOUT)
    assert again.missing(hashes(1, 2)).tolist() == [1]
    again.append(hashes(2), rows(2))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(2, 1)), rows(2, 1))


def test_features_of_something_else_are_refused_with_the_difference(tmp_path: Path) -> None:
    FeatureStore(tmp_path, ABOUT)
    with pytest.raises(GuieError, match=r"backbone was \{'type': 'timm/x'\}, is \{'type': 'timm/y'\}.*delete"):
        FeatureStore(tmp_path, ABOUT | {"backbone": {"type": "timm/y"}})


def test_damage_is_named(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1, 2), rows(1, 2))
    (tmp_path / "00000.features.npy").write_bytes(b"\x93NUMPY junk")
    with pytest.raises(GuieError, match=r"00000\.features.npy is damaged.*run again"):
        FeatureStore(tmp_path).read(hashes(1))
    np.save(tmp_path / "00000.features.npy", rows(1))
    with pytest.raises(GuieError, match=r"has shape \(1, 5\), expected \(2, 5\)"):
        FeatureStore(tmp_path).read(hashes(1))
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(GuieError, match=r"store\.json is damaged"):
        FeatureStore(tmp_path)
    with pytest.raises(GuieError, match="no features in"):
        FeatureStore(tmp_path / "elsewhere")


def test_a_full_disk_is_told_as_that_and_loses_nothing(tmp_path: Path, small_files: None) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1), rows(1))
    many = range(100, 400)
    with pytest.raises(GuieError, match=r"features\.npy could not be written"):
        store.append(hashes(*many), rows(*many))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(1)), rows(1))


def test_bad_images_are_neither_missing_nor_there(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    assert store.bad == ()
    store.append(hashes(1), rows(1))
    bad = [Bad(hashes(n)[0], f'图/{n}, a "name"\n{chr(0xDC80)}', "not an image") for n in (2, 5)]
    store.add_bad(bad[:1])
    store.add_bad(bad[1:])
    store.add_bad([])
    again = FeatureStore(tmp_path)
    assert [image.hash for image in again.bad] == [f"{n:032x}" for n in (2, 5)]
    assert again.bad[0].place == '图/2, a "name"\n\\udc80'
    for each in (store, again):
        assert each.missing(hashes(1, 2, 3, 5, 2)).tolist() == [2]
        assert each.is_bad(hashes(1, 2, 3, 5, 2)).tolist() == [False, True, False, True, True]
        with pytest.raises(GuieError, match="1 of 2 images have no features"):
            each.read(hashes(1, 2))


def test_usable_is_the_manifest_without_bad_images(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    numbers = [4, 2, 7, 2, 9]
    manifest = Manifest.from_columns(
        {
            "path": [f"{n}.jpg" for n in numbers],
            "label": np.arange(5),
            "width": [8] * 5,
            "height": [8] * 5,
            "hash": hashes(*numbers),
        }
    )
    same, every = store.usable(manifest)
    assert same is manifest
    assert every.tolist() == [0, 1, 2, 3, 4]
    store.add_bad([Bad(hashes(2)[0], "2.jpg", "damaged"), Bad(hashes(33)[0], "of another manifest", "damaged")])
    usable, kept = store.usable(manifest)
    assert kept.tolist() == [0, 2, 4]
    assert usable.column("label").tolist() == [0, 2, 4]


@pytest.mark.parametrize("content", ["", "hash,place\n", "hash,place,reason\nab\n", "hash,place,reason\na,b,c,d\n"])
def test_a_damaged_list_of_bad_images_is_named(tmp_path: Path, content: str) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(GuieError, match=r"bad\.csv is damaged .*delete it"):
        store.missing(hashes(1))
