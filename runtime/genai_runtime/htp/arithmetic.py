"""Float values as the integers of a graph's tensors, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genai_runtime.htp.metadata import TensorMetadata

Integers = NDArray[np.generic]


def quantize(values: NDArray[np.floating], tensor: TensorMetadata) -> Integers:
    """Float values as the integers (or floats) that a tensor takes, clipped to its range."""
    dtype = np.dtype(tensor.dtype)
    if tensor.scale is None or tensor.offset is None:
        return np.asarray(values, dtype)
    limits = np.iinfo(dtype)
    steps = np.rint(np.asarray(values, np.float64) / tensor.scale) - tensor.offset
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype)


def dequantize(values: Integers, tensor: TensorMetadata) -> NDArray[np.float32]:
    """Integers (or floats) of a tensor as float32."""
    if tensor.scale is None or tensor.offset is None:
        return np.asarray(values, np.float32)
    steps = np.asarray(values, np.int64) + tensor.offset
    return (steps * np.float64(tensor.scale)).astype(np.float32)
