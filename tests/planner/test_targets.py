"""Targets as users write them."""

from __future__ import annotations

import pytest

from genai_core.errors import InvalidSpec, UnknownTarget
from genai_core.names import Backend
from genai_planner.targets import parse_target, parse_targets


@pytest.mark.parametrize(
    "text", ["sm8750", "SM8750", "chipset:SM8750", "dsp_arch:v79;soc_model:69", " sm8750 "]
)
def test_all_forms_of_a_chip_are_one_target(text: str) -> None:
    found = parse_target(text)
    assert (found.name, found.backend) == ("sm8750", Backend.HTP)
    assert found.chip is not None
    assert (found.chip.soc_model, found.chip.dsp_arch) == (69, 79)


def test_cpu_has_no_chip() -> None:
    found = parse_target("CPU")
    assert (found.name, found.backend, found.chip) == ("cpu", Backend.CPU, None)


@pytest.mark.parametrize(
    ("text", "near"), [("sm8751", "sm8750"), ("cpus", "cpu"), ("chipset:SM8651", "SM8650")]
)
def test_unknown_target_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownTarget, match=near):
        parse_target(text)


@pytest.mark.parametrize("texts", [["cpu", "CPU"], ["sm8750", "chipset:SM8750"]])
def test_target_twice_is_refused(texts: list[str]) -> None:
    with pytest.raises(InvalidSpec, match=r"twice|mean the same"):
        parse_targets(texts)


def test_order_is_kept() -> None:
    assert [t.name for t in parse_targets(["sm8650", "cpu", "sm8750"])] == [
        "sm8650",
        "cpu",
        "sm8750",
    ]
