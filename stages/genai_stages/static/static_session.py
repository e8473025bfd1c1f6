"""Runs static graphs, or parts of them, for the stages' own checks.

Weights are mapped, not read, and kept as they lie: no optimization and no second, packed copy of
them, so that the memory of a check is that of the weights it touches. Time matters less here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.facts import ModelFacts
from genai_runtime.masks import additive_mask
from genai_runtime.rope import cos_sin
from genai_stages.static.static_graph import is_adapter_input, mask_name, rotary_names

Arrays = dict[str, NDArray[Any]]


class StaticSession:
    """One graph in ONNX Runtime.

    Args:
        model: A graph whose weights lie outside of it, or its file's content.
        weights: The folder that its external data is relative to.
        threads: Of ONNX Runtime.
    """

    def __init__(self, model: ir.Model | bytes, weights: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights)
        )
        content = model if isinstance(model, bytes) else ir.to_proto(model).SerializeToString()
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        """Input -> shape; an axis that is not static is a string."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name; of `feeds` what the graph does not read is left out."""
        names = [value.name for value in self._session.get_outputs()]
        given = {name: feeds[name] for name in self.shapes}
        return dict(zip(names, self._session.run(names, given), strict=True))


def adapter_feed(
    name: str, shape: tuple[int, ...], random: np.random.Generator | None
) -> NDArray[np.float32]:
    """An adapter's matrix of ordinary size, its alpha, or zeros: no adapter.

    Args:
        name: Of the input.
        shape: [in, R] of A, [R, out] of B, [1] of alpha.
        random: None = zeros.
    """
    assert is_adapter_input(name)
    if random is None:
        return np.zeros(shape, np.float32)
    if shape == (1,):
        return np.ones(shape, np.float32)
    return random.standard_normal(shape, dtype=np.float32) * np.float32(0.5 / shape[0] ** 0.5)


def position_inputs(
    facts: ModelFacts, queries: NDArray[np.integer], keys: NDArray[np.integer]
) -> Arrays:
    """The masks and rotary tables of one pass, for every window and table of a model.

    Args:
        facts: The model's facts.
        queries: [AR] positions of the new tokens, EMPTY for padding.
        keys: [CL] positions of what the slots hold, the new tokens last; EMPTY for none.
    """
    made: Arrays = {}
    for window in sorted({attention.window for attention in facts.attention}):
        made[mask_name(window)] = additive_mask(queries, keys, window=window)
    for table in sorted({attention.rope for attention in facts.attention} - {""}):
        pair = cos_sin(np.maximum(queries, 0), facts.rope[table])
        for name, values in zip(rotary_names(table), pair, strict=True):
            made[name] = values[None, None]
    return made
