"""Names of graphs read back, and combinations of AR and CL that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import InvalidSpec
from genai_core.graphs import (
    check_graph,
    check_htp_graphs,
    check_native_kv,
    container_name,
    graph_name,
    parse_name,
    split_name,
)

sizes = st.integers(1, 100000)


@given(ar=sizes, cl=sizes, count=st.integers(1, 99), data=st.data())
def test_parse_name_reads_what_the_names_say(
    ar: int, cl: int, count: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(1, count))
    whole = parse_name(graph_name(ar, cl))
    assert (whole.ar, whole.cl, whole.index, whole.count, whole.role) == (ar, cl, 0, 0, "")
    part = parse_name(split_name(ar, cl, index=index, count=count))
    assert (part.ar, part.cl, part.index, part.count) == (ar, cl, index, count)
    named = parse_name(container_name(ar, cl, index=index, count=count, token_ar=1))
    assert named.role == ("token" if ar == 1 else "prompt")
    assert (named.index, named.count) == (index, count)


def test_names_are_those_that_genie_reads() -> None:
    assert graph_name(32, 256) == "ar32_cl256"
    assert container_name(128, 4096, index=1, count=5, token_ar=1) == "prompt_ar128_cl4096_1_of_5"
    assert container_name(1, 4096, index=1, count=5, token_ar=1) == "token_ar1_cl4096_1_of_5"


@pytest.mark.parametrize(
    "name", ["", "ar0_cl4", "ar1", "ar1_cl4_", "ar1_cl4_3_of_2", "xar1_cl4", "ar1_cl4_0_of_2"]
)
def test_parse_name_refuses_other_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|part"):
        parse_name(name)


def test_check_graph_refuses_more_tokens_than_context() -> None:
    check_graph(256, 256)
    with pytest.raises(InvalidSpec, match="AR 257 is larger than CL 256"):
        check_graph(257, 256)


def test_check_htp_graphs_refuses_short_contexts_and_warns_below_four_times() -> None:
    assert check_htp_graphs([1, 32], [128, 256]) == ()
    (warning,) = check_htp_graphs([1, 32], [256, 65])
    assert "CL 65" in warning
    with pytest.raises(InvalidSpec, match=r"at most twice the largest AR 32.*more than 64 \(it is"):
        check_htp_graphs([1, 32], [64])
    assert len(check_htp_graphs([1, 32], [65])) == 1, "what the refusal advises is taken"
    with pytest.raises(InvalidSpec, match="AR 32 is larger than CL 16"):
        check_htp_graphs([1, 32], [16, 256])


def test_check_native_kv_names_the_allowed_ars() -> None:
    check_native_kv([32, 128])
    with pytest.raises(InvalidSpec, match="AR 1; use ARs out of 32, 64, 128, 256"):
        check_native_kv([1, 128])
