"""How much of a node's disk a stage's pod may take. Pure.

Every pod has a limit, so that no tenant's archive or model fills a node that others work on; a pod
that goes beyond is evicted, alone, and its task fails for want of room (NoSpace). Who gives
`run.scratch.size` or `ephemeral-storage` says it himself. Otherwise the limit follows from what a
task reads: sixteen times as much is more than any writes (a model of 4-bit weights, in float).
"""

from __future__ import annotations

from genai_core.kinds.build import Run
from genai_core.quantity import amount

__all__ = ["LEAST", "UNKNOWN", "disk_for", "storage_of", "volume_limit"]

_MIB = 1 << 20
_GIB = 1 << 30
LEAST = 20 * _GIB
UNKNOWN = 512 * _GIB
"""Of an archive, of which nobody knows what is in it until it is unpacked."""
_TIMES = 16
_ROOM = 8 * _GIB
"""For logs, and for what is passed through /tmp."""
_SET_ASIDE = "256Mi"
"""What the scheduler counts: a limit alone would be set aside as a whole."""
_NAME = "ephemeral-storage"


def disk_for(read_bytes: int) -> int:
    """Bytes that a task may write that reads so many."""
    return -(-(LEAST + _TIMES * read_bytes) // _GIB) * _GIB


def volume_limit(run: Run, disk_bytes: int) -> str:
    """SizeLimit of a volume on the node's disk."""
    return run.scratch.size or f"{disk_bytes // _GIB}Gi"


def storage_of(run: Run, disk_bytes: int) -> tuple[dict[str, str], dict[str, str]]:
    """What is set aside of the node's disk, and the limit; where the user does not say."""
    given = run.resources
    whole = int(amount(volume_limit(run, disk_bytes))) + _ROOM
    asked = given.requests.get(_NAME)
    limit = f"{-(-whole // _MIB)}Mi"
    if asked is not None and amount(asked) > amount(limit):
        limit = asked
    limit = given.limits.get(_NAME) or limit
    least = min(_SET_ASIDE, limit, key=amount)
    return {_NAME: asked or least}, {_NAME: limit}
