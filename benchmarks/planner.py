"""Expands, keys and runs 20,000 tasks through the planner; prints seconds of CPU and memory.

    python benchmarks/planner.py [TASKS]

Every task "runs" at once and leaves as many files as a real one of its kind, so what is measured is
the planner alone. Exits with 1 when it takes more than 10 s or 300 MB.
"""

from __future__ import annotations

import sys
import time

from genai_core.canonical import digest_json
from genai_core.kinds.build import BuildSpec
from genai_core.memory import peak_resident_bytes
from genai_core.names import MODEL, Backend, Digest
from genai_core.operations import OPERATIONS, ChipConfig
from genai_planner.execution.events import Finished, Missed, WorkLimits
from genai_planner.execution.machine import Machine
from genai_planner.expand.build import expand
from genai_planner.plan import FileRef, Result, Task
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import Target

LAYERS = 80
CONFIG = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
GROUPS = ("embed", *(f"layer_{i:03d}" for i in range(LAYERS)), "head")


def _file(task: str, name: str) -> FileRef:
    return FileRef(Digest(digest_json([task, name])), 1)


def _result(task: Task) -> Result:
    names = {
        "ingest": ["model.onnx", "facts.json", "encodings/model.encodings", "assets/config.json"]
        + [
            f"weights/{g}.data"
            for g in ("embed", *(f"layer_{i:03d}" for i in range(LAYERS)), "head")
        ],
        "arcl": ["graph.onnx", "provenance.json"],
        "transform": ["graph.onnx", "provenance.json"],
        "convert": ["graph.onnx", "graph.data", "graph.dlc", "quantization.json"],
        "compile": ["part.bin", "metadata.json"],
        "fidelity": ["fidelity.json"],
        "package": ["manifest.json", "report.json"],
    }[task.operation]
    files = [*names, "measured.json"]
    return Result({name: _file(task.id, name) for name in files}, {"within": True})


def main(wanted: int) -> int:
    """Plan and run; returns the exit code."""
    splits = LAYERS
    graphs = max(1, wanted // (1 + 2 * splits))
    ars = [1, 8, 16, 32, 64, 128, 256, 512][:graphs]
    lengths = max(1, min(15, graphs // len(ars)))
    spec = BuildSpec.model_validate(
        {
            "model": {"source": "m"},
            "targets": ["sm8750"],
            "graphs": {
                "autoRegression": ars,
                "contextLengths": [2048 + 512 * i for i in range(1, 1 + lengths)],
            },
            "splits": {"count": splits},
        }
    )
    chips = [
        Target(f"chip{i}", Backend.HTP, ChipConfig(soc_model=i + 1, dsp_arch=79)) for i in range(8)
    ]
    began = time.process_time()
    shape = shape_from_config(CONFIG)
    assert shape is not None
    files = {role: _file("source", role) for role in ("model.onnx", "model.encodings")}
    sources = {MODEL: Source(files, CONFIG, 4)}
    plan = expand(spec, targets=chips, sources=sources, shapes={MODEL: shape})
    expanded = time.process_time()
    machine = Machine(
        plan,
        sources=sources,
        toolchains={(row.name, row.backend): Digest("0" * 64) for row in OPERATIONS},
    )
    looks = list(machine.begin())
    limits = WorkLimits(parallelism=64, memory_bytes=1 << 60)
    steps = 0
    while not machine.ended:
        while looks:
            looks += machine.handle(Missed(looks.pop().task))
        for start in machine.start(limits).start:
            steps += 1
            looks += machine.handle(Finished(start.task, _result(machine.tasks[start.task])))
    ended = time.process_time()
    assert steps == len(plan.tasks), (steps, len(plan.tasks))
    peak = peak_resident_bytes() / (1 << 20)
    print(f"tasks      {len(plan.tasks)}")
    print(f"expanded   {expanded - began:6.2f} s")
    print(f"keyed, run {ended - expanded:6.2f} s")
    print(f"peak       {peak:6.0f} MiB")
    return int(ended - began > 10 or peak > 300 * 1e6 / (1 << 20))


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
