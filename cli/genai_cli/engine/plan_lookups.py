"""Answers a plan's lookups from a store, until none is open."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from genai_cli.engine.work_folders import writable_store
from genai_core.names import TaskId
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import brought
from genai_core.store.lookup import lookup_all
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_planner.execution.events import (
    FoundResult,
    Look,
    Missed,
)
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.plan import result_of

__all__ = ["look_all"]


def look_all(
    machine: Machine,
    store: Store,
    looks: tuple[Look, ...],
    *,
    on_hit: Callable[[TaskId, Hit], None] = lambda _task, _hit: None,
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None,
    bring: bool = True,
) -> None:
    """Answer lookups, and those that follow from their answers, until none is open.

    Args:
        machine: Gets the answers.
        store: Where to look.
        looks: What to look up.
        on_hit: Called with each hit.
        claim: Called with what is about to be looked up.
        bring: Copy what another store has, since it is going to be used.
    """
    # A directory answers faster than a thread starts; a bucket's answers are round trips.
    threads = 1 if isinstance(writable_store(store), DirectoryStore) else 16
    while looks:
        refs = {look.task: RecordRef(look.operation, look.key) for look in looks}
        claim(refs.values())
        answers = lookup_all(store, refs.values(), threads=threads)
        following: list[Look] = []
        for look in looks:
            if machine.states[look.task] is not TaskState.LOOKING:
                continue
            ref = refs[look.task]
            answer = answers[ref]
            if bring:
                answer = brought(store, ref.operation, ref.key, answer)
            if isinstance(answer, Hit):
                on_hit(look.task, answer)
                following += machine.handle(FoundResult(look.task, result_of(answer.record)))
            else:
                following += machine.handle(Missed(look.task, answer.reason))
        looks = tuple(following)
