"""Adapters and use cases of a container, each run once: golden prompts, and its own drift.

Drift compares the container that wears them with the source that wears them, its encodings
simulated, on the same tokens: how much the loss rises, and how far the distributions are apart (the
mean Kullback-Leibler divergence, nats a token). Without tokens of the user's the container writes
the text itself, wearing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.container.adapters import AdapterIndex, WornEntry
from genai_core.names import Backend
from genai_runtime import golden
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container
from genai_runtime.cpu.adapter_files import read_adapter
from genai_runtime.evaluate import losses
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import generate
from genai_runtime.golden import Golden, GoldenPrompt
from genai_runtime.session import Session, in_chunks
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.fidelity.worn_source import Worn
from genai_stages.input_folders import core_folder, encodings_of, token_pieces
from genai_stages.stage import Inputs

__all__ = ["YARDSTICK", "Asked", "UseCases", "measure_use_cases", "record_worn"]

YARDSTICK = "yardstick"
"""What the names of the inputs begin with that serve drift alone."""

_PIECES, _LENGTH = 4, 64
_EMULATED_PIECES, _EMULATED_LENGTH = 2, 24
"""A pass of the emulator takes as long as a hundred on the CPU."""
_DIGITS = 6

Prompt = tuple[str, NDArray[np.int64]]
Tokens = NDArray[np.integer]


@dataclass(frozen=True)
class Asked:
    """What golden prompts are recorded with; see `golden.record`."""

    prompts: Sequence[Prompt]
    max_tokens: int
    stop_tokens: frozenset[int]
    tolerance: float

    @classmethod
    def again(cls, recorded: Golden, stop_tokens: frozenset[int]) -> Asked:
        """The prompts that were asked before, of another adapter; as many tokens as then."""
        prompts = [(prompt.prompt, np.array(prompt.prompt_tokens)) for prompt in recorded.prompts]
        longest = max((len(prompt.tokens) for prompt in recorded.prompts), default=1)
        return cls(prompts, longest, stop_tokens, recorded.tolerance)


@dataclass
class UseCases:
    """What was found.

    Attributes:
        drift: Adapter or use case -> its measurements.
        golden: The same -> its answers.
        warnings: Sentences for the user.
    """

    drift: dict[str, dict[str, Any]] = field(default_factory=dict)
    golden: dict[str, list[GoldenPrompt]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def measure_use_cases(
    opened: Container, inputs: Inputs, asked: Asked, *, scratch: Path, threads: int
) -> UseCases:
    """Run a container with each of its adapters and use cases.

    Args:
        opened: The container.
        inputs: The source with its core graph, its encodings and tokens: those whose names begin
            with `YARDSTICK`. None of them: no drift.
        asked: Golden prompts.
        scratch: An empty folder.
        threads: Of ONNX Runtime.
    """
    cases = UseCases()
    index = opened.adapters()
    emulated = opened.manifest.target.backend is Backend.HTP
    count, longest = (_EMULATED_PIECES, _EMULATED_LENGTH) if emulated else (_PIECES, _LENGTH)
    given = token_pieces(inputs, f"{YARDSTICK}_tokens")
    for name in (*index.adapters, *index.use_cases):
        worn = [AdapterUse(entry.name, entry.alpha) for entry in index.worn(name)]
        session = open_session(opened, threads=threads, worn=worn)
        try:
            if asked.prompts:
                cases.golden[name] = record_worn(session, asked)
            if inputs:
                length = min(longest, session.context_length)
                if given is not None:
                    pieces = list(given[:count, :length])
                elif emulated and asked.prompts:
                    pieces = _answered(cases.golden[name])[:count]
                else:
                    pieces = _written(session, count, length)
                reference = _reference(opened, index.worn(name), index, inputs,
                                       scratch=scratch, threads=threads)  # fmt: skip
                cases.drift[name] = _drift(session, reference, pieces)
        finally:
            session.close()
        why = cases.drift.get(name, {}).get("unmeasured")
        if why is not None:
            cases.warnings.append(f"drift of {name} was not measured: {why}")
    return cases


def record_worn(session: Session, asked: Asked) -> list[GoldenPrompt]:
    """The answers of a session that wears adapters."""
    recorded = golden.record(
        session,
        asked.prompts,
        max_tokens=asked.max_tokens,
        stop_tokens=asked.stop_tokens,
        tolerance=asked.tolerance,
    )
    return recorded.prompts


def _answered(recorded: Sequence[GoldenPrompt]) -> list[Tokens]:
    """The golden prompts with their answers: text that was written already."""
    return [
        np.array([*prompt.prompt_tokens, *prompt.tokens], dtype=np.int64) for prompt in recorded
    ]


def _written(session: Session, count: int, length: int) -> list[Tokens]:
    """Text that the container writes: greedy, from a few tokens far apart in the vocabulary."""
    rows: list[Tokens] = []
    for start in np.linspace(0, session.vocab_size - 1, count + 2, dtype=np.int64)[1:-1]:
        session.reset()
        answer = generate(session, np.array([start]), max_tokens=length - 1)
        rows.append(np.array([int(start), *answer.tokens], dtype=np.int64))
    return rows


def _reference(
    opened: Container, worn: Sequence[WornEntry], index: AdapterIndex, inputs: Inputs, *,
    scratch: Path, threads: int,
) -> SourceReference:  # fmt: skip
    adapters = [
        Worn(read_adapter(opened.folder / index.adapters[entry.name].file).branches, entry.alpha)
        for entry in worn
    ]
    return SourceReference(
        core_folder(inputs), scratch, encodings=encodings_of(inputs), threads=threads,
        adapters=adapters,
    )  # fmt: skip


def _drift(
    session: Session, reference: SourceReference, pieces: Sequence[Tokens]
) -> dict[str, Any]:
    read = [piece[:-1] for piece in pieces]
    if reference.lost:
        return {
            "unmeasured": f"{len(reference.lost)} of its linears are no plain product in the "
            f"source, e.g. {reference.lost[0]}"
        }
    if not reference.fits(read):
        return {"unmeasured": f"the source cannot take {len(read[0])} tokens"}
    ours = reference_loss = apart = 0.0
    count = 0
    for rows, piece in zip(reference.logits(read), pieces, strict=True):
        session.reset()
        own = np.concatenate(list(in_chunks(session, piece[:-1])))
        ours += float(losses(own, piece[1:]).sum())
        reference_loss += float(losses(rows, piece[1:]).sum())
        apart += float(_divergence(rows, own).sum())
        count += len(piece) - 1
    return {
        "natsPerToken": _rounded(ours / count),
        "baselineNats": _rounded(reference_loss / count),
        "divergence": _rounded(apart / count),
        "tokens": count,
    }


def _divergence(reference: NDArray[Any], own: NDArray[Any]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of each position, nats, from logits [T, V]."""
    p, q = _log_softmax(reference), _log_softmax(own)
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    logs: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return logs


def _rounded(value: float) -> float | None:
    return round(value, _DIGITS) if np.isfinite(value) else None
