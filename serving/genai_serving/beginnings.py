"""What answers of an engine begin with: slots of others, looked for when their first pass is due.

Not thread safe: the engine's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from genai_runtime.executor.executor import Executor
from genai_runtime.prefixes.cache import Match, PrefixCache
from genai_runtime.prefixes.prefix_files import PrefixFiles
from genai_serving.answers import EngineAnswer
from genai_serving.requests import Scope
from genai_serving.scheduler import Step

__all__ = ["Beginnings"]

_CLOSING = 5.0
"""Seconds at the end for what is not on disk yet, and as many for what is being written."""


class Beginnings:
    """See the module's docstring.

    Args:
        executor: Whose slots they are.
        cache: Of its idle slots.
        files: What outlives the server; None = nothing does.
    """

    def __init__(
        self, executor: Executor, cache: PrefixCache, files: PrefixFiles | None = None
    ) -> None:
        self._executor = executor
        self._cache = cache
        self._files = files
        self._sought: set[int] = set()
        """Answers that were looked for on disk."""
        self._found: dict[int, Match] = {}

    def look(self) -> None:
        """A pass is about to be planned: what was found for another one does not count."""
        self._found = {}

    def cached(self, key: int, answers: Mapping[int, EngineAnswer]) -> int:
        """How many tokens of a prompt a slot can begin with; remembered until the next `look`."""
        answer = answers[key]
        request = answer.request
        if request.prompt_logprobs is not None:  # every place's logits are wanted
            return 0
        if answer.slot is not None:  # from disk
            return self._executor.length(answer.slot)
        running = [answer.held(self._executor) for answer in answers.values()]
        match = self._cache.find(
            request.scope, request.prompt, [h for h in running if h], pictures=request.pictures
        )
        if match is not None:
            self._found[key] = match
        return 0 if match is None else match.tokens

    def load(self, step: Step, answers: Mapping[int, EngineAnswer], room: int) -> bool:
        """Bring beginnings from disk that are longer than those in memory.

        To read them takes a small part of what computing them would, and computing them would keep
        the others waiting as well.

        Args:
            step: The pass.
            answers: All, by key.
            room: As in `begin`.

        Returns:
            Whether there are any: the pass is to be planned anew then.
        """
        if self._files is None:
            return False
        loaded = False
        wanted = [match.slot for match in self._found.values()]
        for work in step.work:
            answer = answers[work.key]
            request = answer.request
            asked = answer.slot is not None or request.prompt_logprobs is not None
            if asked or work.key in self._sought:
                continue
            self._sought.add(work.key)
            self._cache.shrink(room, wanted=wanted)
            answer.slot = self._files.load(
                request.scope, request.prompt, beyond=work.start, pictures=request.pictures
            )
            if answer.slot is not None:
                answer.cached = answer.begun(self._executor.length(answer.slot))
                loaded = True
        return loaded

    def begin(self, step: Step, answers: Mapping[int, EngineAnswer], room: int) -> None:
        """A slot for each answer whose first tokens are in a pass.

        Args:
            step: The pass.
            answers: All, by key.
            room: Bytes that idle slots may occupy beside those that run.
        """
        found = self._found
        wanted = [match.slot for match in found.values()]
        self._cache.shrink(room, wanted=wanted)
        for work in step.work:
            answer = answers[work.key]
            if answer.slot is not None:
                continue
            match = found.get(work.key)
            if match is None:
                answer.slot = self._executor.open()
            else:
                wanted.remove(match.slot)
                answer.slot = self._cache.take(match, most_bytes=answer.need, wanted=wanted)
            answer.begun(work.start)
            if answer.request.prompt_logprobs is None:
                answer.cached = work.start
            # At once, and not bucket by bucket with a copy each time.
            self._executor.grow(answer.slot, answer.request.prompt.size)
        self._cache.shrink(room)

    def end(self, key: int, answer: EngineAnswer, *, failed: bool) -> None:
        """An answer has ended: its slot is kept, unless nobody knows what is in it."""
        self._sought.discard(key)
        held = answer.held(self._executor)
        if held is None:
            return
        if failed:
            self._executor.free(held.slot)
            return
        if self._files is not None:
            self._files.save(held)
        if answer.request.pin and answer.tokens:
            self._cache.pin(held)
        else:
            self._cache.keep(held)

    def forget(self, adapter: str) -> None:
        """Let go what was read with an adapter that nobody can wear any more."""
        self._cache.forget(lambda scope: isinstance(scope, Scope) and _wears(scope, [adapter]))

    def close(self) -> None:
        """Let everything go; what was not written yet is written."""
        if self._files is not None:
            end = time.monotonic() + _CLOSING
            for held in self._cache.all_held:  # the disk may have been slower than they came
                self._files.save(held, wait=max(0.0, end - time.monotonic()))
            self._files.close(seconds=_CLOSING)
        self._cache.close()


def _wears(scope: Scope, adapters: Iterable[str]) -> bool:
    return any(use.name in adapters for use in scope.adapters)
