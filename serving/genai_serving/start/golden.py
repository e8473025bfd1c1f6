"""Golden prompts before the first request: does this machine answer as the build's did?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from genai_core.container.adapters import AdapterIndex
from genai_core.errors import GoldenMismatch
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.golden import Replay, replay
from genai_runtime.session import SlotSession
from genai_serving.adapters.start import HeldAdapters

__all__ = ["replay_first", "replay_golden"]


def replay_golden(
    opened: Container, executor: Executor, wear: Callable[[Sequence[str]], bool] | None = None
) -> Replay | None:
    """Replay a container's recorded prompts, of adapters and use cases too; None where it has none.

    Args:
        opened: The container.
        executor: Its executor; a slot is used and freed.
        wear: Makes adapters ready; False where the server holds fewer. None = they are, or not.

    Raises:
        GoldenMismatch: It prefers another token where the build's choice was clear.
    """
    golden = opened.golden()
    if golden is None:
        return None
    index = opened.adapters()
    compared = forgiven = 0
    for name in (None, *golden.worn):
        worn = () if name is None else index.worn(name)
        if not (wear or executor.adapters.issuperset)([one.name for one in worn]):
            continue  # the server was told to hold fewer
        session = SlotSession(executor, [AdapterUse(one.name, one.alpha) for one in worn])
        try:
            found = replay(session, golden if name is None else golden.of(name))
        finally:
            session.release()
        if not found.passed:
            raise _mismatch(opened, name, found)
        compared, forgiven = compared + found.compared, forgiven + found.forgiven
    return Replay(compared=compared, mismatches=(), forgiven=forgiven)


def replay_first(
    opened: Container,
    executor: Executor,
    adapters: AdapterIndex,
    held: HeldAdapters | None,
    say: Callable[[str], None],
) -> None:
    """Replay them with what is served, and say what came of it.

    Raises:
        GoldenMismatch: As `replay_golden`.
    """

    def wear(names: Sequence[str]) -> bool:
        if not set(names) <= set(adapters.adapters):
            return False
        if held is not None:
            held.wear(names)
        return True

    found = replay_golden(opened, executor, wear)
    if found is None:
        say("it has no golden prompts: nothing was replayed")
        return
    near = f", {found.forgiven} of them within the tolerance" if found.forgiven else ""
    say(f"{found.compared} golden tokens are as recorded{near}")


def _mismatch(opened: Container, name: str | None, found: Replay) -> GoldenMismatch:
    first = found.mismatches[0]
    whose = "" if name is None else f" of {name}"
    return GoldenMismatch(
        f"{len(found.mismatches)} of {found.compared} golden tokens{whose} differ: prompt "
        f"{first.prompt} at {first.position} wants token {first.expected} by a margin of "
        f"{first.margin:.3f}, here it is {first.got}",
        where=f"{opened.manifest.target.name} {opened.revision[:19]}",
        remedy="build it anew, or run it on the machines that it was built for",
    )
