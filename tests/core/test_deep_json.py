"""JSON that is deeper than Python's reader goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.files.deep_json import read_json, without_depth

values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\{}[] \n\u00e9'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def deep(count: int, within: str = "{}") -> str:
    return '{"f:a": ' * count + within + "}" * count


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values, max_size=4), st.text())
def test_without_depth_is_the_text_itself_when_it_is_not_deep(
    value: dict[str, Any], behind: str
) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert without_depth(f" {text}{behind}", 1) == (text, len(text) + 1)
    for end in range(len(text)):
        assert without_depth(text[:end]) is None


@pytest.mark.parametrize("count", [1_200, 9_900, 100_000])
def test_read_json_leaves_out_what_lies_too_deep(count: int) -> None:
    """The apiserver stores what managers of fields are said to have, at any depth."""
    item = json.dumps({"name": "x", "managedFields": ["@"], "labels": {"a": "}]\\"}})
    text = item.replace('"@"', deep(count, '["}"]'))
    found = read_json(text.encode())
    assert (found["name"], found["labels"]) == ("x", {"a": "}]\\"})
    place, depth = found["managedFields"][0], 0
    while place is not None:
        place, depth = place["f:a"], depth + 1
    assert depth == 62


@pytest.mark.parametrize("text", [deep(2000)[:-1], deep(2000, '"'), "{", ""])
def test_read_json_is_an_error_of_values_when_it_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"end|Expecting"):
        read_json(text)
