"""One byte string for one JSON value, and the digests made from it.

Keys and revisions are hashes of JSON, so two machines must write a value alike to the byte. RFC
8785 (JSON Canonicalization Scheme) says how: no whitespace, members sorted by UTF-16 code units,
numbers as ECMAScript prints IEEE 754 doubles. A value that went through an apiserver, where 1.0
comes back as 1, therefore keeps its key.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from genai_core.names import Digest

__all__ = [
    "CHUNK_BYTES",
    "canonical_json",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "digest_stream",
    "is_digest",
]

CHUNK_BYTES = 1 << 20
"""How much of a file is read at a time: calls cost nothing, and it stays in the cache."""

_EXACT_INTEGERS = 1 << 53
_PLAIN = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class _Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


def canonical_json(value: object) -> bytes:
    """Return the RFC 8785 form of a JSON value, UTF-8 encoded.

    Args:
        value: None, bool, int, float, str, and lists, tuples or mappings with str names of these.

    Raises:
        ValueError: NaN, an infinity, an integer that no double holds exactly, or a lone surrogate;
            the message names the place as in `$.config.scale`.
        TypeError: A value that is not JSON.
    """
    if _is_plain(value):
        return _PLAIN.encode(value).encode()
    return "".join(_parts(value, "$")).encode()


def digest_json(value: object) -> Digest:
    """Return the SHA-256 of a value's canonical JSON."""
    return digest_bytes(canonical_json(value))


def digest_bytes(data: bytes | memoryview) -> Digest:
    """Return the SHA-256 of bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_file(path: Path) -> Digest:
    """Return the SHA-256 of a file's bytes, read once, in constant memory.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        return digest_stream(stream)


def digest_stream(stream: _Readable) -> Digest:
    """Return the SHA-256 of what is left of a binary stream."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := stream.readinto(buffer):
        digest.update(buffer[:count])
    return Digest(digest.hexdigest())


def is_digest(text: str) -> bool:
    """Tell whether a text is 64 lower-case hex characters."""
    return len(text) == 64 and not text.strip("0123456789abcdef")


def _is_plain(value: object) -> bool:
    """Tell whether json's encoder, which is many times faster, writes the same bytes.

    It does for ASCII (whose order is that of its code units) and for integers that doubles hold.
    """
    kind = type(value)
    if kind is str:
        return str.isascii(value)  # type: ignore[arg-type]
    if kind is dict:
        return all(
            type(name) is str and name.isascii() and _is_plain(item)
            for name, item in value.items()  # type: ignore[attr-defined]
        )
    if kind is int:
        return -_EXACT_INTEGERS <= value <= _EXACT_INTEGERS  # type: ignore[operator]
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    return value is None or kind is bool


def _parts(value: object, where: str) -> Iterator[str]:
    if value is None:
        yield "null"
    elif value is True:
        yield "true"
    elif value is False:
        yield "false"
    elif isinstance(value, str):
        yield _string(value, where)
    elif isinstance(value, int):
        yield _integer(value, where)
    elif isinstance(value, float):
        yield _double(value, where)
    elif isinstance(value, Mapping):
        yield from _members(value, where)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield "," if index else "["
            yield from _parts(item, f"{where}[{index}]")
        yield "]" if value else "[]"
    else:
        raise TypeError(f"{where}: {type(value).__name__} is not a JSON value")


def _members(value: Mapping[object, object], where: str) -> Iterator[str]:
    names: list[tuple[bytes, str]] = []
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"{where}: a member's name is a {type(name).__name__}, not a str")
        names.append((_utf16(name, where), name))
    for index, (_, name) in enumerate(sorted(names)):
        yield ",{"[not index] + _string(name, where) + ":"
        yield from _parts(value[name], f"{where}.{name}")
    yield "}" if names else "{}"


def _utf16(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-16-be")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: a lone surrogate has no JSON form") from error


def _string(text: str, where: str) -> str:
    _utf16(text, where)
    # json's own escapes are exactly RFC 8785's: the short ones, \u00xx in lower case, nothing else.
    return json.dumps(str.__str__(text), ensure_ascii=False)


def _integer(value: int, where: str) -> str:
    if abs(value) <= _EXACT_INTEGERS:
        return int.__repr__(value)
    try:
        double = float(value)
    except OverflowError:
        double = math.inf
    if math.isfinite(double):
        text = _double(double, where)
        # The second: a large double was printed, and Python's parser made an int of its digits.
        if int(double) == value or text == int.__repr__(value):
            return text
    raise ValueError(f"{where}: no IEEE 754 double is exactly {value}; write it as a string")


def _double(value: float, where: str) -> str:
    """Print a double as ECMAScript's Number::toString does."""
    if not math.isfinite(value):
        raise ValueError(f"{where}: {value} has no JSON form")
    if value == 0:
        return "0"  # also -0.0
    sign = "-" if value < 0 else ""
    # repr gives the shortest digits that read back as the same double, as ECMAScript asks.
    decimal = Decimal(float.__repr__(abs(value))).as_tuple()
    text = "".join(map(str, decimal.digits))
    point = len(text) + int(decimal.exponent)
    text = text.lstrip("0").rstrip("0")
    count = len(text)
    if count <= point <= 21:
        return sign + text + "0" * (point - count)
    if 0 < point <= 21:
        return f"{sign}{text[:point]}.{text[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{text}"
    fraction = f".{text[1:]}" if count > 1 else ""
    return f"{sign}{text[0]}{fraction}e{point - 1:+d}"
