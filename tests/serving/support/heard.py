"""A listener of the engine that remembers."""

from __future__ import annotations

import threading

import numpy as np

from genai_serving.requests import AnswerRequest

SECONDS = 20


class Heard:
    """A listener that remembers."""

    def __init__(self, *, enough: int = 0, on_first=None) -> None:
        self.tokens: list[int] = []
        self.logprobs: list = []
        self.prompt: list = []
        self.ended = None
        self.done = threading.Event()
        self.enough = enough
        self.on_first = on_first

    def on_prompt(self, logprobs):
        self.prompt += logprobs

    def on_token(self, token, logprobs):
        if not self.tokens and self.on_first:
            self.on_first()
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        return len(self.tokens) == self.enough

    def on_end(self, ended):
        self.ended = ended
        self.done.set()

    def wait(self):
        assert self.done.wait(SECONDS), "the request never ended"
        return self


def ask(prompt, most=8, **given):
    return AnswerRequest(np.asarray(prompt, np.int64), most, **given)
