"""An encoder of pictures: a source of its own, held against the model and put into its container.

Nothing of the model is built otherwise: the container's graphs take embeddings in tokens' places
when they are opened, and only the package reads the encoder.
"""

from __future__ import annotations

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.vision_part import TokensPerImage
from genai_core.names import VISION, Backend, TaskId
from genai_core.operations import VisionImportConfig
from genai_planner.expand import inputs
from genai_planner.expand.context import PlanContext
from genai_planner.plan import Inputs, Plan, Selection, Task
from genai_planner.sizing import demand
from genai_planner.sources import Sources

__all__ = ["expand_vision", "refuse_vision", "vision_inputs"]

_IMPORT = TaskId("vision_import")


def refuse_vision(spec: BuildSpec, backends: set[Backend]) -> None:
    """Refuse an encoder of pictures for targets that cannot carry one.

    Raises:
        InvalidSpec: There is an htp target.
    """
    if spec.vision is not None and Backend.HTP in backends:
        raise InvalidSpec(
            "encoders of pictures are built into cpu containers alone",
            where="spec.vision",
            remedy="build the Snapdragon targets without it, in a build of their own",
        )


def expand_vision(context: PlanContext, sources: Sources) -> Plan:
    """The task that holds the encoder against the model; it reads no weights of the model."""
    part = context.spec.vision
    if part is None:
        return Plan(())
    weights = sources[VISION].size // 4
    task = Task(
        id=_IMPORT,
        operation="vision_import",
        backend=None,
        config=VisionImportConfig(
            image_token=part.image_token,
            dynamic=part.tokens_per_image is TokensPerImage.DYNAMIC,
        ),
        inputs={
            "vision": (Selection(None, ("*",), VISION),),
            "core": inputs.ingested("model.onnx", "facts.json"),
            "assets": inputs.ingested("assets/*"),
        },
        demand=demand("vision_import", weights),
    )
    return Plan((task,), notes=("vision: the encoder of pictures stays in floating point",))


def vision_inputs(spec: BuildSpec) -> Inputs:
    """What the model's package reads."""
    return {} if spec.vision is None else {VISION: inputs.whole(_IMPORT)}
