"""Reasons that a person can act on."""

from __future__ import annotations

from dataclasses import replace

from genai_planner.explain import KeyParts, nearest, why_it_runs

BASE = KeyParts(
    {"graph": {"ar": 1, "cl": 256}, "gaps": "Error", "chip": {"soc_model": 69}},
    {"model": {"a.onnx": "1" * 64, "weights/x": "2" * 64}, "encodings": {"m.encodings": "3" * 64}},
    {"onnx": "1.2", "numpy": "2.0"},
)


def changed(**more: object) -> KeyParts:
    return replace(BASE, **more)  # type: ignore[arg-type]


def test_config_field_is_named_with_both_values() -> None:
    now = changed(config={**BASE.config, "chip": {"soc_model": 57}})
    assert why_it_runs(now, [BASE]) == "chip.soc_model is 57, not 69"


def test_library_is_named_with_both_versions() -> None:
    now = changed(versions={"onnx": "1.3", "numpy": "2.0"})
    assert why_it_runs(now, [BASE]) == "onnx is 1.3, not 1.2"


def test_changed_encodings_are_called_so() -> None:
    now = changed(inputs={**BASE.inputs, "encodings": {"m.encodings": "4" * 64}})
    assert why_it_runs(now, [BASE]) == "the encodings changed (m.encodings)"


def test_further_and_missing_files_count_as_changes() -> None:
    now = changed(inputs={**BASE.inputs, "model": {"a.onnx": "1" * 64, "new": "5" * 64}})
    assert why_it_runs(now, [BASE]) == "the graph or its weights changed (new, weights/x)"


def test_another_graph_is_new_not_changed() -> None:
    now = changed(config={**BASE.config, "graph": {"ar": 64, "cl": 256}})
    assert why_it_runs(now, [BASE]) == "new graph: graph.ar is 64, not 1"


def test_same_parts_mean_changed_code() -> None:
    assert "code changed" in why_it_runs(BASE, [BASE])


def test_empty_store_and_damaged_entries_are_told_apart() -> None:
    assert why_it_runs(BASE, []) == "nothing like it is in the store"
    assert why_it_runs(BASE, [BASE], miss="blob 12ab is missing") == "blob 12ab is missing"


def test_nearest_is_the_one_of_the_same_graph() -> None:
    other = changed(config={**BASE.config, "graph": {"ar": 8, "cl": 256}})
    older = changed(inputs={**BASE.inputs, "encodings": {"m.encodings": "9" * 64}})
    assert nearest(BASE, [other, older]) is older
    assert nearest(BASE, []) is None


def test_long_lists_are_cut() -> None:
    now = changed(
        config={"graph": {"ar": 1, "cl": 256}, "gaps": "Float", "chip": {"soc_model": 57}},
        versions={"onnx": "1.3", "numpy": "2.1"},
    )
    assert why_it_runs(now, [BASE]).endswith("and 1 more differences")


def test_first_entry_of_a_mapping_is_the_only_difference() -> None:
    empty = changed(config={"options": {}})
    assert why_it_runs(changed(config={"options": {"x": "1"}}), [empty]) == (
        "options.x is 1, not absent"
    )
