"""Answers of a form: each is valid, whatever the model would like; hostile forms end in 400."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Client, Running, example_tokenizer

from genai_core.errors import BadInput
from genai_runtime.sampling import Sampler, Sampling
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.structure.answer_forms import (
    Form,
    any_object,
    of_calls,
    of_choices,
    of_regex,
    of_schema,
)
from genai_serving.structure.grammars import Grammar, Grammars

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
VOCAB, END = 2048, frozenset({2, 6})
PROMPT = [1, 305, 490, 724]
CHAT = [{"role": "user", "content": "What does `close` do?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "bb"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return example_tokenizer()


@pytest.fixture(scope="module")
def grammars(tokenizer: TextTokenizer) -> Grammars:
    return Grammars(tokenizer, VOCAB, END)


def written(
    grammars: Grammars,
    tokenizer: TextTokenizer,
    form: Form,
    seed: int,
    *,
    most: int = 4000,
    **shaped: Any,
) -> tuple[str, bool]:
    """What a model of random logits writes, and whether it came to an end by itself.

    Blanks are unlikely to it, so that it ends; quotes and brackets that close are likely.
    """
    random = np.random.default_rng(seed)
    sampling = Sampling(temperature=1.0, seed=seed, logit_bias={2: 3.0}, **shaped)
    follower = grammars.compile(form).begin()
    sampler = Sampler(sampling, vocab_size=VOCAB, constraint=follower)
    tokens: list[int] = []
    while len(tokens) < most:
        token = sampler.next(random.normal(size=VOCAB).astype(np.float32) * 3)
        if token in END:
            return tokenizer.decode(tokens), True
        tokens.append(token)
        if sampler.finished:
            return tokenizer.decode(tokens), True
    return tokenizer.decode(tokens), False


Schema = dict[str, Any]

NAMES = st.sampled_from(["a", "b", "c d", "é", 'q"', "line\nend"])
PLAIN: list[Schema] = [
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer", "minimum": -7, "maximum": 1200},
    {"type": "number", "minimum": 0.5, "maximum": 2},
    {"type": "string", "maxLength": 6},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": ["integer", "null"], "maximum": 9, "minimum": 0},
    {"const": {"x": [1, "y"]}},
]
LEAVES: st.SearchStrategy[Schema] = st.sampled_from(PLAIN) | st.lists(
    NAMES | st.integers(-5, 5) | st.none(), min_size=1, max_size=4
).map(lambda values: {"enum": values})


def nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    objects = st.dictionaries(NAMES, inner, max_size=3).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties) or [""]), unique=True).map(
            lambda required: {
                "type": "object",
                "properties": properties,
                "required": [name for name in required if name],
                "additionalProperties": False,
            }
        )
    )
    arrays = st.tuples(inner, st.integers(0, 2)).map(
        lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": 3}
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})
    references = inner.map(lambda s: {"$defs": {"d": s}, "allOf": [{"$ref": "#/$defs/d"}]})
    return objects | arrays | unions | references


def at_top(schema: Schema) -> bool:
    """A reference counts from the root of its document: only there is it one of ours."""
    text = json.dumps(schema)
    return text.count("$defs") <= 2 and ("$defs" not in text or "$defs" in schema)


SCHEMAS = st.recursive(LEAVES, nested, max_leaves=6).filter(at_top)
CHECKED = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def check_schema(grammars: Grammars, tokenizer: TextTokenizer, schema: Schema, seed: int) -> None:
    text, ended = written(grammars, tokenizer, of_schema(schema, "x"), seed)
    assert ended, text[:200]
    jsonschema.validate(json.loads(text), schema)


@CHECKED
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_every_answer_is_valid_by_its_schema(
    grammars: Grammars, tokenizer: TextTokenizer, schema: Schema, seed: int
) -> None:
    check_schema(grammars, tokenizer, schema, seed)


@pytest.mark.long
@settings(CHECKED, max_examples=2000)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_every_answer_is_valid_by_its_schema_over_many_runs(
    grammars: Grammars, tokenizer: TextTokenizer, schema: Schema, seed: int
) -> None:
    check_schema(grammars, tokenizer, schema, seed)


@pytest.mark.parametrize("regex", ["[a-c]{3}-[0-9]+", "(ab|é)*x", "a|bc|", r"\d{2}:\d{2}", "€?"])
def test_every_answer_matches_its_regex_as_a_whole(
    grammars: Grammars, tokenizer: TextTokenizer, regex: str
) -> None:
    for seed in range(6):
        text, ended = written(grammars, tokenizer, of_regex(regex, "x"), seed)
        assert ended
        assert re.fullmatch(regex, text)


def test_every_answer_is_one_of_the_choices(grammars: Grammars, tokenizer: TextTokenizer) -> None:
    choices = ["yes", "no", "a.b|c", "two\nlines", 'quo"te', "#/\\ &~-[x]{2}", "é€"]
    told = {written(grammars, tokenizer, of_choices(choices, "x"), seed)[0] for seed in range(60)}
    assert told <= set(choices)
    assert len(told) >= 5


def test_penalties_and_least_length_choose_among_what_is_allowed(
    grammars: Grammars, tokenizer: TextTokenizer
) -> None:
    bias = dict.fromkeys(range(600, 640), 50.0)
    text, ended = written(
        grammars,
        tokenizer,
        of_schema({"type": "integer", "minimum": 1, "maximum": 99}, "x"),
        3,
        repetition_penalty=1.5,
        presence_penalty=2.0,
    )
    assert ended
    assert 1 <= int(text) <= 99
    follower = grammars.compile(of_choices(["ab"], "x")).begin()
    sampler = Sampler(Sampling(logit_bias=bias), vocab_size=VOCAB, constraint=follower)
    tokens = []
    while not sampler.finished:  # bans of end tokens give way where only they are left
        tokens.append(sampler.next(np.zeros(VOCAB, np.float32), banned=END))
    assert tokenizer.decode([token for token in tokens if token not in END]) == "ab"


def chain(length: int, link: Callable[[Schema], Schema]) -> Schema:
    defs = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$defs": {**defs, f"d{length}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


HOSTILE = {
    "a chain of references": lambda: of_schema(chain(5000, lambda d: d), "x"),
    "a chain of arrays": lambda: of_schema(
        chain(5000, lambda d: {"type": "array", "items": d}), "x"
    ),
    "many properties": lambda: of_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(9000)}}, "x"
    ),
    "a huge enumeration": lambda: of_schema({"enum": [f"value {i}" for i in range(120_000)]}, "x"),
    "beyond a MiB": lambda: of_schema({"enum": ["x" * (1 << 20)]}, "x"),
    "choices without end": lambda: of_choices([f"choice number {i}" for i in range(90_000)], "x"),
    "choices of megabytes": lambda: of_choices(["." * 4_000_000] * 2, "x"),
    "tools of megabytes": lambda: of_calls(
        {f"t{i}": {"description": "." * 200_000} for i in range(20)}, "x", several=False
    ),
    "no text at all": lambda: of_schema({"$ref": "#"}, "x"),
    "an empty range": lambda: of_schema({"type": "integer", "minimum": 3, "maximum": 2}, "x"),
    "another document": lambda: of_schema({"$ref": "http://127.0.0.1:9/x.json"}, "x"),
    "a keyword that is not kept": lambda: of_schema({"type": "array", "uniqueItems": True}, "x"),
    "no schema": lambda: of_schema({"type": 5}, "x"),
    "a broken regex": lambda: of_regex("(a", "x"),
    "look-around": lambda: of_regex("(?=a)b", "x"),
    "back-references": lambda: of_regex(r"(a)\1", "x"),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_forms_are_refused_and_the_process_lives(
    grammars: Grammars, make: Callable[[], Form]
) -> None:
    with pytest.raises(BadInput) as raised:
        grammars.compile(make())
    assert raised.value.where == "x"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "regex", ["(a{1,1000}){1,1000}", "((a|b)*a(a|b){40})", "(.*.*.*.*.*.*x){50}", "(a+)+b"]
)
def test_a_regex_that_costs_much_is_followed_within_bounds_or_refused(
    grammars: Grammars, tokenizer: TextTokenizer, regex: str
) -> None:
    try:
        text, ended = written(grammars, tokenizer, of_regex(regex, "x"), 1, most=40)
    except BadInput:
        return
    assert text
    assert not ended or re.compile(regex.replace("{50}", "{1,50}")).search(text)


def test_the_processes_of_compiling_are_bounded_and_forms_are_kept(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = any_object("x")
    grammars.compile(form)
    monkeypatch.setattr(grammars._processes, "ask", lambda *_, **__: pytest.fail("compiled again"))
    grammars.compile(form)


def test_grammars_need_a_tokenizer_and_an_end(tokenizer: TextTokenizer) -> None:
    for made in (Grammars(None, VOCAB, END), Grammars(tokenizer, VOCAB, ())):
        with pytest.raises(BadInput, match=r"the model has no (tokenizer|end token)"):
            made.compile(any_object("x"))


WANTED = {
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "strict": True, "schema": PERSON},
        }
    },
    "structured_outputs": {"structured_outputs": {"json": PERSON}},
    "schema as text": {"structured_outputs": {"json": json.dumps(PERSON)}},
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED.keys())
@pytest.mark.parametrize("stream", [False, True])
def test_chat_answers_by_a_schema(
    client: Client, tokenizer: TextTokenizer, wanted: dict[str, Any], stream: bool
) -> None:
    # A model of no sense writes blanks until its answer is full.
    blank = [token for token in range(7, VOCAB) if not tokenizer.piece(token).strip()]
    bias = dict.fromkeys(map(str, blank), -50)
    body = {"messages": CHAT, "n": 3, "seed": 5, "stream": stream, "max_tokens": 70}
    answer = client.post("/v1/chat/completions", body | wanted | {"logit_bias": bias})
    assert answer.status == 200, answer.raw
    texts, ends = ["", "", ""], ["", "", ""]
    for told in answer.events[:-1] if stream else [answer.json]:
        for choice in told["choices"]:
            part = choice["delta"] if stream else choice["message"]
            texts[choice["index"]] += part.get("content") or ""
            ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert ends == ["stop"] * 3
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) > 1, "each choice is drawn by itself"


def test_completions_answer_by_regex_and_choice_beside_free_ones(client: Client) -> None:
    asked: list[dict[str, Any]] = [
        {"structured_outputs": {"choice": ["left", "right"]}},
        {"structured_outputs": {"regex": "[0-9]{3}-[a-z]{2}"}},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {"choice": ["left", "right"]}, "stop": "gh"},
    ]

    def ask(number: int) -> Any:
        body = {"prompt": PROMPT, "max_tokens": 20, "seed": number, **asked[number % 4]}
        answer = client.post("/v1/completions", body)
        assert answer.status == 200, answer.raw
        return answer.json["choices"][0]

    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(ask, range(32)))
    assert {c["text"] for c in told[0::4]} <= {"left", "right"}
    assert all(re.fullmatch("[0-9]{3}-[a-z]{2}", c["text"]) for c in told[1::4])
    assert {c["finish_reason"] for c in told[0::4]} == {"stop"}
    assert all(c == ask(number) for number, c in enumerate(told))
    assert {c["text"] for c in told[3::4]} <= {"left", "ri"}


REFUSED = {
    "two ways": ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "give one of"),
    "no way": ({"structured_outputs": {}}, "give one of"),
    "both fields": (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "not beside",
    ),
    "a schema without its type": (
        {"response_format": {"type": "json_object", "json_schema": {"name": "x"}}},
        "goes with type json_schema",
    ),
    "an unknown keyword": (
        {"structured_outputs": {"json": {"type": "object", "minProperties": 2, "not": {}}}},
        "structured_outputs: ",
    ),
    "a schema that is no JSON": ({"structured_outputs": {"json": "{"}}, "cannot be read as JSON"),
    "deep text": ({"structured_outputs": {"json": "[" * 90 + "]" * 90}}, "cannot be read"),
    "half a pair": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"const": "\ud800"}},
            }
        },
        "response_format: cannot be read",
    ),
    "a list": ({"structured_outputs": {"json": "[]"}}, "must be an object"),
    "guided": ({"guided_json": {}}, "is not a parameter"),
}


@pytest.mark.parametrize(("given_", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_forms_that_mean_nothing_are_refused_by_field(
    client: Client, given_: dict[str, Any], words: str
) -> None:
    answer = client.post("/v1/completions", {"prompt": "x", "max_tokens": 2} | given_)
    assert answer.status == 400, answer.raw
    error = answer.json["error"]
    assert words in error["message"]
    assert error["param"] is None or error["param"].split(".")[0] in given_


def test_a_schema_that_is_too_deep_is_a_400_and_the_server_answers_on(client: Client) -> None:
    hostile = {"structured_outputs": {"json": chain(5000, lambda d: d)}}
    answer = client.post("/v1/completions", {"prompt": "x"} | hostile)
    assert answer.status == 400
    assert "takes more time, memory or depth" in answer.json["error"]["message"]
    assert client.get("/health").status == 200


@pytest.mark.parametrize("make", [
    lambda: of_choices(["." * 4_000_000] * 2, "x"), lambda: of_schema({"enum": [7] * 390_000}, "x"),
    lambda: of_calls({"t": {"description": "." * 2_000_000}}, "x", several=True),
], ids=["choices", "schema", "tools"])  # fmt: skip
def test_what_is_too_long_for_a_form_is_not_turned_into_one(
    make: Callable[[], Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Escaping a few MiB takes most of a second, in the loop that serves everybody."""
    for name in ("schema", "regex", "lark"):
        how = "json_schema" if name == "schema" else name
        monkeypatch.setattr(
            f"genai_serving.structure.answer_forms.LLMatcher.grammar_from_{how}",
            lambda *_, **__: pytest.fail("it was"), raising=False,
        )  # fmt: skip
    with pytest.raises(BadInput, match="is longer than 1 MiB"):
        make()


def test_new_forms_of_one_client_keep_known_ones_and_answers_without_a_form_waiting_no_longer(
    client: Client, shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"prompt": "x", "max_tokens": 2, "structured_outputs": {"choice": ["known"]}}
    assert client.post("/v1/completions", known).status == 200
    compiling, go_on = threading.Event(), threading.Event()
    compiled = Grammars.compile

    def slow(self: Grammars, form: Form) -> Grammar:
        compiling.set()
        assert go_on.wait(60)
        return compiled(self, form)

    monkeypatch.setattr(Grammars, "compile", slow)
    monkeypatch.setattr("genai_serving.api.service._MOST_COMPILING", 4)

    def ask(number: int) -> Any:
        form = {"structured_outputs": {"choice": [f"new {number}"]}}
        return client.post("/v1/completions", {"prompt": "x", "max_tokens": 2, **form})

    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        assert compiling.wait(60)
        limit = time.monotonic() + 60
        while shared.service.forms.count < 4:
            assert time.monotonic() < limit
        refused = ask(4)
        assert refused.status == 429
        assert refused.headers["retry-after"]
        assert client.post("/v1/completions", known).status == 200
        assert client.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).status == 200
        go_on.set()
        assert [each.result().status for each in asked] == [200] * 4
    assert shared.service.forms.count == 0
    assert ask(5).status == 200
