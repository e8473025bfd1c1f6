"""Numbers, sizes and durations as text."""

from __future__ import annotations

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
