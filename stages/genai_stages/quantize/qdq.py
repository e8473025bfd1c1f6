"""Static float graph + encodings -> QDQ ONNX, as Qualcomm's execution provider reads it.

Each float tensor becomes float -> QuantizeLinear -> DequantizeLinear behind the operator that
yields it; graph inputs and outputs are integers; weights are integers with a DequantizeLinear.
Activations are uint16, weights int8 or int4 per channel, biases int32 at the product of their
operands' scales, the caches uint8. A value that a consumer wants on another grid (the cache's) is
quantized again in between, which the provider turns into one conversion: no operator changes the
bits of its result by itself.

The weights are read from the graph's external data and quantized while they are written.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.errors import BadEncodings, BadModel
from genai_stages.aimet.arithmetic import storage_dtype
from genai_stages.aimet.model import Encoding
from genai_stages.graph.core_graph import mapped, write_proto
from genai_stages.graph.data_movement import moved_inputs
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.quantize.device_forms import to_device_forms
from genai_stages.quantize.encoding_lookup import EncodingLookup
from genai_stages.quantize.graph_encodings import GraphEncodings, QuantizedWeight, decide, is_float

OPSET = 23
IR_VERSION = 10


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What was written, for the record; tensors go by the names of what they stand for.

    Attributes:
        derived: Tensor -> how its encoding came about, where no entry gives it.
        ties: Tensor -> the tensor it was moved from and whose encoding it carries.
        used: Entries of the file that this graph uses.
        grids: Float input or output -> the grid of its integers; absent = it stays floating point.
        floating: Tensors that stay floating point, as nothing says how to quantize them.
        bits: Bits of a projection's weight -> how many weights have them.
        beyond: Cache with a held encoding -> (its own range, the held one's), where it is wider.
    """

    derived: Mapping[str, str]
    ties: Mapping[str, str]
    used: frozenset[str]
    grids: Mapping[str, Encoding]
    floating: tuple[str, ...]
    bits: Mapping[int, int]
    beyond: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


def quantize_graph(
    source: Path,
    out: Path,
    lookup: EncodingLookup,
    *,
    rotary_limits: Mapping[str, float] | None = None,
    gaps_float: bool = False,
    held: Mapping[str, Encoding] | None = None,
    model: ir.Model | None = None,
) -> Quantized:
    """Write `<stem>.onnx` and `<stem>.data` into `out` for the static graph `<stem>.onnx`.

    Peak memory is that of a few megabytes of weights, however large the graph's weights are.

    Args:
        source: A static float graph; its external data lie beside it.
        out: An existing folder.
        lookup: The encodings with this graph's provenance.
        rotary_limits: Input name -> largest absolute value of that rotary table, where not 1.
        gaps_float: Tensors without an encoding stay floating point, and so does what they meet.
        held: Cache (`past_key_3`) -> the encoding that it must have, since other graphs have it so.
        model: The graph, where it is not as it lies in `source`; it is changed.

    Raises:
        BadEncodings: A tensor has no encoding, or one that does not fit it.
        BadModel: A weight holds a value that is not finite.
    """
    model = _typed(model or ir.load(source))
    to_device_forms(model)
    decisions = decide(
        model.graph, lookup, rotary_limits=rotary_limits, gaps_float=gaps_float, held=held
    )
    with TensorFile(out / f"{source.stem}.data") as data:
        graph = _Writer(model.graph, decisions, data, where=lookup.where).run()
        quantized = ir.Model(graph, ir_version=IR_VERSION, producer_name="genai-operator")
        write_proto(quantized, out / source.name)
    ends = [value for value in (*model.graph.inputs, *model.graph.outputs) if is_float(value)]
    return Quantized(
        {lookup.source(name): how for name, how in decisions.derived.items()},
        {
            lookup.source(name): lookup.source(other)
            for name, other in decisions.ties.items()
            if lookup.source(name) != lookup.source(other)
        },
        frozenset(lookup.used),
        {value.name or "": grid for value in ends if (grid := decisions.of(value)) is not None},
        tuple(sorted({lookup.source(value.name or "") for value in decisions.floating})),
        Counter(
            weight.encoding.bits
            for weight in decisions.weights.values()
            if weight.signed and weight.encoding
        ),
        {
            cache.values[0].name or "": (cache.beyond, float(cache.encoding.high))
            for cache in decisions.caches
            if cache.beyond is not None
        },
    )


def _typed(model: ir.Model) -> ir.Model:
    """The model with the type of every value, inferred where the file leaves it out."""
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        from onnx_ir.passes.common import ShapeInferencePass

        ShapeInferencePass()(model)
    return model


class _Writer:
    """Builds the quantized graph node by node."""

    def __init__(
        self, graph: ir.Graph, decisions: GraphEncodings, data: TensorFile, *, where: str
    ) -> None:
        self.source = graph
        self.decisions = decisions
        self.data = data
        self.where = where
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.plain: dict[ir.Value, ir.Value] = {}
        """Source value -> its counterpart that is not quantized (token ids, shapes)."""
        self.integers: dict[tuple[ir.Value, str], ir.Value] = {}
        """(source value, grid) -> integers on that grid."""
        self.floats: dict[tuple[ir.Value, str], ir.Value] = {}
        """(source value, grid) -> the same dequantized, shared by consumers."""
        self.outputs = set(graph.outputs)

    def run(self) -> ir.Graph:
        inputs = [self.input(value) for value in self.source.inputs]
        for node in self.source:
            self.node(node)
        return ir.Graph(
            inputs,
            [self.output(value) for value in self.source.outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET},
            name=self.source.name,
        )

    # values

    def input(self, value: ir.Value) -> ir.Value:
        copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
        encoding = self.decisions.produced.get(value)
        if encoding is not None:
            copy.type = ir.TensorType(ir.DataType.from_numpy(storage_dtype(encoding, signed=False)))
            self.integers[value, grid_key(encoding)] = copy
        else:
            self.plain[value] = copy
        return copy

    def output(self, value: ir.Value) -> ir.Value:
        encoding = self.decisions.of(value)
        return self.plain[value] if encoding is None else self.integers[value, grid_key(encoding)]

    def operand(self, value: ir.Value, encoding: Encoding | None, *, floating: bool) -> ir.Value:
        """What a new node reads for a value of the source, on the grid it asks for.

        Args:
            value: Of the source.
            encoding: What a data movement asks for; None = the value's own.
            floating: The node computes in floating point, so its weights are no integers.
        """
        if value.is_initializer():
            if not is_float(value):
                return self.constant(value)
            return self.float_weight(value) if floating else self.weight(value)
        encoding = encoding or self.decisions.of(value)
        if encoding is None:
            return self.plain[value]
        key = grid_key(encoding)
        if (value, key) not in self.floats:
            if (value, key) not in self.integers:
                self.convert(value, encoding)
            integers = self.integers[value, key]
            self.floats[value, key] = self.dequantize(f"{integers.name}_dq", integers, encoding)
        return self.floats[value, key]

    def convert(self, value: ir.Value, encoding: Encoding) -> None:
        """Put a value on another grid than its operator does."""
        produced = self.operand(value, self.decisions.produced.get(value), floating=False)
        name = f"{value.name}_to_{encoding.bits}_bits"
        suffix = sum(1 for key in self.integers if key[0] is value)
        name = name if suffix < 2 else f"{name}_{suffix}"
        self.integers[value, grid_key(encoding)] = self.quantize(name, produced, encoding)

    def weight(self, value: ir.Value) -> ir.Value:
        key = (value, "weight")
        if key not in self.floats:
            decision = self.decisions.weights[value]
            if decision.bias_of is not None:
                self.floats[key] = self.bias(value, decision.bias_of)
            else:
                self.floats[key] = self.stored(value, decision)
        return self.floats[key]

    def stored(self, value: ir.Value, decision: QuantizedWeight) -> ir.Value:
        encoding, tensor = decision.encoding, value.const_value
        assert encoding is not None
        assert tensor is not None
        name = value.name or ""
        axis, signed = decision.channel_axis, decision.signed
        grid = self.data.add_quantized(
            name,
            tensor,
            encoding,
            channel_axis=axis,
            signed=signed,
            through=decision.through,
            where=name,
        )
        self.keep(grid)
        if encoding.per_tensor:
            inputs = [grid, *self.grid(encoding, signed=signed)]
            return self.op("DequantizeLinear", f"{name}_dq", inputs, value)
        zeros = encoding.zero_point(signed=signed)
        dtype = storage_dtype(encoding, signed=signed)
        inputs = [
            grid,
            self.array(f"{name}_scale", encoding.scale.astype(np.float32)),
            self.array(f"{name}_zero_point", zeros.astype(dtype)),
        ]
        return self.op("DequantizeLinear", f"{name}_dq", inputs, value, axis=axis)

    def bias(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """int32 at the accumulator's scale: the input's times that of the weight's channel."""
        tensor, source, weight = value.const_value, node.inputs[0], node.inputs[1]
        assert tensor is not None
        assert source is not None
        assert weight is not None
        encoding, grid_of_source = (
            self.decisions.weights[weight].encoding,
            self.decisions.of(source),
        )
        assert encoding is not None
        assert grid_of_source is not None
        bias = mapped(tensor)
        scale = np.broadcast_to(float(grid_of_source.scale) * encoding.scale, bias.shape).astype(
            np.float32
        )
        limits = np.iinfo(np.int32)
        grid = np.rint(bias.astype(np.float64) / scale)
        if np.any(np.abs(grid) > limits.max):
            raise BadEncodings(
                "the bias does not fit 32 bits at the scales of its input and weight",
                where=f"{self.where}: {value.name}",
                remedy="calibrate again, so that this layer's input and weights have real ranges",
            )
        name = value.name or ""
        stored = self.data.add(name, grid.astype(np.int32))
        self.keep(stored)
        scales_of = self.array(f"{name}_scale", scale)
        return self.op("DequantizeLinear", f"{name}_dq", [stored, scales_of], value, axis=0)

    def float_weight(self, value: ir.Value) -> ir.Value:
        """float32: as it is, or as it comes back from the grid that the file gives it."""
        key = (value, "float")
        if key not in self.floats:
            decision, tensor = self.decisions.weights[value], value.const_value
            assert tensor is not None
            name, encoding = f"{value.name}_f", decision.through or decision.encoding
            if tensor.size < 2:
                self.floats[key] = self.array(name, mapped(tensor))
                return self.floats[key]
            if encoding is None:
                stored = self.data.add(name, mapped(tensor))
            else:
                axis = decision.channel_axis
                stored = self.data.add_rounded(
                    name, tensor, encoding, channel_axis=axis, where=value.name or ""
                )
            self.keep(stored)
            self.floats[key] = stored
        return self.floats[key]

    def constant(self, value: ir.Value) -> ir.Value:
        if value not in self.plain:
            assert value.const_value is not None
            self.plain[value] = self.array(value.name or "", mapped(value.const_value))
        return self.plain[value]

    # nodes

    def node(self, node: ir.Node) -> None:
        wanted = self.wanted(node)
        floating = self.decisions.computes_in_float(node)
        inputs = [
            None if value is None else self.operand(value, wanted.get(value), floating=floating)
            for value in node.inputs
        ]
        outputs = []
        for value in node.outputs:
            quantized = is_float(value) and self.decisions.of(value) is not None
            suffix = "_float" if quantized and value in self.outputs else ""
            outputs.append(ir.Value(name=f"{value.name}{suffix}", shape=value.shape,
                                    type=value.type))  # fmt: skip
            if value not in self.decisions.produced:
                self.plain[value] = outputs[-1]
        self.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                attributes=list(node.attributes.values()),
                outputs=outputs,
                name=node.name,
            )
        )
        for value, output in zip(node.outputs, outputs, strict=True):
            if is_float(value) and self.decisions.of(value) is not None:
                self.store(value, output)

    def wanted(self, node: ir.Node) -> dict[ir.Value, Encoding]:
        """The grid that a data movement asks of its inputs: its output's."""
        moved = moved_inputs(node)
        encoding = self.decisions.produced.get(node.outputs[0])
        return {} if encoding is None else dict.fromkeys(moved, encoding)

    def store(self, value: ir.Value, output: ir.Value) -> None:
        """Quantize what a node yields, and once more where a cache narrows it."""
        produced = self.decisions.produced.get(value)
        narrowed = self.decisions.narrowed.get(value)
        is_output = value in self.outputs
        if produced is None:
            assert narrowed is not None
            name = value.name if is_output else f"{value.name}_to_{narrowed.bits}_bits"
            self.integers[value, grid_key(narrowed)] = self.quantize(name or "", output, narrowed)
            return
        name = value.name if is_output and narrowed is None else f"{value.name}_q"
        self.integers[value, grid_key(produced)] = self.quantize(name or "", output, produced)
        if narrowed is not None and grid_key(narrowed) != grid_key(produced):
            wide = self.operand(value, produced, floating=False)
            name = value.name if is_output else f"{value.name}_to_{narrowed.bits}_bits"
            self.integers[value, grid_key(narrowed)] = self.quantize(name or "", wide, narrowed)

    # new nodes and constants

    def quantize(self, name: str, value: ir.Value, encoding: Encoding) -> ir.Value:
        scale, zero = self.grid(encoding)
        integers = self.op("QuantizeLinear", name, [value, scale, zero], value)
        integers.type = ir.TensorType(ir.DataType.from_numpy(storage_dtype(encoding, signed=False)))
        return integers

    def dequantize(self, name: str, integers: ir.Value, encoding: Encoding) -> ir.Value:
        return self.op("DequantizeLinear", name, [integers, *self.grid(encoding)], integers)

    def op(
        self, op_type: str, name: str, inputs: list[ir.Value], like: ir.Value, **attributes: int
    ) -> ir.Value:
        output = ir.Value(name=name, shape=like.shape, type=ir.TensorType(ir.DataType.FLOAT))
        self.nodes.append(
            ir.Node(
                "",
                op_type,
                inputs,
                attributes=ir.convenience.convert_attributes(attributes),
                outputs=[output],
                name=f"{op_type}:{name}",
            )
        )
        return output

    def grid(self, encoding: Encoding, *, signed: bool = False) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a per-tensor grid, shared by all that have the same.

        Devices have no signed activations: a symmetric one is unsigned, its zero in the middle.
        """
        key = f"{grid_key(encoding)}{'_signed' if signed else ''}"
        dtype = storage_dtype(encoding, signed=signed)
        zero = encoding.zero_point(signed=signed)
        return (
            self.array(f"scale_{key}", np.asarray(encoding.scale, np.float32)),
            self.array(f"zero_point_{key}", np.asarray(zero).astype(dtype)),
        )

    def array(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A small constant inside the graph."""
        if name not in self.initializers:
            value = ir.Value(name=name, shape=ir.Shape(array.shape),
                             type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))  # fmt: skip
            value.const_value = ir.Tensor(array, name=name)
            self.initializers[name] = value
        return self.initializers[name]

    def keep(self, value: ir.Value) -> None:
        name = value.name or ""
        if name in self.initializers:
            raise BadModel(
                "two tensors have this name", where=name, remedy="rename one of them in the model"
            )
        self.initializers[name] = value


def grid_key(encoding: Encoding) -> str:
    """Names a per-tensor grid: equal exactly where values fall on the same integers."""
    scale = np.float32(encoding.scale).view(np.uint32)
    return f"{encoding.bits}_{int(scale):08x}_{int(-encoding.offset)}"
