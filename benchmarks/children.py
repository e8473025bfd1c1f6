"""How large context binaries are where one AR has a model of its own, by what weights it has.

    python benchmarks/children.py [MODEL]

Built are: AR 32 alone; AR 1 and 32 of one model; AR 1 from a copy of the model, and AR 1 from the
model with other weights. Exits with 1 where a child of equal weights costs more than 1.4 x the
binaries of one graph.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from commands import machine_text, run
from onnx import numpy_helper

from genai_core.kinds.base import API_VERSION

ROOT = Path(__file__).resolve().parents[1]
GENAI = Path(sys.executable).parent / "genai"
MODEL = ROOT / "examples" / "tiny-llama" / "model"
AIM = 1.4
"""Of the binaries of one graph."""


def other_weights(source: Path, folder: Path) -> None:
    """A model with matrices that differ by up to 2 %, within the ranges that were recorded."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    path = folder / "model.onnx"
    model = onnx.load(path)  # noqa: TID251 - a small model of the examples, copied
    random = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            most = np.abs(values).max()
            noise = random.choice([0.98, 1.02], values.shape).astype(np.float32)
            changed = np.clip(values * noise, -most, most)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    for data in folder.glob("*.data"):
        data.unlink()
    onnx.save(model, path)


def build(work: Path, name: str, ars: list[int], child: str | None) -> int:
    """Build; returns the bytes of all context binaries."""
    spec: dict[str, Any] = {
        "model": {"source": "./model"},
        "targets": ["sm8750"],
        "graphs": {"autoRegression": ars, "contextLengths": [256]},
        "splits": {"count": 3},
    }
    if child is not None:
        spec["children"] = [{"arn": 1, "source": f"./{child}", "name": "decode"}]
    document = {
        "apiVersion": API_VERSION, "kind": "GenAIBuild", "metadata": {"name": name}, "spec": spec,
    }  # fmt: skip
    path = work / f"{name}.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    run(
        [GENAI, "build", "-f", path, "--store", work / "store", "--output", work / "out"],
        log=work / f"{name}.log",
    )
    parts = (work / "out" / name / "sm8750").glob("part_*.bin")
    return sum(part.stat().st_size for part in parts)


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=MODEL)
    given = parser.parse_args()
    print(f"before: {machine_text()}\n\n| graphs | binaries | of one graph's |\n|---|---|---|")
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for copy in ("model", "equal"):
            shutil.copytree(given.model, work / copy, copy_function=shutil.copyfile)
        other_weights(work / "model", work / "other")
        for name, ars, child, what in (
            ("one", [32], None, "AR 32 alone"),
            ("two", [1, 32], None, "AR 1 and 32 of one model"),
            ("equal", [1, 32], "equal", "AR 1 from a child of equal weights"),
            ("other", [1, 32], "other", "AR 1 from a child of other weights"),
        ):
            sizes[name] = build(work, name, ars, child)
            ratio = sizes[name] / sizes["one"]
            print(f"| {what} | {sizes[name] / 1e6:.2f} MB | {ratio:.2f} x |", flush=True)
    held = sizes["equal"] <= AIM * sizes["one"]
    print(f"\nEqual weights cost at most {AIM} x: {'yes' if held else 'NO'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
