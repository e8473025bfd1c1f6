"""What a few MiB of a client's JSON may take of memory and time, before it is a request."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from running import Client, Running, example_tokenizer

from genai_runtime.tokenizer import TextTokenizer
from genai_serving.api.schemas import ChatBody, CompletionBody, DetokenizeBody

MANY = 390_000
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionBody, {"prompt": [-1] * 5000}),
        (CompletionBody, {"prompt": [[]] * 5000}),
        (CompletionBody, {"prompt": [[-1] * 5000]}),
        (CompletionBody, {"prompt": [["a"] * 50] * 200}),
        (CompletionBody, {"prompt": "x", "stop_token_ids": [-1] * 5000}),
        (ChatBody, {"messages": [{}] * 4000}),
        (ChatBody, {"messages": [{"role": "user", "content": [{}] * 200}] * 200}),
        (DetokenizeBody, {"tokens": [None] * 5000}),
    ],
)
def test_a_wrong_list_is_few_errors_when_it_is_long(kind: type[BaseModel], body: Any) -> None:
    """Each error takes a KiB and 10 µs, in the loop that serves everybody."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() < 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"prompt":[' + b"[]," * MANY + b"[]]}", "more values, and 400000 are read"),
        (b'{"prompt":' + b"[" * 100 + b"]" * 100 + b"}", "deeper, and 64 are read"),
        (json.dumps({f"a{n}": 1 for n in range(20_001)}).encode(), "20001 keys"),
        (json.dumps({"metadata": {f"a{n}": 1 for n in range(20_001)}}).encode(), "20002 keys"),
        (b'{"prompt": "\xed\xa0\x80"}', "cannot be read as JSON"),
    ],
    ids=["values", "depth", "keys", "inner keys", "no UTF-8"],
)
def test_a_body_is_refused_before_it_is_taken_apart(client: Client, body: Any, words: str) -> None:
    answer = client.post("/v1/completions", body)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "invalid_json"
    assert words in answer.json["error"]["message"]


def test_a_body_of_as_many_tokens_as_any_context_has_is_read(client: Client) -> None:
    answer = client.post("/v1/completions", {"prompt": [7] * MANY})
    assert answer.status == 400
    assert f"{MANY} " in answer.json["error"]["message"], "the engine has refused its length"


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_text_that_no_context_holds_is_not_cut_into_tokens(client: Client, path: str) -> None:
    answer = client.post(path, {"prompt": "a" * 6145})
    assert answer.status == 400
    assert "the text has 6145 characters; 6144 are read" in answer.json["error"]["message"]
    assert client.post("/tokenize", {"prompt": "a" * 6144}).status == 200


def test_slow_bodies_take_no_more_memory_than_all_of_them_may(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_serving.api.bodies.MOST_BODIES_BYTES", 30_000)
    address = ("127.0.0.1", client.port)
    begun = b'{"prompt": "' + b"a" * 20_000
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
    with socket.create_connection(address, timeout=20) as slow:
        slow.sendall(head + begun)
        until = time.monotonic() + 20
        while (answer := client.post("/tokenize", begun + b'"}')).status != 429:
            assert time.monotonic() < until
        assert answer.headers["retry-after"]
        assert client.post("/tokenize", {"prompt": "a"}).status == 200
    while client.post("/tokenize", {"prompt": "a" * 6000, "model": ""}).status != 200:
        assert time.monotonic() < until
    while client.post("/tokenize", begun + b'"}').status == 429:
        assert time.monotonic() < until, "what a client that went away held is free again"


def test_a_body_counts_until_its_request_is_over(
    client: Client, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in memory as long; a thousand that wait for the tokenizer were gigabytes."""
    monkeypatch.setattr("genai_serving.api.bodies.MOST_BODIES_BYTES", 30_000)
    monkeypatch.setattr(shared.executor, "seconds", 0.02)
    large = {"prompt": "a", "max_tokens": 90, "ignore_eos": True, "user": "a" * 20_000}
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as held:
        raw = json.dumps({**large, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
        held.sendall(head.encode() + raw)
        assert held.recv(8).startswith(b"HTTP/1.1"), "its answer has begun"
        assert client.post("/tokenize", {"prompt": "a" * 6000}).status == 200
        assert client.post("/v1/completions", {**large, "max_tokens": 1}).status == 429
    until = time.monotonic() + 20
    while client.post("/v1/completions", {**large, "max_tokens": 1}).status != 200:
        assert time.monotonic() < until
    while shared.service.bodies.bytes:
        assert time.monotonic() < until


def test_logprobs_of_prompts_are_bounded_however_many_prompts_there_are(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.2 MB of tokens took 350 MiB, and 12 s in which nobody else was answered."""
    monkeypatch.setattr("genai_serving.api.service.MOST_TOLD", 2 * 3 * 50 * 21)
    body = {"prompt": [[7] * 50] * 2, "n": 3, "max_tokens": 1, "echo": True, "logprobs": 20}
    assert client.post("/v1/completions", body).status == 200
    answer = client.post("/v1/completions", {**body, "prompt": [[7] * 51] * 2})
    assert answer.status == 400
    assert "6426 numbers of prompts" in answer.json["error"]["message"]


class Watched:
    """A library's tokenizer; whether it works now."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.working = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._library, name)

        def watched(*given: Any, **options: Any) -> Any:
            self.working = True
            try:
                return found(*given, **options)
            finally:
                self.working = False

        return watched


@pytest.mark.parametrize(
    "work",
    [lambda t: t.encode("ab cd " * 100_000), lambda t: t.decode([7, 8, 300] * 300_000)],
    ids=["text", "tokens"],
)
def test_a_long_text_keeps_no_other_thread_waiting_in_either_direction(
    work: Callable[[TextTokenizer], object],
) -> None:
    tokenizer = example_tokenizer()
    watched: Any = Watched(tokenizer._tokenizer)
    tokenizer._tokenizer = watched
    thread = threading.Thread(target=work, args=(tokenizer,))
    thread.start()
    steps = 0
    while thread.is_alive():
        steps += watched.working
        time.sleep(0.001)
    assert steps > 10, "two or three where the lock of the interpreter is held"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "stop_token_ids": [10**6, 10**30]}),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": "x"}],
                "chat_template_kwargs": {"self": 1, "args": 2},
            },
        ),
    ],
)
def test_names_and_numbers_that_mean_nothing_here_fail_no_answer(
    client: Client, path: str, body: Any
) -> None:
    answer = client.post(path, {**body, "min_tokens": 2, "max_tokens": 3})
    assert answer.status == 200, answer.raw


def test_many_tokens_become_text_outside_the_loop(
    client: Client, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = []

    def text(self: object, tokens: Sequence[int]) -> str:
        try:
            asyncio.get_running_loop()
            loops.append(True)
        except RuntimeError:
            loops.append(False)
        return "x" * len(tokens)

    monkeypatch.setattr(type(shared.service.model), "text", text)
    answer = client.post("/detokenize", {"tokens": [7] * 1000})
    assert answer.json["prompt"] == "x" * 1000
    assert loops == [False]


def test_many_tokens_have_the_text_of_few(client: Client) -> None:
    tokens = [index % 2000 for index in range(5000)]
    tokenizer = example_tokenizer()
    whole = client.post("/detokenize", {"tokens": tokens}).json["prompt"]
    assert whole == tokenizer._tokenizer.decode(tokens)
