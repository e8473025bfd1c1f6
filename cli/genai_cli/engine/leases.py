"""What the builds of this machine leave in a store stays there: a lease for a month each.

While a build runs it holds a lease of its own, written before anything is looked up, so that no gc
takes what it is about to use. At the end another one names the records of the whole plan and the
last few revisions of the containers: gc, here or in a cluster that shares the store, keeps what
builds were made of. A build of the same name into the same folder takes it over. A model that is
sent to a cluster is claimed before it is looked for there, until the cluster's own lease names it.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from genai_cli.engine.events import PlannedTask
from genai_core.canonical import digest_json
from genai_core.errors import StoreUnavailable, StoreUnreadable
from genai_core.names import Key
from genai_core.store.collection.build_lease import Holder
from genai_core.store.leases import Leases
from genai_core.store.protocol import RecordRef
from genai_core.tasks.record import Record

__all__ = ["Claim", "claim_upload", "working"]

_WORK_LASTS = timedelta(days=2)
"""The lease of a build that was killed ends by itself."""
_UPLOAD_LASTS = timedelta(days=7)
"""How long a cluster may take to see a build that was applied."""


@dataclass(frozen=True)
class Claim:
    """The lease that a build leaves.

    Attributes:
        store: Where it is written.
        build: Name of the build.
        folder: Of its containers.
        uploads: Names of uploaded models in the store that it was made from.
    """

    store: Leases
    build: str
    folder: Path
    uploads: frozenset[str] = frozenset()

    @property
    def lease_name(self) -> str:
        """The same for the same build of the same user on the same machine."""
        what = [
            text.encode(errors="replace").decode()  # a folder's name need not be text
            for text in (socket.gethostname(), _user(), str(self.folder), self.build)
        ]
        return f"local-{digest_json(what)[:16]}-{self.build[:100]}"

    def renew(self, tasks: Iterable[PlannedTask], containers: Mapping[str, Record]) -> str:
        """Claim the records of these tasks, as far as their keys are known.

        Returns:
            Why it could not be written, empty where it was: a build that finds everything cached
            may stand on a store that it cannot write.
        """
        holder = Holder(self.store, self.lease_name, holder=_holder(self.build))
        refs = [RecordRef(task.operation, Key(task.key)) for task in tasks if task.key]
        built = {
            target: RecordRef(record.operation, record.key) for target, record in containers.items()
        }
        try:
            holder.settle(refs, built, uploads=self.uploads)
        except (StoreUnavailable, StoreUnreadable) as error:
            return _unclaimed(str(error))
        return _unclaimed(holder.problem) if holder.problem else ""


@contextmanager
def working(store: Leases, build: str) -> Iterator[Holder]:
    """Hold a lease while the block runs; an interrupted build keeps it, since it may go on."""
    name = f"run-{_machine()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"
    held = Holder(store, name, holder=_holder(build), lasts=_WORK_LASTS)
    yield held
    held.release()


def claim_upload(store: Leases, name: str, build: str) -> str:
    """Keep an uploaded model from gc until a cluster keeps it; before it is looked for.

    Returns:
        Why it could not be claimed, empty where it was.
    """
    holder = Holder(store, f"upload-{name}", holder=_holder(build), lasts=_UPLOAD_LASTS)
    holder.claim((), [name])
    return f"gc may take the model: {holder.problem}" if holder.problem else ""


def _unclaimed(why: str) -> str:
    return f"gc may take this build's results, since no lease could be written: {why}"


def _holder(build: str) -> str:
    return f"{_user()}@{_machine()} build {build}"


def _machine() -> str:
    """This machine's name, as leases may be called; systems allow others, e.g. `Kim's Mac`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a user without a name
        return str(os.getuid())
