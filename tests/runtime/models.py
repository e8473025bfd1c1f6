"""CPU models for tests, made by the stages: the example's, and random ones with a feature each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genai_core.names import Gaps, Precision
from genai_core.operations import CompileCpuConfig, ConvertCpuConfig, IngestConfig
from genai_stages.operations import compile_cpu, convert_cpu, ingest
from genai_stages.stage import Context
from genai_stages.testing import random_core_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"


def tiny_llama(folder: Path, precision: Precision) -> Path:
    """model.onnx of the example, whose weights are trained."""
    for name in ("core", "convert", "compile"):
        (folder / name).mkdir()
    context = Context(scratch=folder / "scratch", threads=1)
    ingest.run({"source": EXAMPLE}, IngestConfig(), folder / "core", context)
    return _compiled(folder, {"model": folder / "core"}, precision, Gaps.ERROR, layers=6)


def random_model(folder: Path, precision: Precision, **features: object) -> Path:
    """model.onnx of two random layers, with `features` of `random_core_model`."""
    for name in ("core", "convert", "compile", "calibration"):
        (folder / name).mkdir()
    random_core_model(folder / "core", None, **features)
    np.save(
        folder / "calibration" / "tokens.npy", np.random.default_rng(2).integers(0, 512, (4, 40))
    )
    inputs = {"model": folder / "core", "calibration": folder / "calibration"}
    return _compiled(folder, inputs, precision, Gaps.CALIBRATE, layers=2)


def compiled_float(folder: Path, core: Path, *, layers: int) -> Path:
    """model.onnx of a core graph in floating point."""
    for name in ("convert", "compile"):
        (folder / name).mkdir(parents=True)
    return _compiled(folder, {"model": core}, Precision.FLOAT, Gaps.FLOAT, layers=layers)


def _compiled(
    folder: Path, inputs: dict[str, Path], precision: Precision, gaps: Gaps, *, layers: int
) -> Path:
    context = Context(scratch=folder / "scratch", threads=1)
    config = ConvertCpuConfig(
        precision=precision, gaps=gaps, first=0, last=layers, embedding=True, lm_head=True
    )
    convert_cpu.run(inputs, config, folder / "convert", context)
    compile_cpu.run(
        {**inputs, "range_001": folder / "convert"},
        CompileCpuConfig(precision=precision, gaps=gaps),
        folder / "compile",
        context,
    )
    return folder / "compile" / "model.onnx"
