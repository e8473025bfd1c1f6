"""Canonical JSON against RFC 8785's own examples and against properties that keys rely on."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.canonical import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    is_digest,
)
from genai_core.names import Backend

# RFC 8785, appendix B: bits of a double and what ECMAScript prints.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(value).decode() == text


def test_example_of_the_rfc() -> None:
    source = (
        '{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        ' "string": "\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/",'
        ' "literals": [null, true, false]}'
    )
    assert canonical_json(json.loads(source)).decode() == (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_members_are_sorted_by_utf16_units() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    value = json.loads(canonical_json(dict.fromkeys(names, 0)))
    assert list(value) == ["\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33"]


def test_empty_and_nested() -> None:
    assert (
        canonical_json({"b": [], "a": {}, "c": ({"d": ()},)}) == b'{"a":{},"b":[],"c":[{"d":[]}]}'
    )
    assert canonical_json({"backend": Backend.HTP, Backend.CPU: True}) == (
        b'{"Cpu":true,"backend":"Htp"}'
    )


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, math.nan]}, r"\$\.a\[1\]"),
        ({"a": {"b": math.inf}}, r"\$\.a\.b"),
        (-math.inf, r"\$"),
        ([2**53 + 1], r"\$\[0\]"),
        ([10**400], r"\$\[0\]"),
        ({"a": "\ud800"}, "surrogate"),
        ({"\udfff": 1}, "surrogate"),
    ],
)
def test_values_without_a_form_are_refused(value: object, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        canonical_json(value)


@pytest.mark.parametrize("value", [b"bytes", {1: 2}, {"a": {1, 2}}, object()])
def test_values_that_are_not_json_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_read_back_the_same(value: float) -> None:
    text = canonical_json(value).decode()
    assert float(text) == value
    if value.is_integer() and abs(value) <= 2**53:
        assert canonical_json(int(value)).decode() == text, "1.0 and 1 are one value"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(JSON)
def test_canonical_form_is_json_of_the_same_value_and_stable(value: object) -> None:
    data = canonical_json(value)
    again = json.loads(data)
    assert json.loads(data, parse_int=float) == json.loads(json.dumps(value), parse_int=float)
    assert canonical_json(again) == data


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers(0, 9)))
def test_order_does_not_count(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_digests(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert digest_file(tmp_path / "a") == digest_bytes(data) == expected
    assert digest_json({"b": 1, "a": 1.0}) == hashlib.sha256(b'{"a":1,"b":1}').hexdigest()
    assert is_digest(expected)
    for wrong in (expected.upper(), expected[1:], expected + "0", "g" * 64, ""):
        assert not is_digest(wrong)
