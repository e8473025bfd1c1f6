"""The linears of a container that take adapters, for those that come after the build.

The model keeps the names of the core graph's tensors, so a linear is found by the path in its name,
as in the core graph. What the names do not tell (exports that lost them, projections that ingest
has cut into parts) stands in the core graph's facts alone: such places have no path here, and
nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from genai_core.errors import BadModel
from genai_core.facts import AdapterInputs
from genai_stages.graph.linear_sites import LinearSite
from genai_stages.lora.modules import LinearPlace, path_of

__all__ = ["places_of_container", "places_of_inputs"]

_PRODUCT = ".product"


def places_of_inputs(inputs: AdapterInputs) -> list[LinearPlace]:
    """The linears of static graphs that take adapters."""
    return [
        LinearPlace(
            site=LinearSite(
                output=branch.linear,
                source="",
                weight="",
                bias=None,
                inputs=branch.inputs,
                outputs=branch.outputs,
            ),
            layer=None,
            kind="",
            paths=frozenset(filter(None, (path_of(branch.linear),))),
            rows=None,
        )
        for branch in inputs.branches
    ]


def places_of_container(path: Path) -> list[LinearPlace]:
    """Every linear of a container's `model.onnx`, in its order.

    Args:
        path: The file; its data is not read.

    Raises:
        BadModel: It is no ONNX file.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)  # noqa: TID251 - no weights inside
    except Exception as error:  # protobuf and the file system raise their own kinds
        raise BadModel("not an ONNX file", where=str(path)) from error
    graph = model.graph
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    biased = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Add"}
    found = []
    for node in graph.node:
        shape = _shape(node, sizes)
        if shape is None:
            continue
        product = node.output[0]
        output = biased[product] if product.endswith(_PRODUCT) else product
        weight = node.input[1].removesuffix(".real")
        paths = frozenset(filter(None, (path_of(output), path_of(weight))))
        site = LinearSite(
            output=output,
            source=node.input[0],
            weight=weight,
            bias=None,
            inputs=shape[0],
            outputs=shape[1],
        )
        found.append(LinearPlace(site=site, layer=None, kind="", paths=paths, rows=None))
    return found


def _shape(node: onnx.NodeProto, sizes: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """Inputs and outputs of a linear; None for any other node."""
    if node.op_type == "MatMulNBits":
        values = {one.name: one.i for one in node.attribute}
        return values["K"], values["N"]
    shape = sizes.get(node.input[1]) if node.op_type == "MatMul" else None
    return (shape[0], shape[1]) if shape is not None and len(shape) == 2 else None
