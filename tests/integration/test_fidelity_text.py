"""Fidelity's text as the user has it: words, or the tokens that they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tokenizers import Tokenizer

from genai_cli.testing import Program

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
PIECE = 128
TEXT = "\n".join(f"int sum_{n}(const int *values, int count) {{ return {n}; }}" for n in range(24))


def fidelity(program: Program, folder: Path, tokens: str) -> dict[str, Any]:
    spec = {
        "model": {"source": "./model"},
        "targets": ["cpu"],
        "graphs": {"autoRegression": [1], "contextLengths": [256]},
        "quantization": {"cpuPrecision": "Int8", "fidelity": {"tokens": tokens}},
    }
    document = {"apiVersion": "genai-operator.dev/v1alpha1", "kind": "GenAIBuild"}
    (folder / "build.yaml").write_text(
        yaml.safe_dump({**document, "metadata": {"name": "text"}, "spec": spec})
    )
    program.ok("build", "-f", "build.yaml", "--store", "store", "--output", "out")
    report = json.loads((folder / "out/text/cpu/report.json").read_text())
    scored: dict[str, Any] = report["fidelity"]
    return scored


@pytest.fixture
def program(tmp_path: Path) -> Program:
    shutil.copytree(MODEL, tmp_path / "model")
    return Program(tmp_path)


def test_fidelity_scores_a_text_as_it_scores_the_tokens_that_it_is(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "model/eval.txt").write_text(TEXT)
    of_text = fidelity(program, tmp_path, "eval.txt")
    tokens = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(TEXT).ids
    pieces = np.array(tokens[: len(tokens) // PIECE * PIECE], np.uint16).reshape(-1, PIECE)
    assert len(pieces) > 1
    np.save(tmp_path / "model/eval.npy", pieces)
    of_tokens = fidelity(program, tmp_path, "eval.npy")
    assert of_text["tokens"] > PIECE
    assert of_text == of_tokens
