"""Where the weights of a model lie: in files of its folder that somebody vouches for.

A container may be a stranger's, and its graph names files. ONNX Runtime refuses what lies outside,
but weights are also mapped and linked by name here, before it sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx

from genai_core.errors import BadModel
from genai_core.files.paths import check_relative_path

__all__ = ["Holds", "check_locations"]

Holds = Callable[[str], bool]
"""Whether a file of a container, by its relative path, is one of its manifest's."""


def check_locations(model: onnx.ModelProto, path: Path, *, holds: Holds | None) -> None:
    """Refuse a model whose data lies where it must not.

    Args:
        model: Read without its weights.
        path: Its file.
        holds: Of the container; None = any file of the folder will do.

    Raises:
        BadModel: It does; names the tensor.
    """
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            try:
                name = check_relative_path(entry.value)
            except ValueError as error:
                raise _misplaced(tensor, path, str(error)) from error
            if holds is not None and not holds(name):
                raise _misplaced(tensor, path, f"{name!r} is not in the container's manifest")


def _misplaced(tensor: onnx.TensorProto, path: Path, why: str) -> BadModel:
    return BadModel(
        f"the data of {tensor.name!r} may not lie there: {why}",
        where=str(path),
        remedy="fetch the container again, from somebody you trust",
    )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All of them: initializers, and attributes in branches and functions as well."""
    graphs = [model.graph]
    nodes: Sequence[onnx.NodeProto] = [n for function in model.functions for n in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes = [*nodes, *graph.node]
            continue
        attributes = [attribute for node in nodes for attribute in node.attribute]
        nodes = []
        for attribute in attributes:
            sparse_tensors = [attribute.sparse_tensor, *attribute.sparse_tensors]
            yield from (attribute.t, *attribute.tensors)
            yield from (
                part for sparse in sparse_tensors for part in (sparse.values, sparse.indices)
            )
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
