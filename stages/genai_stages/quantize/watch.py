"""The extremes of tensors while the float core graph runs, layer by layer, over pieces of text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_stages.graph.core_graph import write_proto
from genai_stages.graph.expand_attention import Expansion, needed_nodes
from genai_stages.quantize.segments import empty_pasts, session_of

__all__ = ["Range", "Watching", "watched_ranges"]

Range = tuple[float, float]


class Watching(Expansion):
    """An expansion some of whose tensors' extremes are outputs."""

    def __init__(self, facts: ModelFacts, first: ir.Value, last: ir.Value) -> None:
        super().__init__(facts, first, last)
        self.extremes: list[tuple[str, ir.Value, ir.Value]] = []

    def watch(self, value: ir.Value, name: str, *, times: float = 1.0) -> None:
        """Note the extremes of a tensor, times a factor, under a name."""
        if times != 1.0:
            value = self.op("Mul", value, self.number(times))
        low = self.op("ReduceMin", value, keepdims=0)
        high = self.op("ReduceMax", value, keepdims=0)
        for one in (low, high):
            one.type, one.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        self.extremes.append((name, low, high))


def watched_ranges(
    core: Path,
    model: ir.Model,
    facts: ModelFacts,
    make: Callable[[ir.Value, ir.Value], Watching],
    *,
    pieces: Sequence[npt.NDArray[np.integer]],
    scratch: Path,
    threads: int,
) -> dict[str, Range]:
    """Name -> extremes over all pieces.

    Args:
        core: Folder of the core graph with its weights.
        model: The graph.
        facts: Its facts.
        make: The expansion from one core tensor to another.
        pieces: Token ids, each piece [T] read from an empty cache.
        scratch: An empty folder.
        threads: Of ONNX Runtime.

    Raises:
        BadModel: A value is not finite.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    cuts = [model.graph.inputs[0], *(values[name] for name in facts.boundaries)]
    cuts.append(model.graph.outputs[0])
    states: list[npt.NDArray[Any]] = [np.asarray(one, dtype=np.int64)[None] for one in pieces]
    ranges: dict[str, Range] = {}
    path = scratch / "watched.onnx"
    for first, last in itertools.pairwise(cuts):
        watched = make(first, last)
        expanded = watched.run(needed_nodes(first, last))
        for _, low, high in watched.extremes:
            expanded.graph.outputs.extend((low, high))
        write_proto(expanded, path)
        session = session_of(path, core, threads)
        names = [session.get_outputs()[0].name]
        names += [value.name for _, low, high in watched.extremes for value in (low, high)]
        for index, state in enumerate(states):
            feed = {session.get_inputs()[0].name: state, **empty_pasts(session)}
            states[index], *spans = session.run(names, feed)
            pairs = zip(watched.extremes, zip(spans[::2], spans[1::2], strict=True), strict=True)
            for (name, _, _), (low, high) in pairs:
                ranges[name] = _joined(ranges.get(name), float(low), float(high), name=name)
        path.unlink()
    return ranges


def _joined(before: Range | None, low: float, high: float, *, name: str) -> Range:
    if not np.isfinite(low) or not np.isfinite(high):
        raise BadModel(
            "the float model yields values that are not finite",
            where=name,
            remedy="check the model's weights; export it again",
        )
    return (low, high) if before is None else (min(before[0], low), max(before[1], high))
