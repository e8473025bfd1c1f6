"""`genai logs`: what tasks said, from their pods while there are any, else from the store.

A failed task's log lies in the store as a blob, a finished one's with its record; a running one's
is its pod's.
"""

from __future__ import annotations

import fnmatch
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TypeVar

from genai_cli.cluster.api_errors import ClusterUnavailable, NotThere
from genai_cli.cluster.build_views import ClusterBuild, ClusterTask, FailureView
from genai_cli.cluster.builds import read_build, read_object
from genai_cli.cluster.connection import Access, Cluster, connect
from genai_cli.cluster.stores import StoreOptions, blob_of, opened_stores
from genai_cli.cluster.tasks import build_records
from genai_cli.display.words import duration, size
from genai_core.errors import GenAIError
from genai_core.kinds.documents.problems import nearest
from genai_core.names import Digest, Key
from genai_core.redaction import plain
from genai_core.store.blobs import Blobs
from genai_core.store.protocol import Store
from genai_core.tasks.record import Blob, Record

__all__ = ["show_logs"]

_COLORS = ("36", "33", "35", "32", "34", "96", "93", "95")
_EVERY = 1.0
_UNANSWERED = 120.0
_T = TypeVar("_T")


def show_logs(
    access: Access, *, name: str, task: str | None, follow: bool, options: StoreOptions
) -> int:
    """Print logs; returns the exit code.

    Raises:
        NotThere: No such build or task, or no log of it any more.
    """
    cluster = connect(access)
    view = read_build(cluster, name, cluster.namespace)
    if follow and not view.settled:
        try:
            _follow(cluster, view, task)
        except KeyboardInterrupt:
            return 0
        return 0
    return _Reader(cluster, view, options).show(task)


class _Reader:
    """The logs that are there now."""

    def __init__(self, cluster: Cluster, view: ClusterBuild, options: StoreOptions) -> None:
        self._cluster = cluster
        self._view = view
        self._options = options

    def show(self, task: str | None) -> int:
        """Print one task's log; without a name those of all that run, else of all that failed."""
        view = self._view
        if task is not None:
            self._print(task)
            return 0
        names = [t.id for t in view.running if t.state == "running"]  # a chain by its first
        names = names or [failure.task for failure in view.failures]
        if not names:
            return self._choose()
        for name in dict.fromkeys(names):
            if len(names) > 1:
                _write(f"==> {name} <==\n")
            self._print(name)
        return 0

    def _choose(self) -> int:
        """Nothing runs and nothing failed: whose log is wanted?"""
        view = self._view
        with self._store() as store:
            value = read_object(self._cluster, view.name, view.namespace)
            known = build_records(self._cluster, value, store)
        _write(f"nothing of {view.name} runs and nothing failed; name one of its tasks:\n")
        for name, record in known.items():
            if record is not None:
                _write(f"  {name:<32}  {_cost(record)}\n")
        return 0

    def _print(self, wanted: str) -> None:
        jobs = _with_task(wanted, self._view.tasks)
        failures = _matching(wanted, self._view.failures, lambda failure: failure.task)
        job = max(jobs, key=lambda task: task.since, default=None)
        if job is not None and job.pod and self._of_pod(job):
            return
        if failures and self._of_failure(failures[0]):
            return
        with self._store() as store:
            if job is not None and job.said.get("log") and _of_blob(store, str(job.said["log"])):
                return
            if job is not None and job.id == wanted and self._of_job(store, job):
                return
            value = read_object(self._cluster, self._view.name, self._view.namespace)
            known = build_records(self._cluster, value, store)
            names = _matching(wanted, list(known), str)
            record = next((known[name] for name in names if known[name] is not None), None)
            if record is not None:
                _of_record(store, record)
                return
        self._refuse(wanted, names, list(known), job)

    def _refuse(
        self, wanted: str, names: Sequence[str], known: Sequence[str], job: ClusterTask | None
    ) -> None:
        where = f"{self._view.namespace}/{self._view.name}"
        if not names and job is None:
            near = nearest(wanted, known)
            raise NotThere(
                f"it has no task {wanted}",
                where=where,
                remedy=f"did you mean {near}?" if near else f"see genai logs {self._view.name}",
            )
        begun = job is not None and not job.active
        raise NotThere(
            f"there is no log of {wanted}: {'it left none' if begun else 'it has not begun'}",
            where=where,
            remedy=f"see genai status {self._view.name} -n {self._view.namespace}",
        )

    def _of_pod(self, task: ClusterTask) -> bool:
        """Print a pod's log; False where it has none (any more)."""
        try:
            for line in self._cluster.log(task.pod, namespace=task.namespace):
                _write(f"{plain(line)}\n")
        except GenAIError:
            return False
        return task.state != "waiting"

    def _of_failure(self, failure: FailureView) -> bool:
        if not failure.log:
            return False
        with self._store(failure.log) as store:
            return _of_blob(store, blob_of(failure.log))

    def _of_job(self, store: Store, task: ClusterTask) -> bool:
        stored = store.get_record(task.operation, Key(task.key))
        if stored is None:
            return False
        _of_record(store, stored.record)
        return True

    def _store(self, near: str = "") -> AbstractContextManager[Store]:
        return opened_stores(
            self._cluster,
            self._view.namespace,
            self._view.store,
            options=self._options,
            near=near or next((str(item.url) for item in self._view.artifacts), ""),
        )


def _matching(wanted: str, items: Iterable[_T], name: Callable[[_T], str]) -> list[_T]:
    """Those of that name; else those that the pattern or the beginning of a name fits."""
    items = list(items)
    exact = [item for item in items if name(item) == wanted]
    return exact or [
        item
        for item in items
        if fnmatch.fnmatchcase(name(item), wanted) or name(item).startswith(f"{wanted}/")
    ]


def _with_task(wanted: str, jobs: Iterable[ClusterTask]) -> list[ClusterTask]:
    """Jobs that have such a task among theirs."""
    jobs = list(jobs)
    names = set(_matching(wanted, [name for job in jobs for name in job.ids], str))
    return [job for job in jobs if names.intersection(job.ids)]


def _of_blob(store: Blobs, digest: str) -> bool:
    found = store.head_blob(Digest(digest))
    if found is None:
        return False
    text = store.read_blob(Blob(sha256=found.sha256, size=found.size)).decode(errors="replace")
    _write(plain(text))
    return True


def _of_record(store: Blobs, record: Record) -> None:
    """Print a finished task's log, and what it cost where it had nothing to say."""
    kept = record.measurements.log
    if kept is not None:
        _write(plain(store.read_blob(kept).decode(errors="replace")))
        return
    _write(f"it said nothing: {_cost(record)}\n")
    for warning in record.measurements.warnings:
        _write(f"warning: {plain(warning)}\n")


def _cost(record: Record) -> str:
    spent = record.measurements
    made = record.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    memory = f", {size(spent.peak_memory_bytes)}" if spent.peak_memory_bytes else ""
    return f"ended {made}, took {duration(spent.seconds)}{memory}, key {record.key[:12]}"


def _follow(cluster: Cluster, view: ClusterBuild, task: str | None) -> None:
    """Print the lines of every pod as they come, until the build rests."""
    lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    readers: dict[str, threading.Thread] = {}
    prefixed = task is None
    ended = {one.pod for one in view.tasks if not one.active}  # before anybody asked
    seen = time.monotonic()
    while True:
        for one in view.tasks:
            wanted = task is None or bool(_with_task(task, [one]))
            if wanted and one.state != "waiting" and one.pod and one.pod not in {*readers, *ended}:
                readers[one.pod] = _reader(cluster, one, lines)
        until = time.monotonic() + _EVERY
        while (left := until - time.monotonic()) > 0:
            try:
                name, line = lines.get(timeout=left)
            except queue.Empty:
                break
            _write(f"{_prefix(name) if prefixed else ''}{plain(line)}\n")
        if view.settled and not any(reader.is_alive() for reader in readers.values()):
            if lines.empty():
                return
            continue
        try:
            view = read_build(cluster, view.name, view.namespace)
            seen = time.monotonic()
        except ClusterUnavailable:  # a restart of an apiserver is no reason to give up
            if time.monotonic() - seen > _UNANSWERED:
                raise


def _reader(
    cluster: Cluster, task: ClusterTask, lines: queue.SimpleQueue[tuple[str, str]]
) -> threading.Thread:
    def read() -> None:
        since: datetime | None = None
        began = time.monotonic()
        while True:
            try:
                opened = cluster.log(task.pod, namespace=task.namespace, follow=True, since=since)
                for line in opened:
                    lines.put((task.label, line))
                    since, began = datetime.now(UTC), time.monotonic()
            except ClusterUnavailable as error:
                if time.monotonic() - began > _UNANSWERED:
                    lines.put((task.label, f"(its log broke off: {error.message})"))
                    return
                time.sleep(_EVERY)  # and from the second on in which its last line came
            except GenAIError as error:
                lines.put((task.label, f"(its log broke off: {error.message})"))
                return
            else:
                return

    thread = threading.Thread(target=read, daemon=True, name=f"log of {task.id}")
    thread.start()
    return thread


def _prefix(task: str) -> str:
    if not sys.stdout.isatty():
        return f"[{task}] "
    color = _COLORS[zlib.crc32(task.encode()) % len(_COLORS)]  # the same task, the same color
    return f"\x1b[{color}m[{task}]\x1b[0m "


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
