"""JSON of an apiserver, however deep it is.

Whoever may write an object may write down who manages its fields (`metadata.managedFields`): ten
thousand mappings inside one another, which the apiserver stores and Python's reader cannot follow.
Nobody here reads what lies so deep, so it is left out where the reader gives up.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["read_json", "without_depth"]

_DEEPEST = 64
"""Lists and mappings inside one another; no object that is read has half as many."""
# No backtracking: a string that does not end costs one pass as well.
_SIGN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+("|\\?\Z)|[\[\]{}]', re.DOTALL)


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text; what lies deep in it may be null.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        cut = without_depth(text if isinstance(text, str) else text.decode())
        if cut is None:
            raise ValueError("an object without an end") from None
        return json.loads(cut[0])


def without_depth(text: str, start: int = 0) -> tuple[str, int] | None:
    """The text of a list or mapping with null for what lies deep in it, and where it ends.

    Args:
        text: Holds it.
        start: Where it begins.

    Returns:
        None where its end is not there.
    """
    depth, at, pieces = 0, start, []
    for sign in _SIGN.finditer(text, start):
        mark = sign[0]
        if mark[0] == '"':
            if sign[1] != '"':  # it goes on
                return None
        elif mark in "[{":
            depth += 1
            if depth == _DEEPEST + 1:
                pieces.append(f"{text[at : sign.start()]}null")
        else:
            depth -= 1
            if depth == _DEEPEST:
                at = sign.end()
            elif depth == 0:
                return "".join([*pieces, text[at : sign.end()]]), sign.end()
    return None
