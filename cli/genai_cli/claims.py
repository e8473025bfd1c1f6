"""What the builds of this machine leave in a store stays there: a lease for a month each.

While a build runs the engine holds a lease of its own. This one is written at the end and names the
records of the whole plan, so that gc, here or in a cluster that shares the store, keeps what builds
were made of. A build of the same name into the same folder takes it over.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from genai_cli.events import TaskView
from genai_core.canonical import digest_json
from genai_core.errors import StoreUnavailable, StoreUnreadable
from genai_core.names import Key
from genai_core.store.protocol import Lease, RecordRef, Store

__all__ = ["LASTS", "Claim"]

LASTS = timedelta(days=30)


@dataclass(frozen=True)
class Claim:
    """The lease of one build.

    Attributes:
        store: Where it is written.
        build: Name of the build.
        folder: Of its containers.
    """

    store: Store
    build: str
    folder: Path

    @property
    def lease_name(self) -> str:
        """The same for the same build of the same user on the same machine."""
        what = [socket.gethostname(), _user(), str(self.folder), self.build]
        return f"local-{digest_json(what)[:16]}-{self.build[:100]}"

    def renew(self, tasks: Iterable[TaskView]) -> str:
        """Claim the records of these tasks, as far as their keys are known.

        Returns:
            Why it could not be written, empty where it was: a build that finds everything cached
            may stand on a store that it cannot write.
        """
        lease = Lease(
            name=self.lease_name,
            holder=f"{_user()}@{socket.gethostname()} build {self.build}",
            records=tuple(RecordRef(task.operation, Key(task.key)) for task in tasks if task.key),
            expires_at=datetime.now(UTC) + LASTS,
        )
        try:
            self.store.put_lease(lease)
        except (StoreUnreadable, StoreUnavailable) as error:
            return f"gc may take this build's results, since no lease could be written: {error}"
        return ""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a user without a name
        return str(os.getuid())
