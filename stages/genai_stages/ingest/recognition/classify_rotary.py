"""Finds the rotary table that rotates a head, from the values alone.

The part of an attention between a projected head and the scores is a black box N -> Q. If it
rotates, then for some rotary dimension, pairing of channels and table of frequencies
    Q = s * rotate(N, position * inv_freq)
holds for every head and token, where what is turned may be larger by the factor that scaled rotary
embeddings put on cosine and sine. Candidates for the table are the constants from which the graph
computes its cosines, then those that config.json describes; where none fits (a model that was
exported with ready tables), the frequencies are measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from genai_stages.architectures.rope import plain_frequencies

FloatArray = npt.NDArray[np.floating]
TOLERANCE = 2e-4
"""Relative; float32 angles of large positions are off by 1e-5."""

_STILL = 1e-8
"""Radians a position: below what a measured frequency can be told from zero."""


@dataclasses.dataclass(frozen=True)
class Rotation:
    """How heads are turned.

    Attributes:
        inv_freq: Radians a position, float32, one for each pair; empty = not at all.
        rotary_dim: Rotated channels at the head's beginning.
        interleaved: Whether pairs are (2i, 2i + 1) instead of (i, i + rotary_dim / 2).
        scale: What else the head is multiplied with.
        rounding: Of the cosines and sines, see `source_model.ROUNDINGS`; zero = float32.
    """

    inv_freq: npt.NDArray[np.float32]
    rotary_dim: int
    interleaved: bool
    scale: float
    rounding: float = 0.0

    def apply(self, heads: FloatArray, positions: npt.NDArray[np.int64]) -> FloatArray:
        """Turn [heads, T, D], without the scale and rounding; float64."""
        return rotated(heads, positions, self.inv_freq, interleaved=self.interleaved)


def rotated(
    heads: FloatArray,
    positions: npt.NDArray[np.int64],
    inv_freq: npt.NDArray[np.float32],
    *,
    interleaved: bool,
    factor: float = 1.0,
    rounding: float = 0.0,
) -> FloatArray:
    """Rotate the first 2 * len(inv_freq) channels of [heads, T, D]; float64.

    Args:
        heads: As projected.
        positions: Of the tokens.
        inv_freq: Radians a position.
        interleaved: Whether pairs are neighbours.
        factor: On cosine and sine, before they are rounded; the result is without it.
        rounding: Of cosine and sine.
    """
    result = heads.astype(np.float64)
    if not len(inv_freq):
        return result
    left, right = _pairs(len(inv_freq), interleaved=interleaved)
    angle = (positions.astype(np.float32)[:, None] * inv_freq[None]).astype(np.float64)
    waves = np.exp(1j * angle)
    if rounding:
        waves = _rounded(waves.real * factor, rounding) + 1j * _rounded(
            waves.imag * factor, rounding
        )
        waves /= factor
    turned = (result[..., left] + 1j * result[..., right]) * waves
    result[..., left], result[..., right] = turned.real, turned.imag
    return result


def _rounded(values: FloatArray, rounding: float) -> FloatArray:
    """To as many binary digits as a type with this rounding has."""
    mantissa, exponent = np.frexp(values)
    rounded: FloatArray = np.ldexp(np.rint(mantissa / rounding) * rounding, exponent)
    return rounded


def find_rotation(
    before: FloatArray,
    after: FloatArray,
    positions: npt.NDArray[np.int64],
    *,
    tables: Iterable[npt.NDArray[np.float32]],
    factor: float = 1.0,
    rounding: float = 0.0,
) -> Rotation | None:
    """The rotation that turns `before` into `after`, both [heads, T, D]; None = there is none.

    Args:
        before: Heads as projected.
        after: Heads as scores are made of them.
        positions: Of the tokens.
        tables: Frequencies to try.
        factor: On cosine and sine, so on the turned channels alone.
        rounding: Of the tables that the source stores. Frequencies cannot be measured on rounded
            cosines, so one of the tables must fit; a value may be off by its last place, since a
            cosine near the middle of two is rounded to either.
    """
    none = np.zeros(0, np.float32)
    candidates = [none]
    candidates += [table for table in tables if 0 < 2 * len(table) <= before.shape[-1]]
    best: tuple[float, Rotation] | None = None
    for table in candidates:
        for interleaved in (False, True):
            fit = _fit(
                before,
                after,
                positions,
                table,
                interleaved=interleaved,
                factor=factor,
                rounding=rounding,
            )
            if best is None or fit[0] < best[0] * 0.5:
                best = fit
        if best is not None and best[0] < TOLERANCE / 10:
            break
    if best is not None and best[0] < TOLERANCE + 2 * rounding:
        return best[1]
    return None if rounding else _measured(before, after, positions, factor)


def _fit(
    before: FloatArray,
    after: FloatArray,
    positions: npt.NDArray[np.int64],
    table: npt.NDArray[np.float32],
    *,
    interleaved: bool,
    factor: float,
    rounding: float = 0.0,
) -> tuple[float, Rotation]:
    expected = rotated(
        before, positions, table, interleaved=interleaved, factor=factor, rounding=rounding
    )
    expected[..., : 2 * len(table)] *= factor
    scale = float((expected * after).sum() / (expected * expected).sum())
    error = float(np.abs(after - scale * expected).max() / max(np.abs(after).max(), 1e-30))
    paired = interleaved and len(table) > 1
    return error, Rotation(table, 2 * len(table), paired, scale, rounding if len(table) else 0.0)


def _measured(
    before: FloatArray, after: FloatArray, positions: npt.NDArray[np.int64], factor: float
) -> Rotation | None:
    """Frequencies from the angle that each pair is turned by; needs consecutive positions."""
    width = before.shape[-1]
    for rotary in range(width - width % 2, 0, -2):
        for interleaved in (False, True):
            left, right = _pairs(rotary // 2, interleaved=interleaved)
            inside = before[..., left] + 1j * before[..., right]
            outside = after[..., left] + 1j * after[..., right]
            turn = (outside * inside.conj()).sum(0) / (np.abs(inside) ** 2).sum(0)
            if np.abs(outside - turn * inside).max() > TOLERANCE * np.abs(outside).max():
                continue
            unit = turn / np.abs(turn)
            steps = (unit[1:] * unit[:-1].conj()).sum(0)
            coarse = np.angle(steps)
            start = float(positions[0])
            if start:
                rounds = np.round((coarse * start - np.angle(unit[0])) / (2 * np.pi))
                fine = (np.angle(unit[0]) + 2 * np.pi * rounds) / start
            else:
                fine = coarse
            turning = np.flatnonzero(np.abs(fine) > _STILL)
            if not len(turning):
                continue
            # Pairs behind the last one that turns are no part of an interleaved rotation.
            fine = fine[: turning[-1] + 1] if interleaved else fine
            table = np.abs(fine).astype(np.float32)
            fit = partial(_fit, before, after, positions, interleaved=interleaved, factor=factor)
            error, rotation = fit(table)
            if error < 10 * TOLERANCE:
                plain = fit(_plain(table))
                return plain[1] if plain[0] < max(2 * error, TOLERANCE / 10) else rotation
    return None


def _plain(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The table of the base that measured frequencies suggest, without their noise."""
    if len(table) < 2 or not table[1]:
        return table
    theta = float(f"{float(table[1]) ** -len(table):.5g}")
    return plain_frequencies(theta, 2 * len(table))


def _pairs(count: int, *, interleaved: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    index = np.arange(count)
    return (2 * index, 2 * index + 1) if interleaved else (index, index + count)


def attention_factor(
    tables: Sequence[npt.NDArray[np.floating]],
    *,
    known: Iterable[float] = (),
    rounding: float = 0.0,
) -> float:
    """The common magnitude of cosine and sine tables: sqrt(cos^2 + sin^2), 1.0 if unknown.

    A processor's cosines differ from another's in the last digit, so a factor near one of the known
    ones is that one, and any other is told to seven digits.
    """
    for index, table in enumerate(tables):
        for other in tables[index + 1 :]:
            if table.shape == other.shape:
                square = table.astype(np.float64) ** 2 + other.astype(np.float64) ** 2
                mean = float(square.mean())
                if mean > 0 and np.abs(square - mean).max() < (1e-4 + 4 * rounding) * mean:
                    return _near_known(float(np.sqrt(mean)), known, rounding)
    return 1.0


def _near_known(factor: float, known: Iterable[float], rounding: float) -> float:
    close = 1e-5 + rounding
    near = [value for value in (1.0, *known) if abs(factor - value) < close * value]
    return near[0] if near else float(f"{factor:.7g}")
