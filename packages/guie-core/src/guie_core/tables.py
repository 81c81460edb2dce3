"""Tables that stay readable in a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence


def terminal_width() -> int:
    """Columns of the terminal, 80 where there is none; never more than 120, which is hard to read."""
    return max(60, min(shutil.get_terminal_size((80, 24)).columns, 120))


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ", wrap: int = -1, width: int | None = None) -> str:
    """Rows as aligned columns, two spaces apart; column `wrap` is wrapped so that lines fit into `width`."""
    if not rows:
        return ""
    count = len(rows[0])
    wrap %= count
    widths = [max(len(row[column]) for row in rows) for column in range(count)]
    others = sum(widths) - widths[wrap] + 2 * (count - 1) + len(indent)
    widths[wrap] = min(widths[wrap], max(24, (width or terminal_width()) - others))
    lines = []
    for row in rows:
        pieces = textwrap.wrap(row[wrap], max(widths[wrap], 1), break_long_words=False, break_on_hyphens=False) or [""]
        for number, piece in enumerate(pieces):
            cells = ["" if number else cell for cell in row]
            cells[wrap] = piece
            padded = "  ".join(cell.ljust(space) for cell, space in zip(cells, widths, strict=True))
            lines.append((indent + padded).rstrip())
    return "\n".join(lines)
