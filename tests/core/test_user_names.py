"""What a stage says of roles is put back into the names of the user's files."""

from __future__ import annotations

import pytest

from genai_core.errors import BadModel
from genai_core.sources.user_names import with_user_names

NAMES = {
    "model.onnx": "decode.onnx",
    "model.encodings": "w4.encodings",
    "tokens.npy": "eval.npy",
    "model.data": "model.data",
}


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("model.onnx: node X (Add)", "decode.onnx: node X (Add)"),
        ("model.encodings: layers.0.q", "w4.encodings: layers.0.q"),
        ("model.onnx", "decode.onnx"),
        ("the ids of tokens.npy, not model.onnx.", "the ids of eval.npy, not decode.onnx."),
        ("model.data is too short", "model.data is too short"),
        # Other files and fields.
        ("spec.model.onnx: x", "spec.model.onnx: x"),
        ("onnx/model.onnx", "onnx/model.onnx"),
        ("model.onnx_data", "model.onnx_data"),
        ("model.onnx.data", "model.onnx.data"),
        ("my-model.onnx", "my-model.onnx"),
    ],
)
def test_with_user_names_puts_names_back_when_they_stand_alone(said: str, shown: str) -> None:
    found = with_user_names(BadModel(said, where=said, remedy="model.onnx"), NAMES)
    assert (found.message, found.where) == (shown, shown)
    assert found.remedy == "model.onnx"
    assert type(found) is BadModel


def test_with_user_names_leaves_the_error_when_names_are_roles() -> None:
    error = BadModel("a", where="model.onnx")
    assert with_user_names(error, {"model.onnx": "model.onnx"}) is error
