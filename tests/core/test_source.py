"""A model's folder by roles: what is found, what is ambiguous, what is missing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from genai_core.errors import BadEncodings, BadInput, BadModel, InvalidSpec
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.sources.adapter_files import inspect_adapter
from genai_core.sources.encoding_bits import weight_bits
from genai_core.sources.source_files import SourceFacts, inspect_source

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
ENCODINGS = ROOT / "tests" / "fixtures" / "encodings"


def external(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_model(folder: Path, *locations: str, name: str = "model.onnx") -> Path:
    """Return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [], "g", [], [], [external(f"w{i}", path) for i, path in enumerate(locations)]
    )
    (folder / name).write_bytes(helper.make_model(graph).SerializeToString())
    for location in locations:
        path = folder / location
        if path.is_relative_to(folder) and ".." not in location:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(location.encode().ljust(4, b"\0"))
    return folder


def inspect(folder: Path, **spec: Any) -> SourceFacts:
    model = {"source": str(folder), **spec.pop("model", {})}
    wanted = BuildSpec.model_validate({"model": model, "targets": ["cpu"], **spec})
    return inspect_source(wanted, Path("/nowhere"), FileCache(None))


def test_example_is_found_whole() -> None:
    found = inspect(EXAMPLE)
    assert set(found.files) == {
        "model.onnx",
        "model.data",
        "model.encodings",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    }
    assert found.config["num_hidden_layers"] == 6
    assert found.weight_bits == 8
    assert found.size == sum(path.stat().st_size for path in EXAMPLE.iterdir())


def test_names_that_users_choose_leave_no_trace(tmp_path: Path) -> None:
    write_model(tmp_path / "a", "w.bin")
    (tmp_path / "a" / "x.encodings").write_text("{}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "model.onnx").rename(tmp_path / "b" / "llm_base.onnx")
    (tmp_path / "b" / "x.encodings").rename(tmp_path / "b" / "y.encodings")
    (tmp_path / "b" / "notes.txt").write_text("no part of the model")
    assert inspect(tmp_path / "a").digest == inspect(tmp_path / "b").digest


def test_only_data_that_the_model_names_belongs_to_it(tmp_path: Path) -> None:
    long = "weights/" + "x" * 150 + ".data"  # a length of two bytes in the file
    write_model(tmp_path, "a.data", long, "a.data")
    (tmp_path / "unrelated.data").write_bytes(b"1234")
    assert set(inspect(tmp_path).files) == {"model.onnx", "a.data", long}


def test_changed_byte_changes_the_digest(tmp_path: Path) -> None:
    write_model(tmp_path, "a.data")
    before = inspect(tmp_path).digest
    (tmp_path / "a.data").write_bytes(b"zzzz")
    assert inspect(tmp_path).digest != before


def test_deeper_folders_are_searched_and_the_top_keeps_the_tokenizer(tmp_path: Path) -> None:
    write_model(tmp_path / "base" / "onnx", "m.data", name="llm_base.onnx")
    (tmp_path / "base" / "onnx" / "llm_base.encodings").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    assert set(inspect(tmp_path).files) == {
        "model.onnx",
        "m.data",
        "model.encodings",
        "config.json",
        "tokenizer.json",
    }


def test_two_encodings_are_both_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    for name in ("w8.encodings", "w4.encodings"):
        (tmp_path / name).write_text(name)
    with pytest.raises(BadEncodings, match=r"w4\.encodings, w8\.encodings") as raised:
        inspect(tmp_path)
    assert "spec.model.encodings" in raised.value.remedy
    chosen = inspect(tmp_path, model={"encodings": "w8.encodings"})
    assert chosen.files["model.encodings"].path.name == "w8.encodings"


def test_two_models_are_both_named(tmp_path: Path) -> None:
    write_model(tmp_path, name="a.onnx")
    write_model(tmp_path, name="b.onnx")
    with pytest.raises(BadModel, match=r"a\.onnx, b\.onnx"):
        inspect(tmp_path)
    assert inspect(tmp_path, model={"onnx": "b.onnx"}).files["model.onnx"].path.name == "b.onnx"


def test_onnx_file_itself_may_be_the_source(tmp_path: Path) -> None:
    write_model(tmp_path, name="a.onnx")
    write_model(tmp_path, name="b.onnx")
    assert inspect(tmp_path / "b.onnx").files["model.onnx"].path.name == "b.onnx"


@pytest.mark.parametrize(
    ("name", "role"),
    [("CORPUS", "calibration.txt"), ("a.b/text", "calibration.txt"), ("t.NPY", "calibration.npy")],
)
def test_calibration_is_found_whatever_its_suffix(tmp_path: Path, name: str, role: str) -> None:
    """Stages look for `calibration.*`: a file without a suffix was not there for them."""
    write_model(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"2")
    found = inspect(tmp_path, quantization={"gaps": "Calibrate", "calibration": name})
    assert found.files[role].path == tmp_path / name


def test_further_files_of_the_spec_get_roles(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "eval.npy").write_bytes(b"1")
    (tmp_path / "text.TXT").write_bytes(b"2")
    found = inspect(
        tmp_path,
        quantization={
            "gaps": "Calibrate",
            "calibration": "text.TXT",
            "fidelity": {"tokens": "eval.npy"},
        },
    )
    assert found.files["tokens.npy"].path.name == "eval.npy"
    assert found.files["calibration.txt"].path.name == "text.TXT"


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda p: p.mkdir(), BadModel, "no .onnx file"),
        (lambda p: (write_model(p, "x") / "x").unlink(), BadModel, "x is missing"),
        (lambda p: write_model(p, "../secret"), BadModel, "outside the model's folder"),
        (lambda p: write_model(p, "/etc/passwd"), BadModel, "outside the model's folder"),
        (lambda p: write_model(p, "config.json"), BadModel, "stands for another file"),
        (lambda p: (p.mkdir(), (p / "m.onnx").touch()), BadModel, "empty"),
        (lambda p: (write_model(p) / "config.json").write_text("{"), BadModel, "not JSON"),
        (lambda p: (write_model(p) / "config.json").write_text("[]"), BadModel, "JSON object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tmp_path: Path, make: Any, kind: type[BadInput], words: str
) -> None:
    folder = tmp_path / "model"
    make(folder)
    with pytest.raises(kind, match=words) as raised:
        inspect(folder)
    assert str(folder) in raised.value.where
    assert raised.value.remedy


def test_named_file_that_is_missing_names_the_field(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(BadInput) as raised:
        inspect(tmp_path, quantization={"fidelity": {"tokens": "eval.npy"}})
    assert raised.value.where == "spec.quantization.fidelity.tokens"


def test_pinned_digest_is_held(tmp_path: Path) -> None:
    write_model(tmp_path, "a.data")
    pin = inspect(tmp_path).digest
    assert inspect(tmp_path, model={"digest": pin}).digest == pin
    (tmp_path / "a.data").write_bytes(b"zzzz")
    with pytest.raises(BadModel, match="not the sha256:"):
        inspect(tmp_path, model={"digest": pin})


def test_address_is_no_folder() -> None:
    wanted = BuildSpec.model_validate({"model": {"source": "s3://bucket/m"}, "targets": ["cpu"]})
    with pytest.raises(InvalidSpec, match="folder"):
        inspect_source(wanted, Path("/nowhere"), FileCache(None))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("w4a16.encodings", 4),
        ("w4a16-2.0.0.encodings", 4),
        ("w4a16-0.6.1.encodings.gz", 4),
        ("w8a16-inf-mask.encodings", 8),
    ],
)
def test_width_of_weights_is_read_from_every_version(tmp_path: Path, name: str, bits: int) -> None:
    data = (ENCODINGS / name).read_bytes()
    path = tmp_path / "m.encodings"
    path.write_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    assert weight_bits(path) == bits


@pytest.mark.parametrize("text", ["", "{}", json.dumps({"param_encodings": []})])
def test_encodings_without_weights_have_no_width(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.encodings"
    path.write_text(text)
    assert weight_bits(path) is None


def test_weight_bits_leaves_a_width_out_when_it_has_thousands_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "a.encodings"
    path.write_text('{"param_encodings": [{"bw": ' + "9" * 5000 + '}, {"bw": 4}]}')
    assert weight_bits(path) == 4


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.encodings"])
@pytest.mark.parametrize("way", ["link", "loop", "fifo"])
def test_inspect_source_refuses_when_a_file_is_there_and_cannot_be_read(
    name: str, way: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    if way == "fifo":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("nowhere" if way == "link" else name)
    # Left out, it would be a model without a tokenizer, of no known family, or in float.
    with pytest.raises(BadModel, match=r"leads nowhere|no ordinary file") as caught:
        inspect(tmp_path)
    assert caught.value.where == str(tmp_path / name)


def test_inspect_source_takes_a_folder_when_its_name_ends_as_a_file(tmp_path: Path) -> None:
    write_model(tmp_path / "llama.onnx", name="graph.onnx")
    found = inspect(tmp_path / "llama.onnx")
    assert found.files["model.onnx"].path.name == "graph.onnx"
    alone = inspect(tmp_path / "llama.onnx" / "graph.onnx")
    assert alone.digest == found.digest


def test_inspect_source_refuses_when_a_name_is_no_text(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "model.onnx").rename(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx"))
    with pytest.raises(BadModel, match="not UTF-8") as caught:
        inspect(tmp_path)
    assert caught.value.where.isprintable()


def test_inspect_source_refuses_when_data_is_called_as_the_calibration_text(tmp_path: Path) -> None:
    write_model(tmp_path, "calibration.txt")
    (tmp_path / "text.txt").write_text("def f(): pass")
    with pytest.raises(BadModel, match=r"external data is called calibration\.txt"):
        inspect(tmp_path, quantization={"gaps": "Calibrate", "calibration": "text.txt"})


def test_inspect_adapter_refuses_what_git_lfs_left_in_a_files_place(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n"
    (tmp_path / "adapter_model.safetensors").write_text(pointer)
    with pytest.raises(BadInput, match=r"adapter_model.safetensors: .*Git LFS.*4096 bytes"):
        inspect_adapter(tmp_path, FileCache(None), where="lora.adapters[0].source")
