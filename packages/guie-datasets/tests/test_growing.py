"""Columns on the disk, against lists in memory."""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guie_core import GuieError
from guie_core.files import folder_option
from guie_datasets import Finding, Quarantine
from guie_datasets.preparing import growing
from guie_datasets.preparing.growing import GrowingColumns

row = st.fixed_dictionaries(
    {
        "path": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "offset": st.integers(0, 2**62),
        "length": st.integers(-1, 2**62),
        "compression": st.sampled_from(["", "gzip"]),
        "label": st.integers(0, 2**48),
        "original_label": st.integers(0, 2**48),
        "source": st.sampled_from("ab"),
        "category": st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
        "split": st.just(""),
        "role": st.just(""),
        "name": st.sampled_from(["x", "中"]),
        "width": st.integers(0, 2**31 - 1),
        "height": st.integers(0, 2**31 - 1),
        "hash": st.binary(min_size=16, max_size=16),
    }
)


@given(st.lists(st.lists(row, max_size=8), max_size=5), st.data())
@settings(max_examples=50, deadline=None)
def test_what_goes_in_comes_out(pieces: list[list[dict[str, Any]]], data: st.DataObject) -> None:
    columns, rows = GrowingColumns(), [row for piece in pieces for row in piece]
    for piece in pieces:
        columns.append({name: [row[name] for row in piece] for name in row_names})
    assert as_rows(columns) == rows
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing, "_CHUNK", 3)
        kept = columns.kept(keep)
    assert as_rows(kept) == [row for row, good in zip(rows, keep, strict=True) if good]
    assert as_rows(columns) == rows


row_names = [
    *("path", "offset", "length", "compression", "label", "original_label", "source", "category"),
    *("split", "role", "name", "width", "height", "hash"),
]


def as_rows(columns: GrowingColumns) -> list[dict[str, Any]]:
    lists = {name: column.to_pylist() for name, column in columns.columns().items()}
    assert len({len(columns), *map(len, lists.values())}) == 1
    return [dict(zip(row_names, values, strict=True)) for values in zip(*map(lists.get, row_names), strict=True)]


def test_no_file_is_open_after_closing(tmp_path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        values = {name: [number] * 3 for number, name in enumerate(row_names)}
        values |= {name: ["x"] * 3 for name in ("path", "compression", "source", "category", "split", "role", "name")}
        with GrowingColumns(tmp_path) as columns:
            columns.append(values | {"hash": [bytes(16)] * 3})
            with columns.kept(np.array([True, False, True])) as kept:
                lists, labels = kept.columns(), kept.array("original_label")
        del columns, kept
        gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    assert [str(each.message) for each in warned] == []
    assert lists["path"].to_pylist() == ["x", "x"]
    assert lists["width"].to_pylist() == [values["width"][0]] * 2
    assert labels.tolist() == [values["original_label"][0]] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_as_that(tmp_path: Path) -> None:
    columns = GrowingColumns(tmp_path)
    columns._files["path"] = open("/dev/full", "wb")  # noqa: SIM115
    values: dict[str, Any] = dict.fromkeys(row_names, "")
    values |= dict.fromkeys(("offset", "length", "label", "original_label", "width", "height"), 1)
    values |= {"path": "x" * 2**20, "hash": bytes(16)}
    with pytest.raises(GuieError, match="The disk is full"):
        columns.append({name: [value] for name, value in values.items()})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a file of a name that nobody has heard of: these have none."""

    def refused(dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(dir / "tmp1"))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(GuieError) as caught, folder_option("--output"):
        GrowingColumns(tmp_path)
    assert str(caught.value) == (
        f"The disk is read-only: {tmp_path} could not be written.\nNothing that was complete is lost. "
        f"Make {tmp_path} writable, or choose another folder (--output), and run the same command again."
    )


@pytest.fixture
def _small_files() -> Iterator[None]:
    """Files end after 2 kB, as they would on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_small_files")
def test_what_a_full_disk_has_not_taken_does_not_stand_for_it(tmp_path: Path) -> None:
    """Closing the files, which writes what is left, would fail once more, and say nothing of the disk."""
    values: dict[str, Any] = dict.fromkeys(row_names, "")
    values |= dict.fromkeys(("offset", "length", "label", "original_label", "width", "height"), 1)
    values |= {"path": "x" * 40, "hash": bytes(16)}
    rows = {name: [value] * 100 for name, value in values.items()}  # fewer bytes than are written at once
    with (  # noqa: PT012
        pytest.raises(GuieError, match=rf"{re.escape(str(tmp_path))} could not be written"),
        folder_option("--output"),
        GrowingColumns(tmp_path) as columns,
    ):
        columns.append(rows)
        columns.columns()
    found = Quarantine(folder=tmp_path)
    with pytest.raises(GuieError, match=rf"{re.escape(str(tmp_path))} could not be written"):  # noqa: PT012
        for _ in range(20_000):
            found.add(Finding("bad", "x" * 60, "damaged"))
    found.close()
    assert list(tmp_path.iterdir()) == []
