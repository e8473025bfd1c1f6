"""Adapters of a container in `genai serve`: chosen by a request's `model`, beside one another."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import Served, answer

from genai_cli.testing import Program
from genai_operator.deployments import pod_admin
from genai_operator.deployments.declared import Declaration
from genai_operator.kube.pod import PodView
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import generate

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


TOKEN = "tok3n"


class Admin:
    """Its port, of a server that was just started."""

    def __init__(self, served: Served) -> None:
        assert served.process.stderr is not None
        line = served.process.stderr.readline()
        found = re.search(r"on port (\d+)", line)
        assert found, line
        self.port = int(found[1])

    def __call__(
        self, path: str, body: object, token: str = TOKEN, verb: str = "POST"
    ) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            connection.request(verb, path, json.dumps(body), headers)
            told = connection.getresponse()
            return told.status, told.read().decode()
        finally:
            connection.close()

    def load(self, name: str, path: str, **given: Any) -> tuple[int, str]:
        return self("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path} | given)

    def unload(self, name: str) -> tuple[int, str]:
        return self("/v1/unload_lora_adapter", {"lora_name": name})

    def declare(self, **adapters: str) -> dict[str, Any]:
        """Name -> what the server says of it."""
        body = {"adapters": [{"lora_name": n, "lora_path": p} for n, p in adapters.items()]}
        status, text = self("/v1/adapters", body, verb="PUT")
        assert status == 200, text
        return {one["name"]: one for one in json.loads(text)["adapters"]}


class Changing(Served):
    """A server with an admin port."""

    admin: Admin


@pytest.fixture(scope="module")
def changing(home: Path, container: Path) -> Iterator[Changing]:
    made = Changing(
        home,
        container,
        *("--threads", "1", "--admin-port", "0", "--adapter-folder", home / "out"),
        GENAI_ADMIN_TOKEN=TOKEN,
    )
    made.admin = Admin(made)
    yield made
    code, told = made.stop()
    assert code == 0, told


def digests(container: Path) -> dict[str, str]:
    index = json.loads((container / "adapters" / "index.json").read_bytes())
    return {name: f"sha256:{one['sha256']}" for name, one in index["adapters"].items()}


def cold(changing: Served, name: str) -> dict[str, Any]:
    return answer(changing, PROMPT * 4, 16, model=name, logprobs=2)


def test_an_adapter_under_an_old_name_answers_anew_behind_the_same_long_prompt(
    changing: Changing, container: Path
) -> None:
    admin, found = changing.admin, digests(container)
    own = {name: cold(changing, name) for name in found}
    assert own["uppercase"] != own["c-headers"]
    assert admin.load("x", "uppercase") == (
        200,
        "Success: LoRA adapter 'x' added successfully.",
    )
    for _ in range(2):  # cold, and behind what it read itself
        assert cold(changing, "x") == own["uppercase"]
    assert admin.load("x", found["c-headers"])[0] == 400, "the name is taken"
    assert admin.load("x", found["c-headers"], load_inplace=True)[0] == 200
    for _ in range(2):
        assert cold(changing, "x") == own["c-headers"]
    assert admin.unload("x")[0] == 200
    status, raw = changing.post("/v1/completions", {"model": "x", "prompt": "a"})
    assert (status, json.loads(raw)["error"]["code"]) == (404, "model_not_found")
    names = [model["id"] for model in json.loads(changing.get("/v1/models")[1])["data"]]
    assert "x" not in names
    metrics = changing.get("/metrics")[1].decode()
    assert 'lora_name="uppercase",model_name' in metrics
    assert 'lora_name="uppercase",model_name="tiny-llama-adapters",state="laid in"} 1.0' in metrics
    assert 'lora_name="x"' not in metrics
    assert 'running_lora_adapters=""' in metrics


def test_running_answers_finish_with_an_adapter_that_is_unloaded(changing: Changing) -> None:
    admin = changing.admin
    expected = answer(changing, PROMPT, 200, model="uppercase", ignore_eos=True)
    assert admin.load("going", "uppercase")[0] == 200
    body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0, "return_token_ids": True}
    body |= {"model": "going", "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(changing.post, "/v1/completions", body) for _ in range(6)]
        worn = 'running_lora_adapters="going"'
        while worn not in changing.get("/metrics")[1].decode():
            if all(answered.done() for answered in asked):
                break  # a fast machine
        assert admin.unload("going")[0] == 200
        status, _ = changing.post("/v1/completions", {"model": "going", "prompt": "a"})
        assert status == 404
        answers = [answered.result() for answered in asked]
    served = [json.loads(raw)["choices"][0] for status, raw in answers if status == 200]
    assert served, "what ran has finished"
    assert served == [expected] * len(served), "with it, and none by the base"
    assert {status for status, _ in answers} <= {200, 404}, "what came later is refused"


def test_own_adapters_go_and_come_back_and_use_cases_with_them(
    changing: Changing, container: Path
) -> None:
    admin = changing.admin
    before = cold(changing, "loud-headers")
    assert admin.unload("uppercase")[0] == 200
    for name in ("uppercase", "loud-headers"):
        assert changing.post("/v1/completions", {"model": name, "prompt": "a"})[0] == 404
    assert cold(changing, "c-headers")
    assert admin.load("uppercase", digests(container)["uppercase"])[0] == 200
    assert cold(changing, "loud-headers") == before


REFUSED = {
    "a path": ({"lora_name": "y", "lora_path": "/etc/passwd"}, 400, "neither sha256: and 64"),
    "a relative path": ({"lora_name": "y", "lora_path": "../x.safetensors"}, 400, "neither"),
    "a digest that is nowhere": (
        {"lora_name": "y", "lora_path": "sha256:" + "0" * 64},
        400,
        "no container of this base",
    ),
    "the base's name": ({"lora_name": "base", "lora_path": "uppercase"}, 400, "is the base or"),
    "a use case's name": ({"lora_name": "loud-headers", "lora_path": "uppercase"}, 400, "use case"),
    "no name": ({"lora_name": "a b", "lora_path": "uppercase"}, 400, "lora_name"),
    "a list": ([], 400, "JSON object"),
    "another field": (
        {"lora_name": "y", "lora_path": "uppercase", "rank": 1},
        400,
        "not a parameter",
    ),
}


@pytest.mark.parametrize(("body", "status", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_loaded_is_refused(
    changing: Changing, body: dict[str, Any], status: int, words: str
) -> None:
    told, text = changing.admin("/v1/load_lora_adapter", body)
    assert told == status, text
    assert words in json.loads(text)["error"]["message"]


def test_the_admin_port_wants_its_token_and_the_other_knows_nothing_of_it(
    changing: Changing,
) -> None:
    body = {"lora_name": "y", "lora_path": "uppercase"}
    for token in ("", "wrong"):
        assert changing.admin("/v1/load_lora_adapter", body, token)[0] == 401
    assert changing.post("/v1/load_lora_adapter", body)[0] == 404
    assert changing.admin("/v1/completions", {"prompt": "x"})[0] == 404
    assert changing.admin.unload("nobody")[0] == 404


def test_a_file_with_other_bytes_than_its_index_says_is_not_loaded(
    home: Path, container: Path, changing: Changing
) -> None:
    """Among containers of the same base that the server may read."""
    index = json.loads((container / "adapters" / "index.json").read_bytes())
    other = home / "out" / "other"
    subprocess.run(["cp", "-r", str(container), str(other)], check=True)
    index["adapters"]["broken"] = index["adapters"]["uppercase"] | {"sha256": "1" * 64}
    (other / "adapters" / "index.json").write_text(json.dumps(index))
    status, text = changing.admin.load("y", "sha256:" + "1" * 64)
    assert status >= 400
    assert "digest" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--admin-port", "0"], "it needs a token"),
        (["--admin-port", "0", "--admin-token-file", "none"], "none"),
    ],
)
def test_serve_refuses_an_admin_port_for_everybody(
    home: Path, container: Path, arguments: list[str], words: str
) -> None:
    ran = Program(home)("serve", container, "--port", "0", *arguments)
    assert ran.code in {1, 2}, ran.err
    assert words in ran.errors[0]


def plainly(container: Path, name: str, prompt: str, most: int) -> list[int]:
    """What one session of a container writes, without a server."""
    opened = containers.load(container)
    worn = [] if name == "base" else opened.adapters().worn(name)
    uses = [AdapterUse(one.name, one.alpha) for one in worn]
    session = open_session(opened, threads=1, worn=uses)
    tokenizer = opened.tokenizer()
    assert tokenizer is not None
    ids = tokenizer.encode(prompt, special=True)
    return list(generate(session, ids, max_tokens=most, stop_tokens=opened.stop_tokens()).tokens)


def adapter_states(server: Served) -> dict[str, str | None]:
    listed = json.loads(server.get("/v1/models")[1])["data"]
    return {model["id"]: model["adapter_state"] for model in listed}


def test_more_adapters_than_room_answer_as_each_alone_whoever_asks_beside(
    home: Path, container: Path
) -> None:
    """A pass holds 32 ranks, and memory one further adapter of rank 16 beside the container's."""
    options = ("--max-adapter-rank", "24", "--adapter-cache-mib", "2", "--admin-port", "0")
    server = Changing(home, container, "--threads", "1", *options, GENAI_ADMIN_TOKEN=TOKEN)
    assert ", 2.0 MiB for adapters (a pass holds 32 ranks)" in server.line
    try:
        admin = Admin(server)
        contents = {name: name for name in ["base", *NAMES]}
        contents |= {"x": "uppercase", "y": "c-headers", "z": "uppercase"}
        for name in ("x", "y", "z"):
            assert admin.load(name, contents[name])[0] == 200
        assert "at rest" in {adapter_states(server)[name] for name in ("x", "z")}, "one has room"
        expected = {
            (name, count): plainly(container, contents[name], PROMPT[:count], 12)
            for name in contents
            for count in (8, 14)
        }
        asked = [list(expected)[(5 * i) % len(expected)] for i in range(42)]

        def ask(one: tuple[str, int]) -> list[int]:
            ids: list[int] = answer(server, PROMPT[: one[1]], 12, model=one[0])["token_ids"]
            return ids

        with concurrent.futures.ThreadPoolExecutor(14) as pool:
            answers = list(pool.map(ask, asked))
        assert answers == [expected[one] for one in asked]
        states = adapter_states(server)
        assert states[BASE] is None
        assert set(states.values()) <= {None, "laid in", "in memory", "at rest"}
        assert [states["x"], states["z"]].count("in memory") <= 1, "memory holds one of them"
        metrics = server.get("/metrics")[1].decode()
        told_bytes = re.search(r"genai_adapter_cache_bytes{.*} (.*)", metrics)
        assert told_bytes is not None
        held = float(told_bytes[1])
        assert 0 < held < 2 << 20
        for name, state in states.items():
            if name in {"c-headers", "uppercase", "x", "y", "z"}:
                assert f'lora_name="{name}",model_name="{BASE}",state="{state}"}} 1.0' in metrics
    finally:
        code, told = server.stop()
    assert code == 0, told


def test_an_adapter_is_refused_where_the_server_has_no_branches_for_it(
    home: Path, container: Path
) -> None:
    """Of a container that carries an adapter of q and v alone; k and o are not touched there."""
    spec = yaml.safe_load((EXAMPLE / "adapters.yaml").read_text())
    spec["metadata"]["name"] = "narrow"
    spec["spec"]["model"]["source"] = str(EXAMPLE / "model")
    spec["spec"]["lora"] = {
        "adapters": [
            {"name": "c-headers", "source": str(EXAMPLE / "adapters" / "c-headers-r8")},
        ]
    }
    (home / "narrow.yaml").write_text(yaml.safe_dump(spec))
    built = Program(home).ok("build", "-f", "narrow.yaml", "--output", home / "out", "--json")
    narrow = Path(built.json["containers"]["cpu"]["path"])
    options = ("--threads", "1", "--admin-port", "0", "--adapter-folder", home / "out")
    server = Changing(home, narrow, *options, GENAI_ADMIN_TOKEN=TOKEN)
    try:
        admin = Admin(server)
        status, text = admin.load("loud", digests(container)["uppercase"])
        assert status == 400
        error = json.loads(text)["error"]
        assert (
            "adapter loud: 12 of the 24 linears that it touches have no branch here"
            in (error["message"])
        )
        assert server.post("/v1/completions", {"model": "loud", "prompt": "a"})[0] == 404
        assert admin.load("again", digests(container)["c-headers"])[0] == 200
        told = answer(server, PROMPT, 12, model="again")["token_ids"]
        assert told == plainly(container, "c-headers", PROMPT, 12)
    finally:
        code, told = server.stop()
    assert code == 0, told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--max-adapter-rank", "8"],
            "--max-adapter-rank: loud-headers has rank 24, and a pass is to hold 8",
        ),
        (
            ["--adapter-cache-mib", "1"],
            "--adapter-cache-mib: 32 ranks at 24 linears take 0.9 MiB, and 2 adapters 0.6 MiB; it",
        ),
    ],
)
def test_serve_refuses_adapters_that_do_not_fit_with_the_numbers(
    home: Path, container: Path, options: list[str], words: str
) -> None:
    ran = Program(home)("serve", container, "--port", "0", *options)
    assert ran.code == 2, ran.err
    assert words in ran.errors[0]


def named(served: Served) -> list[str]:
    return [model["id"] for model in json.loads(served.get("/v1/models")[1])["data"]]


def test_declare_makes_the_served_adapters_those_that_are_declared(
    changing: Changing, container: Path
) -> None:
    admin, found = changing.admin, digests(container)
    own = {name: cold(changing, name) for name in found}
    told = admin.declare(uppercase="uppercase", x=found["c-headers"], lost="sha256:" + "2" * 64)
    assert {name: one["state"] for name, one in told.items()} == {
        "uppercase": "Loaded", "x": "Loaded", "lost": "Failed",
    }  # fmt: skip
    assert told["x"]["digest"] == found["c-headers"]
    assert "no container of this base" in told["lost"]["reason"]
    assert named(changing) == [BASE, "uppercase", "x"], "use cases go with their adapters"
    assert cold(changing, "x") == own["c-headers"]
    listed = json.loads(admin("/v1/adapters", None, verb="GET")[1])["adapters"]
    assert {one["name"] for one in listed} == {"uppercase", "x"}
    # Replaced by what cannot be had, the earlier content goes on, and the answer says both.
    told = admin.declare(x="sha256:" + "2" * 64)
    assert (told["x"]["state"], told["x"]["digest"]) == ("Failed", found["c-headers"])
    assert cold(changing, "x") == own["c-headers"]
    assert admin.declare(x="uppercase")["x"]["digest"] == found["uppercase"]
    assert cold(changing, "x") == own["uppercase"]
    assert admin("/v1/adapters", {"adapters": []}, "wrong", "PUT")[0] == 401
    again = {name: name for name in found}
    assert admin.declare(**again) == admin.declare(**again)
    assert named(changing) == [BASE, *found, "loud-headers"]


def test_declared_adapters_are_there_before_the_first_request(
    home: Path, container: Path, tmp_path: Path
) -> None:
    file = tmp_path / "declared.json"
    names = [("uppercase", "uppercase"), ("y", "c-headers"), ("z", "nowhere")]
    file.write_text(json.dumps({"adapters": [{"lora_name": n, "lora_path": p} for n, p in names]}))
    made = Served(
        home,
        container,
        *("--threads", "1", "--admin-port", "0", "--declared-adapters", file),
        pod=True,
        GENAI_ADMIN_TOKEN=TOKEN,
    )
    assert named(made) == [BASE, "uppercase", "y"]
    code, told = made.stop()
    assert code == 0, told
    assert "adapter z is not served: lora_path: it is neither sha256:" in "".join(made.lines) + told


def test_the_operator_and_the_server_understand_one_another(
    changing: Changing, container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pod_admin, "ADMIN_PORT", changing.admin.port)
    pod = PodView(
        namespace="n", name="p", uid="u", job="", node="", phase="Running",
        created_at=datetime(2026, 1, 1, tzinfo=UTC), ip="127.0.0.1",
    )  # fmt: skip
    found = digests(container)
    wanted = Declaration({"uppercase": "uppercase", "lost": "lost"}, {}, {})
    report = asyncio.run(pod_admin.ask_pod(pod, wanted, TOKEN))
    assert report.problem == ""
    own, lost = report.adapters["uppercase"], report.adapters["lost"]
    assert (own.loaded, own.digest, own.reason) == (True, found["uppercase"], "")
    assert (lost.loaded, lost.digest) == (False, "")
    assert "it is neither sha256:" in lost.reason
    assert named(changing) == [BASE, "uppercase"]
    refused = asyncio.run(pod_admin.ask_pod(pod, wanted, "wrong"))
    assert refused.problem == "pod p: its admin port answers 401"
    again = Declaration({name: name for name in found}, {}, {})
    assert asyncio.run(pod_admin.ask_pod(pod, again, TOKEN)).adapters.keys() == found.keys()
    assert set(named(changing)) == {BASE, *found, "loud-headers"}
