"""LoRA branches of a source graph whose weights are its inputs: taken off, and written down.

AIMET exports a model with its adapters so: beside each adapted linear stand MatMul(x, A), MatMul(.,
B), Mul by the adapter's own factor, and an Add; A and B are graph inputs without a default. At zero
they are the base model, so the Add becomes an Identity of the linear's output, and what was there
is recorded: which linear, under which names, at which factor. Files of adapters name those inputs.

A Mul by another input (the vendor's alpha) counts as 1: what an adapter is multiplied by is given
when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper, numpy_helper

from genai_core.errors import BadModel, UnsupportedOperator
from genai_core.facts import LoraBranch

__all__ = ["find_branches", "find_stored_branches", "take_off"]

_LAYOUTS = {"MatMul": 2, "Conv": 4}
"""Operator -> dimensions of its weight: [in, out] of MatMul, [out, in, 1, 1] of Conv."""
_REMEDY = "export it with AIMET's LoRA module, or leave spec.lora.createGraph out"


@dataclass
class _Graph:
    """A graph's nodes by what they read and make."""

    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    makers: dict[str, onnx.NodeProto] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Graph:
        found = cls()
        for node in graph.node:
            for name in node.input:
                found.readers.setdefault(name, []).append(node)
            for name in node.output:
                found.makers[name] = node
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        found._scalar(node.output[0], attribute.t)
        known = set()
        for tensor in graph.initializer:
            known.add(tensor.name)
            found._scalar(tensor.name, tensor)
        for value in graph.input:
            if value.name not in known and "lora" in value.name.lower():
                dims = value.type.tensor_type.shape.dim
                found.inputs[value.name] = tuple(dim.dim_value for dim in dims)
        return found

    def _scalar(self, name: str, tensor: onnx.TensorProto) -> None:
        if math.prod(tensor.dims) == 1 and not tensor.external_data:
            self.scalars[name] = float(numpy_helper.to_array(tensor).reshape(-1)[0])


def find_branches(model: onnx.ModelProto) -> tuple[LoraBranch, ...]:
    """The branches of a graph whose LoRA weights are inputs, in the graph's order.

    Raises:
        BadModel: There is none.
        UnsupportedOperator: An input for LoRA weights does not lead into a branch.
    """
    graph = _Graph.of(model.graph)
    found = []
    taken: set[str] = set()
    for node in model.graph.node:
        first = _weight_of(node, graph)
        if first is None or first in taken:
            continue
        branch = _branch(node, first, graph)
        taken |= {branch.a, branch.b}
        found.append(branch)
    lost = [
        name
        for name, dims in graph.inputs.items()
        if name not in taken and len(dims) in _LAYOUTS.values()
    ]
    if lost:
        raise UnsupportedOperator(
            f"{len(lost)} of {len(graph.inputs)} LoRA inputs lead into no branch: "
            + ", ".join(lost[:3]),
            where="model.onnx",
            remedy=_REMEDY,
        )
    if not found:
        raise BadModel(
            "its graph has no LoRA branches: none of its inputs is a LoRA weight",
            where="spec.lora.createGraph",
            remedy="leave createGraph out, and give adapters as PEFT folders",
        )
    return tuple(found)


def find_stored_branches(model: onnx.ModelProto) -> tuple[LoraBranch, ...]:
    """The branches of a graph whose LoRA weights are initializers, in the graph's order.

    A branch is told by its form alone: two products with matrices of one rank, added to what a
    linear makes of the same input.
    """
    graph = _Graph.of(model.graph)
    for tensor in model.graph.initializer:
        graph.inputs.setdefault(tensor.name, tuple(tensor.dims))
    found = []
    for node in model.graph.node:
        first = _weight_of(node, graph)
        if first is None:
            continue
        try:
            branch = _branch(node, first, graph)
        except UnsupportedOperator:
            continue  # a linear of the model
        found.append(branch)
    return tuple(found)


def take_off(model: onnx.ModelProto, branches: Sequence[LoraBranch]) -> None:
    """Leave the base model alone, in place."""
    graph = model.graph
    added = {branch.output: branch.linear for branch in branches}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in added:
            same = helper.make_node(
                "Identity", [added[node.output[0]]], [node.output[0]], name=node.name
            )
            node.CopyFrom(same)
    gone = {value.name for value in graph.input if "lora" in value.name.lower()}
    gone -= {tensor.name for tensor in graph.initializer}
    nodes = list(graph.node)
    wanted = {value.name for value in graph.output}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    inputs = [value for value in graph.input if value.name not in gone]
    del graph.node[:], graph.input[:]
    graph.node.extend(kept[::-1])
    graph.input.extend(inputs)


def _weight_of(node: onnx.NodeProto, graph: _Graph) -> str | None:
    """The LoRA input that is a node's weight."""
    if node.op_type not in _LAYOUTS or len(node.input) < 2:
        return None
    name = node.input[1]
    return name if len(graph.inputs.get(name, ())) == _LAYOUTS[node.op_type] else None


def _branch(node: onnx.NodeProto, a: str, graph: _Graph) -> LoraBranch:
    """Follow a branch from its A to the Add that ends it."""
    source, tensor = node.input[0], node.output[0]
    tensors, scale, b = [tensor], 1.0, ""
    while True:
        readers = graph.readers.get(tensor, [])
        if len(readers) != 1:
            raise _no_branch(a, f"{tensor} has {len(readers)} readers")
        here = readers[0]
        other = next((name for name in here.input if name != tensor), "")
        if here.op_type == "Add" and b:
            break
        if not b and _weight_of(here, graph) is not None:
            b = here.input[1]
        elif here.op_type == "Mul" and other in graph.scalars:
            scale *= graph.scalars[other]
        elif not (here.op_type in ("Cast", "Identity") or _is_alpha(here, other, graph)):
            raise _no_branch(a, f"{here.op_type} makes {here.output[0]}")
        tensor = here.output[0]
        if tensor in tensors:
            raise _no_branch(a, f"{tensor} is made of itself")
        tensors.append(tensor)
    _check_linear(other, source, a, graph)
    conv = node.op_type == "Conv"
    first, second = graph.inputs[a], graph.inputs[b]
    sizes = (first[1], first[0], second[0]) if conv else (first[0], first[1], second[1])
    return LoraBranch(
        a=a, b=b, scale=scale, linear=other, output=here.output[0], conv=conv,
        inputs=sizes[0], rank=sizes[1], outputs=sizes[2], tensors=tuple(tensors),
    )  # fmt: skip


def _is_alpha(node: onnx.NodeProto, other: str, graph: _Graph) -> bool:
    return node.op_type == "Mul" and math.prod(graph.inputs.get(other, (0,))) == 1


def _check_linear(output: str, source: str, a: str, graph: _Graph) -> None:
    """Refuse a branch whose Add joins something else than a linear of the same input."""
    maker = graph.makers.get(output)
    if maker is not None and maker.op_type == "Add":  # its bias
        maker = next((graph.makers[n] for n in maker.input if n in graph.makers), None)
    if (
        maker is None
        or maker.op_type not in ("MatMul", "Gemm", "Conv")
        or (maker.input[0] != source)
    ):
        raise _no_branch(a, f"it is added to {output}, which no linear makes of {source}")


def _no_branch(a: str, why: str) -> UnsupportedOperator:
    return UnsupportedOperator(
        f"it leads into no LoRA branch that is known here: {why}", where=a, remedy=_REMEDY
    )


def by_tensor(branches: Sequence[LoraBranch]) -> Mapping[str, LoraBranch]:
    """Name of A or B -> its branch."""
    return {name: branch for branch in branches for name in (branch.a, branch.b)}
