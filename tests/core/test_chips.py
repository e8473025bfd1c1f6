"""Chips by name and number, and what is said about those that do not exist."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core import chips
from genai_core.errors import UnknownTarget


@pytest.mark.parametrize(
    ("name", "soc_model", "dsp_arch"),
    [
        ("sm8550", 43, 73),
        ("sm8650", 57, 75),
        ("sm8750", 69, 79),
        ("sm8850", 87, 81),
        ("sc8380xp", 60, 73),
    ],
)
def test_three_ways_to_write_a_chip(name: str, soc_model: int, dsp_arch: int) -> None:
    chip = chips.parse(name)
    assert (chip.soc_model, chip.dsp_arch) == (soc_model, dsp_arch)
    assert chips.parse(f"chipset:{name.upper()}") == chip
    assert chips.parse(f"dsp_arch:v{dsp_arch};soc_model:{soc_model}") == chip
    assert chips.parse(f" soc_model : {soc_model} ; dsp_arch: V{dsp_arch};") == chip
    assert chips.parse(f"soc_model:{soc_model}") == chip


def test_names_and_numbers_are_unique() -> None:
    assert len({c.name for c in chips.CHIPS}) == len(chips.CHIPS)
    assert len({c.soc_model for c in chips.CHIPS}) == len(chips.CHIPS)
    assert chips.REFERENCE.name == "SM8750"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chipset:BANANA", "no chip named 'BANANA'"),
        ("sm8570", "SM8750"),
        ("chipset:SM8735", "SM8"),
        ("soc_model:70000", "no chip with soc_model 70000"),
        ("soc_model:0", "no chip with soc_model 0"),
        ("dsp_arch:v73;soc_model:69", "SM8750, which has Hexagon v79, not v73"),
        ("dsp_arch:v79", "cannot read"),
        ("chipset:SM8750;soc_model:69", "cannot read"),
        ("soc_model:69;soc_model:69", "cannot read"),
        ("chipset:", "cannot read"),
        ("soc_model:-1", "cannot read"),
        ("dsp_arch:;soc_model:69", "cannot read"),
        ("", "no chip named ''"),
    ],
)
def test_what_is_no_chip_is_bad_input(text: str, words: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        chips.parse(text)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


@given(st.text(alphabet="smSMchipset:;_v0123456789 ", max_size=30))
def test_any_text_is_a_known_chip_or_refused(text: str) -> None:
    with contextlib.suppress(UnknownTarget):
        assert chips.parse(text) in chips.CHIPS
