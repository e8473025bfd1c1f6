"""Thoughts in front of an answer: `<think> ... </think>`, as templates of such models have it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from genai_runtime.sampling import Constraint
from genai_serving.tools.parts import AnswerPart, Reader, Seeker

__all__ = ["BEGIN", "END", "AfterThoughts", "ThoughtReader", "thinks"]

BEGIN, END = "<think>", "</think>"


def thinks(source: str) -> bool:
    """Whether a chat template is of a model that thinks."""
    return END in source


class ThoughtReader:
    """Splits thoughts from what follows them.

    Args:
        within: The prompt has begun a thought.
        behind: Reads what follows.
    """

    def __init__(self, behind: Reader, *, within: bool) -> None:
        self._behind = behind
        self._seeker: Seeker | None = Seeker(END) if within else None
        self._held = ""
        self._open = True
        self._shown = False

    def push(self, text: str) -> Iterator[AnswerPart]:
        """Thoughts, and what follows."""
        if not self._open:
            yield from self._answer(text)
            return
        if self._seeker is None:
            self._held += text
            begun = self._held.lstrip()
            if BEGIN.startswith(begun):
                return
            if not begun.startswith(BEGIN):
                held, self._held, self._open = self._held, "", False
                yield from self._behind.push(held)
                return
            self._seeker, text, self._held = Seeker(END), begun.removeprefix(BEGIN), ""
        shown, rest = self._seeker.push(text)
        shown = shown if self._shown else shown.lstrip()
        if shown:
            self._shown = True
            yield AnswerPart("reasoning", shown)
        if rest is not None:
            self._open, self._shown = False, False
            yield from self._answer(rest)

    def finish(self) -> Iterator[AnswerPart]:
        """What was held back."""
        if self._open and self._seeker is not None:
            left = self._seeker.finish()
            if left.strip():
                yield AnswerPart("reasoning", left if self._shown else left.lstrip())
        elif self._held:
            yield from self._behind.push(self._held)
        yield from self._behind.finish()

    def _answer(self, text: str) -> Iterator[AnswerPart]:
        """Blank lines between a thought and its answer belong to neither."""
        if self._seeker is not None and not self._shown:
            text = text.lstrip()
            self._shown = bool(text)
        if text:
            yield from self._behind.push(text)


class AfterThoughts:
    """A form that an answer has behind its thoughts; see `genai_runtime.sampling.Constraint`.

    Args:
        form: Of the answer.
        begin: The token that begins a thought, if it may begin with one.
        end: The token that ends it.
        within: The prompt has begun a thought.
    """

    def __init__(self, form: Constraint, *, begin: int | None, end: int, within: bool) -> None:
        self._form = form
        self._begin = None if within else begin
        self._end = end
        self._within = within

    @property
    def finished(self) -> bool:
        """The answer has its form, and nothing can follow."""
        return not self._within and self._form.finished

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come now, [V]."""
        allowed = self._form.allowed()
        if self._within:
            return np.ones_like(allowed)
        if self._begin is not None:
            allowed = allowed.copy()
            allowed[self._begin] = True
        return allowed

    def consume(self, token: int) -> None:
        """Go on behind a token."""
        if self._within:
            self._within = token != self._end
        elif token == self._begin:
            self._within, self._begin = True, None
        else:
            self._begin = None
            self._form.consume(token)
