"""ONNX wrappers by which ONNX Runtime loads the graphs of a context binary in the emulator.

One model a graph, with one EPContext node (domain com.microsoft, documented in ONNX Runtime's
EP-Context design) that points at the binary by a relative name. Everything in it follows from the
binary's metadata.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from genai_runtime.htp.metadata import BinaryMetadata, GraphMetadata, TensorMetadata
from genai_runtime.htp.vendor.qnn import PROVIDER

_TYPES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint32": TensorProto.UINT32,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}


def write(binary: Path, metadata: BinaryMetadata) -> dict[str, Path]:
    """Write `<graph>.onnx` beside a binary for each of its graphs; returns graph -> path.

    The binary must not share weights between graphs: the emulator crashes on one that does.
    """
    made = {}
    for graph in metadata.graphs:
        path = binary.parent / f"{graph.name}.onnx"
        onnx.save(wrapper(graph, binary.name, build_id=metadata.build_id), path)
        made[graph.name] = path
    return made


def wrapper(graph: GraphMetadata, binary: str, *, build_id: str) -> onnx.ModelProto:
    """The model of one graph; `binary` is relative to the model."""

    def info(tensor: TensorMetadata) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor.name, _TYPES[tensor.dtype], tensor.shape)

    node = helper.make_node(
        "EPContext",
        [t.name for t in graph.inputs],
        [t.name for t in graph.outputs],
        name=graph.name,
        domain="com.microsoft",
        embed_mode=0,
        main_context=1,
        ep_cache_context=binary,
        partition_name=graph.name,
        source=PROVIDER,
        ep_sdk_version=build_id,
    )
    return helper.make_model(
        helper.make_graph(
            [node], graph.name, [info(t) for t in graph.inputs], [info(t) for t in graph.outputs]
        ),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
        producer_name="genai-operator",
    )
