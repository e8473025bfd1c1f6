"""One 8-bit symmetric encoding for a layer's keys, one for its values.

The cache leaves a pass as `past_key_3_out` and comes back as `past_key_3_in`, raw bytes that nobody
converts; so both ends and all that carries the cache in between share one encoding, in every graph
of a build. Devices want it at 8 bits, unsigned with offset -128. Where the file has other bits, it
is derived from the widest of the ranges that the file gives along the way.

A child (a model of its own for one AR) goes on with the cache of the model's graphs, so it takes
their encoding as it was converted; `held_caches` reads it there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from genai_core.errors import BadEncodings, BadModel
from genai_stages.aimet.model import Encoding, per_tensor
from genai_stages.graph.data_movement import moved_from, moved_inputs, moved_onward
from genai_stages.quantize.encoding_lookup import EncodingLookup, MissingEncoding

BITS = 8
_APART = 1 << BITS
"""Wider by this factor, a grid of 8 bits stores zeros; narrower, it cuts nearly all off."""
_CACHE = re.compile(r"past_(key|value)_(\d+)_(in|out)")


@dataclasses.dataclass(frozen=True)
class KvEncoding:
    """The encoding of one cache and where it holds.

    Attributes:
        encoding: 8 bits, symmetric, offset -128.
        values: Every value of the graph that must carry it.
        derived: How it came about when the file does not have it as it is; else empty.
        beyond: The file's own range where it is wider than a held one: what lies beyond is cut off.
    """

    encoding: Encoding
    values: tuple[ir.Value, ...]
    derived: str
    beyond: float | None = None


def held_caches(part: Path) -> dict[str, Encoding]:
    """Cache (`past_key_3`) -> its encoding in a converted part of another graph.

    Raises:
        BadModel: It is not quantized.
    """
    graph = onnx.load(str(part), load_external_data=False).graph  # noqa: TID251 - structure only
    constants = {constant.name: constant for constant in graph.initializer}
    read_by = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    made_by = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    held: dict[str, Encoding] = {}
    for value in (*graph.input, *graph.output):
        match = _CACHE.fullmatch(value.name)
        if match is None:
            continue
        node = read_by.get(value.name) or made_by.get(value.name)
        if node is None:
            raise BadModel("its cache is not quantized", where=f"{part.name}: {value.name}")
        scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        name = f"past_{match[1]}_{match[2]}"
        held[name] = Encoding(
            name, BITS, symmetric=True,
            scale=np.asarray(scale, np.float64), offset=-np.asarray(zero, np.float64),
        )  # fmt: skip
    return held


def kv_encodings(
    graph: ir.Graph, lookup: EncodingLookup, held: Mapping[str, Encoding] | None = None
) -> list[KvEncoding]:
    """The caches of a graph, by inputs and outputs `past_key_{l}_in`, `past_value_{l}_out` ...

    Args:
        graph: Static, float.
        lookup: What the file says.
        held: Cache -> the encoding that it must have, since other graphs have it so.

    Raises:
        BadEncodings: A cache's own entry and that of what is stored in it are of different worlds.
        MissingEncoding: No entry says anything about a cache, and it is not held.
    """
    ends: dict[tuple[str, str], list[ir.Value]] = {}
    for value in (*graph.inputs, *graph.outputs):
        match = _CACHE.fullmatch(value.name or "")
        if match:
            ends.setdefault((match[1], match[2]), []).append(value)
    return [
        _cache(values, lookup, (held or {}).get(f"past_{kind}_{layer}"))
        for (kind, layer), values in ends.items()
    ]


def _cache(ends: list[ir.Value], lookup: EncodingLookup, held: Encoding | None) -> KvEncoding:
    """One cache; a graph without a past has its new slice alone."""
    carried = [ends[0], *moved_onward(ends[0])]
    # What is concatenated to the past arrives from elsewhere: it must carry the same encoding.
    inside = set(carried)
    joined = [
        other
        for value in carried[1:]
        if (producer := value.producer()) is not None
        for other in moved_inputs(producer)
        if other not in inside
    ]
    values = list(dict.fromkeys([*carried, *joined, *ends]))
    # Ranges further back, up to where keys and values are computed, say what must fit as well.
    origins = [source for value in values for source in moved_from(value)]
    names = dict.fromkeys(value.name or "" for value in [*values, *origins])
    known = [entry for name in names if (entry := lookup.activation(name)) is not None]
    entries = list({entry.name: entry for entry in known}.values())
    if not entries and held is not None:
        return KvEncoding(held, tuple(values), f"+-{float(held.high):.6g}, the model's, held")
    if not entries:
        raise MissingEncoding(
            "no entry names this cache or what is stored in it",
            where=f"{lookup.where}: {lookup.source(ends[0].name or '')}",
            remedy="calibrate with the cache as inputs, or set quantization.gaps to Calibrate",
        )
    encoding, derived = _choose(ends[0].name or "", entries)
    _check(encoding, entries, [v.name or "" for v in origins if v not in values], lookup)
    if held is None:
        return KvEncoding(encoding, tuple(values), derived)
    if np.float32(encoding.scale) == np.float32(held.scale):  # as they are written
        return KvEncoding(held, tuple(values), derived)
    own, models = float(encoding.high), float(held.high)
    why = f"+-{models:.6g}, the model's, whose cache it goes on with; its own is +-{own:.6g}"
    return KvEncoding(held, tuple(values), why, own if own > models else None)


def _check(
    encoding: Encoding, entries: list[Encoding], origins: list[str], lookup: EncodingLookup
) -> None:
    """Refuse a range that cannot hold, or cannot tell apart, what is computed and then stored."""
    computed = [entry for name in origins if (entry := lookup.entry(name)) in entries]
    if not computed:
        return
    stored = max(computed, key=_reach)
    if 1 / _APART < _reach(encoding) / _reach(stored) < _APART:
        return
    own = next((entry for entry in entries if _reach(entry) == _reach(encoding)), encoding)
    raise BadEncodings(
        f"the cache's range is +-{_reach(own):.3g}, and {stored.name}, which is stored in it, has "
        f"+-{_reach(stored):.3g}",
        where=f"{lookup.where}: {own.name}",
        remedy="export model and encodings from the same simulation, with a cache that is in use",
    )


def _reach(entry: Encoding) -> float:
    """The largest absolute value that both sides of a symmetric grid have."""
    high = float(entry.high)
    return high if entry.symmetric else max(-float(entry.low), high)


def _choose(name: str, entries: list[Encoding]) -> tuple[Encoding, str]:
    ready = [entry for entry in entries if entry.bits == BITS and entry.signed]
    if ready and all(entry.same_grid(ready[0]) for entry in ready):
        return ready[0], ""
    pool = ready or entries
    widest = max(map(_reach, pool))
    encoding = per_tensor(name, -widest, widest, bits=BITS, symmetric=True)
    sources = ", ".join(f"{entry.name} ({entry.bits} bits)" for entry in pool[:4])
    return encoding, f"8 bits symmetric, +-{widest:.6g}, the widest of {sources}"
