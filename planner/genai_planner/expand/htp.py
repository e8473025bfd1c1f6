"""Tasks of the htp targets: a context binary for each split, its losses, the container."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from genai_core import compile_options
from genai_core.graphs import graph_name
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.lora import QuantUpdatableMode
from genai_core.names import Backend, TaskId
from genai_core.operations import (
    CompileHtpConfig,
    FidelityConfig,
    PackageConfig,
    SplitConfig,
)
from genai_planner.expand import inputs
from genai_planner.expand.children import PlannedChild, options_of
from genai_planner.expand.context import PlanContext
from genai_planner.expand.htp_graphs import HtpGraphs, folder_of
from genai_planner.expand.lora import (
    adapter_inputs,
    adapter_names,
    adapter_yardstick,
    bounds,
    of_quantized,
    use_cases,
)
from genai_planner.expand.merged import MergedCase, merged_cases, merged_note, of_mode
from genai_planner.expand.splits import derive_splits
from genai_planner.plan import FidelityCondition, Inputs, Plan, Task
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
    graphs = HtpGraphs(context, splits=cut.splits, cases=cases, children=children)
    tasks = graphs.tasks(targets[0].name if len(targets) == 1 else "")
    binaries = _Binaries(graphs, emulation=emulation)
    containers: dict[str, tuple[TaskId, ...]] = {}
    for target in targets:
        mine = binaries.of_target(target)
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


class _Binaries:
    """The tasks of one chip: its binaries, what they lose, and the container."""

    def __init__(self, graphs: HtpGraphs, *, emulation: bool) -> None:
        self._graphs = graphs
        self.context = graphs.context
        self.spec = graphs.context.spec
        self.grid = graphs.context.grid
        self.emulation = emulation

    def of_target(self, target: Target) -> list[Task]:
        """compile, fidelity where the emulator can do it, package."""
        tasks = [self._compile(target, split) for split in self._graphs.splits]
        own: Inputs = {
            f"part_{split.index}": inputs.whole(task.id)
            for split, task in zip(self._graphs.splits, tasks, strict=True)
        }
        parts = dict(own)
        further: list[Task] = []
        for case in self._graphs.cases:
            compiled = [self._compile(target, split, case) for split in self._graphs.splits]
            further += compiled
            parts |= {
                case.input_name(f"part_{split.index}"): inputs.whole(task.id)
                for split, task in zip(self._graphs.splits, compiled, strict=True)
            }
        fidelity = self._fidelity(target, own) if self.emulation else None
        tasks += further
        if fidelity is not None:
            tasks.append(fidelity)
        tasks.append(self._package(target, parts, fidelity))
        return tasks

    def _options(self, target: Target) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Compile options of all graphs, and those of an AR where they are others."""

        def of(own: Mapping[str, str]) -> dict[str, str]:
            return compile_options.canonical(compile_options.merged(target.options, own))

        every = of(self.spec.compilation.options)
        own = {
            str(arn): of(options_of(self.spec, one.child))
            for arn, one in self._graphs.children.items()
        }
        return every, {arn: options for arn, options in own.items() if options != every}

    def _compile(self, target: Target, split: SplitConfig, case: MergedCase | None = None) -> Task:
        compilation = self.spec.compilation
        sources: Inputs = {}
        for graph in self.grid.graphs:
            name = graph_name(graph.ar, graph.cl)
            sources[str(name)] = inputs.whole(self._graphs.converted(graph, split, case))
        options, own_options = self._options(target)
        assert target.chip is not None
        return Task(
            id=TaskId(f"compile/{target.name}/{folder_of(case)}{split.index}_of_{split.count}"),
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
            demand=demand("compile-htp", self._graphs.count[split.index]),
            target=target.name,
            split=f"{split.index}/{split.count}",
        )

    def _fidelity(self, target: Target, parts: Inputs) -> Task:
        fidelity = self.spec.quantization.fidelity
        sources: Inputs = {**parts, **inputs.scored(self.context)}
        for arn, one in self._graphs.children.items():
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
                children=tuple(self._graphs.children),
            ),
            inputs=sources,
            demand=fidelity_demand(
                self.context.shape,
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
        for arn, one in self._graphs.children.items():
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
                splits=self._graphs.splits,
                context_length=self.grid.context_length,
                golden_prompts=tuple(golden.prompts),
                golden_max_tokens=golden.max_tokens,
                adapters=adapter_names(self.spec),
                use_cases=use_cases(self.spec),
                merged=_merged(self.spec),
                children=tuple(self._graphs.children),
                child_weights={str(arn): one.weights for arn, one in self._graphs.children.items()},
                **bounds(self.spec),
            ),
            inputs=sources,
            demand=demand("package", self.context.shape.parameters),
            target=target.name,
            when=when,
            rivals=(fidelity.id,) if fidelity else (),
        )


def _merged(spec: BuildSpec) -> Literal["AdapterOnly", "All"] | None:
    mode = of_mode(spec.lora)
    if mode is QuantUpdatableMode.ALL:
        return "All"
    return "AdapterOnly" if mode is QuantUpdatableMode.ADAPTER_ONLY else None
