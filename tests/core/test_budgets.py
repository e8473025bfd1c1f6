"""JSON of others: what is beyond a budget is refused before it is parsed."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.files import json_budgets as budgets
from genai_core.files.json_budgets import Budget
from genai_core.helper_jobs import read_answer

SMALL = Budget("thing", 1000, 5, 20)


def count(value: Any) -> int:
    """Lists, mappings, and the commas in them."""
    if not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(len(value) - 1, 0) + sum(map(count, inner))


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('a"\\[{,', max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text("k", max_size=3), inner),
    max_leaves=25,
)


@given(values)
def test_read_gives_the_value_when_it_is_within_depth_and_items(value: Any) -> None:
    text = json.dumps(value).encode()
    if depth(value) > SMALL.depth or count(value) >= SMALL.items:
        with pytest.raises(ValueError, match="the thing has"):
            SMALL.read(text)
    else:
        assert SMALL.read(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'"' + b"x" * 1000 + b'"', "1002 bytes, and 1000 are read"),
        (b"[" * 6 + b"]" * 6, "deeper, and 5 are read"),
        (b"[" + b"1," * 25 + b"1]", "more values, and 20 are read"),
        (b"[" + b'"",' * 60 + b"1]", "more texts, and 20 values are read"),
        (b"[NaN]", "NaN is no JSON"),
        (b"[-Infinity]", "-Infinity is no JSON"),
        (b"[1e999]", "inf has no JSON form"),
        (b"[9223372036854775807]", "no IEEE 754 double"),
        (b"[" + b"9" * 900 + b"]", "no IEEE 754 double"),
        (b"[" * 500, "more values"),
        (b'["' + b'\\"' * 400, "Unterminated string"),
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"\xff\xfe", "(?i)decode|expecting"),
    ],
)
def test_read_says_what_is_wrong_when_a_document_is_beyond_its_budget(
    text: bytes, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        SMALL.read(text)


def test_brackets_and_commas_in_texts_count_for_nothing() -> None:
    text = json.dumps({"a": "[" * 300 + "," * 300 + '\\"{' * 30}).encode()
    assert SMALL.read(text)["a"].startswith("[[")
    assert SMALL.read(b"[1000000000000000019884624838656]") == [1000000000000000019884624838656]


M = budgets.RECORD.most_bytes - 10


@pytest.mark.parametrize(
    "text",
    [
        b"[" * M,
        b"[" + b"[]," * (M // 3) + b"1]",
        b"[" + b"9," * (M // 2) + b"1]",
        b'["' + b'","' * (M // 3) + b'"]',
        b'["' + b'\\"' * (M // 2),
        b'"\\\\",' * (M // 5),
        b'{"a":' * (M // 5),
        b'"' * M,
    ],
    ids=["open", "lists", "numbers", "texts", "escapes", "slashes", "mappings", "quotes"],
)
def test_within_is_cheap_when_a_record_is_made_to_hurt(text: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValueError, match=r"the record has|Unterminated string"):
        budgets.RECORD.read(text)
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 4 * budgets.RECORD.most_bytes


def test_a_record_at_its_budget_costs_few_mebibytes() -> None:
    text = b"[" + b"[]," * (budgets.RECORD.items // 2 - 2) + b"1]"
    tracemalloc.start()
    budgets.RECORD.read(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def log_of(text: bytes) -> str:
    packed = base64.b64encode(zlib.compress(text)).decode()
    pieces = [packed[start : start + 6000] for start in range(0, len(packed), 6000)]
    return "\n".join(f"genai-answer {n}/{len(pieces)} {p}" for n, p in enumerate(pieces, 1))


def test_read_answer_finds_none_when_a_log_unpacks_to_more_than_an_answer_has() -> None:
    record = b'{"schema":"genai.record/1","operation":"resolve","key":"%s","toolchain":{"id":"%s"},'
    record %= (b"a" * 64, b"b" * 64)
    record += b'"created_at":"2026-01-01T00:00:00Z","facts":{"x":[[]%s]}}'
    for count in (18 << 20, 4 << 20, 1 << 20):
        log = log_of(b'{"records":[' + record % (b",[]" * (count // 3)) + b"]}")
        assert len(log) < 100_000
        tracemalloc.start()
        assert read_answer(log) is None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20
    assert read_answer(log_of(b'{"records":[' + record % b"" + b"]}")) is not None


def test_read_answer_goes_through_a_log_of_pieces_in_linear_time() -> None:
    log = "\n".join(f"genai-answer {n}/999999 QUJD" for n in range(1, 200_000))
    began = time.process_time()
    assert read_answer(log + "\ngenai-answer " + "9" * 5000 + "/1 QUJD") is None
    assert time.process_time() - began < 5
