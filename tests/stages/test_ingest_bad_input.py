"""Broken, foreign and contradictory sources end with one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadEncodings, BadInput, BadModel, UnsupportedOperator
from genai_core.operations import IngestConfig
from genai_stages.operations import ingest
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing_sources import write_source

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_source(tmp_path / "source", external=True)
    return tmp_path / "source"


def failure(source: Path, **config: str) -> BadInput:
    """The error of an ingest, which must be one line and name what to do."""
    out = source.parent / "out"
    out.mkdir()
    with pytest.raises(BadInput) as caught:
        run({"source": source}, IngestConfig(**config), out, Context(source.parent / "scratch"))
    error = caught.value
    assert error.exit_code == 2
    assert error.where
    assert "\n" not in str(error)
    return error


def edit(source: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph; the weights stay outside."""
    path = source / "model.onnx"
    model = onnx.load(path, load_external_data=False)  # noqa: TID251 - the graph alone
    change(model)
    path.write_bytes(model.SerializeToString())


def set_config(source: Path, **values: object) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.0])
def test_truncated_onnx(source: Path, keep: float) -> None:
    path = source / "model.onnx"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    error = failure(source)
    assert isinstance(error, BadModel)
    assert error.where.startswith("model.onnx")


def test_something_else_than_onnx(source: Path) -> None:
    (source / "model.onnx").write_bytes(b"PK\x03\x04" + bytes(range(256)) * 20)
    assert "not an ONNX model" in failure(source).message


def test_missing_external_data(source: Path) -> None:
    (source / "model.data").unlink()
    error = failure(source)
    assert "model.data" in error.message
    assert "missing" in error.message


def test_short_external_data(source: Path) -> None:
    path = source / "model.data"
    path.write_bytes(path.read_bytes()[:-100])
    error = failure(source)
    assert "too short" in error.message
    assert str(path.stat().st_size) in error.message


@pytest.mark.parametrize("location", ["../model.data", "/etc/passwd", "a/../../model.data"])
def test_external_data_outside_the_folder(source: Path, location: str) -> None:
    shutil.copy(source / "model.data", source.parent / "model.data")

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    edit(source, change)
    assert "outside the model's folder" in failure(source).message


def test_external_data_of_another_length(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(one for one in model.graph.initializer if one.external_data)
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = str(int(entry.value) - 4)

    edit(source, change)
    assert "its entry names" in failure(source).message


def test_unsupported_operator_is_named_with_its_node(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(one for one in model.graph.node if one.op_type == "Sigmoid")
        node.op_type, node.domain, node.name = "Wobble", "my.ops", "mlp/wobble"
        model.opset_import.append(helper.make_opsetid("my.ops", 1))

    edit(source, change)
    error = failure(source)
    assert isinstance(error, UnsupportedOperator)
    assert "Wobble" in str(error)
    assert "mlp/wobble" in error.where


def test_standard_operator_without_a_form_here_is_named(source: Path) -> None:
    """A cumulative sum over tokens mixes them outside of any attention."""

    def change(model: onnx.ModelProto) -> None:
        node = next(one for one in model.graph.node if one.op_type == "Sigmoid")
        node.name = "mlp/mix"
        model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "axis"))
        node.op_type = "CumSum"
        node.input.append("axis")

    edit(source, change)
    error = failure(source)
    assert isinstance(error, UnsupportedOperator)
    assert "CumSum" in str(error)
    assert "mlp/mix" in error.where


def test_token_by_token_constant_in_the_stream_is_refused(source: Path) -> None:
    """What is added to each token's row by its place has no place in the core graph."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        gather = next(node for node in graph.node if node.op_type == "Gather")
        table = np.random.default_rng(0).standard_normal((512, 32)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(table, "wpe"))
        place = list(graph.node).index(gather) + 1
        graph.node.insert(place, helper.make_node("Gather", ["wpe", "position_ids"], ["row"]))
        # No bare row of a table, which would be named as learned positions.
        graph.node.insert(place + 1, helper.make_node("Abs", ["row"], ["where"]))
        total = helper.make_node("Add", [gather.output[0], "where"], ["placed"], name="add_wpe")
        graph.node.insert(place + 2, total)
        for node in list(graph.node)[place + 3 :]:
            for position, name in enumerate(node.input):
                if name == gather.output[0]:
                    node.input[position] = "placed"

    edit(source, change)
    error = failure(source)
    assert "add_wpe" in error.where
    assert "differs from token to token" in str(error)


def test_no_attention(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "LogSoftmax"

    edit(source, change)
    assert "no attention was found" in failure(source).message


def test_attention_that_sees_the_future(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "LessOrEqual":
                node.op_type = "GreaterOrEqual"

    edit(source, change)
    assert "neither causal nor a sliding window" in str(failure(source))


def test_attention_with_a_bias_on_distance(tmp_path: Path) -> None:
    """ALiBi: the mask lowers scores by the distance."""
    write_source(tmp_path / "source")

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        where = next(node for node in graph.node if node.op_type == "Where")
        place = list(graph.node).index(where) + 1
        graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "slope"))
        every = next(node for node in graph.node if node.op_type == "Range").output[0]
        rows = [
            helper.make_node("Cast", [every], ["far"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["far", "slope"], ["slanted"]),
            helper.make_node("Add", [where.output[0], "slanted"], ["alibi"]),
        ]
        for offset, node in enumerate(rows):
            graph.node.insert(place + offset, node)
        for node in list(graph.node)[place + 3 :]:
            for position, name in enumerate(node.input):
                if name == where.output[0]:
                    node.input[position] = "alibi"

    edit(tmp_path / "source", change)
    assert "bias on positions" in str(failure(tmp_path / "source"))


def test_keys_of_another_layer_are_no_causal_attention(source: Path) -> None:
    """A value path that is scaled by a wave computes something that no attribute expresses."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        softmax = next(node for node in graph.node if node.op_type == "Softmax")
        place = list(graph.node).index(softmax) + 1
        doubled = helper.make_node(
            "Mul", [softmax.output[0], softmax.output[0]], ["squared"], name="square"
        )
        graph.node.insert(place, doubled)
        for node in list(graph.node)[place + 1 :]:
            for position, name in enumerate(node.input):
                if name == softmax.output[0]:
                    node.input[position] = "squared"

    edit(source, change)
    assert isinstance(failure(source), BadModel)


def test_classification_head(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = next(node for node in graph.node if node.output[0] == "logits")
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
        last.op_type = "Gather"
        last.input.append("first")
        last.attribute.append(helper.make_attribute("axis", 1))

    edit(source, change)
    error = failure(source)
    assert error.where == "logits"
    assert "not one row of logits for each" in error.message


def test_output_that_is_no_logits(source: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.output[0] == "logits":
                node.output[0] = "last_hidden_state"
        model.graph.output[-1].name = "last_hidden_state"
        extra = helper.make_node("Identity", ["last_hidden_state"], ["pooler_output"])
        model.graph.node.append(extra)
        model.graph.output.append(
            helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, None)
        )

    edit(source, change)
    assert "no output of logits, but last_hidden_state" in failure(source).message


@pytest.mark.parametrize(
    ("name", "dims"), [("inputs_embeds", ["B", "T", 32]), ("pixel_values", ["B", 3, 8, 8, 1])]
)
def test_inputs_that_no_language_model_has(source: Path, name: str, dims: list[str]) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))

    edit(source, change)
    error = failure(source)
    assert name in error.where


@pytest.mark.parametrize(
    ("key", "stated", "actual"),
    [
        ("num_hidden_layers", 7, "2"),
        ("vocab_size", 999, "64"),
        ("num_attention_heads", 8, "4"),
        ("num_key_value_heads", 1, "2"),
        ("hidden_size", 48, "32"),
        ("head_dim", 24, "8"),
    ],
)
def test_config_that_disagrees_names_both_numbers(
    source: Path, key: str, stated: int, actual: str
) -> None:
    set_config(source, **{key: stated})
    error = failure(source)
    assert key in error.where
    assert str(stated) in error.message
    assert actual in error.message


def test_config_that_is_no_json(source: Path) -> None:
    (source / "config.json").write_text('{"model_type": "llama",')
    assert failure(source).where == "config.json"


def test_unknown_architecture_as_override(source: Path) -> None:
    error = failure(source, architecture="banana")
    assert "banana" in error.message
    assert "qwen3" in error.remedy


def test_two_onnx_files(source: Path) -> None:
    (source / "model.onnx").rename(source / "a.onnx")
    shutil.copy(source / "a.onnx", source / "b.onnx")
    error = failure(source)
    assert "a.onnx" in error.message
    assert "b.onnx" in error.message


def test_two_encodings(source: Path) -> None:
    for name in ("w4.encodings", "w8.encodings"):
        (source / name).write_text("{}")
    error = failure(source)
    assert isinstance(error, BadEncodings)
    assert "w4.encodings, w8.encodings" in error.message


def test_no_onnx_file(source: Path) -> None:
    (source / "model.onnx").unlink()
    assert "no ONNX file" in failure(source).message


def test_encodings_of_another_model(source: Path) -> None:
    shutil.copy(EXAMPLE / "model.encodings", source)
    assert "tensors that model.onnx does not have" in failure(source).message


def test_encodings_made_with_an_infinite_mask(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    shutil.copytree(EXAMPLE, folder)
    bad = ROOT / "tests" / "fixtures" / "encodings" / "w8a16-inf-mask.encodings"
    shutil.copy(bad, folder / "model.encodings")
    assert "infinite attention mask" in failure(folder).message


def test_foreign_tokenizer(source: Path) -> None:
    shutil.copy(EXAMPLE / "tokenizer.json", source)
    error = failure(source)
    assert error.where == "tokenizer.json"
    assert "2047" in error.message
    assert "64" in error.message


def test_tokens_added_for_other_members_of_a_family_are_a_warning(
    source: Path, tmp_path: Path
) -> None:
    """Gemma 3's tokenizer has a token of images behind the 262144 that its 1B model knows."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": text, "special": True, **flags}
        for number, text in ((63, "</s>"), (64, "<image_soft_token>"))
    ]
    model = {"type": "WordLevel", "vocab": {"a": 0, "b": 62}, "unk_token": "a"}
    content = {"version": "1.0", "model": model, "added_tokens": added}
    (source / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    result = run({"source": source}, IngestConfig(), tmp_path / "out", Context(tmp_path / "s"))
    (warning,) = [one for one in result.warnings if "tokenizer.json" in one]
    assert "<image_soft_token>, the model knows 64 tokens" in warning
    assert (tmp_path / "out" / "assets" / "tokenizer.json").is_file()


@pytest.mark.parametrize("content", ["[]", '{"model": [], "added_tokens": null}', "{"])
def test_a_tokenizer_of_another_form_is_no_traceback(source: Path, content: str) -> None:
    (source / "tokenizer.json").write_text(content)
    assert failure(source).where == "tokenizer.json"


def _of_another_version(source: Path) -> None:
    content = json.loads((EXAMPLE / "model.encodings").read_text())
    (source / "model.encodings").write_text(json.dumps(content | {"version": "9.9"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_of_another_version, "version 9.9 is not known"),
        (lambda source: (source / "model.encodings").write_text("[1]"), "an object was expected"),
        (lambda source: (source / "model.encodings").write_text("{"), "not complete JSON"),
        (lambda source: (source / "model.encodings").write_bytes(b"\xff\xd8"), "not UTF-8"),
        (lambda source: shutil.copy(EXAMPLE / "model.encodings", source), "does not have"),
        (lambda source: shutil.copy(EXAMPLE / "tokenizer.json", source), "knows 64 tokens"),
        (lambda source: np.save(source / "tokens.npy", np.array([[64, 1]])), "the id 64"),
        (lambda source: np.save(source / "tokens.npy", np.array([[64]])), "the shape [1, 1]: no"),
        (lambda source: np.save(source / "tokens.npy", np.zeros((0, 9), int)), "shape [0, 9]: no"),
        (lambda source: np.save(source / "tokens.npy", np.array([[4, -3]])), "the id -3, the"),
        (lambda source: (source / "tokens.npy").write_text("once"), "it is no NumPy array"),
    ],
)
def test_small_files_are_read_before_the_model_is_taken_apart(
    source: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], message: str
) -> None:
    def too_early(*_: object, **__: object) -> None:
        raise AssertionError("minutes of work on a large model")

    monkeypatch.setattr(ingest, "source_to_core", too_early)
    spoil(source)
    assert message in failure(source).message


def test_tokens_out_of_range(source: Path) -> None:
    np.save(source / "tokens.npy", np.full((2, 8), 64, np.uint16))
    error = failure(source)
    assert error.where == "tokens.npy"
    assert "64" in error.message


def test_static_source_without_rotary_settings(tmp_path: Path) -> None:
    """A static form takes its tables as inputs, so config.json alone can describe them."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "tests" / "fixtures" / "step1" / "left-pad", folder)

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = "0"

    edit(folder, change)
    (folder / "model.data").write_bytes(bytes(2048 * 192 * 4))
    config = json.loads((folder / "config.json").read_text())
    for key in ("head_dim", "hidden_size"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    error = failure(folder)
    assert error.where == "position_ids_cos"
    assert "rope_theta" in error.remedy
