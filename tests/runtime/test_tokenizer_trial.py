"""What ends the process that reads a tokenizer ends in a sentence about the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel
from genai_runtime import tokenizer_trial
from genai_runtime.tokenizer_trial import try_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model" / "tokenizer.json"


def aborting(folder: Path) -> Path:
    """A tokenizer that ends the process, in spite of the merges that are looked at before."""
    content = json.loads(EXAMPLE.read_text())
    # The library cuts the prefix off the second token of a merge without looking: in a letter.
    vocab = {"a": 0, "é": 1, "aé": 2}
    content["model"] |= {"vocab": vocab, "merges": ["a é"], "continuing_subword_prefix": "x"}
    content |= {"added_tokens": [], "pre_tokenizer": None, "post_processor": None}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_the_library_ends_its_process_on_such_a_tokenizer(tmp_path: Path) -> None:
    """Or this file tests nothing: look for another one then."""
    program = "import sys; from tokenizers import Tokenizer; Tokenizer.from_file(sys.argv[1])"
    command = [sys.executable, "-c", program, str(aborting(tmp_path))]
    ran = subprocess.run(command, capture_output=True, check=False)
    assert ran.returncode < 0


def test_try_tokenizer_names_the_file_when_its_reader_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look at merges is left out in the process that tries it.
    (tmp_path / "sitecustomize.py").write_text(
        "import genai_runtime.tokenizer as t\nt._check_merges = lambda *_: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BadModel, match=r"the tokenizers library ends on it \(SIGABRT\)") as caught:
        try_tokenizer(aborting(tmp_path))
    assert caught.value.where == "tokenizer.json"


def replaced(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


BOUNDLESS = {
    "a table that asks for 8 GiB": {
        "type": "Precompiled",
        "precompiled_charsmap": "/////wAAAAAAAAAA",
    },
    "a text that grows 100-fold nine times": {
        "type": "Sequence",
        "normalizers": [replaced(".", "x" * 100)] * 9,
    },
    "a prefix that grows 1,000-fold four times": {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "a" * 1000}]
        + [replaced("a", "a" * 1000)] * 4,
    },
}


@pytest.mark.parametrize("what", BOUNDLESS)
def test_try_tokenizer_refuses_when_a_normalizer_takes_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(tokenizer_trial, "_MEMORY", 512 << 20)  # or the test would take 4 GiB
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(EXAMPLE.read_text()) | {"normalizer": BOUNDLESS[what]}))
    with pytest.raises(BadModel, match="the tokenizers library ends on it") as caught:
        try_tokenizer(path)
    assert caught.value.where == "tokenizer.json"


def test_try_tokenizer_ends_what_the_library_computes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_trial, "_SECONDS", 1)
    monkeypatch.setattr(tokenizer_trial, "_MEMORY", 64 << 30)
    path = tmp_path / "tokenizer.json"
    normalizer = {"type": "Sequence", "normalizers": [replaced(".", "x" * 100)] * 4}
    path.write_text(json.dumps(json.loads(EXAMPLE.read_text()) | {"normalizer": normalizer}))
    with pytest.raises(BadModel, match=r"computes for more than 1 s|takes more than 2 s"):
        try_tokenizer(path)


def test_try_tokenizer_says_what_the_reader_said_when_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BadModel, match="not a tokenizer that the tokenizers library can read"):
        try_tokenizer(path)


def test_try_tokenizer_ends_what_computes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('trial' in word for word in sys.orig_argv):\n"
        "    import genai_runtime.tokenizer_trial as t\n"
        "    while True:\n"
        "        pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(tokenizer_trial, "_SECONDS", 1)
    with pytest.raises(BadModel, match=r"takes more than 2 s|computes for more than 1 s"):
        try_tokenizer(EXAMPLE)


def test_try_tokenizer_takes_a_tokenizer_of_a_model() -> None:
    try_tokenizer(EXAMPLE)
