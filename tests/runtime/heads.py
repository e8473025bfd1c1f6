"""EAGLE heads of the example model, compiled; and the model with the hidden states they read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from models import EXAMPLE
from onnx import helper, numpy_helper

from genai_core.names import Gaps, Precision
from genai_core.operations import CompileCpuConfig, ConvertCpuConfig, IngestConfig
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import CpuModel, read_model
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.executor.rows import Row, RowOutput
from genai_runtime.processor import features, saturates
from genai_runtime.speculation.eagle import Eagle, Head
from genai_stages.backends.cpu.cpu_model import hidden_state_name
from genai_stages.graph.core_graph import read_facts
from genai_stages.operations import compile_cpu, convert_cpu, ingest
from genai_stages.stage import Context

EAGLE3 = EXAMPLE.parent / "eagle3"
_FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = json.loads((_FIXTURES / "eagle3" / "reference.json").read_text())["cases"]
"""Prompts, greedy tokens, and how many drafts of the EAGLE-3 head PyTorch accepted in each pass."""
LAYERS = {1: (-1,), 3: (1, 3, 5)}


def source(folder: Path, version: int) -> Path:
    """A head's source by roles; EAGLE-1's shares embedding and output layer with the model."""
    folder.mkdir()
    if version == 3:
        for name in ("model.onnx", "config.json"):
            shutil.copyfile(EAGLE3 / name, folder / name)
        shutil.copyfile(EAGLE3 / "d2t.json", folder / "draft_token_map.json")
        return folder
    kept = _FIXTURES / "eagle1"
    shutil.copyfile(kept / "config.json", folder / "config.json")
    model = onnx.load(kept / "model.onnx")  # noqa: TID251 - a small one
    table, head = _tables()
    model.graph.initializer.append(numpy_helper.from_array(table, "embed_tokens.weight"))
    model.graph.initializer.append(numpy_helper.from_array(head, "onnx::MatMul_331"))
    onnx.save(model, folder / "model.onnx")
    return folder


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The model's embedding [V, H] and output layer [H, V]."""
    graph = onnx.load(EXAMPLE / "model.onnx", load_external_data=False).graph  # noqa: TID251
    kept = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    gather = next(node for node in graph.node if "input_ids" in list(node.input)[1:2])
    product = makers["logits"]
    return _values(kept[gather.input[0]]), _values(kept[product.input[1]])


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    place = {entry.key: entry.value for entry in tensor.external_data}
    if not place:
        return numpy_helper.to_array(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset = int(place.get("offset", 0))
    path = EXAMPLE / place["location"]
    return np.fromfile(path, kind, int(np.prod(tensor.dims)), offset=offset).reshape(tensor.dims)


def ingested(core: Path, given: Path, config: IngestConfig) -> Path:
    """The core graph of a source."""
    core.mkdir()
    context = Context(scratch=core.parent / "scratch", threads=1)
    ingest.run({"source": given}, config, core, context)
    return core


def built(
    folder: Path,
    core: Path,
    *,
    precision: Precision = Precision.FLOAT,
    gaps: Gaps = Gaps.FLOAT,
    hidden_states: tuple[int, ...] = (),
) -> Path:
    """The cpu model of a core graph."""
    convert, made = folder / "convert", folder / "compile"
    for path in (convert, made):
        path.mkdir(parents=True)
    context = Context(scratch=folder / "scratch", threads=1)
    encodings = {"encodings": core / "encodings"} if (core / "encodings").is_dir() else {}
    inputs = {"model": core, **encodings}
    layers = read_facts(core).layers
    ranges = ConvertCpuConfig(
        precision=precision, gaps=gaps, first=0, last=layers, embedding=True, lm_head=True
    )
    convert_cpu.run(inputs, ranges, convert, context)
    compile_cpu.run(
        {**inputs, "range_001": convert},
        CompileCpuConfig(precision=precision, gaps=gaps, hidden_states=hidden_states),
        made,
        context,
    )
    return made / "model.onnx"


@dataclass(frozen=True)
class Compiled:
    """A model and its open graphs."""

    model: CpuModel
    sessions: PlainSessions

    @classmethod
    def of(cls, path: Path) -> Compiled:
        model = read_model(path)
        exact = model.wide and saturates(features())
        return cls(model, PlainSessions(model, threads=1, exact=exact, sizes=(1, 4)))

    def executor(self, context_length: int = 96) -> CpuExecutor:
        return CpuExecutor(self.model, self.sessions, context_length=context_length)


class _Part:
    """An executor that gives some of its states out."""

    def __init__(self, executor: CpuExecutor, names: list[str]) -> None:
        self._executor = executor
        self.states = {name: executor.states[name] for name in names}
        first = list(executor.states).index(names[0]) * 192
        self._columns = slice(first, first + 192 * len(names))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        return [
            output
            if output.states is None
            else replace(output, states=output.states[:, self._columns])
            for output in self._executor.forward(rows)
        ]


@dataclass(frozen=True)
class Giving:
    """A model with the hidden states that a head of one version reads."""

    compiled: Compiled
    version: int

    def executor(self) -> _Part:
        names = [hidden_state_name(layers) for layers in LAYERS[self.version]]
        return _Part(self.compiled.executor(), names)


def eagle(core: Path, head: Compiled, *, context_length: int = 96) -> Eagle:
    """The method over a compiled head."""
    facts = read_facts(core).head
    assert facts is not None
    path = core / "token_map.json"
    token_map = np.asarray(json.loads(path.read_text())) if path.exists() else None
    executor = head.executor(context_length)
    given = Head(executor, facts.features, facts.hidden, facts.feedback, token_map)
    return Eagle(given, vocab_size=facts.tokens)


def write_encodings(folder: Path) -> None:
    """Encodings of a head beside its source: 8 bit weights, 16 bit activations, by what it sees.

    The states are those of a random walk as wide as the model's: enough to quantize a head, whose
    guesses are verified.
    """
    path = folder / "model.onnx"
    model = onnx.load(path)  # noqa: TID251 - a small one
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    products = [
        node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in casts
    ]
    read = list(dict.fromkeys(node.input[0] for node in products))
    inputs = {value.name: value for value in model.graph.input}
    for name in read:
        if name not in inputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    count = 64
    feeds: dict[str, np.ndarray] = {
        "input_ids": random.integers(0, 2048, (1, count)),
        "position_ids": np.arange(count)[None],
        "features": random.standard_normal((1, count, 576), np.float32) * 12,
        "hidden_states": np.zeros((1, count, 192), np.float32),
        "attention_mask": np.triu(np.full((count, count), -100, np.float32), 1)[None, None],
    }
    feeds |= {
        f"past_key_values.0.{kind}": np.zeros((1, 2, 0, 32), np.float32)
        for kind in ("key", "value")
    }
    names = [name for name in read if name not in inputs]
    values = dict(zip(names, session.run(names, feeds), strict=True)) | feeds
    activations = {name: [_grid(values[name].min(), values[name].max(), 16)] for name in read}
    params = {}
    for node in products:
        name = casts[node.input[1]]
        matrix = numpy_helper.to_array(weights[name]).astype(np.float32)
        params[name] = [_symmetric(float(np.abs(column).max())) for column in matrix.T]
    content = {
        "version": "0.6.1",
        "activation_encodings": activations,
        "param_encodings": params,
    }
    (folder / "model.encodings").write_text(json.dumps(content))


def _grid(low: float, high: float, bits: int) -> dict[str, object]:
    low, high = min(float(low), 0.0) * 1.2, max(float(high), 0.0) * 1.2
    scale = (high - low) / (2**bits - 1)
    offset = round(low / scale)
    return {
        "bitwidth": bits, "dtype": "int", "is_symmetric": "False", "scale": scale,
        "offset": offset, "min": offset * scale, "max": (offset + 2**bits - 1) * scale,
    }  # fmt: skip


def _symmetric(largest: float) -> dict[str, object]:
    scale = max(largest, 1e-6) / 127
    return {
        "bitwidth": 8, "dtype": "int", "is_symmetric": "True", "scale": scale, "offset": -128,
        "min": -128 * scale, "max": 127 * scale,
    }  # fmt: skip
