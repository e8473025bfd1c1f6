"""kopf's handlers: every event goes to the controller; nothing is decided, nothing is written here.

Event handlers alone leave no annotations and no finalizers on objects.
"""

from __future__ import annotations

from typing import Any

import kopf

from genai_operator.kube.apiserver.connection import connection
from genai_operator.kube.apiserver.resources import watched
from genai_operator.kube.apiserver.session import lean_session
from genai_operator.manager.controller import Controller

__all__ = ["registry_of"]

_LISTED_AT_ONCE = 500


def registry_of(controller: Controller) -> kopf.OperatorRegistry:
    """Handlers that feed a controller."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        to = connection()
        # Of an object, kopf gets what we read: it holds each for some seconds.
        return kopf.AiohttpSession(server=to.server, aiohttp_session=lean_session(to))

    @kopf.on.startup(registry=registry)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.watching.server_timeout = 600
        settings.watching.client_timeout = 610
        settings.watching.connect_timeout = 30
        # A bookmark comes each minute: a stream without one is dead, and is opened anew.
        settings.watching.inactivity_timeout = 70
        settings.watching.chunk_size = _LISTED_AT_ONCE
        for row in watched():
            if row.selector:
                place = (row.group, row.version, row.plural)
                settings.watching.label_selectors[place] = row.selector
        settings.persistence.diffbase_storage = _NoDiffs()
        settings.persistence.progress_storage = _NoProgress()
        settings.networking.request_timeout = 300  # as for our own listings
        settings.networking.connect_timeout = 10
        settings.networking.error_backoffs = [0.5, 1, 2, 4, 8, 15] + [15] * 10_000
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.peering.standalone = True

    def feed(plural: str) -> Any:
        async def event(event: Any, **_: Any) -> None:
            controller.take(plural, event["type"], event["object"])

        event.__name__ = f"take_{plural}"
        return event

    for row in watched():
        kopf.on.event(row.group, row.version, row.plural, registry=registry)(feed(row.plural))
    return registry


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf's memory of what an object was like, keeping nothing.

    Event handlers do not ask for it, yet by default it is worked out for every event, from deep
    copies of the object: a third of the operator's time while a thousand Jobs come and go.
    """

    def build(self, **_: Any) -> Any:
        """What matters of an object: nothing."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """What was seen last: nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""


class _NoProgress(kopf.ProgressStorage):
    """kopf's memory of how far handlers came with an object; the same."""

    def fetch(self, **_: Any) -> Any:
        """How far a handler came: nowhere."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""

    def purge(self, **_: Any) -> None:
        """There is nothing to take away."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:
        """What matters of an object, without our own marks: there are none."""
        return essence
