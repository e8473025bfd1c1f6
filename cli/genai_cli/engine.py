"""The local engine as the commands see it: plan a build, run the plan, run one task again.

    planned = plan_build(spec, base_dir, store, name="tiny-llama")    # reads, hashes, looks up
    planned.ready                                                     # the tasks: `genai graph`
    result = run_plan(planned, on_event=render, jobs=4)               # runs what is not cached
    result = run_task(task_file, store)                               # one task: `genai replay`

`plan_build(spec, base_dir, store, *, name="model")` raises a `GenAIError` (exit code 2) for
whatever is wrong before anything runs: the spec, the model's folder, a target. It starts no
process and imports neither numpy nor onnx.

`run_plan(planned, *, on_event, jobs=None)` returns a `BuildResult` also when tasks failed (see its
`failures`: the exit code is that of the first), raises `Interrupted` after Ctrl-C or SIGTERM, when
every child has ended, and `NoSpace` when the store's disk is full. `on_event` is called in the
caller's thread. Calling it again with the same `planned` looks everything up anew.

`run_task(task, store, *, on_event)` runs a `TaskFile` in a worker of its own and returns its
`TaskResult`; an error is in the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from genai_cli.events import PlanReady
from genai_core.kinds.build import BuildSpec
from genai_core.store.protocol import Store

__all__ = ["PlannedBuild"]


@dataclass(frozen=True)
class PlannedBuild:
    """A spec with what was found out about it.

    Attributes:
        name: The build's; a label, part of no key.
        spec: As written, defaults filled in.
        base_dir: Folder of the YAML file: relative sources count from it.
        store: Where results are looked up and go.
        source_digest: `sha256:...` of the model's files and their roles.
        ready: The tasks as far as they are known before anything runs.
        warnings: Sentences for the user.
    """

    name: str
    spec: BuildSpec
    base_dir: Path
    store: Store
    source_digest: str
    ready: PlanReady
    warnings: tuple[str, ...] = field(default=())
