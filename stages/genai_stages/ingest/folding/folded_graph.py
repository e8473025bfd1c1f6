"""A graph whose sizes are all known: what is left of a source after folding.

Also what the passes over it need of ONNX itself: the reference implementation of one node, and the
static shapes of its outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference.ops._op_list import load_op

from genai_core.errors import BadInput, BadModel, UnsupportedOperator
from genai_stages.ingest.folding.run_node import NotComputed, run_node
from genai_stages.ingest.source.source_model import Array, Constant, is_float

_CLIP_BY_INPUTS = 11
"""The opset whose Clip has its limits as inputs."""
_ELEMENT_BY_ELEMENT = {"GatherElements", "GatherND", "ScatterElements", "ScatterND"}
FLOAT_TYPES = {1, 10, 11, 16}
"""Element types of ONNX that count as float32 here."""


@dataclasses.dataclass
class StaticNode:
    """One node with known shapes.

    Attributes:
        op_type: Operator.
        domain: Empty for the standard one.
        inputs: Tensor names; empty = left out.
        outputs: Tensor names.
        attributes: Plain values; tensors as arrays.
        name: For messages.
        replaced: The source nodes that a fused node stands for, in order.
    """

    op_type: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    name: str
    replaced: list[StaticNode] = dataclasses.field(default_factory=list)

    def where(self) -> str:
        """How a message names this node."""
        return f"node {self.name or self.outputs[0]} ({self.op_type})"


@dataclasses.dataclass
class FoldedGraph:
    """What is left of the source after folding.

    Attributes:
        nodes: In execution order; every one depends on the tokens or on the past.
        constants: Known tensors by name.
        shapes: Of all tensors that are not known.
        dtypes: Likewise.
        outputs: The source's output name -> the tensor that now holds it.
        inputs: Token and past inputs.
        opset: Of the default domain.
        ancestors: Folded tensor -> the tensors it was folded from.
    """

    opset: int
    nodes: list[StaticNode] = dataclasses.field(default_factory=list)
    constants: dict[str, Constant] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    inputs: list[str] = dataclasses.field(default_factory=list)
    ancestors: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def producers(self) -> dict[str, StaticNode]:
        """Tensor -> the node that computes it."""
        return {name: node for node in self.nodes for name in node.outputs}

    def consumers(self) -> dict[str, list[StaticNode]]:
        """Tensor -> the nodes that read it."""
        found: dict[str, list[StaticNode]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def known_ancestors(self, name: str) -> list[Constant]:
        """All constants that a folded tensor was computed from, itself included."""
        seen: dict[str, None] = {}
        queue = [name]
        while queue:
            current = queue.pop()
            if current not in seen:
                seen[current] = None
                queue.extend(self.ancestors.get(current, ()))
        return [self.constants[found] for found in seen if found in self.constants]


def attribute_value(attribute: ir.Attr) -> Any:
    """The plain Python value of an attribute."""
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    return attribute.value


def node_proto(node: StaticNode) -> onnx.NodeProto:
    """A NodeProto of a node."""
    proto = helper.make_node(
        node.op_type, node.inputs, node.outputs, name=node.name, domain=node.domain
    )
    for key, value in node.attributes.items():
        if isinstance(value, np.ndarray):
            value = numpy_helper.from_array(value)  # noqa: PLW2901
        proto.attribute.append(helper.make_attribute(key, value))
    return proto


def evaluate(node: StaticNode, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    """Compute one node with ONNX's reference implementation, or else in ONNX Runtime.

    The reference is the faster one for small arrays, but it lacks operators, fails beyond what
    NumPy's own functions take, and moves single elements in loops.

    Raises:
        UnsupportedOperator: Neither knows the operator.
        BadModel: The inputs do not fit.
    """
    if node.op_type in _ELEMENT_BY_ELEMENT and not node.domain:
        with contextlib.suppress(NotComputed):
            return run_node(node_proto(node), arrays, opset)
    try:
        return _reference(node, arrays, opset)
    except BadInput:
        with contextlib.suppress(NotComputed):
            return run_node(node_proto(node), arrays, opset)
        raise


def _reference(node: StaticNode, arrays: Sequence[Array | None], opset: int) -> list[Array]:
    parameters = {
        "log": lambda *_: None,
        "opsets": {"": opset},
        "verbose": 0,
        "evaluator_cls": None,
        "new_ops": None,
    }
    try:
        kind = load_op(node.domain, node.op_type, opset)
        operation = kind(node_proto(node), parameters)
    except Exception as error:
        raise UnsupportedOperator(
            f"operator {node.domain or 'ai.onnx'}.{node.op_type} is not supported",
            where=node.where(),
            remedy="export the model without it",
        ) from error
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(result) for result in operation.run(*arrays)]
    except Exception as error:
        raise BadModel(
            f"it cannot be computed ({error})", where=node.where(), remedy="export the model again"
        ) from error


def infer_outputs(
    graph: FoldedGraph, node: StaticNode
) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """Static shapes and types of a node's outputs.

    Raises:
        UnsupportedOperator: ONNX does not know the operator.
        BadModel: Its inputs do not fit together.
    """
    try:
        schema = defs.get_schema(node.op_type, graph.opset, node.domain)
    except defs.SchemaError as error:
        raise UnsupportedOperator(
            f"operator {node.domain or 'ai.onnx'}.{node.op_type} is not supported",
            where=node.where(),
            remedy="export the model with standard operators",
        ) from error
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for name in node.inputs:
        if not name:
            continue
        constant = graph.constants.get(name)
        if constant is None:
            shape, dtype = graph.shapes[name], graph.dtypes[name]
        else:
            shape, dtype = constant.shape, constant.dtype
            if constant.size <= 64 and not is_float(dtype):
                data[name] = numpy_helper.from_array(np.ascontiguousarray(constant.array()), name)
        element = helper.np_dtype_to_tensor_dtype(dtype)
        types[name] = helper.make_tensor_type_proto(element, shape)
    try:
        found = shape_inference.infer_node_outputs(
            schema, node_proto(node), types, data,
            opset_imports=[helper.make_opsetid(node.domain, graph.opset)],
        )  # fmt: skip
    except Exception as error:
        shapes = [list(graph.shapes.get(name, ())) for name in node.inputs if name]
        raise BadModel(
            f"its inputs {shapes} do not fit together ({error})",
            where=node.where(),
            remedy="export the model again",
        ) from error
    results = []
    for name in node.outputs:
        if not name:
            continue
        kind = found[name].tensor_type if name in found else None
        if kind is None or not kind.HasField("shape"):
            raise UnsupportedOperator(
                "the shape of its output depends on the tokens",
                where=node.where(),
                remedy="export the model without data-dependent shapes",
            )
        dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        if -1 in dims:
            raise UnsupportedOperator(
                "the shape of its output depends on the tokens",
                where=node.where(),
                remedy="export the model without data-dependent shapes",
            )
        dtype = np.dtype(np.float32)
        if kind.elem_type not in FLOAT_TYPES:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        results.append((name, tuple(dims), dtype))
    return results


def axes_of(node: StaticNode, constants: Sequence[Constant | None]) -> list[int]:
    """Axes of Squeeze, Unsqueeze or a reduction, attribute or input."""
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"]]
    if len(constants) > 1 and constants[1] is not None:
        return [int(axis) for axis in constants[1].array().reshape(-1)]
    return []


def clip_limits(graph: FoldedGraph, node: StaticNode) -> list[Constant | None]:
    """Least and largest value of a Clip, each None where it has none.

    They are attributes before opset 11, inputs since.

    Raises:
        LookupError: One is computed from the tokens.
    """
    if graph.opset < _CLIP_BY_INPUTS:
        return [
            Constant.of(f"{node.outputs[0]}_{key}", np.array(node.attributes[key], np.float32))
            if key in node.attributes
            else None
            for key in ("min", "max")
        ]
    names = [*node.inputs[1:], "", ""][:2]
    return [graph.constants[name] if name else None for name in names]


def reshaped(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """ONNX's Reshape rule: 0 copies a dimension, -1 takes what is left."""
    dims = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in dims:
        rest = int(np.prod([size for size in dims if size != -1], dtype=np.int64))
        dims[dims.index(-1)] = int(np.prod(shape, dtype=np.int64)) // max(rest, 1)
    return tuple(dims)
