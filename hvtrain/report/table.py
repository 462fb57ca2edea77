"""Plain tables for the terminal: columns as wide as their widest cell."""

from __future__ import annotations

from typing import Iterable, Sequence


def lines(rows: Iterable[Sequence[object]]) -> list[str]:
    """The rows (the first one may be a head) as lines of text, columns two blanks apart, the last one ragged."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
