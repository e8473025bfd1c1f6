"""What a model forecasts with (SSD): tensors of a source of their own, held against the model.

The model's embedding table has rows for the forecast tokens: it was extended before it was
quantized. So nothing of the model is built otherwise, and only its package reads the rest.
"""

from __future__ import annotations

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.speculation import SpeculationPart, SpeculationPartMethod
from genai_core.names import FORECAST, Backend, TaskId
from genai_core.operations import ForecastImportConfig
from genai_planner.expand import inputs
from genai_planner.expand.context import PlanContext
from genai_planner.plan import Inputs, Plan, Selection, Task
from genai_planner.sizing import demand

__all__ = ["expand_forecast", "forecast_inputs", "forecast_part", "refuse_forecast"]

_IMPORT = TaskId("forecast_import")


def forecast_part(spec: BuildSpec) -> SpeculationPart | None:
    """The part of SSD; None where there is none."""
    found = (part for part in spec.speculation if part.method is SpeculationPartMethod.SSD)
    return next(found, None)


def refuse_forecast(spec: BuildSpec, backends: set[Backend]) -> None:
    """Refuse SSD for targets that cannot carry it.

    Raises:
        InvalidSpec: There is an htp target.
    """
    if forecast_part(spec) is not None and Backend.HTP in backends:
        raise InvalidSpec(
            "what SSD forecasts with is built into cpu containers alone",
            where="spec.speculation",
            remedy="build the Snapdragon targets without it, in a build of their own",
        )


def expand_forecast(context: PlanContext) -> Plan:
    """The task that holds the tensors against the model; it reads no weights but the table."""
    part = forecast_part(context.spec)
    if part is None:
        return Plan(())
    table = inputs.part_weights(context.shape, (), embedding=True, lm_head=False)
    task = Task(
        id=_IMPORT,
        operation="forecast_import",
        backend=None,
        config=ForecastImportConfig(tokens=part.forecast_token_count, prefix=part.forecast_prefix),
        inputs={
            "forecast": (Selection(None, ("*",), FORECAST),),
            "core": inputs.ingested("model.onnx", "facts.json", *table),
        },
        demand=demand("forecast_import", context.shape.embedding),
    )
    return Plan((task,), notes=("SSD: the model forecasts, with tokens behind its vocabulary",))


def forecast_inputs(spec: BuildSpec) -> Inputs:
    """What the model's package reads."""
    return {FORECAST: inputs.whole(_IMPORT)} if forecast_part(spec) is not None else {}
