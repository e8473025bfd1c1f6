"""Exports of unlike families through ingest and onto the CPU, against transformers' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genai_core.names import Precision
from genai_core.operations import CompileCpuConfig, ConvertCpuConfig, IngestConfig
from genai_runtime.cpu import CpuSession
from genai_stages.operations import compile_cpu, convert_cpu, ingest
from genai_stages.stage import Context

FIXTURES = Path(__file__).parents[1] / "fixtures" / "architectures"

# What each of them has that the others do not.
FAMILIES = {
    "gemma2": "soft caps, windows in every other layer, norms behind attention and MLP",
    "gemma3": "two rotary tables, norms of queries and keys",
    "glm": "partial, interleaved rotary embedding",
    "phi": "parallel attention and MLP, biases, LayerNorm",
    "cohere": "interleaved rotary embedding, scaled logits",
    "phi3-longrope": "fused projections, an attention factor",
    "phi4-mini": "an attention factor on the rotated part of a head, a tied head",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_float_containers_compute_what_transformers_computes(name: str, tmp_path: Path) -> None:
    for folder in ("core", "convert", "compile"):
        (tmp_path / folder).mkdir()
    context = Context(scratch=tmp_path / "scratch", threads=1)
    context.scratch.mkdir()
    found = ingest.run({"source": FIXTURES / name}, IngestConfig(), tmp_path / "core", context)
    convert_cpu.run(
        {"model": tmp_path / "core"},
        ConvertCpuConfig(
            precision=Precision.FLOAT,
            first=0,
            last=found.facts["layers"],
            embedding=True,
            lm_head=True,
        ),
        tmp_path / "convert",
        context,
    )
    compile_cpu.run(
        {"model": tmp_path / "core", "range_001": tmp_path / "convert"},
        CompileCpuConfig(precision=Precision.FLOAT),
        tmp_path / "compile",
        context,
    )
    reference = np.load(FIXTURES / name / "reference.npz")
    tokens, logits = reference["tokens"], reference["logits"]
    session = CpuSession(tmp_path / "compile" / "model.onnx", context_length=tokens.size, threads=1)
    # The exporter itself departs from transformers by 2e-4 on gemma2.
    np.testing.assert_allclose(session.forward(tokens), logits, atol=5e-4)
