"""`genai serve` as a user starts it: tiny-llama on the CPU, many clients, signals, bad options."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Served, answer, pod_command

from genai_cli.testing import Program
from genai_core.container.adapters import AdapterIndex
from genai_core.container.outside import vouch_for
from genai_serving.api.model import ServedModel
from genai_serving.api.service import Service

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
PROMPTS = [
    "def __init__(self, ",
    "import os\nimport sys\n",
    "class TestCase(unittest.TestCase):\n    def test_",
    "for",
    "# Copyright",
    "if __name__ == '__main__':\n",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def container(home: Path) -> Path:
    """The example's container for the CPU, built by the command."""
    program = Program(home)
    built = program.ok(
        "build", "-f", EXAMPLE / "build.yaml", "--target", "cpu", "--output", home / "out", "--json"
    )
    return Path(built.json["containers"]["cpu"]["path"])


@pytest.fixture(scope="module")
def served(home: Path, container: Path) -> Iterator[Served]:
    made = Served(home, container, "--threads", "1")
    yield made
    code, told = made.stop()
    assert code == 0, told
    assert told.strip() == "ended"


def test_serve_writes_what_run_writes(home: Path, container: Path, served: Served) -> None:
    for prompt in PROMPTS[:2]:
        ran = Program(home).ok(
            "run", container, "--prompt", prompt, "--max-tokens", "24", "--threads", "1", "--json"
        )
        choice = answer(served, prompt)
        assert choice["token_ids"] == ran.json["tokens"]
        assert choice["text"] == ran.json["text"]


def test_many_clients_get_bit_for_bit_what_each_gets_alone(served: Served) -> None:
    asked = [(PROMPTS[i % 6], 10 + i, {"logprobs": 2, "seed": i}) for i in range(18)]
    alone = [answer(served, prompt, most, **given) for prompt, most, given in asked]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda a: answer(served, a[0], a[1], **a[2]), asked))
    assert together == alone


LICENSE = (EXAMPLE.parents[1] / "LICENSE").read_text()
LONG = LICENSE[:300]


def cached(served: Served, prompt: str, **given: Any) -> tuple[list[dict[str, Any]], int]:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 3}
    status, raw = served.post("/v1/completions", body | given)
    assert status == 200, raw
    told = json.loads(raw)
    return told["choices"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_an_answer_behind_a_cached_beginning_is_the_same_to_the_last_bit(served: Served) -> None:
    """The cold ones have salts of their own, so that nobody has read anything for them."""
    prompts = [LONG + text for text in ("", " a", " b", " a longer end of it", "\n")]
    cold = [cached(served, prompt, cache_salt=f"cold {prompt}") for prompt in prompts]
    assert [tokens for _, tokens in cold] == [0] * 5
    first = cached(served, prompts[0], cache_salt="warm")
    assert first == (cold[0][0], 0)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        warm = list(pool.map(lambda p: cached(served, p, cache_salt="warm"), prompts * 2))
    assert [choices for choices, _ in warm] == [choices for choices, _ in cold] * 2
    assert min(tokens for _, tokens in warm) > 60
    lines = served.get("/metrics")[1].decode().splitlines()
    told = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
    queries, hits = (told[f"vllm:prefix_cache_{name}_total"] for name in ("queries", "hits"))
    assert queries > hits >= sum(tokens for _, tokens in warm)
    assert json.loads(served.get("/v1/models")[1])["data"][0]["prefix_cache"] is True


def test_scores_of_token_ids_are_the_loss_that_evaluate_tells(
    home: Path, container: Path, served: Served
) -> None:
    """As lm-eval's local-completions asks; a piece's first token is given, not predicted."""
    tokens = EXAMPLE.parents[1] / "tests" / "fixtures" / "tokens" / "eval.npy"
    pieces = np.load(tokens)[:12, :96].tolist()
    asked = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    status, raw = served.post("/v1/completions", {"prompt": pieces} | asked)
    assert status == 200, raw
    told = [choice["logprobs"]["token_logprobs"] for choice in json.loads(raw)["choices"]]
    assert [len(logprobs) for logprobs in told] == [97] * 12
    loss = -np.mean([logprobs[1:-1] for logprobs in told])
    evaluated = Program(home).ok(
        "evaluate", container, "--tokens", tokens, "--pieces", "12", "--length", "96", "--json"
    )
    assert loss == pytest.approx(evaluated.json["natsPerToken"], abs=1e-6)
    # What AIMET's own simulation of the same encodings loses on them (W8A16, aimet-onnx 2.42.0).
    assert loss == pytest.approx(3.8030, abs=0.01)


def test_scores_of_a_text_are_the_same_behind_a_cached_beginning(served: Served) -> None:
    asked = {"echo": True, "max_tokens": 0}
    before = cached(served, LONG, **asked)
    cached(served, LONG)
    assert cached(served, LONG, **asked) == before
    assert before[1] == 0


def test_chat_answers_and_ends_by_itself(served: Served) -> None:
    messages = [{"role": "user", "content": "What does `close` do?"}]
    body = {"messages": messages, "temperature": 0}
    status, raw = served.post("/v1/chat/completions", body)
    assert status == 200
    choice = json.loads(raw)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"].endswith(".")


def test_the_model_is_called_as_the_build(served: Served) -> None:
    assert served.line.startswith("tiny-llama (sha256:")
    assert served.post("/tokenize", {"prompt": "x", "model": "tiny-llama"})[0] == 200
    assert served.post("/tokenize", {"prompt": "x", "model": "llama"})[0] == 404


def arrived(server: Served) -> float:
    """Requests that a server has taken: they run, wait, or have ended."""
    lines = server.get("/metrics")[1].decode().splitlines()
    counted = (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:request_success_total",
    )
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(counted))


def test_a_signal_lets_running_answers_finish_and_refuses_new_ones(
    home: Path, container: Path
) -> None:
    server = Served(home, container.parent, "--threads", "1", "--model-name", "m")
    told = []
    body = {"prompt": "def", "max_tokens": 200, "temperature": 0, "ignore_eos": True}

    def stream() -> None:
        told.append(server.post("/v1/completions", body | {"stream": True}))

    clients = [threading.Thread(target=stream, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    while arrived(server) < 4:
        time.sleep(0.01)
    code, _ = server.stop()
    for client in clients:
        client.join(60)
    assert code == 0
    assert len(told) == 4
    for status, raw in told:
        assert status == 200
        assert raw.endswith(b"data: [DONE]\n\n"), raw[-200:]
        assert b'"finish_reason":"length"' in raw
    with pytest.raises(OSError, match="refused"):
        server.post("/v1/completions", body)


def test_a_key_is_taken_from_the_environment_and_shown_in_no_list_of_processes(
    home: Path, container: Path
) -> None:
    server = Served(home, container, "--threads", "1", GENAI_API_KEY="s3cret-key")
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert b"s3cret-key" not in arguments
    body = {"prompt": "x", "max_tokens": 1}
    assert server.post("/v1/completions", body)[0] == 401
    assert server.post("/v1/completions", body, Authorization="Bearer s3cret-key")[0] == 200
    assert server.stop()[0] == 0


def test_prepared_graphs_lie_in_the_user_s_cache_and_the_container_is_untouched(
    home: Path, container: Path, served: Served
) -> None:
    prepared = list((home / ".cache" / "genai-operator" / "serving" / "cpu").iterdir())
    assert [len(list(folder.glob("*.onnx"))) for folder in prepared] == [8]
    assert Program(home).ok("verify", container).code == 0


REFUSED = {
    "no container": (["nowhere"], 2, "nowhere"),
    "a cache too small": (["{}", "--kv-cache-mib", "1"], 2, "takes 1.1 MiB of keys and values"),
    "a context too long": (["{}", "--context-length", "9999"], 2, "built for 256 tokens"),
    "an address that is not here": (["{}", "--host", "203.0.113.7"], 1, "203.0.113.7"),
}


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_serve_refuses_in_one_line(
    home: Path, container: Path, arguments: list[str], code: int, words: str
) -> None:
    given = [argument.replace("{}", str(container)) for argument in arguments]
    ran = Program(home)("serve", *given, "--port", "0")
    assert ran.code == code, ran.err
    assert len(ran.errors) == 1
    assert words in ran.errors[0]


def test_serve_refuses_a_port_that_is_taken(home: Path, container: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = Program(home)("serve", container, "--port", str(port))
    assert ran.code == 1
    assert "use" in ran.errors[0]
    assert os.strerror(98) in ran.errors[0]


def test_a_pods_server_replays_first_and_leaves_without_a_refused_request(
    home: Path, container: Path
) -> None:
    keys = home / "keys"
    keys.mkdir()
    (keys / "one").write_text("first\n")
    server = Served(
        home, container, "--threads", "1", "--golden", "--api-keys-folder", keys,
        "--drain-delay-seconds", "600", pod=True,
    )  # fmt: skip
    body = {"prompt": "x", "max_tokens": 1}
    try:
        assert server.post("/v1/completions", body)[0] == 401
        assert server.post("/v1/completions", body, Authorization="Bearer first")[0] == 200
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("GET", "/ready")
        ready = connection.getresponse()
        ready.read()
        assert (ready.status, ready.getheader("connection")) == (200, None)
        server.process.send_signal(signal.SIGTERM)
        while ready.status == 200:
            connection.request("GET", "/ready")
            ready = connection.getresponse()
            ready.read()
        assert (ready.status, ready.getheader("connection")) == (503, "close")
        # Whoever has not heard of it yet is answered, and sent elsewhere.
        assert server.post("/v1/completions", body, Authorization="Bearer first")[0] == 200
    finally:
        code, _ = server.stop()  # a second signal: it does not wait any longer
    assert code == 0


def _tampered(container: Path, folder: Path) -> Path:
    """The container with a first golden token that it never chose."""
    copy: Path = shutil.copytree(container, folder)
    golden = json.loads((copy / "golden.json").read_text())
    golden["prompts"][0]["tokens"][0] += 1
    golden["prompts"][0]["margins"][0] = 9.0
    (copy / "golden.json").write_text(json.dumps(golden))
    vouch_for(copy)
    return copy


def test_a_pods_server_ends_with_its_reason_when_it_must_not_serve(
    home: Path, container: Path
) -> None:
    tampered = _tampered(container, home / "tampered")
    for folder, options, code, reason, words in (
        (tampered, ["--golden"], 2, "GoldenMismatch", "golden tokens differ: prompt 0 at 0"),
        (container, ["--revision", "sha256:00"], 1, "CorruptBlob", "sha256:00 is to be served"),
        (container, ["--adapter", "c"], 2, "BadInput", "no adapter or use case c"),
    ):
        said = home / "said"
        ran = subprocess.run(
            pod_command(home, folder, *options, "--termination-log", said),
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ran.returncode == code, ran.stderr
        error = json.loads(said.read_text())["error"]
        assert error["code"] == reason
        assert words in error["message"]


def test_a_container_for_snapdragon_is_served_from_its_twin_and_marked(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the driver of the twin's graphs, with ONNX Runtime in the emulator's place."""
    from genai_core.names import Backend
    from genai_runtime.container import container as containers
    from genai_runtime.testing import ScriptedExecutor
    from genai_serving import server
    from genai_serving.api.app import application
    from genai_serving.start import opening
    from genai_serving.start.options import Options

    said: list[str] = []
    seen: dict[str, ServedModel] = {}

    class Opened:
        """A container, as far as the server looks at it."""

        folder = home / "phone" / "sm8750"
        revision = "sha256:0123456789abcdef"
        stop_tokens: Callable[[], frozenset[int]] = staticmethod(frozenset)
        adapters = AdapterIndex

        class manifest:
            class target:
                backend, name = Backend.HTP, "sm8750"

        @staticmethod
        def tokenizer() -> None:
            return None

        @staticmethod
        def holds(name: str) -> bool:
            return False

    Opened.folder.mkdir(parents=True)
    monkeypatch.setattr(containers, "load", lambda *_, **__: Opened)
    monkeypatch.setattr(opening, "open_executor", lambda *_, **__: ScriptedExecutor())
    monkeypatch.setattr(opening, "try_out", lambda _: pytest.fail("minutes in the emulator"))

    def kept(service: Service, *arguments: Any, **given: Any) -> Any:
        seen["model"] = service.model
        return application(service, *arguments, **given)

    monkeypatch.setattr(server, "application", kept)

    def say(text: str) -> None:
        said.append(text)
        os.kill(os.getpid(), signal.SIGINT)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        options = Options(Opened.folder, home / "cache", port=0, cache_mib=1)
        code = server.serve(options, say=say)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 0
    assert said[0].startswith("phone (sha256:")
    assert "emulator" in said[1]
    assert seen["model"].emulated
    assert not seen["model"].steadiness.chunks


def test_a_server_that_guesses_writes_what_one_writes_that_does_not(
    home: Path, container: Path, served: Served
) -> None:
    config = {"model": str(container), "num_speculative_tokens": 3, "adaptive": False}
    server = Served(home, container, "--threads", "1", "--speculative-config", json.dumps(config))
    try:
        asked: list[tuple[str, int, dict[str, Any]]] = [
            (PROMPTS[i % 6], 10 + i, {"logprobs": 1, "seed": i}) for i in range(12)
        ]
        asked += [(PROMPTS[i], 20, {"temperature": 0.8, "seed": i}) for i in range(4)]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda a: answer(server, a[0], a[1], **a[2]), asked))
        assert together == [answer(served, prompt, most, **given) for prompt, most, given in asked]
        status, raw = server.get("/v1/models")
        assert status == 200
        assert json.loads(raw)["data"][0]["speculation"] == {
            "method": "draft_model",
            "num_speculative_tokens": 3,
            "adaptive": False,
            "lossy": False,
        }
    finally:
        code, told = server.stop()
    assert code == 0, told


def test_a_server_that_is_not_exact_says_so_and_keeps_prompts_alone(
    home: Path, container: Path, served: Served
) -> None:
    server = Served(home, container, "--threads", "1", "--no-exact")
    try:
        about = json.loads(server.get("/v1/models")[1])["data"][0]
        assert (about["exact"], about["prefix_cache"]) == (False, True)
        assert about["bit_stable"] == {"chunks": False, "neighbours": False}
        assert json.loads(served.get("/v1/models")[1])["data"][0]["exact"] is True
        first, none = cached(server, LONG)
        assert none == 0
        _, size = cached(server, LONG)
        _, hit = cached(server, LONG + first[0]["text"])
        assert 60 < hit <= size + 1, "what was written is computed again"
    finally:
        code, told = server.stop()
    assert code == 0, told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--no-exact", "--speculation", "ngram"), "--speculation: guesses are verified"),
        (("--speculative-config", '{"method": "ngram"}'), "num_speculative_tokens: must be given"),
        (("--speculation", "draft_model", "--draft", "/nowhere"), "/nowhere"),
    ],
)
def test_serve_refuses_speculation_that_means_nothing(
    home: Path, container: Path, given: tuple[str, ...], message: str
) -> None:
    ran = Program(home)("serve", container, "--port", "0", *given)
    assert ran.code == 2
    assert message in ran.err
