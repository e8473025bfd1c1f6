"""Give a source graph fixed sizes and fold away everything that then is known.

An exporter writes shapes, positions and masks as arithmetic on the inputs. With one batch, T new
tokens behind P past ones, every position known and nothing padded, all of that is constant: what
remains is the arithmetic on token embeddings and on the past. Masks and rotary tables become
arrays at the border, whose meaning is then read off their values. The sizes are primes, so that a
dimension tells where it comes from.

Floating types are not told apart: everything counts as float32 and casts between them vanish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference.ops._op_list import load_op

from genai_core.errors import BadModel, UnsupportedOperator
from genai_stages.source_model import Array, Constant, SourceModel, constant_of, is_float

LAZY_SIZE = 4096
"""Elements; larger constants stay views of their initializer instead of being computed."""
_FOLD_LIMIT = 1 << 26
_VIEWS = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten"}
_PICKS = {"Gather", "Slice", "Shape"}
_FLOAT_TYPES = {1, 10, 11, 16}


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
class StaticGraph:
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


def specialise(
    source: SourceModel,
    known: Mapping[str, Array],
    open_shapes: Mapping[str, tuple[int, ...]],
    *,
    wanted: Iterable[str] | None = None,
) -> StaticGraph:
    """Fold a source graph.

    Args:
        source: The model.
        known: Inputs with their values.
        open_shapes: The other inputs (tokens, past) with their static shapes.
        wanted: Tensors to keep, in any order; None = the graph's outputs.

    Raises:
        UnsupportedOperator: A node that is needed has no known meaning.
        BadModel: Shapes that do not fit together.
    """
    return _Folding(source, known, open_shapes).run(None if wanted is None else sorted(wanted))


class _Folding:
    def __init__(
        self,
        source: SourceModel,
        known: Mapping[str, Array],
        open_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.source = source
        self.graph = StaticGraph(source.opset)
        self.alias: dict[str, str] = {}
        self.prefix = 0
        for name, array in known.items():
            self.graph.constants[name] = Constant.of(name, array)
        for value in source.model.graph.inputs:
            name = value.name or ""
            if name in open_shapes:
                self.graph.shapes[name] = open_shapes[name]
                dtype = value.dtype or ir.DataType.FLOAT
                plain = np.dtype(np.float32)
                self.graph.dtypes[name] = (
                    plain if int(dtype) in _FLOAT_TYPES else np.dtype(dtype.numpy())
                )
                self.graph.inputs.append(name)

    def run(self, wanted: list[str] | None) -> StaticGraph:
        graph = self.source.model.graph
        names = wanted if wanted is not None else [str(value.name) for value in graph.outputs]
        nodes, used = _needed(graph, set(names))
        for name in used:
            value = graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                constant = constant_of(self.source.path, name, value.const_value)
                self.graph.constants.setdefault(name, constant)
        self.nodes(nodes)
        self.graph.outputs = {name: self.resolve(name) for name in names}
        return self.graph

    def nodes(self, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            self.node(node)

    def resolve(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def node(self, node: ir.Node) -> None:
        graph = self.graph
        inputs = [self.resolve(str(v.name)) if v is not None else "" for v in node.inputs]
        outputs = [str(value.name) for value in node.outputs]
        known = all(not name or name in graph.constants for name in inputs)
        if node.op_type == "If":
            self.branch(node, inputs[0], outputs)
            return
        if node.op_type in ("Loop", "Scan"):
            raise self.unsupported(node)
        if node.op_type == "Constant":
            self.constant(node, outputs[0])
            return
        if node.op_type in ("Shape", "Size") and inputs[0] in graph.shapes:
            self.shape(node, inputs[0], outputs[0])
            return
        plain = StaticNode(
            node.op_type,
            "" if node.domain == "ai.onnx" else node.domain,
            inputs,
            outputs,
            {name: attribute_value(attr) for name, attr in node.attributes.items()},
            node.name or "",
        )
        if known:
            self.fold(plain)
            return
        if plain.op_type in ("Identity", "Dropout") or self.is_float_cast(plain):
            self.alias[outputs[0]] = inputs[0]
            return
        self.infer(plain)
        graph.nodes.append(plain)

    def is_float_cast(self, node: StaticNode) -> bool:
        if node.op_type == "CastLike":
            return is_float(self.graph.dtypes[node.inputs[0]])
        if node.op_type != "Cast":
            return False
        dtype = self.graph.dtypes[node.inputs[0]]
        target = node.attributes["to"]
        if is_float(dtype):
            return target in _FLOAT_TYPES
        wide = np.issubdtype(dtype, np.integer) and target in (6, 7)
        return bool(wide)

    def branch(self, node: ir.Node, condition: str, outputs: list[str]) -> None:
        """A choice that depends on sizes alone is made here."""
        if condition not in self.graph.constants:
            raise UnsupportedOperator(
                "which branch is taken depends on the tokens",
                where=f"node {node.name or outputs[0]} (If)",
                remedy="export the model without data-dependent control flow",
            )
        truth = bool(self.graph.constants[condition].array().reshape(-1)[0])
        chosen = node.attributes["then_branch" if truth else "else_branch"].as_graph()
        for name, value in chosen.initializers.items():
            tensor = value.const_value
            assert tensor is not None
            self.graph.constants[name] = constant_of(self.source.path, name, tensor)
        self.nodes(list(chosen))
        for name, value in zip(outputs, chosen.outputs, strict=True):
            self.alias[name] = self.resolve(str(value.name))

    def constant(self, node: ir.Node, name: str) -> None:
        (key, attribute), *_ = node.attributes.items()
        if key == "value":
            self.graph.constants[name] = constant_of(self.source.path, name, attribute.as_tensor())
            return
        kind = np.float32 if "float" in key else np.int64
        self.graph.constants[name] = Constant.of(name, np.array(attribute.value, kind), origin=name)

    def shape(self, node: ir.Node, source: str, output: str) -> None:
        dims = np.array(self.graph.shapes[source], np.int64)
        if node.op_type == "Size":
            dims = np.array(dims.prod(), np.int64)
        else:
            start = node.attributes.get_int("start", 0)
            end = node.attributes.get_int("end", len(dims))
            dims = dims[start:end]
        self.graph.constants[output] = Constant.of(output, dims)

    def fold(self, node: StaticNode) -> None:
        constants = [self.graph.constants[name] if name else None for name in node.inputs]
        first = constants[0] if constants else None
        for name in node.outputs:
            self.graph.ancestors[name] = tuple(name for name in node.inputs if name)
        if first is not None and node.op_type in _VIEWS and first.origin and first.size > LAZY_SIZE:
            self.graph.constants[node.outputs[0]] = _view(node, first, constants)
            return
        if first is not None and _is_widening(node, first):
            self.graph.constants[node.outputs[0]] = dataclasses.replace(first, name=node.outputs[0])
            return
        total = sum(constant.size for constant in constants if constant is not None)
        if total > _FOLD_LIMIT and node.op_type not in _PICKS:
            raise BadModel(
                f"it computes with {total} constant elements, which nothing here can hold",
                where=node.where(),
                remedy="export the model with plain weights",
            )
        arrays = [None if constant is None else constant.array() for constant in constants]
        origin = first.origin if first is not None and node.op_type in _VIEWS else None
        for name, array in zip(node.outputs, evaluate(node, arrays, self.graph.opset), strict=True):
            if name:
                self.graph.constants[name] = Constant.of(name, array, origin=origin)

    def infer(self, node: StaticNode) -> None:
        for name, shape, dtype in infer_outputs(self.graph, node):
            self.graph.shapes[name] = shape
            self.graph.dtypes[name] = dtype

    def unsupported(self, node: ir.Node) -> UnsupportedOperator:
        return UnsupportedOperator(
            f"operator {node.op_type} is not supported",
            where=f"node {node.name or node.outputs[0].name}",
            remedy="export the model without it",
        )


def _needed(graph: ir.Graph, names: set[str]) -> tuple[list[ir.Node], set[str]]:
    """Nodes that the named tensors need, and all tensors that those read.

    What a subgraph captures counts.
    """
    wanted = set(names)
    kept: list[ir.Node] = []
    for node in reversed(list(graph)):
        if not any(value.name in wanted for value in node.outputs):
            continue
        kept.append(node)
        wanted.update(str(value.name) for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                wanted.update(_captured(attribute.as_graph()))
    return kept[::-1], wanted


def _captured(graph: ir.Graph) -> set[str]:
    names = {str(value.name) for value in graph.outputs}
    for node in graph:
        names.update(str(value.name) for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                names |= _captured(attribute.as_graph())
    return names


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
    """Compute one node with ONNX's reference implementation.

    Raises:
        UnsupportedOperator: There is none.
        BadModel: The inputs do not fit.
    """
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
    graph: StaticGraph, node: StaticNode
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
        if kind.elem_type not in _FLOAT_TYPES:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        results.append((name, tuple(dims), dtype))
    return results


def _is_widening(node: StaticNode, first: Constant) -> bool:
    """Whether this casts between floats, which are not told apart here: it must not round."""
    if node.op_type == "CastLike":
        return is_float(first.dtype)
    return (
        node.op_type == "Cast" and is_float(first.dtype) and node.attributes["to"] in _FLOAT_TYPES
    )


def axes_of(node: StaticNode, constants: Sequence[Constant | None]) -> list[int]:
    """Axes of Squeeze, Unsqueeze or a reduction, attribute or input."""
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"]]
    if len(constants) > 1 and constants[1] is not None:
        return [int(axis) for axis in constants[1].array().reshape(-1)]
    return []


def _view(node: StaticNode, first: Constant, constants: Sequence[Constant | None]) -> Constant:
    """A constant that is computed when it is used, from its initializer."""
    name, load = node.outputs[0], first.load
    match node.op_type:
        case "Transpose":
            perm = node.attributes.get("perm") or tuple(reversed(range(len(first.shape))))
            shape = tuple(first.shape[axis] for axis in perm)
            return dataclasses.replace(
                first, name=name, shape=shape, load=lambda: load().transpose(perm)
            )
        case "Cast":
            target = node.attributes["to"]
            if target not in _FLOAT_TYPES or not is_float(first.dtype):
                kind = np.dtype(helper.tensor_dtype_to_np_dtype(target))
                kind = np.dtype(np.float32) if target in _FLOAT_TYPES else kind
                return dataclasses.replace(
                    first, name=name, dtype=kind, load=lambda: load().astype(kind)
                )
            return dataclasses.replace(first, name=name)
        case "Identity":
            return dataclasses.replace(first, name=name)
        case "Reshape":
            assert constants[1] is not None
            wanted = [int(size) for size in constants[1].array()]
            shape = reshaped(first.shape, wanted)
        case "Flatten":
            axis = int(node.attributes.get("axis", 1)) % max(len(first.shape), 1)
            front = int(np.prod(first.shape[:axis], dtype=np.int64))
            shape = (front, first.size // front)
        case "Squeeze":
            axes = [axis % len(first.shape) for axis in axes_of(node, constants)]
            shape = tuple(
                size
                for axis, size in enumerate(first.shape)
                if (axis not in axes if axes else size != 1)
            )
        case _:
            axes = axes_of(node, constants)
            rank = len(first.shape) + len(axes)
            axes = [axis % rank for axis in axes]
            sizes = iter(first.shape)
            shape = tuple(1 if axis in axes else next(sizes) for axis in range(rank))
    return dataclasses.replace(first, name=name, shape=shape, load=lambda: load().reshape(shape))


def reshaped(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """ONNX's Reshape rule: 0 copies a dimension, -1 takes what is left."""
    dims = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in dims:
        rest = int(np.prod([size for size in dims if size != -1], dtype=np.int64))
        dims[dims.index(-1)] = int(np.prod(shape, dtype=np.int64)) // max(rest, 1)
    return tuple(dims)
