"""What is said of data sets before they are prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from guie_core import build, lookup
from guie_core.plugins import plugins
from guie_datasets import Dataset, tfrecord
from guie_datasets.about import about, meanings

OWN = [entry.name for entry in plugins().entries("datasets") if str(entry.owner).startswith("guie-datasets")]


@pytest.mark.parametrize("name", OWN)
def test_every_setting_has_a_meaning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIE_DATA", str(tmp_path))
    found = about(lookup("datasets", name))
    assert found.doc
    assert [option.name for option in found.options if not option.meaning] == []


def test_what_is_shown_as_usual_is_enough(tmp_path: Path) -> None:
    tfrecord.write(tmp_path / "a-train-00-1.tfrec", [(b"x", 1)])
    usual = [option.name for option in about(lookup("datasets", "tfrecord")).options if option.usual]
    values = {"folder": str(tmp_path), "source": "s"}
    dataset = build("datasets", {"type": "tfrecord", **{name: values[name] for name in usual}})
    assert isinstance(dataset, Dataset)
    assert len(list(dataset.rows())) == 1
    assert not [option for option in about(lookup("datasets", "products10k")).options if option.usual]


def test_meanings_of_a_docstring() -> None:
    class Some:
        """Images.

        root: the folder,
        or one that holds it: both.
        first, second: two of them.
        other: no argument; it goes on what comes before.

        A paragraph: of something else.
        third: the last.
        """

        def __init__(self, root: str, first: int, second: int, third: int, fourth: int) -> None:
            """fourth: said here."""

    found = meanings(Some, ["root", "first", "second", "third", "fourth", "fifth"])
    assert found == {
        "root": "the folder, or one that holds it: both.",
        "first": "two of them. other: no argument; it goes on what comes before.",
        "second": "two of them. other: no argument; it goes on what comes before.",
        "third": "the last.",
        "fourth": "said here.",
    }
