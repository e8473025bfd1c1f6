"""Standard output: one JSON object, or text for people."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from genai_core.redaction import plain

__all__ = ["emit", "say", "table", "tell"]

_GAP = "  "
_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_COLORS = {"cached": "\x1b[32m", "run": "\x1b[36m"}
_PLAIN, _DIM = "\x1b[0m", "\x1b[2m"


def emit(value: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command; escaped where the encoding cannot hold it."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    # What JSON leaves as it is may still be a control character: 0x7f to 0x9f, marks of direction.
    text = json.dumps(value, indent=2, ensure_ascii=not utf8)
    sys.stdout.write(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def say(text: str = "") -> None:
    """Print a line of a result; control characters of others as text."""
    sys.stdout.write(f"{plain(text)}\n")


def tell(text: str) -> None:
    """Print a line beside the result, on standard error."""
    sys.stderr.write(f"{plain(text)}\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print columns; a pipe gets every character, a terminal lines that fit.

    Args:
        head: Names of the columns; none where empty.
        rows: Cells. The last column is cut where a terminal is too narrow.
        right: Names of the columns whose cells stand at the right: numbers.
    """
    rows = [[plain(cell) for cell in cells] for cells in rows]
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
        sys.stdout.write(_GAP.join(padded).rstrip() + "\n")


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
