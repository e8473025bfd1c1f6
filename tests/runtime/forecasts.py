"""The example model with the tokens that it was trained to forecast with, and their prefix."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from models import EXAMPLE
from numpy.typing import NDArray
from safetensors.numpy import load_file

from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import CpuModel, read_model
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.processor import features, saturates

SSD = EXAMPLE.parent / "ssd"
REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "ssd" / "reference.json").read_text()
)


def trained() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings of the forecast tokens [F, H]; keys and values [layers, 2, KV heads, P, D]."""
    tensors = load_file(SSD / "forecast.safetensors")
    return tensors["forecast_embedding"], tensors["forecast_prefix"][:, :, 0]


def extended(folder: Path) -> Path:
    """The example's source with the rows of the forecast tokens, as its own script makes it."""
    runpy.run_path(str(SSD / "extend_model.py"))["extend"](
        EXAMPLE, SSD / "forecast.safetensors", folder
    )
    return folder


@dataclass(frozen=True)
class Forecasting:
    """The extended model, compiled; its executors know the trained prefix unless told otherwise."""

    model: CpuModel
    sessions: PlainSessions
    prefix: NDArray[np.float32]

    @classmethod
    def of(cls, path: Path) -> Forecasting:
        """Open `model.onnx`."""
        model = read_model(path)
        exact = model.wide and saturates(features())
        sessions = PlainSessions(model, threads=1, exact=exact, sizes=(1, 4), prefix=True)
        return cls(model, sessions, trained()[1])

    def executor(self, context_length: int = 96) -> CpuExecutor:
        """With empty slots."""
        return CpuExecutor(
            self.model, self.sessions, context_length=context_length, prefix=self.prefix
        )
