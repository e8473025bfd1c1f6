"""The Snapdragon backend with the vendor's libraries: DLC, context binary, emulator, Genie.

One tiny decoder (2 layers, AR 32 and 1, CL 128) is converted once as a whole and once in three
splits; every test looks at those results.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from genai_core import chips
from genai_core import compile_options as options
from genai_core.errors import (
    BadModel,
    DriftError,
    InvalidSpec,
    ToolchainMismatch,
    ToolFailed,
    UnsupportedOperator,
)
from genai_runtime.htp import emulation, epcontext, metadata, testing
from genai_runtime.htp.client import Emulator
from genai_runtime.htp.executor import HtpSession
from genai_runtime.htp.metadata import GraphMetadata
from genai_runtime.htp.vendor import genie, qnn
from genai_runtime.rope import for_context
from genai_stages.backends.htp import compile as htp_compile
from genai_stages.backends.htp import dlc, drift
from genai_stages.backends.htp.compile import CompileResult, CompileSource
from genai_stages.backends.htp.genie_config import GenieFacts, genie_config

pytestmark = [
    pytest.mark.qnn,
    pytest.mark.skipif(
        bool(qnn.why_unavailable()),
        reason=f"NOTHING OF THE SNAPDRAGON BACKEND WAS TESTED: {qnn.why_unavailable()}",
    ),
]

SIZES = ((32, 128), (1, 128))
IDS = np.random.default_rng(0).integers(3, testing.VOCAB, 32)
SM8750 = chips.parse("sm8750")


@dataclass(frozen=True)
class Converted:
    """DLCs of one graph list, in the order of the binary."""

    sources: tuple[CompileSource, ...]
    listings: tuple[GraphMetadata, ...]
    scratch: Path


def _convert(folder: Path, split: int, splits: int) -> Converted:
    folder.mkdir(exist_ok=True)
    sources, listings = [], []
    for ar, cl in SIZES:
        name = testing.graph_name(ar, cl, split, splits=splits)
        model = folder / f"{name}.onnx"
        onnx.save(testing.quantized(ar, cl, testing.SPLITS[splits][split - 1]), model)
        result = dlc.convert(model, name, folder / f"{name}.dlc", scratch=folder / "scratch")
        assert result.digest == dlc.semantic_digest(result.path)
        assert result.peak_memory_bytes > 20 << 20
        sources.append(CompileSource(name, result.path))
        listings.append(result.listing)
    return Converted(tuple(sources), tuple(listings), folder / "scratch")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return _convert(tmp_path_factory.mktemp("whole"), 1, 1)


@pytest.fixture(scope="module")
def shared(whole: Converted, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    return _binary(whole, tmp_path_factory.mktemp("shared") / "part_1_of_1.bin")


@pytest.fixture(scope="module")
def container(whole: Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `emulation/` of the unsplit decoder, and a tokenizer."""
    folder = tmp_path_factory.mktemp("container")
    out = folder / "emulation" / "part_1_of_1.bin"
    htp_compile.twin(whole.sources, out, chip=SM8750, scratch=whole.scratch)
    emulation.describe(out.parent, {"default": testing.rope_table()})
    _write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def split_container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same decoder in three splits."""
    folder = tmp_path_factory.mktemp("split")
    for split in (1, 2, 3):
        converted = _convert(folder / f"work{split}", split, 3)
        htp_compile.twin(
            converted.sources,
            folder / "emulation" / f"part_{split}_of_3.bin",
            chip=SM8750,
            scratch=converted.scratch,
        )
    emulation.describe(folder / "emulation", {"default": testing.rope_table()})
    _write_tokenizer(folder)
    return folder


def _binary(converted: Converted, out: Path, **changes: object) -> CompileResult:
    given = {"chip": SM8750, "scratch": converted.scratch, "sources": converted.sources} | changes
    sources = given.pop("sources")
    return htp_compile.context_binary(sources, out, **given)  # type: ignore[arg-type]


def _write_tokenizer(folder: Path) -> None:
    model = {
        "type": "WordLevel",
        "vocab": {f"t{i}": i for i in range(testing.VOCAB)},
        "unk_token": "t0",
    }
    rest = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    made: dict[str, object] = {
        **rest,
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(made))


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _expected(ar: int, cl: int) -> dict[str, tuple[tuple[int, ...], str]]:
    heads, dim, past = testing.KV_HEADS, testing.HEAD_DIM, cl - ar
    made: dict[str, tuple[tuple[int, ...], str]] = {
        "input_ids": ((1, ar), "int32"),
        "attention_mask": ((1, 1, ar, cl), "uint16"),
        "position_ids_cos": ((1, 1, ar, dim // 2), "uint16"),
        "position_ids_sin": ((1, 1, ar, dim // 2), "uint16"),
        "logits": ((1, ar, testing.VOCAB), "uint16"),
    }
    for layer in range(testing.LAYERS):
        made[f"past_key_{layer}_in"] = ((heads, 1, dim, past), "uint8")
        made[f"past_value_{layer}_in"] = ((heads, 1, past, dim), "uint8")
        made[f"past_key_{layer}_out"] = ((heads, 1, dim, ar), "uint8")
        made[f"past_value_{layer}_out"] = ((heads, 1, ar, dim), "uint8")
    return made


@pytest.mark.parametrize("index", [0, 1])
def test_dlc_lists_our_names_shapes_dtypes_and_scales(whole: Converted, index: int) -> None:
    ar, cl = SIZES[index]
    read = dlc.listing(whole.sources[index].dlc, scratch=whole.scratch)
    assert read == whole.listings[index]
    assert read.name == testing.graph_name(ar, cl, 1, splits=1)
    found = {t.name: (t.shape, t.dtype) for t in (*read.inputs, *read.outputs)}
    assert found == _expected(ar, cl)
    for tensor in (*read.inputs, *read.outputs):
        if tensor.name == "input_ids":
            assert tensor.scale is None
            continue
        encoding = testing.encodings()[tensor.name]
        assert tensor.scale == np.float32(encoding.scale)
        assert tensor.offset == -encoding.zero_point


def test_dlc_digest_knows_neither_clock_nor_path(whole: Converted, tmp_path: Path) -> None:
    model = tmp_path / "elsewhere" / "other.onnx"
    model.parent.mkdir()
    onnx.save(testing.quantized(*SIZES[0]), model)
    name = whole.sources[0].name
    again = dlc.convert(model, name, tmp_path / "x.dlc", scratch=tmp_path / "s")
    assert again.digest == dlc.semantic_digest(whole.sources[0].dlc)
    onnx.save(testing.quantized(*SIZES[0], seed=8), model)
    other = dlc.convert(model, name, tmp_path / "y.dlc", scratch=tmp_path / "s")
    assert other.digest != again.digest


def test_what_is_not_a_dlc_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dlc"
    path.write_bytes(b"nothing")
    with pytest.raises(BadModel, match="not a DLC"):
        dlc.semantic_digest(path)
    with pytest.raises(ToolFailed):
        dlc.listing(path, scratch=tmp_path)


def test_one_binary_lists_both_graphs_and_the_chip(shared: CompileResult, whole: Converted) -> None:
    found = metadata.read(shared.path)
    assert found == shared.metadata
    assert found.soc_model == 69
    assert [g.name for g in found.graphs] == [s.name for s in whole.sources]
    for graph, listing in zip(found.graphs, whole.listings, strict=True):
        assert {t.name: t for t in graph.inputs} == {t.name: t for t in listing.inputs}
        assert {t.name: t for t in graph.outputs} == {t.name: t for t in listing.outputs}
    assert found.size == shared.path.stat().st_size


def test_weight_sharing_saves_the_second_copy(
    shared: CompileResult, container: Path, whole: Converted, tmp_path: Path
) -> None:
    one = _binary(whole, tmp_path / "one.bin", sources=whole.sources[:1]).metadata.size
    apart = (container / "emulation" / "part_1_of_1.bin").stat().st_size
    assert shared.metadata.size <= 1.4 * one
    assert apart >= 1.9 * one


def test_the_same_request_gives_the_same_bytes(
    shared: CompileResult, whole: Converted, tmp_path: Path
) -> None:
    written = chips.parse("dsp_arch:v79;soc_model:69")
    again = _binary(whole, tmp_path / "again.bin", chip=written)
    assert _sha(again.path) == _sha(shared.path)
    third = _binary(whole, tmp_path / "third.bin", chip=chips.parse("chipset:SM8750"))
    assert _sha(third.path) == _sha(shared.path)


@pytest.mark.parametrize(
    "given", [{"graphs.O": "1"}, {"graphs.vtcm_size_in_mb": "2"}, {"graphs.O": "3"}]
)
def test_options_reach_the_compiler(
    shared: CompileResult, whole: Converted, tmp_path: Path, given: Mapping[str, str]
) -> None:
    parsed = options.parse(given)
    sources = [CompileSource(s.name, s.dlc, parsed) for s in whole.sources]
    changed = _binary(whole, tmp_path / "x.bin", sources=sources)
    assert _sha(changed.path) != _sha(shared.path)


def test_vtcm_may_differ_between_graphs(whole: Converted, tmp_path: Path) -> None:
    sizes = [{"graphs.vtcm_size_in_mb": size} for size in ("8", "4")]
    sources = [
        CompileSource(s.name, s.dlc, options.parse(given))
        for s, given in zip(whole.sources, sizes, strict=True)
    ]
    mixed = _binary(whole, tmp_path / "mixed.bin", sources=sources)
    both = [CompileSource(s.name, s.dlc, options.parse(sizes[0])) for s in whole.sources]
    equal = _binary(whole, tmp_path / "equal.bin", sources=both)
    assert _sha(mixed.path) != _sha(equal.path)


def test_another_chip_gives_another_binary(
    shared: CompileResult, whole: Converted, tmp_path: Path
) -> None:
    other = _binary(whole, tmp_path / "x.bin", chip=chips.parse("sm8550"))
    assert other.metadata.soc_model == 43
    assert _sha(other.path) != _sha(shared.path)


def test_a_chip_that_the_library_does_not_know_is_noticed(whole: Converted, tmp_path: Path) -> None:
    with pytest.raises(ToolFailed):
        _binary(whole, tmp_path / "x.bin", chip=chips.Chip("SM0001", 4242, 79))


def test_a_binary_that_is_not_what_was_asked_for_is_described(
    shared: CompileResult, whole: Converted
) -> None:
    found, wanted = shared.metadata, list(whole.listings)
    assert htp_compile.differences(found, wanted, chip=SM8750) == ""
    zero = found.model_copy(update={"soc_model": 0})
    assert "socModel 0 instead of 69" in htp_compile.differences(zero, wanted, chip=SM8750)
    assert "graphs" in htp_compile.differences(found, wanted[:1], chip=SM8750)
    first = wanted[0].inputs[1]
    changed = first.model_copy(update={"scale": 0.125})
    inputs = tuple(changed if t is first else t for t in wanted[0].inputs)
    wanted[0] = wanted[0].model_copy(update={"inputs": inputs})
    assert first.name in htp_compile.differences(found, wanted, chip=SM8750)


def test_graph_names_and_levels_are_checked(whole: Converted, tmp_path: Path) -> None:
    twice = [whole.sources[0], whole.sources[0]]
    with pytest.raises(InvalidSpec, match="differ"):
        _binary(whole, tmp_path / "x.bin", sources=twice)
    levels = [
        CompileSource(s.name, s.dlc, options.parse({"graphs.O": level}))
        for s, level in zip(whole.sources, "12", strict=True)
    ]
    with pytest.raises(InvalidSpec, match="one optimization level"):
        _binary(whole, tmp_path / "x.bin", sources=levels)


def test_native_cache_needs_certain_lengths(whole: Converted, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"AR 1; use .*32, 64, 128, 256"):
        _binary(whole, tmp_path / "x.bin", native_kv=True)


def test_native_cache_is_marked_in_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "HEAD_DIM", 64)
    sources = []
    for ar in (32, 128):
        model = tmp_path / f"{ar}.onnx"
        onnx.save(testing.quantized(ar, 512, seed=64), model)
        name = testing.graph_name(ar, 512, 1, splits=1)
        result = dlc.convert(model, name, tmp_path / f"{ar}.dlc", scratch=tmp_path / "s")
        sources.append(CompileSource(name, result.path))
    made = htp_compile.context_binary(
        sources, tmp_path / "x.bin", chip=SM8750, scratch=tmp_path / "s", native_kv=True
    )
    layouts = {t.name: t.layout for g in made.metadata.graphs for t in (*g.inputs, *g.outputs)}
    native = {name for name, layout in layouts.items() if layout == "native_8"}
    wanted = {name for name in _expected(32, 512) if name.startswith("past_")}
    assert native == wanted


def _changed(tmp_path: Path, change: str) -> Path:
    model = testing.quantized(*SIZES[0])
    nodes = {node.name: node for node in model.graph.node}
    if change == "eight bit output":
        for name in ("l0.v_Q", "l0.v_DQ"):
            nodes[name].input[1] = "past_value_0_out.scale"
            nodes[name].input[2] = "past_value_0_out.zero"
    elif change == "unknown operator":
        nodes["l0.sig"].op_type = "Mish"
    else:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "T"
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("eight bit output", "MatMul v_proj of layer 0: .* cannot write 8 bit directly"),
        ("unknown operator", "Mish l0.sig: the operator cannot run on the Hexagon processor"),
    ],
)
def test_a_node_that_falls_off_is_named_as_the_user_knows_it(
    tmp_path: Path, change: str, words: str
) -> None:
    names = {"l0.v": "v_proj of layer 0"}
    with pytest.raises(UnsupportedOperator, match=words) as caught:
        dlc.convert(
            _changed(tmp_path, change),
            "x",
            tmp_path / "x.dlc",
            scratch=tmp_path / "s",
            user_name=lambda name: names.get(name, name),
        )
    assert caught.value.exit_code == 2
    assert not (tmp_path / "x.dlc").exists()


def test_a_dynamic_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="input_ids: the dimension T is not static"):
        dlc.convert(_changed(tmp_path, "dynamic"), "x", tmp_path / "x.dlc", scratch=tmp_path / "s")


def _decibels(reference: np.ndarray, other: np.ndarray) -> float:
    noise = ((reference - other) ** 2).sum()
    return float(10 * np.log10((reference**2).sum() / noise)) if noise else np.inf


def _on_the_cpu(ids: np.ndarray) -> np.ndarray:
    """Dequantized logits of 32 tokens by ONNX Runtime's CPU on the same QDQ model."""
    table = testing.encodings()
    session = ort.InferenceSession(
        testing.quantized(*SIZES[0]).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    cos, sin = testing.rotary(np.arange(32))
    floats = {
        "position_ids_cos": cos,
        "position_ids_sin": sin,
        "attention_mask": testing.mask(32, 128, 0),
    }
    feeds = {"input_ids": ids.astype(np.int32)[None]}
    for value in session.get_inputs():
        if value.name in feeds:
            continue
        e = table[value.name]
        real = floats.get(value.name, np.zeros(value.shape))
        steps = np.clip(np.rint(real / e.scale) + e.zero_point, 0, 2**e.bits - 1)
        feeds[value.name] = steps.astype(f"uint{e.bits}")
    logits = session.run(["logits"], feeds)[0][0]
    e = table["logits"]
    dequantized: np.ndarray = ((logits.astype(np.float64) - e.zero_point) * e.scale).astype(
        np.float32
    )
    return dequantized


@pytest.fixture(scope="module")
def answers(container: Path) -> dict[str, np.ndarray]:
    """What the executor says: prompt logits, and 8 greedy tokens after BOS and the prompt."""
    executor = HtpSession(container / "emulation")
    try:
        prompt = executor.prefill(IDS)
        logits = executor.prefill(np.concatenate([[1], IDS]))
        tokens = []
        for _ in range(8):
            tokens.append(int(logits[-1].argmax()))
            logits = executor.decode(tokens[-1])
        return {"prompt": prompt, "tokens": np.array(tokens), "last": logits}
    finally:
        executor.close()


def test_emulator_follows_the_cpu(answers: dict[str, np.ndarray]) -> None:
    reference = _on_the_cpu(IDS)
    assert _decibels(reference, answers["prompt"]) >= 40
    assert (reference.argmax(-1) == answers["prompt"].argmax(-1)).all()


def test_a_chain_of_splits_equals_the_whole(
    split_container: Path, answers: dict[str, np.ndarray]
) -> None:
    executor = HtpSession(split_container / "emulation")
    try:
        np.testing.assert_array_equal(executor.prefill(IDS), answers["prompt"])
    finally:
        executor.close()


def test_drift_of_a_twin_is_measured_and_bounded(
    whole: Converted, container: Path, tmp_path: Path
) -> None:
    binary = container / "emulation" / "part_1_of_1.bin"
    twin = CompileResult(binary, metadata.read(binary), 0.0, 0)
    models = {s.name: s.dlc.with_suffix(".onnx") for s in whole.sources}
    found = drift.emulator_drift(models, twin)
    assert found.keys() == models.keys()
    assert set(found[whole.sources[0].name]) == {t.name for t in whole.listings[0].outputs}
    assert drift.require_small(found) >= 40
    other = tmp_path / "other.onnx"
    onnx.save(testing.quantized(*SIZES[1], seed=8), other)
    name = whole.sources[1].name
    wrong = drift.emulator_drift(models | {name: other}, twin)
    assert wrong[name]["logits"] < 20
    with pytest.raises(DriftError, match=r"logits is 39\.0 dB"):
        drift.require_small({name: {"past_key_0_out": 26.0, "logits": 39.0}})
    with pytest.raises(DriftError, match=rf"{name}: the emulator's .* dB are required"):
        drift.require_small(wrong)


def _config(folder: Path, splits: int, **changes: Any) -> dict[str, object]:
    facts = GenieFacts(
        context_length=128,
        vocab_size=testing.VOCAB,
        head_dim=testing.HEAD_DIM,
        rope=testing.rope_table(),
        bos_token=1,
        eos_tokens=[2],
        binaries=[f"part_{k}_of_{splits}.bin" for k in range(1, splits + 1)],
    )
    config = genie_config(replace(facts, **changes))
    (folder / "genie_config.json").write_text(json.dumps(config))
    assert genie.check_config(json.dumps(config)).accepted
    return genie.emulated(config)


@pytest.mark.parametrize("splits", [1, 3])
def test_genie_says_the_same_tokens(
    request: pytest.FixtureRequest, answers: dict[str, np.ndarray], splits: int
) -> None:
    folder = request.getfixturevalue("container" if splits == 1 else "split_container")
    config = _config(folder, splits)
    said = genie.query(folder, config, tokens=list(IDS), max_tokens=8)
    assert list(said.tokens) == list(answers["tokens"])
    text = " ".join(f"t{token}" for token in IDS)
    written = genie.query(folder, config, text=text, max_tokens=3)
    assert written.text == "".join(f"t{token}" for token in answers["tokens"][:3])


@pytest.mark.parametrize("original", [4096, 64])
def test_genie_chooses_longrope_s_factors_as_we_do(
    container: Path, tmp_path: Path, original: int
) -> None:
    """By the context's length and not the text's: 32 tokens of 128, made for 64 or for 4096."""
    folder = shutil.copytree(container, tmp_path / "container")
    plain = testing.rope_table()
    count = len(plain.inv_freq)
    short = [1 + 0.1 * i for i in range(count)]
    scaling: dict[str, object] = {
        "type": "longrope",
        "short_factor": short,
        "long_factor": [2.0 + 3 * i for i in range(count)],
        "original_max_position_embeddings": original,
    }
    scaled = (np.array(plain.inv_freq) / short).astype(np.float32).tolist()
    table = plain.model_copy(update={"inv_freq": scaled, "scaling": scaling})
    emulation.describe(folder / "emulation", {"default": for_context(table, 128)})
    executor = HtpSession(folder / "emulation")
    try:
        logits = executor.prefill(np.concatenate([[1], IDS]))
        tokens = []
        for _ in range(8):
            tokens.append(int(logits[-1].argmax()))
            logits = executor.decode(tokens[-1])
    finally:
        executor.close()
    config = _config(folder, 1, rope=table, max_positions=original)
    said = genie.query(folder, config, tokens=list(IDS), max_tokens=8)
    assert list(said.tokens) == tokens


def test_genie_reports_a_missing_binary(container: Path) -> None:
    config = _config(container, 3)
    with pytest.raises(ToolFailed, match=r"GenieDialog_create .*part_1_of_3\.bin"):
        genie.query(container, config, tokens=[5], max_tokens=1)


def test_loading_shared_weights_is_a_clear_error(shared: CompileResult, tmp_path: Path) -> None:
    binary = tmp_path / "part_1_of_1.bin"
    binary.write_bytes(shared.path.read_bytes())
    models = epcontext.write(binary, shared.metadata)
    with pytest.raises(ToolFailed, match=r"ended by SIG(SEGV|ABRT).*shared weights"):
        Emulator(models, soc_model=69)


def test_the_emulator_reports_what_does_not_fit(container: Path) -> None:
    name = testing.graph_name(1, 128, 1, splits=1)
    with Emulator({name: container / "emulation" / f"{name}.onnx"}, soc_model=69) as emulator:
        with pytest.raises(ToolFailed, match="no such graph"):
            emulator.run("other", {})
        with pytest.raises(ToolFailed, match="input_ids"):
            emulator.run(name, {})
        emulator._timeout = 0.3
        os.kill(emulator._process.pid, signal.SIGSTOP)  # type: ignore[union-attr]
        with pytest.raises(ToolFailed, match=r"killed after 0\.3 s"):
            emulator.run(name, {})
    with Emulator({name: container / "emulation" / f"{name}.onnx"}, soc_model=69) as emulator:
        emulator._process.kill()  # type: ignore[union-attr]
        with pytest.raises(ToolFailed, match="SIGKILL"):
            emulator.run(name, {})
        with pytest.raises(ToolFailed, match="closed"):
            emulator.run(name, {})


def test_float_graphs_are_computed_in_float16(tmp_path: Path) -> None:
    sources = []
    for ar, cl in SIZES:
        name = testing.graph_name(ar, cl, 1, splits=1)
        model = tmp_path / f"{name}.onnx"
        onnx.save(testing.float_model(ar, cl), model)
        result = dlc.convert(
            model, name, tmp_path / f"{name}.dlc", scratch=tmp_path / "s", float16=True
        )
        assert {t.dtype for t in result.listing.inputs} == {"int32", "float32"}
        sources.append(CompileSource(name, result.path))
    out = tmp_path / "emulation" / "part_1_of_1.bin"
    htp_compile.twin(sources, out, chip=SM8750, scratch=tmp_path / "s")
    emulation.describe(out.parent, {"default": testing.rope_table()})
    session = ort.InferenceSession(
        testing.float_model(*SIZES[0]).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    cos, sin = testing.rotary(np.arange(32))
    feeds = {
        "input_ids": IDS.astype(np.int32)[None],
        "position_ids_cos": cos,
        "position_ids_sin": sin,
        "attention_mask": testing.mask(32, 128, 0),
    }
    for value in session.get_inputs():
        feeds.setdefault(value.name, np.zeros(value.shape, np.float32))
    reference = session.run(["logits"], feeds)[0][0]
    executor = HtpSession(out.parent)
    try:
        logits = executor.prefill(IDS)
    finally:
        executor.close()
    assert 40 < _decibels(reference, logits) < 90, "float16: close, but not float32"


def test_the_pinned_layouts_hold(tmp_path: Path) -> None:
    htp_compile.self_test(tmp_path)


def test_another_wheel_is_refused(
    whole: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = qnn.Libraries(qnn.libraries().folder, "2.5.0", "2.49.40")
    monkeypatch.setattr(qnn, "libraries", lambda: other)
    with pytest.raises(ToolchainMismatch, match=r"2\.5\.0 is installed, needed is 2\.7\.0"):
        _binary(whole, tmp_path / "x.bin")
