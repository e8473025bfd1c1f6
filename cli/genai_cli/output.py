"""Standard output: one JSON object, or text for people."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["emit", "say", "table"]

_GAP = "  "
_COLORS = {"cached": "\x1b[32m", "run": "\x1b[36m"}
_PLAIN, _DIM = "\x1b[0m", "\x1b[2m"


def emit(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command; escaped where the encoding cannot hold it."""
    plain = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not plain) + "\n")


def say(text: str = "") -> None:
    """Print a line of a result."""
    sys.stdout.write(f"{text}\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print columns; a pipe gets every character, a terminal lines that fit.

    Args:
        head: Names of the columns; none where empty.
        rows: Cells. The last column is cut where a terminal is too narrow.
        right: Names of the columns whose cells stand at the right: numbers.
    """
    lines = [list(head), *map(list, rows)] if any(head) else [*map(list, rows)]
    widths = [max(map(len, column), default=0) for column in zip(*lines, strict=True)]
    wide = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for number, cells in enumerate(lines):
        padded = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(head, cells, widths, strict=True)
        ]
        padded[-1] = padded[-1].rstrip()
        if wide is not None:
            padded = _fitted(padded, wide)
            padded = _colored(padded, heading=any(head) and number == 0)
        say(_GAP.join(padded).rstrip())


def _fitted(cells: list[str], wide: int) -> list[str]:
    """Cut the last cell where the line would wrap."""
    room = wide - sum(len(cell) + len(_GAP) for cell in cells[:-1])
    last = cells[-1]
    if len(last) > room > 0:
        last = last[: room - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return [*cells[:-1], last]


def _colored(cells: list[str], *, heading: bool) -> list[str]:
    if heading:
        return [f"{_DIM}{cell}{_PLAIN}" for cell in cells]
    return [
        f"{color}{cell}{_PLAIN}" if (color := _COLORS.get(cell.strip())) else cell for cell in cells
    ]
