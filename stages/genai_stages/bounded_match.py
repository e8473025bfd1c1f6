"""Match a user's regular expression in bounded time.

Python's expressions backtrack: `(a+)+b` on forty letters takes years, and nothing in the process
can end it. So a child matches, and is ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection

from genai_core.errors import BadInput

SECONDS = 10.0
"""For all names of a graph, some thousands: an honest expression takes milliseconds."""

_PROGRAM = """
import json, re, sys
pattern, names = json.load(sys.stdin)
compiled = re.compile(pattern)
json.dump([name for name in names if compiled.fullmatch(name)], sys.stdout)
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
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(
            f"{pattern!r} is no regular expression: {error}",
            where=where,
            remedy="write one for the whole name of a tensor, e.g. .*qk_matmul.*",
        ) from error
    given = json.dumps([pattern, sorted(names)])
    try:
        ran = subprocess.run(  # noqa: S603 - a program of ours, the pattern is its input
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"{pattern!r} tries ever more ways to match: {len(names)} names took more than "
            f"{seconds:g} s",
            where=where,
            remedy="write it without a repetition inside a repetition, as in (a+)+",
        ) from error
    return frozenset(json.loads(ran.stdout))
