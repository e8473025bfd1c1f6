"""Addresses in records, status, logs and messages: no signature, no password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import BadModel, from_dict
from genai_core.redaction import hidden_queries

SIGNED = "https://bucket.s3.amazonaws.com/m.tar?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=5EC2E7"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (SIGNED, "https://bucket.s3.amazonaws.com/m.tar?...("),
        (f"{SIGNED}#sha256={'a' * 64}", f")#sha256={'a' * 64}"),
        (f"resolving {SIGNED} again", ") again"),
        ("http://kim:pass5EC2E7@s3:9000/x", "http://...@s3:9000/x"),
        ("s3://b/p?endpoint=https://kim:5EC2E7@s3.example.com&region=x",
         "s3://b/p?endpoint=https://...@s3.example.com&region=x"),
    ],
)  # fmt: skip
def test_hidden_queries_leaves_no_secret_when_an_address_holds_one(text: str, shown: str) -> None:
    assert shown in hidden_queries(text)
    assert "5EC2E7" not in hidden_queries(text)


def test_hidden_queries_tells_contents_apart_when_the_query_names_them() -> None:
    one, other = (hidden_queries(f"https://h/m.tar?version={n}") for n in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    "text",
    [
        "https://h/m.tar.gz", "pvc://claim/path", "/a/b?c", "what is it? nothing",
        "s3://b/p?endpoint=https://s3.example.com:9000&region=eu-1", "https://h/a@b/c",
    ],
)  # fmt: skip
def test_hidden_queries_leaves_text_alone_when_nothing_is_secret(text: str) -> None:
    assert hidden_queries(text) == text


@given(st.text(alphabet="htps:/?#@.=&x1 \n'()", max_size=60))
def test_hidden_queries_changes_nothing_when_applied_again(text: str) -> None:
    once = hidden_queries(f"https://h/{text}")
    assert hidden_queries(once) == once


def test_errors_show_no_query_in_any_of_their_parts() -> None:
    error = BadModel(f"no answer from {SIGNED}", where=SIGNED, remedy=f"look at {SIGNED}")
    for text in (str(error), repr(error.as_dict()), str(from_dict(error.as_dict()))):
        assert "5EC2E7" not in text
        assert "bucket.s3.amazonaws.com/m.tar" in text
