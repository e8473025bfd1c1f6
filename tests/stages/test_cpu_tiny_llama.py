"""A real model with AIMET's encodings on the CPU: its loss against AIMET's own simulation.

The figures of AIMET's simulation (aimet-onnx 2.42.0, its encodings loaded back) on the first 12
pieces x 96 tokens of tests/fixtures/tokens/eval.npy: float 3.8022, W8A16 3.8030, W4A16 3.8189.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_core.names import Backend, Precision
from genai_core.operations import (
    CompileCpuConfig,
    ConvertCpuConfig,
    FidelityConfig,
    IngestConfig,
)
from genai_runtime.cpu import CpuSession
from genai_runtime.generate import generate
from genai_stages.operations import compile_cpu, convert_cpu, fidelity, ingest
from genai_stages.stage import Context

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
AIMET = {"w8a16": 3.8030, "w4a16": 3.8189}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny-llama")
    (root / "core").mkdir()
    ingest.run({"source": EXAMPLE}, IngestConfig(), root / "core", Context(scratch=root / "s"))
    shutil.rmtree(root / "core" / "encodings")
    for name, path in (
        ("w8a16", EXAMPLE / "model.encodings"),
        ("w4a16", FIXTURES / "encodings" / "w4a16.encodings"),
    ):
        (root / name).mkdir()
        shutil.copy(path, root / name / "model.encodings")
    (root / "tokens").mkdir()
    shutil.copy(FIXTURES / "tokens" / "eval.npy", root / "tokens")
    return root


def built(
    core: Path, tmp_path: Path, encodings: str, precision: Precision
) -> tuple[dict[str, int], Mapping[str, Any]]:
    inputs = {"model": core / "core", "encodings": core / encodings}
    for name in ("convert", "compile", "fidelity"):
        (tmp_path / name).mkdir()
    config = ConvertCpuConfig(precision=precision, first=0, last=6, embedding=True, lm_head=True)
    context = Context(scratch=tmp_path / "scratch", threads=1)
    converted = convert_cpu.run(inputs, config, tmp_path / "convert", context)
    compile_cpu.run(
        {**inputs, "range_001": tmp_path / "convert"},
        CompileCpuConfig(precision=precision),
        tmp_path / "compile",
        context,
    )
    judged = fidelity.run(
        {**inputs, "compiled": tmp_path / "compile", "tokens": core / "tokens"},
        FidelityConfig(backend=Backend.CPU, precision=precision),
        tmp_path / "fidelity",
        context,
    )
    return converted.notes["linears"], judged.facts


@pytest.mark.parametrize("encodings", ["w8a16", "w4a16"])
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_integer_models_stay_within_a_hundredth_of_a_nat_of_aimet(
    core: Path, tmp_path: Path, encodings: str, precision: Precision
) -> None:
    linears, facts = built(core, tmp_path, encodings, precision)
    assert facts["tokens"] == 12 * 95
    assert abs(facts["natsPerToken"] - AIMET[encodings]) < 0.01
    assert facts["within"] is True
    # 4-bit grids lie in both forms; 8-bit ones must be rounded anew to become int4.
    kept = 0 if (encodings, precision) == ("w8a16", Precision.INT4) else 43
    assert linears["exact"] == kept
    assert linears["rounded"] == 43 - kept


def test_the_float_model_has_the_source_s_loss_and_writes_its_text(
    core: Path, tmp_path: Path
) -> None:
    _, facts = built(core, tmp_path, "w8a16", Precision.FLOAT)
    assert facts["natsPerToken"] == pytest.approx(3.8022, abs=1e-4)
    assert facts["floatNats"] == pytest.approx(3.8022, abs=1e-4)
    session = CpuSession(tmp_path / "compile" / "model.onnx", context_length=64, threads=1)
    prompt = np.array([1, 305, 490, 724, 619, 281, 18, 227])
    # Greedy text of transformers behind 'def __init__(self, '.
    assert generate(session, prompt, max_tokens=8).tokens == (
        422,
        18,
        402,
        658,
        18,
        1400,
        1360,
        658,
    )
