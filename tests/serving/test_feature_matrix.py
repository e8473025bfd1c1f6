"""Every pair of features of the server gives the answers that plain decoding gives.

docs/serving.md shows the pairs.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import Served

from genai_cli.testing import Program

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama"
PAGE = ROOT / "docs" / "serving.md"
BASE, ADAPTERS = "matrix", ("c-headers", "uppercase", "loud-headers")
# What a server is started with.
METHODS: dict[str, dict[str, Any]] = {
    "ngram": {"method": "ngram", "prompt_lookup_min": 1},
    "suffix": {"method": "suffix", "num_speculative_tokens": 4},
    "lookahead": {"method": "lookahead", "window": 4, "ngram": 4, "gcap": 4},
    "draft_model": {"method": "draft_model"},
    "eagle": {"method": "eagle"},
    "ssd": {"method": "ssd"},
}
CONTAINERS = {"eagle": "eagle3", "ssd": "ssd"}
"""Those of methods that the first one does not serve."""
ALWAYS = {"num_speculative_tokens": 3, "adaptive": False}
FEATURES = (
    "adapter", "different adapters at once", "prefix cache", "n > 1", "stream",
    "answer of a form", "sampling", "several clients",
)  # fmt: skip
PATTERN = r"[a-z ]{4,24}\."
PROMPT = "    def close(self):\n        self.close(self)\n    def "
TOKENS = 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def containers(home: Path) -> dict[str, Path]:
    """The same adapters with a draft model, an EAGLE head, and tensors to forecast with."""
    return {name: built(home, name) for name in ("draft", *CONTAINERS.values())}


def built(home: Path, name: str) -> Path:
    """The example with adapters, with what another example guesses by."""
    build, other = (
        yaml.safe_load((EXAMPLE / f"{part}.yaml").read_text()) for part in ("adapters", name)
    )
    spec = build["spec"] | {"speculation": other["spec"]["speculation"], "golden": {}}
    if name == "ssd":
        spec["model"] = {"source": str(extended(home))}
    for entry in (spec["model"], *spec["lora"]["adapters"], *spec["speculation"]):
        entry["source"] = str(EXAMPLE / entry["source"])
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump(build | {"metadata": {"name": BASE}, "spec": spec}))
    ran = Program(home).ok("build", "-f", file, "--output", home / name, "--json")
    return Path(ran.json["containers"]["cpu"]["path"])


def extended(home: Path) -> Path:
    """The example's model with rows for the tokens that it forecasts with."""
    script = runpy.run_path(str(EXAMPLE / "ssd" / "extend_model.py"))
    script["extend"](
        EXAMPLE / "model", EXAMPLE / "ssd" / "forecast.safetensors", home / "model-ssd"
    )
    return home / "model-ssd"


@pytest.fixture(scope="module")
def plain(home: Path, containers: dict[str, Path]) -> Iterator[Served]:
    made = Served(home, containers["draft"], "--threads", "1", "--prefix-cache-mib", "0")
    yield made
    code, told = made.stop()
    assert code == 0, told


def bodies(features: set[str]) -> list[dict[str, Any]]:
    """The requests of a cell; several where features ask for more than one."""
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
    if "sampling" in features:
        body |= {"temperature": 0.9, "seed": 7, "top_p": 0.95}
    if "n > 1" in features:
        body |= {"n": 2}
    if "answer of a form" in features:
        body |= {"structured_outputs": {"regex": PATTERN}, "max_tokens": 24}
    models = [BASE]
    if "adapter" in features:
        models = ["uppercase"]
    if "different adapters at once" in features:
        models = [*models, *ADAPTERS]
    if "several clients" in features:
        models *= 3
    return [body | {"model": model, "seed": i} for i, model in enumerate(models)]


def choices(served: Served, body: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Text and log probabilities of each choice, and the usage."""
    status, raw = served.post("/v1/completions", body)
    assert status == 200, raw
    if not body.get("stream"):
        told = json.loads(raw)
        found = [(one["text"], one["logprobs"]["token_logprobs"]) for one in told["choices"]]
        return [{"text": text, "logprobs": numbers} for text, numbers in found], told["usage"]
    made = [{"text": "", "logprobs": []} for _ in range(body.get("n", 1))]
    usage: dict[str, Any] = {}
    events = 0
    for line in raw.decode().split("\n\n"):
        if not line or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        usage = event.get("usage") or usage
        for one in event["choices"]:
            events += 1
            made[one["index"]]["text"] += one["text"]
            if one["logprobs"]:
                made[one["index"]]["logprobs"] += one["logprobs"]["token_logprobs"]
    assert events > len(made), "the answer came in one piece"
    return made, usage


def answered(served: Served, features: set[str]) -> list[list[dict[str, Any]]]:
    """A cell's answers from a server that is asked as its features say; they must take place."""
    asked = bodies(features)
    if "stream" in features:
        asked = [
            body | {"stream": True, "stream_options": {"include_usage": True}} for body in asked
        ]
    salt = " and ".join(sorted(features))
    asked = [body | {"cache_salt": salt} for body in asked]
    if "prefix cache" in features:
        for body in asked:
            choices(served, body)
    if len(asked) > 1:
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            told = list(pool.map(lambda body: choices(served, body), asked))
    else:
        told = [choices(served, body) for body in asked]
    if "prefix cache" in features:
        assert all(usage["prompt_tokens_details"]["cached_tokens"] > 0 for _, usage in told)
    return [found for found, _ in told]


@pytest.fixture(scope="module")
def expected(plain: Served) -> dict[frozenset[str], list[list[dict[str, Any]]]]:
    """Of plain decoding: each request alone, nothing cached, nothing streamed."""
    found = {}
    for cell in cells():
        found[cell] = [choices(plain, body)[0] for body in bodies(set(cell))]
        if "answer of a form" in cell:
            assert all(re.fullmatch(PATTERN, one["text"]) for made in found[cell] for one in made)
    return found


def cells() -> list[frozenset[str]]:
    pairs = itertools.combinations_with_replacement(FEATURES, 2)
    return [frozenset(pair) for pair in pairs]


def accepted(served: Served) -> float:
    lines = served.get("/metrics")[1].decode().splitlines()
    name = "vllm:spec_decode_num_accepted_tokens_total{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_every_pair_of_features_answers_as_plain_decoding(
    home: Path,
    containers: dict[str, Path],
    expected: dict[frozenset[str], Any],
    method: str,
) -> None:
    container = containers[CONTAINERS.get(method, "draft")]
    arguments = []
    if method != "none":
        arguments = ["--speculative-config", json.dumps(ALWAYS | METHODS[method])]
    served = Served(home, container, "--threads", "1", *arguments)
    try:
        for cell in cells():
            assert answered(served, set(cell)) == expected[cell], (method, *cell)
        assert (accepted(served) > 0) == (method != "none"), "no guess came true"
    finally:
        code, told = served.stop()
    assert code == 0, told


def test_documents_show_the_features_and_methods_that_were_tried() -> None:
    rows = re.findall(r"^\| ([^|]+) \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    table = {name.strip("` "): cells.count("✓") for name, cells in rows if "✓" in cells}
    assert table == dict.fromkeys(METHODS, len(FEATURES)) | {
        feature: number for number, feature in enumerate(FEATURES, 1)
    }


def test_a_restarted_server_goes_on_from_disk_and_answers_the_same(
    home: Path, containers: dict[str, Path], plain: Served, tmp_path: Path
) -> None:
    """With adapters and a draft model, which has beginnings of its own; some files are damaged."""
    folder = tmp_path / "prefixes"
    system = PROMPT * 2
    arguments = ["--threads", "1", "--prefix-cache-dir", str(folder), "--system-prompt", system]
    arguments += ["--speculative-config", json.dumps(ALWAYS | METHODS["draft_model"])]
    asked = [
        body | {"prompt": PROMPT * 3 + end}
        for body in bodies({"different adapters at once"})
        for end in ("", "open")
    ]
    wanted = [choices(plain, body)[0] for body in asked]
    computed, cached = [], []
    for start in range(2):
        served = Served(home, containers["draft"], *arguments)
        try:
            kept = next(line for line in served.lines if "system prompts are kept" in line)
            computed.append([int(number) for number in re.findall(r"\d+", kept)[1:]])
            for body, expected in zip(asked, wanted, strict=True):
                found, usage = choices(served, body)
                assert found == expected, (start, body["model"])
                cached.append(usage["prompt_tokens_details"]["cached_tokens"])
        finally:
            code, told = served.stop()
        assert code == 0, told
        models = sorted(folder.glob("kv-*"))
        assert len(models) == 2, "the base's, and the draft model's"
        for path in sorted(folder.glob("kv-*/*.kv"))[::5]:
            raw = bytearray(path.read_bytes())
            raw[len(raw) // 2] ^= 1
            path.write_bytes(raw)
    assert computed[0][0] == computed[0][1] == computed[1][0] > computed[1][1]
    assert sum(cached[len(asked) :]) > sum(cached[: len(asked)]) / 2 > 0
