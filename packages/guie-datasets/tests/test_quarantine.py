"""The list of findings: few or many, in memory or on the disk."""

from __future__ import annotations

import csv
import gc
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from guie_core import GuieError
from guie_datasets import Finding, Quarantine, quarantine
from guie_datasets.quarantine import written

FINDINGS = [
    Finding("bad", "a, b.jpg", 'not an "image"', "s", "cat"),
    Finding("left out", "notes.txt", "not an image by its suffix '.txt'"),
    Finding("bad", "x.tfrec@7", "cut\nshort", "s", None, 30),
    Finding("duplicate", "中文.jpg", "the same image as b.jpg", "s", 2**60),
    Finding("conflict", "\udcff.jpg", "the same image as c.jpg", "s", 0.5),
]


@pytest.mark.parametrize("in_memory", [1 << 20, 1])
def test_findings_come_back_in_order(in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(quarantine, "_AT_ONCE", 200)
    found = Quarantine(FINDINGS, 50, tmp_path)
    for _ in range(2):
        assert list(found) == list(found.findings) == FINDINGS
    reading = iter(found)
    first = next(reading)
    found.add(FINDINGS[0])  # while somebody reads
    assert [first, *reading] == [*FINDINGS, FINDINGS[0]]
    assert (len(found), found.images, found.count("bad"), found.count("conflict")) == (6, 50, 32, 1)
    assert str(found) == "32 bad, 1 repeated, 1 kept though equal to an image of another class, 1 left out"
    assert list(tmp_path.iterdir()) == []
    again = pickle.loads(pickle.dumps(found))
    assert (list(again), again.images, str(again)) == (list(found), 50, str(found))


def test_nothing_found() -> None:
    found = Quarantine(images=3)
    assert (len(found), list(found), str(found), found.count("bad")) == (0, [], "", 0)
    assert not found


def test_labels_of_any_kind_can_be_kept() -> None:
    labels = [np.int64(3), True, b"x", (1, 2), object]
    kept = [finding.label for finding in Quarantine(Finding("bad", "a", "b", "c", label) for label in labels)]
    assert kept == [3, True, "b'x'", [1, 2], "<class 'object'>"]


def test_the_table(tmp_path: Path) -> None:
    Quarantine(FINDINGS).write(tmp_path / "q.csv")
    with (tmp_path / "q.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "place", "source", "label", "name", "reason", "count"]
    assert rows[1] == ["bad", "a, b.jpg", "s", "cat", "", 'not an "image"', "1"]
    assert rows[3] == ["bad", "x.tfrec@7", "s", "", "", "cut\nshort", "30"]
    assert rows[4][1] == "中文.jpg"
    assert rows[5][1] == "\N{REPLACEMENT CHARACTER}.jpg"


def test_the_table_is_written_whatever_happens(tmp_path: Path) -> None:
    found = Quarantine(FINDINGS[:1])
    with pytest.raises(KeyboardInterrupt), written(found, tmp_path / "q.csv"):
        raise KeyboardInterrupt
    assert len((tmp_path / "q.csv").read_text().splitlines()) == 2
    (tmp_path / "a file").touch()
    with pytest.raises(GuieError, match="the first failure"), written(found, tmp_path / "a file" / "q.csv"):
        raise GuieError("the first failure")
    with written(found, None):
        pass


def test_the_file_is_closed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_IN_MEMORY", 1)
    before = len(os.listdir("/dev/fd"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        with Quarantine(FINDINGS, folder=tmp_path) as found:
            assert len(os.listdir("/dev/fd")) == before + 1
        assert len(os.listdir("/dev/fd")) == before
        assert (len(found), found.count("bad")) == (5, 31)
        forgotten = Quarantine(FINDINGS, folder=tmp_path)
        del forgotten
        gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    assert [str(each.message) for each in warned] == []


def test_findings_with_one_reason_are_told_together() -> None:
    reasons = [f"record {number} at byte {number:,}: it has no feature 'x'" for number in (1, 20, 3000, 40_000)]
    found = [Finding("bad", f"a@{number}", reason) for number, reason in enumerate(reasons)]
    found += [Finding("left out", "b", reasons[0]), Finding("bad", "c", "cut", count=30)]
    groups = Quarantine(found).bad.most_frequent()
    assert [str(group) for group in groups] == ["30 x cut, first c", f"4 x {reasons[0]}, first a@0"]


def test_reasons_that_are_all_different_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_GROUPS", 3)
    names = "abcdef"
    groups = Quarantine(Finding("bad", "p", name) for name in names).bad.most_frequent()
    assert [group.first[0].reason for group in groups] == ["a", "b", "c"]
