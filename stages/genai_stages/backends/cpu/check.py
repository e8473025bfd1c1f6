"""Holds a built CPU model against the core graph that it was built from.

A float model must agree to rounding, in one pass as well as token by token. An integer model
departs by design; how far is recorded here as a ratio and judged later by its loss.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import DriftError
from genai_core.names import Precision
from genai_runtime.cpu import CpuSession
from genai_runtime.executor.rows import Row, Want
from genai_stages.graph.core_graph import read_core, write_proto
from genai_stages.graph.expand_attention import expand
from genai_stages.quantize.segments import SegmentedModel, session_of

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit where that is above 1."""

_TOKENS = 24
_STEPS = 6


@dataclass(frozen=True)
class Agreement:
    """How a model compares with its core graph.

    Attributes:
        largest: Largest difference of a logit.
        magnitude: Largest logit of the core graph.
        sqnr_db: Signal to quantization noise of the logits, decibels; infinite when equal.
        chunked: Largest difference between one pass and token by token, in the built model.
    """

    largest: float
    magnitude: float
    sqnr_db: float
    chunked: float


def compare(
    core: Path, model: Path, scratch: Path, *, tokens: NDArray[np.integer], threads: int
) -> Agreement:
    """Run both on `tokens` [T] and compare their logits."""
    (expected,) = SegmentedModel(core, scratch, threads=threads).logits([tokens])
    session = CpuSession(model, context_length=tokens.size, threads=threads)
    try:
        got = session.forward(tokens)
        session.reset()
        split = max(1, tokens.size - _STEPS)
        parts = [session.forward(tokens[:split])]
        parts += [session.forward(tokens[i : i + 1]) for i in range(split, tokens.size)]
    finally:
        session.close()
    return _agreement(got, expected, np.concatenate(parts))


def _agreement(
    got: NDArray[np.float32], expected: NDArray[np.float32], parts: NDArray[np.float32]
) -> Agreement:
    noise = float(np.square(got.astype(np.float64) - expected).mean())
    signal = float(np.square(expected.astype(np.float64)).mean())
    return Agreement(
        largest=float(np.abs(got - expected).max()),
        magnitude=float(np.abs(expected).max()),
        sqnr_db=math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-30) / noise),
        chunked=float(np.abs(parts - got).max()),
    )


def verify(
    core: Path, model: Path, scratch: Path, *, precision: Precision, vocab: int, threads: int
) -> Agreement:
    """Compare on random tokens and judge.

    Raises:
        DriftError: A float model departs from its core graph, or any model yields NaN.
    """
    tokens = np.random.default_rng(0).integers(0, vocab, _TOKENS)
    found = compare(core, model, scratch, tokens=tokens, threads=threads)
    _judge(found, model, precision)
    return found


def verify_head(
    core: Path, model: Path, scratch: Path, *, precision: Precision, vocab: int, threads: int
) -> Agreement:
    """The same for an EAGLE head, on random tokens and hidden states.

    Raises:
        DriftError: As `verify`.
    """
    random = np.random.default_rng(0)
    tokens = random.integers(0, vocab, _TOKENS)
    graph, facts = read_core(core)
    assert facts.head is not None
    given = {
        str(value.name): random.standard_normal((_TOKENS, int(value.shape[-1])), np.float32)  # type: ignore[arg-type,index]
        for value in graph.graph.inputs[1:]
    }
    scratch.mkdir(parents=True, exist_ok=True)
    write_proto(expand(graph, facts), scratch / "model.onnx")
    session = session_of(scratch / "model.onnx", core, threads)
    feeds: dict[str, NDArray[np.generic]] = {"input_ids": tokens[None]}
    feeds |= {name: values[None] for name, values in given.items()}
    for value in session.get_inputs():
        if value.name not in feeds:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    logits, state = session.run(["logits", facts.head.feedback], feeds)
    expected = np.concatenate([logits[0], state[0]], axis=1)
    head = CpuSession(model, context_length=_TOKENS, threads=threads)
    try:
        (whole,) = _head_parts(head, tokens, given, [0, _TOKENS])
        cuts = [0, *range(_TOKENS - _STEPS, _TOKENS + 1)]
        parts = np.concatenate(_head_parts(head, tokens, given, cuts))
    finally:
        head.close()
    found = _agreement(whole, expected, parts)
    _judge(found, model, precision)
    return found


def _head_parts(
    head: CpuSession,
    tokens: NDArray[np.integer],
    given: dict[str, NDArray[np.float32]],
    cuts: list[int],
) -> list[NDArray[np.float32]]:
    """Logits beside the states of each part, from an empty cache."""
    executor = head.executor
    slot = executor.open()
    parts = []
    for begin, end in itertools.pairwise(cuts):
        states = {name: values[begin:end] for name, values in given.items()}
        row = Row(slot, tokens[begin:end], want=Want.ALL, states=True, given=states)
        (output,) = executor.forward([row])
        assert output.states is not None
        parts.append(np.concatenate([output.logits, output.states], axis=1))
    executor.free(slot)
    return parts


def _judge(found: Agreement, model: Path, precision: Precision) -> None:
    if not (math.isfinite(found.largest) and math.isfinite(found.chunked)):
        raise DriftError("the model yields NaN or infinity", where=model.name)
    allowed = TOLERANCE * max(1.0, found.magnitude)
    if precision is Precision.FLOAT and max(found.largest, found.chunked) > allowed:
        raise DriftError(
            f"logits differ by {found.largest:.2e} from the core graph and by {found.chunked:.2e} "
            f"between one pass and token by token, allowed are {allowed:.2e}",
            where=model.name,
        )
