"""What the provider's log says of nodes that it cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import UnsupportedOperator
from genai_runtime.htp.vendor import qnn
from genai_stages.backends.htp import dlc
from genai_stages.backends.htp.export_child import fallen_nodes

REFUSED = (
    "[W:onnxruntime:, qnn_model_wrapper.cc:565 CreateQnnNode] QNN.backendValidateOpConfig() failed "
    "for node `Gemm:q` of type `FullyConnected` with error code 3110\n"
)
REPORT = (
    "[W:onnxruntime] Unsupported nodes in QNN EP: { name: /mlp/Add, type: Add }, "
    "{ name: x, type: Mul }\n[W] Unsupported nodes in QNN EP: { name: partition_1, type: Fused }\n"
)


def test_the_first_report_counts_and_without_one_what_was_refused() -> None:
    assert fallen_nodes(REFUSED + REPORT) == [("/mlp/Add", "Add"), ("x", "Mul")]
    assert fallen_nodes(REFUSED * 2) == [("Gemm:q", "FullyConnected")]
    assert fallen_nodes("[E:onnxruntime] Failed to create HTP power config id.\n") == []


@pytest.mark.qnn
@pytest.mark.skipif(bool(qnn.why_unavailable()), reason=f"NOT CONVERTED: {qnn.why_unavailable()}")
def test_a_graph_of_which_nothing_runs_names_a_node(tmp_path: Path) -> None:
    """Channels with zero points: the provider takes no node, and lists none."""
    constants: dict[str, np.ndarray] = {
        "scale": np.array(2e-4, np.float32),
        "zero": np.array(32768, np.uint16),
        "weight": np.arange(2048, dtype=np.uint8).reshape(32, 64),
        "weight_scale": np.full(32, 0.01, np.float32),
        "weight_zero": np.full(32, 120, np.uint8),
    }
    pair = ["scale", "zero"]
    weight = ["weight", "weight_scale", "weight_zero"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", *pair], ["x_f"], name="x_dq"),
        helper.make_node("DequantizeLinear", weight, ["weight_f"], name="weight_dq", axis=0),
        helper.make_node("Gemm", ["x_f", "weight_f"], ["product"], name="/q/MatMul", transB=1),
        helper.make_node("QuantizeLinear", ["product", *pair], ["y"], name="y_q"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT16, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.UINT16, [8, 32])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOperator, match="cannot run on the Hexagon") as caught:
        dlc.convert(tmp_path / "m.onnx", "g", tmp_path / "g.dlc", scratch=tmp_path)
    assert caught.value.where == "Gemm product"
    assert "encodings" in caught.value.remedy
