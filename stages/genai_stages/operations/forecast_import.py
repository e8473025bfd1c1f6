"""What a model was trained to forecast with (SSD) -> what its container holds of it.

Inputs: `forecast`, a .safetensors file with `forecast_embedding` [F, hidden size] and
`forecast_prefix` [layers, 2, 1, KV heads, P, head size] (keys as a cache has them, rotated; then
values); `core`, the core graph with its embedding table. Output: `forecast.json`, the numbers F and
P, and `forecast.safetensors` with the prefix where there is one.

The embeddings themselves are rows of the model's table, which is what was quantized: here they are
only compared with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import save_file

from genai_core.errors import BadAdapter, BadModel
from genai_core.facts import ModelFacts
from genai_core.names import FORECAST, FORECAST_ROLE
from genai_core.operations import ForecastImportConfig
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.lora.readers.tensors import Tensors
from genai_stages.package.container_forecast import SAID_FILE
from genai_stages.stage import Context, Inputs, StageResult

__all__ = ["EMBEDDING", "PREFIX", "run"]

EMBEDDING, PREFIX = "forecast_embedding", "forecast_prefix"

_WHERE = "spec.speculation[0].source"
_OTHER = "name what was trained for this model"
_EXTEND = (
    "append forecast_embedding to the rows of the model's embedding table, leave its output layer "
    "as it is, and quantize and export the model again"
)
_NEAR = 0.05
"""Of a row's length: what rounding to 8 bits may have moved it by."""

Floats = NDArray[np.float32]


def run(inputs: Inputs, config: ForecastImportConfig, out: Path, context: Context) -> StageResult:
    """Hold the tensors against the model, and write what the container needs.

    Raises:
        BadModel: The file is broken, or of another model; the model's vocabulary is not extended.
    """
    del context
    model, facts = read_core(inputs["core"])
    try:
        tensors = Tensors(inputs[FORECAST] / FORECAST_ROLE)
        embedding = _read(tensors, EMBEDDING)
        prefix = _read(tensors, PREFIX) if PREFIX in tensors.names else None
    except BadAdapter as error:
        raise BadModel(error.message, where=_WHERE, remedy=error.remedy) from error
    _check_embedding(embedding, config, facts)
    _check_rows(embedding, _table(model), facts.vocab_size)
    prefix = _checked_prefix(prefix, config, facts)
    said = {"tokens": len(embedding), "prefix": 0 if prefix is None else prefix.shape[3]}
    if prefix is not None:
        save_file({PREFIX: np.ascontiguousarray(prefix)}, out / FORECAST_ROLE)
    (out / SAID_FILE).write_text(json.dumps(said, sort_keys=True) + "\n")
    return StageResult(facts=said, notes=said)


def _read(tensors: Tensors, name: str) -> Floats:
    if name not in tensors.names:
        raise BadModel(
            f"it has no tensor {name}; it has {', '.join(tensors.names[:5]) or 'none'}",
            where=_WHERE,
            remedy=_OTHER,
        )
    values = tensors.read(name)
    if not np.isfinite(values).all():
        raise BadModel(f"{name} holds NaN or infinity", where=_WHERE, remedy="train it again")
    return values


def _check_embedding(embedding: Floats, config: ForecastImportConfig, facts: ModelFacts) -> None:
    if embedding.ndim != 2 or not len(embedding) or embedding.shape[1] != facts.hidden_size:
        raise BadModel(
            f"{EMBEDDING} has the shape {list(embedding.shape)}, the model's hidden size is "
            f"{facts.hidden_size}",
            where=_WHERE,
            remedy=_OTHER,
        )
    if config.tokens not in (None, len(embedding)):
        raise BadModel(
            f"{EMBEDDING} has {len(embedding)} tokens, forecastTokenCount is {config.tokens}",
            where=_WHERE,
            remedy="correct forecastTokenCount, or leave it out",
        )


def _check_rows(embedding: Floats, table: NDArray[Any], vocab_size: int) -> None:
    """The model's table has the embeddings behind the vocabulary."""
    rows, wanted = len(table), vocab_size + len(embedding)
    if rows != wanted:
        extended = (
            "the model's vocabulary is not extended: its" if rows <= vocab_size else "the model's"
        )
        raise BadModel(
            f"{extended} embedding table has {rows} rows for {vocab_size} logits, with the "
            f"{len(embedding)} tokens to forecast with it would have {wanted}",
            where=_WHERE,
            remedy=_EXTEND,
        )
    own = np.asarray(table[vocab_size:], np.float32)
    off = np.linalg.norm(own - embedding, axis=1) / np.maximum(
        np.linalg.norm(embedding, axis=1), np.finfo(np.float32).tiny
    )
    if off.max() > _NEAR:
        row = int(off.argmax())
        raise BadModel(
            f"row {vocab_size + row} of the model's embedding table is not row {row} of "
            f"{EMBEDDING}: they differ by {off[row]:.2g} of its length",
            where=_WHERE,
            remedy="name the tensors that the model was extended with",
        )


def _checked_prefix(
    prefix: Floats | None, config: ForecastImportConfig, facts: ModelFacts
) -> Floats | None:
    """[layers, 2, KV heads, P, head size]; None where the spec says that there is none."""
    if prefix is None:
        if config.prefix == 0:
            return None
        wanted = "" if config.prefix is None else f" of the {config.prefix} places"
        raise BadModel(
            f"it has no tensor {PREFIX}{wanted}",
            where=_WHERE,
            remedy="name a file that has it, or say that there is none: forecastPrefix: 0",
        )
    shape = list(prefix.shape)
    if prefix.ndim == 6 and shape[2] == 1:
        prefix = prefix[:, :, 0]
    known = [(one.kv_heads, one.head_dim) for one in facts.attention]
    for layer, (heads, size) in enumerate(known):
        fits = prefix.ndim == 5 and prefix.shape[:3] == (len(known), 2, heads)
        if not fits or prefix.shape[4] != size or not prefix.shape[3]:
            raise BadModel(
                f"{PREFIX} has the shape {shape}, the model's would be "
                f"[{len(known)}, 2, 1, {heads}, places, {size}] (layer {layer})",
                where=_WHERE,
                remedy=_OTHER,
            )
    if config.prefix not in (None, prefix.shape[3]):
        raise BadModel(
            f"{PREFIX} has {prefix.shape[3]} places, forecastPrefix is {config.prefix}",
            where=_WHERE,
            remedy="correct forecastPrefix, or leave it out",
        )
    return prefix


def _table(model: ir.Model) -> NDArray[Any]:
    """The embedding table [rows, hidden size], mapped."""
    for usage in model.graph.inputs[0].uses():
        table = usage.node.inputs[0]
        if usage.node.op_type == "Gather" and table is not None and table.const_value is not None:
            return mapped(table.const_value)
    raise BadModel(
        "the model looks its tokens up in no table", where="model.onnx", remedy="export it again"
    )
