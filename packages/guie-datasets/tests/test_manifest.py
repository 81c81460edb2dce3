"""The manifest: columns, selection, digest and the file."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guie_core import GuieError
from guie_datasets import ImageRef, Manifest
from guie_datasets.manifest import SCHEMA


def columns(rows: int = 6) -> dict[str, Any]:
    return {
        "path": [f"shard{number % 2}.tfrec" for number in range(rows)],
        "offset": [100 * number for number in range(rows)],
        "length": [50 if number % 2 else -1 for number in range(rows)],
        "label": [number // 2 for number in range(rows)],
        "source": ["a"] * (rows // 2) + ["b"] * (rows - rows // 2),
        "category": ["x", "y"] * (rows // 2),
        "width": [10 + number for number in range(rows)],
        "height": [20 + number for number in range(rows)],
        "hash": [f"{number:032x}" for number in range(rows)],
    }


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.from_columns(columns(), {"made_by": "a test"})


def test_columns_as_arrays(manifest: Manifest) -> None:
    given = columns()
    for name in ("path", "offset", "length", "label", "source", "category", "width", "height"):
        assert manifest.column(name).tolist() == given[name]
    assert manifest.column("split").tolist() == [""] * 6
    assert {name: manifest.column(name).dtype.str for name in SCHEMA.names} == {
        "path": "|O",
        "offset": "<i8",
        "length": "<i8",
        "compression": "|O",
        "label": "<i8",
        "source": "|O",
        "category": "|O",
        "split": "|O",
        "role": "|O",
        "name": "|O",
        "width": "<i4",
        "height": "<i4",
        "hash": "|S32",
    }


def test_hashes_are_keys(manifest: Manifest) -> None:
    hashes = manifest.column("hash")
    assert hashes.tolist() == [f"{number:032x}".encode() for number in range(6)]
    assert len(set(hashes.tolist())) == len(np.unique(hashes)) == 6
    zeros = Manifest.from_columns(columns() | {"hash": ["0" * 32] * 6})  # zeros are not cut off
    assert zeros.column("hash").tolist() == [b"0" * 32] * 6


def test_images(manifest: Manifest) -> None:
    images = manifest.images()
    assert len(images) == 6
    assert images[0] == ImageRef("shard0.tfrec", 0, None)
    assert images[-1] == ImageRef("shard1.tfrec", 500, 50)
    assert images[1:3] == [images[1], images[2]] == list(images)[1:3]
    packed = manifest.with_column("compression", ["", "gzip"] * 3).images()
    assert packed[:2] == [ImageRef("shard0.tfrec", 0, None), ImageRef("shard1.tfrec", 100, 50, "gzip")]
    with pytest.raises(IndexError):
        images[6]


@pytest.mark.parametrize("rows", [[5, 0, 0], np.array([2]), [], [False] * 6, np.arange(6) % 2 == 0])
def test_select(manifest: Manifest, rows: Any) -> None:
    selected = manifest.select(rows)
    for name in SCHEMA.names:
        expected = manifest.column(name)[np.asarray(rows, dtype=None if len(rows) else int)]
        assert selected.column(name).tolist() == expected.tolist()
    assert len(selected) == len(selected.images()) == len(selected.column("hash"))
    assert selected.select([]).digest == manifest.select([]).digest
    assert selected.provenance == {"made_by": "a test"}


def test_a_mask_of_another_length_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="does not fit 6 rows"):
        manifest.select([True, False])


def test_with_column(manifest: Manifest) -> None:
    changed = manifest.with_column("split", np.array(["test", "train"] * 3, dtype=object))
    assert changed.column("split").tolist() == ["test", "train"] * 3
    assert manifest.column("split").tolist() == [""] * 6
    assert changed.table.column_names == manifest.table.column_names
    assert changed.with_column("score", np.arange(6.0)).column("score").tolist() == [0, 1, 2, 3, 4, 5]
    assert manifest.with_column("label", manifest.column("label") + 1).column("label")[0] == 1
    with pytest.raises(ValueError, match="2 values for 6 rows"):
        manifest.with_column("split", ["a", "b"])


def test_unknown_column(manifest: Manifest) -> None:
    with pytest.raises(GuieError, match=r"a manifest has no column 'klass'. It has: path, offset"):
        manifest.column("klass")
    with pytest.raises(GuieError, match="a manifest needs the columns path, hash"):
        Manifest.from_columns({"label": [1], "width": [1], "height": [1]})


def test_to_pandas(manifest: Manifest) -> None:
    frame = manifest.to_pandas()
    assert list(frame.columns) == SCHEMA.names
    assert frame["hash"].tolist() == columns()["hash"]
    assert frame["source"].tolist() == columns()["source"]
    assert isinstance(frame["source"].dtype, pd.CategoricalDtype)


def test_pickles(manifest: Manifest) -> None:
    again = pickle.loads(pickle.dumps(manifest))
    assert again.table.equals(manifest.table)
    assert list(pickle.loads(pickle.dumps(manifest.images()))) == list(manifest.images())


# --- digest


@pytest.mark.parametrize(
    ("name", "values", "same"),
    [
        ("path", ["elsewhere"] * 6, True),
        ("offset", [1] * 6, True),
        ("split", ["test"] * 6, True),
        ("role", ["query"] * 6, True),
        ("label", [0, 0, 1, 1, 2, 3], False),
        ("source", ["a"] * 6, False),
        ("source", ["b"] * 3 + ["a"] * 3, False),
        ("category", ["y", "x"] * 3, False),
        ("hash", [f"{number:032x}" for number in (0, 1, 2, 3, 4, 6)], False),
    ],
)
def test_digest_is_over_what_is_shown(manifest: Manifest, name: str, values: list[Any], same: bool) -> None:
    assert (manifest.with_column(name, values).digest == manifest.digest) is same


def test_digest_depends_on_order_and_not_on_storage(manifest: Manifest) -> None:
    assert manifest.select([1, 0, 2, 3, 4, 5]).digest != manifest.digest
    assert manifest.select(range(5)).digest != manifest.digest
    halves = pa.concat_tables([manifest.select([0, 1, 2]).table, manifest.select([3, 4, 5]).table])
    assert Manifest(halves).digest == manifest.digest
    reordered = manifest.select([5, 4, 3, 2, 1, 0]).select([5, 4, 3, 2, 1, 0])  # the dictionaries' order may differ
    assert reordered.digest == manifest.digest
    larger = manifest.with_column("source", ["unused", *columns()["source"][1:]]).select(range(1, 6))
    assert larger.digest == manifest.select(range(1, 6)).digest


# --- the file


def test_file_gives_everything_back(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.parquet"
    manifest.with_column("score", np.arange(6.0)).write(path)
    again = Manifest.read(path)
    assert again.column("score").tolist() == [0, 1, 2, 3, 4, 5]
    for name in SCHEMA.names:
        assert again.column(name).tolist() == manifest.column(name).tolist()
    assert again.provenance == {"made_by": "a test"}
    assert again.digest == manifest.digest
    assert [child.name for child in path.parent.iterdir()] == ["manifest.parquet"]


def test_the_same_manifest_gives_the_same_file(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "a")
    Manifest.read(tmp_path / "a").write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_readers_see_plain_columns(manifest: Manifest, tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.parquet")
    frame = pd.read_parquet(tmp_path / "m.parquet")
    assert frame["label"].tolist() == columns()["label"]
    assert frame["path"].astype(str).tolist() == columns()["path"]
    assert frame["hash"].tolist() == [bytes.fromhex(value) for value in columns()["hash"]]


def test_many_rows_in_several_row_groups(tmp_path: Path) -> None:
    rows = 2_500_000
    big = columns(2)
    table = Manifest.from_columns(big).table.take(pa.array(np.arange(rows) % 2))
    numbered = Manifest(table).with_column("offset", np.arange(rows))
    numbered.write(tmp_path / "m")
    assert pq.ParquetFile(tmp_path / "m").num_row_groups > 1
    again = Manifest.read(tmp_path / "m")
    assert np.array_equal(again.column("offset"), np.arange(rows))
    assert again.digest == numbered.digest
    assert again.images()[rows - 1] == ImageRef("shard1.tfrec", rows - 1, 50)


def test_files_that_are_no_manifest(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(GuieError, match="no such file"):
        Manifest.read(path)
    path.write_text("path,label\na.jpg,1\n")
    with pytest.raises(GuieError, match="not a manifest, or a damaged one"):
        Manifest.read(path)
    path.write_bytes(b"")
    with pytest.raises(GuieError, match="not a manifest, or a damaged one") as caught:
        Manifest.read(path)
    path.write_bytes(bytes(1000))
    with pytest.raises(GuieError, match="not a manifest, or a damaged one") as other:
        Manifest.read(path)
    for each in (caught, other):  # what the reader says ends with a full stop, or without
        assert re.search(r"[^.]\. Prepare the data again$", str(each.value))
    pq.write_table(pa.table({"path": ["a"], "label": [1]}), path)
    with pytest.raises(GuieError, match=r"a Parquet table, and no manifest. Prepare it first: guie data prepare "):
        Manifest.read(path)
    manifest.write(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GuieError, match="damaged"):
        Manifest.read(path)


def rewritten(manifest: Manifest, path: Path, version: int, drop: str = "") -> None:
    about = json.dumps({"version": version, "provenance": {}}).encode()
    table = manifest.table.drop_columns([drop]) if drop else manifest.table
    pq.write_table(table.replace_schema_metadata({b"guie.manifest": about}), path)


def test_other_versions_and_missing_columns(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    rewritten(manifest, path, 2)
    with pytest.raises(GuieError, match=r"a manifest of version 2; this guie-datasets reads 1. Update guie-datasets"):
        Manifest.read(path)
    rewritten(manifest, path, 0)
    with pytest.raises(GuieError, match=r"version 0; .* Prepare the data again"):
        Manifest.read(path)
    rewritten(manifest, path, 1, drop="hash")
    with pytest.raises(GuieError, match="the manifest has no column hash"):
        Manifest.read(path)
    rewritten(manifest, path, 1)
    assert Manifest.read(path).digest == manifest.digest


def test_files_without_the_columns_that_came_later_are_read(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    rewritten(manifest, path, 1, drop="compression")
    again = Manifest.read(path)
    assert again.column("compression").tolist() == [""] * 6
    assert again.column_names == SCHEMA.names
    assert list(again.images()) == list(manifest.images())
    assert Manifest(manifest.table.drop_columns(["compression"])).table.equals(manifest.table)


def test_damage_inside_a_file_is_found_when_it_is_looked_at(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    manifest.write(path)
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(SCHEMA.names.index("label"))
    data[chunk.dictionary_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    again = Manifest.read(path)
    assert again.column("width").tolist() == manifest.column("width").tolist()
    with pytest.raises(GuieError, match=r"m\.parquet: not a manifest, or a damaged one: .* Prepare the data again"):
        again.column("label")


@pytest.mark.parametrize("about", [b"", b"{", b"[]", b"3", b"{}", b'{"version": 1, "provenance": 3}', b"[" * 10**5])
def test_damage_in_what_a_file_says_of_itself(manifest: Manifest, tmp_path: Path, about: bytes) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(manifest.table.replace_schema_metadata({b"guie.manifest": about}), path)
    with pytest.raises(GuieError, match="a damaged manifest"):
        Manifest.read(path)


def test_an_open_manifest_stays_as_it_is_when_its_file_is_replaced(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    manifest.write(path)
    again = Manifest.read(path)
    manifest.select([0]).write(path)
    assert again.column("width").tolist() == manifest.column("width").tolist()


def test_rows_that_are_not_there(manifest: Manifest) -> None:
    for rows in ([6], [-1], [0, 99]):
        with pytest.raises(IndexError, match="of 6"):
            manifest.select(rows)


@pytest.mark.parametrize("rows", [[0.7, 1.9], np.array([1.0]), ["a"], [[0, 1]], 3, [None]])
def test_rows_that_are_no_row_numbers(manifest: Manifest, rows: Any) -> None:
    with pytest.raises(IndexError, match="rows are a mask, or a list of whole numbers"):
        manifest.select(rows)


def test_arrays_that_are_given_may_change_later() -> None:
    given = {name: np.array(values) for name, values in columns().items()}
    given["score"] = np.arange(6.0)
    made, same = Manifest.from_columns(given), Manifest.from_columns(columns() | {"score": np.arange(6.0)})
    labels, score = np.arange(6), np.arange(6.0)
    changed = made.with_column("label", labels).with_column("score", score)
    digest = changed.digest
    rows = np.array([3, 1])
    chosen = made.select(rows)  # columns are selected when they are looked at
    for array in (*given.values(), labels, score, rows):
        array[:] = array[::-1].copy()
    assert made.table.equals(same.table)
    assert changed.column("label").tolist() == changed.column("score").tolist() == list(range(6))
    assert Manifest(changed.table).digest == digest
    assert chosen.table.equals(same.select([3, 1]).table)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("category", [None] * 6, "column 'category' has no value in row 0"),
        ("label", [0, 0, None, 1, 1, 1], "column 'label' has no value in row 2"),
        ("path", ["a", None, "b", "c", "d", "e"], "column 'path' has no value in row 1"),
        ("hash", [None] * 6, "column 'hash': "),
        ("hash", ["xyz"] * 6, "column 'hash': "),
        ("hash", ["00" * 15] * 6, "column 'hash': "),
        ("label", [0.5] * 6, "column 'label': "),
        ("label", [float("nan")] * 6, "column 'label': "),
        ("label", ["cat"] * 6, "column 'label': "),
        ("width", [2**31] * 6, "column 'width': "),
        ("source", [3] * 6, "column 'source': "),
    ],
)
def test_values_that_no_manifest_can_have(manifest: Manifest, name: str, values: list[Any], message: str) -> None:
    with pytest.raises(GuieError, match=message):
        Manifest.from_columns(columns() | {name: values})
    with pytest.raises(GuieError, match=message):
        manifest.with_column(name, values)


def test_columns_of_several_lengths() -> None:
    with pytest.raises(GuieError, match="column 'width' has 5 values, and 'label' has 6"):
        Manifest.from_columns(columns() | {"width": [1] * 5})


def test_tables_and_files_without_some_values(manifest: Manifest, tmp_path: Path) -> None:
    place = manifest.table.column_names.index("category")
    table = manifest.table.set_column(place, "category", pa.array(["x", None] * 3, SCHEMA.field("category").type))
    with pytest.raises(GuieError, match="column 'category' has no value in row 1"):
        Manifest(table)
    about = json.dumps({"version": 1, "provenance": {}}).encode()
    pq.write_table(table.replace_schema_metadata({b"guie.manifest": about}), tmp_path / "m")
    with pytest.raises(GuieError, match="m: column 'category' has no value in row 1"):
        Manifest.read(tmp_path / "m").column("category")


def test_damage_that_only_a_checksum_shows(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    hashes = [np.random.default_rng(row).bytes(16) for row in range(60)]  # which no compression makes smaller
    Manifest.from_columns(columns(60) | {"hash": [each.hex() for each in hashes]}).write(path)
    data = bytearray(path.read_bytes())
    data[data.index(hashes[30]) + 5] ^= 1
    path.write_bytes(data)
    assert pq.read_table(path).column("hash")[30].as_py() not in hashes  # nothing else of Parquet's finds it
    with pytest.raises(GuieError, match="a damaged one"):
        Manifest.read(path).column("hash")


def test_provenance_can_be_replaced(manifest: Manifest) -> None:
    again = manifest.with_provenance({"made_by": "another"})
    assert again.provenance == {"made_by": "another"}
    assert again.table.equals(manifest.table)
