"""How many elements a node yields, told before it is computed.

A few bytes can ask for terabytes: a Range with a far limit, an Expand to a huge shape, a mask of
every position against every other. What is too much is refused by its size, not by the machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.source.source_model import Array

_SPREADING = {
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Less", "LessOrEqual", "Greater",
    "GreaterOrEqual", "And", "Or", "Xor", "Where", "Max", "Min", "BitwiseAnd", "BitwiseOr",
    "BitShift", "PRelu", "Sum", "Mean",
}  # fmt: skip


BY_VALUES = frozenset(
    {
        "BlackmanWindow", "Col2Im", "ConvTranspose", "Einsum", "Gather", "HammingWindow",
        "HannWindow", "MaxUnpool", "Pad", "RandomNormal", "RandomUniform", "Resize", "Upsample",
    }
)  # fmt: skip
"""Operators whose output may have more elements than their inputs, by rules that ONNX's shape
inference knows best."""


def elements(node: StaticNode, arrays: Sequence[Array | None]) -> int:
    """Elements of a node's first output, 0 where that follows from its inputs' own sizes."""
    given = [array for array in arrays if array is not None]
    try:
        match node.op_type:
            case "Range":
                start, stop, step = (float(array.reshape(-1)[0]) for array in given[:3])
                return max(0, int((stop - start) / step)) if step else 0
            case "ConstantOfShape":
                return _product(given[0])
            case "Expand":
                shape = tuple(int(size) for size in given[1].reshape(-1))
                return _product(np.array(np.broadcast_shapes(given[0].shape, shape)))
            case "Tile":
                return given[0].size * _product(given[1])
            case "OneHot":
                return given[0].size * int(given[1].reshape(-1)[0])
            case kind if kind in _SPREADING:
                return _product(np.array(np.broadcast_shapes(*[one.shape for one in given])))
            case "MatMul":
                return int(given[0].size // max(1, given[0].shape[-1]) * given[1].shape[-1])
    except (ValueError, IndexError, OverflowError):
        # The node itself says what is wrong with its inputs.
        return 0
    return 0


def _product(sizes: Array) -> int:
    total = 1
    for size in sizes.reshape(-1).tolist():
        total *= max(0, int(size))
    return total
