"""The loop that owns the slots: one thread, one pass after another over whatever waits.

Requests come in from any thread (`submit`, `cancel`), answers go out through listeners. Prompts and
answers of all sequences share passes (continuous batching); what a pass does, the scheduler says.
A pass that fails ends the requests in it and no others.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace

from genai_core.errors import GenAIError
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.row_checks import checked_tokens
from genai_runtime.prefixes.cache import PrefixCache
from genai_runtime.prefixes.prefix_files import PrefixFiles
from genai_runtime.sampling import Sampler
from genai_runtime.speculation.control import Counts, Gain, Room, Speculation
from genai_serving.adapters.cache import AdapterCache, AdapterLoader
from genai_serving.adapters.loaded import LoadedAdapters
from genai_serving.answers import EngineAnswer
from genai_serving.beginnings import Beginnings
from genai_serving.guesses import Guesses
from genai_serving.observer import Load, NoObserver, Observer
from genai_serving.passes import Passes
from genai_serving.requests import AnswerRequest, Closed, Ended, Finish, Listener, Times
from genai_serving.scheduler import Scheduler, Sequence, ServingLimits, Step

_LOG = logging.getLogger("genai_serving")
_TICK = 0.1
"""Seconds after which deadlines are looked at where nothing is computed."""


class Engine:
    """See the module's docstring.

    Args:
        executor: Its slots are the engine's alone; closed with it.
        limits: What it gives out.
        observer: Who counts.
        clock: Seconds.
        speculation: Guesses tokens of answers; its own.
        adapters: What is kept of adapters that come and go; None = all, without a bound.
        pinned: Those that `adapters` has from the start.
        adapter_seconds: That a request may wait until its adapters find room in a pass.
        prefix_files: Beginnings of prompts on disk; its own.
        exact: Numbers of a lone token are those that it has among others. Else what answers have
            written is of no use for other prompts.
    """

    def __init__(
        self,
        executor: Executor,
        limits: ServingLimits,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        speculation: Speculation | None = None,
        adapters: AdapterCache | None = None,
        pinned: Iterable[str] = (),
        adapter_seconds: float = 60.0,
        prefix_files: PrefixFiles | None = None,
        exact: bool = True,
    ) -> None:
        self._executor = executor
        self._scheduler = Scheduler(limits)
        self._prefixes = PrefixCache(executor, limits.prefix_bytes)
        self._beginnings = Beginnings(executor, self._prefixes, prefix_files)
        self._guesses = Guesses(speculation)
        self._observer: Observer = observer or NoObserver()
        self._clock = clock
        self._keys = itertools.count()
        self._answers: dict[int, EngineAnswer] = {}
        self._passes = Passes(executor, self._guesses, self._observer, clock, self._answers)
        self._wake = threading.Condition()
        cache = AdapterCache() if adapters is None else adapters
        self._adapters = LoadedAdapters(
            executor, cache, self._wake, self._laid_in, pinned=tuple(pinned)
        )
        self._exact = exact
        self._adapter_seconds = adapter_seconds
        self._failed: dict[int, GenAIError] = {}
        self._stirred = False
        self._cancelled: set[int] = set()
        self._closing = False
        self._draining = True
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    @property
    def accepting(self) -> bool:
        """Whether new requests are taken."""
        return self.alive and not self._closing

    @property
    def load(self) -> Load:
        """What it holds now."""
        with self._wake:
            scheduler = self._scheduler
            share = scheduler.reserved_bytes / scheduler.limits.cache_bytes
            waiting = len(scheduler.waiting) + len(self._adapters.waiting)
            return Load(len(scheduler.running), waiting, share)

    @property
    def guessed(self) -> Counts | None:
        """What came of guesses so far; None where nothing is guessed."""
        return self._guesses.counts

    def submit(self, request: AnswerRequest, listener: Listener) -> int:
        """Queue a request; its key. Callable from any thread.

        Raises:
            BadInput: The prompt is empty, outside the vocabulary or too long for the context, an
                adapter is not loaded, or the request needs more memory or ranks than there are.
            QueueFull: Too many wait.
            Closed: The engine is shutting down.
        """
        prompt = checked_tokens(request.prompt, self._executor, 0)
        # The last token of an answer needs no place: it is told and never read.
        most = min(request.max_tokens, self._executor.context_length - prompt.size + 1)
        request = replace(request, prompt=prompt, max_tokens=most)
        sampler = Sampler(
            request.sampling,
            vocab_size=self._executor.vocab_size,
            prompt=request.prompt,
            constraint=None if request.constraint is None else request.constraint(),
            typical=self._guesses.typical if request.speculation else None,
        )
        with self._wake:
            if self._closing or not self.alive:
                raise Closed("the server is shutting down", remedy="ask another one")
            self._adapters.check(request.adapters)
            key = next(self._keys)
            need = self._executor.cache_bytes(self._places(request))
            beside = self._guesses.cache_bytes(prompt.size + most) if request.speculation else 0
            sequence = Sequence(key, prompt.size, most, need + beside, request.deadline)
            self._scheduler.check(sequence, beside=len(self._adapters.waiting))
            now = self._clock()
            self._answers[key] = EngineAnswer(
                request, listener, sampler, now, need, sequence, steady=None if self._exact else 0
            )
            if self._adapters.ready(request.adapters):
                self._scheduler.come(sequence)
            else:
                self._adapters.wait(key, request.adapters, now)
                self._stirred = True
            self._wake.notify()
        return key

    def _places(self, request: AnswerRequest) -> int:
        """Of its slot: prompt, answer less its last token, and what guesses take beside them."""
        beside = self._guesses.places if request.speculation else 0
        return min(
            request.prompt.size + request.max_tokens - 1 + beside, self._executor.context_length
        )

    def cancel(self, key: int) -> None:
        """End a request soon; nothing where it has ended. Callable from any thread."""
        with self._wake:
            if key in self._answers:
                self._cancelled.add(key)
                self._wake.notify()

    def load_adapter(self, name: str, source: AdapterLoader) -> Future[None]:
        """Take an adapter in: it is read at once, beside the loop. Callable from any thread.

        Raises:
            Closed: The engine is shutting down.
            BadInput: It does not fit, or would never find room.
        """
        with self._wake:
            if self._closing or not self.alive:
                raise Closed("the server is shutting down", remedy="ask another one")
            return self._adapters.add(name, source)

    @property
    def adapter_states(self) -> dict[str, str]:
        """Where each adapter is that a request may wear; see `adapters.loaded`."""
        with self._wake:
            return self._adapters.states()

    def retire_adapter(self, name: str) -> None:
        """New requests may not wear it; it goes when none does. Callable from any thread."""
        with self._wake:
            self._adapters.retire(name)
            self._stirred = True
            self._wake.notify()

    @property
    def gain(self) -> Gain | None:
        """What guesses have won so far; None where nothing is guessed."""
        return self._guesses.gain

    @property
    def worn(self) -> tuple[frozenset[str], frozenset[str]]:
        """Adapters that running and that waiting requests wear."""
        with self._wake:
            waiting = (*self._scheduler.waiting, *self._adapters.waiting)
            kinds = (self._scheduler.running, waiting)
            return tuple(self._worn(keys) for keys in kinds)  # type: ignore[return-value]

    def close(self, *, seconds: float = 0.0) -> bool:
        """Take nothing new, finish what is there, end the loop and close the executor.

        Args:
            seconds: What is not finished by then is cancelled.

        Returns:
            Whether everything was finished.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(seconds)
        finished = not self._thread.is_alive()
        with self._wake:
            self._draining = False
            self._wake.notify()
        self._thread.join()
        return finished

    def _loop(self) -> None:
        try:
            while self._next():
                pass
        finally:
            with self._wake:
                self._closing = True
                left = list(self._answers)
            for key in left:
                self._end(key, Finish.CANCELLED)
            self._adapters.close()
            self._beginnings.close()
            self._guesses.close()
            self._executor.close()

    def _next(self) -> bool:
        """Wait for something to do and do it; False when the engine is to end."""
        with self._wake:
            while True:
                if self._closing and not (self._answers and self._draining):
                    return False
                scheduled = self._scheduler.running or self._scheduler.waiting
                if scheduled or self._stirred or self._cancelled:
                    break
                if not self._wake.wait(_TICK if self._adapters.waiting else None):
                    break
            cancelled, self._cancelled = self._cancelled, set()
            overdue = self._overdue()
        self._change_adapters()
        with self._wake:
            failed, self._failed = self._failed, {}
        for key, error in failed.items():
            self._end(key, Finish.ERROR, error)
        for key in cancelled:
            self._end(key, Finish.CANCELLED)
        for key in overdue:
            self._end(key, Finish.DEADLINE)
        wanted = self._guesses.wanted(self._rooms())
        while True:
            self._beginnings.look()
            with self._wake:
                step = self._scheduler.schedule(self._cached, wanted)
            if not self._beginnings.load(step, self._answers, self._room(step)):
                break
        if step.work:
            self._run(step)
        return True

    def _worn(self, keys: Iterable[int]) -> frozenset[str]:
        """Adapters of some requests; under the lock."""
        return frozenset(
            use.name
            for key in keys
            if key in self._answers
            for use in self._answers[key].request.adapters
        )

    def _overdue(self) -> tuple[int, ...]:
        """Who is past the deadline; who has waited too long for an adapter fails."""
        now, scheduler = self._clock(), self._scheduler
        worn = self._worn((*scheduler.running, *scheduler.waiting))
        self._failed |= self._adapters.overdue(now, self._adapter_seconds, worn)
        waiting = [(key, self._answers[key].request.deadline) for key in self._adapters.waiting]
        late = (key for key, deadline in waiting if deadline is not None and deadline <= now)
        return (*scheduler.overdue(now), *late)

    def _change_adapters(self) -> None:
        """Let adapters go, give columns to others, begin what waited for them: between passes."""
        with self._wake:
            self._stirred = False
            for name in self._adapters.leaving(self._worn(self._answers)):
                self._beginnings.forget(name)
                self._adapters.let_go(name)
            worn = self._worn((*self._scheduler.running, *self._scheduler.waiting))
            for key in self._adapters.admit(worn):
                self._scheduler.come(self._answers[key].sequence)

    def _laid_in(self, failed: dict[int, GenAIError]) -> None:
        """Told by the thread that lays adapters in, under the lock."""
        self._failed |= failed
        self._stirred = True
        self._wake.notify()

    def _rooms(self) -> dict[int, Room]:
        """What each answer that is being written has left."""
        with self._wake:
            writing = [(key, answer) for key, answer in self._answers.items() if answer.tokens]
        return {
            key: Room(
                answer=answer.request.max_tokens - len(answer.tokens) - 1,
                slot=self._places(answer.request) - self._executor.length(answer.slot) - 1,
            )
            for key, answer in writing
            if answer.slot is not None
        }

    def _cached(self, key: int) -> int:
        """How many tokens of a prompt a slot can begin with."""
        return self._beginnings.cached(key, self._answers)

    def _room(self, step: Step) -> int:
        """Bytes of the cache that neither those that run nor those that are admitted may take."""
        with self._wake:
            admitted = sum(self._answers[key].sequence.cache_bytes for key in step.admitted)
            return self._scheduler.limits.cache_bytes - self._scheduler.reserved_bytes - admitted

    def _run(self, step: Step) -> None:
        began = self._clock()
        for key in step.admitted:
            self._answers[key].admitted = began
        try:
            self._beginnings.begin(step, self._answers, self._room(step))
            outcome = self._passes.run(step)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others must go on
            for key in {*step.admitted, *(work.key for work in step.work)}:
                self._end(key, Finish.ERROR, _known(error))
            return
        computed = outcome.step.work
        tokens = sum(work.count for work in computed)
        self._observer.on_pass(rows=len(computed), tokens=tokens, seconds=self._clock() - began)
        with self._wake:
            ended = self._scheduler.update(
                outcome.step, finished=outcome.finished, written=outcome.written
            )
        for key, raised in outcome.failed.items():
            self._end(key, Finish.ERROR, _known(raised))
        for key in ended:
            self._end(key, Finish.STOP if key in outcome.finished else Finish.LENGTH)

    def _end(self, key: int, reason: Finish, error: GenAIError | None = None) -> None:
        with self._wake:
            answer = self._answers.pop(key, None)
            self._scheduler.cancel(key)
            self._adapters.cancel(key)
            self._stirred = True  # what it wore may go
            self._cancelled.discard(key)
        if answer is None:
            return
        guessed = self._guesses.finish(key)
        if answer.request.pin and error is None and not answer.request.adapters:
            self._guesses.pin(answer.request.prompt)  # who guesses wears none
        self._beginnings.end(key, answer, failed=error is not None)
        times = Times(answer.arrived, answer.admitted, answer.first, self._clock())
        prompt, tokens = answer.request.prompt.size, len(answer.tokens)
        ended = Ended(reason, prompt, tokens, times, error, answer.cached, guessed)
        if not answer.request.pin:
            self._observer.on_end(answer.request, ended)
        try:
            answer.listener.on_end(ended)
        except Exception:  # noqa: BLE001 - the others must go on
            _LOG.exception("an answer's end was not heard")


def _known(error: Exception) -> GenAIError:
    if isinstance(error, GenAIError):
        return error
    return GenAIError(f"a pass failed: {type(error).__name__}: {error}"[:500])


__all__ = ["Engine", "ServingLimits"]
