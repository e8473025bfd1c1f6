"""The spec of a build whose sources were sent beside the store: where each lies, and what it is.

Pure. Files that were sent are called by their roles there, and read with the store's own
credentials.
"""

from __future__ import annotations

from pathlib import Path

from genai_cli.cluster.connection import Json
from genai_core.kinds.build import BuildSpec
from genai_core.names import (
    DRAFT,
    FORECAST,
    FORECAST_ROLE,
    MODEL,
    TOKEN_MAP_ROLE,
    VISION,
    VISION_ROLE,
    SourceName,
    adapter_source,
    is_child,
)
from genai_core.sources.adapter_files import (
    ADAPTER_ENCODINGS_ROLE,
    ADAPTER_GRAPH_ROLE,
    ADAPTER_WEIGHTS_ROLE,
)
from genai_core.sources.build_sources import BuildSource, child_of
from genai_core.sources.source_files import calibration_role, tokens_role

__all__ = ["with_upload"]

_ADAPTER_FIELDS = {
    "weights": ADAPTER_WEIGHTS_ROLE,
    "encodings": ADAPTER_ENCODINGS_ROLE,
    "graph": ADAPTER_GRAPH_ROLE,
}
_ROLE_FIELDS = {"onnx": "model.onnx", "encodings": "model.encodings"}


def with_upload(
    spec: BuildSpec, written: Json, source: BuildSource, address: str, *, digest: str
) -> Json:
    """The spec with a source that was sent.

    Args:
        spec: As validated.
        written: The same as it is to be applied.
        source: Which of its sources.
        address: Of the folder; without an endpoint, it lies on the store's.
        digest: Of its content.
    """
    if source.name == MODEL:
        return _with_model(spec, written, address, digest)
    if source.name in (DRAFT, FORECAST):
        return _with_draft(written, address, digest)
    if source.name == VISION:
        return _with_encoder(written, address, digest)
    if is_child(source.name):
        number = spec.children.index(child_of(spec, source.name))
        return _with_child(written, number, address, digest)
    return _with_adapter(written, source.name, address, digest)


def _with_model(spec: BuildSpec, written: Json, address: str, digest: str) -> Json:
    """The spec with the model beside the store."""
    moved = {**written, "model": _beside(written["model"], address, digest)}
    quantization = spec.quantization
    if quantization.fidelity.tokens or quantization.calibration:
        changed = dict(written.get("quantization", {}))
        if quantization.fidelity.tokens:
            role = tokens_role(quantization.fidelity.tokens)
            changed["fidelity"] = {**changed.get("fidelity", {}), "tokens": role}
        if quantization.calibration:
            changed["calibration"] = calibration_role(quantization.calibration)
        moved["quantization"] = changed
    return moved


def _with_draft(written: Json, address: str, digest: str) -> Json:
    """The spec with what guesses beside the store."""
    (part,) = written["speculation"]
    moved = _beside(part, address, digest)
    if "draftTokenMap" in moved:
        moved["draftTokenMap"] = f"{TOKEN_MAP_ROLE}{Path(moved['draftTokenMap']).suffix}"
    if "tensorFile" in moved:
        moved["tensorFile"] = FORECAST_ROLE
    return {**written, "speculation": [moved]}


def _with_encoder(written: Json, address: str, digest: str) -> Json:
    """The spec with the encoder of pictures beside the store."""
    moved = _beside(written["vision"], address, digest)
    if "onnx" in moved:
        moved["onnx"] = VISION_ROLE
    return {**written, "vision": moved}


def _with_child(written: Json, number: int, address: str, digest: str) -> Json:
    """The spec with a child beside the store."""
    children = list(written["children"])
    child = _beside(children[number], address, digest)
    if child.get("calibration"):
        child["calibration"] = calibration_role(child["calibration"])
    children[number] = child
    return {**written, "children": children}


def _with_adapter(written: Json, name: SourceName, address: str, digest: str) -> Json:
    """The spec with an adapter beside the store."""
    adapters = [
        # Without a Secret: the store's own credentials read it. Files have their roles as names.
        {"name": adapter["name"], "source": address, "digest": digest}
        | {field: role for field, role in _ADAPTER_FIELDS.items() if adapter.get(field)}
        if adapter_source(adapter["name"]) == name
        else adapter
        for adapter in written["lora"]["adapters"]
    ]
    return {**written, "lora": {**written["lora"], "adapters": adapters}}


def _beside(part: Json, address: str, digest: str) -> Json:
    """A model of the spec that lies beside the store."""
    moved = {**part, "source": address, "digest": digest}
    moved.pop("secretRef", None)  # the store's own credentials read it
    return moved | {field: role for field, role in _ROLE_FIELDS.items() if field in moved}
