"""A spec and a model's shape -> every task of the build.

    ingest ─┬─ arcl (graph) ─ transform (graph, split) ─ convert ─┬─ compile (split) ─ package   htp
            └─ convert (layers) ─ compile ─ fidelity ─────────────┴─ package                     cpu

Tasks that mean the same for several targets stand once: everything before compile is shared by all
htp targets. A number that nobody wrote carries the sentence that says where it came from
(`Plan.notes`), and what cannot work is refused here, before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from genai_core.errors import BadEncodings, InvalidSpec
from genai_core.kinds.build import BuildSpec, CpuPrecision
from genai_core.names import Backend, Gaps, TaskId
from genai_core.operations import IngestConfig
from genai_planner import expand_cpu, expand_htp
from genai_planner.contexts import derive_graphs
from genai_planner.graph import Plan, Selection, Task
from genai_planner.inputs import INGEST
from genai_planner.shape import ModelShape
from genai_planner.sizing import demand
from genai_planner.source_view import SourceView
from genai_planner.targets import Target

__all__ = ["expand"]


@dataclass
class _Draft:
    tasks: list[Task] = field(default_factory=list)
    containers: dict[str, tuple[TaskId, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def expand(
    spec: BuildSpec,
    *,
    targets: Sequence[Target],
    source: SourceView,
    shape: ModelShape | None,
) -> Plan:
    """Make the plan of a build.

    Args:
        spec: As written, defaults filled in.
        targets: `targets.parse_targets(spec.targets)`, or what GenAITargets say.
        source: Which files the model has.
        shape: From ingest where it has run, else a forecast; None = nothing is known yet, and the
            plan is ingest alone.

    Raises:
        InvalidSpec: A combination that cannot work.
        BadEncodings: The model has none and the spec does not say what then.
    """
    _check_gaps(spec, source, cpu=any(target.backend is Backend.CPU for target in targets))
    ingest = _ingest(spec, source, shape)
    if shape is None:
        return Plan((ingest,), complete=False)
    draft = _Draft([ingest])
    htp = [target for target in targets if target.backend is Backend.HTP]
    grid = derive_graphs(spec.graphs, shape, htp=bool(htp), native_kv=spec.compilation.native_kv)
    draft.notes += grid.notes
    draft.warnings += grid.warnings
    if htp:
        part = expand_htp.expand_htp(spec, htp, grid, shape=shape, source=source)
        _join(draft, part)
    for target in targets:
        if target.backend is Backend.CPU:
            _join(draft, expand_cpu.expand_cpu(spec, target, grid, shape=shape, source=source))
    order = {target.name: draft.containers[target.name] for target in targets}
    return Plan(
        tuple(draft.tasks),
        containers=order,
        notes=tuple(draft.notes),
        warnings=tuple(draft.warnings),
        complete=shape.exact,
    )


def _join(draft: _Draft, part: Plan) -> None:
    draft.tasks += part.tasks
    draft.containers.update(part.containers)
    draft.notes += part.notes
    draft.warnings += part.warnings


def _check_gaps(spec: BuildSpec, source: SourceView, *, cpu: bool) -> None:
    if source.has_encodings:
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
    if spec.quantization.gaps is Gaps.ERROR:
        raise BadEncodings(
            "the model has no encodings",
            where="spec.quantization.gaps",
            remedy="put its .encodings file beside the model, or set gaps: Float for a float "
            "container, or gaps: Calibrate",
        )


def _ingest(spec: BuildSpec, source: SourceView, shape: ModelShape | None) -> Task:
    weights = shape.parameters if shape else source.size // 4
    largest = max((*shape.layers, shape.embedding, shape.head)) if shape else weights
    return Task(
        id=INGEST,
        operation="ingest",
        backend=None,
        config=IngestConfig(architecture=spec.model.architecture),
        inputs={"source": (Selection(None, ("*",)),)},
        demand=demand("ingest", weights, largest=largest),
    )
