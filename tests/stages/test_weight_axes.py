"""Scales lie along the axis of output channels, whatever layout the source's weight has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadEncodings
from genai_stages.ingest.admission.weight_axes import computed_names, weight_axes
from genai_stages.ingest.model_files import own_entries, read_beside
from genai_stages.ingest.source.source_model import read_source
from genai_stages.testing_sources import write_source

SQUARE: dict[str, Any] = {"heads": 4, "head_dim": 8, "hidden": 32}
"""The query's projection is 32 x 32: a count of scales alone cannot tell its sides apart."""
OUTPUT_AXIS = {"matmul": 1, "gemm": 0, "transposed": 0, "conv": 0}


def entry(name: str, axis: int | None, count: int, **more: object) -> dict[str, Any]:
    """An entry of version 2.0.0."""
    return {"name": name, "axis": axis, "output_dtype": "int8", "y_scale": [0.01] * count, **more}


def checked(folder: Path, entries: list[dict[str, Any]], version: str = "2.0.0") -> int:
    """Ingest's check of encodings that are laid beside a source."""
    section = {"encodings": entries}
    if version == "1.0.0":
        section = {"activation_encodings": [], "param_encodings": entries}
    path = folder / "model.encodings"
    path.write_text(json.dumps({"version": version, **section}), encoding="utf-8")
    encodings = read_beside(folder)
    assert encodings is not None
    return own_entries(encodings, read_source(folder / "model.onnx", {}))


@pytest.mark.parametrize("projection", OUTPUT_AXIS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_weight_axes_finds_outputs_when_the_layout_differs(
    tmp_path: Path, projection: str, tied: bool, half: bool
) -> None:
    write_source(tmp_path, projection=projection, tied=tied, half=half, **SQUARE)
    found = weight_axes(read_source(tmp_path / "model.onnx", {}).model.graph)
    output = OUTPUT_AXIS[projection]
    for name in ("0.q.weight", "1.down.weight", "0.o.weight"):
        assert found[name].outputs == {output}, name
        assert found[name].inputs == {1 - output}, name
    assert found["embed"].outputs == {0}


@pytest.mark.parametrize("turned", [False, True])
def test_weight_axes_finds_outputs_when_the_weight_comes_first(turned: bool) -> None:
    """A product written as W x, and a Gemm whose first factor is the turned weight."""
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    if turned:
        node = helper.make_node("Gemm", ["w", "x"], ["y"], transA=1)
    weights = [numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = weight_axes(ir.from_proto(model).graph)["w"]
    assert (found.outputs, found.inputs) == ((({1}, {0})) if turned else ({0}, {1}))


@pytest.mark.parametrize("projection", OUTPUT_AXIS)
@pytest.mark.parametrize("negative", [False, True])
def test_ingest_takes_scales_when_the_axis_counts_outputs(
    tmp_path: Path, projection: str, negative: bool
) -> None:
    write_source(tmp_path, projection=projection, **SQUARE)
    rank = 4 if projection == "conv" else 2
    axis = OUTPUT_AXIS[projection] - (rank if negative else 0)
    entries = [entry("0.q.weight", axis, 32), entry("0.down.weight", axis, 32)]
    assert checked(tmp_path, entries) == 2


@pytest.mark.parametrize("projection", OUTPUT_AXIS)
@pytest.mark.parametrize("negative", [False, True])
def test_ingest_refuses_scales_when_the_axis_counts_inputs(
    tmp_path: Path, projection: str, negative: bool
) -> None:
    write_source(tmp_path, projection=projection, **SQUARE)
    right = OUTPUT_AXIS[projection]
    wrong = 1 - right - ((4 if projection == "conv" else 2) if negative else 0)
    with pytest.raises(BadEncodings, match=f"axis {wrong} counts the input channels") as caught:
        checked(tmp_path, [entry("0.q.weight", wrong, 32)])
    assert caught.value.where == "model.encodings: 0.q.weight"
    assert f"output channels: axis {right}" in caught.value.message


def test_ingest_refuses_an_axis_when_the_weight_has_no_such_axis(tmp_path: Path) -> None:
    write_source(tmp_path, **SQUARE)
    with pytest.raises(BadEncodings, match=r"axis 2 for a weight of shape \[32, 32\]"):
        checked(tmp_path, [entry("0.q.weight", 2, 32)])


def test_ingest_refuses_scales_of_an_embedding_when_they_count_its_channels(
    tmp_path: Path,
) -> None:
    write_source(tmp_path, tied=True)
    assert checked(tmp_path, [entry("embed", 0, 64)]) == 1
    with pytest.raises(BadEncodings, match="axis 1 counts the input channels of"):
        checked(tmp_path, [entry("embed", 1, 32)])


@pytest.mark.parametrize("projection", OUTPUT_AXIS)
def test_ingest_names_both_numbers_when_a_count_without_axis_does_not_fit(
    tmp_path: Path, projection: str
) -> None:
    write_source(tmp_path, projection=projection)

    def channels(count: int) -> int:
        form = {"enc_type": "PER_CHANNEL", "bw": 8, "dtype": "INT", "is_sym": True}
        scales = {"scale": [0.01] * count, "offset": [-128] * count}
        return checked(tmp_path, [{"name": "0.up.weight", **form, **scales}], "1.0.0")

    assert channels(48) == 1
    with pytest.raises(BadEncodings, match=r"32 scales, as many as it has input .* for 48 output"):
        channels(32)
    with pytest.raises(BadEncodings, match="40 scales, for 48 output channels"):
        channels(40)


@pytest.mark.parametrize(("axis", "fits"), [(0, True), (1, False), (-2, True), (-1, False)])
def test_ingest_refuses_blocks_when_they_divide_output_channels(
    tmp_path: Path, axis: int, fits: bool
) -> None:
    """A MatMul's weight is [inputs, outputs]: blocks run along axis 0."""
    write_source(tmp_path, **SQUARE)
    nested = np.full((4, 32) if axis in (0, -2) else (32, 4), 0.01).tolist()
    blocks = {**entry("0.q.weight", axis, 1), "y_scale": nested, "block_size": 8}
    if fits:
        assert checked(tmp_path, [blocks]) == 1
        with pytest.raises(BadEncodings, match="128 scales of blocks of 4, for 32 output"):
            checked(tmp_path, [{**blocks, "block_size": 4}])
        return
    with pytest.raises(BadEncodings, match=f"axis {axis} counts the output channels"):
        checked(tmp_path, [blocks])


def test_ingest_refuses_several_scales_when_the_tensor_is_an_activation(tmp_path: Path) -> None:
    write_source(tmp_path)
    graph = read_source(tmp_path / "model.onnx", {}).model.graph
    name = next(str(node.outputs[0].name) for node in graph if node.op_type == "Sigmoid")
    assert name in computed_names(graph)
    with pytest.raises(BadEncodings, match="48 scales for an activation, which has one"):
        checked(tmp_path, [entry(name, 2, 48)])
