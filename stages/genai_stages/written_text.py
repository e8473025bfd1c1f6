"""Text that a model itself writes, for a measure of fidelity where no text is given.

A model's own samples are what it predicts best, so its loss on them is low and any departure from
the model shows. Tokens are drawn at temperature 1 from the float model, with a fixed seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_runtime.generate import Sampling, choose
from genai_stages.core_graph import read_core, write_proto
from genai_stages.passes.expand_attention import expand
from genai_stages.segments import empty_pasts, session_of


def write_pieces(
    core: Path, scratch: Path, *, pieces: int, length: int, threads: int = 1, seed: int = 0
) -> NDArray[np.int64]:
    """Sample token ids [pieces, length]; the first token of each piece is drawn uniformly.

    The whole float model runs at once, its weights mapped from their files: for a model of many
    gigabytes this takes long, and giving tokens is better.
    """
    model, facts = read_core(core)
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "expanded.onnx"
    write_proto(expand(model, facts), path)
    session = session_of(path, core, threads)
    random = np.random.default_rng(seed)
    written = np.zeros((pieces, length), dtype=np.int64)
    for row in written:
        row[0] = random.integers(facts.vocab_size)
        _continue(session, row, random)
    return written


def _continue(session: Any, row: NDArray[np.int64], random: np.random.Generator) -> None:
    """Fill a row behind its first token."""
    pasts = empty_pasts(session)
    for position in range(row.size - 1):
        feed = {"input_ids": row[None, position : position + 1], **pasts}
        logits, *presents = session.run(None, feed)
        # Outputs stand in the order of the inputs: key and value of each layer.
        pasts = dict(zip(pasts, presents, strict=True))
        row[position + 1] = choose(logits[0, -1], Sampling(temperature=1.0), random)
