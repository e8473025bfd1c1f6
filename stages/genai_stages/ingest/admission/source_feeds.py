"""Feed a piece of text to a source, in as many passes as its sizes ask for.

A dynamic source takes a piece in one pass behind an empty past. A static one has AR tokens in a
pass and CL in all: a piece goes through it in chunks, the last one filled up, and what a chunk
leaves in the cache becomes the next one's past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.facts import RopeTable
from genai_stages.ingest.admission.source_inputs import STATIC_HIDDEN, SourceInput, SourceInputs
from genai_stages.ingest.folding.classify_mask import reference
from genai_stages.ingest.recognition.attention.found_attention import Sizes

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some tokens of a piece: [start, stop), and how many the pass takes."""

    start: int
    stop: int
    tokens: int


class SourceFeeds:
    """Inputs of a source for pieces of text, each from an empty cache.

    Args:
        inputs: The source's.
        ropes: Tables for a source that takes them as inputs.
    """

    def __init__(self, inputs: SourceInputs, ropes: Mapping[str, RopeTable]) -> None:
        self.inputs = inputs
        self.ropes = ropes
        self.pasts = {one.name: one for one in inputs.named("past")}

    def fits(self, length: int) -> bool:
        """Whether pieces of a length can go through it."""
        native = self.inputs.native
        if native is None:
            return True
        tokens, total = native
        room = total if self.inputs.scattered else total - tokens if self.pasts else 0
        last = (length - 1) // tokens * tokens
        return last + (tokens if self.inputs.scattered else 0) <= max(room, tokens)

    def chunks(self, length: int) -> Iterator[Chunk]:
        """The passes of a piece."""
        if self.inputs.native is None:
            yield Chunk(0, length, length)
            return
        tokens = self.inputs.native[0]
        for start in range(0, length, tokens):
            yield Chunk(start, min(start + tokens, length), tokens)

    def known(self, chunk: Chunk) -> dict[str, Array]:
        """All inputs but tokens and past."""
        if self.inputs.native is None:
            return self.inputs.feeds(Sizes(chunk.tokens, 0, 0), self.ropes)
        slots = self.slots
        held = Sizes(chunk.tokens, chunk.start, slots)
        given = self.inputs.feeds(held, self.ropes)
        for one in self.inputs.named("mask"):
            given[one.name] = self.mask(one, chunk)
        return given

    @property
    def slots(self) -> int:
        """Past slots of a static source."""
        assert self.inputs.native is not None
        tokens, total = self.inputs.native
        if not self.pasts:
            return 0
        return total if self.inputs.scattered else total - tokens

    def mask(self, one: SourceInput, chunk: Chunk) -> Array:
        """[.., AR, CL] of a static source: empty slots and what comes later are hidden."""
        assert self.inputs.native is not None
        tokens, total = self.inputs.native
        window = self.inputs.windows.get(one.name, 0)
        seen = reference(tokens, chunk.start, window)
        visible = np.zeros((tokens, total), np.bool_)
        if self.inputs.scattered or not self.pasts:
            visible[:, : chunk.start + tokens] = seen[:, :total]
        else:
            visible[:, total - tokens - chunk.start :] = seen
        if len(one.dims) < 3:
            return np.asarray(visible.any(axis=0)).reshape(1, total).astype(one.dtype)
        shape = (1,) * (len(one.dims) - 2) + visible.shape
        if one.dtype == np.bool_:
            return visible.reshape(shape)
        return np.where(visible, np.float32(0), np.float32(STATIC_HIDDEN)).reshape(shape)

    def empty(self, name: str) -> Array:
        """An empty cache input."""
        length = 0 if self.inputs.native is None else self.slots
        return np.zeros(self.inputs.past_shape(self.pasts[name], length), np.float32)

    def extended(self, name: str, past: Array, present: Array, chunk: Chunk) -> Array:
        """The cache input behind a chunk, of what it held and of the chunk's output."""
        axes = [axis for axis, size in enumerate(present.shape) if size != past.shape[axis]]
        axis = axes[0] if axes else self._length_axis(name)
        if not axes and past.shape[axis] == self.slots and self.inputs.scattered:
            # All slots come back, the new ones among them.
            return present
        new = np.moveaxis(present, axis, 0)[-chunk.tokens :]
        result = np.moveaxis(past.copy(), axis, 0)
        if self.inputs.scattered:
            result[chunk.start : chunk.start + chunk.tokens] = new[: len(result) - chunk.start]
        else:
            held = np.concatenate([result, new])
            result[:] = held[len(held) - len(result) :]
        return np.ascontiguousarray(np.moveaxis(result, 0, axis))

    def _length_axis(self, name: str) -> int:
        dims = self.pasts[name].dims
        return max(axis for axis, size in enumerate(dims) if size == self.slots)
