"""Tasks of LoRA adapters: each is imported by itself, and the package reads what comes out.

Static graphs (htp) also get inputs with which they take adapters (or adapters become part of them,
see `merged`). One task decides them from the
imports; its output names modules and a rank and no values, so an adapter that changes within these
leaves every graph as it was. Another measures how wide their values are, in coarse steps: while a
changed adapter stays within its step, the quantized graphs and binaries are cached too.
"""

from __future__ import annotations

from typing import TypedDict

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.lora import QuantUpdatableMode
from genai_core.names import TaskId, adapter_source
from genai_core.operations import (
    LoraGraphConfig,
    LoraImportConfig,
    LoraRangesConfig,
    UseCaseConfig,
    WornConfig,
)
from genai_planner.expand import inputs
from genai_planner.expand.context import PlanContext
from genai_planner.expand.merged import MergedCase, of_mode
from genai_planner.plan import Inputs, Selection, Task
from genai_planner.sizing import demand
from genai_planner.sources import Sources

__all__ = [
    "GRAPH",
    "adapter_inputs",
    "adapter_names",
    "adapter_yardstick",
    "bounds",
    "branch_ranges",
    "case_ranges",
    "graph_inputs",
    "import_adapters",
    "of_case",
    "of_graphs",
    "of_quantized",
    "refuse_adapters",
    "use_cases",
]


_AS_INPUTS = QuantUpdatableMode.NONE
GRAPH = TaskId("lora_graph")
RANGES = TaskId("lora_ranges")


class AdapterBounds(TypedDict, total=False):
    """Fields of the configs of import and package."""

    max_rank: int | None
    target_modules: tuple[str, ...]


def refuse_adapters(spec: BuildSpec) -> None:
    """Refuse adapters that are not written out.

    Raises:
        InvalidSpec: The vendor's file stands for them.
    """
    if spec.lora is not None and spec.lora.config is not None:
        raise InvalidSpec(
            "the vendor's file is read on the command line, from a model's folder",
            where="spec.lora.config",
            remedy="write adapters and useCases; genai build --print-spec shows what it means",
        )


def bounds(spec: BuildSpec) -> AdapterBounds:
    """What adapters are held to, those that come later too."""
    if spec.lora is None:
        return {}
    return {
        "max_rank": spec.lora.max_rank, "target_modules": tuple(spec.lora.target_modules),
    }  # fmt: skip


def adapter_names(spec: BuildSpec) -> tuple[str, ...]:
    """In the spec's order."""
    return () if spec.lora is None else tuple(adapter.name for adapter in spec.lora.adapters)


def use_cases(spec: BuildSpec) -> tuple[UseCaseConfig, ...]:
    """As the package writes them."""
    if spec.lora is None:
        return ()
    return tuple(
        UseCaseConfig(
            name=case.name,
            adapters=tuple(WornConfig(name=a.name, alpha=a.alpha) for a in case.adapters),
        )
        for case in spec.lora.use_cases
    )


def import_adapters(context: PlanContext, sources: Sources) -> list[Task]:
    """A task for each adapter; it reads the core graph without its weights."""
    # What the model calls itself, to compare with what the adapter was trained on.
    called: Inputs = (
        {"assets": inputs.ingested("assets/config.json")} if context.model.has_config else {}
    )
    lora = context.spec.lora
    return [
        Task(
            id=_import_id(adapter.name),
            operation="lora_import",
            backend=None,
            config=LoraImportConfig(**bounds(context.spec)),
            inputs={
                "adapter": (Selection(None, ("*",), adapter_source(adapter.name)),),
                # A graph of its own is compared with the model, weight by weight.
                "core": inputs.core()
                if adapter.graph is not None
                else inputs.ingested("model.onnx", "facts.json"),
                **called,
            },
            demand=demand("ingest", context.shape.parameters)
            if adapter.graph is not None
            else demand("lora_import", sources[adapter_source(adapter.name)].size // 2),
        )
        for adapter in (lora.adapters if lora is not None else ())
    ]


def graph_inputs(context: PlanContext) -> Task | None:
    """The task that decides with which inputs static graphs take adapters."""
    lora = context.spec.lora
    if lora is None:
        return None
    numbers = {adapter.name: number for number, adapter in enumerate(lora.adapters)}
    core = inputs.ingested("model.onnx", "facts.json")
    need = demand("lora_graph", context.shape.parameters)
    if lora.quant_updatable_mode is not _AS_INPUTS:
        config = LoraGraphConfig(alpha=lora.alpha_tensor_name, every=True)
        return Task(GRAPH, "lora_graph", None, config=config, inputs={"core": core}, demand=need)
    return Task(
        id=GRAPH,
        operation="lora_graph",
        backend=None,
        config=LoraGraphConfig(
            alpha=lora.alpha_tensor_name,
            together=tuple(
                tuple(numbers[worn.name] for worn in case.adapters) for case in lora.use_cases
            ),
            **bounds(context.spec),
        ),
        inputs={"core": core, **adapter_inputs(context.spec)},
        demand=need,
    )


def branch_ranges(context: PlanContext) -> Task | None:
    """The task that measures how wide the adapters' values are; a float graph needs none."""
    lora = context.spec.lora
    if lora is None or context.stays_float or lora.quant_updatable_mode is not _AS_INPUTS:
        return None
    numbers = {adapter.name: number for number, adapter in enumerate(lora.adapters)}
    return Task(
        id=RANGES,
        operation="lora_ranges",
        backend=None,
        config=LoraRangesConfig(
            together=tuple(
                tuple((numbers[worn.name], worn.alpha) for worn in case.adapters)
                for case in lora.use_cases
            ),
            reserve=lora.reserve_range,
        ),
        inputs={
            "core": inputs.core(),
            **(inputs.calibration() if context.calibrates else {}),
            **of_graphs(context.spec),
            **adapter_inputs(context.spec),
        },
        demand=demand("lora_ranges", context.shape.parameters),
    )


def case_ranges(context: PlanContext, case: MergedCase) -> Task | None:
    """The same of one use case that has binaries of its own."""
    if context.stays_float:
        return None
    return Task(
        id=TaskId(f"{RANGES}/{case.name}"),
        operation="lora_ranges",
        backend=None,
        config=LoraRangesConfig(
            together=(tuple(enumerate(case.alphas)),),
            alone=False,
            reached=of_mode(context.spec.lora) is QuantUpdatableMode.ALL,
        ),
        inputs={
            "core": inputs.core(),
            **(inputs.calibration() if context.calibrates else {}),
            "adapters": inputs.whole(GRAPH),
            **case_adapters(context.spec, case),
        },
        demand=demand("lora_ranges", context.shape.parameters),
    )


def case_adapters(spec: BuildSpec, case: MergedCase) -> Inputs:
    """The adapters of one use case, in its order."""
    names = adapter_names(spec)
    return {
        f"adapter_{place}": inputs.whole(_import_id(names[number]))
        for place, number in enumerate(case.adapters)
    }


def of_case(context: PlanContext, case: MergedCase) -> Inputs:
    """What tasks read that put a use case's graphs onto grids."""
    ranges = (
        {} if context.stays_float else {"ranges": inputs.whole(TaskId(f"{RANGES}/{case.name}"))}
    )
    return {
        "adapters": inputs.whole(GRAPH), **ranges, **case_adapters(context.spec, case)
    }  # fmt: skip


def of_graphs(spec: BuildSpec) -> Inputs:
    """What tasks on static graphs read of it; nothing where these take no adapters."""
    return {"adapters": inputs.whole(GRAPH)} if of_mode(spec.lora) is _AS_INPUTS else {}


def of_quantized(context: PlanContext) -> Inputs:
    """The same, where the graphs are put onto grids."""
    ranges = {} if branch_ranges(context) is None else {"ranges": inputs.whole(RANGES)}
    return {**of_graphs(context.spec), **ranges}


def adapter_inputs(spec: BuildSpec) -> Inputs:
    """What the package reads: in the order in which its config names them."""
    return {
        f"adapter_{number}": inputs.whole(_import_id(name))
        for number, name in enumerate(adapter_names(spec))
    }


def adapter_yardstick(context: PlanContext) -> Inputs:
    """What the package holds each use case against: as fidelity has it for the base."""
    if context.spec.lora is None:
        return {}
    names = {"core": "yardstick", "encodings": "yardstick_encodings", "tokens": "yardstick_tokens"}
    return {names[name]: files for name, files in inputs.scored(context).items() if name in names}


def _import_id(name: str) -> TaskId:
    return TaskId(f"lora_import/{name}")
