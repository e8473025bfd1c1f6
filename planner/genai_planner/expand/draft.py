"""Tasks of a draft model: a container of its own, which the model's container then holds.

It is built for the cpu in one precision: Int8 where it has encodings, else float. Nothing measures
its fidelity: what it guesses is verified by the model, so a worse draft is slower, never wrong.
"""

from __future__ import annotations

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec, CpuPrecision, Graphs, Quantization
from genai_core.names import DRAFT, Backend, Gaps, Precision, TaskId
from genai_core.sources.build_sources import model_spec
from genai_planner.expand import inputs
from genai_planner.expand.context import PlanContext
from genai_planner.expand.grid import GraphGrid
from genai_planner.expand.head import is_draft, is_head, said_of_head
from genai_planner.plan import Inputs
from genai_planner.shape import ModelShape
from genai_planner.sources import Sources

__all__ = ["draft_context", "draft_inputs", "draft_package", "draft_precision", "refuse_draft"]


def refuse_draft(spec: BuildSpec, backends: set[Backend]) -> None:
    """Refuse a draft model or an EAGLE head for targets that cannot carry one.

    Raises:
        InvalidSpec: There is one, and an htp target.
    """
    if is_draft(spec) and Backend.HTP in backends:
        kind = "EAGLE heads" if is_head(spec) else "draft models"
        raise InvalidSpec(
            f"{kind} are built into cpu containers alone",
            where="spec.speculation",
            remedy="build the Snapdragon targets without it, in a build of their own",
        )


def draft_context(context: PlanContext, sources: Sources, shape: ModelShape) -> PlanContext:
    """What the draft's tasks follow from.

    Args:
        context: The model's.
        sources: By name.
        shape: Of the draft.
    """
    encoded = sources[DRAFT].has_encodings
    quantization = Quantization(
        gaps=Gaps.ERROR if encoded else Gaps.FLOAT,
        cpu_precision=CpuPrecision.INT8 if encoded else CpuPrecision.FLOAT,
    )
    longest = min(context.grid.context_length, shape.max_positions or context.grid.context_length)
    kind = "draft model" if context.head is None else said_of_head(context.head)
    note = (
        f"{kind}: {draft_precision(sources)}, "
        f"{'as its encodings allow' if encoded else 'since it has no encodings'}; "
        f"context length {longest}"
    )
    spec = model_spec(context.spec, DRAFT).model_copy(
        update={"quantization": quantization, "graphs": Graphs(context_lengths=[longest])}
    )
    grid = GraphGrid(graphs=(), context_length=longest, notes=(note,), warnings=())
    return PlanContext(spec, shape, sources[DRAFT], grid, DRAFT, context.head)


def draft_precision(sources: Sources) -> Precision:
    """Of the draft's linears."""
    return Precision.INT8 if sources[DRAFT].has_encodings else Precision.FLOAT


def draft_package(target: str) -> TaskId:
    """The task that makes the draft's container for a target."""
    return TaskId(f"package/{target}/{DRAFT}")


def draft_inputs(spec: BuildSpec, target: str) -> Inputs:
    """What the model's package reads."""
    return {DRAFT: inputs.whole(draft_package(target))} if is_draft(spec) else {}
