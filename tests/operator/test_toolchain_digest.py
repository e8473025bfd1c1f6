"""What makes a toolchain another one: libraries, or what the operator's own operations write."""

from __future__ import annotations

import dataclasses

import pytest

from genai_core.names import Backend
from genai_core.operations import OPERATIONS
from genai_operator.targets import build_targets
from genai_operator.targets.build_targets import BuildTarget, needed_libraries, toolchain_digest
from genai_planner.targets import Target


def target(image: str = "r@sha256:1", **versions: str) -> BuildTarget:
    known = dict.fromkeys(needed_libraries(Backend.CPU), "1.0")
    return BuildTarget(Target("cpu", Backend.CPU, None, {}), image, known | versions)


def test_an_image_is_none_but_a_library_is() -> None:
    assert toolchain_digest([target("other@sha256:2")]) == toolchain_digest([target()])
    assert toolchain_digest([target(numpy="2.0")]) != toolchain_digest([target()])


def test_an_operator_whose_operations_changed_has_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = toolchain_digest([target()])
    newer = tuple(
        dataclasses.replace(row, code_version=row.code_version + 1)
        if row.backend is Backend.HTP
        else row
        for row in OPERATIONS
    )
    monkeypatch.setattr(build_targets, "OPERATIONS", newer)
    assert toolchain_digest([target()]) == before, "nothing that this target's builds run"
    newer = tuple(dataclasses.replace(row, code_version=row.code_version + 1) for row in OPERATIONS)
    monkeypatch.setattr(build_targets, "OPERATIONS", newer)
    assert toolchain_digest([target()]) != before
