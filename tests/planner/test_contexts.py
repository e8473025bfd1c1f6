"""Which graphs follow from what is written and from what the model can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import Graphs
from genai_planner.expand.grid import GraphGrid, derive_graphs
from genai_planner.shape import shape_from_config


def grid(limit: int | None, *, htp: bool = True, **graphs: Any) -> GraphGrid:
    found = shape_from_config({"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16})
    assert found is not None
    return derive_graphs(
        Graphs.model_validate(graphs), replace(found, max_positions=limit), htp=htp
    )


def lengths(found: GraphGrid) -> list[int]:
    return sorted({graph.cl for graph in found.graphs})


def test_default_length_is_4096_or_what_the_model_can() -> None:
    assert lengths(grid(131072)) == [4096]
    assert lengths(grid(None)) == [4096]
    assert lengths(grid(2048)) == [2048]
    assert "the model's own limit" in grid(2048).notes[0]


def test_multi_context_stands_for_five_lengths_as_far_as_the_model_can() -> None:
    assert lengths(grid(8192, multiContext=True)) == [512, 1024, 2048, 3072, 4096]
    assert lengths(grid(2048, multiContext=True)) == [512, 1024, 2048]
    assert "2048 positions" in grid(2048, multiContext=True).notes[0]


def test_length_beyond_the_model_is_warned_about() -> None:
    (warning,) = grid(1024, contextLengths=[2048]).warnings
    assert "1024 positions" in warning


def test_every_pair_is_a_graph_in_a_fixed_order() -> None:
    found = grid(None, autoRegression=[32, 1], contextLengths=[512, 256])
    assert [(g.ar, g.cl) for g in found.graphs] == [(1, 256), (32, 256), (1, 512), (32, 512)]
    assert found.context_length == 512


def test_cpu_ignores_default_ars_but_not_wrong_ones() -> None:
    assert grid(64, htp=False).context_length == 64
    with pytest.raises(InvalidSpec, match="AR 128 is larger"):
        grid(64, htp=False, autoRegression=[128])


@pytest.mark.parametrize(
    ("lengths", "native", "ars"),
    [
        ([4096], False, [1, 128]),
        ([257, 4096], False, [1, 128]),
        ([256], False, [1, 64]),
        ([512, 200], False, [1, 32]),
        ([64], False, [1, 16]),
        ([4], False, [1]),
        ([4096], True, [32, 128]),
        ([256], True, [32, 64]),
        ([128], True, [32]),
    ],
)
def test_derive_graphs_takes_ars_that_fit_when_none_are_given(
    lengths: list[int], native: bool, ars: list[int]
) -> None:
    shape = shape_from_config({"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16})
    assert shape is not None
    none_given: list[dict[str, list[int]]] = [{}, {"autoRegression": []}]
    for given in none_given:
        graphs = Graphs.model_validate({"contextLengths": lengths, **given})
        found = derive_graphs(graphs, shape, htp=True, native_kv=native)
        assert sorted({graph.ar for graph in found.graphs}) == ars
        usual = [32, 128] if native else [1, 128]
        assert ("is too many" in found.notes[1]) == (ars != usual)
        assert bool(found.warnings) == (ars == usual and min(lengths) < 512)


def test_derive_graphs_refuses_ars_that_do_not_fit_when_they_are_given() -> None:
    with pytest.raises(InvalidSpec, match="CL 256 is at most twice the largest AR 128"):
        grid(None, autoRegression=[1, 128], contextLengths=[256])
