"""A build's plan in its phases: what is known decides how much of it can be made.

    Ingesting   nothing is known of the sources but their files: the tasks that read them
    Forecast    the shape that config.json states: serves to refuse what cannot work, and to show
    Exact       the shape that ingest found: what is built

Whoever plans holds one of the three, so a forecast is never run by mistake. `plan_build` asks its
caller what stands and returns the furthest phase that follows: the command line, the view of a
remote build and the operator are three shells around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from genai_core.errors import CorruptBlob, StoreUnreadable
from genai_core.facts import ModelFacts
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Backend, Digest, Key, SourceName, TaskId, is_child
from genai_core.tasks.record import Blob, Record
from genai_core.tasks.task_file import Toolchain
from genai_planner.execution.machine import KnownKeys, Machine
from genai_planner.expand.build import expand, expand_ingest
from genai_planner.expand.inputs import ingest_id
from genai_planner.plan import Plan, Result, result_of
from genai_planner.shape import ModelShape, shape_from_config, shape_from_facts
from genai_planner.sources import Sources, is_model
from genai_planner.targets import Target
from genai_planner.task_chains import derivations

__all__ = [
    "FACTS_FILE",
    "BuildPlanner",
    "BuildRequest",
    "Exact",
    "Forecast",
    "Ingesting",
    "PlanPhase",
    "StandingResults",
    "exact_plan",
    "facts_of",
    "plan_build",
]

FACTS_FILE = "facts.json"
"""What ingest leaves for planning."""

_MOST_LOOKS = 3


@dataclass(frozen=True)
class BuildRequest:
    """Everything that a plan and its keys follow from.

    Attributes:
        spec: As written, defaults filled in.
        targets: What is built for.
        sources: By name; `model` is always there.
        toolchains: (operation, backend) -> the libraries that compute it.
    """

    spec: BuildSpec
    targets: tuple[Target, ...]
    sources: Sources
    toolchains: Mapping[tuple[str, Backend | None], Toolchain]

    @cached_property
    def toolchain_ids(self) -> Mapping[tuple[str, Backend | None], Digest]:
        """(operation, backend) -> what enters keys."""
        return {row: Digest(chain.id) for row, chain in self.toolchains.items()}


class PlanPhase:
    """A plan and what follows from it.

    Args:
        request: What is asked for.
        plan: Its tasks, as far as they are known.
    """

    def __init__(self, request: BuildRequest, plan: Plan) -> None:
        self.request = request
        self.plan = plan
        self.keys: KnownKeys = {}
        """Of tasks that had one before; see `Machine`."""
        self._results: dict[Key, tuple[Record, Result]] = {}

    def machine(self) -> Machine:
        """A machine that knows nothing yet."""
        return Machine(
            self.plan,
            sources=self.request.sources,
            toolchains=self.request.toolchain_ids,
            known=self.keys,
        )

    @cached_property
    def derivations(self) -> Mapping[TaskId, Digest]:
        """Of every task: see `task_chains`."""
        return derivations(
            self.plan, sources=self.request.sources, toolchains=self.request.toolchain_ids
        )

    def result(self, record: Record) -> Result:
        """A record as the planner takes it; the same object for the same record."""
        known = self._results.get(record.key)
        if known is None or known[0] is not record:
            known = self._results[record.key] = record, result_of(record)
        return known[1]


class Ingesting(PlanPhase):
    """The tasks that read the sources, alone."""


class Forecast(PlanPhase):
    """The plan that config.json leads to; of a model without one, the ingest tasks."""


class Exact(PlanPhase):
    """The plan that is built."""


class BuildPlanner:
    """Makes the phases of one request, each once."""

    def __init__(self, request: BuildRequest) -> None:
        self.request = request
        self._exact: tuple[Mapping[SourceName, ModelShape], Exact] | None = None

    @cached_property
    def ingesting(self) -> Ingesting:
        """What can be done before anything is known.

        Raises:
            GenAIError: What is asked for cannot work.
        """
        request = self.request
        shapes = self._stated
        return Ingesting(
            request,
            expand_ingest(
                request.spec, targets=request.targets, sources=request.sources, shapes=shapes
            ),
        )

    @cached_property
    def forecast(self) -> Forecast:
        """What config.json leads to.

        Raises:
            GenAIError: What is asked for cannot work.
        """
        if self._stated.keys() != self._models:
            return Forecast(self.request, self.ingesting.plan)
        return Forecast(self.request, self._expand(self._stated))

    def exact(self, shapes: Mapping[SourceName, ModelShape]) -> Exact:
        """The plan that is built.

        Args:
            shapes: Of every source that is a model, from ingest's facts.

        Raises:
            GenAIError: What is asked for cannot work.
        """
        if self._exact is None or self._exact[0] != shapes:
            self._exact = shapes, Exact(self.request, self._expand(shapes))
        return self._exact[1]

    @cached_property
    def _stated(self) -> Mapping[SourceName, ModelShape]:
        sources = self.request.sources
        found = {
            # A child without a config.json is taken for what the model says.
            name: shape_from_config(
                source.config or sources[MODEL].config if is_child(name) else source.config
            )
            for name, source in sources.items()
            if name in self._models
        }
        return {name: shape for name, shape in found.items() if shape is not None}

    @cached_property
    def _models(self) -> frozenset[SourceName]:
        return frozenset(
            name for name, source in self.request.sources.items() if is_model(name, source)
        )

    def _expand(self, shapes: Mapping[SourceName, ModelShape]) -> Plan:
        request = self.request
        return expand(request.spec, targets=request.targets, sources=request.sources, shapes=shapes)


def exact_plan(
    planner: BuildPlanner,
    ingested: Mapping[TaskId, Result],
    read_facts: Callable[[Result], ModelFacts],
) -> Exact:
    """Plan what is built, once all ingest tasks have ended.

    Args:
        planner: Of the build.
        ingested: What they left.
        read_facts: See `StandingResults`.

    Raises:
        CorruptBlob: What one found is lost.
        GenAIError: What is asked for cannot work.
    """
    shapes = {}
    for name in planner.request.sources:
        result = ingested.get(ingest_id(name))
        if result is not None:
            contents = {path: file.sha256 for path, file in result.outputs.items()}
            shapes[name] = shape_from_facts(read_facts(result), contents)
    return planner.exact(shapes)


def facts_of(ingested: Result, read_blob: Callable[[Blob], bytes], *, where: str) -> ModelFacts:
    """Read what an ingest task found.

    Args:
        ingested: What its record names.
        read_blob: Of the store.
        where: The store, for messages.

    Raises:
        CorruptBlob: It is lost.
        StoreUnreadable: Its record names another file in its place, as ingest never does.
    """
    file = ingested.outputs.get(FACTS_FILE)
    why = "it names no such file"
    if file is not None:
        data = read_blob(Blob(sha256=file.sha256, size=file.size))
        try:
            return ModelFacts.from_bytes(data)
        except ValueError as error:
            why = " ".join(str(error).split())[:200]
    raise StoreUnreadable(
        f"the record of an ingest is not as ingest wrote it: {FACTS_FILE}: {why}",
        where=where,
        remedy="find out who writes there, remove the record, and build again",
    )


class StandingResults(Protocol):
    """What the shell of a planner knows: which results stand, and what ingest found."""

    def look(self, phase: Ingesting) -> Mapping[TaskId, Result]:
        """Look the tasks of a phase up; returns those whose results stand."""
        ...

    def read_facts(self, ingested: Result) -> ModelFacts:
        """Read what an ingest task found.

        Raises:
            CorruptBlob: It is lost; the next look says so.
        """
        ...

    def forget(self) -> None:
        """Believe no earlier look: bytes that were found are not there."""
        ...


def plan_build(planner: BuildPlanner, standing: StandingResults) -> Forecast | Exact:
    """Plan as far as what stands allows.

    Args:
        planner: Of the build.
        standing: Answers what is asked on the way.

    Raises:
        CorruptBlob: What ingest left is lost again and again.
        GenAIError: What is asked for cannot work.
    """
    for _ in range(_MOST_LOOKS):
        found = standing.look(planner.ingesting)
        if len(found) < len(planner.ingesting.plan.tasks):
            return planner.forecast
        try:
            return exact_plan(planner, found, standing.read_facts)
        except CorruptBlob:
            standing.forget()
    raise CorruptBlob("what ingest left keeps being lost", where="the store")
