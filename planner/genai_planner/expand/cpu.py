"""Tasks of the cpu target: one dynamic-T model, in the first precision that is good enough.

The precisions that may be tried are all in the plan. A later one's tasks run only where the one
before it was over the budget, so a plan that finds Int8 good never computes the others; where none
is within, the last package task fails and says what each of them lost.
"""

from __future__ import annotations

from dataclasses import replace

from genai_core.kinds.build import CpuPrecision
from genai_core.names import MODEL, Backend, Precision, TaskId
from genai_core.operations import (
    CompileCpuConfig,
    ConvertCpuConfig,
    FidelityConfig,
    PackageConfig,
)
from genai_planner.expand import inputs
from genai_planner.expand.context import PlanContext
from genai_planner.expand.draft import draft_inputs
from genai_planner.expand.forecast import forecast_inputs
from genai_planner.expand.lora import (
    adapter_inputs,
    adapter_names,
    adapter_yardstick,
    bounds,
    use_cases,
)
from genai_planner.expand.picture_encoder import vision_inputs
from genai_planner.expand.splits import balanced
from genai_planner.plan import Demand, FidelityCondition, Inputs, Plan, Task
from genai_planner.shape import ModelShape
from genai_planner.sizing import MIB, cpu_model_bytes, demand, fidelity_demand
from genai_planner.targets import Target

__all__ = ["expand_cpu", "expand_draft"]

RANGE_BYTES = 256 * MIB
"""Float weights that one convert task holds: small enough to run several side by side."""


def expand_cpu(context: PlanContext, target: Target) -> Plan:
    """Make the tasks behind ingest for a cpu target."""
    precisions, note = _precisions(context)
    tasks: list[Task] = []
    packages: list[TaskId] = []
    tried: list[TaskId] = []
    for precision in precisions:
        builder = _Builder(context, target, precision)
        when = FidelityCondition(tried[-1], within=False) if tried else None
        tasks += [replace(task, when=when) for task in builder.converts()]
        tasks += [replace(builder.compile(), when=when), builder.fidelity()]
        tried.append(builder.ids["fidelity"])
        last = precision is precisions[-1]
        tasks.append(replace(builder.package(), rivals=tuple(tried) if last else ()))
        packages.append(builder.ids["package"])
    return Plan(tuple(tasks), {target.name: tuple(packages)}, notes=(note,))


def expand_draft(draft: PlanContext, target: Target) -> Plan:
    """Make the tasks behind ingest for a draft model: a container, but none that is delivered."""
    builder = _Builder(draft, target, draft.spec.quantization.cpu_precision.candidates()[0])
    package = replace(builder.package(), when=None)
    return Plan((*builder.converts(), builder.compile(), package))


def _precisions(context: PlanContext) -> tuple[tuple[Precision, ...], str]:
    """What may be tried, in this order, and the sentence that says why."""
    wanted = context.spec.quantization.cpu_precision
    if wanted is not CpuPrecision.AUTO:
        return wanted.candidates(), f"cpu precision {wanted}: as given"
    if context.stays_float:
        return (Precision.FLOAT,), "cpu precision Float: there are no encodings"
    precisions = wanted.candidates()
    return precisions, f"cpu precision: the first of {', '.join(precisions)} within the budget"


def _ranges(shape: ModelShape) -> list[tuple[int, int]]:
    """Layers of each convert task; the first also has the embedding, the last the head."""
    total = 4 * (shape.embedding + sum(shape.layers) + shape.head)
    count = min(len(shape.layers), max(1, -(-total // RANGE_BYTES)))
    return balanced(shape.layers, count, first=shape.embedding, last=shape.head)


class _Builder:
    """The tasks of one precision."""

    def __init__(self, context: PlanContext, target: Target, precision: Precision) -> None:
        self.context = context
        self.spec = context.spec
        self.shape = context.shape
        self.target = target
        self.precision = precision
        self.ranges = _ranges(context.shape)
        self.model_bytes = cpu_model_bytes(context.shape, precision)
        self.ids = {
            operation: TaskId(f"{operation}/{target.name}/{self._name()}")
            for operation in ("convert", "compile", "fidelity", "package")
        }

    @property
    def _is_draft(self) -> bool:
        return self.context.source != MODEL

    def _name(self) -> str:
        """What tells the tasks of a model's precisions apart, and a draft's."""
        source = self.context.source
        return self.precision.lower() if source == MODEL else str(source)

    def converts(self) -> list[Task]:
        """Weights of a few layers each, in the form that the model reads."""
        return [self._convert(index) for index in range(1, len(self.ranges) + 1)]

    def _convert_id(self, index: int) -> TaskId:
        return TaskId(f"{self.ids['convert']}_{index}_of_{len(self.ranges)}")

    def _convert(self, index: int) -> Task:
        shape, (first, last) = self.shape, self.ranges[index - 1]
        embedding, lm_head = index == 1, index == len(self.ranges)
        weights = inputs.part_weights(
            shape, range(first, last), embedding=embedding, lm_head=lm_head
        )
        sources: Inputs = {
            "model": inputs.ingested(
                "model.onnx", "facts.json", *weights, source=self.context.source
            )
        }
        if self.context.model.has_encodings:
            sources["encodings"] = inputs.encodings(self.context.source)
        count = sum(shape.layers[first:last])
        count += (shape.embedding if embedding else 0) + (shape.head if lm_head else 0)
        # A linear at a time, the largest of which is a layer's at most, or lm_head.
        held = max((*shape.layers[first:last], shape.head if lm_head else 0))
        return Task(
            id=self._convert_id(index),
            operation="convert",
            backend=Backend.CPU,
            config=ConvertCpuConfig(
                precision=self.precision,
                first=first,
                last=last,
                embedding=embedding,
                lm_head=lm_head,
                gaps=self.spec.quantization.gaps,
            ),
            inputs=sources,
            demand=demand("convert-cpu", count, largest=held),
            target=self.target.name,
            split=f"{index}/{len(self.ranges)}",
        )

    def compile(self) -> Task:
        """The model; it is compared with the whole core graph."""
        head = self.context.head
        sources: Inputs = {
            f"range_{index:03d}": inputs.whole(self._convert_id(index + 1))
            for index in range(len(self.ranges))
        }
        sources["model"] = inputs.core(self.context.source)
        if self.context.model.has_encodings:
            sources["encodings"] = inputs.encodings(self.context.source)
        if self.context.calibrates:
            sources |= inputs.calibration()
        return Task(
            id=self.ids["compile"],
            operation="compile",
            backend=Backend.CPU,
            config=CompileCpuConfig(
                precision=self.precision,
                gaps=self.spec.quantization.gaps,
                hidden_states=() if head is None or self._is_draft else head.hidden_states,
            ),
            inputs=sources,
            demand=demand(
                "compile-cpu",
                self.shape.parameters,
                largest=self.shape.largest,
                session=self.model_bytes,
            ),
            target=self.target.name,
        )

    def fidelity(self) -> Task:
        """Its loss against the source's."""
        return Task(
            id=self.ids["fidelity"],
            operation="fidelity",
            backend=Backend.CPU,
            config=FidelityConfig(
                backend=Backend.CPU,
                precision=self.precision,
                budget_nats=self.spec.quantization.fidelity.budget_nats,
            ),
            inputs={
                "compiled": inputs.whole(self.ids["compile"]),
                **inputs.scored(self.context),
            },
            demand=fidelity_demand(
                self.shape,
                session=self.model_bytes,
                simulated=self.context.model.has_encodings,
                text_given=self.context.model.has_tokens,
            ),
            target=self.target.name,
        )

    def _measured(self) -> Inputs:
        """A draft's loss is nobody's: the model verifies what it guesses."""
        if self.context.source != MODEL:
            return {}
        return {"fidelity": inputs.whole(self.ids["fidelity"])}

    def package(self) -> Task:
        """The container, where the loss is within the budget."""
        golden = self.spec.golden
        return Task(
            id=self.ids["package"],
            operation="package",
            backend=Backend.CPU,
            config=PackageConfig(
                target=self.target.name,
                backend=Backend.CPU,
                context_length=self.context.grid.context_length,
                golden_prompts=tuple(golden.prompts),
                golden_max_tokens=golden.max_tokens,
                adapters=adapter_names(self.spec),
                use_cases=use_cases(self.spec),
                head=self.context.head if self._is_draft else None,
                **bounds(self.spec),
            ),
            inputs={
                "compiled": inputs.whole(self.ids["compile"]),
                **inputs.package_inputs(
                    self.context.source, head=self._is_draft and self.context.head is not None
                ),
                **adapter_inputs(self.spec),
                **adapter_yardstick(self.context),
                **draft_inputs(self.spec, self.target.name),
                **forecast_inputs(self.spec),
                **vision_inputs(self.spec),
                **self._measured(),
            },
            demand=self._package_demand(),
            target=self.target.name,
            when=FidelityCondition(self.ids["fidelity"], within=True),
        )

    def _package_demand(self) -> Demand:
        """It runs the model, and with adapters the yardstick of each use case beside it."""
        alone = demand("package", self.shape.parameters, largest=0, session=self.model_bytes)
        if self.spec.lora is None:
            return alone
        # The model itself writes the text where none is given.
        held = fidelity_demand(
            self.shape,
            session=0,
            simulated=self.context.model.has_encodings,
            text_given=True,
        )
        return Demand(alone.memory_bytes + held.memory_bytes, alone.seconds + held.seconds)
