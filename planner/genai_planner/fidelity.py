"""What a task found that decides whether others are needed: the words of fidelity, in one place.

A fidelity task leaves a verdict among its facts. Tasks may wait for a good or for a bad one; where
every precision that may be tried is over the budget, the build fails with all of their losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from genai_core.errors import OverBudget
from genai_core.names import TaskId
from genai_planner.plan import FidelityCondition, Plan, Result

__all__ = ["holds", "is_resort", "measured", "over_budget"]


def holds(condition: FidelityCondition, result: Result) -> bool:
    """Whether what a task left is what another one waits for."""
    return (result.facts.get("within") is True) == condition.within


def is_resort(condition: FidelityCondition) -> bool:
    """Whether it waits for a bad verdict: a task that everyone hopes not to need."""
    return not condition.within


def measured(
    plan: Plan, results: Mapping[TaskId, Result], package: TaskId | None
) -> dict[str, Any] | None:
    """What was measured of a container; None where there is none or nothing was.

    Args:
        plan: With the tasks that measure.
        results: Of tasks that have ended well.
        package: The task that made the container; None = none has.
    """
    verdict = None if package is None else plan.verdict_on(package)
    if verdict is None or verdict not in results:
        return None
    return dict(results[verdict].facts)


def over_budget(tried: Iterable[TaskId], results: Mapping[TaskId, Result]) -> OverBudget:
    """The error of a container for which nothing that was tried is good enough.

    Args:
        tried: The fidelity tasks.
        results: What they left.
    """
    losses: list[str] = []
    budget: object = None
    for task in tried:
        facts = results[task].facts
        budget = facts.get("budget", budget)
        name = task.rpartition("/")[2]
        losses.append(f"{name} {_rise(facts)}")
        children = facts.get("children") or {}
        losses += [f"AR {ar} over its own source's {_rise(own)}" for ar, own in children.items()]
    return OverBudget(
        f"the loss rises over the source's by more than {budget} nats a token: "
        + ", ".join(losses),
        where="spec.quantization.fidelity.budgetNats",
        remedy="raise the budget if that is good enough, or quantize the model anew",
    )


def _rise(facts: Mapping[str, Any]) -> str:
    loss, base = facts.get("natsPerToken"), facts.get("baselineNats")
    if isinstance(loss, int | float) and isinstance(base, int | float):
        return f"by {loss - base:.4f}"
    return "beyond measure"
