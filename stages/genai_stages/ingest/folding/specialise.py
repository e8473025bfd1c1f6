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
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx import helper

from genai_core.errors import BadModel, UnsupportedOperator
from genai_stages.ingest.folding.dequantize import dequantized
from genai_stages.ingest.folding.fold_limits import BY_VALUES, elements
from genai_stages.ingest.folding.folded_graph import (
    FLOAT_TYPES,
    FoldedGraph,
    StaticNode,
    attribute_value,
    axes_of,
    evaluate,
    infer_outputs,
    reshaped,
)
from genai_stages.ingest.folding.lower_fused import lower
from genai_stages.ingest.source.source_model import (
    Array,
    Constant,
    SourceModel,
    constant_of,
    is_float,
)

LAZY_SIZE = 4096
"""Elements; larger constants stay views of their initializer instead of being computed."""
_LARGEST = 1 << 28
"""Elements of a tensor that is computed for some tens of tokens: a GiB."""
_FOLD_LIMIT = 1 << 26
_VIEWS = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten"}
_PICKS = {"Gather", "Slice", "Shape"}


def specialise(
    source: SourceModel,
    known: Mapping[str, Array],
    open_shapes: Mapping[str, tuple[int, ...]],
    *,
    wanted: Iterable[str] | None = None,
) -> FoldedGraph:
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
    names = [str(value.name) for value in source.model.graph.outputs]
    return _Folding(source, known, open_shapes).upto(names if wanted is None else sorted(wanted))


class Folding:
    """A source graph that is folded piece by piece, each node once; arguments as `specialise`."""

    def __init__(
        self,
        source: SourceModel,
        known: Mapping[str, Array],
        open_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._folding = _Folding(source, known, open_shapes)

    def upto(self, wanted: Iterable[str]) -> FoldedGraph:
        """Fold what some tensors need; the graph so far, with them as its outputs.

        Raises:
            GenAIError: As `specialise`.
        """
        return self._folding.upto(wanted)

    def shapes(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        """The static shapes of some tensors, which are folded for it.

        Raises:
            GenAIError: As `specialise`.
        """
        graph = self._folding.upto(names)
        held = [graph.outputs[name] for name in names]
        return [
            graph.constants[name].shape if name in graph.constants else graph.shapes[name]
            for name in held
        ]

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Correct the shape of an input, before anything is folded that reads it."""
        self._folding.graph.shapes[name] = shape


class _Folding:
    def __init__(
        self,
        source: SourceModel,
        known: Mapping[str, Array],
        open_shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.source = source
        self.graph = FoldedGraph(source.opset)
        self.alias: dict[str, str] = {}
        self.nodes_of_source = list(source.model.graph)
        self.makers = {
            str(value.name): index
            for index, node in enumerate(self.nodes_of_source)
            for value in node.outputs
        }
        self.done: set[int] = set()
        for name, array in known.items():
            self.graph.constants[name] = Constant.of(name, array)
        for value in source.model.graph.inputs:
            name = value.name or ""
            if name in open_shapes:
                self.graph.shapes[name] = open_shapes[name]
                dtype = value.dtype or ir.DataType.FLOAT
                plain = np.dtype(np.float32)
                self.graph.dtypes[name] = (
                    plain if int(dtype) in FLOAT_TYPES else np.dtype(dtype.numpy())
                )
                self.graph.inputs.append(name)

    def upto(self, wanted: Iterable[str]) -> FoldedGraph:
        names = list(wanted)
        fresh, used = self.needed(names)
        initializers = self.source.model.graph.initializers
        for name in used:
            value = initializers.get(name)
            if value is not None and value.const_value is not None:
                constant = constant_of(self.source.path, name, value.const_value)
                self.graph.constants.setdefault(name, constant)
        self.done.update(fresh)
        self.nodes([self.nodes_of_source[index] for index in fresh])
        self.graph.outputs = {name: self.resolve(name) for name in names}
        return self.graph

    def needed(self, names: Iterable[str]) -> tuple[list[int], set[str]]:
        """Nodes that are needed and not folded yet, in order, and all tensors that they read.

        What a subgraph captures counts.
        """
        queue, seen, fresh = list(names), set(names), set[int]()
        while queue:
            index = self.makers.get(queue.pop())
            if index is None or index in self.done or index in fresh:
                continue
            fresh.add(index)
            node = self.nodes_of_source[index]
            read = {str(value.name) for value in node.inputs if value is not None}
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    read |= _captured(attribute.as_graph())
            queue += read - seen
            seen |= read
        return sorted(fresh), seen

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
        if plain.op_type == "CastLike" and not plain.domain:
            self.cast_to_type(plain)
        if all(not name or name in graph.constants for name in plain.inputs):
            self.fold(plain)
            return
        if plain.op_type in ("Identity", "Dropout") or self.is_float_cast(plain):
            self.alias[outputs[0]] = inputs[0]
            return
        written_out = lower(graph, plain)
        if written_out is not None:
            graph.nodes += written_out
            return
        self.infer(plain)
        graph.nodes.append(plain)

    def is_float_cast(self, node: StaticNode) -> bool:
        if node.op_type != "Cast":
            return False
        dtype = self.graph.dtypes[node.inputs[0]]
        target = node.attributes["to"]
        if is_float(dtype):
            return target in FLOAT_TYPES
        wide = np.issubdtype(dtype, np.integer) and target in (6, 7)
        return bool(wide)

    def cast_to_type(self, node: StaticNode) -> None:
        """CastLike is a Cast: the type is known even where the tensor that has it is not."""
        source, like = node.inputs
        constant = self.graph.constants.get(like)
        dtype = self.graph.dtypes[like] if constant is None else constant.dtype
        node.op_type, node.inputs = "Cast", [source]
        node.attributes = {"to": int(helper.np_dtype_to_tensor_dtype(dtype))}

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
        if first is not None and node.op_type == "DequantizeLinear":
            self.graph.constants[node.outputs[0]] = dequantized(node, constants)
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
        made = elements(node, arrays)
        if node.op_type in BY_VALUES:
            made = max(math.prod(shape) for _, shape, _ in infer_outputs(self.graph, node))
        if made > _FOLD_LIMIT:
            raise BadModel(
                f"it computes {made} constant elements, which nothing here can hold",
                where=node.where(),
                remedy="export the model with a past, positions and a mask of ordinary sizes",
            )
        origin = first.origin if first is not None and node.op_type in _VIEWS else None
        for name, array in zip(node.outputs, evaluate(node, arrays, self.graph.opset), strict=True):
            if name:
                self.graph.constants[name] = Constant.of(name, array, origin=origin)

    def infer(self, node: StaticNode) -> None:
        for name, shape, dtype in infer_outputs(self.graph, node):
            if math.prod(shape) > _LARGEST:
                raise BadModel(
                    f"it computes a tensor of shape {list(shape)}, which nothing here can hold",
                    where=node.where(),
                    remedy="export the model with a batch of 1 and dynamic lengths",
                )
            self.graph.shapes[name] = shape
            self.graph.dtypes[name] = dtype

    def unsupported(self, node: ir.Node) -> UnsupportedOperator:
        return UnsupportedOperator(
            f"operator {node.op_type} is not supported",
            where=f"node {node.name or node.outputs[0].name}",
            remedy="export the model without it",
        )


def _captured(graph: ir.Graph) -> set[str]:
    names = {str(value.name) for value in graph.outputs}
    for node in graph:
        names.update(str(value.name) for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                names |= _captured(attribute.as_graph())
    return names


def _is_widening(node: StaticNode, first: Constant) -> bool:
    """Whether this casts between floats, which are not told apart here: it must not round."""
    return node.op_type == "Cast" and is_float(first.dtype) and node.attributes["to"] in FLOAT_TYPES


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
            if target not in FLOAT_TYPES or not is_float(first.dtype):
                kind = np.dtype(helper.tensor_dtype_to_np_dtype(target))
                kind = np.dtype(np.float32) if target in FLOAT_TYPES else kind
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
