"""The peer: Olive's static quantization of an ordinary ONNX export, in an environment of its own.

Olive's `OnnxStaticQuantization` writes what our convert for htp writes, a QDQ graph: uint16
activations, int8 weights per channel. It calibrates its ranges on the way, so it is given the least
calibration there is, one sample of 128 tokens; ours reads AIMET's ranges and has none to do. Only
products of matrices are quantized by it, all operators by ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from commands import Cost, run

REQUIREMENTS = ("olive-ai==0.13.*", "onnx", "onnxruntime==1.31.1", "requests")
TOKENS = 128


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with Olive, made where there is none (6 GB)."""
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
        subprocess.run(command, check=True)
        (folder / ".ready").touch()
    return python


def quantize(python: Path, model: Path, work: Path) -> Cost:
    """Run the pass on a model; a second time with the same `work` it finds its own cache.

    Args:
        python: Of the environment with Olive.
        model: The ONNX file.
        work: Gets Olive's output, cache and log.
    """
    work.mkdir(parents=True, exist_ok=True)
    config = work / "olive.json"
    config.write_text(json.dumps(_config(model, work), indent=1))
    return run(
        [python.parent / "olive", "run", "--config", config],
        log=work / "olive.log",
        environment={"PATH": f"{python.parent}:/usr/bin:/bin", "OLIVE_DISABLE_TELEMETRY": "1"},
    )


def output_bytes(work: Path) -> int:
    """Size of what it wrote; 0 where it failed and did not say so."""
    return sum(path.stat().st_size for path in (work / "out").rglob("*") if path.is_file())


def _config(model: Path, work: Path) -> dict[str, Any]:
    inputs = onnx.load(str(model), load_external_data=False).graph.input  # noqa: TID251 - bare
    shapes = [_shape(value) for value in inputs]
    kinds = {onnx.TensorProto.INT64: "int64", onnx.TensorProto.INT32: "int32"}
    types = [kinds.get(value.type.tensor_type.elem_type, "float32") for value in inputs]
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "data_configs": [
            {
                "name": "dummy",
                "type": "DummyDataContainer",
                "load_dataset_config": {
                    "input_names": [value.name for value in inputs],
                    "input_shapes": shapes,
                    "input_types": types,
                    "max_samples": 1,
                },
            }
        ],
        "passes": {
            "quantization": {
                "type": "OnnxStaticQuantization",
                "data_config": "dummy",
                "quant_format": "QDQ",
                "activation_type": "uint16",
                "precision": "int8",
                "per_channel": True,
                "op_types_to_quantize": ["MatMul"],
                "save_as_external_data": True,
            }
        },
        "evaluate_input_model": False,
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
    }


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """A prompt of TOKENS tokens behind an empty cache."""
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(dims) == 4:
        return [1, dims[1], 0, dims[3]]
    return [1, TOKENS]
