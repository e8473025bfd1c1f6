"""Decides the encoding of every float tensor of a static graph.

In this order: the file's own entry (by name or provenance); the tie to what a tensor was moved
from; the entry of something that it is only moved to; a rule, for tensors that the source model
does not have (a mask as an input, a rotary table, the halves of a rotation). What is still without
an encoding is a gap, and an error names the tensor and its node; or, where gaps may stay float, the
tensor does, and whatever reads or yields it computes in floating point.

Rules never replace an entry that the file should have: they apply to tensors of our own making.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from genai_core.errors import BadEncodings
from genai_stages.aimet.model import Encoding, per_tensor
from genai_stages.graph.core_graph import mapped
from genai_stages.graph.data_movement import moved_inputs, moved_onward
from genai_stages.quantize.derived_ranges import BITS, DerivedRanges
from genai_stages.quantize.device_weights import for_device
from genai_stages.quantize.encoding_lookup import EncodingLookup, MissingEncoding, rescaled
from genai_stages.quantize.kv_encodings import KvEncoding, kv_encodings
from genai_stages.static.static_graph import is_adapter_input

_NORMS = ("RMSNormalization", "LayerNormalization")
_PROJECTIONS = ("Conv", "Gemm", "MatMul")


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """How an initializer is written.

    Attributes:
        encoding: Its grid; None for a bias, and for what stays floating point.
        through: The file's own grid, where a device needs another one (see `device_weights`).
        channel_axis: The axis of the initializer that counts output channels.
        signed: Its integers are; tables, norms and constants are unsigned, like activations.
        bias_of: For a bias: its node, whose input and weight give the scale; `encoding` is unused.
    """

    encoding: Encoding | None
    channel_axis: int = 0
    signed: bool = False
    through: Encoding | None = None
    bias_of: ir.Node | None = None


@dataclasses.dataclass
class GraphEncodings:
    """The decisions for one graph.

    Attributes:
        produced: Float value -> the grid that its operator (or the graph's input) puts it on.
        narrowed: Values that are converted to a cache's 8-bit grid right behind their operator.
        floating: Float values and initializers without an encoding, which stay as they are.
        weights: Initializer -> how it is written.
        caches: The keys' and values' encodings.
        derived: Tensor -> how its encoding came about, where no entry gives it.
        ties: Tensors that carry the encoding of the tensor they were moved from.
    """

    produced: dict[ir.Value, Encoding] = dataclasses.field(default_factory=dict)
    narrowed: dict[ir.Value, Encoding] = dataclasses.field(default_factory=dict)
    floating: set[ir.Value] = dataclasses.field(default_factory=set)
    weights: dict[ir.Value, QuantizedWeight] = dataclasses.field(default_factory=dict)
    caches: list[KvEncoding] = dataclasses.field(default_factory=list)
    derived: dict[str, str] = dataclasses.field(default_factory=dict)
    ties: dict[str, str] = dataclasses.field(default_factory=dict)

    def of(self, value: ir.Value) -> Encoding | None:
        """The grid on which consumers find the value; None where it stays floating point."""
        return self.narrowed.get(value) or self.produced.get(value)

    def computes_in_float(self, node: ir.Node) -> bool:
        """Whether a node reads or yields a tensor that stays floating point."""
        return any(
            value in self.floating and (value in node.outputs or value not in self.narrowed)
            for value in (*node.inputs, *node.outputs)
            if value is not None
        )


def is_float(value: ir.Value | None) -> bool:
    """A float tensor; an unknown type counts as one."""
    return value is not None and (value.dtype is None or value.dtype.is_floating_point())


def decide(
    graph: ir.Graph,
    lookup: EncodingLookup,
    *,
    rotary_limits: Mapping[str, float] | None = None,
    gaps_float: bool = False,
    held: Mapping[str, Encoding] | None = None,
) -> GraphEncodings:
    """Decide for a graph whose values have types.

    Args:
        graph: A static float graph.
        lookup: The file.
        rotary_limits: Input name -> largest absolute value of that table, where it is not 1.
        gaps_float: A tensor without an encoding stays floating point; a cache never does.
        held: Cache -> the encoding that it must have; see `kv_encodings`.

    Raises:
        MissingEncoding: A tensor has none.
        BadEncodings: An entry does not fit its tensor.
    """
    caches = kv_encodings(graph, lookup, held)
    return _Decision(graph, lookup, rotary_limits or {}, caches, gaps_float=gaps_float).run()


class _Decision:
    def __init__(
        self,
        graph: ir.Graph,
        lookup: EncodingLookup,
        rotary_limits: Mapping[str, float],
        caches: list[KvEncoding],
        *,
        gaps_float: bool,
    ) -> None:
        self.graph = graph
        self.lookup = lookup
        self.gaps_float = gaps_float
        self.ends = set(graph.outputs)
        self.result = GraphEncodings(caches=caches)
        self.ranges = DerivedRanges(lookup, rotary_limits, self.held, self.result.derived)
        self.cache_of: dict[ir.Value, Encoding] = {}
        for cache in self.result.caches:
            for value in cache.values:
                self.cache_of[value] = cache.encoding
            if cache.derived:
                self.result.derived[cache.values[0].name or ""] = cache.derived

    def run(self) -> GraphEncodings:
        for value in self.graph.inputs:
            if is_float(value):
                self.put(value, self.input(value))
        for node in self.graph:
            self.operands(node)
            for value in node.outputs:
                if is_float(value):
                    self.output(node, value)
        return self.result

    def put(self, value: ir.Value, encoding: Encoding | None) -> None:
        """What an operator or the graph's input yields: on a grid, or floating point."""
        if encoding is None:
            self.result.floating.add(value)
        else:
            self.result.produced[value] = encoding

    # inputs and initializers

    def input(self, value: ir.Value) -> Encoding | None:
        name = value.name or ""
        if value in self.cache_of:
            return self.cache_of[value]
        if is_adapter_input(name):
            # Matrices have 8 bits: the device narrows the second operand of a product to these.
            return self.lookup.activation(name) or self.left(value, None)
        encoding = self.own(value)
        if encoding is not None:
            return encoding
        return self.ranges.of_input(value) or self.left(value, None)

    def operands(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is None or not is_float(value) or not value.is_initializer():
                continue
            if value in self.result.weights:
                continue
            self.result.weights[value] = self.weight(node, index, value)

    def weight(self, node: ir.Node, index: int, value: ir.Value) -> QuantizedWeight:
        tensor = value.const_value
        assert tensor is not None
        shape = tensor.shape.numpy()
        if node.op_type in _PROJECTIONS and index == 1:
            axis = _channel_axis(node, len(shape))
            inputs = int(np.prod(shape)) // shape[axis]
            encoding = self.lookup.weight(value.name or "", inputs=inputs)
            if encoding is None:
                return QuantizedWeight(self.left(value, node), axis)
            other = for_device(encoding, tensor, axis)
            if other is None:
                return QuantizedWeight(encoding, axis, signed=encoding.signed)
            wide, how = other
            self.result.derived[value.name or ""] = how
            return QuantizedWeight(wide, axis, signed=True, through=encoding)
        if node.op_type in ("Conv", "Gemm") and index == 2:
            return QuantizedWeight(None, bias_of=node)
        if (node.op_type in _NORMS and index == 1) or node.op_type == "Gather":
            encoding = self.lookup.weight(value.name or "", inputs=shape[-1])
            if encoding is None and node.op_type == "Gather":
                encoding = self.lookup.activation(node.outputs[0].name or "")
            if encoding is None:
                return QuantizedWeight(self.left(value, node))
            if not encoding.per_tensor:
                raise BadEncodings(
                    f"{encoding.scale.size} scales; {node.op_type} on htp reads one for the tensor",
                    where=self.where(value, node),
                    remedy="quantize this tensor per tensor at 16 bits",
                )
            return QuantizedWeight(
                rescaled(encoding, BITS) if encoding.bits not in (8, 16) else encoding
            )
        return self.constant(value)

    def constant(self, value: ir.Value) -> QuantizedWeight:
        """A constant is its own range, whatever the file says or does not say."""
        assert value.const_value is not None
        encoding = self.lookup.activation(value.name or "", bits=BITS)
        if encoding is None:
            array = mapped(value.const_value)
            low, high = float(array.min()), float(array.max())
            encoding = per_tensor(value.name or "", low, high, bits=BITS, symmetric=False)
        return QuantizedWeight(encoding)

    # what operators yield

    def output(self, node: ir.Node, value: ir.Value) -> None:
        result = self.result
        moved = moved_inputs(node)
        cache = self.cache_of.get(value)
        if moved:
            if cache is not None:
                result.produced[value] = cache
            else:
                self.put(value, self.moved(node, value, moved))
            if value in result.produced:
                result.ties[value.name or ""] = moved[0].name or ""
            return
        self.put(value, self.computed(node, value))
        if cache is not None:
            result.narrowed[value] = cache

    def moved(
        self, node: ir.Node, value: ir.Value, inputs: tuple[ir.Value, ...]
    ) -> Encoding | None:
        """One grid for a data movement; several only meet in a Concat or a scatter."""
        grids = [grid for source in inputs if (grid := self.held(source)) is not None]
        if len(grids) < len(inputs):
            return None
        if all(grid.same_grid(grids[0]) for grid in grids):
            return grids[0]
        encoding = self.lookup.activation(value.name or "", bits=BITS)
        if encoding is not None:
            return encoding
        return self.ranges.of_joined(node, value, grids)

    def held(self, value: ir.Value) -> Encoding | None:
        """The grid on which a node finds a value; None where that is floating point."""
        if value.is_initializer():
            return self.result.weights[value].encoding
        return self.result.of(value)

    def computed(self, node: ir.Node, value: ir.Value) -> Encoding | None:
        if node.op_type == "Gather":
            table = node.inputs[0]
            assert table is not None
            return self.held(table)
        own = self.own(value)
        if own is not None:
            return own
        if self.gaps_float and value in self.ends and value not in self.cache_of:
            # The next part knows nothing of what this one does behind a boundary.
            return self.left(value, node)
        for further in moved_onward(value):
            encoding = self.lookup.activation(further.name or "", bits=BITS)
            if encoding is not None:
                self.result.derived[value.name or ""] = f"the entry of {encoding.name}"
                return encoding
        encoding = None
        if not self.lookup.stands_for_source(value.name or "") and not self.reads_float(node):
            encoding = self.ranges.of_output(node, value)
        return encoding or self.left(value, node)

    def reads_float(self, node: ir.Node) -> bool:
        return any(
            value is not None and is_float(value) and self.held(value) is None
            for value in node.inputs
        )

    def own(self, value: ir.Value) -> Encoding | None:
        """The file's entry, on a grid of 16 bits whatever it has."""
        name = value.name or ""
        entry, encoding = self.lookup.entry(name), self.lookup.activation(name, bits=BITS)
        if entry is not None and encoding is not None and encoding is not entry:
            self.result.derived[name] = f"{entry.bits} bits in the file, the same range at {BITS}"
        return encoding

    # reporting

    def left(self, value: ir.Value, node: ir.Node | None) -> Encoding | None:
        """No encoding: the tensor stays floating point, where that is allowed."""
        if not self.gaps_float:
            raise self.gap(value, node)
        self.result.floating.add(value)
        return None

    def where(self, value: ir.Value, node: ir.Node | None) -> str:
        place = f", node {node.name or node.op_type}" if node is not None else ""
        return f"{self.lookup.where}: {self.lookup.source(value.name or '')}{place}"

    def gap(self, value: ir.Value, node: ir.Node | None) -> MissingEncoding:
        name, source = value.name or "", self.lookup.source(value.name or "")
        entry = self.lookup.entry(name)
        if entry is not None and entry.dtype == "float":
            return MissingEncoding(
                f"the entry leaves the tensor in floating point ({entry.bits} bits)",
                where=self.where(value, node),
                remedy="quantize it, or set quantization.gaps to Float; or delete the entry and "
                "set it to Calibrate",
            )
        what = "the tensor" if source == name else f"the source of tensor {name}"
        return MissingEncoding(
            f"no encoding for {what}",
            where=self.where(value, node),
            remedy="add the entry, or set quantization.gaps to Calibrate or Float",
        )


def _channel_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        return 0 if transposed is not None and transposed.as_int() else 1
    return rank - 1
