"""Entries of encodings as AIMET 1.0.0 writes them."""

from __future__ import annotations

from typing import Any


def encoding(
    name: str, scale: list[float], offset: int, *, bits: int, symmetric: bool
) -> dict[str, Any]:
    """One entry of AIMET's format 1.0.0."""
    return {
        "bw": bits,
        "dtype": "INT",
        "enc_type": "PER_CHANNEL" if len(scale) > 1 else "PER_TENSOR",
        "is_sym": symmetric,
        "name": name,
        "offset": [float(offset)] * len(scale),
        "scale": scale,
    }


def asymmetric(name: str, low: float, high: float, *, bits: int = 16) -> dict[str, Any]:
    """The entry of a tensor within [low, high]; zero is representable."""
    low, high = min(0.0, float(low)), max(0.0, float(high))
    scale = max((high - low) / (2**bits - 1), 1e-7)
    return encoding(name, [scale], round(low / scale), bits=bits, symmetric=False)
