"""Runs a core graph in float, or with its encodings simulated, one layer at a time.

Checks, calibration and the yardstick of fidelity need the logits of a few pieces of text, not
speed: all pieces go through the embedding, then through layer 0, and so on, so that only one
layer's weights are in memory, whatever the size of the model.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from genai_stages.aimet.model import EncodingSet
from genai_stages.graph.core_graph import read_core, write_proto
from genai_stages.graph.expand_attention import expand
from genai_stages.quantize.simulate import simulate

Floats = NDArray[np.float32]
Pieces = Sequence[NDArray[np.integer]]
Observer = Callable[[str, Floats], None]
"""Called with the name and values of each observed tensor, once for every piece."""

FOLDER_OPTION = "session.model_external_initializers_file_folder_path"


class SegmentedModel:
    """A core graph that is run segment by segment.

    Args:
        core: Folder of the core graph.
        scratch: An empty folder; holds one segment at a time.
        encodings: Simulated where given.
        threads: Of ONNX Runtime.
    """

    def __init__(
        self,
        core: Path,
        scratch: Path,
        *,
        encodings: EncodingSet | None = None,
        threads: int = 1,
    ) -> None:
        self._core = core
        self._scratch = scratch
        self._encodings = encodings
        self._threads = threads
        self._model, self.facts = read_core(core)

    def logits(
        self, pieces: Pieces, *, observed: Collection[str] = (), observer: Observer | None = None
    ) -> Iterator[Floats]:
        """Logits [T, V] of each piece [T], every piece from an empty cache.

        Args:
            pieces: Token ids.
            observed: Core-graph tensors that `observer` is shown; only without encodings.
            observer: Gets them.
        """
        states: list[NDArray[Any]] = [np.asarray(piece, dtype=np.int64)[None] for piece in pieces]
        cuts: list[str | None] = [None, *self.facts.boundaries]
        wanted = set(observed)
        for start, end in itertools.pairwise(cuts):
            session, extra = self._session(start, end, wanted)
            states = [_run(session, state, extra, observer)[0] for state in states]
        session, extra = self._session(cuts[-1], None, wanted)
        for state in states:
            yield _run(session, state, extra, observer)[0][0]

    def _session(
        self, start: str | None, end: str | None, wanted: set[str]
    ) -> tuple[Any, list[str]]:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        path = self._scratch / "model.onnx"
        if self._encodings is not None:
            simulate(self._core, self._encodings, self._scratch, start=start, end=end)
            return session_of(path, self._scratch, self._threads), []
        expanded = expand(self._model, self.facts, start=start, end=end)
        extra = _observe(expanded, wanted)
        write_proto(expanded, path)
        return session_of(path, self._core, self._threads), extra


def session_of(model: Path, weights: Path, threads: int) -> Any:
    """An ONNX Runtime session of a model whose external data lies relative to another folder."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(FOLDER_OPTION, str(weights))
    # Weights stay mapped from their file; packing would hold a second copy of each.
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])


def empty_pasts(session: Any) -> dict[str, Floats]:
    """The past inputs of an expanded graph, without a token in them."""
    return {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), dtype=np.float32)
        for value in session.get_inputs()[1:]
    }


def linear_input_ranges(
    core: Path, scratch: Path, pieces: Pieces, *, tensors: Collection[str], threads: int = 1
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of some tensors over all pieces, in the float model."""
    ranges: dict[str, tuple[float, float]] = {}

    def observer(name: str, values: Floats) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))

    model = SegmentedModel(core, scratch, threads=threads)
    for _ in model.logits(pieces, observed=tensors, observer=observer):
        pass
    return ranges


def _observe(model: ir.Model, wanted: set[str]) -> list[str]:
    """Make tensors of an expanded graph outputs; the names of those that it has."""
    outputs = {value.name for value in model.graph.outputs}
    found: list[str] = []
    for value in [value for node in model.graph for value in node.outputs]:
        if value.name in wanted:
            found.append(str(value.name))
            if value.name not in outputs:
                value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(value)
    return found


def _run(
    session: Any,
    state: NDArray[Any],
    extra: list[str],
    observer: Observer | None,
) -> list[Floats]:
    names = [session.get_outputs()[0].name, *extra]
    feed = {session.get_inputs()[0].name: state, **empty_pasts(session)}
    values: list[Floats] = session.run(names, feed)
    if observer is not None:
        for name, value in zip(extra, values[1:], strict=True):
            observer(name, value)
    return values
