"""Small things that every rewrite of an ONNX graph needs: who makes a tensor, who reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
ATTENTION = "GroupQueryAttention"


def producers(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Tensor -> the node that makes it."""
    return {name: node for node in nodes for name in node.output if name}


def readers(nodes: Iterable[onnx.NodeProto]) -> Counter[str]:
    """Tensor -> how many node inputs read it."""
    return Counter(name for node in nodes for name in node.input if name)


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    for candidate in node.attribute:
        if candidate.name == name:
            return int(candidate.i)
    return default


def make(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    domain: str = "",
    **attributes: float | Sequence[int],
) -> onnx.NodeProto:
    """A node, named by its first output."""
    node = helper.make_node(op, inputs, outputs, name=f"{op}:{outputs[0]}", domain=domain)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
    return node


def replace_all(repeated: object, values: Iterable[object]) -> None:
    """Replace what a repeated field of a message holds."""
    kept = list(values)
    del repeated[:]  # type: ignore[attr-defined]
    repeated.extend(kept)  # type: ignore[attr-defined]


def constant(name: str, values: NDArray[np.generic]) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(values, name)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output needs."""
    made = producers(graph.node)
    needed: set[str] = set()
    waiting = [value.name for value in graph.output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in made:
            waiting += [given for given in made[name].input if given]
    replace_all(graph.node, [n for n in graph.node if any(o in needed for o in n.output)])
    replace_all(graph.initializer, [t for t in graph.initializer if t.name in needed])


def in_order(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes such that each stands behind what it reads; else as they stood."""
    left = list(nodes)
    made_by_some = {name for node in left for name in node.output if name}
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while left:
        later = []
        for node in left:
            if all(name in done or name not in made_by_some for name in node.input):
                ordered.append(node)
                done.update(node.output)
            else:
                later.append(node)
        if len(later) == len(left):
            raise ValueError("the graph has a cycle")
        left = later
    return ordered
