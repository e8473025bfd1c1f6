"""`genai run --chat`: the history, its limits, and containers that cannot be talked to."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from genai_cli.containers.chat import Chat, _between_tokens
from genai_cli.containers.streamed_text import TextStream
from genai_cli.testing import InProcess, Program
from genai_core.canonical import digest_bytes
from genai_core.errors import BadInput
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session
from genai_runtime.generate import generate
from genai_runtime.sampling import Sampling

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture
def talking(container: Path, tmp_path: Path) -> Path:
    """The container with a chat template."""
    copy = tmp_path / "talking"
    shutil.copytree(container, copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["chat_template.jinja"] = {
        "sha256": digest_bytes(TEMPLATE.encode()),
        "size": len(TEMPLATE),
    }
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_chat_answers_each_line_with_the_history_when_lines_are_piped(
    genai: Program, talking: Path
) -> None:
    opened = containers.load(talking)
    tokenizer = opened.tokenizer()
    assert tokenizer is not None
    expected: list[str] = []
    history = "s:Say it;"
    with closing(open_session(opened, threads=1)) as session:
        for said in ("a b", "c"):
            history += f"u:{said};a:"
            ids = tokenizer.encode(history, special=False)
            made = generate(session, ids, max_tokens=3, stop_tokens=opened.stop_tokens())
            words = [t for t in made.tokens if t not in opened.stop_tokens()]
            expected.append(tokenizer.decode(words))
            history = f"{history.removesuffix('a:')}a:{expected[-1]};"
    ran = genai(
        "run", talking, "--chat", "--system", "Say it", "--max-tokens", "3", "--threads", "1",
        stdin="a b\n\nc\n",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out == "".join(f"{text}\n" for text in expected)
    assert ran.err == ""


def test_chat_answers_once_when_a_prompt_is_given(call: InProcess, talking: Path) -> None:
    once = call("run", talking, "--chat", "--prompt", "x", "--max-tokens", "2", "--json")
    tokenizer = containers.load(talking).tokenizer()
    assert tokenizer is not None
    ids = ",".join(map(str, tokenizer.encode("u:x;a:", special=False)))
    plain = call("run", talking, "--prompt-tokens", ids, "--max-tokens", "2", "--json")
    assert once.code == 0, once.err
    assert once.json["tokens"] == plain.json["tokens"]
    assert set(once.json) == {"text", "tokens", "stopped", "metrics"}


def test_chat_refuses_clearly_when_the_container_has_no_template(
    call: InProcess,
    container: Path,
) -> None:
    ran = call("run", container, "--chat", "--prompt", "x")
    assert ran.code == 2
    (error,) = ran.errors
    assert f"{container}: the container has no chat template" in error
    assert "use --prompt" in error


@pytest.mark.parametrize("options", [["--prompt-tokens", "1"], ["--ignore-end"]])
def test_chat_refuses_options_that_have_no_meaning_in_it(
    call: InProcess, talking: Path, options: list[str]
) -> None:
    ran = call("run", talking, "--chat", *options)
    assert ran.code == 2
    assert ran.errors[0].startswith(f"error: {options[0]}: ")


@pytest.fixture
def call(tmp_path: Path) -> InProcess:
    return InProcess(tmp_path)


def test_chat_reads_only_what_is_new_and_drops_the_oldest_when_the_context_is_full(
    talking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = containers.load(talking)
    tokenizer = opened.tokenizer()
    assert tokenizer is not None
    with closing(open_session(opened, threads=1)) as session:
        chat = Chat(
            session, ChatTemplate(TEMPLATE, {}), tokenizer, Sampling(), frozenset(), limit=2
        )
        first = chat.answer("one two three four")
        second = chat.answer("x")
        assert second.metrics.prompt_tokens < first.metrics.prompt_tokens
        for number in range(12):
            chat.answer(f"and {number}")
        assert "messages were dropped" in capsys.readouterr().err
        assert chat.turns[-2] == {"role": "user", "content": "and 11"}
        assert len(chat.turns) < 28
        before = list(chat.turns)
        with pytest.raises(BadInput, match=r"message: it has .* tokens, the context 48"):
            Chat(session, ChatTemplate(TEMPLATE, {}), tokenizer, Sampling(), frozenset()).answer(
                "far too long " * 40
            )
        assert chat.turns == before


def test_ctrl_c_ends_an_answer_behind_a_token_and_the_conversation_goes_on(talking: Path) -> None:
    opened = containers.load(talking)
    tokenizer = opened.tokenizer()
    assert tokenizer is not None
    with closing(open_session(opened, threads=1)) as session:
        chat = Chat(session, ChatTemplate(TEMPLATE, {}), tokenizer, Sampling(), frozenset())
        stream = TextStream(tokenizer)

        def answer(heard: Callable[[int], None]) -> None:
            def interrupted(token: int) -> None:
                signal.raise_signal(signal.SIGINT)
                heard(token)

            chat.answer("one two", interrupted)

        with pytest.raises(KeyboardInterrupt), _between_tokens(stream) as heard:
            answer(heard)
        assert len(stream.tokens) == 1
        assert [turn["role"] for turn in chat.turns] == ["user", "assistant"]
        chat.limit = 2
        again = chat.answer("three")
        fresh = Chat(session, chat.template, tokenizer, Sampling(), frozenset(), limit=2)
        fresh.turns = list(chat.turns[:2])
        assert fresh.answer("three").tokens == again.tokens, "what was kept is what was said"
    with _between_tokens(stream):
        signal.raise_signal(signal.SIGINT)  # noted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
