"""Check a part whose heads were split against the same part with all heads together.

Both get the same tokens or random hidden states, and the same half-filled cache; what they yield is
compared at the part's end and at every cache output. Layer by layer, each side going on with its
own numbers, so that only one layer's weights are mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import DriftError
from genai_core.facts import ModelFacts
from genai_runtime.masks import EMPTY
from genai_stages.static.split import ModelPart, boundary_name, cut
from genai_stages.static.static_graph import StaticGraph, is_adapter_input
from genai_stages.static.static_session import (
    Arrays,
    StaticSession,
    adapter_feed,
    position_inputs,
)

TOLERANCE = 1e-5
"""Largest difference of outputs up to 1; of larger ones in proportion (float32 rounding)."""


def compare_heads(
    before: StaticGraph,
    after: StaticGraph,
    facts: ModelFacts,
    *,
    part: ModelPart,
    weights: Path,
    threads: int = 1,
) -> float:
    """The largest difference of any output, in proportion to the largest value where that is > 1.

    Args:
        before: The part with all heads together.
        after: The part with its heads split.
        facts: The model's facts.
        part: Which part it is.
        weights: The folder that the external data of both is relative to.
        threads: Of ONNX Runtime.

    Raises:
        DriftError: It is more than the tolerance.
    """
    drift = 0.0
    first = ""
    feeds = _feeds(before, facts, part)
    states = [dict(feeds), dict(feeds)]
    for piece in pieces(part):
        found: list[Arrays] = []
        for graph, state in zip((before, after), states, strict=True):
            model = cut(graph, facts, piece, name="check").model
            session = StaticSession(model, weights, threads=threads)
            outputs = session.run(state)
            state.update(outputs)
            found.append(outputs)
            del session
        inner = boundary_name(piece.last) if piece.last < part.last else ""
        for name, wanted in found[0].items():
            difference = _difference(wanted, found[1][name])
            if not difference <= TOLERANCE:
                first = first or _described(piece)
            if name != inner:
                drift = float(np.maximum(drift, difference))  # NaN stays NaN
    if not drift <= TOLERANCE:
        raise DriftError(
            f"outputs with split heads depart by {drift:.1e}, allowed are {TOLERANCE:.0e}",
            where=f"{before.model.graph.name}, from {first} on",
            remedy="set transformation.mha2sha to false, and report this with the model",
        )
    return drift


def pieces(part: ModelPart) -> Iterator[ModelPart]:
    """The smallest parts that a part consists of."""
    if part.embedding:
        yield ModelPart(0, 0, embedding=True, lm_head=False)
    for layer in range(part.first, part.last):
        yield ModelPart(layer, layer + 1, embedding=False, lm_head=False)
    if part.lm_head:
        yield ModelPart(part.last, part.last, embedding=False, lm_head=True)


def _described(piece: ModelPart) -> str:
    if piece.first < piece.last:
        return f"layer {piece.first}"
    return "the embedding" if piece.embedding else "the head"


def _feeds(graph: StaticGraph, facts: ModelFacts, part: ModelPart) -> Arrays:
    """Random inputs of a part: tokens or hidden states, and a cache that is half full."""
    random = np.random.default_rng(0)
    shapes = {
        value.name or "": tuple(value.shape.numpy())
        for value in graph.model.graph.inputs
        if value.shape is not None
    }
    feeds: Arrays = {}
    for name, shape in shapes.items():
        if name == "input_ids":
            feeds[name] = random.integers(0, facts.vocab_size, shape).astype(np.int32)
        elif is_adapter_input(name):
            feeds[name] = adapter_feed(name, shape, random)
        else:
            feeds[name] = random.standard_normal(shape, dtype=np.float32)
    masks = [shape for name, shape in shapes.items() if name.startswith("attention_mask")]
    if masks:
        _, _, ar, cl = masks[0]
        past = (cl - ar) // 2
        keys = np.full(cl, EMPTY)
        keys[:past] = np.arange(past)
        queries = np.arange(past, past + ar)
        keys[cl - ar :] = queries
        feeds |= position_inputs(facts, queries, keys)
    return feeds


def _difference(wanted: NDArray[Any], have: NDArray[Any]) -> float:
    return float(np.abs(wanted - have).max()) / max(1.0, float(np.abs(wanted).max()))
