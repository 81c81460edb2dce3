"""Curves: what is drawn is what was measured, and the drawing fits into a page."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from guie_train.report.curves import Chart, charts

POINTS = [
    {"epoch": e, "loss": 10 / e, "lr": 1e-2 / e, **({"mP@5": 0.05 * e, "valid loss": 12 / e} if e % 2 == 0 else {})}
    for e in range(1, 11)
]


def lines(chart: Chart, colour: str) -> list[list[tuple[float, float]]]:
    """Points of the curves in this colour, in the drawing's coordinates."""
    found = []
    for outline, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', chart.svg):
        if f"stroke: {colour}" in style and "C" not in outline:  # what has arcs is a marker
            found.append([(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", outline)])
    return [points for points in found if len(points) > 2]


def test_a_chart_for_each_figure() -> None:
    assert [chart.title for chart in charts(POINTS)] == ["Loss", "mP@5", "Learning rate"]
    assert [chart.title for chart in charts([{"epoch": 1, "lr": 0.1}])] == ["Learning rate"]
    assert charts([]) == []


def test_a_curve_has_the_points_that_were_measured() -> None:
    loss, score, _ = charts(POINTS, chosen=6)
    curve = lines(loss, "var(--accent)")[0]  # the next one is in the legend
    assert len(curve) == 10
    # heights are proportional to the loss, upside down
    scale = (curve[0][1] - curve[9][1]) / (10 / 1 - 10 / 10)
    for epoch, (x, y) in enumerate(curve, 1):
        assert y - curve[0][1] == pytest.approx(scale * (10 / epoch - 10), abs=0.01)
        assert x - curve[0][0] == pytest.approx((epoch - 1) * (curve[1][0] - curve[0][0]), abs=0.01)
    assert len(lines(loss, "var(--second)")[0]) == 5
    assert len(lines(score, "var(--accent)")[0]) == 5


def test_says_in_words_what_it_draws() -> None:
    loss, score, rate = charts(POINTS, chosen=6)
    assert loss.description == (
        "Loss by epoch: loss from 10 at epoch 1 to 1 at epoch 10, 1.667 at the chosen epoch 6; "
        "valid loss from 6 at epoch 2 to 1.2 at epoch 10, 2 at the chosen epoch 6."
    )
    assert score.description == "mP@5 by epoch: mP@5 from 0.1 at epoch 2 to 0.5 at epoch 10, 0.3 at the chosen epoch 6."
    assert rate.description.startswith("Learning rate by epoch: learning rate from 0.01 at epoch 1")


def test_what_is_not_finite_is_left_out() -> None:
    points = [*POINTS, {"epoch": 11, "loss": math.nan, "mP@5": math.inf}, {"epoch": 12, "loss": 0.5}]
    loss, score, _ = charts(points)
    assert len(lines(loss, "var(--accent)")[0]) == 11
    assert "to 0.5 at epoch 10" in score.description
    assert charts([{"epoch": 1, "loss": math.nan}]) == []


def test_fits_into_a_page() -> None:
    ids: list[str] = []
    for chart in charts(POINTS, chosen=6):
        root = ElementTree.fromstring(chart.svg)
        assert root.tag == "svg"
        assert set(root.attrib) == {"viewBox", "aria-hidden", "focusable"}
        assert not root.findall(".//style")
        assert not root.findall(".//metadata")
        own = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
        ids += own
        for element in root.iter():
            for name, value in element.attrib.items():
                assert "http" not in value
                for target in re.findall(r"url\(#([^)]*)\)", value) + ([value[1:]] if name == "href" else []):
                    assert target in own
        assert not re.search("#0102|font-family|sans", chart.svg)
    assert len(ids) == len(set(ids))


def test_names_of_figures_are_text() -> None:
    chart = charts([{"epoch": e, "a<b> & $x$": 1.0 * e} for e in (1, 2)])[0]
    ElementTree.fromstring(chart.svg)
    assert chart.title == "a<b> & $x$"


def test_is_drawn_the_same_every_time_and_leaves_no_global_state() -> None:
    code = """
import sys
from guie_train.report.curves import charts
points = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
assert charts(points) == charts(points)
print("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def labels(chart: Chart) -> dict[str, float]:
    """What stands at the y axis, and where it ends in the drawing, from its left edge."""
    found = re.findall(r'<text style="[^"]*text-anchor: end[^"]*" x="([\d.]+)"[^>]*>([^<]+)</text>', chart.svg)
    return {text: float(x) for x, text in found}


@pytest.mark.parametrize("rate", [1e-2, 1e-3, 3e-4, 2.5e-5, 7e-7, 1.0, 123456.0])
def test_labels_have_room(rate: float) -> None:
    """Of a learning rate they may be long; the page's font is not wider than 0.6 of its height, digit by digit."""
    [chart] = charts([{"epoch": e, "lr": rate * (1 - e / 20)} for e in range(1, 20)])
    told = labels(chart)
    assert len(told) >= 3
    for text, end in told.items():
        assert end - 0.6 * 10.5 * len(text) >= 0, text
    assert len({float(text.replace("\u2212", "-")) for text in told}) == len(told)
    assert len({"e" in text for text in told if text != "0"}) == 1  # all in one notation


@pytest.mark.parametrize(("value", "within"), [(1.0, (0.9, 1.0)), (0.0, (0.0, 0.1)), (0.98, (0.9, 1.0))])
def test_scores_end_at_0_and_1(value: float, within: tuple[float, float]) -> None:
    [chart] = charts([{"epoch": e, "MRR@5": value} for e in range(1, 6)])
    told = [float(text.replace("\u2212", "-")) for text in labels(chart)]
    assert within[0] <= min(told) < max(told) <= within[1]
    assert within[1] == 0.1 or max(told) == 1.0  # where there is no more to be had is to be seen
    # a loss may be as it is
    [chart] = charts([{"epoch": e, "loss": value} for e in range(1, 6)])
    assert max(float(text.replace("\u2212", "-")) for text in labels(chart)) > value
