"""Check a quantized part against the float part that it was made from.

Both read the same values: tokens, or random states spread over the range of their encoding, and a
cache that is half full, rounded to the integers that the quantized part reads. What each output
loses is stated as a signal-to-noise ratio. Random states are not text, so this tells a part that is
broken (a wrong axis, sign or scale leaves no signal at all) from one that is not; how well a model
predicts text is the fidelity task's figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import DriftError
from genai_core.facts import ModelFacts
from genai_runtime.masks import EMPTY
from genai_stages.aimet.arithmetic import on_grid
from genai_stages.aimet.model import Encoding
from genai_stages.static.static_graph import is_adapter_input
from genai_stages.static.static_session import (
    Arrays,
    StaticSession,
    adapter_feed,
    position_inputs,
)

FLOOR_DB = 3.0
"""Below this, noise has half the power of the signal: 4-bit weights leave about 10 dB or more."""

_SPREAD = 8.0
"""How many standard deviations the smaller side of an encoding's range holds."""

_CAP_DB = 200.0


def compare_quantized(
    source: Path,
    quantized: Path,
    facts: ModelFacts,
    *,
    grids: Mapping[str, Encoding],
    weights: Path,
    threads: int = 1,
) -> dict[str, float]:
    """Signal-to-noise ratio of each output, in dB.

    Args:
        source: The float graph.
        quantized: What was made of it, with its data beside it.
        facts: The model's facts.
        grids: Float input or output -> the grid of its integers; absent = it stays float.
        weights: The folder that the float graph's external data is relative to.
        threads: Of ONNX Runtime.

    Raises:
        DriftError: An output is below the floor.
    """
    session = StaticSession(source.read_bytes(), weights, threads=threads)
    integers = _inputs(session.shapes, facts, grids)
    floats = {name: _back(array, grids.get(name)) for name, array in integers.items()}
    wanted = session.run(floats)
    # One after the other: only one side's weights are mapped at a time.
    del session
    found = StaticSession(quantized.read_bytes(), quantized.parent, threads=threads).run(integers)
    ratios = {}
    for name, array in wanted.items():
        ratios[name] = round(_ratio(array, _back(found[name], grids.get(name))), 2)
    worst = min(ratios, key=lambda name: ratios[name])
    if not ratios[worst] >= FLOOR_DB:
        raise DriftError(
            f"the quantized part keeps {ratios[worst]:.1f} dB of its signal, at least "
            f"{FLOOR_DB:.0f} are expected",
            where=f"{source.stem}: {worst}",
            remedy="check that the encodings were calibrated for this model",
        )
    return ratios


def _inputs(
    shapes: Mapping[str, tuple[int, ...]], facts: ModelFacts, grids: Mapping[str, Encoding]
) -> Arrays:
    """Integers for every input of the quantized part."""
    random = np.random.default_rng(0)
    floats: Arrays = {}
    feeds: Arrays = {}
    for name, shape in shapes.items():
        if is_adapter_input(name) and (name not in grids or shape == (1,)):
            floats[name] = adapter_feed(name, shape, random)
        elif name in grids:
            room = min(-float(grids[name].low), float(grids[name].high)) / _SPREAD
            floats[name] = room * random.standard_normal(shape, dtype=np.float32)
        elif name != "input_ids":
            floats[name] = random.standard_normal(shape, dtype=np.float32)
        else:
            feeds[name] = random.integers(0, facts.vocab_size, shape).astype(np.int32)
    masks = [shape for name, shape in shapes.items() if name.startswith("attention_mask")]
    if masks:
        _, _, ar, cl = masks[0]
        past = (cl - ar) // 2
        queries = np.arange(past, past + ar)
        keys = np.full(cl, EMPTY)
        # The newest tokens of the past lie next to the new ones, as executors keep them.
        keys[cl - ar - past : cl - ar] = np.arange(past)
        keys[cl - ar :] = queries
        floats |= position_inputs(facts, queries, keys)
    for name, array in floats.items():
        if name in grids:
            one = grids[name]
            feeds[name] = on_grid(array, one.scale, one.offset, encoding=one, signed=False)
        else:
            feeds[name] = array
    return feeds


def _back(integers: NDArray[Any], grid: Encoding | None) -> NDArray[Any]:
    if grid is None:
        return integers
    return ((integers.astype(np.float64) + grid.offset) * grid.scale).astype(np.float32)


def _ratio(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    signal = float(np.square(wanted.astype(np.float64)).sum())
    noise = float(np.square(wanted.astype(np.float64) - found).sum())
    if not np.isfinite(noise):
        return -_CAP_DB
    if noise == 0:
        return _CAP_DB
    return min(_CAP_DB, 10 * float(np.log10(signal / noise))) if signal else -_CAP_DB
