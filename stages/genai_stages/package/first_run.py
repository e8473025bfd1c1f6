"""The finished container, run once where that is possible here: golden prompts, speed, drift."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genai_core.container.adapters import merged_folder
from genai_core.container.manifest import EMULATION_FOLDER, GENIE_FILE, GOLDEN_FILE
from genai_core.errors import BadModel, DriftError, NotRunnableHere
from genai_core.names import Backend, Precision
from genai_core.operations import PackageConfig
from genai_runtime import golden
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container, merged_twin
from genai_runtime.generate import Generation
from genai_runtime.session import Session
from genai_runtime.tokenizer import TextTokenizer
from genai_stages.package.contents import Contents
from genai_stages.package.second_opinion import ask_genie
from genai_stages.package.use_cases import Asked, measure_use_cases
from genai_stages.stage import Context, Inputs

_TOLERANCES = {Precision.FLOAT: 0.01, Precision.INT8: 0.1, Precision.INT4: 0.3}
"""Logits: what another kernel or machine may move a margin by."""
_HTP_TOLERANCE = 0.1

Verified = Literal["Emulator", "Cpu", "Metadata"]
Prompt = tuple[str, NDArray[np.int64]]
"""Text and tokens."""


def run_once(
    opened: Container, config: PackageConfig, contents: Contents, *, threads: int
) -> tuple[Verified, dict[str, Any]]:
    """Run the finished container once and record golden prompts.

    Returns:
        What it was run on, and what was measured.

    Raises:
        DriftError: It yields NaN or infinity.
    """
    prompts = _prompts(opened, config, contents)
    try:
        session = open_session(opened, threads=threads)
    except NotRunnableHere as error:
        if opened.runnable:
            contents.warnings.append(f"the emulation twin was not run: {error.message}")
        if prompts:
            contents.warnings.append(
                "golden prompts could not be recorded: nothing here can run this container"
            )
        return "Metadata", {}
    try:
        first = session.forward(np.arange(min(4, session.vocab_size, session.context_length)))
        if not np.isfinite(first).all():
            raise DriftError("the container yields NaN or infinity", where=config.target)
        speed = _record(opened, session, config, prompts=prompts, precision=contents.precision)
    finally:
        session.close()
    genie_config = opened.folder / GENIE_FILE
    if prompts and config.backend is Backend.HTP and genie_config.is_file():
        recorded = golden.Golden.model_validate_json((opened.folder / GOLDEN_FILE).read_bytes())
        seen, warning = ask_genie(opened.folder, genie_config, recorded)
        speed |= seen
        contents.warnings += [warning] if warning else []
    return ("Cpu" if config.backend is Backend.CPU else "Emulator"), speed


def _record(
    opened: Container,
    session: Session,
    config: PackageConfig,
    *,
    prompts: list[Prompt],
    precision: Precision | None,
) -> dict[str, Any]:
    """Write golden.json; the speed of the last answer."""
    if not prompts:
        return {}
    answers: list[Generation] = []
    recorded = golden.record(
        session,
        prompts,
        max_tokens=config.golden_max_tokens,
        stop_tokens=opened.stop_tokens(),
        tolerance=_tolerance(precision),
        on_answer=answers.append,
    )
    (opened.folder / GOLDEN_FILE).write_bytes(recorded.to_bytes())
    metrics = answers[-1].metrics
    return {
        "promptTokensPerSecond": round(metrics.prompt_tokens_per_second, 1),
        "generationTokensPerSecond": round(metrics.generation_tokens_per_second, 1),
    }


def run_use_cases(
    opened: Container,
    yardstick: Inputs,
    config: PackageConfig,
    contents: Contents,
    context: Context,
) -> dict[str, Any]:
    """Run each adapter and use case; their golden prompts go beside the base's."""
    asked = Asked(
        _prompts(opened, config, Contents(rope={})),
        config.golden_max_tokens,
        opened.stop_tokens(),
        _tolerance(contents.precision),
    )
    found = measure_use_cases(
        opened, yardstick, asked, scratch=context.scratch / "drift", threads=context.threads
    )
    contents.warnings += found.warnings
    recorded = opened.golden()
    if recorded is not None:
        (opened.folder / GOLDEN_FILE).write_bytes(recorded.with_worn(found.golden).to_bytes())
    genie_config = opened.folder / GENIE_FILE
    if recorded is None or not found.golden or not genie_config.is_file():
        return found.drift
    recorded = recorded.with_worn(found.golden)
    # One of them shows that Genie finds the files, and their order in the graphs' inputs; binaries
    # of their own are each asked.
    for name in found.golden if config.merged else [next(iter(found.golden))]:
        twin = f"{EMULATION_FOLDER}/{merged_twin(name)}" if config.merged else None
        if config.merged:
            genie_config = opened.folder / merged_folder(name) / GENIE_FILE
        seen, warning = ask_genie(opened.folder, genie_config, recorded, worn=name, twin=twin)
        contents.warnings += [warning] if warning else []
        found.drift[name] = {**found.drift.get(name, {}), **seen}
    return found.drift


def _tolerance(precision: Precision | None) -> float:
    return _HTP_TOLERANCE if precision is None else _TOLERANCES[precision]


def _prompts(opened: Container, config: PackageConfig, contents: Contents) -> list[Prompt]:
    if not config.golden_prompts:
        return []
    tokenizer: TextTokenizer | None = opened.tokenizer()
    if tokenizer is None:
        contents.warnings.append(
            "golden prompts need a tokenizer.json, which the model does not have"
        )
        return []
    encoded = [(text, tokenizer.encode(text)) for text in config.golden_prompts]
    for text, tokens in encoded:
        if tokens.size == 0 or tokens.size + config.golden_max_tokens > config.context_length:
            raise BadModel(
                f"{tokens.size} tokens and {config.golden_max_tokens} new ones do not fit into "
                f"{config.context_length}",
                where=f"golden.prompts: {text[:40]!r}",
                remedy="shorten it, or lower golden.maxTokens",
            )
    return encoded
