"""The tasks of a build that has run in a cluster, each with its record in the store.

A status stays small and finished Jobs go after a while, so which record a task left follows from
what stays: the source's record, and the store. The plan is made again as the operator made it, and
a task's record is the one with its operation, its config and inputs that are outputs of its
predecessors. Nothing depends on today's toolchain, so logs of an outdated build are found too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.connection import Cluster, Json
from genai_cli.display.output import tell
from genai_core import chips
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.facts import ModelFacts
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_served
from genai_core.kinds.target import TargetSpec
from genai_core.names import MODEL, Backend, Digest, Key, SourceName, TaskId
from genai_core.operations import ChipConfig
from genai_core.sources.build_sources import sources_of
from genai_core.sources.resolved import RESOLVE, ResolvedSource
from genai_core.store.layered import layers
from genai_core.store.protocol import RecordRef, Store
from genai_core.tasks.record import Blob, Record
from genai_planner.phases import (
    FACTS_FILE,
    BuildPlanner,
    BuildRequest,
    Exact,
    Ingesting,
    plan_build,
)
from genai_planner.plan import FileRef, Plan, Result, result_of
from genai_planner.sources import Source
from genai_planner.targets import Target, parse_target

__all__ = ["build_records", "match_records"]

_AT_ONCE = 16


def build_records(cluster: Cluster, value: Json, store: Store) -> dict[TaskId, Record | None]:
    """The tasks of a build in the plan's order, and what they left; None: nothing that is known.

    Raises:
        BadInput: Its source was never resolved, so that it has no plan.
    """
    spec = read_served(BuildSpec, value["spec"], where="spec")
    sources = _resolved(value, spec, store)
    planner = BuildPlanner(
        BuildRequest(
            spec=spec,
            targets=tuple(_target(cluster, name) for name in spec.targets),
            sources=sources,
            toolchains={},  # records are found by what they are, not by keys
        )
    )
    given = frozenset(f.sha256 for source in sources.values() for f in source.files.values())
    known = _Known(store, given)
    with _of_a_known_version(value):
        phase = plan_build(planner, known)
    if not isinstance(phase, Exact):
        return {task.id: None for task in phase.plan.tasks}
    return known.records(phase.plan)


def _resolved(value: Json, spec: BuildSpec, store: Store) -> dict[SourceName, Source]:
    """What each source of a build was resolved to, by its status.

    Raises:
        BadInput: One was never resolved.
    """
    entries = (value.get("status") or {}).get("sources") or ()
    keys = {entry.get("name", MODEL): entry.get("record", "") for entry in entries}
    found = {}
    for source in sources_of(spec):
        key = Key(keys.get(source.name, "").removeprefix("sha256:"))
        stored = store.get_record(RESOLVE, key) if key else None
        if stored is None:
            what = "its source" if source.name == MODEL else f"its source {source.name}"
            raise BadInput(
                f"{what} was not resolved, so it has no tasks yet",
                where=f"{value['metadata']['namespace']}/{value['metadata']['name']}",
                remedy="see genai status",
            )
        with _of_a_known_version(value):
            resolved = ResolvedSource.model_validate(stored.record.facts)
        found[source.name] = Source(
            {r: FileRef(Digest(f.sha256), f.size) for r, f in resolved.files.items()},
            resolved.config,
            resolved.weight_bits,
        )
    return found


class _Known:
    """What stands in a store, found without keys; see `phases.Standing`."""

    def __init__(self, store: Store, given: frozenset[Digest]) -> None:
        self._store = store
        self._given = given

    def records(self, plan: Plan) -> dict[TaskId, Record | None]:
        records = _records(self._store, {task.operation for task in plan.tasks})
        return match_records(plan, records, self._given)

    def look(self, phase: Ingesting) -> Mapping[TaskId, Result]:
        found = self.records(phase.plan)
        return {task: result_of(record) for task, record in found.items() if record is not None}

    def read_facts(self, ingested: Result) -> ModelFacts:
        facts = ingested.outputs[FACTS_FILE]
        text = self._store.read_blob(Blob(sha256=facts.sha256, size=facts.size))
        return ModelFacts.from_bytes(text)

    def forget(self) -> None:
        """Nothing is remembered."""


@contextmanager
def _of_a_known_version(value: Json) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise BadInput(
            "its plan cannot be made here: what its model was found to be is written otherwise",
            where=f"{value['metadata']['namespace']}/{value['metadata']['name']}",
            remedy="use the genai of the operator's version",
        ) from error


def match_records(
    plan: Plan, records: list[Record], source: frozenset[Digest]
) -> dict[TaskId, Record | None]:
    """Each task's record: its operation, its config, and inputs from where it reads.

    Args:
        plan: The tasks.
        records: To choose from; of several that fit the newest counts.
        source: Digests of the model's files.
    """
    by_operation: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.created_at, reverse=True):
        by_operation.setdefault(record.operation, []).append(record)
    found: dict[TaskId, Record | None] = {}
    for task in plan.tasks:
        allowed = set(source)
        for other in task.after():
            before = found.get(other)
            allowed |= set(before.identities().values()) if before is not None else set()
        config: Mapping[str, Any] = task.config.model_dump(mode="json")
        found[task.id] = next(
            (
                record
                for record in by_operation.get(task.operation, ())
                if record.config == config
                and all(
                    digest in allowed
                    for files in record.inputs.values()
                    for digest in files.values()
                )
            ),
            None,
        )
    return found


def _records(store: Store, operations: set[str]) -> list[Record]:
    """Those of all stores that one reads; what is cached may lie in another than its own."""
    found: list[Record] = []
    for place in layers(store):
        try:
            found += _records_in(place, operations)
        except GenAIError as error:
            if place is store.writable:
                raise
            tell(f"note: a further store is left out: {error}")
    return found


def _records_in(store: Store, operations: set[str]) -> list[Record]:
    refs = [ref for operation in sorted(operations) for ref in store.list_records(operation)]

    def read(ref: RecordRef) -> Record | None:
        try:
            stored = store.get_record(ref.operation, ref.key)
        except CorruptBlob:
            return None
        return stored.record if stored else None

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="records") as pool:
        return [record for record in pool.map(read, refs) if record is not None]


def _target(cluster: Cluster, name: str) -> Target:
    """A GenAITarget as the planner wants it; where it cannot be read, the chip of that name."""
    try:
        value = cluster.get("genaitargets", name)
    except (NotAllowed, NotThere):
        return parse_target(name)
    spec = read_served(TargetSpec, value["spec"], where=f"GenAITarget {name}")
    if spec.backend is Backend.CPU:
        return Target(name, spec.backend, None, dict(spec.compilation))
    if spec.chipset is not None:
        chip = chips.by_name(spec.chipset)
    else:
        chip = chips.by_number(spec.soc_model or 0, int((spec.dsp_arch or "v0").lstrip("v")))
    config = ChipConfig(soc_model=chip.soc_model, dsp_arch=chip.dsp_arch)
    return Target(name, spec.backend, config, dict(spec.compilation))
