"""Fixtures of the command line's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genai_cli.testing import Program

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"


@pytest.fixture
def genai(tmp_path: Path) -> Program:
    """`genai`, run in `tmp_path`."""
    return Program(tmp_path)


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float model with tiny-llama's vocabulary and tokenizer, packaged for the CPU."""
    # Only where it is asked for: other tests need nothing of the stages.
    from genai_core.names import Backend, Precision
    from genai_core.operations import CompileCpuConfig, ConvertCpuConfig, PackageConfig
    from genai_stages.operations import compile_cpu, convert_cpu, package
    from genai_stages.stage import Context
    from genai_stages.testing import random_core_model

    root = tmp_path_factory.mktemp("container")
    random_core_model(root / "core", vocab=2048, hidden=32, layers=1, intermediate=48)
    for name in ("convert", "compile", "source", "out"):
        (root / name).mkdir()
    context = Context(scratch=root / "scratch")
    convert_cpu.run(
        {"model": root / "core"},
        ConvertCpuConfig(precision=Precision.FLOAT, first=0, last=1, embedding=True, lm_head=True),
        root / "convert",
        context,
    )
    compile_cpu.run(
        {"model": root / "core", "weights": root / "convert"},
        CompileCpuConfig(precision=Precision.FLOAT),
        root / "compile",
        context,
    )
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        shutil.copy(EXAMPLE / name, root / "source" / name)
    package.run(
        {"model": root / "core", "compiled": root / "compile", "source": root / "source"},
        PackageConfig(
            target="cpu",
            backend=Backend.CPU,
            context_length=48,
            golden_prompts=("def f(x):",),
            golden_max_tokens=4,
        ),
        root / "out",
        context,
    )
    return root / "out"
