"""A conversation with a container: lines in, answers out, the history kept.

On a terminal it prompts and goes on until Ctrl-D; Ctrl-C ends an answer. From a pipe each line is
a turn. What the cache holds already is not read again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from genai_cli.containers.images import Images
from genai_cli.containers.speculation import Guessing
from genai_cli.containers.streamed_text import TextStream, speed
from genai_cli.display.output import emit, say, tell
from genai_core.errors import BadInput
from genai_runtime.chat.chat_template import ChatTemplate
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import Generation, generate
from genai_runtime.prefixes.cache import common
from genai_runtime.sampling import Sampling
from genai_runtime.session import Session
from genai_runtime.speculation.control import Speculation
from genai_runtime.tokenizer import TextTokenizer
from genai_runtime.vision.places import NOTHING, PicturedPrompt

__all__ = ["Chat", "converse", "template_of"]

_PROMPT = "> "


def template_of(opened: Container) -> tuple[ChatTemplate, TextTokenizer]:
    """What a conversation needs of a container.

    Raises:
        BadInput: It has no chat template, or no tokenizer.
    """
    tokenizer, template = opened.tokenizer(), ChatTemplate.of_container(opened)
    if tokenizer is None:
        raise BadInput(
            "the container has no tokenizer, so it cannot be talked to",
            where=str(opened.folder),
            remedy="give token ids with --prompt-tokens",
        )
    if template is None:
        raise BadInput(
            "the container has no chat template: its model was not made for conversations, or "
            "its export left chat_template.jinja out",
            where=str(opened.folder),
            remedy="use --prompt, or put the file into the model's folder and build again",
        )
    return template, tokenizer


@dataclass
class Chat:
    """A conversation and the session that holds it.

    Attributes:
        limit: Tokens of an answer at most; None = until it ends or the context is full.
        system: The system message, empty where there is none.
        speculation: Guesses tokens of answers.
        images: Pictures that belong to the first message.
    """

    session: Session
    template: ChatTemplate
    tokenizer: TextTokenizer
    sampling: Sampling
    stop_tokens: frozenset[int]
    limit: int | None = None
    system: str = ""
    speculation: Speculation | None = None
    images: Images | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    _cached: PicturedPrompt = NOTHING

    def answer(self, text: str, on_token: Callable[[int], None] | None = None) -> Generation:
        """The model's answer to the next thing that the user says; both join the history.

        Raises:
            BadInput: The message alone is longer than the context, or the template refuses it.
            KeyboardInterrupt: Ctrl-C; the answer so far has joined the history.
        """
        content: str | list[dict[str, str]] = text
        if self.images is not None and not self.turns:
            content = self.images.introduced(text, listed=self.template.lists_images)
        self.turns.append({"role": "user", "content": content})
        try:
            read = self._fitting()
        except BaseException:
            self.turns.pop()
            raise
        said: list[int] = []

        def heard(token: int) -> None:
            said.append(token)
            if on_token is not None:
                on_token(token)

        try:
            room = self.session.context_length - read.tokens.size + 1
            return generate(
                self.session,
                read.tokens,
                max_tokens=min(self.limit or room, room),
                sampling=self.sampling,
                stop_tokens=self.stop_tokens,
                on_token=heard,
                kept=self._kept(read),
                speculation=self.speculation,
                embeddings=read.embeddings,
            )
        finally:
            self._cached = read.followed_by(said, most=self.session.length)
            words = [token for token in said if token not in self.stop_tokens]
            self.turns.append({"role": "assistant", "content": self.tokenizer.decode(words)})

    def _fitting(self) -> PicturedPrompt:
        """Token ids and pictures of the conversation; the oldest turns go where it is too long."""
        dropped = 0
        while True:
            head = [{"role": "system", "content": self.system}] if self.system else []
            text = self.template.render([*head, *self.turns])
            if self.images is None:
                read = PicturedPrompt(self.tokenizer.encode(text, special=False))
            else:
                read = self.images.within(text, self.tokenizer, special=False)
            if read.tokens.size < self.session.context_length:
                break
            if len(self.turns) <= 1:
                raise BadInput(
                    f"it has {read.tokens.size} tokens, the context {self.session.context_length}",
                    where="message",
                    remedy="say less at once, or build for a longer context",
                )
            self.images = None  # they go with the first message
            del self.turns[:2]
            dropped += 2
        if dropped:
            sys.stderr.write(
                f"note: the first {dropped} messages were dropped, since the context of "
                f"{self.session.context_length} tokens is full\n"
            )
        return read

    def _kept(self, read: PicturedPrompt) -> int:
        """How many tokens at the beginning the cache holds; the last is always read anew."""
        pictures = (self._cached.pictures, read.pictures)
        return common(self._cached.tokens, read.tokens[:-1], pictures)


def converse(chat: Chat, *, once: str | None, as_json: bool) -> int:
    """Talk until the input ends; returns the exit code.

    Args:
        chat: The conversation.
        once: What to say, and nothing after it; None = lines of standard input.
        as_json: One JSON object instead of text.
    """
    if as_json:
        if once is None:
            raise BadInput(
                "it prints one object", where="--json", remedy="say something with --prompt"
            )
        result = chat.answer(once)
        emit({"text": chat.turns[-1]["content"], "tokens": list(result.tokens), **speed(result)})
        return 0
    if once is not None:
        _turn(chat, once)
        return 0
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        tell("Ctrl-C ends an answer, Ctrl-D the conversation.")
    for line in _lines(on_terminal=on_terminal):
        try:
            _turn(chat, line)
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            say()
        except BadInput as error:
            if not on_terminal:
                raise
            tell(f"error: {error}")
    return 0


def _turn(chat: Chat, text: str) -> None:
    stream = TextStream(chat.tokenizer)
    with _between_tokens(stream) as heard:
        result = chat.answer(text, heard)
    stream.flush(whole=True)
    say()
    if sys.stderr.isatty():
        facts = speed(result)["metrics"]
        sys.stderr.write(
            f"\x1b[2m{facts['promptTokens']} tokens, {facts['generatedTokens']} written at "
            f"{facts['generationTokensPerSecond']:,.0f}/s\x1b[0m\n"
        )


@contextmanager
def _between_tokens(stream: TextStream) -> Iterator[Callable[[int], None]]:
    """Have Ctrl-C end an answer behind a token, not within a pass; the second Ctrl-C at once.

    An executor that runs in a process of its own would otherwise be asked the next thing while it
    still answers the last.
    """
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    def heard(token: int) -> None:
        stream(token)
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


def _lines(*, on_terminal: bool) -> Iterator[str]:
    """What the user says, without empty lines."""
    if not on_terminal:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() a line to edit and a history
    while True:
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            say()
            return
        if line:
            yield line


def talk(
    opened: Container,
    *,
    system: str,
    once: str | None,
    sampling: Sampling,
    limit: int | None,
    context_length: int | None,
    threads: int,
    worn: Sequence[AdapterUse] = (),
    guessing: Guessing,
    as_json: bool,
    images: Images | None = None,
) -> int:
    """Open a session and converse; returns the exit code."""
    template, tokenizer = template_of(opened)
    with (
        closing(
            open_session(opened, threads=threads, context_length=context_length, worn=worn)
        ) as session,
        guessing.opened(opened, session) as speculation,
    ):
        chat = Chat(
            session,
            template,
            tokenizer,
            sampling,
            opened.stop_tokens(),
            limit=limit,
            system=system,
            speculation=speculation,
            images=images,
        )
        return converse(chat, once=once, as_json=as_json)
