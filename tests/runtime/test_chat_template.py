"""Chat templates: as transformers renders them, and what a hostile one comes to."""

from __future__ import annotations

import gc
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from genai_core.canonical import digest_bytes
from genai_core.container.container_metadata import Metadata
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget
from genai_core.errors import BadInput, BadModel
from genai_core.names import Backend
from genai_runtime.chat import chat_template
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.container.container import Container

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]

DOUBLING = (
    "{% set x = namespace(s='a') %}{% for i in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}"
)


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source, SPECIAL).render(TALK, **variables)


def test_render_writes_the_conversation_when_the_template_is_the_examples() -> None:
    """What people say is text and never rendered itself."""
    assert render((EXAMPLE / "chat_template.jinja").read_text()) == (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
        "<|user|>\n{{ 7 * 7 }}<|end|>\n<|assistant|>\n"
    )


def test_render_follows_transformers_when_a_template_relies_on_its_environment() -> None:
    source = (
        "{%- for m in messages %}\n"
        "    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
        "    {% generation %}{{ m.content | tojson }}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%Y')|length }} {{ think }}"
    )
    assert render(source, think=True) == '"Hi""Hello""{{ 7 * 7 }}"4 True'
    assert render("{{ [{'a': 'ü<'}] | tojson(indent=1) }}") == '[\n {\n  "a": "ü<"\n }\n]'


def test_render_gives_the_templates_own_words_when_it_refuses() -> None:
    with pytest.raises(BadInput, match=r"chat_template\.jinja: .* says: no system, please"):
        render("{{ raise_exception('no system, please') }}")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{% for m in messages %}", "line 1: "),
        ("\n\n{{ messages | nothing }}", "line 3: No filter named 'nothing'"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "sandbox"),
        ("{{ messages.append(1) }}", "sandbox"),
        ("{{ cycler.__init__.__globals__.os.environ }}", "sandbox"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ 'a' * 10**10 }}", "memory"),
        (DOUBLING, "memory"),
        ("{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}", "memory"),
        ("{{ '%999999999d' | format(1) }}", "memory"),
    ],
)  # fmt: skip
def test_render_names_what_is_wrong_when_the_template_is_broken_or_hostile(
    source: str, why: str
) -> None:
    with pytest.raises(BadModel) as caught:
        render(source)
    assert why in str(caught.value)
    assert str(caught.value).startswith("chat_template.jinja: ")


def test_render_ends_when_the_template_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "_CPU_SECONDS", 1)
    began = time.monotonic()
    loops = "".join("{% for i in range(90000) %}" for _ in range(3))
    with pytest.raises(BadModel, match=r"more time|not done"):
        render(loops + "{% endfor %}" * 3)
    assert time.monotonic() - began < 60


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every process of a template that is started, and its environment."""
    found: list[Any] = []
    real = subprocess.Popen

    def seen(*arguments: Any, **options: Any) -> Any:
        found.append((real(*arguments, **options), options["env"]))
        return found[-1][0]

    monkeypatch.setattr(subprocess, "Popen", seen)
    return found


def test_render_gives_its_process_no_environment(started: list[Any]) -> None:
    """Where the sandbox had a hole, no credentials would be behind it."""
    assert render("x") == "x"
    assert [environment for _, environment in started] == [{}]


def test_render_asks_one_process_again_and_again(started: list[Any]) -> None:
    template = ChatTemplate("{{ messages[0].content }} {{ n }}", SPECIAL)
    for n in range(5):
        assert template.render(TALK, n=n) == f"Be brief. {n}"
    long = [{"role": "user", "content": "ü" * 1_000_000}]
    assert template.render(long, n=0) == "ü" * 1_000_000 + " 0"
    with pytest.raises(BadModel, match="no element 0"):
        template.render([], n=0)
    assert template.render(TALK, n=9) == "Be brief. 9"
    assert len(started) == 1


def test_render_goes_on_when_its_process_was_killed_while_nobody_asked(
    started: list[Any],
) -> None:
    template = ChatTemplate("{{ n }}", SPECIAL)
    assert template.render(TALK, n=1) == "1"
    started[0][0].kill()
    started[0][0].wait()
    assert template.render(TALK, n=2) == "2"
    assert len(started) == 2


def test_render_goes_on_when_a_conversation_took_too_long(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client's variables may lead a template astray; the next client's must not suffer."""
    monkeypatch.setattr(chat_template, "_CPU_SECONDS", 1)
    loops = "".join("{% for i in range(n) %}" for _ in range(3)) + "{% endfor %}" * 3
    template = ChatTemplate(loops + "done", SPECIAL)
    with pytest.raises(BadModel, match="more time"):
        template.render(TALK, n=90000)
    assert template.render(TALK, n=1) == "done"
    assert len(started) == 1
    monkeypatch.setattr(chat_template, "_CPU_SECONDS", 60)
    monkeypatch.setattr(chat_template, "_SECONDS", 1)
    with pytest.raises(BadModel, match="not done after 1 s"):
        template.render(TALK, n=90000)
    assert template.render(TALK, n=1) == "done"


def test_render_answers_each_thread_with_its_own_conversation(started: list[Any]) -> None:
    template = ChatTemplate("{{ messages[0].content }}", SPECIAL)
    talks = [[{"role": "user", "content": f"{n} " * 5000}] for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(template.render, talks)) == [talk[0]["content"] for talk in talks]
    del template
    gc.collect()
    assert all(process.returncode is not None for process, _ in started), "none is left behind"


@pytest.mark.parametrize(
    ("files", "file"),
    [
        ({"chat_template.jinja": b"\xff\xfe\xff"}, "chat_template.jinja"),
        ({"chat_template.jinja": b"x" * (2 << 20)}, "chat_template.jinja"),
        ({"tokenizer_config.json": b"[" * 90_000}, "tokenizer_config.json"),
        ({"tokenizer_config.json": b'["not an object"]'}, "tokenizer_config.json"),
    ],
)
def test_of_container_names_the_file_when_it_cannot_be_read(
    tmp_path: Path, files: dict[str, bytes], file: str
) -> None:
    with pytest.raises(BadModel) as caught:
        ChatTemplate.of_container(holding(tmp_path, files))
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"chat_template": "A", "bos_token": "<s>"}, "A"),
        ({"chat_template": [{"name": "tool_use", "template": "B"},
                            {"name": "default", "template": "C"}]}, "C"),
        ({"chat_template": 3, "bos_token": None}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_of_container_finds_the_template_when_an_older_export_has_it_in_its_configuration(
    tmp_path: Path, config: dict[str, object], found: str | None
) -> None:
    files = {"tokenizer_config.json": json.dumps(config).encode()}
    template = ChatTemplate.of_container(holding(tmp_path, files))
    assert (template and template.source) == found
    beside = {**files, "chat_template.jinja": b"{{ bos_token }}D"}
    template = ChatTemplate.of_container(holding(tmp_path, beside))
    assert template is not None
    assert template.source == "{{ bos_token }}D"


def holding(folder: Path, files: dict[str, bytes]) -> Container:
    """A container of these files, as far as templates are concerned."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(
        model={}, architecture="llama", context_length=1,
        target=ManifestTarget(name="cpu", backend=Backend.CPU),
        files={n: ManifestFile(sha256=digest_bytes(d), size=len(d)) for n, d in files.items()},
    )  # fmt: skip
    metadata = Metadata(
        backend=Backend.CPU, architecture="llama", context_length=1, vocab_size=1, model_files={}
    )
    return Container(folder=folder, manifest=manifest, metadata=metadata)
