"""An attention run on random numbers, every tensor in it: what its properties are read off."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.recognition.attention.attention_operands import Operands
from genai_stages.ingest.recognition.attention.attention_parts import Side
from genai_stages.ingest.recognition.attention.attention_region import AttentionRegion
from genai_stages.ingest.recognition.evaluate_region import run_region
from genai_stages.ingest.source.source_model import Array

__all__ = ["AttentionRun"]


class AttentionRun:
    """One run on seeded random projections and past.

    Args:
        region: The attention.
        operands: What it reads.
        seed: Of the numbers.

    Attributes:
        tensors: Every tensor of the region, by name.
    """

    def __init__(self, region: AttentionRegion, operands: Operands, seed: int) -> None:
        self._sizes = region.sizes
        self._operands = operands
        self._refuse = region.refuse
        random = np.random.default_rng(seed)
        self._projections: dict[int, npt.NDArray[np.float32]] = {}
        feeds: dict[str, Array] = {}
        sides = operands.sides.values()
        for name in (name for operand in sides for name in operand.flat):
            data = region.known[name]
            if id(data.draft) not in self._projections:
                shape = (region.sizes.tokens, data.draft.width)
                self._projections[id(data.draft)] = random.standard_normal(shape, np.float32)
            feeds[name] = np.ascontiguousarray(
                data.layout.gather(self._projections[id(data.draft)])
            )
        for name in (name for operand in sides for name in operand.past):
            feeds[name] = random.standard_normal(region.graph.shapes[name], np.float32)
        self.tensors = run_region(region.graph, region.nodes(), feeds)

    def heads(self, side: Side) -> npt.NDArray[np.float64]:
        """The heads [H, T, D] as the projection yields them."""
        operand = self._operands.sides[side]
        channels = self._projections[id(operand.draft)][:, operand.rows]
        tokens, width = self._sizes.tokens, self._operands.width
        return channels.reshape(tokens, -1, width).transpose(1, 0, 2).astype(np.float64)

    def queries(self) -> npt.NDArray[np.float64]:
        """The queries [H, T, D] as the product reads them."""
        name, width = self._operands.sides["query"].name, self._operands.width
        return self.tensors[name].reshape(self._operands.heads, self._sizes.tokens, width)

    def new_keys(self) -> npt.NDArray[np.float64]:
        """The new keys [KV, T, D] as the product reads them."""
        total, width = self._sizes.total, self._operands.width
        kv_heads = self._operands.kv_heads
        keys = np.swapaxes(
            self.tensors[self._operands.sides["key"].name].reshape(-1, width, total), 1, 2
        )
        keys = keys.reshape(kv_heads, len(keys) // kv_heads, total, width)[:, 0]
        return keys[:, self._sizes.past :]

    def past(self, side: Side) -> npt.NDArray[np.float64]:
        """The past of a cache input as [KV, P, D]."""
        kv_heads, width = self._operands.kv_heads, self._operands.width
        names = self._operands.sides[side].past
        if not names:
            if self._sizes.past:
                raise self._refuse("it has no cache")
            return np.zeros((kv_heads, 0, width))
        array = self.tensors[names[0]].astype(np.float64)
        length = self._sizes.length
        if array.shape in ((1, kv_heads, width, length), (kv_heads, 1, width, length)):
            turned = length != width or side == "key"
            array = np.swapaxes(array, -1, -2) if turned else array
        elif array.shape not in ((1, kv_heads, length, width), (kv_heads, 1, length, width)):
            raise self._refuse(f"the cache input {names[0]} has the shape {list(array.shape)}")
        return array.reshape(kv_heads, length, width)[:, : self._sizes.past]
