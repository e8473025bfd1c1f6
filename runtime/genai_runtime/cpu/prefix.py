"""Trained keys and values that forecast tokens see, as a packed model's inputs take them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from genai_core.errors import BadInput, BadModel
from genai_core.facts import RopeTable
from genai_runtime.cpu.model import CpuModel
from genai_runtime.cpu.onnx_edits import ATTENTION, attribute
from genai_runtime.cpu.packing import prefix_input

__all__ = ["prefix_inputs", "read_prefix"]

_COS = 7
"""Input of attention with the cosines, where it rotates keys itself."""


_AXES = 5
_PLACES = 3


def read_prefix(path: Path, places: int) -> NDArray[np.float32]:
    """A container's prefix, [layers, 2, KV heads, P, head_dim].

    Raises:
        BadInput: It is none of so many places.
    """
    try:
        with safe_open(path, framework="np") as opened:
            prefix = np.asarray(opened.get_tensor("forecast_prefix"), np.float32)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"no trained prefix: {error}", where=str(path)) from error
    if prefix.ndim != _AXES or prefix.shape[_PLACES] != places:
        raise BadInput(
            f"its shape is {list(prefix.shape)}, metadata.json says {places} places",
            where=str(path),
        )
    return prefix


def prefix_inputs(
    model: CpuModel, prefix: NDArray[np.float32], rope: Mapping[str, RopeTable]
) -> dict[str, ort.OrtValue]:
    """Values of all inputs that `packing.packed` may declare for it.

    Args:
        model: The container's.
        prefix: [layers, 2 (keys, values), KV heads, P, head_dim] as a cache holds them, so keys are
            rotated already.
        rope: The model's rotary tables.

    Raises:
        BadModel: It is that of another model, by its shape.
    """
    attentions = [node for node in model.proto.graph.node if node.op_type == ATTENTION]
    cache = {tensor.name: tensor for tensor in model.cache}
    values: dict[str, NDArray[np.float32]] = {}
    for number, node in enumerate(attentions):
        layer = node.output[1].removeprefix("present.").removesuffix(".key")
        tensor = cache[f"{layer}.key"]
        if prefix.ndim != _AXES or prefix.shape[:3] != (len(attentions), 2, tensor.heads):
            raise BadModel(
                f"the trained prefix has the shape {list(prefix.shape)}, the model has "
                f"{len(attentions)} layers with {tensor.heads} KV heads",
                where=str(model.path),
            )
        keys, others = (_padded(part, tensor.width) for part in prefix[number])
        name = node.input[_COS] if len(node.input) > _COS else ""
        table = rope.get(name.removeprefix("cos_cache").removeprefix("_") or "default")
        if name and table is not None:
            # At position 0 nothing is turned, but its factor would be applied once more.
            keys = keys.copy()
            keys[..., : table.rotary_dim] /= np.float32(table.attention_factor)
        key, value = _of_tokens(keys), _of_tokens(others)
        queries = attribute(node, "num_heads", 0) * tensor.width
        query = np.zeros((1, key.shape[1], queries), np.float32)
        values[prefix_input(layer, "query")] = query
        values[prefix_input(layer, "key")] = key
        values[prefix_input(layer, "value")] = value
        values[prefix_input(layer, "joined")] = np.concatenate([query, key, value], axis=2)
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in values.items()}


def _padded(heads: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """[KV, P, D] with heads as wide as the cache's: zeros change no score."""
    return np.pad(heads, ((0, 0), (0, 0), (0, width - heads.shape[2])))


def _of_tokens(heads: NDArray[np.float32]) -> NDArray[np.float32]:
    """[KV, P, D] as [1, P, KV * D]."""
    return np.ascontiguousarray(heads.transpose(1, 0, 2).reshape(1, heads.shape[1], -1))
