"""A source with its encodings simulated: its loss is AIMET's, its numbers are the formula's.

The figures of AIMET's own simulation (aimet-onnx 2.42.0, encodings loaded back, each piece from an
empty cache) on eval.npy[:12, :96]: W8A16 3.8030, W4A16 3.8189, float 3.8022.
"""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from genai_core.errors import BadEncodings
from genai_core.operations import IngestConfig
from genai_stages.aimet.arithmetic import outwards
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor
from genai_stages.aimet.read import read_encodings
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.operations import ingest
from genai_stages.quantize import watch
from genai_stages.quantize.calibrate import calibrate
from genai_stages.quantize.simulate import Simulated, simulate
from genai_stages.stage import Context
from genai_stages.testing import random_core_model

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
EVAL = np.load(FIXTURES / "tokens" / "eval.npy")[:12, :96].astype(np.int64)


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("core")
    scratch = tmp_path_factory.mktemp("scratch")
    ingest.run({"source": EXAMPLE}, IngestConfig(), folder, Context(scratch=scratch))
    return folder


def run(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] from an empty cache."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "model.onnx"), options)
    feeds = {"input_ids": tokens[None]}
    for value in session.get_inputs()[1:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    logits: np.ndarray = session.run(["logits"], feeds)[0][0]
    return logits


def loss(folder: Path) -> float:
    losses = []
    for piece in EVAL:
        logits = run(folder, piece).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        losses.append(-logs[np.arange(piece.size - 1), piece[1:]].mean())
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("file", "aimet"),
    [
        (EXAMPLE / "model.encodings", 3.8030),
        (FIXTURES / "encodings" / "w4a16.encodings", 3.8189),
    ],
    ids=["w8a16", "w4a16"],
)
def test_the_loss_is_that_of_aimets_simulation(
    core: Path, tmp_path: Path, file: Path, aimet: float
) -> None:
    found = simulate(core, read_encodings(file), tmp_path)
    assert loss(tmp_path) == pytest.approx(aimet, abs=0.002)
    assert found.missing == ()
    assert found.quantized == 202
    # Entries of the rotary table's making stand for nothing in the core graph.
    assert "/model/rotary_emb/Cos_output_0" in found.unused


def test_an_infinite_mask_ruins_the_model_as_aimet_says(core: Path, tmp_path: Path) -> None:
    """The check that refuses such a file is right: AIMET saw 6.95 where it had been 3.32."""
    simulate(core, read_encodings(FIXTURES / "encodings" / "w8a16-inf-mask.encodings"), tmp_path)
    assert loss(tmp_path) > 6.0


def symmetric(name: str, rows: np.ndarray, bits: int) -> Encoding:
    scale = (np.abs(rows).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
    return Encoding(
        name, bits, True, scale.astype(np.float64), np.full(len(rows), -(2.0 ** (bits - 1)))
    )


def test_weights_are_those_of_the_formula_and_the_rest_stays_float(tmp_path: Path) -> None:
    """With weight encodings alone it is the float model whose weights numpy rounded."""
    core, rounded, out = tmp_path / "core", tmp_path / "rounded", tmp_path / "out"
    random_core_model(core, layers=1, qkv_bias=True, qk_norm=True)
    model, _ = read_core(core)
    shutil.copytree(core, rounded)
    entries: dict[str, Encoding] = {}
    weights: dict[str, np.ndarray] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert isinstance(tensor, ir.ExternalTensor)
        assert tensor.offset is not None
        array: np.ndarray = np.array(mapped(tensor))
        if not name.endswith("proj.weight") and name != "lm_head.weight":
            continue
        entries[name] = symmetric(name, array, 4 if "mlp" in name else 8)
        scale = entries[name].scale.astype(np.float32)[:, None]
        top = 2 ** (entries[name].bits - 1)
        weights[name] = np.clip(np.rint(array / scale), -top, top - 1) * scale
        with (rounded / tensor.location).open("r+b") as file:
            file.seek(tensor.offset)
            file.write(weights[name].astype(np.float32).tobytes())
    (tmp_path / "empty").mkdir()
    out.mkdir()
    found = simulate(core, EncodingSet("1.0.0", "f", entries), out)
    simulate(rounded, EncodingSet("1.0.0", "f", {}), tmp_path / "empty")

    tokens = np.arange(20) * 7 % 512
    np.testing.assert_allclose(run(out, tokens), run(tmp_path / "empty", tokens), atol=2e-5)
    assert found.quantized == len(entries) == 8
    assert "model.embed_tokens.weight" not in found.missing
    assert "logits" in found.missing


def test_weights_of_an_unusual_grid_are_rounded_in_pieces(tmp_path: Path) -> None:
    """A table of a vocabulary is gigabytes: as float64, twice, it was all of a small machine."""
    core, out = tmp_path / "core", tmp_path / "out"
    random_core_model(core, layers=1, hidden=64, vocab=1 << 16, tied=True)
    model, _ = read_core(core)
    read = next(node.inputs[0] for node in model.graph if node.op_type == "Gather")
    assert read is not None
    assert read.const_value is not None
    name = read.name or ""
    table: np.ndarray = np.array(mapped(read.const_value))
    scale = np.abs(table).max(axis=1) / 100.0
    uneven = Encoding(name, 8, symmetric=False, scale=scale, offset=np.full(scale.shape, -120.0))
    out.mkdir()
    tracemalloc.start()
    simulate(
        core,
        EncodingSet("1.0.0", "f", {name: uneven}),
        out,
        end="/model/embed_tokens/Gather_output_0",
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * table.nbytes
    written = ort.InferenceSession(str(out / "model.onnx"))
    tokens = np.array([0, 5, 65535])
    (rows,) = written.run(None, {"input_ids": tokens[None]})
    grid = np.clip(np.rint(table[tokens] / scale[tokens, None].astype(np.float32)) + 120, 0, 255)
    np.testing.assert_allclose(rows[0], (grid - 120) * scale[tokens, None], rtol=1e-6)


def test_activations_go_through_their_grids(tmp_path: Path) -> None:
    """An 8-bit encoding of the logits shows: whole steps, and many of them."""
    core = tmp_path / "core"
    random_core_model(core, layers=1)
    grid = per_tensor("logits", -4.0, 4.0, bits=8, symmetric=True)
    out = tmp_path / "out"
    out.mkdir()
    simulate(core, EncodingSet("1.0.0", "f", {"logits": grid}), out)
    logits = run(out, np.arange(12))
    steps = logits / float(grid.scale)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert len(np.unique(logits)) > 20


def test_a_part_of_a_model_can_be_simulated(core: Path, tmp_path: Path) -> None:
    _, facts = read_core(core)
    encodings = read_encodings(EXAMPLE / "model.encodings")
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    for folder in (whole, first, second):
        folder.mkdir()
    cut = facts.boundaries[3]
    parts: list[Simulated] = [
        simulate(core, encodings, first, end=cut),
        simulate(core, encodings, second, start=cut),
    ]
    total = simulate(core, encodings, whole)
    assert sum(part.quantized for part in parts) == total.quantized
    sessions = [ort.InferenceSession(str(folder / "model.onnx")) for folder in (first, second)]
    state = EVAL[:1, :40]
    for session in sessions:
        feeds = {session.get_inputs()[0].name: state}
        for value in session.get_inputs()[1:]:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        state = session.run([session.get_outputs()[0].name], feeds)[0]
    np.testing.assert_array_equal(state[0], run(whole, EVAL[0, :40]))


def test_activations_of_odd_widths_are_refused(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core, layers=1)
    entry = per_tensor("logits", -4.0, 4.0, bits=12, symmetric=False)
    with pytest.raises(BadEncodings, match="f: logits: activations of 12 bits"):
        simulate(core, EncodingSet("1.0.0", "f", {"logits": entry}), tmp_path)


def test_calibration_fills_what_is_missing_and_nothing_else(core: Path, tmp_path: Path) -> None:
    given = read_encodings(EXAMPLE / "model.encodings")
    gone = ["/model/layers.2/mlp/Mul_output_0", "/model/layers.1/self_attn/MatMul_output_0",
            "model.norm.weight", "model.embed_tokens.weight", "onnx::MatMul_2090"]  # fmt: skip
    left = {name: one for name, one in given.items() if name not in gone}
    pieces = np.load(FIXTURES / "tokens" / "calibration.npy")[:24, :96]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    filled = calibrate(core, EncodingSet(given.version, given.where, left), pieces, scratch=scratch)
    for name, one in left.items():
        assert filled[name] is one
    for name in gone[:2]:
        # Calibrated on other pieces than AIMET's: the ranges agree in size, not in digits.
        span, wanted = (float(one.high - one.low) for one in (filled[name], given[name]))
        assert span == pytest.approx(wanted, rel=0.4)
    for name in gone[2:4]:
        np.testing.assert_allclose(filled[name].scale, given[name].scale, rtol=1e-4)
    np.testing.assert_allclose(filled[gone[4]].scale, given[gone[4]].scale, rtol=0.01)
    simulate(core, filled, tmp_path)
    assert loss(tmp_path) == pytest.approx(3.8030, abs=0.003)


def test_calibration_on_another_processor_gives_the_same_grids(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of one build calibrate on different nodes, whose kernels differ in the last bits."""
    pieces = np.load(FIXTURES / "tokens" / "calibration.npy")[:4, :24]
    joined, found = watch._joined, []
    for ulps in (-4, 0, 4):

        def elsewhere(before: Any, low: float, high: float, *, name: str, off: int = ulps) -> Any:
            # What is exact (a probability of one, a weight as it is) is so everywhere.
            factor = 1 + off * 2.0**-24
            low, high = (one if one == outwards(one) else one * factor for one in (low, high))
            return joined(before, low, high, name=name)

        monkeypatch.setattr(watch, "_joined", elsewhere)
        scratch = tmp_path / f"scratch{ulps}"
        scratch.mkdir()
        found.append(calibrate(core, None, pieces, scratch=scratch))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(one.same_grid(found[0][name]) for name, one in other.items())


def test_calibration_alone_makes_a_sound_model(core: Path, tmp_path: Path) -> None:
    pieces = np.load(FIXTURES / "tokens" / "calibration.npy")[:24, :96]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    calibrated = calibrate(core, None, pieces, scratch=scratch)
    found = simulate(core, calibrated, tmp_path)
    assert found.missing == ()
    assert loss(tmp_path) == pytest.approx(3.8022, abs=0.005)
