"""A server whose model reads pictures, asked by OpenAI's API."""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from served import Served

from genai_cli.testing import Program
from genai_runtime.executor.rows import Embeddings, Row
from genai_runtime.prefixes.cache import Held, PrefixCache
from genai_runtime.prefixes.prefix_files import BLOCK, PrefixFiles
from genai_runtime.testing import ScriptedExecutor

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
QUESTION = "What color is the square?"
PLACES = 16
PROMPT = 3 + PLACES + 18


def file_of(color: str, kind: str = "PNG", **options: Any) -> bytes:
    """A square of a color on grey noise, as the encoder's pictures were."""
    noise = np.random.default_rng(7).integers(90, 166, (32, 32, 1), np.uint8)
    pixels = np.repeat(noise, 3, axis=2)
    pixels[10:22, 8:20] = COLORS[color]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def asked(*parts: dict[str, Any], **given: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": list(parts)}]
    return {"messages": messages, "temperature": 0, "max_tokens": 8, **given}


def about(color: str, **given: Any) -> dict[str, Any]:
    return asked(image(url(file_of(color))), text(QUESTION), **given)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def container(home: Path) -> Path:
    build = yaml.safe_load((EXAMPLE / "vision.yaml").read_text())
    for entry in (build["spec"]["model"], build["spec"]["vision"]):
        entry["source"] = str(EXAMPLE / entry["source"])
    build["spec"] |= {"golden": {}, "quantization": {"cpuPrecision": "Int8"}}
    file = home / "vision.yaml"
    file.write_text(yaml.safe_dump(build))
    ran = Program(home).ok("build", "-f", file, "--output", home / "out", "--json")
    return Path(ran.json["containers"]["cpu"]["path"])


@pytest.fixture(scope="module", params=["plain", "ngram"])
def served(request: pytest.FixtureRequest, home: Path, container: Path) -> Iterator[Served]:
    guessing = ("--speculation", "ngram") if request.param == "ngram" else ()
    server = Served(home, container, "--threads", "1", *guessing)
    yield server
    assert server.stop()[0] == 0


def said(served: Served, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    status, raw = served.post("/v1/chat/completions", body)
    assert status == 200, raw
    answer = json.loads(raw)
    return answer["choices"][0]["message"]["content"].strip(), answer["usage"]


def refused(served: Served, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    code, raw = served.post("/v1/chat/completions", body)
    assert code == status, raw
    error: dict[str, Any] = json.loads(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def test_a_picture_is_answered_and_its_places_are_counted(served: Served) -> None:
    for color in COLORS:
        words, usage = said(served, about(color))
        assert (words, usage["prompt_tokens"]) == (color, PROMPT)
    (_, raw) = served.get("/v1/models")
    assert json.loads(raw)["data"][0]["vision"] is True
    for kind in ("JPEG", "WEBP", "BMP"):
        data = url(file_of("green", kind), kind.lower())
        assert said(served, asked(image(data), text(QUESTION)))[0] == "green"


def test_two_pictures_of_one_size_under_one_text_share_nothing_behind_their_beginning(
    served: Served,
) -> None:
    """The token ids of both prompts are equal: the picture alone tells them apart."""
    again = [said(served, about(color)) for color in ("red", "blue", "red", "blue", "green")]
    assert [words for words, _ in again] == ["red", "blue", "red", "blue", "green"]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for _, usage in again]
    assert cached[2] == cached[3] == PROMPT - 1, "the same picture again"
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        colors = list(COLORS) * 4
        together = list(pool.map(lambda color: said(served, about(color))[0], colors))
    assert together == colors


def test_a_stream_and_several_choices_see_the_picture(served: Served) -> None:
    status, raw = served.post("/v1/chat/completions", about("blue", stream=True))
    assert status == 200
    events = [line[6:] for line in raw.decode().split("\n\n") if line.startswith("data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas).strip() == "blue"
    status, raw = served.post("/v1/chat/completions", about("red", n=3))
    assert [c["message"]["content"].strip() for c in json.loads(raw)["choices"]] == ["red"] * 3


def test_a_later_turn_still_sees_the_picture_and_text_alone_is_as_before(served: Served) -> None:
    first = about("green")["messages"]
    turns = [*first, {"role": "assistant", "content": "green"}, {"role": "user", "content": "a"}]
    status, raw = served.post("/v1/chat/completions", {"messages": turns, "max_tokens": 1})
    usage = json.loads(raw)["usage"]
    assert (status, usage["prompt_tokens"] > PROMPT) == (200, True)
    assert usage["prompt_tokens_details"]["cached_tokens"] >= PROMPT - 1
    plain = {"messages": [{"role": "user", "content": f"<image>{QUESTION}"}], "temperature": 0}
    listed = asked(text("<image>"), text(QUESTION))
    tokens = [
        json.loads(served.post("/tokenize", {"messages": m["messages"]})[1])["tokens"]
        for m in (plain, listed)
    ]
    assert tokens[0] == tokens[1], "without a picture the word is text"


def test_pictures_stand_in_order_and_where_the_text_says(served: Served) -> None:
    red, blue = image(url(file_of("red"))), image(url(file_of("blue")))
    one, usage = said(served, asked(red, blue, text(QUESTION), max_tokens=4, ignore_eos=True))
    other, _ = said(served, asked(blue, red, text(QUESTION), max_tokens=4, ignore_eos=True))
    assert usage["prompt_tokens"] == PROMPT + PLACES + 1
    assert one != other
    named = said(served, asked(text(f"<image>\n{QUESTION}"), image(url(file_of("blue")))))
    assert named[0] == "blue"
    error = refused(served, asked(red, text("<image> and <image>")))
    assert "1 picture for 2 <image> in the prompt" in error["message"]
    assert error["param"] == "messages"


PART = "messages.0.content.0.image_url"


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("https://example.com/a.png", "pictures are not fetched by this server"),
        ("file:///etc/passwd", "pictures are not fetched by this server"),
        ("data:text/html;base64,AAAA", "it is no picture in base64"),
        ("data:image/png,AAAA", "it is no picture in base64"),
        ("data:image/png;base64", "it is no picture in base64"),
        ("data:image/png;base64,%%%", "its base64 is broken"),
        (url(b""), "no picture of a known format"),
        (url(b"GIF89a"), "no picture of a known format"),
        (url(file_of("red")[:400]), "it cannot be decoded"),
        (url(file_of("red", "GIF", save_all=True, append_images=[Image.new("RGB", (32, 32))])),
         "it is animated (2 pictures)"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_read_is_refused_by_its_part(
    served: Served, address: str, told: str
) -> None:
    error = refused(served, asked(image(address), text(QUESTION)))
    assert told in error["message"]
    assert (error["param"], error["code"]) == (PART, "invalid_image")


def test_more_than_the_server_or_the_context_holds_is_refused_with_numbers(
    served: Served,
) -> None:
    picture = image(url(file_of("red")))
    error = refused(served, asked(*[picture] * 17))
    assert "it has 17 pictures, at most 16 are read" in error["message"]
    error = refused(served, asked(*[picture] * 16, text(QUESTION)))
    tokens = PROMPT + 15 * (PLACES + 1)
    assert f"the prompt has {tokens} tokens, the context length is 256" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_a_model_without_an_encoder_refuses_pictures(home: Path, container: Path) -> None:
    """By the same server on the same files, less those of the encoder."""
    del container
    build = yaml.safe_load((EXAMPLE / "vision.yaml").read_text())
    del build["spec"]["vision"]
    build["spec"]["model"]["source"] = str(EXAMPLE / "model")
    build["spec"] |= {"golden": {}, "quantization": {"cpuPrecision": "Int8"}}
    build["metadata"]["name"] = "text"
    file = home / "text.yaml"
    file.write_text(yaml.safe_dump(build))
    Program(home).ok("build", "-f", file, "--output", home / "out", "--json")
    server = Served(home, home / "out" / "text" / "cpu", "--threads", "1")
    try:
        assert "the model reads no pictures" in refused(server, about("red"))["message"]
        assert json.loads(server.get("/v1/models")[1])["data"][0]["vision"] is False
    finally:
        server.stop()


A, B = "a" * 64, "b" * 64
TOKENS = np.array([3] * 20 + [0] * 6 + [5] * 40)


def values(kind: int) -> Embeddings:
    return Embeddings(np.arange(20, 26), np.full((6, 2), kind, np.float32))


def test_a_cached_beginning_ends_where_another_picture_begins() -> None:
    executor = ScriptedExecutor(context_length=128, embedding_size=2)
    cache = PrefixCache(executor, 1 << 20)
    slot = executor.open()
    executor.forward([Row(slot, TOKENS, embeddings=values(1))])
    cache.keep(Held(slot, None, TOKENS, ((20, A),)))
    found = {
        kind: cache.find(None, TOKENS, pictures=kind)
        for kind in ((), ((20, A),), ((20, B),), ((20, A), (30, B)))
    }
    lengths = [0 if match is None else match.tokens for match in found.values()]
    assert lengths == [20, TOKENS.size - 1, 20, 30]
    cache.close()


def test_files_of_beginnings_are_named_by_their_pictures_and_texts_as_ever(
    tmp_path: Path,
) -> None:
    executor = ScriptedExecutor(context_length=128, embedding_size=2)
    files = PrefixFiles(
        tmp_path, executor, identity="x", most_bytes=1 << 20, scope_text=lambda _: "scope"
    )
    plain = files._names(None, TOKENS, ())
    name = hashlib.sha256(f"{files._identity}\nscope".encode()).hexdigest()
    for start, found in zip(range(0, 64, BLOCK), plain, strict=True):
        block = TOKENS[start : start + BLOCK].astype("<i8").tobytes()
        name = hashlib.sha256(name.encode() + block).hexdigest()
        assert found == name, "as before there were pictures"
    one, other = (files._names(None, TOKENS, ((20, digest),)) for digest in (A, B))
    assert one[0] == other[0] == plain[0], "before the picture"
    assert not {*one[1:]} & {*other[1:], *plain[1:]}
    slot = executor.open()
    executor.forward([Row(slot, TOKENS, embeddings=values(1))])
    files.save(Held(slot, None, TOKENS, ((20, A),)), wait=5)
    executor.free(slot)
    files.close()
    files = PrefixFiles(
        tmp_path, executor, identity="x", most_bytes=1 << 20, scope_text=lambda _: "scope"
    )
    lengths = []
    for kind in (((20, A),), ((20, B),), ()):
        loaded = files.load(None, TOKENS, beyond=0, pictures=kind)
        assert loaded is not None
        lengths.append(executor.length(loaded))
        executor.free(loaded)
    assert lengths == [64, BLOCK, BLOCK]
    files.close()
