"""How far the tensors of a model go that wears adapters, and encodings that hold it.

A range of the base stays where it holds what was reached, and is widened where it does not: the
base's own text may have gone further than what was read here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_stages.aimet.arithmetic import outwards
from genai_stages.aimet.model import EncodingSet, per_tensor
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.provenance import source_of
from genai_stages.lora.branch_ranges import Combination
from genai_stages.quantize.calibrate import TensorWatching, tensor_ranges
from genai_stages.quantize.watch import Range, Watching

__all__ = ["REACHED_FILE", "reached", "read_reached", "widened"]

REACHED_FILE = "reached.json"
"""Source tensor -> [smallest, largest]."""


class _Wearing(Watching):
    """Adds branches to linears."""

    worn: Combination

    def linear(self, node: ir.Node) -> None:
        super().linear(node)
        out = node.outputs[0]
        name = out.name or ""
        pair = self.worn.at(name)
        if pair is None:
            return
        source = node.inputs[0]
        assert source is not None
        a, b = (self.constant(f"{name}.{end}", one) for end, one in zip("AB", pair, strict=True))
        up = self.op("MatMul", self.op("MatMul", self.mapped(source), a), b)
        plain = self.map[out]
        plain.name = f"{name}.plain"
        total = self.op("Add", plain, up, name=name)
        total.shape, total.type = out.shape, out.type
        self.map[out] = total


class _WornTensors(TensorWatching, _Wearing):
    """Watches every tensor of the model that wears them."""

    def __init__(
        self, facts: ModelFacts, first: ir.Value, last: ir.Value, *, worn: Combination
    ) -> None:
        super().__init__(facts, first, last)
        self.worn = worn


def reached(
    core: Path,
    worn: Combination,
    pieces: Sequence[NDArray[np.integer]],
    *,
    scratch: Path,
    threads: int = 1,
) -> dict[str, Range]:
    """Source tensor -> its extremes, rounded outwards.

    Args:
        core: Folder of the core graph with its weights.
        worn: Adapters.
        pieces: Token ids, each piece [T].
        scratch: An empty folder.
        threads: Of ONNX Runtime.

    Raises:
        BadModel: The model yields values that are not finite.
    """
    model, facts = read_core(core)
    spans = tensor_ranges(
        core,
        model,
        facts,
        partial(_WornTensors, worn=worn),
        pieces=pieces,
        scratch=scratch,
        threads=threads,
    )
    found: dict[str, Range] = {}
    for name, (low, high) in spans.items():
        source = source_of(name, facts.provenance).source
        before = found.get(source, (0.0, 0.0))
        found[source] = min(before[0], outwards(low)), max(before[1], outwards(high))
    return found


def read_reached(folder: Path) -> dict[str, Range]:
    """What `lora_ranges` wrote; nothing where it was not asked for.

    Raises:
        BadModel: It is something else.
    """
    path = folder / REACHED_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
        return {str(name): (float(low), float(high)) for name, (low, high) in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"cannot be read: {error}", where=path.name, remedy="build again") from error


def widened(encodings: EncodingSet, spans: Mapping[str, Range]) -> EncodingSet:
    """The encodings, those of activations holding what was reached; bits and symmetry stay."""
    entries = dict(encodings.entries)
    for name, (low, high) in spans.items():
        own = entries.get(name)
        if own is None or not own.per_tensor or (low >= own.low and high <= own.high):
            continue
        ends = min(low, float(own.low)), max(high, float(own.high))
        entries[name] = per_tensor(name, *ends, bits=own.bits, symmetric=own.symmetric)
    return dataclasses.replace(encodings, entries=entries)
