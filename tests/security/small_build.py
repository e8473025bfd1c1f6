"""A build of a small model for the CPU, in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

MODEL = Path(__file__).parents[1] / "fixtures/architectures/llama"
BUILD = """\
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: small}
spec:
  model: {source: ./model}
  targets: [cpu]
  graphs: {autoRegression: [1, 4], contextLengths: [32]}
  quantization: {gaps: Float, fidelity: {budgetNats: 0.5}}
"""


def prepared(folder: Path) -> Path:
    """Put the model and `b.yaml` into a folder; returns the folder."""
    (folder / "model").mkdir()
    for name in ("model.onnx", "config.json"):
        shutil.copy(MODEL / name, folder / "model" / name)
    (folder / "b.yaml").write_text(BUILD)
    return folder
