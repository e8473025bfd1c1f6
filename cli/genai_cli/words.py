"""Numbers as people read them."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Characters that move a cursor, ring, or turn text around; not the tab and the newline."""

_STEP = 1000
_MINUTE = 60
_HOUR = 3600


def size(count: float) -> str:
    """Bytes in powers of ten, three digits: `0 B`, `13.2 MB`, `1.45 GB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if round(value, 1) < _STEP:
            digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
            return f"{value:.{digits}f} {unit}"
        value /= _STEP
    return f"{value:.2f} TB"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3:05 min`, `1:02 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02} min"
    return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02} h"


def counted(number: int, noun: str) -> str:
    """`1 task`, `19 tasks`, `2 entries`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def plain(text: str) -> str:
    """Text that others wrote, harmless on a terminal: control characters become their escapes.

    A log, a name or an error may hold `ESC ]0;...` to change a window's title, colours that hide
    lines, or a carriage return that writes over one.
    """
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
