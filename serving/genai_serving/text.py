"""Tokens to text as they come: no character is ever cut in two, no stop string is ever shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

MOST_PENDING = 64
"""Tokens without a whole character that are decoded again with the next: a character has four. More
are shown as they are, or left out where they have no text; clients can ask for nothing else."""

Decode = Callable[[Sequence[int]], str]
"""Text of some tokens, as a tokenizer's `decode`."""


class Detokenizer:
    """Text of a growing answer, piece by piece; the pieces joined are the text of all tokens.

    A token may end within a character of several bytes. Decoders show that as a replacement
    character at the end, so such text waits for the next token. Only the tokens since the last
    whole character are decoded again, with those of one piece before them, which tell decoders
    whether a blank stands at the front.

    Args:
        decode: The tokenizer's.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._before = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that a token completes; empty while a character is cut."""
        self._tokens.append(token)
        return self._take(whole=False)

    def finish(self) -> str:
        """What is left, a cut character included."""
        return self._take(whole=True)

    def _take(self, *, whole: bool) -> str:
        known = self._decode(self._tokens[self._before : self._shown])
        text = self._decode(self._tokens[self._before :])
        if len(self._tokens) - self._shown > MOST_PENDING:
            if len(text) <= len(known):
                del self._tokens[self._shown :]
                return ""
            whole = True
        if len(text) <= len(known) or (text.endswith(REPLACEMENT) and not whole):
            return ""
        self._before, self._shown = self._shown, len(self._tokens)
        return text[len(known) :]


class StopFinder:
    """Ends a text at the first of some strings.

    Args:
        stops: Not empty strings.
        include: Show the string that was found.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = [stop for stop in stops if stop]
        self._include = include
        self._held = ""
        self.found: str | None = None
        """The string that ended the text."""

    def push(self, text: str) -> str:
        """What may be shown of the text so far; nothing more once a string was found."""
        if self.found is not None:
            return ""
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        there = [(place, -len(stop), stop) for place, stop in places if place >= 0]
        if there:
            place, _, self.found = min(there)
            shown = self._held[: place + (len(self.found) if self._include else 0)]
            self._held = ""
            return shown
        keep = max((_begun(self._held, stop) for stop in self._stops), default=0)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        shown, self._held = self._held, ""
        return shown


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` may begin."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
