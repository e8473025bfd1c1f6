"""LoRA branches in a CPU model: y + mask * (x A) B at some of its linears.

A and B are inputs, so adapters come and go without another graph. All resident adapters lie beside
one another along the rank; the mask has the alpha of a token's adapter in its columns and 0 in all
others, so rows with different adapters share a pass, and a row without any is the base's to the
bit.

    inputs   lora.A.{i} float32 [in, R], lora.B.{i} float32 [R, out]: of the i-th linear
             lora.mask float32 [1, M, R]

Written for packed rows: the products see each token as attention does, a lone one twice (see
`packing`), since MLAS multiplies one row in another order than several.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from genai_core.errors import BadModel
from genai_runtime.cpu.graphs import in_order, make, producers, replace_all

__all__ = ["MASK", "branched", "input_names"]

MASK = "lora.mask"


def input_names(number: int) -> tuple[str, str]:
    """Names of A and B of one linear."""
    return f"lora.A.{number}", f"lora.B.{number}"


def branched(model: onnx.ModelProto, linears: Sequence[str]) -> onnx.ModelProto:
    """The model with a branch at each linear.

    Args:
        model: A container's, not packed yet.
        linears: Output tensors; the order is that of the inputs.

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
        a, b = input_names(number)
        graph.input.append(value(a, TensorProto.FLOAT, [f"in.{number}", "R"]))
        graph.input.append(value(b, TensorProto.FLOAT, ["R", f"out.{number}"]))
        own = f"lora.{number}"
        maker = nodes[output]
        maker.output[0] = f"{own}.plain"
        maker.name = f"{maker.op_type}:{own}.plain"
        added += [
            make("Gather", [source, "packed.wide"], [f"{own}.wide"], axis=1),
            make("MatMul", [f"{own}.wide", a], [f"{own}.down"]),
            make("Mul", [f"{own}.down", MASK], [f"{own}.masked"]),
            make("MatMul", [f"{own}.masked", b], [f"{own}.up"]),
            make("Gather", [f"{own}.up", "packed.kept"], [f"{own}.kept"], axis=1),
            make("Add", [f"{own}.plain", f"{own}.kept"], [output]),
        ]
    graph.input.append(value(MASK, TensorProto.FLOAT, [1, "M", "R"]))
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
