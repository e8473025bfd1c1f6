"""The adapters that an engine's executor holds: taken in and let go between passes.

Methods are called under the engine's lock, `work` by its thread.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future

from genai_core.errors import BadInput, GenAIError
from genai_runtime.executor import AdapterHost, AdapterUse, AdapterWeights, Executor

__all__ = ["LoadedAdapters", "NotLoaded"]


class NotLoaded(BadInput):
    """A request wears what is not there, or not any more."""

    code = "NotLoaded"


class LoadedAdapters:
    """See the module's docstring.

    A name means one content for ever: what comes later under the name that clients know has
    another name here.

    Args:
        executor: The engine's.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._names = set(executor.adapters)
        self._retiring: set[str] = set()
        self._coming: list[tuple[str, AdapterWeights, Future[None]]] = []

    def check(self, uses: Sequence[AdapterUse]) -> None:
        """Whether a new request may wear them.

        Raises:
            NotLoaded: One is not there, or on its way out.
        """
        for use in uses:
            if use.name not in self._names:  # it would fail a pass, with all in it
                raise NotLoaded("is not loaded", where=f"adapter {use.name}")

    def load(self, name: str, weights: AdapterWeights) -> Future[None]:
        """Take one in before the next pass; fails with a BadInput where it does not fit."""
        future: Future[None] = Future()
        self._coming.append((name, weights, future))
        return future

    def retire(self, name: str) -> None:
        """Let no new request wear it, and let it go when none does."""
        if name in self._names:
            self._names.remove(name)
            self._retiring.add(name)

    def due(self, worn: Collection[str]) -> bool:
        """Whether there is something to do."""
        return bool(self._coming or self._retiring - set(worn))

    def leaving(self, worn: Collection[str]) -> list[str]:
        """Those that may go now; `let_go` follows."""
        return sorted(self._retiring - set(worn))

    def let_go(self, name: str) -> None:
        """One that nobody wears leaves the executor."""
        assert isinstance(self._executor, AdapterHost)
        self._executor.unload_adapter(name)
        self._retiring.discard(name)

    def take_in(self) -> None:
        """Those that wait to come."""
        coming, self._coming = self._coming, []
        for name, weights, future in coming:
            if not isinstance(self._executor, AdapterHost):
                future.set_exception(BadInput("no adapters come to this container at run time"))
                continue
            try:
                self._executor.load_adapter(name, weights)
                self._names.add(name)
            except Exception as error:  # noqa: BLE001 - whoever asked for it is told
                future.set_exception(error)
            else:
                future.set_result(None)

    def close(self, error: GenAIError) -> None:
        """Tell those who wait that nothing comes any more."""
        coming, self._coming = self._coming, []
        for _, _, future in coming:
            future.set_exception(error)
