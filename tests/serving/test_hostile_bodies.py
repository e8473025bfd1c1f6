"""What a few MiB of a client's JSON may take of memory and time, before it is a request."""

from __future__ import annotations

import json
import socket
import time

import pytest
from pydantic import ValidationError

from genai_serving.api.schemas import ChatBody, CompletionBody, DetokenizeBody

MANY = 390_000


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
def test_a_wrong_list_is_few_errors_when_it_is_long(kind, body):
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
def test_a_body_is_refused_before_it_is_taken_apart(client, body, words):
    answer = client.post("/v1/completions", body)
    assert answer.status == 400
    assert answer.json["error"]["code"] == "invalid_json"
    assert words in answer.json["error"]["message"]


def test_a_body_of_as_many_tokens_as_any_context_has_is_read(client):
    answer = client.post("/v1/completions", {"prompt": [7] * MANY})
    assert answer.status == 400
    assert f"{MANY} " in answer.json["error"]["message"], "the engine has refused its length"


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_text_that_no_context_holds_is_not_cut_into_tokens(client, path):
    answer = client.post(path, {"prompt": "a" * 6145})
    assert answer.status == 400
    assert "the text has 6145 characters; 6144 are read" in answer.json["error"]["message"]
    assert client.post("/tokenize", {"prompt": "a" * 6144}).status == 200


def test_slow_bodies_take_no_more_memory_than_all_of_them_may(client, monkeypatch):
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
