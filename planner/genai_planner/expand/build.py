"""A spec and the shapes of its sources -> every task of the build.

    ingest ─┬─ arcl (graph) ─ transform (graph, split) ─ convert ─┬─ compile (split) ─ package   htp
            └─ convert (layers) ─ compile ─ fidelity ─────────────┴─ package                     cpu

Tasks that mean the same for several targets stand once: everything before compile is shared by all
htp targets. A number that nobody wrote carries the sentence that says where it came from
(`Plan.notes`), and what cannot work is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec, CpuPrecision
from genai_core.names import DRAFT, MODEL, Backend, Gaps, SourceName, is_child
from genai_core.operations import IngestConfig
from genai_planner.expand import cpu, htp
from genai_planner.expand.children import (
    children_on_cpu,
    missing_encodings,
    planned_children,
    refuse_children,
)
from genai_planner.expand.context import PlanContext
from genai_planner.expand.draft import draft_context, refuse_draft
from genai_planner.expand.forecast import expand_forecast, refuse_forecast
from genai_planner.expand.grid import derive_graphs
from genai_planner.expand.head import head_config, is_draft, is_head
from genai_planner.expand.inputs import ingest_id
from genai_planner.expand.lora import import_adapters, refuse_adapters
from genai_planner.expand.picture_encoder import expand_vision, refuse_vision
from genai_planner.plan import Plan, Selection, Task
from genai_planner.shape import ModelShape
from genai_planner.sizing import demand
from genai_planner.sources import Source, Sources, is_model
from genai_planner.targets import Target

__all__ = ["expand", "expand_ingest"]

Shapes = Mapping[SourceName, ModelShape]


def expand_ingest(
    spec: BuildSpec, *, targets: Sequence[Target], sources: Sources, shapes: Shapes | None = None
) -> Plan:
    """Make the plan of what is known before any source was read: its ingest tasks alone.

    Args:
        spec: As written, defaults filled in.
        targets: See `expand`.
        sources: By name.
        shapes: Of the sources, as far as they are known: they say how much memory reading takes.

    Raises:
        InvalidSpec: A combination that cannot work.
        BadEncodings: The model has none and the spec does not say what then.
    """
    backends = {target.backend for target in targets}
    _check_gaps(spec, sources[MODEL], cpu=Backend.CPU in backends)
    refuse_adapters(spec)
    refuse_children(spec, sources, backends)
    refuse_draft(spec, backends)
    refuse_forecast(spec, backends)
    refuse_vision(spec, backends)
    return Plan(
        tuple(
            _ingest(spec, name, sources, shape=(shapes or {}).get(name))
            for name, source in sources.items()
            if is_model(name, source)
        )
    )


def expand(
    spec: BuildSpec,
    *,
    targets: Sequence[Target],
    sources: Sources,
    shapes: Shapes,
) -> Plan:
    """Make the plan of a build.

    Args:
        spec: As written, defaults filled in.
        targets: `targets.parse_targets(spec.targets)`, or what GenAITargets say.
        sources: By name.
        shapes: Of every source that is a model: from ingest where it has run, else a forecast.

    Raises:
        InvalidSpec: A combination that cannot work.
        BadEncodings: The model has none and the spec does not say what then.
    """
    ingest = expand_ingest(spec, targets=targets, sources=sources, shapes=shapes)
    chips = [target for target in targets if target.backend is Backend.HTP]
    grid = derive_graphs(
        spec.graphs, shapes[MODEL], htp=bool(chips), native_kv=spec.compilation.native_kv
    )
    head = head_config(spec, sources, shapes)
    context = PlanContext(spec, shapes[MODEL], sources[MODEL], grid, head=head)
    children = planned_children(context, sources, shapes)
    adapters = tuple(import_adapters(context, sources))
    parts = [
        Plan(adapters, notes=grid.notes, warnings=grid.warnings),
        expand_forecast(context),
        expand_vision(context, sources),
    ]
    if chips:
        parts.append(htp.expand_htp(context, chips, children))
    if is_draft(spec):
        draft = draft_context(context, sources, shapes[DRAFT])
        parts += [
            replace(cpu.expand_draft(draft, target), notes=draft.grid.notes) for target in targets
        ]
    on_cpu = [target for target in targets if target.backend is Backend.CPU]
    if on_cpu:
        parts.append(Plan((), notes=children_on_cpu(spec, shapes)))
    parts += [cpu.expand_cpu(context, target) for target in on_cpu]
    return _joined([ingest, *parts], [target.name for target in targets])


def _joined(parts: Sequence[Plan], targets: Iterable[str]) -> Plan:
    containers = {name: tasks for part in parts for name, tasks in part.containers.items()}
    return Plan(
        tuple(task for part in parts for task in part.tasks),
        containers={target: containers[target] for target in targets},
        notes=tuple(note for part in parts for note in part.notes),
        warnings=tuple(warning for part in parts for warning in part.warnings),
    )


def _check_gaps(spec: BuildSpec, model: Source, *, cpu: bool) -> None:
    if model.has_encodings:
        return
    wanted = spec.quantization.cpu_precision
    integers = wanted in (CpuPrecision.INT8, CpuPrecision.INT4)
    if cpu and integers and spec.quantization.gaps is Gaps.FLOAT:
        raise InvalidSpec(
            f"{wanted} needs to know the ranges of tensors, the model has no encodings, and gaps: "
            "Float leaves such tensors in floating point",
            where="spec.quantization.cpuPrecision",
            remedy="set gaps: Calibrate with a calibration text, add the model's .encodings, or "
            "use cpuPrecision: Float or Auto",
        )
    missing_encodings(spec.quantization.gaps, model, what="model", where="spec.quantization.gaps")


def _ingest(
    spec: BuildSpec, name: SourceName, sources: Sources, *, shape: ModelShape | None
) -> Task:
    source, model = sources[name], sources[MODEL]
    weights = shape.parameters if shape else source.size // 4
    largest = shape.largest if shape else weights
    architecture = spec.model.architecture if name == MODEL or is_child(name) else None
    if is_child(name) and not source.has_config:  # it inherits what the model's says
        stated = model.config.get("model_type")
        architecture = architecture or (stated if isinstance(stated, str) else None)
    return Task(
        id=ingest_id(name),
        operation="ingest",
        backend=None,
        config=IngestConfig(
            architecture=architecture,
            head=name == DRAFT and is_head(spec),
            branches=name == MODEL and spec.lora is not None and not spec.lora.create_graph,
        ),
        inputs={"source": (Selection(None, ("*",), name),)},
        demand=demand("ingest", weights, largest=largest),
    )
