"""YAML to values: against JSON, which YAML contains, and against a mutated text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import InvalidSpec
from genai_core.kinds.documents.yaml_documents import load_documents

TEXT = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" \n\t"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def only(text: str) -> object:
    documents = load_documents(text, name="f")
    return documents[0].value if documents else None


@given(VALUES)
def test_json_is_read_as_json_reads_it(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1)
    found = only(text)
    assert found == value
    assert json.dumps(found) == json.dumps(value), "and of the same types"


@given(st.dictionaries(TEXT.filter(bool), VALUES, min_size=1, max_size=6))
def test_every_field_knows_its_line(value: dict[str, object]) -> None:
    text = "\n".join(
        f"{json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in value.items()
    )
    (document,) = load_documents(text, name="f")
    for number, name in enumerate(value, 1):
        assert document.line((name,)) == number
        assert document.line((name, "not", "there")) == number


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_place(data: bytes) -> None:
    said = "f:1: it was read"
    try:
        load_documents(data, name="f")
    except InvalidSpec as error:
        said = str(error)
    assert said.split(":")[0] == "f"
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("-7", -7), ("0x1F", 31), ("0o17", 15), ("0b101", 5), ("1_000", 1000),
        ("010", "010"), ("1:30", "1:30"), ("08", "08"), ("+3", 3),
        ("1e-3", 0.001), ("1.5", 1.5), (".5", 0.5), ("2.", 2.0), (".inf", float("inf")),
        ("1e", "1e"), ("1.2.3", "1.2.3"), (".", "."), ("-", [None]),
        ("yes", True), ("Off", False), ("TRUE", True), ("y", "y"), ("tRue", "tRue"),
        ("~", None), ("null", None), ("Null", None), ("nil", "nil"),
        ("2024-01-01", "2024-01-01"), ("'12'", "12"), ('"yes"', "yes"),
        ("|\n a\n b\n", "a\nb\n"), ("!!str 12", "12"), ("!!int '12'", 12),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    found = only(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["!!int x", "!!timestamp 2024-01-01", "!mine x", "!!set {a}", "? [a]\n: b", "<<: 3"]
)
def test_what_has_no_meaning_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^f:1"):
        load_documents(text, name="f")


def test_depth_is_bounded() -> None:
    with pytest.raises(InvalidSpec, match="nested too deeply"):
        load_documents("[" * 5000 + "]" * 5000, name="f")


def test_size_is_bounded() -> None:
    with pytest.raises(InvalidSpec, match="more than an apiserver takes"):
        load_documents("#" * (2 << 20), name="f")
