"""System prompts that are read before the first request: which tokens, with whom, within what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from running import INDEX, VOCAB, Running, run_server

from genai_core.errors import BadInput
from genai_runtime.testing import ScriptedExecutor
from genai_serving.api.model import ServedModel
from genai_serving.scheduler import ServingLimits
from genai_serving.start.system_prompts import SystemPrompts, beginning

TEXT = "Answer in one short line."


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    limits = ServingLimits(sequences=4, tokens=32, waiting=8, cache_bytes=400, prefix_bytes=50)
    made = run_server(limits=limits)
    yield made
    made.stop()
    assert made.executor.open_slots == frozenset()


@pytest.fixture(scope="module")
def model(running: Running) -> ServedModel:
    return running.service.model


def test_beginning_is_what_every_conversation_with_the_message_begins_with(
    model: ServedModel,
) -> None:
    tokens = beginning(model, TEXT, where="x")
    assert TEXT in model.text(tokens.tolist())
    for said in ("Why?", "1 + 1", "\nthen", "é"):
        messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": said}]
        whole = model.text_tokens(model.chat_text(messages, {}), special=False)
        assert whole[: tokens.size].tolist() == tokens.tolist()


def test_beginning_is_the_text_itself_without_a_template(model: ServedModel) -> None:
    plain = replace(model, template=None)
    tokens = beginning(plain, "import os\n", where="x")
    whole = model.text_tokens("import os\nimport re", special=True)
    assert 0 < tokens.size <= whole.size
    assert whole[: tokens.size].tolist() == tokens.tolist()


def test_a_prompt_that_cannot_be_kept_is_refused_by_its_number(model: ServedModel) -> None:
    executor = ScriptedExecutor(vocab_size=VOCAB, context_length=model.context_length)

    def refused(model: ServedModel, *texts: str) -> str:
        with pytest.raises(BadInput) as caught:
            SystemPrompts.of(model, texts, executor=executor)
        return str(caught.value)

    assert "--system-prompt 2: it has" in refused(model, TEXT, "word " * 90)
    assert "no tokenizer" in refused(replace(model, tokenizer=None), TEXT)
    assert model.template is not None
    dumb = replace(model.template, source="{{ messages[-1]['content'] }}")
    assert "shows no system message" in refused(replace(model, template=dumb), TEXT)


def test_check_says_how_much_room_they_want(model: ServedModel) -> None:
    executor = ScriptedExecutor(vocab_size=VOCAB, context_length=model.context_length)
    prompts = SystemPrompts.of(model, [TEXT], executor=executor)
    assert prompts.bytes == 4 * prompts.prompts[0].size, "the base, two adapters, a use case"
    prompts.check(prompts.bytes + 96, prompts.bytes, 96)
    for cache, kept in ((prompts.bytes + 95, prompts.bytes), (1000, prompts.bytes - 1)):
        with pytest.raises(BadInput, match="with 3 adapters and use cases"):
            prompts.check(cache, kept, 96)
    SystemPrompts().check(96, 0, 96)


def test_the_first_conversation_computes_what_is_new_to_it_with_every_name(
    running: Running, model: ServedModel
) -> None:
    said: list[str] = []
    prompts = SystemPrompts.of(model, [TEXT], executor=running.executor)
    size = prompts.prompts[0].size
    before = running.client.get("/metrics").raw
    prompts.read(running.engine, model, said.append)
    assert said == [f"1 system prompts are kept: {4 * size} tokens, {4 * size} computed now"]
    assert running.client.get("/metrics").raw.count(b"vllm:request_success_total{") == before.count(
        b"vllm:request_success_total{"
    ), "nobody asked them"
    for name in ("scripted", *INDEX.adapters, *INDEX.use_cases):
        messages = [
            {"role": "system", "content": TEXT},
            {"role": "user", "content": f"{name}?"},
        ]
        body = {"model": name, "messages": messages, "max_tokens": 2, "temperature": 0}
        answer = running.client.post("/v1/chat/completions", body).json
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == size, name
    assert len(running.engine._prefixes.pinned) == 4
