"""Adapters of a container in `genai serve`: chosen by a request's `model`, beside one another."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from served import Served, answer

from genai_cli.testing import Program

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
BASE, NAMES = "tiny-llama-adapters", ["c-headers", "uppercase", "loud-headers"]
PROMPT = "THIS SOFTWARE IS "


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def container(home: Path) -> Path:
    built = Program(home).ok(
        "build", "-f", EXAMPLE / "adapters.yaml", "--output", home / "out", "--json"
    )
    return Path(built.json["containers"]["cpu"]["path"])


@pytest.fixture(scope="module")
def served(home: Path, container: Path) -> Iterator[Served]:
    made = Served(home, container, "--threads", "1")
    yield made
    code, told = made.stop()
    assert code == 0, told


def get(served: Served, path: str) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
    try:
        connection.request("GET", path)
        answered = connection.getresponse()
        return answered.status, json.loads(answered.read())
    finally:
        connection.close()


def test_models_lists_the_base_its_adapters_and_its_use_cases(served: Served) -> None:
    status, listed = get(served, "/v1/models")
    assert status == 200
    assert [(model["id"], model["parent"]) for model in listed["data"]] == [
        (BASE, None),
        *((name, BASE) for name in NAMES),
    ]
    assert get(served, "/v1/models/uppercase") == (200, listed["data"][2])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (BASE, []),
        ("base", []),
        ("uppercase", ["--adapter", "uppercase"]),
        ("loud-headers", ["--use-case", "loud-headers"]),
    ],
)
def test_serve_writes_what_run_writes_with_the_same_adapters(
    home: Path, container: Path, served: Served, name: str, arguments: list[str]
) -> None:
    told = ["--prompt", PROMPT, "--max-tokens", "24", "--threads", "1", "--json"]
    ran = Program(home).ok("run", container, *told, *arguments)
    assert answer(served, PROMPT, model=name)["token_ids"] == ran.json["tokens"]


def test_answers_with_different_adapters_are_those_each_gives_alone(served: Served) -> None:
    names = [BASE, *NAMES]
    asked = [(names[i % 4], PROMPT[: 6 + i], 12 + i) for i in range(16)]

    def ask(one: tuple[str, str, int]) -> dict[str, Any]:
        return answer(served, one[1], one[2], model=one[0], logprobs=2)

    alone = [ask(one) for one in asked]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(ask, asked)) == alone
    same = [answer(served, PROMPT, model=name)["token_ids"] for name in names]
    assert len({tuple(tokens) for tokens in same}) >= 3, "adapters change what is written"


def test_guesses_change_no_answer_of_any_adapter(
    home: Path, container: Path, served: Served
) -> None:
    """The base guesses for all: often right for it, seldom for the others."""
    config = {"model": str(container), "num_speculative_tokens": 4, "adaptive": False}
    server = Served(home, container, "--threads", "1", "--speculative-config", json.dumps(config))
    names = [BASE, *NAMES]
    asked = [(names[i % 4], PROMPT[: 6 + i], 12 + i) for i in range(12)]

    def ask(to: Served, one: tuple[str, str, int]) -> dict[str, Any]:
        return answer(to, one[1], one[2], model=one[0], logprobs=2)

    try:
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda one: ask(server, one), asked))
        assert together == [ask(served, one) for one in asked]
    finally:
        code, told = server.stop()
    assert code == 0, told


def test_the_same_prompt_never_meets_what_another_adapter_has_read(served: Served) -> None:
    """One after another, so that each finds the slots of those before it."""
    names = [BASE, *NAMES]

    def ask(name: str, salt: str) -> tuple[Any, int]:
        body = {"prompt": PROMPT * 6, "max_tokens": 12, "temperature": 0, "logprobs": 2}
        status, raw = served.post("/v1/completions", body | {"model": name, "cache_salt": salt})
        assert status == 200, raw
        told = json.loads(raw)
        return told["choices"], told["usage"]["prompt_tokens_details"]["cached_tokens"]

    cold = {name: ask(name, f"cold {name}") for name in names}
    assert all(tokens == 0 for _, tokens in cold.values())
    assert [ask(name, "shared") for name in names] == [cold[name] for name in names]
    for name in [*names, *names[::-1]]:
        choices, tokens = ask(name, "shared")
        assert choices == cold[name][0]
        assert tokens > 10


def test_chat_wears_an_adapter_too(served: Served) -> None:
    def ask(name: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": "What does `close` do?"}]
        body = {"messages": messages, "temperature": 0, "max_tokens": 16, "model": name}
        status, raw = served.post("/v1/chat/completions", body)
        assert status == 200, raw
        told: dict[str, Any] = json.loads(raw)
        assert told["model"] == name
        return told

    base, loud = ask(BASE), ask("uppercase")
    assert base["choices"][0]["message"] != loud["choices"][0]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_adapter_that_is_not_there_is_never_answered_by_another(
    served: Served, path: str
) -> None:
    asked = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    field = "prompt" if path == "/v1/completions" else "messages"
    body = {"model": "upper", "max_tokens": 1, field: asked[field]}
    status, raw = served.post(path, body)
    assert status == 404
    error = json.loads(raw)["error"]
    assert error["code"] == "model_not_found"
    for name in [BASE, *NAMES]:
        assert name in error["message"]


def test_a_base_cannot_be_called_as_one_of_its_adapters(home: Path, container: Path) -> None:
    ran = Program(home)("serve", container, "--port", "0", "--model-name", "uppercase")
    assert ran.code == 2, ran.err
    assert "--model-name: an adapter of the container is called uppercase too" in ran.errors[0]
