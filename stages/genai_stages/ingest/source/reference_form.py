"""The form in which a source is run to compare with it: what it says, computed in float32.

A core graph is float32, so rounding to 16 bits between a source's operators is not reproduced, and
ONNX Runtime's CPU has few operators for bfloat16. In this form every 16 bit float is a float32; the
weights stay where they are and are widened when they are read. Attributes that say how to compute,
not what (rounding of activations to 8 bits, a cache cut to its window), are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper, numpy_helper

_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES = {
    "to", "dtype", "output_dtype", "output_datatype", "softmax_precision", "stash_type",
}  # fmt: skip
_HINTS = {
    "MatMulNBits": "accuracy_level",
    "GroupQueryAttention": "sliding_window_cache",
}
_STORED = ":16bit"
"""Behind the name of a weight as it is stored, where the name itself is the widened one."""


def reference_form(model: onnx.ModelProto, *, stored: bool = True) -> None:
    """Bring a model without its weights into this form, in place.

    Args:
        model: The model.
        stored: Whether weights keep their type, with a Cast behind them, or are called float32.
    """
    _graph(model.graph, stored=stored)
    for function in model.functions:
        _values(function.value_info)
        _nodes(function.node, stored=stored)


def _graph(graph: onnx.GraphProto, *, stored: bool) -> None:
    for values in (graph.input, graph.output, graph.value_info):
        _values(values)
    _nodes(graph.node, stored=stored)
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type not in _HALF:
            continue
        if not tensor.external_data:
            _widen(tensor)
            continue
        if not stored:
            tensor.data_type = TensorProto.FLOAT
            continue
        name = tensor.name
        tensor.name = f"{name}{_STORED}"
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    widened = {cast.output[0] for cast in casts}
    inputs = [value for value in graph.input if value.name not in widened]
    if len(inputs) < len(graph.input):
        # Old files name weights among the inputs, as defaults.
        del graph.input[:]
        graph.input.extend(inputs)
    nodes = [*casts, *(one for node in graph.node for one in _without_norms(node))]
    del graph.node[:]
    graph.node.extend(nodes)


def _values(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _nodes(nodes: Iterable[onnx.NodeProto], *, stored: bool) -> None:
    for node in nodes:
        for attribute in node.attribute:
            match attribute.type:
                case onnx.AttributeProto.GRAPH:
                    _graph(attribute.g, stored=stored)
                case onnx.AttributeProto.TENSOR if attribute.t.data_type in _HALF:
                    _widen(attribute.t)
                case onnx.AttributeProto.INT if (
                    attribute.name in _TYPE_ATTRIBUTES and attribute.i in _HALF
                ):
                    attribute.i = TensorProto.FLOAT
        hint = _HINTS.get(node.op_type)
        kept = [attribute for attribute in node.attribute if attribute.name != hint]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _without_norms(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A GroupQueryAttention and its norms of queries and keys, which its CPU kernel does not have.

    They stand apart from it only where queries and keys do.
    """
    weights = list(node.input[14:16])
    if node.op_type != "GroupQueryAttention" or not any(weights) or not node.input[1]:
        return [node]
    numbers = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    made: list[onnx.NodeProto] = []
    for place, weight in enumerate(weights):
        source = node.input[place]
        name = f"{node.output[0]}:{place}"
        heads = numbers["kv_num_heads" if place else "num_heads"]
        shapes = {"apart": [0, 0, heads, -1], "flat": [0, 0, -1]}
        for kind, shape in shapes.items():
            made.append(helper.make_node("Constant", [], [f"{name}:{kind}"], value_ints=shape))
        made += [
            helper.make_node("Reshape", [source, f"{name}:apart"], [f"{name}:heads"]),
            helper.make_node(
                "SimplifiedLayerNormalization", [f"{name}:heads", weight], [f"{name}:normed"],
                axis=-1, epsilon=numbers.get("qk_norm_epsilon", 1e-6),
            ),
            helper.make_node("Reshape", [f"{name}:normed", f"{name}:flat"], [f"{name}:together"]),
        ]  # fmt: skip
        node.input[place] = f"{name}:together"
    del node.input[14:]
    kept = [one for one in node.attribute if one.name != "qk_norm_epsilon"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return [*made, node]


def _widen(tensor: onnx.TensorProto) -> None:
    array = numpy_helper.to_array(tensor).astype("float32")
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
