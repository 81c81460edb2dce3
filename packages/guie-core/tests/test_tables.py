"""Tables for a terminal."""

from __future__ import annotations

from guie_core.tables import table


def test_a_column_is_wrapped_so_that_lines_fit() -> None:
    rows = [("a", "one two three four five six seven", "z"), ("bb", "", "zz")]
    expected = ["  a   one two three four five   z", "      six seven", "  bb                            zz"]
    assert table(rows, wrap=1, width=34).splitlines() == expected


def test_a_column_may_be_empty() -> None:
    assert table([("a", ""), ("b", "")]) == "  a\n  b"
    assert table([]) == ""
