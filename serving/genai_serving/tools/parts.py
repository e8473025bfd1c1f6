"""Parts of a chat answer, and readers that find them in its text as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["AnswerPart", "PlainReader", "Reader", "Seeker"]


@dataclass(frozen=True)
class AnswerPart:
    """A piece of one kind.

    Attributes:
        kind: `call` begins a call of a tool, `arguments` goes on with the last one.
        text: Of `call` the tool's name, else what there is to show.
    """

    kind: Literal["content", "reasoning", "call", "arguments"]
    text: str


class Reader(Protocol):
    """Finds parts; however its text is cut, the parts joined are the same."""

    def push(self, text: str) -> Iterator[AnswerPart]:
        """What is certain so far."""
        ...

    def finish(self) -> Iterator[AnswerPart]:
        """What was held back."""
        ...


class PlainReader:
    """All of it is content."""

    def push(self, text: str) -> Iterator[AnswerPart]:
        """The text."""
        if text:
            yield AnswerPart("content", text)

    def finish(self) -> Iterator[AnswerPart]:
        """Nothing was held back."""
        yield from ()


class Seeker:
    """Looks for a word in a text that comes in pieces, and holds back what may become it.

    Blanks before the word are held back too: those before a call or behind a thought are no text.

    Args:
        word: What is looked for.
    """

    def __init__(self, word: str) -> None:
        self._word = word
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """What is before the word for certain; behind it what follows, None = not found yet."""
        self._held += text
        before, found, behind = self._held.partition(self._word)
        if found:
            self._held = ""
            return before.rstrip(), behind
        keep = len(self._held)
        for size in range(min(len(self._word) - 1, len(self._held)), 0, -1):
            if self._word.startswith(self._held[-size:]):
                keep -= size
                break
        shown = self._held[:keep].rstrip()
        self._held = self._held[len(shown) :]
        return shown, None

    def finish(self) -> str:
        """What was held back: the word did not come."""
        held, self._held = self._held, ""
        return held
