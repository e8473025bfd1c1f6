"""How much worse a compiled model predicts text than its source with the encodings simulated.

Inputs: the core graph with its weights and, over these, the source's own graph, which is run as the
yardstick; the compiled model (cpu: `model.onnx` and its data beside each other; htp: the
`emulation/` folders of all splits), the source's encodings where it has any, and a folder `tokens`
with one .npy or text file. Without tokens the float model writes the text. The graphs of an AR that
has a source of its own are held against that one: `child_<AR>_core` and `child_<AR>_encodings`.

The verdict is a fact, not an error: where several precisions may be tried, the plan goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.canonical import digest_json
from genai_core.container.manifest import EMULATION_FOLDER
from genai_core.errors import BadInput, BadModel
from genai_core.names import Backend
from genai_core.operations import FidelityConfig
from genai_runtime.evaluate import Evaluation, evaluate, losses
from genai_runtime.session import Session
from genai_stages.aimet.model import EncodingSet
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.fidelity.written_text import write_pieces
from genai_stages.graph.core_graph import FACTS_FILE, read_facts
from genai_stages.input_folders import core_folder, encodings_of, folders_with, token_pieces
from genai_stages.quantize.segments import Floats, SegmentedModel
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.twin_folder import gather_twin

RESULT_FILE = "fidelity.json"

_CHILD = "child_"
_CHILD_PIECES = 2
_CHILD_LENGTH = 32
"""An AR of its own is mostly 1: a pass for each token."""

_DIGITS = 6
_WRITTEN_PIECES = 12
_WRITTEN_LENGTH = 96
_SIDE_BY_SIDE = 2
"""As many more pieces, each as much shorter: every position reads all weights, for all pieces."""


class Yardstick(StrEnum):
    """What a compiled model is held against; people read it."""

    SOURCE = "the source itself"
    CORE_GRAPH = "the core graph made from the source"


def run(inputs: Inputs, config: FidelityConfig, out: Path, context: Context) -> StageResult:
    """Write `fidelity.json`: losses in nats a token and whether the budget holds."""
    every, inputs = inputs, {k: v for k, v in inputs.items() if not k.startswith(_CHILD)}
    core = core_folder(inputs)
    encodings = encodings_of(inputs)
    pieces, written_nats = _pieces(inputs, config, core, context=context)
    found = _evaluated(inputs, config, pieces, context=context)
    if written_nats is not None and encodings is not None:
        float_nats = written_nats
    else:
        # The yardstick itself: the source, not what wrote the text.
        yardstick, float_model = _yardstick(
            core, pieces, None, context.scratch / "float", context.threads
        )
        float_nats = _loss(float_model.logits([piece[:-1] for piece in pieces]), pieces)
    baseline = float_nats
    if encodings is not None:
        yardstick, simulated = _yardstick(
            core, pieces, encodings, context.scratch / "simulated", context.threads
        )
        baseline = _loss(simulated.logits([piece[:-1] for piece in pieces]), pieces)
    nats = found.nats_per_token
    children = {
        str(ar): _of_child(every, ar, config, pieces, context=context) for ar in config.children
    }
    within = all(
        _is_within(loss, base, config.budget_nats)
        for loss, base in [(nats, baseline), *((c.nats, c.baseline) for c in children.values())]
    )
    facts: dict[str, Any] = {
        "natsPerToken": _rounded(nats),
        "baselineNats": _rounded(baseline),
        "floatNats": _rounded(float_nats),
        "budget": config.budget_nats,
        "within": within,
        "tokens": found.tokens,
        "text": "given" if written_nats is None else "written by the float model",
        "verified": "Cpu" if config.backend is Backend.CPU else "Emulator",
        "yardstick": yardstick.value,
    }
    if children:
        facts["children"] = {ar: child.facts for ar, child in children.items()}
    text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
    (out / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    # Another machine's last digits are no reason to package again.
    verdict = digest_json({"within": within})
    warnings: tuple[str, ...] = ()
    if Yardstick.CORE_GRAPH in {yardstick, *(child.yardstick for child in children.values())}:
        said = (
            "fidelity compares with the core graph that was made from the source, not with the "
            f"source itself, which cannot take {pieces.shape[1] - 1} tokens: give shorter pieces "
            "in quantization.fidelity.tokens, or a source without fixed sizes"
        )
        warnings = (said,)
    return StageResult(facts=facts, semantic={RESULT_FILE: verdict}, warnings=warnings)


@dataclass(frozen=True)
class _ChildLoss:
    """What was measured of the graphs of an AR with a source of its own."""

    nats: float
    baseline: float
    yardstick: Yardstick
    tokens: int

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "natsPerToken": _rounded(self.nats),
            "baselineNats": _rounded(self.baseline),
            "tokens": self.tokens,
            "yardstick": self.yardstick.value,
        }


def _of_child(
    inputs: Inputs,
    ar: int,
    config: FidelityConfig,
    pieces: NDArray[np.integer],
    *,
    context: Context,
) -> _ChildLoss:
    """The graphs of one AR against their own source, on the beginning of the same text."""
    prefix = f"{_CHILD}{ar}_"
    own = {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}
    fewer = pieces[:_CHILD_PIECES, : max(_CHILD_LENGTH, 2)]
    scored = {k: v for k, v in inputs.items() if not k.startswith(_CHILD) and k != "core"}
    scored["core"] = own["core"]
    found = _evaluated(scored, config, fewer, context=context, ars=(ar,))
    yardstick, model = _yardstick(
        own["core"], fewer, encodings_of(own), context.scratch / f"child{ar}", context.threads
    )
    baseline = _loss(model.logits([piece[:-1] for piece in fewer]), fewer)
    return _ChildLoss(found.nats_per_token, baseline, yardstick, found.tokens)


def _evaluated(
    inputs: Inputs,
    config: FidelityConfig,
    pieces: NDArray[np.integer],
    *,
    context: Context,
    ars: Collection[int] | None = None,
) -> Evaluation:
    """The compiled model's loss; of an htp model, by the graphs of these ARs."""
    session = _session(inputs, config, pieces.shape[1], context=context, ars=ars)
    try:
        return evaluate(session, pieces)
    finally:
        session.close()


def _is_within(nats: float, baseline: float, budget: float) -> bool:
    return math.isfinite(nats) and nats - baseline <= budget


def _yardstick(
    core: Path,
    pieces: NDArray[np.integer],
    encodings: EncodingSet | None,
    scratch: Path,
    threads: int,
) -> tuple[Yardstick, SourceReference | SegmentedModel]:
    """The source; the core graph where pieces are longer than what a static source can take."""
    source = SourceReference(core, scratch, encodings=encodings, threads=threads)
    if source.fits([piece[:-1] for piece in pieces]):
        return Yardstick.SOURCE, source
    core_graph = SegmentedModel(core, scratch, encodings=encodings, threads=threads)
    return Yardstick.CORE_GRAPH, core_graph


def _rounded(nats: float) -> float | None:
    """Digits that mean something; None for a loss that is not a number."""
    return round(nats, _DIGITS) if math.isfinite(nats) else None


def _pieces(
    inputs: Inputs, config: FidelityConfig, core: Path, *, context: Context
) -> tuple[NDArray[np.integer], float | None]:
    """What is scored, and the float model's loss on it where that wrote it."""
    given = token_pieces(inputs, "tokens")
    if given is None:
        shorter = _SIDE_BY_SIDE if config.backend is Backend.CPU else 1
        text = write_pieces(
            core,
            context.scratch / "writer",
            pieces=(config.pieces or _WRITTEN_PIECES) * shorter,
            length=max(2, (config.length or _WRITTEN_LENGTH) // shorter),
            threads=context.threads,
        )
        return text.tokens, text.nats
    pieces = given[: config.pieces or None, : config.length or None]
    vocab = read_facts(core).vocab_size
    if pieces.size == 0 or int(pieces.max()) >= vocab or int(pieces.min()) < 0:
        raise BadInput(
            f"token ids must lie below {vocab}",
            where="quantization.fidelity.tokens",
            remedy="tokenize the text with this model's tokenizer",
        )
    return pieces, None


def _session(
    inputs: Inputs,
    config: FidelityConfig,
    length: int,
    *,
    context: Context,
    ars: Collection[int] | None,
) -> Session:
    """The executor of the compiled model."""
    if config.backend is Backend.CPU:
        from genai_runtime.cpu import CpuSession

        # The core graph has a model.onnx too: the compiled one lies where no facts are.
        folders = [f for f in folders_with(inputs, "model.onnx") if not (f / FACTS_FILE).is_file()]
        if not folders:
            raise BadModel("no input is a compiled cpu model", where="fidelity")
        return CpuSession(folders[0] / "model.onnx", context_length=length, threads=context.threads)
    from genai_runtime.htp import emulation
    from genai_runtime.htp.chains import by_size
    from genai_runtime.htp.executor import HtpSession

    folder = context.scratch / EMULATION_FOLDER
    if not folder.is_dir():
        gather_twin(inputs, folder, read_facts(core_folder(inputs)).rope)
    if ars is None and config.children:
        graphs = {size[0] for size in by_size(emulation.load(folder))}
        ars = graphs - set(config.children)
    return HtpSession(folder, ars=ars)


def _loss(logits: Iterable[Floats], pieces: NDArray[np.integer]) -> float:
    total = 0.0
    for rows, piece in zip(logits, pieces, strict=True):
        total += float(losses(rows, piece[1:]).sum())
    return total / float(pieces.shape[0] * (pieces.shape[1] - 1))
