"""FeatureStore: found by content, resumable, refused when made by something else."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from guie_core import GuieError
from guie_datasets import Manifest
from guie_train import feature_store
from guie_train.feature_store import Bad, FeatureStore, state_of, usable

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


def test_rows_whose_number_was_not_written_do_not_count(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1), rows(1))
    with open(tmp_path / "00000.features", "ab") as file:  # what a kill after the features leaves
        file.write(b"junk")
    (tmp_path / "00001.features").touch()  # and one after a shard was begun
    again = FeatureStore(tmp_path, ABOUT)
    assert again.missing(hashes(1, 2)).tolist() == [1]
    again.append(hashes(2), rows(2))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(2, 1)), rows(2, 1))
    assert again.verify() == []


def test_several_appends_share_a_shard_until_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD", 4)
    store = FeatureStore(tmp_path, ABOUT)
    for first in range(0, 9, 3):
        store.append(hashes(*range(first, first + 3)), rows(*range(first, first + 3)))
    assert [path.stat().st_size for path in store.shards()] == [40, 40, 10]
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(*range(8, -1, -1))), rows(*range(8, -1, -1)))


def test_a_shard_that_somebody_writes_to_is_left_to_them(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1), rows(1))
    with open(tmp_path / "00000.features", "rb") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        store.append(hashes(2), rows(2))
    assert len(store.shards()) == 2
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(2, 1)), rows(2, 1))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from guie_train.feature_store import Bad, FeatureStore

folder, part = Path(sys.argv[1]), int(sys.argv[2])
store = FeatureStore(folder, {"dimension": 5, "dtype": "float16", "backbone": {"type": "timm/x"}})
print("ready", flush=True)
sys.stdin.readline()  # until all are
for number in range(part, 120, 4):
    values = np.array([[number + d / 8 for d in range(5)]], np.float32)
    store.append([f"{number:032x}"], values)
    if number % 40 == part:
        store.add_bad([Bad(f"{1000 + number:032x}", "there", "damaged")])
"""


def test_several_processes_write_to_one_store_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
                )
            )
            for part in range(4)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.communicate("\n")
        assert [writer.returncode for writer in writers] == [0] * 4
    store = FeatureStore(tmp_path)
    everything = range(120)
    assert len(store) == 120
    np.testing.assert_array_equal(store.read(hashes(*everything)), rows(*everything))
    assert store.verify() == []
    assert {bad.hash for bad in store.bad} == {f"{1000 + n:032x}" for n in everything if n % 40 == n % 4}


def test_views_of_an_image_lie_side_by_side(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {**ABOUT, "views": 3})
    seen = np.stack([rows(7, 8), -rows(7, 8), 2 * rows(7, 8)], 1)
    store.append(hashes(7, 8), seen)
    again = FeatureStore(tmp_path)
    assert again.views == 3
    for view in range(3):
        np.testing.assert_array_equal(again.read(hashes(8, 7), view), seen[::-1, view])
    np.testing.assert_array_equal(again.read(hashes(8, 7)), rows(8, 7))
    with pytest.raises(ValueError, match="3 x 5"):
        store.append(hashes(1), rows(1))
    with pytest.raises(GuieError, match="views was 3, is None"):
        FeatureStore(tmp_path, ABOUT)


def test_features_of_something_else_are_refused_with_the_difference(tmp_path: Path) -> None:
    FeatureStore(tmp_path, ABOUT)
    with pytest.raises(GuieError, match=r"backbone was \{'type': 'timm/x'\}, is \{'type': 'timm/y'\}.*delete"):
        FeatureStore(tmp_path, ABOUT | {"backbone": {"type": "timm/y"}})


def test_damage_is_named_and_can_be_let_go_of(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(*range(20)), rows(*range(20)))
    assert store.verify() == []
    path = tmp_path / "00000.features"
    data = bytearray(path.read_bytes())
    data[7 * 10 + 3] ^= 1  # a bit of row 7
    path.write_bytes(data[: 18 * 10 + 4])  # and rows 18 and 19 are cut off
    with pytest.raises(GuieError, match=r"00000.features is truncated: it has 184 bytes of 200; `guie features verify"):
        FeatureStore(tmp_path).read(hashes(1))
    with pytest.raises(GuieError, match="truncated"):
        store.append(hashes(21), rows(21))
    damaged = FeatureStore(tmp_path)
    told: list[int] = []
    found = damaged.verify(told.append)
    assert [(each.file, each.rows) for each in found] == [(path, [7]), (path, [18, 19])]
    assert "1 row differs from its checksum" in found[0].reason
    assert told == [20]
    damaged.forget(found)
    again = FeatureStore(tmp_path, ABOUT)
    assert again.verify() == []
    assert len(again) == 17
    assert again.missing(hashes(*range(20))).tolist() == [7, 18, 19]
    again.append(hashes(7, 18, 19), rows(7, 18, 19))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(*range(20))), rows(*range(20)))


def test_a_file_that_is_cut_off_after_the_store_was_opened_is_named(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(*range(20)), rows(*range(20)))
    for size in (184, 0):
        opened = FeatureStore(tmp_path)
        assert len(opened) == 20
        os.truncate(tmp_path / "00000.features", size)
        told = f"00000.features is truncated: it has {size} bytes of 200; `guie features verify"
        with pytest.raises(GuieError, match=told):
            opened.read(hashes(1))
        os.truncate(tmp_path / "00000.features", 200)


def overwrite(path: Path, offset: int, count: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"?" * count)


def test_damaged_rows_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD", 8)
    folder = tmp_path / "a store"
    store = FeatureStore(folder, {**ABOUT, "views": 2})
    seen = np.stack([rows(*range(20)), -rows(*range(20))], 1)
    store.append(hashes(*range(20)), seen)
    for path, row, view in (("00000", 3, 1), ("00000", 4, 0), ("00002", 1, 0)):
        overwrite(folder / f"{path}.features", row * store.row_bytes + view * 10 + 2, 4)
    monkeypatch.chdir(tmp_path)
    damaged = FeatureStore(Path("a store"))
    np.testing.assert_array_equal(damaged.read(hashes(19, 2, 5, 2)), rows(19, 2, 5, 2))
    remedy = "`guie features verify 'a store' --repair` lets go of what is damaged, and it is computed again"
    checked: list[int] = []
    checksums = feature_store._checksums
    with monkeypatch.context() as patch:
        patch.setattr(
            feature_store, "_checksums", lambda rows, each: checked.append(len(rows)) or checksums(rows, each)
        )
        # a row is damaged in whichever of its views
        for numbers, view, told in (
            ((1, 3, 9), 0, "1 row differs from its checksum"),
            ((4, 17), 0, "1 row differs from its checksum"),
            ((10, 17, 17), 1, "1 row differs from its checksum"),
            ((4, 3, 11, 17), 1, "2 rows differ from their checksums"),
        ):
            with pytest.raises(GuieError) as refused:
                damaged.read(hashes(*numbers), view)
            assert str(refused.value) == f"a store: at least {told}; {remedy}"
    assert checked == [2, 1, 1, 2, 2]  # what is asked for, up to the first shard with damage
    damaged.forget(damaged.verify())
    assert damaged.missing(hashes(*range(20))).tolist() == [3, 4, 17]
    damaged.append(hashes(3, 4, 17), seen[[3, 4, 17]])
    np.testing.assert_array_equal(damaged.read(hashes(*range(20)), 1), seen[:, 1])


def test_rows_are_checked_once_until_their_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(*range(6)), rows(*range(6)))
    checked: list[int] = []
    whole = feature_store._checksums
    monkeypatch.setattr(feature_store, "_checksums", lambda rows, each: checked.append(len(rows)) or whole(rows, each))
    for numbers in ((5, 0), (0, 1, 5), (5, 1)):
        store.read(hashes(*numbers))
    assert checked == [2, 1, 0]
    store.append(hashes(7), rows(7))
    store.read(hashes(0, 7))
    assert checked[-1] == 2
    path = tmp_path / "00000.features"
    overwrite(path, 0, 4)
    os.utime(path, (1, 1))  # a clock that is too coarse to tell
    with pytest.raises(GuieError, match="1 row differs from its checksum; `guie features verify"):
        store.read(hashes(0, 7))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY junk"])
def test_a_damaged_list_of_rows_is_named(tmp_path: Path, content: bytes) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1, 2), rows(1, 2))
    (tmp_path / "00000.rows.npy").write_bytes(content)
    damaged = FeatureStore(tmp_path, ABOUT)
    with pytest.raises(GuieError, match=r"00000\.rows\.npy is damaged.*--repair"):
        damaged.read(hashes(1))
    found = damaged.verify()
    assert [each.file.name for each in found] == ["00000.rows.npy"]
    damaged.forget(found)
    assert damaged.missing(hashes(1, 2)).tolist() == [0, 1]
    damaged.append(hashes(2), rows(2))
    np.testing.assert_array_equal(FeatureStore(tmp_path).read(hashes(2)), rows(2))


def test_what_is_no_store_or_an_older_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuieError, match="no features in"):
        FeatureStore(tmp_path)
    for content, message in {
        "{": r"store\.json is damaged",
        "[]": "it says nothing of features",
        '{"name": "a shop"}': "it says nothing of features",
        '{"version": 2, "dtype": "float17", "dimension": 5}': r"store\.json is damaged",
        '{"version": 1, "dtype": "float16", "dimension": 5}': "in format 1, and this guie-train reads format 2; delete",
    }.items():
        (tmp_path / "store.json").write_text(content)
        for about in (None, ABOUT):
            with pytest.raises(GuieError, match=message):
                FeatureStore(tmp_path, about)


def test_a_full_disk_is_told_as_that_and_loses_nothing(tmp_path: Path, small_files: None) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    store.append(hashes(1), rows(1))
    many = range(100, 400)
    with pytest.raises(GuieError, match=r"00000\.features could not be written"):
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


def test_a_bad_image_is_tried_again_when_its_file_has_changed(tmp_path: Path) -> None:
    store, image = FeatureStore(tmp_path / "store", ABOUT), tmp_path / "2.jpg"
    image.write_bytes(b"damaged")
    store.add_bad([Bad(hashes(2)[0], str(image), "damaged", state_of(str(image)))])
    assert store.missing(hashes(2), lambda position: str(image)).tolist() == []
    image.write_bytes(b"mended, and longer")
    assert store.missing(hashes(1, 2), lambda position: str(image)).tolist() == [0, 1]
    assert store.missing(hashes(2)).tolist() == []  # for those who compute nothing
    store.append(hashes(2), rows(2))
    assert FeatureStore(tmp_path / "store").bad == ()


def test_lists_without_the_state_of_files_are_read(tmp_path: Path) -> None:
    store, image = FeatureStore(tmp_path, ABOUT), tmp_path / "2.jpg"
    image.touch()
    (tmp_path / "bad.csv").write_text(f"hash,place,reason\n{hashes(2)[0]},{image},damaged\n")
    assert store.is_bad(hashes(1, 2)).tolist() == [False, True]
    assert store.missing(hashes(2), lambda position: str(image)).tolist() == [0]


def test_what_another_store_has_is_taken_over_but_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD", 3)
    other, store = FeatureStore(tmp_path / "other", ABOUT), FeatureStore(tmp_path / "store", ABOUT)
    other.append(hashes(*range(8)), rows(*range(8)))
    other.add_bad([Bad(hashes(number)[0], f"{number}.jpg", "damaged") for number in (20, 1, 21)])
    for number, at in ((0, 2 * other.row_bytes), (1, 0)):  # images 2 and 3
        with open(tmp_path / "other" / f"0000{number}.features", "r+b") as file:
            file.seek(at)
            file.write(b"?")
    (tmp_path / "other" / "00002.rows.npy").write_bytes(b"?")  # images 6 and 7
    store.append(hashes(1, 9), rows(11, 9))
    store.take_over(FeatureStore(tmp_path / "other"), but=hashes(4, 21))
    assert store.missing(hashes(*range(10))).tolist() == [2, 3, 4, 6, 7, 8]
    np.testing.assert_array_equal(store.read(hashes(0, 1, 5, 9)), rows(0, 11, 5, 9))
    assert [bad.hash for bad in store.bad] == [hashes(20)[0]]
    assert store.verify() == []

    (tmp_path / "other" / "bad.csv").write_text("damaged")
    store.take_over(FeatureStore(tmp_path / "other"), but=hashes())
    assert store.missing(hashes(*range(10))).tolist() == [2, 3, 6, 7, 8]


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
    same, every = usable(manifest, store)
    assert same is manifest
    assert every.tolist() == [0, 1, 2, 3, 4]
    store.add_bad([Bad(hashes(2)[0], "2.jpg", "damaged"), Bad(hashes(33)[0], "of another manifest", "damaged")])
    left, kept = usable(manifest, store)
    assert kept.tolist() == [0, 2, 4]
    assert left.column("label").tolist() == [0, 2, 4]


@pytest.mark.parametrize("content", ["", "hash,place\n", "hash,place,reason\nab\n", "hash,place,reason\na,b,c,d\n"])
def test_a_damaged_list_of_bad_images_is_named(tmp_path: Path, content: str) -> None:
    store = FeatureStore(tmp_path, ABOUT)
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(GuieError, match=r"bad\.csv is damaged .*delete it"):
        store.missing(hashes(1))
