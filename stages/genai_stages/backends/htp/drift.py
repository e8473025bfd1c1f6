"""How far the emulator's results are from ONNX Runtime's CPU on the same quantized graph.

    found = emulator_drift({"prompt_ar32_cl256_2_of_3": qdq_onnx, ...}, twin_result)
    # graph -> output -> signal-to-noise ratio in decibels

Inputs are made up from a seed: random tokens, a causal mask behind a partly filled cache, cosines
and sines of positions, bell-shaped activations and caches that use their encodings' range as real
ones do. The processor rounds differently from the CPU, so bits differ: sound graphs measured 43 dB
and more, a wrong weight or layout gives less than 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.errors import BadModel, DriftError
from genai_runtime import masks
from genai_runtime.htp.arithmetic import dequantize, quantize
from genai_runtime.htp.client import Emulator
from genai_runtime.htp.emulation import graph_key
from genai_runtime.htp.metadata import GraphMetadata, TensorMetadata
from genai_stages.backends.htp.compile import CompileResult
from genai_stages.static.static_graph import is_adapter_input
from genai_stages.static.static_session import adapter_feed

LEAST_DECIBELS = 40.0
LEAST_CACHE_DECIBELS = 25.0
"""Caches have 8 bits: one value of a single token that rounds the other way costs 10 dB."""
LEAST_MIXED_DECIBELS = 30.0
"""With tensors in float16, which the CPU computes in float32; 42 dB were measured."""


def emulator_drift(
    models: Mapping[str, Path], twin: CompileResult, *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Run every graph of a twin in the emulator and on the CPU.

    Args:
        models: Graph name -> the QDQ (or float) ONNX that it was converted from.
        twin: From `compile.twin`; the wrappers lie beside its binary.
        seed: Of the made-up inputs.

    Returns:
        Graph name -> output name -> decibels; inf where the bits are equal.

    Raises:
        ToolFailed: The emulator died or refused a graph.
    """
    folder = twin.path.parent
    wrappers = {graph.name: folder / f"{graph.name}.onnx" for graph in twin.metadata.graphs}
    found: dict[str, dict[str, float]] = {}
    with Emulator(wrappers, soc_model=twin.metadata.soc_model) as emulator:
        for graph in twin.metadata.graphs:
            vocabulary = vocabulary_of(models[graph.name])
            feeds = sample_inputs(graph, vocab_size=vocabulary, seed=seed)
            there = emulator.run(graph.name, feeds)
            session = ort.InferenceSession(
                str(models[graph.name]), providers=["CPUExecutionProvider"]
            )
            names = [tensor.name for tensor in graph.outputs]
            here = dict(zip(names, session.run(names, feeds), strict=True))
            found[graph.name] = {
                tensor.name: decibels(
                    dequantize(here[tensor.name], tensor), dequantize(there[tensor.name], tensor)
                )
                for tensor in graph.outputs
            }
    return found


def computes_in_float(model: Path) -> bool:
    """Whether a quantized graph has tensors between its operators that are not on a grid."""
    graph = onnx.load(str(model), load_external_data=False).graph  # noqa: TID251 - structure only
    operators = [n for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    plain = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    plain |= {value.name for value in graph.input if _is_float(value)}
    plain |= {name for node in operators for name in node.output}
    read = {name for node in operators for name in node.input}
    return not plain.isdisjoint(read) or any(_is_float(value) for value in graph.output)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT)


def require_small(
    found: Mapping[str, Mapping[str, float]], *, least: float = LEAST_DECIBELS
) -> float:
    """The worst of the logits and boundary tensors, in decibels.

    Args:
        found: From `emulator_drift`.
        least: For logits and boundary tensors; caches need LEAST_CACHE_DECIBELS.

    Raises:
        DriftError: An output is below; names it and its graph.
    """
    worst = float("inf")
    for graph, named in found.items():
        for name, value in named.items():
            cache = name.startswith(("past_key_", "past_value_"))
            bound = min(least, LEAST_CACHE_DECIBELS) if cache else least
            if not value >= bound:  # nor is a ratio that is no number
                raise DriftError(
                    f"the emulator's {name} is {value:.1f} dB from the quantized graph's, "
                    f"{bound:g} dB are required",
                    where=graph,
                )
            worst = worst if cache else min(worst, value)
    return worst


def sample_inputs(
    graph: GraphMetadata, *, vocab_size: int, seed: int
) -> dict[str, NDArray[np.generic]]:
    """Made-up inputs of a graph, as the integers that it takes."""
    rng = np.random.default_rng(seed)
    key = graph_key(graph.name)
    past = (key.cl - key.ar) // 2
    queries = np.arange(past, past + key.ar)
    slots = np.full(key.cl, masks.EMPTY)
    slots[:past] = np.arange(past)
    slots[key.cl - key.ar :] = queries
    feeds: dict[str, NDArray[np.generic]] = {}
    for tensor in graph.inputs:
        name = tensor.name
        if name == "input_ids":
            feeds[name] = rng.integers(0, vocab_size, tensor.shape).astype(tensor.dtype)
            continue
        if name.startswith("attention_mask"):
            window = int(name.partition("_w")[2] or 0)
            values = masks.additive_mask(queries, slots, window=window)
        elif name.startswith("position_ids_"):
            rates = 10000.0 ** -np.linspace(0, 1, tensor.shape[-1])
            angles = queries[:, None] * rates
            table = np.cos(angles) if "_cos" in name else np.sin(angles)
            values = table.astype(np.float32).reshape(tensor.shape)
        elif is_adapter_input(name) and (tensor.scale is None or tensor.shape == (1,)):
            values = adapter_feed(name, tensor.shape, rng)
        else:
            values = (rng.standard_normal(tensor.shape) * _spread(tensor)).astype(np.float32)
        feeds[name] = quantize(values, tensor)
    return feeds


def decibels(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Signal-to-noise ratio, 10 log10(sum r^2 / sum (r - o)^2); inf where they are equal."""
    wanted = np.asarray(reference, np.float64)
    noise = float(((wanted - other) ** 2).sum())
    return float(10 * np.log10(float((wanted**2).sum()) / noise)) if noise else float("inf")


def vocabulary_of(model: Path) -> int:
    """Rows of the table that the tokens index; 1 for a part that reads no tokens.

    Raises:
        BadModel: It reads tokens and no table is found.
    """
    graph = onnx.load(str(model), load_external_data=False).graph  # noqa: TID251 - structure only
    made_by = {node.output[0]: node for node in graph.node}
    rows = {tensor.name: int(tensor.dims[0]) for tensor in graph.initializer if tensor.dims}
    tokens = {value.name for value in graph.input if value.name == "input_ids"}
    if not tokens:
        return 1
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] in tokens:
            table = node.input[0]
            while table in made_by:
                table = made_by[table].input[0]
            if table in rows:
                return rows[table]
        elif node.input and node.input[0] in tokens:
            # Moved: the processor wants the tokens as a vector.
            tokens.update(node.output)
    raise BadModel("no table is indexed by the tokens", where=model.name)


def _spread(tensor: TensorMetadata) -> float:
    """A standard deviation of which four fit between zero and the nearer end of the range."""
    if tensor.scale is None or tensor.offset is None:
        return 1.0
    limits = np.iinfo(np.dtype(tensor.dtype))
    ends = (abs(limits.min + tensor.offset), abs(limits.max + tensor.offset))
    return tensor.scale * max(min(ends), max(ends) / 8) / 4
