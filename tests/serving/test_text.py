"""Text as it is streamed: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import example_tokenizer

from genai_serving.text import REPLACEMENT, Detokenizer, StopFinder

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
TOKENIZER = example_tokenizer()


def pieces(tokens: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER.decode)
    shown = [detokenizer.push(token) for token in tokens]
    return [*shown, detokenizer.finish()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2047), max_size=40))
def test_pieces_joined_are_the_text_of_all_tokens(tokens: Sequence[int]) -> None:
    assert "".join(pieces(tokens)) == TOKENIZER.decode(tokens)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="aé€😀日 \n", min_size=1, max_size=20))
def test_no_piece_ever_shows_a_part_of_a_character(text: str) -> None:
    tokens = TOKENIZER.encode(text).tolist()
    shown = pieces(tokens)
    assert "".join(shown) == TOKENIZER.decode(tokens)
    assert not any(REPLACEMENT in piece for piece in shown)


def test_a_character_of_four_tokens_comes_whole_with_the_last() -> None:
    tokens = list(TOKENIZER.encode("😀", special=False))
    assert len(tokens) > 1
    assert pieces(tokens) == [""] * (len(tokens) - 1) + ["😀", ""]


def test_a_cut_character_is_shown_when_the_answer_ends_in_it() -> None:
    tokens = list(TOKENIZER.encode("😀", special=False))[:-1]
    assert "".join(pieces(tokens)) == TOKENIZER.decode(tokens) != ""


@given(
    st.text(alphabet="abc", max_size=25),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 25), max_size=6),
    st.booleans(),
)
def test_stop_finder_shows_what_stands_before_the_first_stop(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    finder = StopFinder(stops, include=include)
    ends = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    shown = "".join(finder.push(text[a:b]) for a, b in pairwise(ends)) + finder.finish()
    # Text is searched as it comes: what ends a prefix counts before what comes later.
    expected, found = text, None
    for end in ends[1:]:
        there = [(text[:end].find(s), -len(s), s) for s in stops if s in text[:end]]
        if there:
            place, _, found = min(there)
            expected = text[: place + (len(found) if include else 0)]
            break
    assert shown == expected
    assert finder.found == found


def test_stop_finder_holds_back_what_may_begin_a_stop() -> None:
    finder = StopFinder(["END"])
    assert [finder.push("xE"), finder.push("N"), finder.push("Qy")] == ["x", "", "ENQy"]
    assert [finder.push("E"), finder.push("ND"), finder.push("more")] == ["", "", ""]
    assert finder.found == "END"
    assert finder.finish() == ""


@pytest.mark.parametrize("stops", [[], [""]])
def test_stop_finder_lets_everything_through_without_a_stop(stops: list[str]) -> None:
    finder = StopFinder(stops)
    assert finder.push("abc") == "abc"
    assert finder.found is None


@pytest.mark.parametrize("piece", ["\ufffd", ""])
def test_tokens_without_a_character_take_bounded_time_each(piece: str) -> None:
    """A client's logit_bias makes an answer of nothing else; the engine decodes for everybody."""
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return "".join(piece if token else "x" for token in tokens)

    made = Detokenizer(decode)
    tokens = [0, *[1] * 3000, 0]
    told = "".join(made.push(token) for token in tokens) + made.finish()
    assert longest < 200
    assert told == "x" + piece * 3000 + "x"
