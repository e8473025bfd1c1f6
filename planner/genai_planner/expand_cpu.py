"""Tasks of the cpu target: one dynamic-T model, in the first precision that is good enough.

The precisions that may be tried are all in the plan. A later one's tasks run only where the one
before it was over the budget, so a plan that finds Int8 good never computes the others; where none
is within, the last package task fails and says what each of them lost.
"""

from __future__ import annotations

from dataclasses import replace

from genai_core.kinds.build import BuildSpec, CpuPrecision
from genai_core.names import Backend, Gaps, Precision, TaskId
from genai_core.operations import (
    CompileCpuConfig,
    ConvertCpuConfig,
    FidelityConfig,
    PackageConfig,
)
from genai_planner import inputs
from genai_planner.contexts import GraphGrid
from genai_planner.graph import Condition, Inputs, Plan, Selection, Task
from genai_planner.shape import ModelShape
from genai_planner.sizing import MIB, demand
from genai_planner.source_view import SourceView
from genai_planner.splits import balanced
from genai_planner.targets import Target

__all__ = ["expand_cpu"]

RANGE_BYTES = 256 * MIB
"""Float weights that one convert task holds: small enough to run several side by side."""


def expand_cpu(
    spec: BuildSpec,
    target: Target,
    grid: GraphGrid,
    *,
    shape: ModelShape,
    source: SourceView,
) -> Plan:
    """Make the tasks behind ingest for the cpu target."""
    wanted = spec.quantization.cpu_precision
    precisions = wanted.candidates()
    note = f"cpu precision {wanted}: as given"
    if wanted is CpuPrecision.AUTO:
        names = ", ".join(precisions)
        note = f"cpu precision: the first of {names} within the budget"
        if not source.has_encodings and spec.quantization.gaps is Gaps.FLOAT:
            precisions, note = (Precision.FLOAT,), "cpu precision Float: there are no encodings"
    ranges = _ranges(shape)
    tasks: list[Task] = []
    packages: list[TaskId] = []
    tried: list[TaskId] = []
    for precision in precisions:
        when = Condition(tried[-1], within=False) if tried else None
        compiled = TaskId(f"compile/{target.name}/{precision.lower()}")
        fidelity = TaskId(f"fidelity/{target.name}/{precision.lower()}")
        tried.append(fidelity)
        converts = _converts(spec, target, precision, ranges=ranges, shape=shape, source=source)
        tasks += [replace(task, when=when) for task in converts]
        compile_task = _compile(
            spec, target, precision, converts=converts, shape=shape, source=source
        )
        tasks.append(replace(compile_task, when=when))
        tasks.append(
            _fidelity(spec, target, precision, compiled=compiled, shape=shape, source=source)
        )
        package = _package(spec, target, grid, precision=precision, shape=shape)
        if precision is precisions[-1]:
            package = replace(package, rivals=tuple(tried))
        tasks.append(package)
        packages.append(package.id)
    return Plan(tuple(tasks), {target.name: tuple(packages)}, notes=(note,))


def _ranges(shape: ModelShape) -> list[tuple[int, int]]:
    """Layers of each convert task; the first also has the embedding, the last the head."""
    total = 4 * (shape.embedding + sum(shape.layers) + shape.head)
    count = min(len(shape.layers), max(1, -(-total // RANGE_BYTES)))
    return balanced(shape.layers, count, first=shape.embedding, last=shape.head)


def _converts(
    spec: BuildSpec,
    target: Target,
    precision: Precision,
    *,
    ranges: list[tuple[int, int]],
    shape: ModelShape,
    source: SourceView,
) -> list[Task]:
    tasks = []
    for index, (first, last) in enumerate(ranges, 1):
        embedding, lm_head = index == 1, index == len(ranges)
        weights = inputs.part_weights(
            shape, range(first, last), embedding=embedding, lm_head=lm_head
        )
        sources: Inputs = {"model": inputs.ingested("model.onnx", "facts.json", *weights)}
        if source.has_encodings:
            sources["encodings"] = inputs.encodings()
        count = sum(shape.layers[first:last])
        count += (shape.embedding if embedding else 0) + (shape.head if lm_head else 0)
        tasks.append(
            Task(
                id=TaskId(f"convert/{target.name}/{precision.lower()}_{index}_of_{len(ranges)}"),
                operation="convert",
                backend=Backend.CPU,
                config=ConvertCpuConfig(
                    precision=precision,
                    first=first,
                    last=last,
                    embedding=embedding,
                    lm_head=lm_head,
                    gaps=spec.quantization.gaps,
                ),
                inputs=sources,
                demand=demand("convert-cpu", count),
                target=target.name,
                split=f"{index}/{len(ranges)}",
            )
        )
    return tasks


def _compile(
    spec: BuildSpec,
    target: Target,
    precision: Precision,
    *,
    converts: list[Task],
    shape: ModelShape,
    source: SourceView,
) -> Task:
    sources: Inputs = {
        f"range_{index:03d}": (Selection(task.id, ("*",)),) for index, task in enumerate(converts)
    }
    # The whole core graph: the result is compared with it.
    sources["model"] = inputs.core()
    if source.has_encodings:
        sources["encodings"] = inputs.encodings()
    if spec.quantization.gaps is Gaps.CALIBRATE:
        sources |= {k: v for k, v in inputs.calibration().items() if k != "core"}
    return Task(
        id=TaskId(f"compile/{target.name}/{precision.lower()}"),
        operation="compile",
        backend=Backend.CPU,
        config=CompileCpuConfig(precision=precision, gaps=spec.quantization.gaps),
        inputs=sources,
        demand=demand("compile-cpu", shape.parameters),
        target=target.name,
    )


def _fidelity(
    spec: BuildSpec,
    target: Target,
    precision: Precision,
    *,
    compiled: TaskId,
    shape: ModelShape,
    source: SourceView,
) -> Task:
    sources: Inputs = {
        "compiled": (Selection(compiled, ("*",)),),
        "core": inputs.core(),
        "assets": inputs.assets(),
    }
    if source.has_encodings:
        sources["encodings"] = inputs.encodings()
    if "tokens.npy" in source.roles:
        sources["tokens"] = inputs.ingested("tokens/tokens.npy")
    return Task(
        id=TaskId(f"fidelity/{target.name}/{precision.lower()}"),
        operation="fidelity",
        backend=Backend.CPU,
        config=FidelityConfig(
            backend=Backend.CPU,
            precision=precision,
            budget_nats=spec.quantization.fidelity.budget_nats,
        ),
        inputs=sources,
        demand=demand("fidelity", shape.parameters),
        target=target.name,
    )


def _package(
    spec: BuildSpec, target: Target, grid: GraphGrid, *, precision: Precision, shape: ModelShape
) -> Task:
    compiled = TaskId(f"compile/{target.name}/{precision.lower()}")
    fidelity = TaskId(f"fidelity/{target.name}/{precision.lower()}")
    return Task(
        id=TaskId(f"package/{target.name}/{precision.lower()}"),
        operation="package",
        backend=Backend.CPU,
        config=PackageConfig(
            target=target.name,
            backend=Backend.CPU,
            context_length=grid.context_length,
            golden_prompts=tuple(spec.golden.prompts),
            golden_max_tokens=spec.golden.max_tokens,
        ),
        inputs={
            "compiled": (Selection(compiled, ("*",)),),
            "ingest": inputs.ingested("facts.json", "model.onnx", "assets/*", "measured.json"),
            "fidelity": (Selection(fidelity, ("*",)),),
        },
        demand=demand("package", shape.parameters),
        target=target.name,
        when=Condition(fidelity, within=True),
    )
