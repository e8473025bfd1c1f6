"""The graphs of a twin by size: which splits follow one another, what their caches look like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from genai_core.errors import BadInput, BadModel
from genai_runtime.htp import emulation
from genai_runtime.htp.arithmetic import Integers, quantize
from genai_runtime.htp.metadata import GraphMetadata, TensorMetadata


def is_key(name: str) -> bool:
    """Whether a cache tensor holds keys: tokens on the last axis. Values have them on the third."""
    return name.startswith("past_key_")


def tensor_of(tensors: tuple[TensorMetadata, ...], name: str, graph: str) -> TensorMetadata:
    """The tensor of a name.

    Raises:
        BadModel: The graph has none.
    """
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise BadModel(f"the graph has no {name}", where=graph)


def by_size(facts: emulation.Emulation) -> dict[tuple[int, int], list[GraphMetadata]]:
    """(AR, CL) -> the graphs of all splits, in order.

    Raises:
        BadModel: A split is missing, or there is no graph at all.
    """
    found: dict[tuple[int, int], list[GraphMetadata]] = {}
    for index, part in enumerate(facts.parts, 1):
        for graph in part.binary.graphs:
            key = emulation.graph_key(graph.name)
            chain = found.setdefault((key.ar, key.cl), [])
            if len(chain) != index - 1 or key.split != index or key.splits != len(facts.parts):
                raise BadModel("the graph does not follow on the split before it", where=graph.name)
            chain.append(graph)
    for (ar, cl), chain in found.items():
        if len(chain) != len(facts.parts):
            raise BadModel(f"AR {ar}, CL {cl} is missing in some splits", where=chain[-1].name)
    if not found:
        raise BadModel("there are no graphs", where="emulation")
    return found


def empty_caches(
    graphs: Mapping[tuple[int, int], list[GraphMetadata]], context: int
) -> dict[str, Integers]:
    """Input name -> zeros (as integers) for `context` tokens; one encoding a tensor everywhere.

    Raises:
        BadModel: Graphs differ in a tensor's encoding.
        BadInput: A cache in the processor's own layout.
    """
    encodings: dict[str, tuple[str, float | None, int | None]] = {}
    caches: dict[str, Integers] = {}
    for chain in graphs.values():
        for graph in chain:
            for tensor in (*graph.inputs, *graph.outputs):
                if not tensor.name.startswith(("past_key_", "past_value_")):
                    continue
                if tensor.layout != "flat":
                    raise BadInput("a native cache cannot be emulated", where=tensor.name)
                name = tensor.name.removesuffix("_in").removesuffix("_out") + "_in"
                encoding = (tensor.dtype, tensor.scale, tensor.offset)
                if encodings.setdefault(name, encoding) != encoding:
                    raise BadModel(
                        "its encoding differs between graphs", where=f"{graph.name}: {tensor.name}"
                    )
                if name not in caches:
                    shape = list(tensor.shape)
                    shape[-1 if is_key(name) else 2] = context
                    caches[name] = quantize(np.zeros(shape), tensor)
    return caches
