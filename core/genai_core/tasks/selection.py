"""Which of the files on offer an input takes: patterns over relative paths. Pure.

Planner and workers must agree on it, since what an input holds enters the key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

__all__ = ["matches", "unmet"]


def matches(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """The paths that one of the patterns matches, in no order that means anything."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern == "*":
            return list(paths)
        if "*" in pattern:
            found.update(path for path in paths if fnmatchcase(path, pattern))
        elif pattern in paths:
            found.add(pattern)
    return list(found)


def unmet(patterns: Iterable[str], paths: Collection[str]) -> list[str]:
    """Patterns that must match a file, being whole paths, and match none."""
    return [pattern for pattern in patterns if "*" not in pattern and pattern not in paths]
