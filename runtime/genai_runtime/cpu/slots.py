"""A slot's keys and values: buffers of its own, which grow in buckets as tokens come.

Past and present are the same buffers: the kernel writes new keys and values in place and nothing is
copied between passes. Truncating is forgetting: what stands behind `length` is written over by the
next pass. Growing copies this slot's tokens and no other's. Memory comes from the system as pages
that are not there until they are written, and goes back to it when the slot is freed.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_runtime.cpu.model import CacheTensor

BUCKET = 128
"""Tokens that a slot grows by."""

SPARE = 1
"""A place behind the last token, for the copy of a lone one (see `packing`)."""

_FLOAT = 4


def bucketed(tokens: int) -> int:
    """Places that a slot of so many tokens has."""
    return -(-(tokens + SPARE) // BUCKET) * BUCKET


def cache_bytes(tensors: Sequence[CacheTensor], tokens: int) -> int:
    """Memory of a slot of so many tokens."""
    a_token = sum(tensor.heads * tensor.width for tensor in tensors) * _FLOAT
    return a_token * bucketed(tokens)


class Slot:
    """One sequence.

    Args:
        tensors: Its cache's.
        places: It has at first.

    Attributes:
        length: Tokens that it holds.
        bytes: Memory of its buffers.
        buffers: By cache tensor, [1, heads, places, width]; replaced as a whole by growing.
        values: The same memory, to be bound.
    """

    def __init__(self, tensors: Sequence[CacheTensor], places: int) -> None:
        self._tensors = tensors
        self.length = 0
        self.places = 0
        self.bytes = 0
        self.buffers: dict[str, NDArray[np.float32]] = {}
        self.values: dict[str, ort.OrtValue] = {}
        self._take(places)

    def grow(self, tokens: int) -> None:
        """Have room for so many tokens, and the spare place."""
        if tokens + SPARE > self.places:
            self._take(bucketed(tokens))

    def copy(self, length: int) -> Slot:
        """A new slot with the first tokens of this one."""
        made = Slot(self._tensors, bucketed(max(1, length)))
        for name, buffer in made.buffers.items():
            buffer[:, :, :length] = self.buffers[name][:, :, :length]
        made.length = length
        return made

    def move(self, start: int, places: NDArray[np.intp]) -> None:
        """Keep the first `start` tokens and those at `places`, ascending."""
        end = start + places.size
        for buffer in self.buffers.values():
            buffer[:, :, start:end] = buffer[:, :, places]
        self.length = end

    def _take(self, places: int) -> None:
        a_token = sum(tensor.heads * tensor.width for tensor in self._tensors)
        self.bytes = a_token * places * _FLOAT
        block = np.frombuffer(mmap.mmap(-1, self.bytes), np.float32)
        before, self.buffers = self.buffers, {}
        start = 0
        for tensor in self._tensors:
            size = tensor.heads * places * tensor.width
            buffer = block[start : start + size].reshape(1, tensor.heads, places, tensor.width)
            if before:
                buffer[:, :, : self.length] = before[tensor.name][:, :, : self.length]
            self.buffers[tensor.name] = buffer
            start += size
        self.places = places
        self.values = {
            name: ort.OrtValue.ortvalue_from_numpy(buffer) for name, buffer in self.buffers.items()
        }
