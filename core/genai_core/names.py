"""The words of the project as types, so that a digest is never passed where a key is meant."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

Digest = NewType("Digest", str)
"""`sha256:` is not part of it: 64 lower-case hex characters of a file's bytes."""

Key = NewType("Key", str)
"""64 hex characters: the SHA-256 of a task's operation, versions, configuration and inputs."""

TaskId = NewType("TaskId", str)
"""Readable and unique in a plan, e.g. `convert/sm8750/ar32_cl256_2_of_3`."""

SourceName = NewType("SourceName", str)
"""One of the sources of a build: `model`, `child:decode`, `adapter:c-headers`."""


_ADAPTER = "adapter:"


def adapter_source(name: str) -> SourceName:
    """The source of an adapter: `adapter:c-headers`."""
    return SourceName(f"{_ADAPTER}{name}")


def is_adapter(name: SourceName) -> bool:
    """Whether a source is that of an adapter."""
    return name.startswith(_ADAPTER)


_CHILD = "child:"


def child_source(name: str) -> SourceName:
    """The source of a model of its own for one AR: `child:decode`."""
    return SourceName(f"{_CHILD}{name}")


def is_child(name: SourceName) -> bool:
    """Whether a source is that of a child."""
    return name.startswith(_CHILD)


MODEL = SourceName("model")
"""The source that every build has: `spec.model`."""

DRAFT = SourceName("draft")
"""The draft model of `spec.speculation`."""

FORECAST = SourceName("forecast")
"""What `spec.speculation` names for SSD: tensors that a model was trained to forecast with."""

FORECAST_ROLE = "forecast.safetensors"
"""The one file of that source."""

VISION = SourceName("vision")
"""What `spec.vision` names: an encoder of pictures."""

VISION_ROLE = "vision_encoder.onnx"
"""The encoder, among the files of its source and in a container's folder of pictures."""

TOKEN_MAP_ROLE = "draft_token_map"  # noqa: S105 - no password
"""An EAGLE head's, among the files of its source; with the file's suffix."""

GraphName = NewType("GraphName", str)
"""`ar32_cl256`, or for one split `ar32_cl256_2_of_3`."""


class Backend(StrEnum):
    """What executes a container."""

    HTP = "Htp"
    CPU = "Cpu"


class Precision(StrEnum):
    """Weights and activations of a cpu container's linears."""

    INT8 = "Int8"
    INT4 = "Int4"
    FLOAT = "Float"


class Gaps(StrEnum):
    """What happens to tensors without an encoding."""

    ERROR = "Error"
    FLOAT = "Float"
    CALIBRATE = "Calibrate"
