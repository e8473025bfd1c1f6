"""A pass as a list of steps; the first that is not done ends it.

A step takes the pass's context, adds to it what it found out, and returns what comes of it. What
lies deeper raises `Waiting`, `Stalled` or an error of ours: that ends the pass likewise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from genai_core.errors import GenAIError
from genai_core.reasons import Reason
from genai_operator.errors import Failure, Stalled, Waiting, of_error

__all__ = ["DONE", "Done", "Result", "Stall", "Step", "Wait", "run_steps"]

C = TypeVar("C")


@dataclass(frozen=True)
class Done:
    """The next step may begin; of the last one: the object is Ready.

    Attributes:
        reason: CamelCase, as in the condition Ready; read of the last step alone.
        message: For people.
    """

    reason: str = Reason.READY
    message: str = ""


@dataclass(frozen=True)
class Wait:
    """Something else must happen first.

    Attributes:
        after: Seconds until it is looked at again; None: whatever it waits for wakes it.
        most: Seconds that this grows to while nothing changes; 0: it does not grow.
        works: It is being worked on, and waits for that alone.
    """

    reason: str
    message: str
    after: float | None = None
    most: float = 0.0
    works: bool = False


@dataclass(frozen=True)
class Stall:
    """The user must act.

    Attributes:
        failure: Of the task that failed for good, if one did.
    """

    reason: str
    message: str
    failure: Failure | None = None


Result: TypeAlias = Done | Wait | Stall
Step: TypeAlias = Callable[[C], Awaitable[Result]]

DONE = Done()


async def run_steps(
    context: C,
    steps: Iterable[Step[C]],
    *,
    meaning: Callable[[GenAIError], Stalled | Waiting] = of_error,
) -> Result:
    """Run steps until one is not done; returns what it, or the last one, came to.

    Args:
        context: Handed to each.
        steps: In their order.
        meaning: What an error of ours means to the user of that kind.
    """
    result: Result = DONE
    try:
        for step in steps:
            result = await step(context)
            if not isinstance(result, Done):
                break
    except GenAIError as error:
        return _result(meaning(error))
    except (Stalled, Waiting) as error:
        return _result(error)
    return result


def _result(error: Stalled | Waiting) -> Result:
    if isinstance(error, Stalled):
        return Stall(error.reason, error.message, error.failure)
    return Wait(error.reason, error.message, error.after, error.most)
