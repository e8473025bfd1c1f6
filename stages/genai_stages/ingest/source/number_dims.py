"""Dimensions that an exporter wrote as text though they are numbers.

Some exporters name every dimension of a cache, the constant ones too: `dim_param: "8"`.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

_DIGITS = 9
"""More digits than any dimension has; a longer text is a name."""


def number_dims(model: onnx.ModelProto) -> None:
    """Make every dimension whose name is a number that number, in place."""
    _graph(model.graph)
    for function in model.functions:
        _values(function.value_info)
        _nodes(function.node)


def _graph(graph: onnx.GraphProto) -> None:
    _values(graph.input)
    _values(graph.output)
    _values(graph.value_info)
    _nodes(graph.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _graph(attribute.g)


def _values(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            text = dim.dim_param.strip()
            if text.isascii() and text.isdigit() and len(text) <= _DIGITS:
                dim.dim_value = int(text)
