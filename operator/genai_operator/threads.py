"""Calls that wait for a tenant's server: each in a thread of its own, bounded in number and time.

A server that answers a byte a minute holds a call for as long as it likes, and a thread cannot be
ended from outside. So nobody waits for one longer than its deadline; a call that is still out then
counts against its namespace until it comes back, and the object that it was made for makes no
other. asyncio's own pool would be shared by all tenants, and would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from genai_core.reasons import Reason
from genai_operator.errors import Waiting
from genai_operator.timing import charged

__all__ = ["CALL_SECONDS", "Threads", "in_thread"]

P = ParamSpec("P")
T = TypeVar("T")

CALL_SECONDS = 120.0
"""Longest that one call is waited for. An address that does not answer boto3 gives up after 70 s,
with a message that says more."""
_MOST_OF_NAMESPACE = 8
_AGAIN = 15.0


class Tenant(Protocol):
    """Whom a call is made for."""

    @property
    def namespace(self) -> str:
        """Whose it is."""
        ...

    def __hash__(self) -> int:
        """An object is the same in every pass."""
        ...


class Threads:
    """The calls that are out.

    Args:
        seconds: Longest that a call is waited for.
        most: Calls of one namespace at once.
    """

    def __init__(self, *, seconds: float = CALL_SECONDS, most: int = _MOST_OF_NAMESPACE) -> None:
        self._seconds = seconds
        self._most = most
        self._of_object: Counter[Hashable] = Counter()
        self._of_namespace: Counter[Hashable] = Counter()

    @contextmanager
    def working_on(self, tenant: Tenant) -> Iterator[None]:
        """Calls inside are made for this object."""
        token = _CURRENT.set((self, tenant))
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def out(self, namespace: str) -> int:
        """How many calls of a namespace are out."""
        return self._of_namespace[namespace]

    async def run(self, tenant: Tenant, call: Callable[[], T]) -> T:
        """Make a call.

        Raises:
            Waiting: It was not answered in time, or an earlier one still is not.
        """
        # One pass makes one call after the other: what is out was left behind by an earlier one.
        left = self._of_object[tenant] or self._of_namespace[tenant.namespace] >= self._most
        if left:
            raise self._no_answer()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._start(tenant, call, future)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await future
        except TimeoutError:
            if limit.expired():
                raise self._no_answer() from None
            raise

    def _no_answer(self) -> Waiting:
        return Waiting(
            Reason.NO_ANSWER,
            f"the store or the source has not answered for {self._seconds:.0f} s",
            after=_AGAIN,
        )

    def _start(self, tenant: Tenant, call: Callable[[], T], future: asyncio.Future[T]) -> None:
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        self._of_object[tenant] += 1
        self._of_namespace[tenant.namespace] += 1

        def back(settle: Callable[[Any], None], value: Any) -> None:
            pairs: tuple[tuple[Counter[Hashable], Hashable], ...] = (
                (self._of_object, tenant),
                (self._of_namespace, tenant.namespace),
            )
            for counter, key in pairs:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
            if not future.done():
                settle(value)

        def work() -> None:
            settle: Callable[[Any], None] = future.set_result
            value: Any = None
            try:
                value = context.run(_charged, call)
            except BaseException as error:  # noqa: BLE001 - the caller's to judge
                settle, value = future.set_exception, error
            try:
                loop.call_soon_threadsafe(back, settle, value)
            except RuntimeError:  # the operator has ended meanwhile
                return

        threading.Thread(target=work, name=f"call {tenant}", daemon=True).start()


_CURRENT: contextvars.ContextVar[tuple[Threads, Tenant] | None] = contextvars.ContextVar(
    "_CURRENT", default=None
)


def _charged(call: Callable[[], T]) -> T:
    with charged():
        return call()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call for the object that is being worked on; outside of that work, just make it.

    Raises:
        Waiting: See `Threads.run`.
    """
    current = _CURRENT.get()
    if current is None:
        return await asyncio.to_thread(call, *args, **kwargs)
    threads, tenant = current
    return await threads.run(tenant, partial(call, *args, **kwargs))
