"""The plan of a build on this machine: reads the source, looks keys up, runs nothing.

The plan follows from what ingest found in the model. Before ingest has run there is only a forecast
from config.json, which refuses what cannot work and shows what will happen. Tasks after ingest are
always planned from ingest's own facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from genai_cli.engine.events import PlannedTask, PlanReady
from genai_cli.engine.local_source import bring_folder, bring_source, token_of
from genai_cli.engine.plan_lookups import look_all
from genai_cli.engine.work_folders import cache_folder, known_digests
from genai_core.errors import CorruptBlob, GenAIError
from genai_core.facts import ModelFacts
from genai_core.files.digest_cache import FileCache
from genai_core.files.home import expanded
from genai_core.kinds.build import BuildSpec
from genai_core.names import (
    MODEL,
    TOKEN_MAP_ROLE,
    Backend,
    SourceName,
    TaskId,
)
from genai_core.operations import OPERATIONS, operation_of
from genai_core.sources.build_sources import is_built, model_spec, of_source, sources_of
from genai_core.sources.part_files import inspect_part, part_kind
from genai_core.sources.source_address import readable_name
from genai_core.sources.source_files import SourceFacts, inspect_source
from genai_core.store.layered import layers
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_core.tasks.record import Record
from genai_core.tasks.task_file import TaskFile, Toolchain
from genai_core.tasks.toolchain import toolchain_of
from genai_planner.execution.events import FoundResult, Missed, TaskStart
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.explain import KeyParts, why_it_runs
from genai_planner.phases import (
    BuildPlanner,
    BuildRequest,
    Exact,
    PlanPhase,
    exact_plan,
    facts_of,
    plan_build,
)
from genai_planner.plan import FileRef, Plan, Result, Task
from genai_planner.sources import Source
from genai_planner.targets import parse_targets
from genai_planner.task_files import TaskFiles, slug_of

__all__ = ["LocalPlan", "read_plan"]

_MOST_RECORDS = 200
"""Of an operation: how many of the newest are compared to say why a task runs."""


@dataclass
class LocalPlan:
    """A plan with its machine; see `read_plan`.

    Attributes:
        name: Of the build.
        spec: As written.
        store: Where keys are looked up.
        sources: The files of each source, by its name.
        planner: Makes the phases of the plan.
        phase: The furthest that what stands allows.
        machine: Of that phase; it has looked up what can be looked up.
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
    sources: Mapping[SourceName, SourceFacts]
    planner: BuildPlanner
    phase: PlanPhase = field(init=False)
    machine: Machine = field(init=False)
    origins: dict[TaskId, str] = field(default_factory=dict)
    said: dict[str, None] = field(default_factory=dict)
    records: dict[TaskId, Record] = field(default_factory=dict)
    used: bool = False
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None
    bring: bool = True

    def __post_init__(self) -> None:
        """Refuse now whatever the forecast can tell, and know nothing yet."""
        self.phase = self.planner.forecast
        self.machine = self.phase.machine()

    @property
    def plan(self) -> Plan:
        """What the machine works on."""
        return self.machine.plan

    @property
    def toolchains(self) -> Mapping[tuple[str, Backend | None], Toolchain]:
        """(operation, backend) -> what this environment computes with."""
        return self.planner.request.toolchains

    @property
    def source(self) -> SourceFacts:
        """The model's files."""
        return self.sources[MODEL]

    def look_up(self) -> None:
        """Look everything up anew; nothing of an earlier look is kept."""
        self.forget()
        phase = plan_build(self.planner, self)
        if isinstance(phase, Exact):
            self._begin(phase)
            return
        whys = dict(self.machine.why)
        found = dict(self.machine.results)
        self.phase, self.machine = phase, phase.machine()
        for look in self.machine.begin():
            if look.task in found:
                self.machine.handle(FoundResult(look.task, found[look.task]))
            else:
                self.machine.handle(Missed(look.task, whys.get(look.task, "")))

    def look(self, phase: PlanPhase) -> Mapping[TaskId, Result]:
        """Look a phase's tasks up; see `Standing`."""
        self._begin(phase)
        return self.machine.results

    def forget(self) -> None:
        """Believe no earlier look."""
        self.origins.clear()
        self.said.clear()

    def use_exact(self) -> None:
        """Plan again from what the machine's ingest tasks left, and look everything up.

        Raises:
            CorruptBlob: Ingest's facts are lost.
        """
        self._begin(exact_plan(self.planner, self.machine.results, self.read_facts))

    def _begin(self, phase: PlanPhase) -> None:
        def note(task: TaskId, hit: Hit) -> None:
            self.origins[task] = hit.origin
            self.said |= dict.fromkeys(hit.record.measurements.warnings)
            self.records[task] = hit.record

        self.phase, self.machine = phase, phase.machine()
        look_all(
            self.machine,
            self.store,
            self.machine.begin(),
            on_hit=note,
            claim=self.claim,
            bring=self.bring,
        )

    def read_facts(self, ingested: Result) -> ModelFacts:
        """What ingest found; see `Standing`."""
        return facts_of(ingested, self.store.read_blob, where=self.store.location)

    def ready(self, *, explain: bool = False) -> PlanReady:
        """The tasks that are or may be needed, as people see them."""
        records: dict[str, list[KeyParts]] = {}
        return PlanReady(
            tuple(self._view(task, records, explain=explain) for task in self.machine.needed()),
            complete=isinstance(self.phase, Exact),
            derived=self.plan.notes,
        )

    def task_file(self, machine: Machine, start: TaskStart, threads: int) -> TaskFile:
        """What a worker has to know."""
        return self._task_files.task_file(machine.tasks[start.task], start, threads=threads)

    @cached_property
    def _task_files(self) -> TaskFiles:
        address = self.spec.model.source
        folder = readable_name(address) if "://" in address else self.source.root.name
        return TaskFiles(
            toolchains=self.toolchains,
            locate=lambda source, role: str(self.sources[source].files[role].path),
            slug=slug_of(self.name, folder),
            address=address,
        )

    def _view(
        self, task: Task, records: dict[str, list[KeyParts]], *, explain: bool
    ) -> PlannedTask:
        state = self.machine.states[task.id]
        cached = state in {TaskState.CACHED, TaskState.DONE}
        return PlannedTask(
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
        self, task: Task, state: TaskState, records: dict[str, list[KeyParts]], *, explain: bool
    ) -> str:
        if state in {TaskState.CACHED, TaskState.DONE}:
            return f"in {self.origins.get(task.id, self.store.location)}"
        if task.id in self.machine.errors:
            return str(self.machine.errors[task.id])
        if state is TaskState.BLOCKED:
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
    digests = cache or known_digests()
    named = [one.location for one in layers(store)]
    files = inspect_source(bring_source(spec, cache_folder(), named=named), base_dir, digests)
    sources = {MODEL: files, **_others(spec, base_dir, digests, named)}
    request = BuildRequest(
        spec=spec,
        targets=targets,
        sources={name: _source(facts) for name, facts in sources.items()},
        toolchains={(row.name, row.backend): toolchain_of(row) for row in OPERATIONS},
    )
    found = LocalPlan(
        name=name,
        spec=spec,
        store=store,
        sources=sources,
        planner=BuildPlanner(request),
        claim=claim,
        bring=bring,
    )
    found.look_up()
    return found


def _others(
    spec: BuildSpec, base_dir: Path, cache: FileCache, named: Iterable[str]
) -> dict[SourceName, SourceFacts]:
    """The files of each child and adapter, and of what guesses.

    Raises:
        GenAIError: One is not there, broken, or not what the spec pins.
    """
    found = {}
    for source in sources_of(spec)[1:]:
        folder = bring_folder(
            source.address,
            cache_folder(),
            where=source.field,
            token=token_of(source.address, spec),
            named=named,
        )
        if folder is None:
            folder = (base_dir / expanded(source.address.removeprefix("file://"))).absolute()
        if is_built(source.name):
            alone = model_spec(spec, source.name)
            model = alone.model.model_copy(update={"source": str(folder)})
            alone = alone.model_copy(update={"model": model})
            try:
                found[source.name] = inspect_source(
                    alone, base_dir, cache, token_map=source.files.get(TOKEN_MAP_ROLE)
                )
            except GenAIError as error:
                raise of_source(error, source) from error
            continue
        found[source.name] = inspect_part(
            part_kind(source.name),
            folder,
            cache,
            where=source.field,
            pin=source.pin,
            **source.files,
        )
    return found


def _source(facts: SourceFacts) -> Source:
    return Source(
        {role: FileRef(file.sha256, file.size) for role, file in facts.files.items()},
        facts.config,
        facts.weight_bits,
    )
