"""Text that others wrote, fit to be shown: without secrets of addresses, harmless on a terminal.

A presigned URL carries its signature in the query; a query can also say which content is meant. So
the query is not shown, and eight digits of its digest tell one from another.
"""

from __future__ import annotations

import re

from genai_core.canonical import digest_bytes

__all__ = ["hidden_queries", "plain"]

_URL = re.compile(r"(https?://)([^\s/?#'\"@]*@)?([^\s?#'\"]*)(\?[^\s#'\"]*)?")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Characters that move a cursor, ring, or turn text around; not the tab and the newline."""
_HIDDEN = re.compile(r"\?\.\.\.\([0-9a-f]{8}\)")


def hidden_queries(text: str) -> str:
    """The text with `?...(3f2a91c0)` for the query of each http address, and no user names in them.

    Applied again it changes nothing. Addresses of buckets (`s3://...?endpoint=`) stay as they are.
    """
    return _URL.sub(_hidden, text) if "://" in text else text


def _hidden(found: re.Match[str]) -> str:
    scheme, user, rest, query = found.groups()
    if query and not _HIDDEN.match(query):
        query = f"?...({digest_bytes(query.encode(errors='replace'))[:8]})"
    return f"{scheme}{'...@' if user else ''}{rest}{query or ''}"


def plain(text: str) -> str:
    r"""The text with control characters as their escapes, `\x1b` for ESC.

    A log, a name or an error may hold `ESC ]0;...` to change a window's title, colours that hide
    lines, or a carriage return that writes over one.
    """
    return _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"
