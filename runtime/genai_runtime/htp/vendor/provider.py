"""ONNX Runtime's QNN execution provider: registration and session options, in child processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from genai_core.errors import ToolFailed
from genai_runtime.htp.vendor import qnn


def register(libraries: qnn.Libraries) -> Any:
    """Register the provider's library; returns the first device that it offers."""
    ort.register_execution_provider_library(qnn.PROVIDER, str(libraries.provider))
    for device in ort.get_ep_devices():
        if device.ep_name == qnn.PROVIDER:
            return device
    raise ToolFailed("the provider offers no device", where=qnn.PROVIDER)


def session_options(device: Any, options: Mapping[str, str]) -> ort.SessionOptions:
    """Options of a session whose every node must run on the provider."""
    made = ort.SessionOptions()
    made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    made.add_provider_for_devices([device], dict(options))
    return made
