"""The kept source graph in float32, and a part of it between two tensors.

A source that computes in 16 bit floats is widened: what a build is held against has the source's
weights and no rounding of its own, as AIMET simulates it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from genai_stages.ingest.output.keep_source import SOURCE_FILE

_HALF = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_FLOAT = onnx.TensorProto.FLOAT


def read_kept(core: Path) -> onnx.ModelProto:
    """The source that ingest kept, its 16 bit floats widened; weights stay outside."""
    proto = onnx.ModelProto()
    proto.ParseFromString((core / SOURCE_FILE).read_bytes())
    _widen(proto.graph, core)
    return proto


def _widen(graph: onnx.GraphProto, core: Path) -> None:
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = _FLOAT
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type in _HALF:
            _widen_tensor(tensor, core)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g, core)
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in _HALF:
                _widen_tensor(attribute.t, core)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALF:
                attribute.i = _FLOAT


def _widen_tensor(tensor: onnx.TensorProto, core: Path) -> None:
    array = numpy_helper.to_array(tensor, str(core)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def part_of(
    proto: onnx.ModelProto,
    start: str | None,
    outputs: Sequence[str],
    *,
    element: Callable[[str], int] | None = None,
) -> onnx.ModelProto:
    """What computes some tensors from another, or from the inputs alone.

    Args:
        proto: The whole graph; left as it is.
        start: The tensor that becomes an input, None = token ids are.
        outputs: In the order wanted.
        element: Element type of `start` and the outputs; None = float, and outputs of the whole
            graph as they are.
    """
    wanted = set(outputs)
    kept: list[onnx.NodeProto] = []
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in reads(node) if name and name != start)
    made = {name for node in kept for name in node.output}
    typed = {} if element else {value.name: value for value in proto.graph.output}

    def described(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element(name) if element else _FLOAT, None)

    graph = helper.make_graph(
        kept[::-1],
        "part",
        [value for value in proto.graph.input if value.name in wanted - made],
        [typed.get(name) or described(name) for name in outputs],
        [tensor for tensor in proto.graph.initializer if tensor.name in wanted],
    )
    if start is not None:
        graph.input.append(described(start))
    return helper.make_model(
        graph,
        opset_imports=proto.opset_import,
        ir_version=proto.ir_version,
        functions=proto.functions,
    )


def reads(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node needs, those of its branches included."""
    names = list(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                names += reads(inner)
            names += [output.name for output in attribute.g.output]
    return names


def constant_names(proto: onnx.ModelProto) -> set[str]:
    """Tensors that depend on initializers alone: weights as the source has them."""
    known = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        needed = [name for name in reads(node) if name]
        if needed and known.issuperset(needed):
            known.update(node.output)
    return known


def element_types(proto: onnx.ModelProto, names: Collection[str]) -> dict[str, int]:
    """Element types of tensors, as far as ONNX can infer them."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=False, data_prop=False)
    values: Iterable[onnx.ValueInfoProto] = [
        *inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output
    ]  # fmt: skip
    return {value.name: value.type.tensor_type.elem_type for value in values if value.name in names}


def locate(proto: onnx.ModelProto, folders: Sequence[Path]) -> Path:
    """Let a graph refer to its data where it really lies; the folder that all is below.

    Inputs of a stage may be links into a store, and ONNX Runtime refuses data that a link leads out
    of the model's folder.

    Args:
        proto: Changed in place.
        folders: Where data may lie, the first that has the file counts.
    """
    entries = [
        entry
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    ]
    real: dict[str, Path] = {}
    for entry in entries:
        if entry.value not in real:
            paths = [folder / entry.value for folder in folders]
            found = next((path for path in paths if path.exists()), paths[0])
            real[entry.value] = found.resolve()
    if not real:
        return folders[0]
    common = Path(os.path.commonpath([path.parent for path in real.values()]))
    for entry in entries:
        entry.value = real[entry.value].relative_to(common).as_posix()
    return common
