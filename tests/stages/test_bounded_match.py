"""A user's regular expression is matched in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.errors import BadInput
from genai_stages.bounded_match import full_matches

NAMES = ["layers.0.attn.qk", "layers.1.attn.qk", "a" * 40 + "!", "ä\n", ""]


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*a){20}b"])
def test_full_matches_gives_up_in_time_when_a_pattern_backtracks(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(BadInput, match="tries ever more ways") as caught:
        full_matches(pattern, NAMES, where="a.field", seconds=1.0)
    assert time.monotonic() - began < 10
    assert caught.value.where == "a.field"
    assert pattern in caught.value.message


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "[", "a" + "{9999999999999999999}", "*"])
def test_full_matches_says_what_is_wrong_when_a_pattern_is_none(pattern: str) -> None:
    with pytest.raises(BadInput, match="is no regular expression"):
        full_matches(pattern, NAMES, where="a.field")


@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([*NAMES, "x.y", "\U0001f600"]), unique=True))
def test_full_matches_is_what_fullmatch_finds(names: list[str]) -> None:
    for pattern in (r"layers\.\d+\.attn\.qk", ".*", "a+!"):
        found = full_matches(pattern, names, where="a.field")
        assert found == {name for name in names if re.fullmatch(pattern, name)}
