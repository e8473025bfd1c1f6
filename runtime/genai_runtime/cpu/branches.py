"""LoRA branches in a CPU model: y + mask * (x A) B at some of its linears.

A and B are inputs, so adapters come and go without another graph. All resident adapters lie beside
one another along the rank; the mask has the alpha of a token's adapter in its columns and 0 in all
others, so rows with different adapters share a pass, and a row without any is the base's to the
bit.

    inputs   lora.A.{i}.{p} float32 [blocks, in, 16]     of the i-th linear, the p-th part of ranks
             lora.B.{i}.{p} float32 [16 * blocks, out]
             lora.mask.{p}  float32 [blocks, L, 16]
             lora.rows      int64 [L]                    the token of each row of the products

A row's result must depend on nothing but that row. MLAS cuts the sum of a product by its number of
columns, and that by threads, as far as there are 16 columns for each; and it multiplies a lone row
in another order than several. So A lies in blocks of 16 columns, a product each (what no adapter
has is padded to 16, and to nothing more), which are never cut by columns; B in parts of 128 ranks,
whose sums are never cut; and no product is of one row: a lone token is given twice, and where
threads cut a product by rows there are two for each (`least_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadModel
from genai_runtime.cpu.onnx_edits import in_order, make, producers, replace_all

__all__ = ["BLOCK", "PART", "ROWS", "branched", "input_names", "least_rows", "mask_name"]

BLOCK = 16
"""Columns of a product with A: what MLAS gives to one thread at least."""

PART = 128
"""Ranks of a product with B: the least that MLAS sums up without a cut."""

ROWS = "lora.rows"
_FLAT = "lora.flat"
_TWICE = 2


def input_names(number: int, part: int) -> tuple[str, str]:
    """Names of A and B of one linear and part."""
    return f"lora.A.{number}.{part}", f"lora.B.{number}.{part}"


def mask_name(part: int) -> str:
    """Name of the mask of a part."""
    return f"lora.mask.{part}"


def least_rows(rows: int, *, threads: int, outputs: int) -> int:
    """Rows of the products for so many tokens.

    A product with more columns than rows is cut by columns; else by rows, among all threads.

    Args:
        rows: At least two.
        threads: Of the session.
        outputs: The fewest columns of any B.
    """
    cut_by_rows = rows >= min(BLOCK, outputs)
    return max(rows, _TWICE * threads) if cut_by_rows else rows


def branched(model: onnx.ModelProto, linears: Sequence[str], *, parts: int = 1) -> onnx.ModelProto:
    """The model with a branch at each linear.

    Args:
        model: A container's, not packed yet.
        linears: Output tensors; the order is that of the inputs.
        parts: Of the ranks.

    Raises:
        BadModel: One of them is no linear of the model.
    """
    if not linears:
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes = producers(graph.node)
    added: list[onnx.NodeProto] = []
    value = helper.make_tensor_value_info
    for number, output in enumerate(linears):
        source = _source(nodes, output)
        own = f"lora.{number}"
        maker = nodes[output]
        maker.output[0] = f"{own}.plain"
        maker.name = f"{maker.op_type}:{own}.plain"
        added.append(make("Gather", [source, ROWS], [f"{own}.wide"], axis=1))
        ups = []
        for part in range(parts):
            a, b = input_names(number, part)
            graph.input.append(
                value(a, TensorProto.FLOAT, [f"blocks.{part}", f"in.{number}", BLOCK])
            )
            graph.input.append(value(b, TensorProto.FLOAT, [f"ranks.{part}", f"out.{number}"]))
            ups.append(f"{own}.{part}.up")
            added += [
                make("MatMul", [f"{own}.wide", a], [f"{own}.{part}.down"]),
                make("Mul", [f"{own}.{part}.down", mask_name(part)], [f"{own}.{part}.masked"]),
                make("Transpose", [f"{own}.{part}.masked"], [f"{own}.{part}.rows"], perm=[1, 0, 2]),
                make("Reshape", [f"{own}.{part}.rows", _FLAT], [f"{own}.{part}.flat"]),
                make("MatMul", [f"{own}.{part}.flat", b], [ups[-1]]),
            ]
        up = ups[0]
        for part, more in enumerate(ups[1:], start=1):
            added.append(make("Add", [up, more], [f"{own}.{part}.sum"]))
            up = f"{own}.{part}.sum"
        added += [
            make("Gather", [up, "packed.kept"], [f"{own}.kept"], axis=0),
            make("Add", [f"{own}.plain", f"{own}.kept"], [output]),
        ]
    for part in range(parts):
        graph.input.append(
            value(mask_name(part), TensorProto.FLOAT, [f"blocks.{part}", "L", BLOCK])
        )
    graph.input.append(value(ROWS, TensorProto.INT64, ["L"]))
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), _FLAT))
    replace_all(graph.node, in_order([*graph.node, *added]))
    return made


def _source(nodes: dict[str, onnx.NodeProto], output: str) -> str:
    """What a linear reads, before it is put onto a grid."""
    node = nodes.get(output)
    if node is not None and node.op_type == "Add":  # its bias
        node = nodes.get(node.input[0])
    if node is None or node.op_type not in ("MatMul", "MatMulNBits"):
        raise BadModel(
            f"it has no linear {output}",
            where="model.onnx",
            remedy="use an adapter that was built for this container",
        )
    source = str(node.input[0])
    while source in nodes and nodes[source].op_type in ("QuantizeLinear", "DequantizeLinear"):
        source = str(nodes[source].input[0])
    return source
