"""Runs a chain of tasks in one process, so that imports and outputs are there for the next one.

Each task is looked up, run and committed by itself, so a kill at any moment is harmless: the next
worker begins with the first task that has no record. Between two tasks memory is returned to the
system, so a chain needs as much as its largest task.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from genai_core.store.protocol import Store
from genai_core.tasks.chain import ChainFile, is_wanted, task_file
from genai_core.tasks.record import Record
from genai_core.tasks.task_file import TaskResult
from genai_stages.worker import runner

__all__ = ["run_chain"]

log = logging.getLogger("genai_stages.worker.chain")

_PEAK = Path("/proc/self/clear_refs")


def run_chain(
    chain: ChainFile, store: Store, scratch: Path, *, begin: Callable[[int, str], None]
) -> TaskResult:
    """Run the tasks of a chain until one fails or is not wanted.

    Args:
        chain: What to do.
        store: Where inputs come from and outputs go to.
        scratch: A private folder, empty.
        begin: Called with number and id of each task before it begins.

    Returns:
        The last task's result, with the seconds and the peak of all.

    Raises:
        GenAIError: Why a task could not be done; those before it are committed.
    """
    at_hand: dict[str, Path] = {}
    records: list[Record] = []
    results: list[TaskResult] = []
    for number in range(1 + len(chain.then)):
        if number and not is_wanted(chain.then[number - 1], records):
            break
        task = task_file(chain.then[number - 1], chain, records) if number else chain.first
        begin(number, task.id)
        folder = scratch / str(number)
        folder.mkdir()
        result, record = runner.run_recorded(task, store, folder, at_hand=at_hand)
        log.info("%s: %s in %.1f s", task.id, result.outcome, result.seconds)
        records.append(record)
        results.append(result)
        _keep_only(_wanted_later(chain, number, records), at_hand, scratch)
        _give_back()
    return results[-1].model_copy(
        update={
            "outcome": "run" if any(r.outcome == "run" for r in results) else "cached",
            "seconds": sum(result.seconds for result in results),
            "peak_memory_bytes": max(result.peak_memory_bytes for result in results),
        }
    )


def _wanted_later(chain: ChainFile, done: int, records: Iterable[Record]) -> set[str]:
    """Digests that the tasks behind `done` may read."""
    made = [record.outputs.values() for record in records]
    found: set[str] = set()
    for step in chain.then[done:]:
        found |= {file.sha256 for files in step.inputs.values() for file in files.values()}
        earlier = {part.step for parts in step.made.values() for part in parts}
        found |= {out.sha256 for number in earlier if number <= done for out in made[number]}
    return found


def _keep_only(wanted: set[str], at_hand: dict[str, Path], scratch: Path) -> None:
    """Free the disk of what no later task reads."""
    for digest in at_hand.keys() - wanted:
        del at_hand[digest]
    kept = set(at_hand.values())
    for path in scratch.rglob("*"):
        if path.is_file() and path not in kept:
            with suppress(OSError):
                path.unlink()


def _give_back() -> None:
    """Return free memory to the system, and reset the peak for the next task."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            _PEAK.write_text("5", encoding="ascii")
