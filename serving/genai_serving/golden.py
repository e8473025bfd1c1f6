"""Golden prompts before the first request: does this machine answer as the build's did?"""

from __future__ import annotations

from genai_core.errors import GoldenMismatch
from genai_runtime.container import Container
from genai_runtime.executor import Executor
from genai_runtime.golden import Replay, replay
from genai_runtime.session import SlotSession

__all__ = ["replay_golden"]


def replay_golden(opened: Container, executor: Executor) -> Replay | None:
    """Replay a container's recorded prompts; None where it has none.

    Args:
        opened: The container.
        executor: Its executor; a slot is used and freed.

    Raises:
        GoldenMismatch: It prefers another token where the build's choice was clear.
    """
    golden = opened.golden()
    if golden is None:
        return None
    session = SlotSession(executor)
    try:
        found = replay(session, golden)
    finally:
        session.release()
    if not found.passed:
        first = found.mismatches[0]
        raise GoldenMismatch(
            f"{len(found.mismatches)} of {found.compared} golden tokens differ: prompt "
            f"{first.prompt} at {first.position} wants token {first.expected} by a margin of "
            f"{first.margin:.3f}, here it is {first.got}",
            where=f"{opened.manifest.target.name} {opened.revision[:19]}",
            remedy="build it anew, or run it on the machines that it was built for",
        )
    return found
