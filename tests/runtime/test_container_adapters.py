"""What an index of adapters may lead to: files of the manifest, whoever wrote the index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from genai_core.canonical import digest_bytes
from genai_core.errors import BadInput
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container, load
from genai_runtime.cpu.adapter_files import read_adapter

METADATA = {
    "backend": "Cpu", "architecture": "llama", "context_length": 8, "vocab_size": 8,
    "model_files": {},
}  # fmt: skip
ADAPTER = save({"x.A": np.ones((2, 1), np.float32), "x.B": np.ones((1, 2), np.float32)})


def opened(folder: Path, *, file: str, sha256: str = "", cases: object = None) -> Container:
    """A container whose manifest names its files truly, and whose index says what it is told."""
    entry = {"file": file, "sha256": sha256 or digest_bytes(ADAPTER), "rank": 1, "linears": 1}
    index = {"adapters": {"one": entry}, "use_cases": cases or {}}
    files = {
        "metadata.json": json.dumps(METADATA).encode(),
        "adapters/one.safetensors": ADAPTER,
        "adapters/index.json": json.dumps(index).encode(),
    }
    manifest = {
        "model": {}, "architecture": "llama", "context_length": 8,
        "target": {"name": "cpu", "backend": "Cpu"},
        "files": {n: {"sha256": digest_bytes(d), "size": len(d)} for n, d in files.items()},
    }  # fmt: skip
    (folder / "adapters").mkdir(parents=True)
    for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
        (folder / name).write_bytes(data)
    return load(folder)


def test_adapters_are_told_when_the_manifest_vouches_for_them(tmp_path: Path) -> None:
    found = opened(tmp_path / "box", file="adapters/one.safetensors")
    assert list(found.adapters().adapters) == ["one"]


@pytest.mark.parametrize(
    ("file", "sha256", "cases", "words"),
    [
        ("../other.safetensors", "", {}, "leaves its folder"),
        ("/etc/passwd", "", {}, "not a relative path"),
        ("adapters/beside.safetensors", "", {}, "is not in the manifest"),
        ("adapters/one.safetensors", "0" * 64, {}, "another file than the manifest's"),
        (
            "adapters/one.safetensors",
            "",
            {"both": {"adapters": [{"name": "two"}]}},
            "the use case both names two",
        ),
        (
            "adapters/one.safetensors",
            "",
            {"both": {"adapters": [{"name": "one", "alpha": float("nan")}]}},
            "finite number",
        ),
    ],
)
def test_adapters_are_refused_when_the_index_says_more_than_the_manifest(
    tmp_path: Path, file: str, sha256: str, cases: object, words: str
) -> None:
    (tmp_path / "other.safetensors").write_bytes(ADAPTER)
    found = opened(tmp_path / "box", file=file, sha256=sha256, cases=cases)
    (found.folder / "adapters" / "beside.safetensors").write_bytes(ADAPTER)
    with pytest.raises(BadInput, match=words):
        open_session(found)
    with pytest.raises(BadInput, match=words):
        found.adapters()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_read_adapter_refuses_what_would_spoil_the_rows_beside_it(
    tmp_path: Path, value: float
) -> None:
    """(x A) of every row is multiplied by its mask, and 0 times an infinity is no number."""
    path = tmp_path / "one.safetensors"
    path.write_bytes(
        save({"x.A": np.full((2, 1), value, np.float32), "x.B": np.ones((1, 2), np.float32)})
    )
    with pytest.raises(BadInput, match="no numbers or overflow"):
        read_adapter(path)
