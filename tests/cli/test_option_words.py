"""Who typed options reads of options; who wrote a file reads of its fields."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from genai_cli.option_words import in_options
from genai_cli.testing import Ran
from genai_core.errors import BadModel, InvalidSpec

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("spec.quantization.cpuPrecision", "--precision"),
        ("quantization.gaps", "--gaps"),
        ("set quantization.gaps to Calibrate or Float", "set --gaps to Calibrate or Float"),
        ("use cpuPrecision: Float or Auto", "use --precision Float or Auto"),
        ("set gaps: Calibrate with a text", "set --gaps Calibrate with a text"),
        ("or a smaller autoRegression", "or a smaller --ar"),
        ("graphs.contextLengths", "--cl"),
        ("spec.targets[0]", "--target[0]"),
        ("name one of them in spec.model.onnx", "name one of them in --onnx"),
        ("lower golden.maxTokens", "lower --set golden.maxTokens"),
        ("spec.quantization.fidelity.budgetNats", "--set quantization.fidelity.budgetNats"),
        ("correct spec.model.source", "correct MODEL_DIR"),
        ("correct spec.model.digest", "correct --set model.digest"),
        # Files, and words that only look like fields.
        ("model.onnx: node X", "model.onnx: node X"),
        ("model.encodings: w", "model.encodings: w"),
        ("/a/run.sh: it is none", "/a/run.sh: it is none"),
        ("--gaps (spec.quantization.gaps)", "--gaps (spec.quantization.gaps)"),
        ("its gaps are three", "its gaps are three"),
    ],
)
def test_in_options_names_options_when_fields_are_meant(field: str, option: str) -> None:
    found = in_options(BadModel(field, where=field, remedy=field))
    assert (found.message, found.where, found.remedy) == (option, option, option)
    assert type(found) is BadModel


def test_in_options_names_both_when_all_graphs_are_meant() -> None:
    assert in_options(InvalidSpec("x", where="graphs")).where == "--ar, --cl"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "model")
    return tmp_path / "model"


def test_build_speaks_of_options_when_no_file_was_given(
    model: Path, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    store = ("--store", str(tmp_path / "store"))
    given = ("build", str(model), "--target", "cpu", "--precision", "Int8", *store)
    (line, *_) = genai(*given, "--gaps", "Float").errors
    assert line.startswith("error: --precision: Int8 needs to know")
    assert "set --gaps Calibrate" in line
    assert "cpuPrecision" not in line
    ran = genai("graph", *given[1:])
    assert ran.code == 2
    assert "--gaps Float" in ran.errors[0]
    # A task's error, in another process.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 10**6}))
    (line, *_) = genai(*given[:4], "--gaps", "Float", *store).errors
    assert line.startswith("error: ingest: config.json: eos_token_id: 1000000 is no token")


def test_build_speaks_of_fields_when_a_file_was_given(
    model: Path, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "build.yaml"
    file.write_text(
        "apiVersion: genai-operator.dev/v1alpha1\nkind: GenAIBuild\nmetadata: {name: a}\n"
        f"spec:\n  model: {{source: {model}}}\n  targets: [cpu]\n"
        "  quantization: {gaps: Float, cpuPrecision: Int8}\n"
    )
    (line, *_) = genai("build", "-f", str(file), "--store", str(tmp_path / "store")).errors
    assert line.startswith("error: spec.quantization.cpuPrecision: Int8 needs")
    assert "gaps: Calibrate" in line


def test_build_names_the_users_own_file_when_it_has_another_name_than_its_role(
    model: Path, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    data = (model / "model.onnx").read_bytes()
    (model / "decode.onnx").write_bytes(data[: len(data) // 3])
    (model / "w4.encodings").write_text("{")
    store = ("--store", str(tmp_path / "store"))
    given = ("build", str(model), "--target", "cpu", "--gaps", "Float", *store)
    (line, *_) = genai(*given, "--onnx", str(model / "decode.onnx")).errors
    assert line.startswith("error: ingest: w4.encodings: is not complete JSON")
    (model / "w4.encodings").unlink()
    (line, *_) = genai(*given, "--onnx", str(model / "decode.onnx")).errors
    assert line.startswith("error: ingest: decode.onnx: it is not an ONNX model")
    assert "model.onnx" not in line
