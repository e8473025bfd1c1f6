"""A build's plan on this machine: the source read, keys looked up, nothing run.

The plan follows from what ingest found in the model, so before ingest has run there is only a
forecast from config.json. It serves to refuse what cannot work and to show what will happen; what
is built is always planned from ingest's own facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from genai_cli.events import PlanReady, TaskView
from genai_cli.local import look_all
from genai_cli.local_source import bring_source
from genai_cli.local_work import cache_folder, known_digests
from genai_core.errors import CorruptBlob
from genai_core.facts import ModelFacts
from genai_core.filecache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Digest, TaskId
from genai_core.operations import OPERATIONS, operation_of
from genai_core.record import Blob, Record, model_slug
from genai_core.source import SourceFacts, inspect_source
from genai_core.source_address import readable_name
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_core.task import TaskFile, TaskFileInput, Toolchain
from genai_core.toolchain import toolchain_of
from genai_planner.events import Missed, Start
from genai_planner.expand import expand
from genai_planner.explain import KeyParts, why_it_runs
from genai_planner.graph import FileRef, Plan, Result, Task
from genai_planner.inputs import INGEST
from genai_planner.machine import Machine, State
from genai_planner.shape import ModelShape, shape_from_config, shape_from_facts
from genai_planner.source_view import SourceView
from genai_planner.targets import Target, parse_targets

__all__ = ["LocalPlan", "read_plan"]

_MOST_RECORDS = 200
"""Of an operation: how many of the newest are compared to say why a task runs."""

_MOST_LOOKS = 3
_FACTS_FILE = "facts.json"
_SAYS_NOTHING = {"", "model", "models", "onnx", "base"}


@dataclass
class LocalPlan:
    """A plan with its machine; see `read_plan`.

    Attributes:
        name: Of the build.
        spec: As written.
        store: Where keys are looked up.
        source: The model's files.
        targets: What is built for.
        toolchains: (operation, backend) -> what this environment computes with.
        forecast: The plan that config.json leads to.
        machine: Has looked up what can be looked up.
        origins: Task -> location of the store that had it.
        said: What the tasks warned of that were found.
        records: Of the tasks whose result stands.
        used: A run has begun on it: the next one looks everything up anew.
        claim: Called with what is about to be looked up, so that no gc takes it meanwhile.
        bring: What another store has is copied, since it is going to be used.
    """

    name: str
    spec: BuildSpec
    store: Store
    source: SourceFacts
    targets: tuple[Target, ...]
    toolchains: dict[tuple[str, Backend | None], Toolchain]
    forecast: Plan
    machine: Machine
    origins: dict[TaskId, str] = field(default_factory=dict)
    said: dict[str, None] = field(default_factory=dict)
    records: dict[TaskId, Record] = field(default_factory=dict)
    used: bool = False
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None
    bring: bool = True

    @property
    def plan(self) -> Plan:
        """What the machine works on."""
        return self.machine.plan

    def make_machine(self, plan: Plan) -> Machine:
        """A machine that knows nothing yet."""
        return Machine(
            plan,
            source={
                role: FileRef(file.sha256, file.size) for role, file in self.source.files.items()
            },
            toolchains={name: Digest(chain.id) for name, chain in self.toolchains.items()},
        )

    def look_up(self) -> None:
        """Look everything up anew; nothing of an earlier look is kept."""
        self.origins.clear()
        self.said.clear()
        for _ in range(_MOST_LOOKS):
            self._begin(self.ingest_alone())
            ingested = self.machine.results.get(INGEST)
            if ingested is None:
                why = self.machine.why.get(INGEST, "")
                self.machine = self.make_machine(self.forecast)
                self.machine.begin()
                self.machine.handle(Missed(INGEST, why))
                return
            try:
                self.use_exact(ingested)
            except CorruptBlob:
                continue  # reading took the wrong bytes out of the store: now ingest is a miss
            return

    def ingest_alone(self) -> Machine:
        """A machine for the task that everything follows from."""
        return self.make_machine(Plan(self.forecast.tasks[:1], complete=False))

    def use_exact(self, ingested: Result) -> None:
        """Plan again from what ingest found, and look everything up.

        Raises:
            CorruptBlob: Ingest's facts are lost.
        """
        shape = self.exact_shape(ingested)
        plan = expand(self.spec, targets=self.targets, source=_view(self.source), shape=shape)
        self._begin(self.make_machine(plan))

    def _begin(self, machine: Machine) -> None:
        def note(task: TaskId, hit: Hit) -> None:
            self.origins[task] = hit.origin
            self.said |= dict.fromkeys(hit.record.measurements.warnings)
            self.records[task] = hit.record

        self.machine = machine
        look_all(
            machine,
            self.store,
            machine.begin(),
            on_hit=note,
            claim=self.claim,
            bring=self.bring,
        )

    def exact_shape(self, ingested: Result) -> ModelShape:
        """The model's shape from what ingest left.

        Raises:
            CorruptBlob: The facts are lost; looking ingest up again will say so.
        """
        file = ingested.outputs[_FACTS_FILE]
        text = self.store.read_blob(Blob(sha256=file.sha256, size=file.size))
        return shape_from_facts(ModelFacts.model_validate_json(text))

    def ready(self, *, explain: bool = False) -> PlanReady:
        """The tasks that are or may be needed, as people see them."""
        records: dict[str, list[KeyParts]] = {}
        return PlanReady(
            tuple(self._view(task, records, explain=explain) for task in self.machine.needed()),
            complete=self.plan.complete,
            derived=self.plan.notes,
        )

    def task_file(self, machine: Machine, start: Start, threads: int) -> TaskFile:
        """What a worker has to know."""
        task = machine.tasks[start.task]
        row = operation_of(task.operation, task.backend)
        local = {name for name, parts in task.inputs.items() if any(p.task is None for p in parts)}
        return TaskFile(
            id=task.id,
            operation=task.operation,
            backend=task.backend,
            key=start.key,
            code_version=row.code_version,
            config=task.config.model_dump(mode="json"),
            inputs={
                name: {
                    path: TaskFileInput(
                        sha256=file.sha256,
                        size=file.size,
                        semantic=file.semantic,
                        path=str(self.source.files[path].path) if name in local else None,
                    )
                    for path, file in files.items()
                }
                for name, files in start.inputs.items()
            },
            toolchain=self.toolchains[task.operation, row.backend],
            slug=self.slug,
            source=self.spec.model.source,
            threads=threads,
        )

    @property
    def slug(self) -> str:
        """A readable name of the model: its folder's, or the build's where that says nothing."""
        address = self.spec.model.source
        folder = readable_name(address) if "://" in address else self.source.root.name
        return model_slug(self.name if folder.lower() in _SAYS_NOTHING else folder)

    def _view(self, task: Task, records: dict[str, list[KeyParts]], *, explain: bool) -> TaskView:
        state = self.machine.states[task.id]
        cached = state in {State.CACHED, State.DONE}
        return TaskView(
            id=task.id,
            operation=task.operation,
            target=task.target,
            graph=task.graph,
            split=task.split,
            key=self.machine.keys.get(task.id, ""),
            after=self.machine.after[task.id],
            cached=cached,
            why=self._why(task, state, records, explain=explain),
        )

    def _why(
        self, task: Task, state: State, records: dict[str, list[KeyParts]], *, explain: bool
    ) -> str:
        if state in {State.CACHED, State.DONE}:
            return f"in {self.origins.get(task.id, self.store.location)}"
        if task.id in self.machine.errors:
            return str(self.machine.errors[task.id])
        if state is State.BLOCKED:
            waits = [t for t in self.machine.after[task.id] if t not in self.machine.results]
            more = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
            return f"follows from {waits[0]}{more}" if waits else ""
        miss = self.machine.why.get(task.id, "")
        if not explain:
            return miss
        if task.operation not in records:
            records[task.operation] = self._records(task.operation)
        row = operation_of(task.operation, task.backend)
        wanted = KeyParts(
            task.config.model_dump(mode="json"),
            {
                name: {path: file.identity for path, file in files.items()}
                for name, files in self.machine.inputs(task.id).items()
            },
            self.toolchains[task.operation, row.backend].versions,
        )
        return why_it_runs(wanted, records[task.operation], miss=miss)

    def _records(self, operation: str) -> list[KeyParts]:
        refs = sorted(
            self.store.list_records(operation),
            key=lambda ref: ref.modified.timestamp() if ref.modified else 0.0,
            reverse=True,
        )
        found = []
        for ref in refs[:_MOST_RECORDS]:
            try:
                stored = self.store.get_record(ref.operation, ref.key)
            except CorruptBlob:
                continue
            if stored is not None:
                record = stored.record
                inputs = {name: dict(files) for name, files in record.inputs.items()}
                found.append(KeyParts(record.config, inputs, record.toolchain.versions))
        return found


def read_plan(
    spec: BuildSpec,
    base_dir: Path,
    store: Store,
    *,
    name: str,
    cache: FileCache | None = None,
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None,
    bring: bool = True,
) -> LocalPlan:
    """Read the source, make the plan, look everything up that has a key.

    Args:
        spec: As written.
        base_dir: What a relative source counts from.
        store: Where keys are looked up.
        name: Of the build.
        cache: Of digests; None = the user's.
        claim: Called with what is about to be looked up.
        bring: Copy what another store has; not where the plan is only shown.

    Raises:
        GenAIError: What is wrong with spec, model, target or store.
    """
    targets = parse_targets(spec.targets)
    source = inspect_source(
        bring_source(spec, cache_folder()),
        base_dir,
        cache or known_digests(),
    )
    toolchains = {(row.name, row.backend): toolchain_of(row) for row in OPERATIONS}
    # Everything that can be refused is refused now, by the forecast.
    forecast = expand(
        spec, targets=targets, source=_view(source), shape=shape_from_config(source.config)
    )
    found = LocalPlan(
        name=name,
        spec=spec,
        store=store,
        source=source,
        targets=targets,
        toolchains=toolchains,
        forecast=forecast,
        machine=Machine(Plan(()), source={}, toolchains={}),
        claim=claim,
        bring=bring,
    )
    found.look_up()
    return found


def _view(source: SourceFacts) -> SourceView:
    return SourceView(frozenset(source.files), source.size, source.weight_bits)
