"""The CPU model against the expansion of the same core graph, feature by feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from genai_core.errors import BadEncodings, BadInput, BadModel, DriftError
from genai_core.names import Gaps, Precision
from genai_core.operations import CompileCpuConfig, ConvertCpuConfig
from genai_runtime import processor
from genai_runtime.cpu import CpuSession, sessions
from genai_runtime.cpu.executor import CpuExecutor
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor
from genai_stages.backends.cpu import check
from genai_stages.backends.cpu.attention_nodes import rotates_inside
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.graph.linear_sites import linear_sites
from genai_stages.operations import compile_cpu, convert_cpu
from genai_stages.quantize.segments import SegmentedModel
from genai_stages.stage import Context, StageResult
from genai_stages.testing import random_core_model

IDS = np.random.default_rng(1).integers(0, 512, 33)
ALL = {"first": 0, "last": 2, "embedding": True, "lm_head": True}


def converted(
    core: Path,
    out: Path,
    precision: Precision,
    *,
    gaps: Gaps = Gaps.CALIBRATE,
    extra: dict[str, Path] | None = None,
    **part: Any,
) -> Path:
    out.mkdir(parents=True)
    config = ConvertCpuConfig(precision=precision, gaps=gaps, **(part or ALL))
    convert_cpu.run({"model": core, **(extra or {})}, config, out, Context(scratch=out))
    return out


def compiled(
    core: Path,
    tmp_path: Path,
    precision: Precision,
    *,
    gaps: Gaps = Gaps.CALIBRATE,
    extra: dict[str, Path] | None = None,
    parts: list[dict[str, Any]] | None = None,
) -> tuple[Path, StageResult]:
    extra = dict(extra or {})
    for index, part in enumerate(parts or [ALL]):
        extra[f"part{index}"] = converted(
            core,
            tmp_path / f"part{index}",
            precision,
            gaps=gaps,
            extra={k: v for k, v in extra.items() if not k.startswith("part")},
            **part,
        )
    out = tmp_path / "compiled"
    out.mkdir()
    result = compile_cpu.run(
        {"model": core, **extra},
        CompileCpuConfig(precision=precision, gaps=gaps),
        out,
        Context(scratch=tmp_path / "scratch"),
    )
    return out / "model.onnx", result


def calibration(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "calibration"
    folder.mkdir()
    np.save(folder / "tokens.npy", np.random.default_rng(2).integers(0, 512, (4, 40)))
    return {"calibration": folder}


def reference(core: Path, tmp_path: Path, ids: NDArray[np.int64] = IDS) -> NDArray[np.float32]:
    (logits,) = SegmentedModel(core, tmp_path / "reference").logits([ids])
    return logits


def sqnr(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(expected).mean() / np.square(expected - got).mean()))


FEATURES = {
    "llama": {},
    "multi-head": {"kv_heads": 4},
    "window": {"windows": (0, 5)},
    "softcap": {"softcap": 3.0, "final_softcap": 5.0},
    "qk-norm": {"qk_norm": True},
    "partial rotary inside": {"head_dim": 32, "rotary_dim": 16},
    "partial rotary outside": {"rotary_dim": 8},
    "interleaved": {"interleaved": True},
    "interleaved outside": {"rotary_dim": 12, "interleaved": True},
    "two tables": {"windows": (4, 0), "local_theta": 500.0},
    "heads of 12": {"head_dim": 12},
    "heads of 20, partial": {"head_dim": 20, "rotary_dim": 8, "interleaved": True, "qk_norm": True},
    "heads of 24": {"head_dim": 24, "windows": (3,)},
    "no rotary": {"rotary_dim": 0},
    "gemma-like": {"qkv_bias": True, "tied": True, "post_norms": True, "embedding_scale": True},
}


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_float_model_equals_the_core_graph_in_one_pass_and_token_by_token(
    features: dict[str, Any], tmp_path: Path
) -> None:
    core = tmp_path / "core"
    random_core_model(core, **features)
    model, result = compiled(core, tmp_path, Precision.FLOAT)
    assert result.notes["largestDifference"] < 1e-4
    expected = reference(core, tmp_path)
    session = CpuSession(model, context_length=40, threads=1)
    np.testing.assert_allclose(session.forward(IDS), expected, atol=1e-4)
    session.reset()
    chunks = [IDS[:10], IDS[10:23], *(IDS[i : i + 1] for i in range(23, 33))]
    np.testing.assert_allclose(
        np.concatenate([session.forward(chunk) for chunk in chunks]), expected, atol=1e-4
    )


def test_the_fallbacks_are_really_needed_and_really_taken(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, object], bool]] = [
        ({}, True),
        ({"rotary_dim": 8}, False),
        ({"head_dim": 24}, False),
    ]
    for features, inside in cases:
        folder = tmp_path / str(features)
        random_core_model(folder, **features)
        model, _ = read_core(folder)
        specs = [AttentionSpec.of(n) for n in model.graph if n.op_type == "Attention"]
        assert [rotates_inside(spec) for spec in specs] == [inside, inside]


def test_a_cache_full_of_nan_is_never_read(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core, windows=(0, 4))
    model, _ = compiled(core, tmp_path, Precision.FLOAT)
    session = CpuSession(model, context_length=40, threads=1)
    executor = session._executor
    assert isinstance(executor, CpuExecutor)
    executor.grow(session._slot, 40)
    for buffer in executor._slots[session._slot].buffers.values():
        buffer[:] = np.nan
    session.forward(IDS[:5])
    assert np.isfinite(session.forward(IDS[5:9])).all()


def test_truncated_and_reset_sessions_forget(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    model, _ = compiled(core, tmp_path, Precision.FLOAT)
    session = CpuSession(model, context_length=33, threads=1)
    whole = session.forward(IDS)
    assert session.length == session.context_length == 33
    session.truncate(20)
    np.testing.assert_allclose(session.forward(IDS[20:]), whole[20:], atol=1e-5)
    with pytest.raises(BadInput, match="context length of 33"):
        session.forward(IDS[:1])
    session.reset()
    first = session.forward(IDS[:4])
    session.forward(IDS[4:8])
    np.testing.assert_allclose(first, whole[:4], atol=1e-5)
    session.close()


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(BadModel, match=r"model\.onnx"):
        CpuSession(path, context_length=4)
    add = onnx.helper.make_node("Identity", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(n, 1, [1]) for n in "xy")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([add], "g", [x], [y])), str(path))
    with pytest.raises(BadModel):
        CpuSession(path, context_length=4)


def test_calibrated_int8_stays_close_and_decodes_as_it_reads(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core, qkv_bias=True)
    model, result = compiled(core, tmp_path, Precision.INT8, extra=calibration(tmp_path))
    assert result.notes["calibratedActivations"] == 9
    expected = reference(core, tmp_path)
    session = CpuSession(model, context_length=40, threads=1)
    got = session.forward(IDS)
    assert 25 < sqnr(expected, got) < 60
    session.reset()
    steps = np.concatenate([session.forward(IDS[i : i + 1]) for i in range(33)])
    # Integer sums do not depend on their order; a last bit of the float attention may.
    assert np.array_equal(got, steps) or sqnr(got, steps) > 40


def test_calibrated_int4_is_coarser_than_int8(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    model, result = compiled(core, tmp_path, Precision.INT4, extra=calibration(tmp_path))
    assert (
        10 < sqnr(reference(core, tmp_path), CpuSession(model, context_length=33).forward(IDS)) < 30
    )
    assert result.notes["calibratedActivations"] == 0


@pytest.mark.parametrize("precision", list(Precision))
def test_grouping_of_layers_leaves_no_trace(precision: Precision, tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core, tied=True)
    extra = calibration(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, _ = compiled(core, tmp_path / "a", precision, extra=extra)
    parts = [
        {"first": 1, "last": 2, "embedding": False, "lm_head": True},
        {"first": 0, "last": 0, "embedding": True, "lm_head": False},
        {"first": 0, "last": 1, "embedding": False, "lm_head": False},
    ]
    many, _ = compiled(core, tmp_path / "b", precision, extra=extra, parts=parts)
    assert one.read_bytes() == many.read_bytes()
    assert (one.parent / "model.data").read_bytes() == (many.parent / "model.data").read_bytes()


def test_a_group_needs_only_its_own_weights_files(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    for name in ("embed", "layer_000", "head"):
        (core / "weights" / f"{name}.data").unlink()
    part: dict[str, Any] = {"first": 1, "last": 2, "embedding": False, "lm_head": False}
    out = converted(core, tmp_path / "part", Precision.INT8, **part)
    fragment = json.loads((out / "fragment.json").read_text())
    assert len(fragment["linears"]) == 7
    assert all("layers.1" in name for name in fragment["linears"])


def test_without_encodings_gaps_decide(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    with pytest.raises(BadEncodings, match=r"q_proj\.weight: has no encoding"):
        compiled(core, tmp_path / "error", Precision.INT8, gaps=Gaps.ERROR)
    model, _ = compiled(core, tmp_path / "float", Precision.INT8, gaps=Gaps.FLOAT)
    got = CpuSession(model, context_length=33, threads=1).forward(IDS)
    # Only the embedding, kept as float16, departs.
    assert sqnr(reference(core, tmp_path), got) > 60
    with pytest.raises(BadEncodings, match="no calibration text"):
        compiled(core, tmp_path / "calibrate", Precision.INT8, gaps=Gaps.CALIBRATE)


@pytest.mark.parametrize(
    ("precision", "covered", "forms", "said"),
    [
        (
            Precision.INT8,
            "weights",
            {"float": 15},
            "9 tensors, so 15 of 15 linears stay in float32",
        ),
        (Precision.INT8, "one weight too few", {"float": 15}, "10 tensors, so 15 of 15 linears"),
        (Precision.INT4, "weights", {"int4": 15}, ""),
        (Precision.INT4, "one weight too few", {"float": 1, "int4": 14}, "1 tensor, so 1 of 15"),
        (Precision.INT8, "inputs too", {"int8": 15}, ""),
        (Precision.FLOAT, "weights", {"float": 15}, ""),
    ],
)
def test_convert_cpu_names_what_stays_float_when_encodings_have_gaps(
    tmp_path: Path, precision: Precision, covered: str, forms: dict[str, int], said: str
) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    sites = linear_sites(read_core(core)[0])
    names = [site.weight for site in sites]
    names = names[1:] if covered == "one weight too few" else names
    if covered == "inputs too":
        names += dict.fromkeys(site.source for site in sites)
    entry = {"output_dtype": "int8", "y_scale": 0.01}
    content = {"version": "2.0.0", "encodings": [{"name": name, **entry} for name in names]}
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "model.encodings").write_text(json.dumps(content))
    extra = {"encodings": tmp_path / "given"}
    config = ConvertCpuConfig(precision=precision, gaps=Gaps.FLOAT, **ALL)
    out = tmp_path / "part"
    out.mkdir()
    result = convert_cpu.run({"model": core, **extra}, config, out, Context(scratch=out))
    counted = {form: count for form, count in result.notes["linears"].items() if form in forms}
    assert counted == forms
    assert len(result.warnings) == bool(said)
    for warning in result.warnings:
        assert said in warning
        assert result.notes["floatTensors"][0] in warning
        assert len(warning) < 300
    _, made = compiled(
        core, tmp_path / "whole", precision, gaps=Gaps.FLOAT, extra=extra, parts=[ALL]
    )
    assert made.notes["linears"] == forms


def test_fragments_of_another_precision_are_refused(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    part = converted(core, tmp_path / "part", Precision.FLOAT)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="converted for Float in a Int4 model"):
        compile_cpu.run(
            {"model": core, "part": part},
            CompileCpuConfig(precision=Precision.INT4),
            tmp_path / "out",
            Context(scratch=tmp_path / "scratch"),
        )


def test_a_weight_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    with (core / "weights" / "layer_001.data").open("r+b") as file:
        file.seek(4096)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(BadModel, match="NaN"):
        converted(core, tmp_path / "part", Precision.INT8)


def test_a_float_model_that_drifts_fails(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    model, _ = compiled(core, tmp_path, Precision.FLOAT)
    data = model.parent / "model.data"
    values = np.fromfile(data, dtype=np.float32)
    values[::50] += 0.05
    values.tofile(data)
    with pytest.raises(DriftError, match="differ by"):
        check.verify(
            core, model, tmp_path / "again", precision=Precision.FLOAT, vocab=512, threads=1
        )


def encode_everything(core: Path, *, weight_bits: int) -> EncodingSet:
    """Encodings of every weight, and of every linear's input on a wide 16-bit grid."""
    model, _ = read_core(core)
    entries: dict[str, Encoding] = {}
    for node in model.graph:
        if node.op_type != "Linear":
            continue
        weight, read = node.inputs[1], node.inputs[0]
        assert weight is not None
        assert weight.const_value is not None
        assert read is not None
        values = np.abs(weight.const_value.numpy()).max(axis=1).astype(np.float64)
        scale = values / (2 ** (weight_bits - 1) - 1)
        offset = np.full(scale.shape, -(2.0 ** (weight_bits - 1)))
        name, source = weight.name or "", read.name or ""
        entries[name] = Encoding(name, weight_bits, True, scale, offset)
        entries[source] = per_tensor(source, -5, 5, bits=16, symmetric=False)
    return EncodingSet("1.0.0", "test.encodings", entries)


def proto_of(path: Path) -> onnx.ModelProto:
    return onnx.load(str(path), load_external_data=False)  # noqa: TID251 - weights stay outside


def stored_integers(out: Path, weight: str) -> NDArray[np.int8]:
    model = proto_of(out)
    tensor = next(i for i in model.graph.initializer if i.name == f"{weight}.int8")
    place = {entry.key: entry.value for entry in tensor.external_data}
    return np.fromfile(
        out.parent / "model.data",
        dtype=np.int8,
        count=int(place["length"]),
        offset=int(place["offset"]),
    ).reshape(tensor.dims)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_of_the_encodings_are_kept(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    encodings = encode_everything(core, weight_bits=bits)
    for module in (convert_cpu, compile_cpu):
        monkeypatch.setattr(module, "encodings_of", lambda _, **__: encodings)
    model, _ = compiled(core, tmp_path, Precision.INT8, gaps=Gaps.ERROR)
    name = "model.layers.0.mlp.up_proj.weight"
    source, _ = read_core(core)
    constant = source.graph.initializers[name].const_value
    assert constant is not None
    weight = constant.numpy()
    expected = np.rint(weight / encodings[name].scale[:, None].astype(np.float32))
    np.testing.assert_array_equal(stored_integers(model, name), expected.T.astype(np.int8))
    flags = {p.key: p.value for p in proto_of(model).metadata_props}
    assert flags["genai.exact_int8"] == ("1" if bits == 8 else "0")


@pytest.mark.parametrize(
    ("bits", "features", "exact"),
    [
        (8, {"avx2"}, True),
        (8, {"avx2", "avx512_vnni"}, False),
        (8, set(), True),
        (4, {"avx2"}, False),
    ],
)
def test_cpu_session_takes_exact_kernels_when_wide_weights_meet_a_processor_that_saturates(
    bits: int, features: set[str], exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = tmp_path / "core"
    random_core_model(core)
    encodings = encode_everything(core, weight_bits=bits)
    for module in (convert_cpu, compile_cpu):
        monkeypatch.setattr(module, "encodings_of", lambda _, **__: encodings)
    model, _ = compiled(core, tmp_path, Precision.INT8, gaps=Gaps.ERROR)
    asked: list[bool] = []
    options = sessions.session_options

    def session_options(threads: int, *, exact: bool) -> ort.SessionOptions:
        asked.append(exact)
        return options(threads, exact=exact)

    monkeypatch.setattr(sessions, "session_options", session_options)
    session = CpuSession(model, context_length=33, threads=1, features=frozenset(features))
    assert asked == [exact]
    plain = CpuSession(model, context_length=33, threads=1)
    if not processor.saturates(processor.features()):
        np.testing.assert_array_equal(session.forward(IDS), plain.forward(IDS))
