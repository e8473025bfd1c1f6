"""Encodings of the branches with which linears of a static graph take adapters.

Their ranges were measured over all adapters of the build. The linear's own result, `plain`, lies on
the grid of the sum; matrices have 8 bits, all else 16, and every grid but alpha's is symmetric, so
that zeros are exact: without an adapter the branch adds nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.facts import AdapterInputs, AdapterRanges, TensorSource
from genai_stages.aimet.model import Encoding, EncodingSet, channel_scales, per_tensor
from genai_stages.graph.data_movement import moved_onward
from genai_stages.graph.provenance import source_of

__all__ = ["with_branches", "with_constants"]

_BITS = 16
_MATRIX_BITS = 8


def with_branches(
    graph: ir.Graph,
    encodings: EncodingSet,
    adapters: AdapterInputs,
    ranges: AdapterRanges,
    *,
    provenance: Mapping[str, TensorSource],
) -> EncodingSet:
    """The encodings with those of branches.

    Args:
        graph: A part of a static graph.
        encodings: Of the source.
        adapters: The branches of the whole graph.
        ranges: Of their values.
        provenance: Of the part.
    """
    entries = dict(encodings.entries)
    entries[adapters.alpha] = per_tensor(adapters.alpha, 0.0, 1.0, bits=_BITS, symmetric=False)
    for branch in adapters.branches:
        for name, measured, bits in (
            (branch.a, branch.a, _MATRIX_BITS),
            (branch.b, branch.b, _MATRIX_BITS),
            (branch.down, branch.down, _BITS),
            (branch.scaled, branch.down, _BITS),
            (branch.up, branch.up, _BITS),
        ):
            width = ranges.widest[measured]
            entries[name] = per_tensor(name, -width, width, bits=bits, symmetric=True)
    for name, own in _plain(graph, encodings, adapters, provenance).items():
        entries.setdefault(name, dataclasses.replace(own, name=name))
    return dataclasses.replace(encodings, entries=entries)


def with_constants(
    graph: ir.Graph,
    encodings: EncodingSet,
    adapters: AdapterInputs,
    ranges: AdapterRanges,
    *,
    weights: Mapping[str, NDArray[np.float32]],
    provenance: Mapping[str, TensorSource],
) -> EncodingSet:
    """The encodings with those of branches whose matrices are constants (see `lora.laid_in`).

    Args:
        graph: A part of a static graph.
        encodings: Of the source.
        adapters: The branches of the whole graph.
        ranges: Of their values.
        weights: Constant -> [out, in]; each output channel has a scale of its own.
        provenance: Of the part.
    """
    entries = dict(encodings.entries)
    for branch in adapters.branches:
        if branch.a not in weights:
            continue
        for name in (branch.a, branch.b):
            entries[name] = channel_scales(name, np.abs(weights[name]).max(axis=1))
        for name in (branch.down, branch.up):
            width = ranges.widest[name]
            entries[name] = per_tensor(name, -width, width, bits=_BITS, symmetric=True)
    for name, own in _plain(graph, encodings, adapters, provenance).items():
        entries.setdefault(name, dataclasses.replace(own, name=name))
    return dataclasses.replace(encodings, entries=entries)


def _plain(
    graph: ir.Graph,
    encodings: EncodingSet,
    adapters: AdapterInputs,
    provenance: Mapping[str, TensorSource],
) -> dict[str, Encoding]:
    """Source of each linear's own result -> the entry of the sum, or of what it is moved to."""

    def source(value: ir.Value | None) -> str:
        return "" if value is None else source_of(value.name or "", provenance).source

    ups = {branch.up for branch in adapters.branches}
    by_source: dict[str, Encoding] = {}
    for node in graph:
        sources = [source(value) for value in node.inputs]
        if node.op_type != "Add" or ups.isdisjoint(sources):
            continue
        total = node.outputs[0]
        entries = (encodings.get(source(behind)) for behind in (total, *moved_onward(total)))
        own = next((entry for entry in entries if entry is not None), None)
        if own is not None:
            by_source[next(name for name in sources if name not in ups)] = own
    return by_source
