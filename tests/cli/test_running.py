"""`genai run`, `evaluate` and `inspect` on a small container."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from genai_cli.testing import InProcess, Program
from genai_core.canonical import digest_file
from genai_core.files import digest_cache as filecache
from genai_core.files import unchanged
from genai_core.names import Digest
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session
from genai_runtime.tokenizer import parse_tokens

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
PROMPT = [5, 17, 300, 42]


@pytest.fixture
def call(tmp_path: Path) -> InProcess:
    return InProcess(tmp_path)


@pytest.fixture
def logits(container: Path) -> Iterator[object]:
    """The container's own logits [T, V] for a text, as an independent path to what is expected."""
    with closing(open_session(containers.load(container), threads=1)) as session:

        def of(tokens: list[int]) -> NDArray[np.float32]:
            session.reset()
            return session.forward(np.asarray(tokens))

        yield of


def greedy(logits: object, prompt: list[int], count: int) -> list[int]:
    """Without a cache: the whole text again for every token."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits(text)[-1].argmax()))  # type: ignore[operator]
    return text[len(prompt) :]


def test_token_ids_are_continued_greedily(call: InProcess, container: Path, logits: object) -> None:
    ran = call(
        "run", container, "--prompt-tokens", "5,17,300,42", "--max-tokens", "6", "--ignore-end",
        "--json", "--threads", "1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.json["tokens"] == greedy(logits, PROMPT, 6)
    tokenizer = containers.load(container).tokenizer()
    assert tokenizer is not None
    assert ran.json["text"] == tokenizer.decode(ran.json["tokens"])
    assert ran.json["stopped"] == "length"
    metrics = ran.json["metrics"]
    assert (metrics["promptTokens"], metrics["generatedTokens"]) == (4, 6)
    assert min(metrics.values()) > 0


@pytest.fixture
def altered(container: Path, tmp_path: Path) -> Path:
    """The container with one byte of a file changed, its size and times put back."""
    folder = tmp_path / "altered"
    shutil.copytree(container, folder)
    file = folder / "config.json"
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"llama", b"lLama", 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return folder


@pytest.mark.parametrize(
    "command",
    [["run", "--prompt-tokens", "1"], ["evaluate", "--tokens", "none.npy"], ["inspect"]],
)
def test_a_container_is_refused_when_a_file_is_not_its_manifests(
    call: InProcess, altered: Path, command: list[str]
) -> None:
    ran = call(command[0], altered, *command[1:])
    assert ran.code == 1
    (error,) = ran.errors
    assert f"{altered}/config.json: its bytes are not those of the manifest; fetch" in error


def test_a_container_is_hashed_once_when_its_files_stay(
    call: InProcess, container: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(unchanged, "_SETTLED_NS", 0)
    read: list[str] = []

    def noted(path: Path) -> Digest:
        read.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(filecache, "digest_file", noted)
    copy = tmp_path / "container"
    shutil.copytree(container, copy)
    assert call("inspect", copy).code == 0
    assert "model.data" in read
    read.clear()
    assert call("inspect", copy).code == 0
    assert read == []
    (copy / "config.json").touch()
    assert call("inspect", copy).code == 0
    assert read == ["config.json"]


def test_what_the_manifest_does_not_name_is_not_read(
    call: InProcess, container: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "container"
    shutil.copytree(container, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for name in ("tokenizer.json", "generation_config.json"):
        del manifest["files"][name]
        (copy / name).write_text("[")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    ran = call("run", copy, "--prompt-tokens", "5,17", "--max-tokens", "2", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["text"] == ""


def test_text_goes_through_the_container_s_tokenizer(call: InProcess, container: Path) -> None:
    tokenizer = containers.load(container).tokenizer()
    assert tokenizer is not None
    ids = ",".join(map(str, tokenizer.encode("def f(x):")))
    common = ["--max-tokens", "5", "--json"]
    by_text = call("run", container, "--prompt", "def f(x):", *common).json
    by_ids = call("run", container, "--prompt-tokens", ids, *common).json
    assert by_text["tokens"] == by_ids["tokens"]


def test_a_process_writes_the_continuation_and_nothing_else(
    genai: Program, container: Path
) -> None:
    plain = genai("run", container, "--prompt", "-", "--max-tokens", "5", stdin="def f(x):")
    in_json = genai("run", container, "--prompt", "def f(x):", "--max-tokens", "5", "--json")
    assert plain.code == in_json.code == 0
    assert plain.out == in_json.json["text"] + "\n"
    assert "tokens read at" in plain.err
    assert in_json.err == ""


def test_a_seed_makes_drawn_tokens_repeatable(call: InProcess, container: Path) -> None:
    def drawn(seed: int) -> list[int]:
        arguments = ["--prompt-tokens", "5 17", "--max-tokens", "12", "--temperature", "1"]
        ran = call("run", container, *arguments, "--seed", str(seed), "--ignore-end", "--json")
        return list(ran.json["tokens"])

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "genai run: give either --prompt or --prompt-tokens"),
        (["--prompt", "a", "--prompt-tokens", "1"], "genai run: give either --prompt or"),
        (["--prompt-tokens", "1,x"], "'1,x' is not a list of token ids; write numbers, e.g. 1,2,3"),
        (["--prompt-tokens", ""], "'' is not a list of token ids"),
        (["--prompt-tokens", "4000"], "token id 4000 is outside the vocabulary of 2048"),
        (["--prompt-tokens", "1", "--top-p", "0"], "top-p: must be above 0 and at most 1"),
        (
            ["--prompt-tokens", "1", "--context-length", "99"],
            "context length 99: the container",
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(
    call: InProcess, container: Path, arguments: list[str], said: str
) -> None:
    ran = call("run", container, *arguments)
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.errors
    assert line.startswith(f"error: {said}")


def test_a_container_without_tokenizer_takes_token_ids(
    call: InProcess, container: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(container, bare)
    manifest = bare / "manifest.json"
    value = json.loads(manifest.read_text())
    del value["files"]["tokenizer.json"]
    manifest.write_text(json.dumps(value))
    (bare / "tokenizer.json").unlink()
    (line,) = call("run", bare, "--prompt", "x").errors
    assert line.endswith("the container has no tokenizer; give token ids with --prompt-tokens")
    ran = call("run", bare, "--prompt-tokens", "5,17", "--max-tokens", "3", "--json")
    assert (ran.json["text"], len(ran.json["tokens"])) == ("", 3)
    plain = call("run", bare, "--prompt-tokens", "5,17", "--max-tokens", "3")
    assert list(parse_tokens(plain.out)) == ran.json["tokens"]


def test_the_loss_is_the_mean_over_the_pieces(
    call: InProcess, container: Path, logits: object, tmp_path: Path
) -> None:
    pieces = np.random.default_rng(0).integers(0, 2048, (3, 10), dtype=np.uint16)
    np.save(tmp_path / "t.npy", pieces)
    expected = []
    for piece in pieces.astype(int).tolist():
        rows = logits(piece[:-1]).astype(np.float64)  # type: ignore[operator]
        rows -= rows.max(axis=1, keepdims=True)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        expected += [-log_p[i, token] for i, token in enumerate(piece[1:])]
    ran = call("evaluate", container, "--tokens", "t.npy", "--json")
    assert ran.json["tokens"] == 27
    assert ran.json["natsPerToken"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert ran.json["perplexity"] == pytest.approx(np.exp(np.mean(expected)), rel=1e-6)
    part = call("evaluate", container, "--tokens", "t.npy", "--pieces", "1", "--length", "4")
    assert part.out.startswith(f"{np.mean(expected[:3]):.4f} nats a token")


def test_tokens_that_cannot_be_scored_are_named(
    call: InProcess, container: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "f.npy", np.zeros((2, 3), dtype=np.float32))
    (tmp_path / "t.txt").write_text("1 2 3")
    for name in ("f.npy", "t.txt", "none.npy"):
        ran = call("evaluate", container, "--tokens", name)
        assert ran.code == 2
        assert ran.errors[0].startswith(f"error: {name}: ")


def test_inspection_shows_inputs_outputs_and_golden_prompts(
    call: InProcess, container: Path
) -> None:
    ran = call("inspect", container)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert any(
        line.split()[:2] == ["revision", containers.load(container).revision] for line in lines
    )
    assert any(line.split()[:2] == ["input", "input_ids"] for line in lines)
    assert any(line.split()[:3] == ["output", "logits", "float32"] for line in lines)
    assert any(line.startswith("golden ") and "'def f(x):' -> 4 tokens" in line for line in lines)
    found = call("inspect", container, "--json").json
    assert found["kind"] == "container"
    assert found["contextLength"] == 48


def test_inspection_shows_a_graph_without_its_weights(call: InProcess, container: Path) -> None:
    ran = call("inspect", container / "model.onnx")
    assert ran.code == 0
    assert any(line.split()[:2] == ["input", "input_ids"] for line in ran.out.splitlines())


def test_speculation_writes_the_same_and_tells_what_came_of_it(
    call: InProcess, container: Path
) -> None:
    asked = ("run", container, "--prompt-tokens", "5,17,300,42,5,17", "--max-tokens", "24",
             "--ignore-end", "--threads", "1")  # fmt: skip
    plain = call(*asked, "--json")
    assert "speculation" not in plain.json["metrics"]
    steady = json.dumps({"model": str(container), "num_speculative_tokens": 3, "adaptive": False})
    for method in ("ngram", "ngram,suffix", "lookahead", steady):
        ran = call(*asked, "--speculation", method, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["tokens"] == plain.json["tokens"]
    told = ran.json["metrics"]["speculation"]
    assert told["method"] == "draft_model"
    assert told["acceptance"] == 1, "the model is its own draft"
    assert told["draftTokens"] == told["acceptedTokens"] == sum(told["acceptedPerPosition"])
    shown = call(*asked, "--speculation", steady)
    assert re.search(r"draft_model: (\d+) of \1 guesses in \d+ drafts were right", shown.err)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--draft", "x"), "--draft: it is of speculation; add --speculation METHOD"),
        (("--draft-tokens", "3"), "--draft-tokens: it is of speculation"),
        (("--speculation", "medusa"), "--speculation: method: 'medusa' is not there"),
        (("--speculation", "draft_model"), "the container carries no draft model"),
        (("--speculation", "draft_model", "--draft", "/nowhere"), "/nowhere: "),
        (("--speculation", "ngram", "--draft", "x"), "ngram takes no draft's container"),
        (("--speculation", '{"method": "ngram", "k": 2}'), "--speculation: k: no such key"),
    ],
)
def test_options_of_speculation_that_mean_nothing_are_refused(
    call: InProcess, container: Path, given: tuple[str, ...], message: str
) -> None:
    ran = call("run", container, "--prompt-tokens", "1", *given)
    assert ran.code == 2
    assert message in ran.err
