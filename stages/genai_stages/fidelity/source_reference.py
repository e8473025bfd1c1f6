"""The reference of a build's fidelity: the source itself, in float or with its encodings simulated.

It runs layer group by layer group, all pieces through one group before the next, so that only a
group's weights are in memory; they stay mapped from the core graph's files. The core graph takes no
part in it but for those files: a mistake in recognizing the source shows in the comparison.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts
from genai_stages.aimet.model import EncodingSet
from genai_stages.fidelity.simulate_source import SourceSimulation
from genai_stages.fidelity.worn_source import Worn, wear
from genai_stages.graph.core_graph import layer_group, read_core
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.ingest.admission.refuse_source import logits_name
from genai_stages.ingest.admission.source_feeds import Chunk, SourceFeeds
from genai_stages.ingest.admission.source_inputs import SourceInputs, is_local, read_inputs
from genai_stages.ingest.output.keep_source import SOURCE_FILE
from genai_stages.ingest.output.source_part import locate, part_of, read_kept
from genai_stages.ingest.source.source_model import SourceModel
from genai_stages.quantize.encoding_lookup import core_lookup
from genai_stages.quantize.segments import FOLDER_OPTION, Floats, Pieces

_DATA_FILE = "rounded.data"
_GROUP_BYTES = 256 << 20
"""Weights of a group, where a layer has less."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Layers [first, last), from a tensor to a tensor; None = the graph's own ends."""

    start: str | None
    end: str
    first: int
    last: int


class SourceReference:
    """A kept source that is run group by group.

    Args:
        core: Folder of the core graph, with `source/` in it.
        scratch: An empty folder; holds one group's rounded weights at a time.
        encodings: Simulated where given.
        threads: Of ONNX Runtime.
        group_bytes: Weights of a group, where a layer has less.
        adapters: That are added to it.

    Attributes:
        lost: Linears at which an adapter could not be added; see `worn_source.wear`.
    """

    def __init__(
        self,
        core: Path,
        scratch: Path,
        *,
        encodings: EncodingSet | None = None,
        threads: int = 1,
        group_bytes: int = _GROUP_BYTES,
        adapters: Sequence[Worn] = (),
    ) -> None:
        self._core = core
        self._scratch = scratch
        self._threads = threads
        self._proto = read_kept(core)
        model, self.facts = read_core(core)
        source = SourceModel(core / SOURCE_FILE, ir.from_proto(self._proto), {})
        self._inputs = _windowed(read_inputs(source), self.facts)
        self.lost = wear(self._proto, self.facts, adapters) if adapters else []
        self._feeds = SourceFeeds(self._inputs, self.facts.rope)
        self._groups = _groups(self._proto, self.facts, logits_name(source), group_bytes)
        self._simulation: SourceSimulation | None = None
        if encodings is not None:
            weights = {
                name: value.const_value
                for name, value in model.graph.initializers.items()
                if value.const_value is not None
            }
            self._simulation = SourceSimulation(
                self._proto, core, weights, encodings, core_lookup(encodings, self.facts)
            )

    def fits(self, pieces: Pieces) -> bool:
        """Whether pieces can go through a source of its sizes."""
        return all(self._feeds.fits(len(piece)) for piece in pieces)

    def logits(self, pieces: Pieces) -> Iterator[Floats]:
        """Logits [T, V] of each piece [T], every piece from an empty cache."""
        tokens: list[NDArray[Any]] = [np.asarray(piece, dtype=np.int64)[None] for piece in pieces]
        states = tokens
        for group in self._groups[:-1]:
            session = self._session(group)
            states = [
                self._run(session, group, ids, state)
                for ids, state in zip(tokens, states, strict=True)
            ]
            del session
        session = self._session(self._groups[-1])
        for ids, state in zip(tokens, states, strict=True):
            yield self._run(session, self._groups[-1], ids, state)[0]

    def _session(self, group: _Group) -> Any:
        outputs = [group.end]
        if self._inputs.native is not None:
            outputs += [new for _, new in self._caches(group)]
        part = part_of(self._proto, group.start, outputs)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        if self._simulation is not None:
            with TensorFile(self._scratch / _DATA_FILE) as data:
                self._simulation.put_on_grids(part, group.start, data)
        folder = locate(part, [self._scratch, self._core])
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry(FOLDER_OPTION, str(folder))
        # Weights stay mapped from their file: neither packed nor turned in a copy of their own.
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Integers are only passed through: computation between stays float32.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            return ort.InferenceSession(
                part.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantFolding"],
            )
        except Exception as error:
            raise BadModel(
                f"ONNX Runtime refuses the source ({str(error).splitlines()[0]})",
                where=group.end,
                remedy="run ingest again",
            ) from error

    def _caches(self, group: _Group) -> list[tuple[str, str]]:
        """Past input and output of new keys or values of a group's layers."""
        found = []
        for attention in self.facts.attention[group.first : group.last]:
            roles = attention.roles
            for past, new in (("past_key", "key_new"), ("past_value", "value_new")):
                if past in roles and new in roles:
                    found.append((roles[past], roles[new]))
        return found

    def _run(
        self, session: Any, group: _Group, ids: NDArray[Any], state: NDArray[Any]
    ) -> NDArray[Any]:
        """A piece's tensor [1, T, C] through one group; its token ids tell sizes."""
        length = state.shape[1]
        wanted = {value.name: value.type for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        pasts = {name: self._feeds.empty(name) for name in self._feeds.pasts if name in wanted}
        caches = dict(self._caches(group))
        parts = []
        for chunk in self._feeds.chunks(length):
            given: dict[str, NDArray[Any]] = {**self._feeds.known(chunk), **pasts}
            given[self._inputs.tokens] = _filled(ids, chunk)
            if group.start is not None:
                given[group.start] = _filled(state, chunk)
            feeds: dict[str, NDArray[Any]] = {
                name: np.ascontiguousarray(given[name]).astype(_NUMPY[kind], copy=False)
                for name, kind in wanted.items()
            }
            values = dict(zip(names, session.run(names, feeds), strict=True))
            parts.append(values[group.end][:, : chunk.stop - chunk.start])
            if chunk.stop < length:
                for name, past in pasts.items():
                    pasts[name] = self._feeds.extended(name, past, values[caches[name]], chunk)
        return np.concatenate(parts, axis=1)


_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def _filled(state: NDArray[Any], chunk: Chunk) -> NDArray[Any]:
    """A chunk's rows, zeros behind them up to the tokens that a pass takes."""
    rows = state[:, chunk.start : chunk.stop]
    missing = chunk.tokens - rows.shape[1]
    if not missing:
        return rows
    tail = np.zeros((1, missing, *rows.shape[2:]), rows.dtype)
    return np.concatenate([rows, tail], axis=1)


def _windowed(inputs: SourceInputs, facts: ModelFacts) -> SourceInputs:
    """The inputs with the windows of a static source's masks, as ingest found them."""
    if inputs.native is None:
        return inputs
    windows = [one.window for one in facts.attention]
    masks = inputs.named("mask")
    if len(masks) > 1:
        given = {one.name: max(windows, default=0) for one in masks if is_local(one.name)}
    else:
        given = {one.name: windows[0] for one in masks if len(set(windows)) == 1}
    kept = {name: window for name, window in given.items() if window}
    return dataclasses.replace(inputs, windows=kept)


def _groups(
    proto: onnx.ModelProto, facts: ModelFacts, logits: str, group_bytes: int
) -> Sequence[_Group]:
    """Groups of layers between tensors that core graph and source share."""
    made = {name for node in proto.graph.node for name in node.output}
    sizes = {name: group.size_bytes for name, group in facts.groups.items()}
    limit = max([group_bytes, *sizes.values()])
    cuts: list[tuple[str | None, int]] = [(None, 0)]
    held = sizes.get("embed", 0)
    for layer, name in enumerate(facts.boundaries):
        following = sizes.get(layer_group(layer), sizes.get("head", 0))
        if held + following > limit and name in made:
            cuts.append((name, layer))
            held = 0
        held += following
    ends = [*cuts[1:], (logits, facts.layers)]
    return [
        _Group(start, str(end), first, last)
        for (start, first), (end, last) in zip(cuts, ends, strict=True)
    ]
