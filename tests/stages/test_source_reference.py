"""The yardstick is the source itself: AIMET's figures, ONNX Runtime's logits, no way by the core.

The figures of AIMET's own simulation (aimet-onnx 2.42.0, encodings loaded back, each piece from an
empty cache) on eval.npy[:12, :96]: W8A16 3.8030, W4A16 3.8189, float 3.8022.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from genai_core.errors import BadEncodings
from genai_core.operations import IngestConfig
from genai_runtime.evaluate import losses
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor
from genai_stages.aimet.read import read_encodings
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.graph.core_graph import FACTS_FILE
from genai_stages.operations.ingest import run
from genai_stages.quantize.segments import SegmentedModel
from genai_stages.stage import Context
from genai_stages.testing import assemble_step1
from genai_stages.testing_sources import write_source

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
EVAL = np.load(FIXTURES / "tokens" / "eval.npy")[:12, :96].astype(np.int64)


def ingest(source: Path, core: Path) -> Path:
    core.mkdir()
    run({"source": source}, IngestConfig(), core, Context(core.parent / "scratch"))
    return core


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(EXAMPLE, tmp_path_factory.mktemp("tiny") / "core")


def loss(model: SourceReference | SegmentedModel) -> float:
    total = 0.0
    for logits, piece in zip(model.logits([one[:-1] for one in EVAL]), EVAL, strict=True):
        total += float(losses(logits, piece[1:]).sum())
    return float(total / (EVAL.shape[0] * (EVAL.shape[1] - 1)))


def source_logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of a dynamic source in ONNX Runtime, from an empty cache."""
    session = ort.InferenceSession(path)
    ids = tokens[None]
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids),
             "position_ids": np.arange(len(tokens))[None]}  # fmt: skip
    feeds = {}
    for value in session.get_inputs():
        if value.name in known:
            feeds[value.name] = known[value.name]
        else:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    logits: np.ndarray = session.run(["logits"], feeds)[0][0]
    return logits


@pytest.mark.parametrize(
    ("file", "aimet", "near"),
    [
        (None, 3.8022, 1e-4),
        (EXAMPLE / "model.encodings", 3.8030, 2e-4),
        (FIXTURES / "encodings" / "w4a16.encodings", 3.8189, 2e-3),
    ],
    ids=["float", "w8a16", "w4a16"],
)
def test_the_loss_is_that_of_aimets_simulation(
    tiny: Path, tmp_path: Path, file: Path | None, aimet: float, near: float
) -> None:
    encodings = None if file is None else read_encodings(file)
    found = loss(SourceReference(tiny, tmp_path / "scratch", encodings=encodings))
    assert found == pytest.approx(aimet, abs=near)
    if file is not None:
        by_core = loss(SegmentedModel(tiny, tmp_path / "core", encodings=encodings))
        assert abs(found - aimet) < abs(by_core - aimet)


def test_groups_of_any_size_give_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    encodings = read_encodings(EXAMPLE / "model.encodings")
    pieces = EVAL[:1, :20]
    found = [
        list(SourceReference(tiny, tmp_path / "x", encodings=encodings, group_bytes=size).logits(
            pieces
        ))
        for size in (1, 1 << 30)
    ]  # fmt: skip
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "style",
    [
        {"positions": "counted", "window": 5, "fused": True},
        {"half": True, "projection": "conv", "bias": True},
        {"past": False, "tied": True, "rotary": "neighbours", "waves": "ready"},
        {"contrib": True, "head_dim": 16},
    ],
    ids=["counted", "half", "no-past", "contrib"],
)
def test_the_logits_are_the_sources_own(style: dict[str, Any], tmp_path: Path) -> None:
    write_source(tmp_path / "source", **style)
    core = ingest(tmp_path / "source", tmp_path / "core")
    tokens = np.random.default_rng(0).integers(0, 64, 40)
    wanted = source_logits(tmp_path / "source" / "model.onnx", tokens)
    shutil.rmtree(tmp_path / "source")
    for size in (1, 1 << 30):
        reference = SourceReference(core, tmp_path / "scratch", group_bytes=size)
        (have,) = reference.logits([tokens])
        np.testing.assert_allclose(have, wanted, atol=2e-5)


def test_caches_whose_sizes_were_found_out_are_fed_in_these(tmp_path: Path) -> None:
    """An exporter that names every dimension of a cache by a symbol."""
    write_source(tmp_path / "source")
    path = tmp_path / "source" / "model.onnx"
    tokens = np.arange(20)
    wanted = source_logits(path, tokens)
    model = onnx.load(path)  # noqa: TID251 - a small model, to change it
    for value in model.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[1].dim_param = "heads"
            value.type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(model, path)
    core = ingest(tmp_path / "source", tmp_path / "core")
    (have,) = SourceReference(core, tmp_path / "scratch").logits([tokens])
    np.testing.assert_allclose(have, wanted, atol=2e-5)


@pytest.mark.parametrize("pad", ["left-pad", "right-pad"])
def test_static_sources_take_pieces_longer_than_a_pass(
    pad: str, tiny: Path, tmp_path: Path
) -> None:
    """AR 73: a piece of 95 tokens goes through in two passes, the first one's keys as the past."""
    source = assemble_step1(FIXTURES / "step1" / pad, EXAMPLE, tmp_path / "source")
    core = ingest(source, tmp_path / "core")
    reference = SourceReference(core, tmp_path / "scratch", group_bytes=1)
    pieces = [EVAL[0, :-1], EVAL[1, :5], EVAL[2, :73]]
    assert reference.fits(pieces)
    dynamic = SourceReference(tiny, tmp_path / "dynamic")
    for have, want in zip(reference.logits(pieces), dynamic.logits(pieces), strict=True):
        np.testing.assert_allclose(have, want, atol=2e-4)
    assert not reference.fits([np.zeros(200, np.int64)])


_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from genai_stages.fidelity.source_reference import SourceReference
reference = SourceReference(Path(sys.argv[1]), Path(sys.argv[2]), group_bytes=1)
for _ in reference.logits([np.arange(8)]):
    pass
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """Three layers more of 25 MB each; measured in processes of their own."""
    peaks = []
    for layers in (1, 4):
        folder = tmp_path / str(layers)
        write_source(folder / "source", layers=layers, hidden=512, intermediate=4096, external=True)
        core = ingest(folder / "source", folder / "core")
        command = [sys.executable, "-c", _PEAK, str(core), str(folder / "x")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout) << 10)
    assert peaks[1] - peaks[0] < 30 << 20


def test_a_mistake_of_the_core_graph_is_none_of_the_yardsticks(tiny: Path, tmp_path: Path) -> None:
    """Facts with another rotary table and window change the core graph's loss, not the source's."""
    wrong = shutil.copytree(tiny, tmp_path / "wrong")
    facts = json.loads((wrong / FACTS_FILE).read_text())
    table = facts["rope"]["default"]
    table["inv_freq"] = [one * 0.5 for one in table["inv_freq"]]
    (wrong / FACTS_FILE).write_text(json.dumps(facts))
    assert loss(SourceReference(wrong, tmp_path / "a")) == pytest.approx(3.8022, abs=1e-4)
    assert loss(SegmentedModel(wrong, tmp_path / "b")) > 3.85


def test_encodings_act_on_the_sources_own_tensors(tmp_path: Path) -> None:
    """Against the same graph with the standard's own operators put in by hand."""
    source = tmp_path / "source"
    write_source(source, rotary="halves", layers=2)
    core = ingest(source, tmp_path / "core")
    model = onnx.load(source / "model.onnx")  # noqa: TID251 - a small model, to change it
    made = [node.output[0] for node in model.graph.node]
    kinds = {node.output[0]: node.op_type for node in model.graph.node}
    chosen = [name for name in made if kinds[name] in ("Cos", "Softmax", "MatMul", "Sigmoid")]
    entries: dict[str, Encoding] = {}
    for name in chosen:
        low, high = (-1.0, 1.0) if kinds[name] == "Cos" else (-4.0, 4.0)
        entries[name] = per_tensor(name, low, high, bits=8, symmetric=False)
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for name in ("0.q.weight", "1.down.weight", "embed"):
        scale = np.abs(weights[name]).max(0 if name != "embed" else 1).astype(np.float32) / 7
        entries[name] = Encoding(name, 4, True, scale.astype(np.float64), np.full(len(scale), -8.0))
        spread = scale if name != "embed" else scale[:, None]
        weights[name] = np.clip(np.rint(weights[name] / spread), -8, 7) * spread
    reference = SourceReference(
        core, tmp_path / "scratch", encodings=EncodingSet("1.0.0", "f", entries), group_bytes=1
    )
    for tensor in model.graph.initializer:
        array = weights[tensor.name].astype(numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name in chosen:
            node.output[0] = f"{name}_float"
            for key, value in (
                ("scale", entries[name].scale.astype(np.float32)),
                ("zero", (-entries[name].offset).astype(np.uint8)),
            ):
                array = numpy_helper.from_array(np.asarray(value), f"{name}_{key}")
                model.graph.initializer.append(array)
            grid = [f"{name}_scale", f"{name}_zero"]
            nodes.append(
                helper.make_node("QuantizeLinear", [f"{name}_float", *grid], [f"{name}_q"])
            )
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *grid], [name]))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    onnx.save(model, tmp_path / "by-hand.onnx")
    tokens = np.random.default_rng(1).integers(0, 64, 30)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = source_logits(tmp_path / "by-hand.onnx", tokens)
    (have,) = reference.logits([tokens])
    plain = source_logits(source / "model.onnx", tokens)
    # A last digit may fall on another grid point: most are equal, and all are far from the float's.
    assert np.median(np.abs(have - wanted)) < 1e-4
    assert np.abs(have - wanted).max() < 0.1 * np.abs(plain - wanted).max()


@pytest.mark.parametrize("bits", [2, 5, 12, 32])
def test_unusual_bits_lie_on_the_grid_of_the_formula(bits: int, tmp_path: Path) -> None:
    write_source(tmp_path / "source", layers=1)
    core = ingest(tmp_path / "source", tmp_path / "core")
    entry = per_tensor("logits", -3.0, 2.0, bits=bits, symmetric=False)
    tokens = np.arange(9)
    plain, rounded = (
        next(iter(SourceReference(core, tmp_path / "x", encodings=one).logits([tokens])))
        for one in (None, EncodingSet("1.0.0", "f", {"logits": entry}))
    )
    scale = float(np.float32(entry.scale))
    grid = np.clip(np.rint(plain / np.float32(scale)), entry.offset, entry.offset + 2.0**bits - 1)
    wanted = plain if bits == 32 else grid * scale
    np.testing.assert_allclose(rounded, wanted, atol=1e-5)


def test_an_activation_with_several_scales_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "source", layers=1)
    core = ingest(tmp_path / "source", tmp_path / "core")
    entry = Encoding("logits", 8, True, np.ones(64), np.full(64, -128.0))
    reference = SourceReference(
        core, tmp_path / "x", encodings=EncodingSet("1.0.0", "f", {"logits": entry})
    )
    with pytest.raises(BadEncodings, match="64 scales for an activation"):
        list(reference.logits([np.arange(4)]))
