"""Adapters in the source's own graph: what a container with adapters is held against.

Behind each linear that an adapter touches, `alpha * (x A) B` is added to what the linear computes
from x, in float32, as PEFT does. The linear's own tensor keeps its name, so its encoding holds for
the base's part alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from genai_core.facts import ModelFacts

__all__ = ["Worn", "wear"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Worn:
    """An adapter in the layout of `genai_core.container.adapters`, and how strongly it counts.

    Attributes:
        branches: Output tensor of a linear of the core graph -> A [in, rank], B [rank, out].
        alpha: The branch's factor.
    """

    branches: Mapping[str, tuple[Floats, Floats]]
    alpha: float = 1.0


@dataclass(eq=False)
class _Sum:
    """What is added at one tensor of the source: branches beside one another along the rank."""

    downs: list[Floats]
    ups: list[Floats]


def wear(proto: onnx.ModelProto, facts: ModelFacts, adapters: Sequence[Worn]) -> list[str]:
    """Add adapters to a source's graph, in place.

    Args:
        proto: The kept source.
        facts: Which tensor of the source each linear's output stands for.
        adapters: All of them at once.

    Returns:
        Linears of the core graph that are no plain product in the source (convolutions, fused
        operators): nothing was added there, and then the graph is no yardstick.
    """
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    fixed = {value.name for value in graph.output}
    for attention in facts.attention:
        fixed |= {attention.roles[r] for r in ("key_new", "value_new") if r in attention.roles}
    sums: dict[str, _Sum] = {}
    lost: list[str] = []
    for adapter in adapters:
        for linear, (a, b) in adapter.branches.items():
            origin = facts.provenance.get(linear)
            tensor = linear if origin is None else origin.source
            if tensor in fixed or _input_of(tensor, makers) is None:
                lost.append(linear)
                continue
            up = (b * np.float32(adapter.alpha)).astype(np.float32)
            if origin is not None and (origin.rows is not None or origin.index is not None):
                rows = range(*origin.rows) if origin.rows is not None else origin.index
                assert rows is not None
                up = _spread(up, list(rows))
            here = sums.setdefault(tensor, _Sum([], []))
            here.downs.append(a)
            here.ups.append(up)
    nodes: list[onnx.NodeProto] = []
    renamed = {tensor: f"{tensor}:worn" for tensor in sums}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        nodes.append(node)
        for name in node.output:
            if name in sums:
                source = _input_of(name, makers)
                assert source is not None
                nodes += _branch(graph, name, source, sums[name])
    del graph.node[:]
    graph.node.extend(nodes)
    return list(dict.fromkeys(lost))


def _spread(up: Floats, rows: Sequence[int]) -> Floats:
    """B of some of a projection's channels, as B of all up to the last of them."""
    wide = np.zeros((up.shape[0], max(rows) + 1), np.float32)
    wide[:, rows] = up
    return wide


def _branch(graph: onnx.GraphProto, tensor: str, source: str, added: _Sum) -> list[onnx.NodeProto]:
    width = max(up.shape[1] for up in added.ups)
    ups = [np.pad(up, ((0, 0), (0, width - up.shape[1]))) for up in added.ups]
    constants = {
        f"{tensor}:A": np.concatenate(added.downs, axis=1),
        f"{tensor}:B": np.concatenate(ups, axis=0),
    }
    for name, array in constants.items():
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return [
        helper.make_node("MatMul", [source, f"{tensor}:A"], [f"{tensor}:down"]),
        helper.make_node("MatMul", [f"{tensor}:down", f"{tensor}:B"], [f"{tensor}:up"]),
        helper.make_node("Add", [tensor, f"{tensor}:up"], [f"{tensor}:worn"]),
    ]


def _input_of(tensor: str, makers: Mapping[str, onnx.NodeProto]) -> str | None:
    """What the product behind a tensor reads; None where no plain product makes it."""
    while True:
        node = makers.get(tensor)
        if node is None:
            return None
        if node.op_type in ("Identity", "Cast"):
            tensor = node.input[0]
            continue
        if node.op_type == "Add":  # its bias
            products = [one for one in node.input if _is_product(makers.get(one))]
            if len(products) != 1:
                return None
            node = makers[products[0]]
        return node.input[0] if _is_product(node) else None


def _is_product(node: onnx.NodeProto | None) -> bool:
    if node is None or node.op_type not in ("MatMul", "Gemm"):
        return False
    turned = next((one.i for one in node.attribute if one.name == "transA"), 0)
    return not turned
