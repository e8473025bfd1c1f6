"""Match a user's regular expression in bounded time.

Python's expressions backtrack: `(a+)+b` on forty letters takes years, and nothing in the process
can end it. So a child matches, and is ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence

from genai_core.errors import BadInput

SECONDS = 10.0
"""For all names of a graph, some thousands: an honest expression takes milliseconds."""

_SHOWN = 200

_PROGRAM = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    compiled = re.compile(pattern)
    matched = [number for number, name in enumerate(names) if compiled.fullmatch(name)]
    print(json.dumps(matched), flush=True)
"""


def full_matches(
    pattern: str, names: Collection[str], *, where: str, seconds: float = SECONDS
) -> frozenset[str]:
    """The names that a regular expression matches as a whole.

    Args:
        pattern: As the user wrote it.
        names: What it is tried on.
        where: The field, for messages.
        seconds: How long it may take.

    Raises:
        BadInput: It is no regular expression, or does not end in time.
    """
    return full_matches_of_all([pattern], names, where=where, seconds=seconds)[0]


def full_matches_of_all(
    patterns: Sequence[str], names: Collection[str], *, where: str, seconds: float | None = None
) -> list[frozenset[str]]:
    """The names that each of several regular expressions matches as a whole.

    Args:
        patterns: As the user wrote them.
        names: What they are tried on.
        where: The field, for messages.
        seconds: How long all of them may take together; None = SECONDS.

    Raises:
        BadInput: One is no regular expression, or does not end in time; the message shows it.
    """
    for pattern in patterns:
        _check(pattern, where)
    if not patterns:
        return []
    tried = sorted(names)
    seconds = SECONDS if seconds is None else seconds
    try:
        ran = subprocess.run(  # noqa: S603 - a program of ours, the patterns are its input
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([list(patterns), tried]).encode(),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        ended = (error.stdout or b"").count(b"\n")
        raise BadInput(
            f"{_shown(patterns[ended])} tries ever more ways to match: {len(tried)} names took "
            f"more than {seconds:g} s",
            where=where,
            remedy="write it without a repetition inside a repetition, as in (a+)+",
        ) from error
    lines = ran.stdout.splitlines()
    return [frozenset(tried[number] for number in json.loads(line)) for line in lines]


def _check(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(
            f"{_shown(pattern)} is no regular expression: {error}",
            where=where,
            remedy="write one for the whole name of a tensor, e.g. .*qk_matmul.*",
        ) from error


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}...")
