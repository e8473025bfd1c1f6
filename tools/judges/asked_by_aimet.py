"""Runs in AIMET's environment: what AIMET itself makes of encodings, tensor by tensor.

asked_by_aimet.py CASES.json ANSWERS.json: cases are [name, model, encodings]. The answer of a case
holds, for each tensor that AIMET quantizes, the ONNX type of its integers, axis, block size, the
shape of its scales, digests of scales and zero points, and of the integers of an initializer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from aimet_onnx import encodings_to_onnx_qdq
from onnx import helper, numpy_helper


def digest(array: Any, kind: str) -> str:
    """Of the numbers in C order, little endian."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype=kind).tobytes()).hexdigest()[:16]


def answer(model: str, encodings: str) -> dict[str, list[Any]]:
    """Tensor -> type, axis, block size, shape of scales, digests of scales, zeros, integers."""
    made = encodings_to_onnx_qdq(model, encodings)
    folder = str(Path(model).parent)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    told = {}
    # Where AIMET quantizes an output, what stands before it gets a new name.
    outputs = {f"{value.name}_qdq": value.name for value in made.graph.output}
    for node in made.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale = numpy_helper.to_array(held[node.input[1]])
        given = {part.name: helper.get_attribute_value(part) for part in node.attribute}
        axis, size = given.get("axis", 1) if scale.ndim else None, given.get("block_size", 0)
        kind = held[node.input[2]].data_type
        zero = numpy_helper.to_array(held[node.input[2]])
        integers = None
        if node.input[0] in held and not size:
            values = numpy_helper.to_array(held[node.input[0]], folder).astype(np.float32)
            integers = digest(_on_grid(values, scale, zero, axis, kind), "<i4")
        name = onnx.TensorProto.DataType.Name(kind).lower()
        tensor = outputs.get(node.input[0], node.input[0])
        told[tensor] = [name, axis, size, list(scale.shape), digest(scale, "<f4"),
                               digest(zero, "<i4"), integers]  # fmt: skip
    return told


def _on_grid(values: Any, scale: Any, zero: Any, axis: int | None, kind: int) -> Any:
    """ONNX's definition of QuantizeLinear."""
    name = onnx.TensorProto.DataType.Name(kind).lower()
    bits, signed = int(name.lstrip("uint")), name.startswith("int")
    low = -(2 ** (bits - 1)) if signed else 0
    shape = [-1 if place == axis else 1 for place in range(values.ndim)]
    wide = zero.astype(np.float32)
    if axis is not None:
        scale, wide = scale.reshape(shape), wide.reshape(shape)
    return np.clip(np.rint(values / scale) + wide, low, low + 2**bits - 1)


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(
        json.dumps({name: answer(model, encodings) for name, model, encodings in cases})
    )
