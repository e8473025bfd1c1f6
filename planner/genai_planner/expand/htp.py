"""Tasks of the htp targets: static graphs, splits, one context binary for each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from genai_core import compile_options
from genai_core.graphs import graph_name
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.lora import QuantUpdatableMode
from genai_core.names import MODEL, Backend, TaskId
from genai_core.operations import (
    ArclConfig,
    CompileHtpConfig,
    ConvertHtpConfig,
    FidelityConfig,
    GraphConfig,
    PackageConfig,
    SplitConfig,
    StartPoint,
    TransformConfig,
)
from genai_planner.expand import inputs
from genai_planner.expand.children import PlannedChild, options_of
from genai_planner.expand.context import PlanContext
from genai_planner.expand.lora import (
    GRAPH,
    adapter_inputs,
    adapter_names,
    adapter_yardstick,
    bounds,
    branch_ranges,
    case_ranges,
    graph_inputs,
    of_case,
    of_graphs,
    of_quantized,
    use_cases,
)
from genai_planner.expand.merged import MergedCase, merged_cases, merged_note, of_mode
from genai_planner.expand.splits import derive_splits
from genai_planner.plan import FidelityCondition, Inputs, Plan, Selection, Task
from genai_planner.shape import ModelShape
from genai_planner.sizing import binary_sizes, demand, fidelity_demand
from genai_planner.targets import Target

__all__ = ["expand_htp"]

EMULATED_WEIGHTS = 50_000_000
EMULATED_CL = 1024
"""Up to here a build is small enough that x86 emulates its graphs."""

EMULATED_LAYERS_BY_CL = 8192
"""A longer context is emulated too where the layers are this few: 4096 with two. A pass costs by
the product; float16 costs ten times as much there and stays at `EMULATED_CL`."""

EMULATED_PIECES = 4
"""Pieces of text that the emulator scores: it takes a good part of a second for each pass."""


def expand_htp(
    context: PlanContext, targets: Sequence[Target], children: Sequence[PlannedChild] = ()
) -> Plan:
    """Make the tasks behind ingest for all htp targets together.

    Args:
        context: Of the model.
        targets: The htp targets.
        children: Models of their own for the graphs of one AR each.

    Raises:
        InvalidSpec: A compile option that does not exist or cannot be honoured, or a wrong split.
    """
    spec, grid = context.spec, context.grid
    for target in targets:
        compile_options.parse(target.options, where=f"target {target.name}")
    compile_options.parse(spec.compilation.options, where="spec.compilation.options")
    sizes = binary_sizes(
        context.shape,
        context.model.weight_bits,
        gaps=spec.quantization.gaps,
        copies=1 if spec.compilation.weight_sharing else len(grid.graphs),
    )
    cut = derive_splits(spec.splits, sizes)
    emulation, verified = _emulated(context.shape, grid.context_length, float16=context.stays_float)
    cases = merged_cases(spec)
    notes = [merged_note(spec, cases, targets, cut.sizes)] if cases else []
    notes += [f"AR {one.child.arn}: from the child {one.child.label}" for one in children]
    builder = _Builder(
        context, splits=cut.splits, emulation=emulation, cases=cases, children=children
    )
    label = targets[0].name if len(targets) == 1 else ""
    tasks = builder.shared(label)
    containers: dict[str, tuple[TaskId, ...]] = {}
    for target in targets:
        mine = builder.of_target(target)
        tasks += mine
        containers[target.name] = (mine[-1].id,)
    return Plan(
        tuple(tasks), containers, notes=(*cut.notes, *notes, verified), warnings=cut.warnings
    )


def _emulated(shape: ModelShape, context: int, *, float16: bool) -> tuple[bool, str]:
    """Whether the container gets a twin that x86 runs, and the sentence that says why."""
    small = f"models below {EMULATED_WEIGHTS // 10**6} million weights with CL up to {EMULATED_CL}"
    if shape.parameters < EMULATED_WEIGHTS:
        if context <= EMULATED_CL:
            return True, f"run in the emulator, as {small} are"
        if not float16 and len(shape.layers) * context <= EMULATED_LAYERS_BY_CL:
            return True, f"run in the emulator: layers x CL is at most {EMULATED_LAYERS_BY_CL}"
    return False, f"verified by its metadata alone: only {small} are run in the emulator"


class _Origin:
    """The model that a graph is made from; what its parts read is found once, not for each task.

    Attributes:
        context: Of the model, or of a child.
        weights: Number of a split -> facts and files of weights.
        count: Number of a split -> weights in it.
    """

    def __init__(self, context: PlanContext, splits: tuple[SplitConfig, ...]) -> None:
        self.context = context
        self.weights = {split.index: self._files(split) for split in splits}
        self.count = {split.index: self._weights(split) for split in splits}

    def _weights(self, split: SplitConfig) -> int:
        shape = self.context.shape
        return (
            sum(shape.layers[split.first : split.last])
            + (shape.embedding if split.embedding else 0)
            + (shape.head if split.lm_head else 0)
        )

    def _files(self, split: SplitConfig) -> tuple[Selection, ...]:
        weights = inputs.part_weights(
            self.context.shape,
            range(split.first, split.last),
            embedding=split.embedding,
            lm_head=split.lm_head,
        )
        return inputs.ingested("facts.json", *weights, source=self.context.source)


class _Builder:
    """The tasks of all graphs and splits."""

    def __init__(
        self,
        context: PlanContext,
        *,
        splits: tuple[SplitConfig, ...],
        emulation: bool,
        cases: tuple[MergedCase, ...],
        children: Sequence[PlannedChild] = (),
    ) -> None:
        self.cases = cases
        self.children = {one.child.arn: one for one in children}
        self.context = context
        self.spec = context.spec
        self.grid = context.grid
        self.shape = context.shape
        self.splits = splits
        self.emulation = emulation
        self.origins: dict[int, _Origin] = {}
        own = _Origin(context, splits)
        for graph in self.grid.graphs:
            one = self.children.get(graph.ar)
            if graph.ar not in self.origins:
                self.origins[graph.ar] = own if one is None else _Origin(one.context, splits)
        self.count = own.count

    def shared(self, label: str) -> list[Task]:
        """arcl, transform and convert, which know no chip."""
        decided = (graph_inputs(self.context), branch_ranges(self.context))
        tasks = [task for task in decided if task is not None]
        tasks += [self._arcl(graph, label) for graph in self.grid.graphs]
        for graph in self.grid.graphs:
            tasks += [self._transform(graph, split, label) for split in self.splits]
        # A child's parts read those of the model, whose cache they go on with.
        for graph in sorted(self.grid.graphs, key=lambda one: one.ar in self.children):
            tasks += [self._convert(graph, split, label) for split in self.splits]
        if self.cases:
            tasks += self._shared_of_cases(label)
        return tasks

    def _shared_of_cases(self, label: str) -> list[Task]:
        """The static graphs that adapters become part of, and each use case's own."""
        pairs = [(graph, split) for graph in self.grid.graphs for split in self.splits]
        tasks = [self._arcl(graph, label, branched=True) for graph in self.grid.graphs]
        tasks += [self._transform(graph, split, label, branched=True) for graph, split in pairs]
        for case in self.cases:
            ranges = case_ranges(self.context, case)
            tasks += [] if ranges is None else [ranges]
            tasks += [self._convert(graph, split, label, case) for graph, split in pairs]
        return tasks

    def of_target(self, target: Target) -> list[Task]:
        """compile, fidelity where the emulator can do it, package."""
        tasks = [self._compile(target, split) for split in self.splits]
        own: Inputs = {
            f"part_{split.index}": inputs.whole(task.id)
            for split, task in zip(self.splits, tasks, strict=True)
        }
        parts = dict(own)
        further: list[Task] = []
        for case in self.cases:
            compiled = [self._compile(target, split, case) for split in self.splits]
            further += compiled
            parts |= {
                case.input_name(f"part_{split.index}"): inputs.whole(task.id)
                for split, task in zip(self.splits, compiled, strict=True)
            }
        fidelity = self._fidelity(target, own) if self.emulation else None
        tasks += further
        if fidelity is not None:
            tasks.append(fidelity)
        tasks.append(self._package(target, parts, fidelity))
        return tasks

    def _arcl(self, graph: GraphConfig, label: str, *, branched: bool = False) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self.origins[graph.ar]
        adapters = {"adapters": inputs.whole(GRAPH)} if branched else of_graphs(self.spec)
        return Task(
            id=self._static("arcl", graph, branched=branched),
            operation="arcl",
            backend=None,
            config=ArclConfig(graph=graph),
            inputs={"model": inputs.core(origin.context.source), **adapters},
            demand=demand(
                "arcl", origin.context.shape.parameters, largest=origin.context.shape.largest
            ),
            target=label,
            graph=name,
        )

    def _transform(
        self, graph: GraphConfig, split: SplitConfig, label: str, *, branched: bool = False
    ) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self.origins[graph.ar]
        options = origin.context.spec.transformation
        return Task(
            id=self._static("transform", graph, split, branched=branched),
            operation="transform",
            backend=None,
            config=TransformConfig(
                graph=graph,
                split=split,
                mha2sha=options.mha2sha,
                start_points=tuple(
                    StartPoint(tensor=point.tensor) for point in options.additional_start_points
                ),
            ),
            inputs={
                "model": (
                    *inputs.whole(self._static("arcl", graph, branched=branched)),
                    *origin.weights[split.index],
                )
            },
            demand=demand("transform", origin.count[split.index]),
            target=label,
            graph=name,
            split=f"{split.index}/{split.count}",
        )

    def _convert(
        self, graph: GraphConfig, split: SplitConfig, label: str, case: MergedCase | None = None
    ) -> Task:
        name, origin = graph_name(graph.ar, graph.cl), self.origins[graph.ar]
        context, quantization = origin.context, origin.context.spec.quantization
        transformed = self._static("transform", graph, split, branched=case is not None)
        sources: Inputs = {"model": (*inputs.whole(transformed), *origin.weights[split.index])}
        if context.model.has_encodings:
            sources["encodings"] = inputs.encodings(context.source)
            # All tensors' names tell an entry of another part from one that nothing needs.
            sources["core"] = inputs.ingested("model.onnx", source=context.source)
        if context.calibrates:
            sources |= {"core": inputs.core(context.source), **self._calibration(graph)}
        sources |= of_quantized(self.context) if case is None else of_case(self.context, case)
        sources |= self._cache(graph, split)
        return Task(
            id=self._converted(graph, split, case),
            operation="convert",
            backend=Backend.HTP,
            config=ConvertHtpConfig(
                graph=graph,
                split=split,
                activation_bits=quantization.activation_bits,
                bias_bits=quantization.bias_bits,
                gaps=quantization.gaps,
                worn=() if case is None else case.alphas,
            ),
            inputs=sources,
            demand=demand("convert-htp", origin.count[split.index]),
            target=label,
            graph=name,
            split=f"{split.index}/{split.count}",
        )

    def _calibration(self, graph: GraphConfig) -> Inputs:
        """The text that gaps are calibrated with: a child's own, or the model's."""
        one = self.children.get(graph.ar)
        return inputs.calibration(MODEL if one is None or one.borrows else one.context.source)

    def _cache(self, graph: GraphConfig, split: SplitConfig) -> Inputs:
        """A graph of the model whose cache a child's goes on with, as it was converted."""
        if graph.ar not in self.children or split.first == split.last or self.context.stays_float:
            return {}
        beside = [one for one in self.grid.graphs if one.ar not in self.children]
        other = next((one for one in beside if one.cl == graph.cl), beside[0])
        file = f"{_part(graph_name(other.ar, other.cl), split)}.onnx"
        return {"cache": (Selection(self._converted(other, split, None), (file,)),)}

    def _static(
        self,
        operation: str,
        graph: GraphConfig,
        split: SplitConfig | None = None,
        *,
        branched: bool,
    ) -> TaskId:
        """Of a static graph, or of one with a branch at every linear."""
        name = graph_name(graph.ar, graph.cl)
        name_or_part = name if split is None else _part(name, split)
        folder = "adapters/" if branched else self._folder(graph)
        return TaskId(f"{operation}/{folder}{name_or_part}")

    def _folder(self, graph: GraphConfig) -> str:
        """Of a child's tasks in their ids."""
        one = self.children.get(graph.ar)
        return "" if one is None else f"{one.context.source}/"

    def _converted(self, graph: GraphConfig, split: SplitConfig, case: MergedCase | None) -> TaskId:
        part = _part(graph_name(graph.ar, graph.cl), split)
        return TaskId(f"convert/htp/{self._folder(graph)}{_of(case)}{part}")

    def _options(self, target: Target) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Compile options of all graphs, and those of an AR where they are others."""

        def of(own: Mapping[str, str]) -> dict[str, str]:
            return compile_options.canonical(compile_options.merged(target.options, own))

        every = of(self.spec.compilation.options)
        own = {str(arn): of(options_of(self.spec, one.child)) for arn, one in self.children.items()}
        return every, {arn: options for arn, options in own.items() if options != every}

    def _compile(self, target: Target, split: SplitConfig, case: MergedCase | None = None) -> Task:
        compilation = self.spec.compilation
        sources: Inputs = {}
        for graph in self.grid.graphs:
            name = graph_name(graph.ar, graph.cl)
            sources[str(name)] = inputs.whole(self._converted(graph, split, case))
        options, own_options = self._options(target)
        assert target.chip is not None
        return Task(
            id=TaskId(f"compile/{target.name}/{_of(case)}{split.index}_of_{split.count}"),
            operation="compile",
            backend=Backend.HTP,
            config=CompileHtpConfig(
                chip=target.chip,
                split=split,
                graphs=self.grid.graphs,
                # One graph has nobody to share with, whatever is said.
                weight_sharing=compilation.weight_sharing or len(self.grid.graphs) == 1,
                native_kv=compilation.native_kv,
                options=options,
                own_options=own_options,
                float16=self.context.stays_float,
                emulation=self.emulation,
            ),
            inputs=sources,
            demand=demand("compile-htp", self.count[split.index]),
            target=target.name,
            split=f"{split.index}/{split.count}",
        )

    def _fidelity(self, target: Target, parts: Inputs) -> Task:
        fidelity = self.spec.quantization.fidelity
        sources: Inputs = {**parts, **inputs.scored(self.context)}
        for arn, one in self.children.items():
            name = one.context.source
            sources[f"child_{arn}_core"] = inputs.yardstick(name)
            if one.context.model.has_encodings:
                sources[f"child_{arn}_encodings"] = inputs.encodings(name)
        return Task(
            id=TaskId(f"fidelity/{target.name}"),
            operation="fidelity",
            backend=Backend.HTP,
            config=FidelityConfig(
                backend=Backend.HTP,
                budget_nats=fidelity.budget_nats,
                pieces=EMULATED_PIECES,
                length=min(FidelityConfig.model_fields["length"].default, self.grid.context_length),
                children=tuple(self.children),
            ),
            inputs=sources,
            demand=fidelity_demand(
                self.shape,
                session=None,
                simulated=self.context.model.has_encodings,
                text_given=self.context.model.has_tokens,
            ),
            target=target.name,
        )

    def _package(self, target: Target, parts: Inputs, fidelity: Task | None) -> Task:
        sources: Inputs = {
            **parts,
            **inputs.package_inputs(),
            **of_quantized(self.context),
            **adapter_inputs(self.spec),
            **(adapter_yardstick(self.context) if self.emulation else {}),
        }
        for arn, one in self.children.items():
            files = ("facts.json", "model.onnx")
            sources[f"child_{arn}"] = inputs.ingested(*files, source=one.context.source)
        when = None
        if fidelity is not None:
            sources["fidelity"] = inputs.whole(fidelity.id)
            when = FidelityCondition(fidelity.id, within=True)
        golden = self.spec.golden
        return Task(
            id=TaskId(f"package/{target.name}"),
            operation="package",
            backend=Backend.HTP,
            config=PackageConfig(
                target=target.name,
                backend=Backend.HTP,
                chip=target.chip,
                graphs=self.grid.graphs,
                splits=self.splits,
                context_length=self.grid.context_length,
                golden_prompts=tuple(golden.prompts),
                golden_max_tokens=golden.max_tokens,
                adapters=adapter_names(self.spec),
                use_cases=use_cases(self.spec),
                merged=_merged(self.spec),
                children=tuple(self.children),
                child_weights={str(arn): one.weights for arn, one in self.children.items()},
                **bounds(self.spec),
            ),
            inputs=sources,
            demand=demand("package", self.shape.parameters),
            target=target.name,
            when=when,
            rivals=(fidelity.id,) if fidelity else (),
        )


def _merged(spec: BuildSpec) -> Literal["AdapterOnly", "All"] | None:
    mode = of_mode(spec.lora)
    if mode is QuantUpdatableMode.ALL:
        return "All"
    return "AdapterOnly" if mode is QuantUpdatableMode.ADAPTER_ONLY else None


def _of(case: MergedCase | None) -> str:
    """Whose the tasks are: a folder in their ids, which no part can be called like."""
    return "" if case is None else f"{case.name}/"


def _part(name: str, split: SplitConfig) -> str:
    return f"{name}_{split.index}_of_{split.count}"
