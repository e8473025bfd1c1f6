"""Calibration: encodings for tensors that a file leaves out, from the float model on some text.

The core graph runs layer by layer over pieces of tokens; the smallest and the largest value of each
tensor, inside attentions as well, become a 16-bit encoding (min-max). Weights need no text: 8 bits,
symmetric, one scale for each output channel. An entry that the file has is never replaced.

What comes out depends on the model and the tokens alone, so every task that calibrates, for any
graph and split and on any machine, arrives at the same encodings: measured ends are rounded
outwards, and the scales of weights are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.facts import ModelFacts, Role
from genai_stages.aimet.arithmetic import outwards
from genai_stages.aimet.model import Encoding, EncodingSet, channel_scales, per_tensor
from genai_stages.graph.core_graph import DOMAIN, mapped, read_core
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.quantize.encoding_lookup import EncodingLookup
from genai_stages.quantize.watch import Range, Watching, watched_ranges

ACTIVATION_BITS = 16
WEIGHT_BITS = 8
_ROWS = 1 << 20
"""Values of a weight that are looked at in one go."""


def calibrate(
    core: Path,
    encodings: EncodingSet | None,
    pieces: Sequence[npt.NDArray[np.integer]],
    *,
    scratch: Path,
    threads: int = 1,
) -> EncodingSet:
    """The file's encodings and, for each tensor without one, what calibration gives.

    Args:
        core: Folder of a core graph with all its weights.
        encodings: The file; None = the source has none.
        pieces: Token ids, each piece [T] read from an empty cache.
        scratch: An empty folder.
        threads: Of ONNX Runtime.

    Raises:
        BadModel: The float model yields values that are not finite.
    """
    model, facts = read_core(core)
    where = encodings.where if encodings is not None else "calibration"
    given = encodings or EncodingSet("none", where, {})
    lookup = EncodingLookup(given, facts.provenance)
    found = dict(given.entries)
    spans = tensor_ranges(
        core, model, facts, TensorWatching, pieces=pieces, scratch=scratch, threads=threads
    )
    for name, span in spans.items():
        source = lookup.source(name)
        if source not in given:
            low, high = span
            found[source] = _activation(source, (outwards(low), outwards(high)))
    for encoding in _weights(model, lookup):
        found.setdefault(encoding.name, encoding)
    return EncodingSet(given.version, where, found, given.parameters)


def missing_in(encodings: EncodingSet, filled: EncodingSet) -> list[str]:
    """Names that calibration added."""
    known = set(encodings.listed)
    return [name for name in filled if name not in known]


def role_name(roles: Mapping[Role, str], layer: int, role: Role) -> str:
    """The source's tensor of a role; where it has none, the name that the static graphs use."""
    return roles.get(role) or f"layers.{layer}.attention.{role}"


def _activation(name: str, span: Range) -> Encoding:
    low, high = span
    return per_tensor(name, low, high, bits=ACTIVATION_BITS, symmetric=False)


class TensorWatching(Watching):
    """Watches every tensor."""

    def __init__(self, facts: ModelFacts, first: ir.Value, last: ir.Value) -> None:
        super().__init__(facts, first, last)
        self.roles = {one.layer: one.roles for one in facts.attention}

    def linear(self, node: ir.Node) -> None:
        """A linear, and what comes of it."""
        super().linear(node)
        self.watch(self.map[node.outputs[0]], node.outputs[0].name or "")

    def copy(self, node: ir.Node) -> None:
        """An ordinary node, and its float tensors."""
        super().copy(node)
        for value in node.outputs:
            if value.dtype is None or value.dtype.is_floating_point():
                self.watch(self.map[value], value.name or "")

    def seen(self, value: ir.Value, role: Role, spec: AttentionSpec) -> ir.Value:
        """A tensor inside an attention."""
        # Without a past its input is empty, and what is masked reaches an arbitrary depth.
        if role not in ("past_key", "past_value", "masked"):
            roles = self.roles[spec.layer]
            self.watch(value, role_name(roles, spec.layer, role))
            if role == "scaled":
                # The expansion scales queries beforehand, so raw scores are seen scaled alone.
                raw = role_name(roles, spec.layer, "scores")
                self.watch(value, raw, times=1.0 / spec.scale)
        return value


def tensor_ranges(
    core: Path,
    model: ir.Model,
    facts: ModelFacts,
    watching: Callable[[ModelFacts, ir.Value, ir.Value], TensorWatching],
    *,
    pieces: Sequence[npt.NDArray[np.integer]],
    scratch: Path,
    threads: int,
) -> dict[str, Range]:
    """Tensor -> extremes over all pieces; arguments as of `watched_ranges`."""
    ranges = watched_ranges(
        core,
        model,
        facts,
        lambda first, last: watching(facts, first, last),
        pieces=pieces,
        scratch=scratch,
        threads=threads,
    )
    _masked_scores(ranges, facts)
    return ranges


def _masked_scores(ranges: dict[str, Range], facts: ModelFacts) -> None:
    """Scores behind the mask: as they are, or 100 below."""
    for one in facts.attention:
        for role in ("capped", "scaled"):
            span = ranges.get(role_name(one.roles, one.layer, role))
            if span is not None:
                name = role_name(one.roles, one.layer, "masked")
                ranges[name] = (span[0] - 100.0, span[1])
                break


def _weights(model: ir.Model, lookup: EncodingLookup) -> Iterable[Encoding]:
    """Encodings of weights whose source has none; a fused weight is one entry."""
    parts: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]] = {}
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or lookup.entry(value.name or ""):
                continue
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < 2:
                continue
            name = lookup.source(value.name or "")
            if node.domain == DOMAIN and node.op_type == "Linear" and index == 1:
                largest = _largest(mapped(tensor))
                channels = lookup.channels(value.name or "", len(largest))
                parts.setdefault(name, []).append((channels, largest))
            elif index == 1 or node.op_type in ("Gather", "Attention"):
                array = mapped(tensor)
                yield _activation(name, (float(array.min()), float(array.max())))
    for name, rows in parts.items():
        order = np.argsort(np.concatenate([channels for channels, _ in rows]))
        largest = np.concatenate([part for _, part in rows])[order]
        yield channel_scales(name, largest, bits=WEIGHT_BITS)


def _largest(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """The largest absolute value of each row, some rows at a time."""
    step = max(1, _ROWS // max(1, weight.shape[1]))
    rows = [np.abs(weight[at : at + step]).max(axis=1) for at in range(0, weight.shape[0], step)]
    return np.concatenate(rows).astype(np.float64)
