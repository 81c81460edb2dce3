"""Charts as SVG that goes into a page: it takes the page's font and colours, in light and dark.

Written by hand, since that is a few lines, and a plotting library would be the largest thing this package needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 360.0, 216.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 350.0, 12.0, 182.0  # the frame that values are drawn in


@dataclass(frozen=True)
class Chart:
    """A drawing and what it says in words."""

    title: str
    svg: str
    description: str


def histogram(title: str, counts: Sequence[int], labels: Sequence[str], axis: str, description: str) -> Chart:
    """A bar for each count, upwards from 0; "" is no label.

    `labels` stand at the borders of the bars, or below their middles if there are as many as bars.
    """
    top = _round(max(counts, default=0) or 1)
    step = (_RIGHT - _LEFT) / max(len(counts), 1)
    bars = "".join(
        f'<rect x="{_LEFT + number * step + 0.5:.1f}" y="{_y(count / top):.1f}" width="{max(step - 1, 0.5):.1f}" '
        f'height="{_BOTTOM - _y(count / top):.1f}" fill="var(--accent)"/>'
        for number, count in enumerate(counts)
        if count
    )
    middle = step / 2 if len(labels) == len(counts) else 0.0
    ticks = [(_LEFT + number * step + middle, label) for number, label in enumerate(labels) if label]
    return Chart(title, _svg(bars, [(_y(v / top), _short(v)) for v in (0, top / 2, top)], ticks, axis), description)


def curve(title: str, values: Sequence[float], total: int, axis: str, description: str) -> Chart:
    """Values > 0 on a logarithmic scale, evenly spaced from 1 to `total`."""
    low = math.floor(math.log10(min(values, default=1)))
    high = max(math.ceil(math.log10(max(values, default=1))), low + 1)
    height: Callable[[float], float] = lambda value: _y((math.log10(value) - low) / (high - low))  # noqa: E731
    step = (_RIGHT - _LEFT) / max(len(values) - 1, 1)
    points = " ".join(f"{_LEFT + number * step:.1f},{height(value):.1f}" for number, value in enumerate(values))
    if len(values) == 1:
        points += f" {_RIGHT:.1f},{height(values[0]):.1f}"
    line = f'<polyline points="{points}" fill="none" stroke="var(--accent)" stroke-width="2"/>'
    scale = [(height(10.0**power), _short(10**power)) for power in range(low, high + 1)]
    ticks = [(_LEFT, "1"), (_RIGHT, _short(total))] if total > 1 else [(_LEFT, "1")]
    return Chart(title, _svg(line, scale, ticks, axis), description)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _svg(marks: str, scale: Sequence[tuple[float, str]], ticks: Sequence[tuple[float, str]], axis: str) -> str:
    grid = "".join(
        f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        for y, text in scale
    )
    below = "".join(
        f'<text x="{x:.1f}" y="{_BOTTOM + 15}" text-anchor="{anchor}">{escape(text)}</text>'
        for x, text in ticks
        for anchor in ("end" if x > _RIGHT - 12 else "middle",)
    )
    middle = (_LEFT + _RIGHT) / 2
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true" focusable="false">'
        f'<g fill="var(--muted)" font-size="12">{grid}{below}'
        f'<text x="{middle:g}" y="{_HEIGHT - 3:g}" text-anchor="middle">{escape(axis)}</text></g>{marks}</svg>'
    )


def _round(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))


def _short(value: float) -> str:
    """ "1,200", "12k", "3.5M"."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= unit:
            return f"{value / min(unit, 1e3 if name == 'k' else unit):g}{name}"
    return f"{value:,g}"
