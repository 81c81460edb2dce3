"""Curves as SVG that goes into a page: it takes the page's font and colours, in light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# matplotlib paints with these, and the page's own colours take their place in the SVG
INK, GRID, LINE, SECOND = "#010203", "#010204", "#010205", "#010206"
COLOURS = {INK: "var(--muted)", GRID: "var(--line)", LINE: "var(--accent)", SECOND: "var(--second)"}
NAMES = {"lr": "learning rate"}
UNBOUNDED = ("loss", "valid loss", "lr")
WIDTH, HEIGHT, FONT = 3.6 * 72, 2.3 * 72, 10.5  # points, as the page has pixels
DIGIT = 0.6  # of the font's size: the width of a digit, in most fonts less


@dataclass(frozen=True)
class Chart:
    """A drawing and what it says in words."""

    title: str
    svg: str
    description: str


def charts(points: Sequence[Mapping[str, float]], chosen: int | None = None) -> list[Chart]:
    """One chart for each figure that was recorded: loss, scores of selection, learning rate.

    Args:
        points: one a epoch, with "epoch" and any of "loss", "lr" and scores such as "mP@5"; what wasn't measured in an
            epoch is absent. "valid loss" is drawn beside "loss".
        chosen: epoch of the checkpoint that was kept, marked in each chart.
    """
    found = dict.fromkeys(name for point in points for name in point if name != "epoch")
    groups: list[tuple[str, list[str]]] = [("Loss", [name for name in ("loss", "valid loss") if name in found])]
    groups += [(name, [name]) for name in found if name not in ("loss", "valid loss", "lr")]
    groups += [("Learning rate", ["lr"])] if "lr" in found else []
    drawn: list[Chart] = []
    for title, names in groups:
        series = {name: _values(points, name) for name in names}
        series = {name: values for name, values in series.items() if values}
        if series:
            drawn.append(Chart(title, _svg(series, chosen, f"c{len(drawn)}"), _description(title, series, chosen)))
    return drawn


def _values(points: Sequence[Mapping[str, float]], name: str) -> list[tuple[int, float]]:
    return [(int(point["epoch"]), point[name]) for point in points if math.isfinite(point.get(name, math.nan))]


def _description(title: str, series: Mapping[str, list[tuple[int, float]]], chosen: int | None) -> str:
    parts = []
    for name, values in series.items():
        (first, start), (last, end) = values[0], values[-1]
        parts.append(f"{NAMES.get(name, name)} from {start:.4g} at epoch {first} to {end:.4g} at epoch {last}")
        at = dict(values).get(chosen or -1)
        if at is not None:
            parts[-1] += f", {at:.4g} at the chosen epoch {chosen}"
    return f"{title} by epoch: {'; '.join(parts)}."


def _svg(series: Mapping[str, list[tuple[int, float]]], chosen: int | None, prefix: str) -> str:
    # imported here: it takes a second, and most commands draw nothing
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.family": "sans-serif",
        "font.size": FONT,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.patch.set_alpha(0)
        for (name, values), colour, dash in zip(series.items(), (LINE, SECOND), ("-", (0, (4, 2))), strict=False):
            epochs, heights = zip(*values, strict=True)
            sparse = len(values) <= 25
            marker = "o" if sparse else ""
            axes.plot(epochs, heights, color=colour, ls=dash, linewidth=1.8, marker=marker, ms=3, clip_on=False)
            if len(series) > 1:
                axes.plot([], [], color=colour, linestyle=dash, label=NAMES.get(name, name))
            at = dict(values).get(chosen or -1)
            if chosen is not None and at is not None:
                axes.plot([chosen], [at], color=colour, marker="o", ms=7, mfc="none", mew=1.8, clip_on=False)
        if chosen is not None:
            axes.axvline(chosen, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xlabel("epoch", color=INK, labelpad=2)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))  # of which 1 is a multiple
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0, pad=4)
        axes.margins(x=0.03, y=0.1)
        low, high = axes.get_ylim()
        shown = [value for values in series.values() for _, value in values]
        if not series.keys() & set(UNBOUNDED) and 0 <= min(shown) <= max(shown) <= 1:  # no score is beyond these
            low, high = max(low, 0.0), min(high, 1.0)
            axes.set_ylim(low, high)
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        labels = _labels(ticks)
        axes.set_yticks(ticks, labels)
        left = (DIGIT * FONT * max(map(len, labels)) + 5) / WIDTH
        axes.set_position((left, 0.185, 0.975 - left, 0.775))
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        if len(series) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="best", handlelength=1.8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(buffer.getvalue(), prefix)


def _labels(ticks: Sequence[float]) -> list[str]:
    """Numbers as short as they can be: all with an exponent, or none."""
    largest = max(map(abs, ticks))
    plain = 1e-4 <= largest < 1e6
    ticks = [tick if abs(tick) > 1e-6 * largest else 0.0 for tick in ticks]  # 0 may be off by rounding
    texts = [f"{tick:.6f}".rstrip("0").rstrip(".") if plain else f"{tick:.3g}" for tick in ticks]
    return [text.replace("-", "\u2212") for text in texts]


def _inline(document: str, prefix: str) -> str:
    """The <svg> element alone, without names of other hosts, with ids of its own and the page's colours and font."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family:[^;\"]*|font: ([\d.]+px)[^;\"]*", lambda m: f"font-size: {m[1]}" if m[1] else "", svg)
    svg = re.sub(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
    for painted, wanted in COLOURS.items():
        svg = svg.replace(painted, wanted)
    return svg
