"""The adapters that an engine's requests may wear, and which of them have columns of a pass.

Three places: at rest in a file, in memory (`cache`), laid into columns. A request that wears what
has no columns waits here, before it waits for a slot. Columns are given in order of arrival, those
of adapters that no request wears are taken for them; reading and laying in is done by a thread of
its own while passes go on. Whoever waits for columns is passed by nobody who wears an adapter.

Methods are called under the engine's lock, unless they say otherwise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from genai_core.errors import BadInput, GenAIError
from genai_runtime.executor.adapter_weights import NoRoom
from genai_runtime.executor.executor import AdapterHost, Executor
from genai_runtime.executor.rows import AdapterUse
from genai_serving.adapters.cache import AdapterCache, AdapterLoader

__all__ = [
    "AT_REST",
    "COMING",
    "IN_MEMORY",
    "LAID_IN",
    "LoadedAdapters",
    "NoColumns",
    "NotLoaded",
    "Unreadable",
]

AT_REST, IN_MEMORY, COMING, LAID_IN = "at rest", "in memory", "coming", "laid in"
"""Where an adapter is: read before use, laid in before use, on its way, ready."""

ORDER = (AT_REST, IN_MEMORY, COMING, LAID_IN)


_LOG = logging.getLogger("genai_serving")


class NotLoaded(BadInput):
    """A request wears what is not there, or not any more."""

    code = "NotLoaded"


class NoColumns(GenAIError):
    """A request has waited for columns as long as one may."""

    code = "NoColumns"


class Unreadable(GenAIError):
    """An adapter that was read before cannot be read again, or has other bytes."""

    code = "AdapterUnreadable"


@dataclass(frozen=True)
class _Waiting:
    """A request that waits for its adapters."""

    key: int
    names: tuple[str, ...]
    since: float


class LoadedAdapters:
    """See the module's docstring.

    A name means one content for ever: what comes later under the name that clients know has
    another name here.

    Args:
        executor: The engine's. Adapters that it has already stay until they are retired.
        cache: Of what comes later.
        lock: The engine's.
        changed: Called under the lock when the thread has laid something in, or has not: requests
            that fail with it, and why.
        pinned: Adapters that the cache has from the start.
    """

    def __init__(
        self,
        executor: Executor,
        cache: AdapterCache,
        lock: threading.Condition,
        changed: Callable[[dict[int, GenAIError]], None],
        pinned: Sequence[str] = (),
    ) -> None:
        self._host = executor if isinstance(executor, AdapterHost) else None
        self._cache = cache
        self._lock = lock
        self._changed = changed
        self._known = {*executor.adapters, *pinned}
        self._sourced = set(pinned)
        self._retiring: set[str] = set()
        self._laid: dict[str, tuple[str, ...]] = {name: (name,) for name in executor.adapters}
        """Adapter -> those that were laid in with it, in order; the longest unused first."""
        self._coming: set[str] = set()
        self._waiting: list[_Waiting] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    def check(self, uses: Sequence[AdapterUse]) -> None:
        """Whether a new request may wear them.

        Raises:
            NotLoaded: One is not there, or on its way out.
            NoRoom: A pass does not hold all of them.
        """
        for use in uses:
            if use.name not in self._known:  # it would fail a pass, with all in it
                raise NotLoaded("is not loaded", where=f"adapter {_public(use.name)}")
        names = _names(uses)
        if self._host is None or not self._sourced.issuperset(names):
            return
        columns, ranks = self._host.adapter_columns[0], sum(map(self._rank, names))
        if ranks > columns:
            raise NoRoom(
                f"{' and '.join(map(_public, names))} have rank {ranks} together, and a pass "
                f"holds {columns}",
                where="model",
                remedy="start the server with a larger --max-adapter-rank",
            )

    def ready(self, uses: Sequence[AdapterUse]) -> bool:
        """Whether a new request can be scheduled at once."""
        names = _names(uses)
        if not names:
            return True
        if self._waiting or not self._together(names):
            return False
        self._touch(names)
        return True

    def wait(self, key: int, uses: Sequence[AdapterUse], now: float) -> None:
        """Have a request wait until its adapters are laid in."""
        self._waiting.append(_Waiting(key, _names(uses), now))

    @property
    def waiting(self) -> tuple[int, ...]:
        """Requests that wait here."""
        return tuple(request.key for request in self._waiting)

    def cancel(self, key: int) -> None:
        """A request ends; nothing where it does not wait here."""
        self._waiting = [request for request in self._waiting if request.key != key]

    def admit(self, worn: Collection[str]) -> list[int]:
        """Requests whose adapters are there now, in order; columns are given to the next ones.

        Args:
            worn: By requests that are scheduled.
        """
        admitted: list[int] = []
        worn = set(worn)
        left: list[_Waiting] = []
        blocked = False
        for request in self._waiting:
            if not blocked and self._together(request.names):
                self._touch(request.names)
                admitted.append(request.key)
                worn |= set(request.names)
                continue
            left.append(request)
            if blocked or self._coming & set(request.names):
                continue
            blocked = not self._give_columns(request.names, worn)
        self._waiting = left
        return admitted

    def overdue(self, now: float, seconds: float, worn: Collection[str]) -> dict[int, GenAIError]:
        """Requests that have waited longer than one may, and what to tell them."""
        assert self._host is not None or not self._waiting
        refusals: dict[int, GenAIError] = {}
        for request in self._waiting:
            if now - request.since < seconds or self._host is None:
                continue
            columns, free = self._host.adapter_columns
            refusals[request.key] = NoColumns(
                f"adapter {' and '.join(map(_public, request.names))} of rank "
                f"{sum(map(self._rank, request.names))} found no room in {seconds:g} s: {free} of "
                f"{columns} columns are free, and running requests wear "
                f"{', '.join(sorted({_public(name) for name in worn})) or 'none'}",
                remedy="try again later, or start the server with a larger --max-adapter-rank",
            )
        return refusals

    def add(self, name: str, source: AdapterLoader) -> Future[None]:
        """Take one in: it is read and compared once before requests may wear it.

        Raises:
            NoRoom: Columns or memory would never hold it.
            BadInput: It does not fit the model.
        """
        if self._host is None:
            raise BadInput("no adapters come to this container at run time")
        self._host.check_adapter(_public(name), source.shape)
        self._cache.add(name, source)
        future: Future[None] = Future()

        def read() -> None:
            try:
                self._cache.weights(name)
            except BaseException as error:  # noqa: BLE001 - whoever asked for it is told
                self._cache.forget(name)
                future.set_exception(error)
            else:
                with self._lock:
                    self._known.add(name)
                    self._sourced.add(name)
                future.set_result(None)

        self._pool.submit(read).add_done_callback(lambda done: _give_up(done, future))
        return future

    def retire(self, name: str) -> None:
        """Let no new request wear it, and let it go when none does."""
        if name in self._known:
            self._known.remove(name)
            self._retiring.add(name)

    def leaving(self, worn: Collection[str]) -> list[str]:
        """Those that nobody wears and that may go now; `let_go` follows."""
        return sorted(self._retiring - set(worn) - self._coming)

    def let_go(self, name: str) -> None:
        """One that nobody wears leaves."""
        if self._laid.pop(name, None) is not None:
            assert self._host is not None
            self._host.unload_adapter(name)
        self._cache.forget(name)
        self._sourced.discard(name)
        self._retiring.discard(name)

    def states(self) -> dict[str, str]:
        """Where each is."""
        held = self._cache.held
        states = {name: IN_MEMORY if name in held else AT_REST for name in self._known}
        states |= dict.fromkeys(self._coming & self._known, COMING)
        return states | dict.fromkeys(self._laid.keys() & self._known, LAID_IN)

    def close(self) -> None:
        """End the thread; without the lock."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _rank(self, name: str) -> int:
        return self._cache.source(name).shape.rank if name in self._sourced else 0

    def _together(self, names: tuple[str, ...]) -> bool:
        """Whether all are laid in, several of them as one laying: sums have one order then."""
        if len(names) == 1 or not self._sourced.issuperset(names):
            return all(name in self._laid for name in names)
        return all(self._laid.get(name) == names for name in names)

    def _touch(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._laid[name] = self._laid.pop(name)

    def _give_columns(self, names: tuple[str, ...], worn: set[str]) -> bool:
        """Reserve columns and have them filled; False where too many are worn."""
        assert self._host is not None
        if not self._sourced.issuperset(names):
            names = tuple(name for name in names if name not in self._laid)
        again = [name for name in names if name in self._laid]
        if worn & set(again):  # laid in otherwise, and worn so
            return False
        idle = [n for n in self._laid if n not in worn and n not in names and n in self._sourced]
        for name in again:
            self._take_columns(name)
        ranks = {name: self._rank(name) for name in names}
        while True:
            try:
                self._host.reserve_adapters(ranks)
            except NoRoom:
                if not idle:
                    return False
                self._take_columns(idle.pop(0))
            else:
                break
        self._coming |= set(names)
        self._pool.submit(self._fill, names)
        return True

    def _take_columns(self, name: str) -> None:
        assert self._host is not None
        self._host.unload_adapter(name)
        del self._laid[name]

    def _fill(self, names: tuple[str, ...]) -> None:
        """In the thread."""
        assert self._host is not None
        failed: GenAIError | None = None
        for name in names:
            try:
                self._host.fill_adapter(name, self._cache.weights(name))
            except Exception as error:  # noqa: BLE001 - requests must not wait for ever
                _LOG.exception("adapter %s was not laid in", name)
                why = error.code if isinstance(error, GenAIError) else type(error).__name__
                failed = Unreadable(
                    f"it cannot be read again ({why}); the server's log says more",
                    where=f"adapter {_public(name)}",
                    remedy="load it anew",
                )
                break
        with self._lock:
            self._coming -= set(names)
            if failed is None:
                self._laid |= dict.fromkeys(names, names)
                self._changed({})
                return
            for name in names:
                self._host.unload_adapter(name)
            hit = [request.key for request in self._waiting if set(request.names) & set(names)]
            self._changed(dict.fromkeys(hit, failed))


def _names(uses: Sequence[AdapterUse]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(use.name for use in uses))


def _public(name: str) -> str:
    return name.partition("@")[0]


def _give_up(done: Future[None], told: Future[None]) -> None:
    """Whoever asked is told also where the work was never begun."""
    if done.cancelled() and not told.done():
        told.set_exception(GenAIError("the server is shutting down"))
