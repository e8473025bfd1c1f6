"""What holds after every event, whatever happened. Tests check it each time."""

from __future__ import annotations

from genai_planner.execution.machine import Machine, TaskState

__all__ = ["broken"]

_KEYED = {TaskState.LOOKING, TaskState.READY, TaskState.RUNNING, TaskState.CACHED, TaskState.DONE}
_GOOD = {TaskState.CACHED, TaskState.DONE}


def broken(machine: Machine) -> list[str]:
    """Sentences about what does not hold; empty where all is well."""
    found: list[str] = []
    for task, state in machine.states.items():
        after = machine.after[task]
        if state in _KEYED:
            if task not in machine.keys:
                found.append(f"{task} is {state} and has no key")
            found += [
                f"{task} is {state} before {other} has a result"
                for other in after
                if other not in machine.results
            ]
        if state is TaskState.BLOCKED and all(machine.states[other] in _GOOD for other in after):
            found.append(f"{task} is blocked by nothing")
        if state in _GOOD and task not in machine.results:
            found.append(f"{task} is {state} and has no result")
        if (state is TaskState.FAILED) != (task in machine.errors):
            found.append(f"{task} is {state}, and its error says otherwise")
        if state is TaskState.STOPPED and not any(
            machine.states[other] in {TaskState.FAILED, TaskState.STOPPED} for other in after
        ):
            found.append(f"{task} is stopped though nothing before it failed")
        if state is TaskState.SKIPPED and not _may_be_skipped(machine, task):
            found.append(f"{task} is skipped though it is needed")
    running = {task for task, state in machine.states.items() if state is TaskState.RUNNING}
    if running != set(machine.running):
        found.append(f"running are {sorted(running)}, noted {sorted(machine.running)}")
    for state in TaskState:
        count = sum(other is state for other in machine.states.values())
        if machine.counts[state] != count:
            found.append(f"{machine.counts[state]} tasks are counted as {state}, not {count}")
    return found


def _may_be_skipped(machine: Machine, task: str) -> bool:
    described = machine.plan.task(task)
    when = described.when
    if any(machine.states[other] is TaskState.SKIPPED for other in machine.after[described.id]):
        return True
    if when is None or when.task not in machine.results:
        return False
    return (machine.results[when.task].facts.get("within") is True) != when.within
