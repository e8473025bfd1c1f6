"""Cutting a model: every layer once, no part too large, the fewest parts that do."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import Splits
from genai_core.operations import SplitConfig
from genai_planner.expand.splits import MOST_BYTES, balanced, derive_splits
from genai_planner.sizing import BinarySizes

MB = 1_000_000


def sizes(embedding: int, layers: list[int], head: int) -> BinarySizes:
    return BinarySizes(embedding, tuple(layers), head, "8 bits a weight")


def described(splits: tuple[SplitConfig, ...]) -> list[str]:
    return [
        ("E" if s.embedding else "") + "L" * (s.last - s.first) + ("H" if s.lm_head else "")
        for s in splits
    ]


TINY = sizes(1 * MB, [1 * MB] * 6, 1 * MB)


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (1, ["ELLLLLLH"]),
        (2, ["ELLL", "LLLH"]),
        (3, ["E", "LLL", "LLLH"]),
        (4, ["E", "LL", "LL", "LLH"]),
        (7, ["E", "L", "L", "L", "L", "L", "LH"]),
        (8, ["E", "L", "L", "L", "L", "L", "L", "H"]),
    ],
)
def test_given_count_is_cut_as_published_bundles_are(count: int, parts: list[str]) -> None:
    found = derive_splits(Splits(count=count), TINY)
    assert described(found.splits) == parts
    assert [s.index for s in found.splits] == list(range(1, count + 1))
    assert "as given" in found.notes[0]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"count": 2, "embedding": "Apart"}, ["E", "LLLLLLH"]),
        ({"count": 3, "embedding": "Apart", "lmHead": "Apart"}, ["E", "LLLLLL", "H"]),
        ({"count": 3, "embedding": "Joined"}, ["ELL", "LL", "LLH"]),
        ({"count": 2, "lmHead": "Apart"}, ["ELLLLLL", "H"]),
    ],
)
def test_placement_is_obeyed(options: dict[str, object], parts: list[str]) -> None:
    assert described(derive_splits(Splits.model_validate(options), TINY).splits) == parts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 9}, "the maximum is 8"),
        ({"count": 8, "embedding": "Joined"}, "the maximum is 7"),
        ({"count": 7, "embedding": "Joined", "lmHead": "Joined"}, "the maximum is 6"),
        ({"count": 1, "embedding": "Apart"}, "at least 2"),
    ],
)
def test_impossible_count_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        derive_splits(Splits.model_validate(options), TINY)


def test_auto_takes_one_part_where_everything_fits() -> None:
    assert described(derive_splits(Splits(), TINY).splits) == ["ELLLLLLH"]


def test_auto_keeps_every_part_below_two_gigabytes() -> None:
    found = derive_splits(Splits(), sizes(1050 * MB, [224 * MB] * 32, 540 * MB))
    assert max(found.sizes) < MOST_BYTES
    assert len(found.splits) == 5
    assert not found.warnings


def test_part_that_cannot_be_small_enough_is_told() -> None:
    found = derive_splits(Splits(), sizes(3000 * MB, [10 * MB] * 2, 10 * MB))
    assert any("split 1" in w and "3.00 GB" in w for w in found.warnings)


def test_a_part_that_cannot_be_cut_does_not_have_all_others_cut() -> None:
    """A vocabulary of 262,144 as Gemma's: the table alone is above 2 GB."""
    model = sizes(2800 * MB, [430 * MB] * 62, 1400 * MB)
    found = derive_splits(Splits(), model)
    assert described(found.splits)[0] == "E"
    four_fit, head_takes_one = 4, 1
    assert len(found.splits) == 1 + -(-(62 - head_takes_one) // four_fit) + 1
    assert [size >= MOST_BYTES for size in found.sizes] == [True] + [False] * 17
    assert "only what cannot be cut" in found.notes[0]
    joined = derive_splits(Splits.model_validate({"embedding": "Joined"}), model)
    assert described(joined.splits)[0] == "EL"
    assert max(joined.sizes[1:]) < MOST_BYTES


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
    st.data(),
    st.integers(0, 80),
    st.integers(0, 80),
)
def test_balanced_is_as_good_as_trying_everything(
    weights: list[int], data: st.DataObject, first: int, last: int
) -> None:
    parts = data.draw(st.integers(1, len(weights)))
    found = balanced(weights, parts, first=first, last=last)

    def score(cuts: list[tuple[int, int]]) -> tuple[int, int]:
        sums = [sum(weights[a:b]) for a, b in cuts]
        sums[0] += first
        sums[-1] += last
        return max(sums), sum((b - a) ** 2 for a, b in cuts)

    def every() -> list[list[tuple[int, int]]]:
        inner = itertools.combinations(range(1, len(weights)), parts - 1)
        return [list(itertools.pairwise([0, *cut, len(weights)])) for cut in inner]

    assert [i for a, b in found for i in range(a, b)] == list(range(len(weights)))
    assert all(b > a for a, b in found)
    assert score(found)[0] == min(score(cuts)[0] for cuts in every())


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 3000),
    st.lists(st.integers(1, 900), min_size=1, max_size=24),
    st.integers(0, 3000),
)
def test_auto_is_the_least_count_that_fits(embedding: int, layers: list[int], head: int) -> None:
    model = sizes(embedding * MB, [n * MB for n in layers], head * MB)
    found = derive_splits(Splits(), model)
    if max(found.sizes) < MOST_BYTES:
        for fewer in range(1, len(found.splits)):
            assert max(derive_splits(Splits(count=fewer), model).sizes) >= MOST_BYTES
    for split, size in zip(found.splits, found.sizes, strict=True):
        items = split.last - split.first + split.embedding + split.lm_head
        assert size < MOST_BYTES or items == 1, "it could have been cut"
    text = "".join(described(found.splits))
    assert text == "E" + "L" * len(layers) + "H"
    assert sum(found.sizes) == embedding * MB + sum(layers) * MB + head * MB


def test_the_deepest_model_is_cut_in_no_time() -> None:
    model = sizes(1000 * MB, [1900 * MB] * 512, 1000 * MB)
    began = time.process_time()
    found = derive_splits(Splits(), model)
    assert time.process_time() - began < 5
    assert max(found.sizes) < MOST_BYTES
