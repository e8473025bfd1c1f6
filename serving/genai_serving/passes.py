"""One pass: what its rows read, and what becomes of what they yield."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Embeddings, Row, RowOutput, Want
from genai_runtime.sampling import logprobs
from genai_runtime.speculation.method import accept
from genai_serving.answers import EngineAnswer
from genai_serving.guesses import Guesses
from genai_serving.observer import Observer
from genai_serving.scheduler import Step, Work

__all__ = ["PassOutcome", "Passes"]


@dataclass
class PassOutcome:
    """What became of a pass.

    Attributes:
        step: What was computed: the scheduler's step with the guesses that were verified in it.
        finished: Answers that are at their end.
        failed: Answers whose row or listener failed, and how; the others go on.
        written: Tokens that each row wrote.
    """

    step: Step
    finished: set[int] = field(default_factory=set)
    failed: dict[int, Exception] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)


class Passes:
    """See the module's docstring. Not thread safe: the engine's thread.

    Args:
        executor: That runs them.
        guesses: Verified in them.
        observer: Hears of tokens.
        clock: Seconds.
        answers: All, by key; the engine's own.
    """

    def __init__(
        self,
        executor: Executor,
        guesses: Guesses,
        observer: Observer,
        clock: Callable[[], float],
        answers: Mapping[int, EngineAnswer],
    ) -> None:
        self._executor = executor
        self._guesses = guesses
        self._observer = observer
        self._clock = clock
        self._answers = answers

    def run(self, step: Step) -> PassOutcome:
        """Propose guesses, compute the rows, and hand on what they yield.

        Raises:
            Exception: Whatever guesses or the executor raise: nothing was handed on then.
        """
        writing = {work.key for work in step.work if self._answers[work.key].tokens}
        step = self._guesses.propose(step, writing)
        ready = self._clock()
        outputs = self._executor.forward([self._row(work) for work in step.work])
        self._guesses.took(step, writing, self._clock() - ready)
        outcome = PassOutcome(step)
        for work, output in zip(step.work, outputs, strict=True):
            try:
                outcome.written[work.key] = self._tell(work, output)
                if self._answers[work.key].done:
                    outcome.finished.add(work.key)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others must go on
                outcome.failed[work.key] = error
        return outcome

    def _row(self, work: Work) -> Row:
        """What an answer's slot reads."""
        answer = self._answers[work.key]
        assert answer.slot is not None
        prompt = answer.request.prompt
        instead: Embeddings | None = None
        if work.start < prompt.size:
            end = work.start + work.count
            tokens = prompt[work.start : end]
            if answer.request.embeddings is not None:
                instead = answer.request.embeddings.between(work.start, end)
        else:
            tokens = np.array(answer.tokens[-1:], dtype=np.int64)
        told = answer.request.prompt_logprobs is not None and work.start < prompt.size
        want = Want.ALL if told else Want.LAST if work.yields else Want.NONE
        row = Row(
            answer.slot,
            tokens,
            want=want,
            adapters=answer.request.adapters,
            states=answer.request.speculation and self._guesses.observes,
            embeddings=instead,
        )
        return self._guesses.row(work, row)

    def _tell(self, work: Work, output: RowOutput) -> int:
        """Hand on what a row yielded; tokens that it wrote."""
        answer = self._answers[work.key]
        request = answer.request
        if work.start < request.prompt.size:
            answer.read(work.start, work.count)
        if request.prompt_logprobs is not None and work.start < request.prompt.size:
            behind = request.prompt[work.start + 1 : work.start + work.count + 1]
            answer.listener.on_prompt(
                [
                    logprobs(row, int(token), request.prompt_logprobs)
                    for row, token in zip(output.logits, behind, strict=False)
                ]
            )
        if output.states is not None and not answer.tokens:
            answer.states.append((work.start, output.states))
        if not work.yields:
            return 0
        logits = output.logits[-1 - work.guesses :]
        guesses = self._guesses.of(work).tokens
        written = accept(logits, guesses, lambda row, guess: self._take(answer, row, guess))
        if work.guesses:
            assert answer.slot is not None
            self._executor.truncate(answer.slot, work.start + len(written))
        if not answer.done:
            if request.speculation and len(answer.tokens) == 1:
                self._guesses.start(
                    work.key, request.prompt, answer.sampler.foreseen, request.cache_salt
                )
                for start, states in answer.states:
                    self._guesses.observe(work.key, start, states)
                answer.states.clear()
            elif output.states is not None:
                self._guesses.observe(work.key, work.start, output.states[: len(written)])
            self._guesses.extend(work, written, logits)
        self._guesses.wrote(len(written))
        return len(written)

    def _take(
        self, answer: EngineAnswer, logits: NDArray[np.float32], guess: int | None
    ) -> tuple[int, bool]:
        """The next token of an answer, told; and whether the answer is at its end."""
        request = answer.request
        early = len(answer.tokens) < request.min_tokens
        banned = request.stop_tokens if early else ()
        token = answer.sampler.next(logits, banned=banned, guess=guess)
        answer.tokens.append(token)
        now, before = self._clock(), answer.last
        answer.first = now if answer.first is None else answer.first
        answer.last = now
        if not request.pin:
            self._observer.on_token(None if before is None else now - before)
        told = None if request.logprobs is None else logprobs(logits, token, request.logprobs)
        enough = answer.listener.on_token(token, told)
        answer.done = enough or token in request.stop_tokens or answer.sampler.finished
        return token, answer.done
