"""The kept graph is the source, byte for byte, and needs nothing of the source's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import read_core
from genai_stages.ingest.output.keep_source import REST_FILE, SOURCE_FILE, keep_source
from genai_stages.ingest.source.source_model import read_source
from genai_stages.operations.ingest import run
from genai_stages.quantize.segments import FOLDER_OPTION
from genai_stages.stage import Context
from genai_stages.testing import assemble_step1
from genai_stages.testing_sources import write_source

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"


def ingest(source: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    result = run({"source": source}, IngestConfig(), out, Context(out.parent / "scratch"))
    return dict(result.notes["sourceBytes"])


def session(core: Path, model: onnx.ModelProto | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry(FOLDER_OPTION, str(core))
    data = model.SerializeToString() if model else (core / SOURCE_FILE).read_bytes()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def kept_weights(core: Path, names: list[str]) -> dict[str, np.ndarray]:
    """What the kept graph computes for tensors of the source."""
    model = onnx.load(str(core / SOURCE_FILE), load_external_data=False)  # noqa: TID251
    inside = {tensor.name: tensor for tensor in model.graph.initializer}
    made = [name for name in names if name not in inside or inside[name].external_data]
    wanted = {name for node in model.graph.node for name in node.output} & set(made)
    nodes: list[onnx.NodeProto] = []
    needed = set(wanted)
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    used = {name for node in nodes for name in node.input} | (set(made) - wanted)
    del model.graph.node[:], model.graph.output[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    values = session(core, model).run(sorted(wanted), {})
    rest = {
        name: numpy_helper.to_array(inside[name], str(core)) for name in names if name not in wanted
    }
    return {**rest, **dict(zip(sorted(wanted), values, strict=True))}


def source_weights(folder: Path) -> dict[str, np.ndarray]:
    model = onnx.load(folder / "model.onnx")  # noqa: TID251 - a small model
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def source_of(kind: str, folder: Path) -> Path:
    if kind == "tiny-llama":
        # onnx.load takes no data files with several hard links, as a checkout's may be.
        return shutil.copytree(EXAMPLE, folder)
    if kind in ("left-pad", "right-pad"):
        return assemble_step1(FIXTURES / "step1" / kind, EXAMPLE, folder)
    if (FIXTURES / "architectures" / kind).is_dir():
        return shutil.copytree(FIXTURES / "architectures" / kind, folder)
    styles: dict[str, dict[str, Any]] = {
        "half": {"half": True, "fused": True},
        "conv": {"projection": "conv", "bias": True, "external": True},
        "gemm-tied": {"projection": "gemm", "tied": True},
        "square": {"heads": 4, "kv_heads": 4, "hidden": 32, "projection": "transposed"},
        "ready-waves": {"waves": "ready"},
    }
    write_source(folder, **styles[kind])
    return folder


@pytest.mark.parametrize(
    "kind",
    ["tiny-llama", "left-pad", "gpt-neox", "phi3", "gemma2", "half", "conv", "gemm-tied", "square",
     "ready-waves"],
)  # fmt: skip
def test_every_weight_of_the_kept_graph_has_the_sources_bytes(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path / "source")
    wanted = source_weights(source)
    copied = ingest(source, tmp_path / "core")["copied"]
    shutil.rmtree(source)
    have = kept_weights(tmp_path / "core", list(wanted))
    for name, array in wanted.items():
        # Floats of 16 bits are called float32: the kept graph computes in it.
        wide = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype
        assert have[name].dtype == wide, name
        array = array.astype(wide)  # noqa: PLW2901
        assert have[name].tobytes() == array.tobytes(), name
    # The core has no rotary tables; all else is there once.
    assert copied == (2 * 512 * 4 * 4 if kind == "ready-waves" else 0)
    assert (tmp_path / "core" / REST_FILE).exists() == bool(copied)


def test_the_kept_graph_runs_without_the_source_and_says_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source, external=True, fused=True)
    tokens = np.arange(20)[None] % 64
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens),
             "position_ids": np.arange(20)[None]}  # fmt: skip
    feeds |= {f"past_{layer}_{kind}": np.zeros((1, 2, 0, 8), np.float32)
              for layer in range(2) for kind in ("key", "value")}  # fmt: skip
    wanted = ort.InferenceSession(source / "model.onnx").run(["logits"], feeds)[0]
    ingest(source, tmp_path / "core")
    shutil.rmtree(source)
    moved = Path(shutil.move(tmp_path / "core", tmp_path / "elsewhere"))
    have = session(moved).run(["logits"], feeds)[0]
    np.testing.assert_allclose(have, wanted, atol=1e-5)


def test_a_weight_that_differs_in_one_byte_is_copied_instead(tmp_path: Path) -> None:
    source, core = tmp_path / "source", tmp_path / "core"
    write_source(source)
    ingest(source, core)
    wanted = source_weights(source)
    graph, _ = read_core(core)
    tensor = graph.graph.initializers["1.down.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.offset is not None
    assert tensor.length is not None
    with (core / tensor.location).open("r+b") as file:
        file.seek(tensor.offset + tensor.length - 4)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    kept = keep_source(read_source(source / "model.onnx", {}), core)
    assert kept.bytes_copied == wanted["1.down.weight"].nbytes
    have = kept_weights(core, list(wanted))
    assert all(have[name].tobytes() == array.tobytes() for name, array in wanted.items())


def test_weights_in_constant_nodes_point_into_the_core_too(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source)
    model = onnx.load(source / "model.onnx")  # noqa: TID251 - a small model, to change it
    large = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    nodes = [onnx.helper.make_node("Constant", [], [one.name], value=one) for one in large]
    left = [tensor for tensor in model.graph.initializer if len(tensor.dims) <= 1]
    nodes += model.graph.node
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(copies)
    model.graph.initializer.extend(left)
    onnx.save(model, source / "model.onnx")
    found = ingest(source, tmp_path / "core")
    assert found == {"pointing": found["pointing"], "copied": 0}
    assert found["pointing"] > 0.9 * sum(np.prod(one.dims) * 4 for one in large)
    assert (tmp_path / "core" / SOURCE_FILE).stat().st_size < 60_000
