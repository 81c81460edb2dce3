"""What a licence allows, and of whose images that is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guie_core import Entry, Origin
from guie_core.entry import Owner
from guie_core.plugins import plugins
from guie_datasets.licences import commercial, is_own, permission

GUIE, OTHERS = Owner("datasets", "guie-datasets", "0.1.0"), Owner("cars", "guie-cars", "1.0")


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("CC-BY-NC-4.0", False),
        ("cc-by-nc-sa-3.0", False),
        ("CC-BY-NC-ND-2.0", False),
        ("PolyForm-Noncommercial-1.0.0", False),
        ("CC-BY-4.0", True),
        ("CC-BY-SA-4.0", True),
        ("CC0-1.0", True),
        ("Apache-2.0 AND MIT AND CC-BY-4.0", True),
        ("MIT AND CC-BY-NC-4.0", False),
        ("MIT OR CC-BY-NC-4.0", True),
        ("(MIT OR CC-BY-NC-4.0) AND CC-BY-4.0", True),
        ("MIT AND (CC-BY-4.0 OR CC-BY-NC-4.0) AND CC-BY-NC-4.0", False),
        ("MIT AND LicenseRef-mine", None),
        ("MIT OR LicenseRef-mine", True),
        ("CC-BY-NC-4.0 AND LicenseRef-mine", False),
        ("CC-BY-NC-4.0 OR LicenseRef-mine", None),
        ("LicenseRef-unknown", None),
        ("free", None),
        ("", None),
        ("MIT AND", None),
        ("(MIT", None),
        ("MIT CC-BY-4.0", None),
        ("GPL-2.0-only WITH Classpath-exception-2.0", None),
    ],
)
def test_permission(licence: str, allowed: bool | None) -> None:
    assert permission(licence) is allowed


def test_whose_images() -> None:
    entry = Entry("cars", "x.y:Cars", "Cars", licence="LicenseRef-unknown")
    assert is_own(replace(entry, owner=GUIE))
    assert not is_own(replace(entry, owner=OTHERS))
    assert not is_own(replace(entry, owner=GUIE, origin=Origin("https://a.b")))


def test_commercial_use() -> None:
    entry = Entry("cars", "x.y:Cars", "Cars", licence="CC-BY-NC-4.0", owner=OTHERS)
    assert commercial(entry) is False
    assert commercial(replace(entry, licence="CC-BY-4.0")) is True
    assert commercial(replace(entry, licence="")) is None
    for said in (True, False, None):  # the owner's word counts, not the licence's name
        assert commercial(replace(entry, origin=Origin("https://a.b", commercial=said))) is said
    assert commercial(replace(entry, licence="LicenseRef-unknown", owner=GUIE)) is True


def test_guie_s_own_entries() -> None:
    own = [entry.name for entry in plugins().entries("datasets") if is_own(entry)]
    assert own == ["folder", "tfrecord", "table", "webdataset", "manifest"]
