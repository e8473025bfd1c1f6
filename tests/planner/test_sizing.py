"""Estimates: on the large side of what was measured, and in proportion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest, Gaps
from genai_planner.expand.build import expand
from genai_planner.plan import FileRef, Plan
from genai_planner.shape import shape_from_config
from genai_planner.sizing import binary_sizes, bytes_text, demand, fidelity_demand
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

CONFIG = {
    "num_hidden_layers": 1,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
}


def layer(bits: int | None, gaps: Gaps = Gaps.ERROR, copies: int = 1) -> int:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    return binary_sizes(shape, bits, gaps=gaps, copies=copies).layers[0]


def test_layer_of_a_3b_model_is_as_large_as_was_measured() -> None:
    # 51.7 MB: one such layer, w4, two graphs with shared weights, compiled for SM8750.
    assert layer(4) == pytest.approx(51.7e6, rel=0.02)


def test_sizes_follow_bits_and_copies() -> None:
    assert layer(8) == pytest.approx(2 * layer(4), rel=1e-6)
    assert layer(None, Gaps.FLOAT) == pytest.approx(4 * layer(4), rel=1e-6)
    assert layer(None, Gaps.CALIBRATE) == layer(8)
    assert layer(4, copies=3) == pytest.approx(3 * layer(4), rel=1e-6)


def test_lm_head_never_has_less_than_a_byte_a_weight() -> None:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    sizes = binary_sizes(shape, 4, gaps=Gaps.ERROR)
    assert sizes.head > 128256 * 3072
    assert "8 in lm_head" in sizes.assumed


def test_compiling_a_layer_of_a_3b_model_needs_what_was_measured() -> None:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    need = demand("compile-htp", 3 * shape.layers[0]).memory_bytes
    assert 2.3e9 < need < 7e9  # 2.3 GB were measured for three layers


def test_streaming_holds_the_largest_group_only() -> None:
    whole, streamed = demand("ingest", 10**9), demand("ingest", 10**9, largest=10**7)
    assert streamed.memory_bytes < whole.memory_bytes / 10
    assert streamed.seconds == whole.seconds


MIB = 1 << 20
HALF_B_WIDTHS = {
    "num_hidden_layers": 4, "hidden_size": 896, "intermediate_size": 4864, "vocab_size": 32000,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
WIDE = {
    "num_hidden_layers": 2, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
EIGHT_B = {**CONFIG, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336,
           "num_attention_heads": 32, "tie_word_embeddings": False}  # fmt: skip


def cpu_plan(config: dict[str, Any], precision: str, *, encodings: bool = True) -> Plan:
    """The tasks of a cpu build whose text is given."""
    spec = BuildSpec.model_validate(
        {
            "model": {"source": "m"},
            "targets": ["cpu"],
            "quantization": {"gaps": "Float", "cpuPrecision": precision},
        }
    )
    shape = shape_from_config(config)
    assert shape is not None
    roles = ["model.onnx", "config.json", "tokens.npy", *["model.encodings"] * encodings]
    source = Source({role: FileRef(Digest("0" * 64), 1) for role in roles}, config, 4)
    targets = parse_targets(["cpu"])
    return expand(spec, targets=targets, sources={MODEL: source}, shapes={MODEL: shape})


@pytest.mark.parametrize(
    ("config", "precision", "measured"),
    [
        # Peaks of `genai build`, MiB, with mapped weights; wide ones of its last convert.
        (HALF_B_WIDTHS, "Int8", {"ingest": 487, "convert": 136, "compile": 224, "fidelity": 855,
                                 "package": 213}),
        (HALF_B_WIDTHS, "Float", {"ingest": 487, "convert": 198, "compile": 540, "fidelity": 800,
                                  "package": 546}),
        (WIDE, "Int4", {"ingest": 2281, "convert": 304, "compile": 1119, "fidelity": 3352,
                        "package": 579}),
        (WIDE, "Float", {"ingest": 2281, "convert": 1096, "compile": 2581, "fidelity": 3288}),
    ],
)  # fmt: skip
def test_demand_is_what_was_measured_with_a_margin_when_text_is_given(
    config: dict[str, Any], precision: str, measured: dict[str, int]
) -> None:
    plan = cpu_plan(config, precision)
    for operation, peak in measured.items():
        tasks = [task for task in plan.tasks if task.operation == operation]
        need = max(task.demand.memory_bytes for task in tasks)
        assert peak * MIB <= need, operation
        # The base, and what a kind of linear needs more than others.
        assert need <= (1.5 * peak + 1200) * MIB, operation


@pytest.mark.parametrize(
    ("encodings", "ingest", "fidelity"), [(True, 4.25, 6.09), (False, 4.25, 2.44)]
)
def test_an_8b_model_asks_for_gigabytes_not_tens_of_them(
    encodings: bool, ingest: float, fidelity: float
) -> None:
    """Measured: two layers of its widths, whose groups are all that the others would be."""
    plan = cpu_plan(EIGHT_B, "Int4" if encodings else "Float", encodings=encodings)
    need = {task.operation: task.demand.memory_bytes / 2**30 for task in plan.tasks}
    assert ingest <= need["ingest"] <= 1.5 * ingest
    assert need["convert"] < 3.5
    if encodings:
        assert fidelity <= need["fidelity"] <= 1.5 * fidelity
        assert max(need.values()) < 8
    else:
        # A float model is 30 GiB in ONNX Runtime, whatever its yardstick takes.
        assert 30 <= need["fidelity"] <= 36


def test_fidelity_holds_the_whole_float_model_when_it_writes_the_text() -> None:
    shape = shape_from_config(EIGHT_B)
    assert shape is not None
    given, written = (
        fidelity_demand(shape, session=10**9, simulated=True, text_given=text).memory_bytes
        for text in (True, False)
    )
    assert given < 8 << 30
    assert written > 4 * shape.parameters
    small = replace(shape, layers=(10**6,), embedding=10**6, head=10**6, vocab_size=1000)
    assert fidelity_demand(
        small, session=10**6, simulated=True, text_given=True
    ).memory_bytes < 310 * MIB  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "text"), [([1.05e9, 87e7], "1.05, 0.87 GB"), ([81e4], "0.81 MB")]
)
def test_sizes_are_readable(sizes: list[float], text: str) -> None:
    assert bytes_text(map(int, sizes)) == text
