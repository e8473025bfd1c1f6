"""Compute one node of known inputs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from genai_stages.ingest.source.source_model import Array

_IR_VERSION = 10


class NotComputed(Exception):
    """ONNX Runtime cannot compute a node."""


def run_node(node: onnx.NodeProto, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    """Compute one node.

    Args:
        node: The node; its tensors may have any names.
        arrays: Its inputs, None = left out.
        opset: Of the default domain.

    Returns:
        Its outputs; one without a name is empty.

    Raises:
        NotComputed: ONNX Runtime cannot.
    """
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    names = ["" if array is None else f"i{index}" for index, array in enumerate(arrays)]
    outputs = [f"o{index}" if name else "" for index, name in enumerate(node.output)]
    del plain.input[:], plain.output[:]
    plain.input.extend(names)
    plain.output.extend(outputs)
    feeds = {
        name: np.ascontiguousarray(array).reshape(array.shape)
        for name, array in zip(names, arrays, strict=True)
        if array is not None
    }
    made = [name for name in outputs if name]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in feeds.items()
        ]
        graph = helper.make_graph(
            [plain], "node", inputs, [onnx.ValueInfoProto(name=name) for name in made]
        )
        imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results = dict(zip(made, session.run(made, feeds), strict=True))
    except Exception as error:
        raise NotComputed(str(error)) from error
    return [np.asarray(results[name]) if name else np.zeros(0, np.float32) for name in outputs]
