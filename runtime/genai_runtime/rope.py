"""Rotary tables: the one place that turns inverse frequencies into cosines and sines.

Every executor feeds the tables to its graphs as inputs, so that a container holds frequencies
instead of tables, and one implementation decides their values. Angles are computed in float64 and
rounded once; float32 angles are wrong in the fourth digit at position 100,000.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genai_core.facts import RopeTable


def cos_sin(
    positions: NDArray[np.integer], table: RopeTable
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of some positions.

    Args:
        positions: [T], the tokens' places in the text, from 0.
        table: Frequencies in radians a position and the factor on both tables.

    Returns:
        Two float32 arrays [T, rotary_dim / 2].
    """
    frequencies = np.asarray(table.inv_freq, dtype=np.float32).astype(np.float64)
    angles = np.asarray(positions, dtype=np.float64)[:, None] * frequencies[None, :]
    factor = table.attention_factor
    return (
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
    )


def for_context(table: RopeTable, context_length: int) -> RopeTable:
    """The table for contexts of up to so many tokens.

    LongRoPE (Ding et al., arXiv 2402.13753) has other factors beyond the length that a model was
    first made for. The cache holds rotated keys, so a sequence cannot change them on its way: the
    longest context decides for all.

    Args:
        table: With the short factors in its frequencies, and both in its scaling.
        context_length: The most tokens of a sequence.
    """
    short, long = table.scaling.get("short_factor"), table.scaling.get("long_factor")
    original = table.scaling.get("original_max_position_embeddings")
    if not (isinstance(short, list) and isinstance(long, list) and isinstance(original, int)):
        return table
    if context_length <= original or not len(short) == len(long) == len(table.inv_freq):
        return table
    ratio = np.asarray(short, dtype=np.float64) / np.asarray(long, dtype=np.float64)
    frequencies = (np.asarray(table.inv_freq, dtype=np.float64) * ratio).astype(np.float32)
    return table.model_copy(update={"inv_freq": frequencies.tolist()})


def rotate(
    heads: NDArray[np.float32],
    cos: NDArray[np.float32],
    sin: NDArray[np.float32],
    *,
    interleaved: bool = False,
) -> NDArray[np.float32]:
    """Rotate the first rotary_dim features of each head; what the graphs compute, in numpy.

    Args:
        heads: [..., T, D].
        cos: [T, rotary_dim / 2].
        sin: As `cos`.
        interleaved: Pairs are neighbours (2i, 2i + 1) instead of halves (i, i + rotary_dim / 2).
    """
    half = cos.shape[-1]
    turned, rest = heads[..., : 2 * half], heads[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :half], turned[..., half:]
    pair = (first * cos - second * sin, second * cos + first * sin)
    if interleaved:
        mixed = np.stack(pair, axis=-1).reshape(turned.shape)
    else:
        mixed = np.concatenate(pair, axis=-1)
    return np.concatenate([mixed, rest], axis=-1).astype(np.float32)
