"""Ranges of tensors that the source model does not have: they follow from the operator.

A mask as an input, a rotary table, the halves of a rotation, scores before they are scaled: the
file has no entry for them, and their ranges follow from those of what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from genai_stages.aimet.checks import MASK_HIDDEN
from genai_stages.aimet.model import Encoding, per_tensor
from genai_stages.quantize.encoding_lookup import EncodingLookup

__all__ = ["BITS", "DerivedRanges"]

BITS = 16
"""Of activations."""


class DerivedRanges:
    """Derives encodings, and keeps how.

    Args:
        lookup: The file.
        rotary_limits: Input name -> largest absolute value of that table, where it is not 1.
        held: The grid on which a node finds a value; None where that is floating point.
        derived: Tensor -> how its encoding came about; added to.
    """

    def __init__(
        self,
        lookup: EncodingLookup,
        rotary_limits: Mapping[str, float],
        held: Callable[[ir.Value], Encoding | None],
        derived: dict[str, str],
    ) -> None:
        self._lookup = lookup
        self._rotary_limits = rotary_limits
        self._held = held
        self._derived = derived

    def of_input(self, value: ir.Value) -> Encoding | None:
        """Of an input of the graph: a mask or a rotary table; None for any other."""
        name = value.name or ""
        if name.startswith("attention_mask"):
            return self._derive(value, MASK_HIDDEN, 0.0, "an additive mask")
        if name.startswith("position_ids_"):
            limit = self._rotary_limits.get(name, 1.0)
            return self._derive(value, -limit, limit, "a rotary table", symmetric=True)
        return None

    def of_joined(self, node: ir.Node, value: ir.Value, grids: list[Encoding]) -> Encoding:
        """Of what a Concat or a scatter joins from several grids."""
        low = min(float(grid.low) for grid in grids)
        high = max(float(grid.high) for grid in grids)
        return self._derive(value, low, high, f"what {node.op_type} joins")

    def of_output(self, node: ir.Node, value: ir.Value) -> Encoding | None:
        """Ranges that follow from the operator and the ranges of its inputs."""
        kind = node.op_type
        if kind == "Softmax":
            return self._derive(value, 0.0, 1.0, "a softmax")
        if kind == "Tanh":
            return self._derive(value, -1.0, 1.0, "a tanh", symmetric=True)
        if kind == "Neg":
            grid = self._grid(_given(node, 0))
            return self._derive(value, -float(grid.high), -float(grid.low), "a negated range")
        if kind in ("Mul", "Div"):
            return self._scaled(node, value) or self._rotated(node, value)
        if kind == "Add":
            for data, mask in ((0, 1), (1, 0)):
                if (_given(node, mask).name or "").startswith("attention_mask"):
                    scores, hiding = self._grid(_given(node, data)), self._grid(_given(node, mask))
                    low, high = float(scores.low + hiding.low), float(scores.high)
                    return self._derive(value, low, high, "masked scores")
        if kind == "MatMul":
            return self._before_scaling(value)
        return None

    def _scaled(self, node: ir.Node, value: ir.Value) -> Encoding | None:
        """A tensor times a constant, or divided by one."""
        for data, factor in ((0, 1), (1, 0)):
            constant = _scalar(_given(node, factor))
            if constant is None or (node.op_type == "Div" and factor == 0):
                continue
            grid = self._grid(_given(node, data))
            times = 1.0 / constant if node.op_type == "Div" else constant
            ends = sorted((float(grid.low) * times, float(grid.high) * times))
            return self._derive(value, ends[0], ends[1], f"its input times {times:.6g}")
        return None

    def _rotated(self, node: ir.Node, value: ir.Value) -> Encoding | None:
        """A half of a rotation: an operand times cos or sin, which never exceed their limit."""
        for data, table in ((0, 1), (1, 0)):
            origin = _given(node, table)
            name = origin.name or ""
            if not name.startswith("position_ids_"):
                continue
            grid = self._grid(_given(node, data))
            limit = self._rotary_limits.get(name, 1.0)
            widest = max(-float(grid.low), float(grid.high)) * limit
            return self._derive(value, -widest, widest, f"its input times {name}", symmetric=True)
        return None

    def _before_scaling(self, value: ir.Value) -> Encoding | None:
        """Raw scores, where the source scales its queries beforehand: the scaled ones, undone."""
        for consumer in value.consumers():
            if consumer.op_type not in ("Mul", "Div"):
                continue
            for index in (0, 1):
                constant = _scalar(_given(consumer, index))
                entry = self._lookup.activation(consumer.outputs[0].name or "", bits=BITS)
                if constant is None or entry is None or _given(consumer, 1 - index) is not value:
                    continue
                times = constant if consumer.op_type == "Div" else 1.0 / constant
                low, high = float(entry.low) * times, float(entry.high) * times
                return self._derive(value, low, high, f"{entry.name} times {times:.6g}")
        return None

    def _grid(self, value: ir.Value) -> Encoding:
        """The grid of a value that is known to have one."""
        encoding = self._held(value)
        assert encoding is not None
        return encoding

    def _derive(
        self, value: ir.Value, low: float, high: float, reason: str, *, symmetric: bool = False
    ) -> Encoding:
        name = value.name or ""
        self._derived[name] = f"{reason}, {low:.6g} .. {high:.6g}"
        return per_tensor(name, low, high, bits=BITS, symmetric=symmetric)


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _scalar(value: ir.Value) -> float | None:
    tensor = value.const_value
    if not value.is_initializer() or tensor is None or tensor.size != 1:
        return None
    number = float(tensor.numpy().reshape(()))
    return number if number != 0 else None
