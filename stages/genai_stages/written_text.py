"""Text that a model itself writes, for a measure of fidelity where no text is given.

A model's own samples are what it predicts best, so its loss on them is low and any departure from
the model shows. Tokens are drawn at temperature 1 from the float model, with a fixed seed. The
float model is the cpu target's own, built into a scratch folder: token by token it is ten times as
fast as the reference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.names import Precision
from genai_core.operations import ConvertCpuConfig
from genai_runtime.cpu import CpuSession
from genai_runtime.generate import Sampling, choose
from genai_stages.backends.cpu.graph import (
    MODEL_DATA_FILE,
    MODEL_FILE,
    build_model,
    write_model,
)
from genai_stages.backends.cpu.join import join_fragments
from genai_stages.backends.cpu.quantize import convert_group
from genai_stages.core_graph import read_core


def write_pieces(
    core: Path, scratch: Path, *, pieces: int, length: int, threads: int = 1, seed: int = 0
) -> NDArray[np.int64]:
    """Sample token ids [pieces, length]; the first token of each piece is drawn uniformly.

    The whole float model is in memory and on disk once more: for a model of many gigabytes, giving
    tokens is better.
    """
    model = _float_model(core, scratch)
    session = CpuSession(model, context_length=length, threads=threads)
    random = np.random.default_rng(seed)
    written = np.zeros((pieces, length), dtype=np.int64)
    try:
        for row in written:
            session.reset()
            row[0] = random.integers(session.vocab_size)
            for position in range(length - 1):
                logits = session.forward(row[position : position + 1])
                row[position + 1] = choose(logits[-1], Sampling(temperature=1.0), random)
    finally:
        session.close()
    return written


def _float_model(core: Path, scratch: Path) -> Path:
    """The cpu target's float model of a core graph."""
    model, facts = read_core(core)
    fragment = scratch / "fragment"
    fragment.mkdir(parents=True)
    config = ConvertCpuConfig(
        precision=Precision.FLOAT, first=0, last=facts.layers, embedding=True, lm_head=True
    )
    convert_group(model, facts, None, config=config, out=fragment)
    joined = join_fragments([fragment], Precision.FLOAT, scratch / MODEL_DATA_FILE)
    built = build_model(
        model,
        facts,
        precision=Precision.FLOAT,
        tensors=joined.tensors,
        linears=joined.linears,
        plain=joined.plain,
        grids={},
    )
    write_model(built, scratch / MODEL_FILE)
    return scratch / MODEL_FILE
