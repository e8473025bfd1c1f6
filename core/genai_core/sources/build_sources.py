"""The sources that a build's spec names: its model, children, each adapter, other parts.

Each has an address, credentials and a pin of its own, and is resolved by itself. Whoever plans, on
a laptop or in a cluster, goes through this list; nothing else knows which fields name sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

from genai_core.errors import GenAIError, from_dict
from genai_core.kinds.build import BuildSpec, GoldenPrompts, ModelSource, Quantization
from genai_core.kinds.child_model import Child
from genai_core.kinds.speculation import SpeculationPart, SpeculationPartMethod
from genai_core.kinds.transformation import Conversion, Transformation
from genai_core.names import (
    DRAFT,
    FORECAST,
    MODEL,
    TOKEN_MAP_ROLE,
    VISION,
    SourceName,
    adapter_source,
    is_child,
)

__all__ = ["BuildSource", "child_of", "is_built", "model_spec", "of_source", "sources_of"]


@dataclass(frozen=True)
class BuildSource:
    """One source.

    Attributes:
        name: `model`, `child:decode`, `adapter:c-headers`, `draft`, `forecast`, `vision`.
        address: As the spec has it.
        field: That names it, for messages.
        secret: Name of the Secret with its credentials; empty: the store's.
        pin: `sha256:...` that its content must have; None = any.
        files: What the spec names in it, but for the model: `weights`, `onnx`, `encodings`,
            `draft_token_map`, `tensor_file` -> file.
    """

    name: SourceName
    address: str
    field: str
    secret: str = ""
    pin: str | None = None
    files: Mapping[str, str] = dataclass_field(default_factory=dict, hash=False)

    @property
    def pin_field(self) -> str:
        """The field that pins it."""
        return f"{self.field.removesuffix('.source')}.digest"


def sources_of(spec: BuildSpec) -> tuple[BuildSource, ...]:
    """All of a build's, the model first."""
    model = spec.model
    secret = model.secret_ref.name if model.secret_ref is not None else ""
    found = [BuildSource(MODEL, model.source, "spec.model.source", secret, model.digest)]
    for number, child in enumerate(spec.children):
        found.append(
            BuildSource(
                child.source_name,
                child.source,
                f"spec.children[{number}].source",
                child.secret_ref.name if child.secret_ref is not None else "",
                child.digest,
                {
                    name: file
                    for name in ("onnx", "encodings")
                    if (file := getattr(child, name)) is not None
                },
            )
        )
    for number, adapter in enumerate(spec.lora.adapters if spec.lora is not None else ()):
        found.append(
            BuildSource(
                adapter_source(adapter.name),
                adapter.source,
                f"spec.lora.adapters[{number}].source",
                adapter.secret_ref.name if adapter.secret_ref is not None else "",
                adapter.digest,
                {
                    name: file
                    for name in ("weights", "encodings", "graph")
                    if (file := getattr(adapter, name)) is not None
                },
            )
        )
    for number, part in enumerate(spec.speculation):
        found.append(
            BuildSource(
                FORECAST if part.method is SpeculationPartMethod.SSD else DRAFT,
                part.source,
                f"spec.speculation[{number}].source",
                part.secret_ref.name if part.secret_ref is not None else "",
                part.digest,
                {
                    name: file
                    for name in ("onnx", "encodings", TOKEN_MAP_ROLE, "tensor_file")
                    if (file := getattr(part, name)) is not None
                },
            )
        )
    vision = spec.vision
    if vision is not None:
        found.append(
            BuildSource(
                VISION,
                vision.source,
                "spec.vision.source",
                vision.secret_ref.name if vision.secret_ref is not None else "",
                vision.digest,
                {} if vision.onnx is None else {"onnx": vision.onnx},
            )
        )
    return tuple(found)


def of_source(error: GenAIError, source: BuildSource) -> GenAIError:
    """An error about a model's files, with the fields of the source that they belong to."""
    if source.name == MODEL:
        return error
    field = source.field.removesuffix(".source")
    fields = {"spec.model": field}
    if is_child(source.name):
        fields["spec.quantization"] = field
    found = error.as_dict()
    for models, own in fields.items():
        found = {name: text.replace(models, own) for name, text in found.items()}
    return from_dict(found)


def is_built(source: SourceName) -> bool:
    """Whether a source is a model whose folder is read like the build's own model's."""
    return source in (MODEL, DRAFT) or is_child(source)


def child_of(spec: BuildSpec, source: SourceName) -> Child:
    """The child whose source has that name.

    Raises:
        KeyError: There is none.
    """
    for child in spec.children:
        if child.source_name == source:
            return child
    raise KeyError(source)


def model_spec(spec: BuildSpec, source: SourceName) -> BuildSpec:
    """The spec of one of a build's models as if it were the only one.

    Args:
        spec: The build's.
        source: `model`: the spec as it is. `draft`, `child:decode`: that model in the model's
            place, without what concerns the model alone.
    """
    if source == MODEL:
        return spec
    alone: dict[str, Any] = {
        "lora": None, "speculation": [], "vision": None, "golden": GoldenPrompts(),
        "conversion": Conversion(),  # its fields are set, and may be others here
    }  # fmt: skip
    if is_child(source):
        child = child_of(spec, source)
        rewrites = (child.transformation or spec.transformation).model_dump(exclude={"options"})
        return spec.model_copy(
            update={
                **alone,
                "model": _model(child, architecture=spec.model.architecture),
                "quantization": spec.quantization.model_copy(
                    update={
                        "gaps": child.gaps or spec.quantization.gaps,
                        "calibration": child.calibration,
                        "fidelity": spec.quantization.fidelity.model_copy(update={"tokens": None}),
                    }
                ),
                "transformation": Transformation.model_validate(rewrites),
                "children": [],
            }
        )
    return spec.model_copy(
        update={**alone, "model": _model(spec.speculation[0]), "quantization": Quantization()}
    )


def _model(part: Child | SpeculationPart, *, architecture: str | None = None) -> ModelSource:
    return ModelSource(
        source=part.source,
        secret_ref=part.secret_ref,
        digest=part.digest,
        onnx=part.onnx,
        encodings=part.encodings,
        architecture=architecture,
    )
