"""Compile options: what is read, what is refused, and with which words."""

from __future__ import annotations

import pytest

from genai_core.compile_options import GraphOptions, merged, parse
from genai_core.errors import InvalidSpec


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, GraphOptions()),
        ({"graphs.vtcm_size_in_mb": "8"}, GraphOptions(vtcm_mb=8)),
        ({"graphs.vtcm_mb": "4", "graphs.O": "3"}, GraphOptions(optimization=3, vtcm_mb=4)),
        ({"graphs.optimization_type": "2.0"}, GraphOptions(optimization=2)),
        ({"graphs.O": "1", "graphs.optimization_type": "1"}, GraphOptions(optimization=1)),
    ],
)
def test_options_in_either_spelling(given: dict[str, str], expected: GraphOptions) -> None:
    assert parse(given) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("graphs.vtcm_size_in_bm", "did you mean graphs.vtcm_size_in_mb?"),
        ("graph.O", "did you mean graphs.optimization_type?"),
        ("vtcm_size_in_mb", "did you mean graphs.vtcm_size_in_mb?"),
        ("graphs.dlbc", "not supported: this route"),
        ("context.weight_sharing_enabled", "write compilation.weightSharing"),
        ("devices.soc_model", "the chip is the target's"),
    ],
)
def test_other_options_are_refused_by_name(name: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse({name: "1"})
    assert words in str(caught.value)
    assert caught.value.where == f"compilation.options.{name}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("graphs.O", "0"),
        ("graphs.O", "4"),
        ("graphs.O", "2.5"),
        ("graphs.O", "nan"),
        ("graphs.vtcm_size_in_mb", "0"),
        ("graphs.vtcm_size_in_mb", "-8"),
        ("graphs.vtcm_size_in_mb", "inf"),
        ("graphs.vtcm_size_in_mb", "eight"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidSpec, match="must be a whole number"):
        parse({name: value})


def test_two_spellings_at_odds_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="given twice, as 2 and 3"):
        parse({"graphs.O": "2", "graphs.optimization_type": "3"})


@pytest.mark.parametrize("own", ["graphs.vtcm_mb", "graphs.vtcm_size_in_mb"])
@pytest.mark.parametrize("default", ["graphs.vtcm_mb", "graphs.vtcm_size_in_mb"])
def test_merged_keeps_the_builds_value_when_a_target_has_it_in_another_spelling(
    own: str, default: str
) -> None:
    both = merged({default: "8", "graphs.O": "3"}, {own: "4"})
    assert parse(both) == GraphOptions(optimization=3, vtcm_mb=4)
