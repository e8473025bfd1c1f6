"""Which static graph computes the next pass: against every choice that there is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import BadInput
from genai_runtime.htp.graph_sizes import GraphSizes

GRIDS = st.builds(
    lambda ars, cls: sorted(itertools.product(ars, cls)),
    st.sets(st.sampled_from([1, 4, 32]), min_size=1),
    st.sets(st.sampled_from([48, 64, 128]), min_size=1),
)
"""Each AR at each CL, as containers have them."""
LENGTHS = st.integers(0, 127)


@given(GRIDS, LENGTHS, st.integers(1, 40))
def test_of_tree_returns_the_smallest_graph_that_takes_all_when_there_is_one(
    grid: list[tuple[int, int]], length: int, count: int
) -> None:
    fitting = [(cl, ar) for ar, cl in grid if count <= ar and length + ar <= cl]
    if not fitting:
        with pytest.raises(BadInput, match=f"no graph takes a tree of {count} tokens"):
            GraphSizes(grid).of_tree(length, count)
    else:
        assert GraphSizes(grid).of_tree(length, count)[::-1] == min(fitting)


@given(GRIDS, LENGTHS, st.integers(1, 127))
def test_of_chain_returns_a_graph_behind_the_cache_when_any_fits(
    grid: list[tuple[int, int]], length: int, wanted: int
) -> None:
    ar, cl = GraphSizes(grid).of_chain(length, wanted)
    assert (ar, cl) in grid
    fitting = [size for size in grid if length + size[0] <= size[1]]
    assert not fitting or (ar, cl) in fitting
    whole = [(c, a) for a, c in fitting if a >= wanted]
    if whole:  # one pass is enough, in a context that is not longer than that needs
        assert cl <= min(whole)[0]


def test_of_chain_takes_the_least_ar_of_the_longest_context_when_the_cache_is_nearly_full() -> None:
    sizes = GraphSizes([(32, 128), (8, 128), (8, 64)])
    assert sizes.longest == 128
    assert sizes.of_chain(126, 2) == (8, 128)
    assert sizes.of_chain(0, 40) == (8, 64)
    assert sizes.of_chain(0, 65) == (32, 128)
