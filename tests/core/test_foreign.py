"""Files of others: what they may look like, and how they end."""

from __future__ import annotations

import codecs
import errno
import json
from pathlib import Path

import pytest

from genai_core.errors import BadEncodings, BadModel, NoSpace
from genai_core.files.digest_cache import FileCache
from genai_core.files.foreign import boundary, decoded, plain_text, read_json_object, refuse_pointer
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_build_text
from genai_core.sources.source_files import inspect_source

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 8589934592\n"
)
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "utf-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
}


class PanicException(BaseException):
    """As pyo3 calls what a library in Rust raises."""


@pytest.mark.parametrize("error", [ValueError("x\ny"), IndexError(), PanicException("retry-limit")])
def test_boundary_names_the_file_when_a_reader_raises(error: BaseException) -> None:
    with pytest.raises(BadEncodings) as caught, boundary("a.json", kind=BadEncodings):
        raise error
    assert caught.value.where == "a.json"
    assert (str(error) or type(error).__name__).split()[0] in caught.value.message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        BadModel("its own"),
        MemoryError(),
        KeyboardInterrupt(),
        NoSpace("full"),
        OSError(errno.ENOSPC, "full"),
    ],
)
def test_boundary_lets_pass_what_is_no_fault_of_the_file(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, boundary("a.json", kind=BadEncodings):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("form", ENCODINGS)
def test_read_json_object_reads_any_byte_order_when_it_is_marked(tmp_path: Path, form: str) -> None:
    text = '{"name": "ä", "n": 1}'
    path = tmp_path / "config.json"
    path.write_bytes(ENCODINGS[form](text))
    assert read_json_object(path) == {"name": "ä", "n": 1}
    assert decoded(path.read_bytes()) == text
    assert plain_text(path.read_bytes()) == text.encode()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\xd8\xff", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"a": ' + b"[" * 5000, "deeper"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (POINTER, "pointer of Git LFS, not the file of 8589934592 bytes"),
    ],
)
def test_read_json_object_says_what_is_wrong_when_it_is_none(
    tmp_path: Path, data: bytes, what: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(BadModel, match=what) as caught:
        read_json_object(path)
    assert caught.value.where == "config.json"


def test_refuse_pointer_takes_files_when_they_are_themselves(tmp_path: Path) -> None:
    for data in (b"", b"version", POINTER + b"x" * 2000):
        (tmp_path / "a").write_bytes(data)
        refuse_pointer(tmp_path / "a")


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "model.data", "a.encodings", "config.json", "tokenizer.json", "t.npy", "c.txt"],
)
def test_inspect_source_names_the_pointer_when_git_lfs_left_one(tmp_path: Path, name: str) -> None:
    location = b"\x0a\x08location\x12\x0amodel.data"
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a" + location)
    for other in ("model.data", "a.encodings", "tokenizer.json", "t.npy", "c.txt"):
        (tmp_path / other).write_bytes(b"{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / name).write_bytes(POINTER)
    quantization = {"fidelity": {"tokens": "t.npy"}, "gaps": "Calibrate", "calibration": "c.txt"}
    model = {"source": str(tmp_path)}
    spec = BuildSpec.model_validate(
        {"model": model, "targets": ["cpu"], "quantization": quantization}
    )
    with pytest.raises(BadModel, match="pointer of Git LFS") as caught:
        inspect_source(spec, tmp_path, FileCache(None))
    assert caught.value.where == str(tmp_path / name)
    assert "git lfs pull" in caught.value.remedy


@pytest.mark.parametrize("form", ENCODINGS)
def test_read_build_text_reads_any_byte_order_when_it_is_marked(tmp_path: Path, form: str) -> None:
    text = (
        "apiVersion: genai-operator.dev/v1alpha1\nkind: GenAIBuild\nmetadata:\n  name: a\n"
        "spec:\n  model:\n    source: s3://bucket/ä\n  targets: [cpu]\n"
    )
    build = read_build_text(ENCODINGS[form](text), where="build.yaml", folder=tmp_path)
    assert build.spec.model.source == "s3://bucket/ä"
