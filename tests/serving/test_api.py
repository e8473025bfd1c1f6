"""OpenAI's API over an executor without a model: what is told, in which form."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from running import Client, Running, example_tokenizer

from genai_core.errors import BadModel
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import generate
from genai_runtime.session import SlotSession
from genai_runtime.testing import ScriptedExecutor
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.api.model import sampling_defaults
from genai_serving.api.schemas import ChatBody, CompletionBody, TokenizeBody
from genai_serving.engine import ServingLimits

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
PROMPT = [1, 305, 490, 724]
CHAT = [{"role": "user", "content": "What does `close` do?"}]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return example_tokenizer()


def expected_tokens(prompt: ArrayLike, most: int) -> list[int]:
    session = SlotSession(ScriptedExecutor(vocab_size=2048, context_length=96))
    return list(generate(session, np.array(prompt), max_tokens=most, stop_tokens={2, 6}).tokens)


def complete(client: Client, **changed: Any) -> Any:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    answer = client.post("/v1/completions", body | changed)
    assert answer.status == 200, answer.raw
    return answer.json


def text_of(events: list[Any]) -> str:
    return "".join(c.get("text") or "" for e in events[:-1] for c in e["choices"])


def test_completion_writes_what_generation_writes(client: Client, tokenizer: TextTokenizer) -> None:
    told = complete(client)
    expected = expected_tokens(PROMPT, 12)
    (choice,) = told["choices"]
    assert choice["token_ids"] == expected
    assert choice["text"] == tokenizer.decode(expected)
    assert choice["finish_reason"] == "length"
    assert told["object"] == "text_completion"
    assert told["model"] == "scripted"
    assert told["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 12,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_text_and_token_prompts_are_the_same_prompt(
    client: Client, tokenizer: TextTokenizer
) -> None:
    text = "def f(self"
    ids = [int(t) for t in tokenizer.encode(text)]
    told = complete(client, prompt=[text, "x"])["choices"]
    assert told[0]["prompt_token_ids"] == ids
    assert told[0]["token_ids"] == complete(client, prompt=ids)["choices"][0]["token_ids"]
    assert [c["index"] for c in complete(client, prompt=[PROMPT, ids])["choices"]] == [0, 1]


def test_stream_tells_the_same_text_in_pieces(client: Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0}
    whole = client.post("/v1/completions", body).json
    streamed = client.post(
        "/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = streamed.events
    assert events[-1] == "[DONE]"
    assert text_of(events) == whole["choices"][0]["text"]
    assert events[-2]["usage"] == whole["usage"]
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert {event["id"] for event in events[:-1]} == {events[0]["id"]}


def test_n_choices_differ_by_seed_and_repeat_with_it(client: Client) -> None:
    def choices(**changed: Any) -> Any:
        told = complete(client, temperature=1.5, seed=11, n=3, **changed)
        return [choice["token_ids"] for choice in told["choices"]]

    first = choices()
    assert len({tuple(tokens) for tokens in first}) == 3
    assert choices() == first
    assert complete(client, temperature=1.5, seed=12)["choices"][0]["token_ids"] == first[1]


def test_no_seed_draws_anew_each_time(client: Client) -> None:
    drawn = {tuple(complete(client, temperature=2)["choices"][0]["token_ids"]) for _ in range(3)}
    assert len(drawn) == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_text_before_it(
    client: Client, tokenizer: TextTokenizer, stream: bool, include: bool
) -> None:
    whole = complete(client, max_tokens=30)["choices"][0]["text"]
    stop = whole[9:12]
    place = whole.find(stop)
    body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0, "stop": [stop, "\x00never"]}
    body |= {"include_stop_str_in_output": include, "stream": stream}
    answer = client.post("/v1/completions", body)
    text = text_of(answer.events) if stream else answer.json["choices"][0]["text"]
    assert text == whole[: place + (len(stop) if include else 0)]
    last = answer.events[-2] if stream else answer.json
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["stop_reason"] == stop


def test_a_stop_token_ends_the_answer_and_is_not_shown(
    client: Client, tokenizer: TextTokenizer
) -> None:
    tokens = expected_tokens(PROMPT, 12)
    told = complete(client, stop_token_ids=[tokens[5]])["choices"][0]
    first = tokens.index(tokens[5])
    assert told["token_ids"] == tokens[: first + 1]
    assert told["text"] == tokenizer.decode(tokens[:first])
    assert told["finish_reason"] == "stop"


def test_logit_bias_forces_a_token_and_penalties_keep_it_from_coming_again(client: Client) -> None:
    forced = complete(client, logit_bias={"77": 100})["choices"][0]["token_ids"]
    assert set(forced) == {77}
    plain = complete(client, max_tokens=3)["choices"][0]["token_ids"]
    once = complete(client, max_tokens=3, logit_bias={str(plain[0]): -100})
    assert plain[0] not in once["choices"][0]["token_ids"]


def test_logprobs_and_echo_score_a_given_text(client: Client, tokenizer: TextTokenizer) -> None:
    told = complete(client, prompt="def f(", max_tokens=0, echo=True, logprobs=2)
    (choice,) = told["choices"]
    ids = choice["prompt_token_ids"]
    session = SlotSession(ScriptedExecutor(vocab_size=2048, context_length=96))
    logits = session.forward(np.array(ids)).astype(np.float64)
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scores = choice["logprobs"]
    assert scores["token_logprobs"][0] is None
    np.testing.assert_allclose(
        scores["token_logprobs"][1:], [rows[i, t] for i, t in enumerate(ids[1:])], atol=1e-6
    )
    assert choice["text"] == "def f("
    assert scores["text_offset"] == [0, 0, 3, 5]
    assert all(len(top) in {2, 3} for top in scores["top_logprobs"][1:])
    assert told["usage"]["completion_tokens"] == 0


def test_chat_renders_the_template_and_answers(client: Client, tokenizer: TextTokenizer) -> None:
    body = {"messages": CHAT, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    told = client.post("/v1/chat/completions", body).json
    text = "<s><|user|>\nWhat does `close` do?<|end|>\n<|assistant|>\n"
    tokens = client.post("/tokenize", {"messages": CHAT}).json["tokens"]
    assert told["prompt_token_ids"] == tokens
    assert text.replace("\n", "") in "".join(tokenizer.piece(t) for t in tokens).replace("\n", "")
    expected = expected_tokens(tokens, 8)
    choice = told["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["token_ids"] == expected
    assert choice["message"]["content"] == tokenizer.decode(expected)
    assert told["object"] == "chat.completion"


def test_chat_streams_a_role_first_and_logprobs_with_bytes(client: Client) -> None:
    body = {"messages": CHAT, "max_tokens": 4, "temperature": 0, "stream": True}
    events = client.post(
        "/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 2, "n": 2}
    ).events
    assert [event["choices"][0]["delta"] for event in events[:2]] == [
        {"role": "assistant", "content": ""}
    ] * 2
    told = [
        entry
        for event in events[:-1]
        for choice in event["choices"]
        if choice["index"] == 0 and choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert len(told) == 4
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in told)
    assert all(len(entry["top_logprobs"]) == 2 for entry in told)
    ends = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert ends.count("length") == 2
    assert {event["object"] for event in events[:-1]} == {"chat.completion.chunk"}


def test_chat_content_of_text_parts_is_their_text(client: Client) -> None:
    parts = [{"type": "text", "text": "What does "}, {"type": "text", "text": "`close` do?"}]
    one = client.post("/tokenize", {"messages": CHAT}).json
    two = client.post("/tokenize", {"messages": [{"role": "user", "content": parts}]}).json
    assert one == two


def test_tokenize_and_detokenize_are_inverse(client: Client) -> None:
    told = client.post("/tokenize", {"prompt": "def f(self):"}).json
    assert told["count"] == len(told["tokens"])
    assert told["max_model_len"] == 96
    back = client.post("/detokenize", {"tokens": told["tokens"]}).json
    assert back == {"prompt": "def f(self):"}
    without = client.post("/tokenize", {"prompt": "def f(self):", "add_special_tokens": False})
    assert without.json["tokens"] == told["tokens"][1:]


def test_models_health_and_ready(client: Client) -> None:
    model, *worn = client.get("/v1/models").json["data"]
    assert [(m["id"], m["parent"]) for m in worn] == [
        (name, "scripted") for name in ("c", "upper", "both")
    ]
    assert model["id"] == "scripted"
    assert model["parent"] is None
    assert model["bit_stable"] == {"chunks": True, "neighbours": True}
    assert client.get("/v1/models/scripted").json == model
    assert client.get("/health").status == client.get("/ready").status == 200


BAD = {
    "a list": (b"[]", 400, None),
    "a text": (b'"x"', 400, None),
    "null": (b"null", 400, None),
    "nothing": (b"", 400, None),
    "broken JSON": (b'{"prompt": ', 400, None),
    "invalid UTF-8": (b'{"prompt": "\xff"}', 400, None),
    "NaN": (b'{"prompt": "x", "temperature": NaN}', 400, None),
    "deep nesting": (b'{"prompt": ' + b"[" * 100000 + b"]" * 100000 + b"}", 400, None),
    "no prompt": ({}, 400, "prompt"),
    "no prompt at all": ({"prompt": []}, 400, None),
    "another model": ({"prompt": "x", "model": "gpt-4"}, 404, "model"),
    "an unknown field": ({"prompt": "x", "tools": []}, 400, "tools"),
    "a misspelt field": ({"prompt": "x", "temprature": 1}, 400, "temprature"),
    "a negative temperature": ({"prompt": "x", "temperature": -1}, 400, "temperature"),
    "top_p of 0": ({"prompt": "x", "top_p": 0}, 400, "top_p"),
    "no tokens": ({"prompt": "x", "max_tokens": 0}, 400, None),
    "too many choices": ({"prompt": "x", "n": 99}, 400, "n"),
    "a bias of a word": ({"prompt": "x", "logit_bias": {"the": 1}}, 400, "logit_bias"),
    "a bias beyond the vocabulary": ({"prompt": "x", "logit_bias": {"9999": 1}}, 400, "logit_bias"),
    "a bias too large": ({"prompt": "x", "logit_bias": {"1": 101}}, 400, None),
    "a huge token id": ({"prompt": [10**30]}, 400, "prompt"),
    "a token beyond the vocabulary": ({"prompt": [5000]}, 400, None),
    "a negative token": ({"prompt": [-1]}, 400, None),
    "an empty stop": ({"prompt": "x", "stop": [""]}, 400, None),
    "a prompt beyond the context": ({"prompt": [1] * 97}, 400, None),
    "stream options without a stream": ({"prompt": "x", "stream_options": {}}, 400, None),
    "best_of": ({"prompt": "x", "best_of": 4}, 400, "best_of"),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400, "prompt"),
    "a lone surrogate as a field": (b'{"prompt": "x", "\\uD800": 1}', 400, None),
    "a lone surrogate as a model": (b'{"prompt": "x", "model": "\\udfff"}', 404, "model"),
    "a number of 5000 digits": (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400, None),
}


@pytest.mark.parametrize(("body", "status", "param"), BAD.values(), ids=BAD.keys())
def test_bad_bodies_are_refused_in_openai_s_shape(
    client: Client, body: Any, status: int, param: str | None
) -> None:
    answer = client.post("/v1/completions", body)
    assert answer.status == status, answer.raw
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert "Traceback" not in error["message"]
    if param:
        assert error["param"].split(".")[0] == param


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "messages"),
        ([{"role": "wizard", "content": "x"}], "role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "the model reads no pictures",
        ),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "image_url is of a user's message",
        ),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            "messages.0.content",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"uri": "x"}}]}],
            "image_url",
        ),
        ([{"role": "user"}], "content"),
    ],
)
def test_bad_messages_are_refused_by_the_field(client: Client, messages: Any, word: str) -> None:
    answer = client.post("/v1/chat/completions", {"messages": messages})
    assert answer.status == 400
    assert word in answer.json["error"]["message"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["def f(", "user", "text", 1, 0]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    set(CompletionBody.model_fields) | set(ChatBody.model_fields) | set(TokenizeBody.model_fields)
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5)
MOSTLY_RIGHT = st.fixed_dictionaries(
    {"prompt": st.just("x"), "max_tokens": st.integers(0, 3)},
    optional={name: JSON for name in FIELDS if name not in {"prompt", "max_tokens"}},
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]),
    JSON | BODIES | MOSTLY_RIGHT,
)
def test_no_json_ever_makes_a_500(shared: Running, path: str, body: Any) -> None:
    answer = shared.client.post(path, body)
    assert answer.status in {200, 400, 404}, (answer.status, answer.raw)
    if answer.status != 200:
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_unknown_routes_and_methods_have_the_same_shape(client: Client) -> None:
    for method, path, status in (
        ("GET", "/v2/x", 404),
        ("GET", "/v1/completions", 405),
        ("GET", "/v1/models/other", 404),
    ):
        answer = client(method, path)
        assert answer.status == status
        assert path.rsplit("/", 1)[1] in answer.json["error"]["message"]
    assert "/v1/chat/completions" in client.post("/v1/responses", {}).json["error"]["message"]


def test_a_body_beyond_the_limit_is_refused(client: Client) -> None:
    answer = client.post("/v1/completions", b'{"prompt": "' + b"a" * (9 << 20) + b'"}')
    assert answer.status == 413
    assert answer.json["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_serving.api.bodies.BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        began = time.monotonic()
        told = slow.recv(4096)
    assert told.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "variables", [{"messages": []}, {"add_generation_prompt": False}, {"bos_token": 10**400}]
)
def test_template_variables_never_break_a_server(client: Client, variables: Any) -> None:
    body = {"messages": CHAT, "max_tokens": 1, "chat_template_kwargs": variables}
    answer = client.post("/v1/chat/completions", body)
    assert answer.status in {200, 400}
    assert "error" in answer.json or answer.json["choices"]


def test_request_ids_are_told_back_or_made(client: Client) -> None:
    assert client("GET", "/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == (
        "abc-1"
    )
    made = client("GET", "/health", headers={"X-Request-Id": "no good"}).headers["x-request-id"]
    assert made != "no good"
    assert len(made) == 24


def test_a_name_chooses_its_adapters_beside_others(client: Client) -> None:
    def worn(name: str, *uses: tuple[str, float]) -> tuple[str, list[int]]:
        executor = ScriptedExecutor(vocab_size=2048, context_length=96, adapters=("c", "upper"))
        session = SlotSession(executor, [AdapterUse(*use) for use in uses])
        told = generate(session, np.array(PROMPT), max_tokens=12, stop_tokens={2, 6})
        return name, list(told.tokens)

    expected = dict(
        [
            worn("scripted"),
            worn("base"),
            worn("c", ("c", 1.0)),
            worn("upper", ("upper", 1.0)),
            worn("both", ("c", 0.5), ("upper", 1.0)),
        ]
    )
    assert len({tuple(tokens) for tokens in expected.values()}) == 4
    names = list(expected) * 4
    with ThreadPoolExecutor(len(names)) as pool:
        told = list(pool.map(lambda name: complete(client, model=name), names))
    for name, answer in zip(names, told, strict=True):
        assert answer["model"] == ("scripted" if name == "base" else name)
        assert answer["choices"][0]["token_ids"] == expected[name]
    unknown = client.post("/v1/completions", {"prompt": "x", "model": "c-headers"})
    assert unknown.status == 404
    assert "scripted, c, upper, both" in unknown.json["error"]["message"]


def test_metrics_count_by_vllm_s_names(client: Client) -> None:
    def read() -> dict[str, float]:
        lines = client.get("/metrics").raw.decode().splitlines()
        return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}

    labels = '{engine="0",model_name="scripted"}'
    before = read()
    complete(client, max_tokens=5)
    after = read()
    for name, more in (
        ("prompt_tokens_total", 4),
        ("generation_tokens_total", 5),
        ("time_to_first_token_seconds_count", 1),
        ("inter_token_latency_seconds_count", 4),
        ("e2e_request_latency_seconds_count", 1),
        ("request_prompt_tokens_sum", 4),
    ):
        assert after[f"vllm:{name}{labels}"] - before[f"vllm:{name}{labels}"] == more, name
    assert after[f"vllm:num_requests_running{labels}"] == 0
    ended = '{engine="0",finished_reason="length",model_name="scripted"}'
    assert after[f"vllm:request_success_total{ended}"] >= 1


def test_keys_guard_everything_but_health_and_metrics(make_server: Callable[..., Running]) -> None:
    client = make_server(api_keys=("first", "sécond")).client
    for path in ("/health", "/ready", "/metrics"):
        assert client.get(path).status == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first"}):
        answer = client("GET", "/v1/models", headers=headers)
        assert answer.status == 401
        assert answer.json["error"]["code"] == "invalid_api_key"
        assert client("POST", "/tokenize", {"prompt": "x"}, headers).status == 401
    assert client("GET", "/v1/models", headers={"Authorization": "Bearer first"}).status == 200


def test_without_a_tokenizer_tokens_are_served_and_text_is_refused(
    make_server: Callable[..., Running],
) -> None:
    client = make_server(tokenizer=False).client
    assert complete(client)["choices"][0]["token_ids"] == expected_tokens(PROMPT, 12)
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/completions", {"prompt": [1], "stop": "x"}),
        ("/v1/chat/completions", {"messages": CHAT}),
        ("/tokenize", {"prompt": "x"}),
        ("/detokenize", {"tokens": [1]}),
    ):
        answer = client.post(path, body)
        assert answer.status == 400
        assert "no " in answer.json["error"]["message"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_answers_429_with_numbers_and_retry_after(
    make_server: Callable[..., Running],
) -> None:
    limits = ServingLimits(sequences=1, tokens=8, waiting=0, cache_bytes=96)
    running = make_server(limits=limits)
    running.executor.seconds = 0.02
    body = {"prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    thread = threading.Thread(target=running.client.post, args=("/v1/completions", body))
    thread.start()
    until(lambda: running.engine.load.running == 1)
    answer = running.client.post("/v1/completions", body)
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "1 sequences run" in answer.json["error"]["message"]
    assert running.client.post("/v1/completions", body | {"n": 2}).status == 400
    thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_answer(
    make_server: Callable[..., Running], stream: bool
) -> None:
    running = make_server()
    running.executor.seconds = 0.05
    connection = running.client.connection()
    body = {"prompt": [1, 2], "max_tokens": 90, "stream": stream, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    until(lambda: running.engine.load.running == 1)
    if stream:
        connection.getresponse().read(20)
    connection.sock.close()
    connection.close()
    began = time.monotonic()
    until(lambda: running.engine.load.running == 0)
    assert time.monotonic() - began < 3, "90 passes would take 4.5 s"


def test_an_answer_that_takes_too_long_is_503(make_server: Callable[..., Running]) -> None:
    running = make_server(seconds=0.2)
    running.executor.seconds = 0.05
    answer = running.client.post("/v1/completions", {"prompt": [1], "max_tokens": 90})
    assert answer.status == 503
    assert answer.json["error"]["code"] == "timeout"
    events = running.client.post(
        "/v1/completions", {"prompt": [1], "max_tokens": 90, "stream": True}
    ).events
    assert events[-1]["error"]["code"] == "timeout"


def test_shutting_down_finishes_what_runs(make_server: Callable[..., Running]) -> None:
    running = make_server()
    running.executor.seconds = 0.02
    told = []
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stream": True}
    thread = threading.Thread(
        target=lambda: told.append(running.client.post("/v1/completions", body))
    )
    thread.start()
    until(lambda: running.engine.load.running == 1)
    running.stop()
    thread.join()
    assert told[0].events[-1] == "[DONE]"
    assert told[0].events[-2]["choices"][0]["finish_reason"] == "length"
    assert not running.engine.alive


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_prompt_beyond_the_context_is_refused_by_openais_code(client: Client, path: str) -> None:
    chat = path.endswith("chat/completions")
    text = "x " * 400
    body = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    answered = client.post(path, body)
    error = answered.json["error"]
    assert (answered.status, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == ("messages" if chat else "prompt")
    assert "the context length is 96" in error["message"]


@pytest.mark.parametrize(
    ("path", "kind", "needed"),
    [
        ("/v1/completions", CompletionBody, {"prompt": PROMPT}),
        ("/v1/chat/completions", ChatBody, {"messages": CHAT}),
    ],
)
def test_a_field_that_is_null_is_one_that_was_left_out(
    client: Client, path: str, kind: type[ChatBody | CompletionBody], needed: dict[str, Any]
) -> None:
    """As OpenAI has it: clients send null for what they do not set."""
    asked = {"max_tokens": 3, "temperature": 0} | needed
    nulls = {name: None for name in kind.model_fields if name not in asked}
    given = client.post(path, asked | nulls)
    assert given.status == 200, given.raw
    assert given.json["choices"] == client.post(path, asked).json["choices"]
    refused = client.post(path, asked | {"tool_chioce": None}).json["error"]
    assert (refused["param"], "not a parameter" in refused["message"]) == ("tool_chioce", True)
    (field,) = needed
    assert client.post(path, asked | {field: None}).json["error"]["param"] == field


@pytest.mark.parametrize(
    "text",
    ['{"top_k": 1e999}', '{"a": ' * 5000 + "1" + "}" * 5000, "[]", '{"top_p": true}', "{"],
)
def test_a_containers_sampling_is_refused_by_its_file_when_it_is_none(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(BadModel) as raised:
        sampling_defaults(tmp_path)
    assert str(raised.value.where).startswith("generation_config.json")
