"""Grammars that hold an answer to its form: compiled once, followed token by token.

A grammar is compiled in a process of its own first (`compiling_child`), within bounds of time,
memory and depth. What passes there is compiled here for the model's vocabulary, and kept for the
next request that asks for the same. A mask of a step costs some microseconds; a step that would
cost more than its bound ends its own answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_runtime.fork_processes import ForkedProcesses
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.structure.answer_forms import LARGEST, Form, limits

__all__ = ["Follower", "Grammar", "Grammars"]

_KEPT = 32
_CPU_SECONDS = 1
_SECONDS = 20
"""Of the clock; the limit of CPU time comes first on a machine at rest."""


class Follower:
    """Where one answer stands in its grammar; see `genai_runtime.sampling.Constraint`."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, field: str) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._field = field

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come now, [V].

        Raises:
            BadInput: To tell would take more than a step may.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)

    def consume(self, token: int) -> None:
        """Go on behind a token that was allowed.

        Raises:
            BadInput: It was not.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(_short(self._matcher.get_error()), where=self._field)


class Grammar:
    """A compiled form, for any number of answers."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, field: str) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._field = field

    def begin(self) -> Follower:
        """At the beginning of an answer."""
        return Follower(self._matcher.deep_copy(), self._vocab_size, self._field)


class Grammars:
    """Compiles forms for one model. Callable from any thread; not from an event loop.

    Args:
        tokenizer: The model's; None = it has none.
        vocab_size: V.
        stop_tokens: End tokens: one of them may come where the form is complete.
    """

    def __init__(
        self, tokenizer: TextTokenizer | None, vocab_size: int, stop_tokens: Collection[int]
    ) -> None:
        self._text_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._stop_tokens = sorted(stop_tokens)
        self._processes = ForkedProcesses("genai_serving.structure.compiling_child")
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def known(self, form: Form) -> Grammar | None:
        """A grammar that was compiled before and is kept; None = it is not."""
        with self._lock:
            matcher = self._kept.get(form.grammar)
            if matcher is None:
                return None
            self._kept.move_to_end(form.grammar)
        return Grammar(matcher, self._vocab_size, form.field)

    def compile(self, form: Form) -> Grammar:
        """A grammar of a form.

        Raises:
            BadInput: The form is not valid, is not supported, allows nothing, or takes more than a
                grammar may; or the model's tokenizer is of no kind that can be held to a form.
        """
        known = self.known(form)
        if known is not None:
            return known
        tokenizer = self._vocabulary(form.field)
        self._try(form)
        matcher = LLMatcher(tokenizer, form.grammar, log_level=0, limits=limits())
        follower = Follower(matcher.deep_copy(), self._vocab_size, form.field)
        ends = follower.finished and not matcher.is_accepting()
        if ends or not follower.allowed().any():
            raise BadInput("no text has this form", where=form.field)
        with self._lock:
            self._kept[form.grammar] = matcher
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return Grammar(matcher, self._vocab_size, form.field)

    def _try(self, form: Form) -> None:
        """Compile it where it does no harm."""
        if len(form.grammar) > LARGEST:
            raise BadInput(f"is longer than {LARGEST >> 20} MiB", where=form.field)
        asked = {"grammar": form.grammar, "seconds": _CPU_SECONDS}
        told = self._processes.ask(asked, seconds=_SECONDS)
        if told is None or "ended" in told:
            raise BadInput(
                "takes more time, memory or depth to compile than a form may",
                where=form.field,
                remedy="ask for a simpler one",
            )
        if told["wrong"]:
            raise BadInput(_short(told["wrong"]), where=form.field)

    def _vocabulary(self, field: str) -> LLTokenizer:
        if self._text_tokenizer is None or not self._stop_tokens:
            lacks = "tokenizer" if self._text_tokenizer is None else "end token"
            raise BadInput(f"the model has no {lacks}", where=field)
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = LLTokenizer(
                        self._text_tokenizer.source(),
                        n_vocab=self._vocab_size,
                        eos_token=self._stop_tokens,
                    )
                except Exception as error:
                    raise BadInput(
                        f"answers of this model cannot be held to a form: {_short(str(error))}",
                        where=field,
                    ) from error
            return self._tokenizer


def _short(text: str) -> str:
    return " ".join(text.replace("<non-verbose/>", "").split())[:300]
