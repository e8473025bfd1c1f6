"""The convert operation for htp: from a transformed part and encodings to QDQ ONNX and DLC."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from genai_core.errors import BadEncodings, BadInput, BadModel, DriftError
from genai_core.names import Gaps
from genai_core.operations import (
    ArclConfig,
    ConvertHtpConfig,
    GraphConfig,
    IngestConfig,
    SplitConfig,
    TransformConfig,
)
from genai_stages.backends.htp import dlc, drift
from genai_stages.operations import arcl, convert_htp, ingest, transform
from genai_stages.stage import Context, StageResult
from genai_stages.testing import assemble_step1, random_core_model

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures"
GRAPH = GraphConfig(ar=8, cl=32)


def split(index: int, first: int, last: int, *, count: int = 4) -> SplitConfig:
    return SplitConfig(index=index, count=count, first=first, last=last, embedding=index == 1,
                       lm_head=index == count)  # fmt: skip


FOUR = [split(1, 0, 0), split(2, 0, 3), split(3, 3, 6), split(4, 6, 6)]


class Parts:
    """Transformed parts of one model, each in the folder that convert reads."""

    def __init__(self, root: Path, core: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.core = root, core
        self.context = Context(scratch=root / "scratch")
        whole = root / "whole"
        shutil.copytree(core, whole)
        (whole / "model.onnx").unlink()
        arcl.run({"model": core}, ArclConfig(graph=GRAPH), whole, self.context)
        self.whole = whole

    def folder(self, part: SplitConfig) -> Path:
        folder = self.root / f"part_{part.index}_of_{part.count}"
        if not folder.is_dir():
            folder.mkdir()
            shutil.copytree(self.whole / "weights", folder / "weights")
            shutil.copy(self.whole / "facts.json", folder)
            config = TransformConfig(graph=GRAPH, split=part)
            transform.run({"model": self.whole}, config, folder, self.context)
        return folder


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("tiny-llama")
    (root / "core").mkdir()
    ingest.run({"source": EXAMPLE}, IngestConfig(), root / "core", Context(scratch=root / "s"))
    return Parts(root, root / "core")


def encodings(folder: Path, *, drop: tuple[str, ...] = (), file: Path | None = None) -> Path:
    """A folder with tiny-llama's encodings, some entries left out."""
    document = json.loads((file or EXAMPLE / "model.encodings").read_text())
    for section in ("activation_encodings", "param_encodings"):
        document[section] = [one for one in document[section] if one["name"] not in drop]
    folder.mkdir(parents=True)
    (folder / "model.encodings").write_text(json.dumps(document))
    return folder


def convert(
    tmp_path: Path, parts: Parts, part: SplitConfig, *, gaps: Gaps = Gaps.ERROR, **inputs: Path
) -> tuple[StageResult, Path]:
    out, scratch = tmp_path / f"out_{part.index}", tmp_path / f"scratch_{part.index}"
    out.mkdir(parents=True)
    scratch.mkdir()
    result = convert_htp.run(
        {"model": parts.folder(part), **inputs},
        ConvertHtpConfig(graph=GRAPH, split=part, gaps=gaps),
        out,
        Context(scratch=scratch),
    )
    return result, out


@pytest.fixture
def no_dlc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the vendor's half, which has its own tests."""

    def instead(model: Path, graph: str, out: Path, **_: Any) -> SimpleNamespace:
        out.write_bytes(b"")
        return SimpleNamespace(path=out, digest="0" * 64, seconds=0.0, peak_memory_bytes=0)

    monkeypatch.setattr(dlc, "convert", instead)


def grid_of(out: Path, tensor: str) -> tuple[str, float, int]:
    """dtype, scale and zero point of a graph's input or output."""
    (path,) = out.glob("*.onnx")
    graph = onnx.load(str(path), load_external_data=False).graph  # noqa: TID251 - structure only
    arrays = {
        one.name: onnx.numpy_helper.to_array(one)
        for one in graph.initializer
        if one.data_location != onnx.TensorProto.EXTERNAL
    }
    node = next(one for one in graph.node if one.op_type.endswith("Linear")
                and tensor in (one.input[0], one.output[0])
                and (one.op_type[0] == "D") == (tensor == one.input[0]))  # fmt: skip
    zero = arrays[node.input[2]]
    return str(zero.dtype), float(arrays[node.input[1]]), int(zero)


@pytest.mark.qnn
def test_a_part_becomes_qdq_and_a_dlc_that_says_the_same(tiny_llama: Parts, tmp_path: Path) -> None:
    given = encodings(tmp_path / "w4", file=FIXTURES / "encodings" / "w4a16.encodings")
    result, out = convert(tmp_path, tiny_llama, FOUR[1], encodings=given)
    name = "ar8_cl32_2_of_4"
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.data", f"{name}.dlc", f"{name}.onnx"
    ]  # fmt: skip
    # 3 layers of 7 projections, q, k and v in pieces of one head each: 6 + 2 + 2 + 4.
    assert result.facts == {"graph": name, "float": False, "weightBits": {"4": 42}}
    assert result.semantic == {f"{name}.dlc": dlc.semantic_digest(out / f"{name}.dlc")}
    listed = dlc.listing(out / f"{name}.dlc", scratch=tmp_path)
    assert listed.name == name
    dtypes = {one.name: one.dtype for one in [*listed.inputs, *listed.outputs]}
    assert dtypes["past_key_0_in"] == dtypes["past_key_0_out"] == "uint8"
    assert dtypes["hidden_states_0"] == dtypes["attention_mask"] == "uint16"
    for one in [*listed.inputs, *listed.outputs]:
        dtype, scale, zero = grid_of(out, one.name)
        assert one.dtype == dtype
        assert one.scale == pytest.approx(scale, rel=1e-6)
        assert one.offset == -zero
    assert all(ratio > 10 for ratio in result.notes["signalToNoiseDb"].values())


@pytest.mark.usefixtures("no_dlc")
def test_both_sides_of_a_cut_have_one_grid(tiny_llama: Parts, tmp_path: Path) -> None:
    """Also behind the embedding, whose output has no entry of its own in 1.0.0."""
    given = encodings(tmp_path / "w8")
    outs = [convert(tmp_path, tiny_llama, part, encodings=given)[1] for part in FOUR]
    for left, right, tensor in zip(
        outs, outs[1:], ["hidden_states_0", "hidden_states_3", "hidden_states_6"], strict=False
    ):
        assert grid_of(left, tensor) == grid_of(right, tensor), tensor
    table = next(
        one
        for one in json.loads((EXAMPLE / "model.encodings").read_text())["activation_encodings"]
        if one["name"] == "model.embed_tokens.weight"
    )
    kind, scale, zero = grid_of(outs[0], "hidden_states_0")
    assert (kind, zero) == ("uint16", -table["offset"][0])
    assert scale == pytest.approx(table["scale"][0])


@pytest.mark.usefixtures("no_dlc")
def test_every_version_of_one_simulation_gives_the_same_bytes(
    tiny_llama: Parts, tmp_path: Path
) -> None:
    folder = FIXTURES / "encodings"
    old = tmp_path / "0.6.1" / "model.encodings"
    old.parent.mkdir()
    old.write_bytes(gzip.decompress((folder / "w4a16-0.6.1.encodings.gz").read_bytes()))
    found = []
    for file in (old, folder / "w4a16.encodings", folder / "w4a16-2.0.0.encodings"):
        given = tmp_path / file.stem / "given"
        given.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, given / "model.encodings")
        _, out = convert(given.parent, tiny_llama, FOUR[1], encodings=given)
        found.append([(out / f"ar8_cl32_2_of_4.{end}").read_bytes() for end in ("onnx", "data")])
    assert found[0] == found[1] == found[2]


@pytest.mark.usefixtures("no_dlc")
def test_each_head_has_the_encoding_of_its_parent(tiny_llama: Parts, tmp_path: Path) -> None:
    given = encodings(tmp_path / "w8")
    _, out = convert(tmp_path, tiny_llama, FOUR[1], encodings=given)
    sources = json.loads((tiny_llama.folder(FOUR[1]) / "provenance.json").read_text())
    raw = json.loads((given / "model.encodings").read_text())
    entries = {one["name"]: one for one in raw["activation_encodings"]}
    weights = {one["name"]: one for one in raw["param_encodings"]}
    graph = onnx.load(str(out / "ar8_cl32_2_of_4.onnx")).graph  # noqa: TID251 - three layers
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    activations = channels = 0
    for node in graph.node:
        source = sources.get(node.output[0].removesuffix("_q").removesuffix("_dq"), {})
        if "head" not in source:
            continue
        if node.op_type == "QuantizeLinear" and source["source"] in entries:
            entry = entries[source["source"]]
            if arrays[node.input[2]].dtype == np.uint16:
                assert arrays[node.input[1]] == np.float32(entry["scale"][0]), node.name
                assert arrays[node.input[2]] == -entry["offset"][0], node.name
                activations += 1
        if node.op_type == "DequantizeLinear" and source["source"] in weights:
            start, stop = source["rows"]
            wanted = np.float32(weights[source["source"]]["scale"][start:stop])
            np.testing.assert_array_equal(arrays[node.input[1]], wanted)
            channels += stop - start
    assert activations > 3 * 6 * 5
    assert channels == 3 * (6 + 2 + 2) * 32


@pytest.mark.usefixtures("no_dlc")
def test_the_record_names_what_was_unused_and_what_was_derived(
    tiny_llama: Parts, tmp_path: Path
) -> None:
    given = encodings(tmp_path / "w8")
    whole = split(1, 0, 6, count=1)
    result, _ = convert(tmp_path, tiny_llama, whole, encodings=given)
    unused = result.notes["unusedEntries"]
    assert len(unused) == len(set(unused)) == 111
    assert "/model/rotary_emb/Cos_output_0" in unused
    assert "onnx::MatMul_2090" not in unused
    derived, ties = result.notes["derivedEncodings"], result.notes["ties"]
    assert "8 bits symmetric" in derived["past_key_values.0.key"]
    assert derived["attention_mask"] == "an additive mask, -100 .. 0"
    assert not [name for name in derived if "head_" in name]
    # A part lists no entries that are other parts': over all parts the same 111 remain.
    core = tmp_path / "core"
    core.mkdir()
    shutil.copy(tiny_llama.core / "model.onnx", core)
    for part in FOUR[2:]:
        result, _ = convert(tmp_path, tiny_llama, part, encodings=given, core=core)
        assert result.notes["unusedEntries"] == unused
    assert ties["present.0.key"] == "past_key_values.0.key"
    assert result.notes["calibrated"] == []


@pytest.mark.usefixtures("no_dlc")
@pytest.mark.parametrize(
    ("gone", "node"),
    [
        ("/model/layers.1/mlp/Mul_output_0", "Mul:/model/layers.1/mlp/Mul_output_0"),
        ("/model/layers.2/self_attn/Softmax_output_0", "Softmax:"),
        ("/model/layers.0/self_attn/q_proj/MatMul_output_0", "Gemm:"),
        ("onnx::MatMul_1912", "Gemm:/model/layers.0/mlp/gate_proj/MatMul_output_0"),
        ("model.layers.0.input_layernorm.weight", "RMSNormalization"),
    ],
)
def test_a_deleted_entry_ends_with_tensor_and_node(
    tiny_llama: Parts, tmp_path: Path, gone: str, node: str
) -> None:
    given = encodings(tmp_path / "gap", drop=(gone,))
    with pytest.raises(BadEncodings) as caught:
        convert(tmp_path, tiny_llama, FOUR[1], encodings=given)
    message = str(caught.value)
    assert message.startswith(f"model.encodings: {gone}, node {node}")
    assert caught.value.exit_code == 2
    assert "\n" not in message


@pytest.mark.qnn
def test_gaps_may_stay_float_alike_on_both_sides_of_a_cut(
    tiny_llama: Parts, tmp_path: Path
) -> None:
    """The vendor's library takes it: float16 between integers, and a float boundary."""
    gone = (
        "/model/layers.2/Add_1_output_0",
        "onnx::MatMul_1981",
        "/model/layers.3/mlp/Mul_output_0",
    )
    given = encodings(tmp_path / "gap", drop=gone)
    found = [convert(tmp_path, tiny_llama, part, gaps=Gaps.FLOAT, encodings=given)
             for part in FOUR[1:3]]  # fmt: skip
    for result, out in found:
        assert set(result.notes["floatTensors"]) <= set(gone)
        assert "no encoding for" in result.warnings[0]
        read = dlc.listing(next(out.glob("*.dlc")), scratch=tmp_path)
        (boundary,) = [t for t in (*read.inputs, *read.outputs) if t.name == "hidden_states_3"]
        assert (boundary.dtype, boundary.scale) == ("float32", None)
        ratios = result.notes["signalToNoiseDb"]
        assert min(ratios.values()) > 10, ratios


@pytest.mark.usefixtures("no_dlc")
def test_calibration_closes_a_gap_alike_on_both_sides_of_a_cut(
    tiny_llama: Parts, tmp_path: Path
) -> None:
    gone = ("/model/layers.2/Add_1_output_0", "/model/layers.2/mlp/Mul_output_0")
    inputs = {
        "encodings": encodings(tmp_path / "gap", drop=gone),
        "core": tmp_path / "core",
        "calibration": tmp_path / "calibration",
    }
    ignored = shutil.ignore_patterns("encodings", "assets")
    shutil.copytree(tiny_llama.core, inputs["core"], ignore=ignored)
    inputs["calibration"].mkdir()
    shutil.copy(FIXTURES / "tokens" / "calibration.npy", inputs["calibration"])
    found = [
        convert(tmp_path, tiny_llama, part, gaps=Gaps.CALIBRATE, **inputs) for part in FOUR[1:3]
    ]
    (before, left), (after, right) = found
    # Besides, tensors of our own making, for which the source has no name.
    calibrated = [
        {name for name in result.notes["calibrated"] if not name.startswith("layers.")}
        for result in (before, after)
    ]
    assert calibrated == [set(gone), {gone[0]}]
    assert grid_of(left, "hidden_states_3") == grid_of(right, "hidden_states_3")


@pytest.mark.usefixtures("no_dlc")
@pytest.mark.parametrize("form", ["left-pad", "right-pad"])
def test_the_vendors_own_export_keeps_its_cache_encodings(tmp_path: Path, form: str) -> None:
    """Their file has 8-bit caches already, tied from the projection to the output."""
    source = assemble_step1(FIXTURES / "step1" / form, EXAMPLE, tmp_path / "source",
                            encodings="w8a16")  # fmt: skip
    (tmp_path / "core").mkdir()
    ingest.run({"source": source}, IngestConfig(), tmp_path / "core", Context(scratch=tmp_path))
    parts = Parts(tmp_path / "parts", tmp_path / "core")
    given = tmp_path / "core" / "encodings"
    result, out = convert(tmp_path, parts, FOUR[2], encodings=given)
    entries = {
        one["name"]: one
        for one in json.loads((given / "model.encodings").read_text())["activation_encodings"]
    }
    for kind, layer in (("key", 3), ("value", 5)):
        wanted = entries[f"past_{kind}_{layer}_in"]["scale"][0]
        for end in ("in", "out"):
            dtype, scale, zero = grid_of(out, f"past_{kind}_{layer}_{end}")
            assert (dtype, zero) == ("uint8", 128)
            assert scale == pytest.approx(wanted, rel=1e-6)
    derived = result.notes["derivedEncodings"]
    assert not [name for name in derived if name.startswith("past_")]
    # A projection has 16 bits before it is narrowed, though the file ties it to the cache's 8.
    assert list(derived.values()).count("8 bits in the file, the same range at 16") >= 3


def test_without_encodings_the_policy_decides(tiny_llama: Parts, tmp_path: Path) -> None:
    with pytest.raises(BadEncodings, match="the model has no encodings; add AIMET's"):
        convert(tmp_path, tiny_llama, FOUR[0])
    config = ConvertHtpConfig(graph=GraphConfig(ar=4, cl=32), split=FOUR[0])
    with pytest.raises(BadModel, match="the part is missing"):
        convert_htp.run({"model": tiny_llama.folder(FOUR[0])}, config, tmp_path,
                        Context(scratch=tmp_path))  # fmt: skip


@pytest.mark.qnn
def test_a_model_without_encodings_stays_float_where_asked(
    tiny_llama: Parts, tmp_path: Path
) -> None:
    result, out = convert(tmp_path, tiny_llama, FOUR[3], gaps=Gaps.FLOAT)
    assert result.facts == {"graph": "ar8_cl32_4_of_4", "float": True}
    graph = onnx.load(str(next(out.glob("*.onnx")))).graph  # noqa: TID251 - one matrix
    assert {value.type.tensor_type.elem_type for value in graph.input} == {onnx.TensorProto.FLOAT}
    weight = next(one for one in graph.initializer if one.name == "onnx::MatMul_2090")
    # onnx.load takes no data files with several hard links, as a checkout's may be.
    copy = shutil.copytree(EXAMPLE, tmp_path / "source")
    source = onnx.load(str(copy / "model.onnx")).graph  # noqa: TID251 - the small example
    wanted = next(one for one in source.initializer if one.name == weight.name)
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(weight), onnx.numpy_helper.to_array(wanted).T
    )


@pytest.mark.usefixtures("no_dlc")
@pytest.mark.parametrize("gaps", [Gaps.ERROR, Gaps.FLOAT])
def test_the_emulator_s_check_can_draw_from_all_tokens(
    tiny_llama: Parts, tmp_path: Path, gaps: Gaps
) -> None:
    given = {} if gaps is Gaps.FLOAT else {"encodings": encodings(tmp_path / "given")}
    for part, rows in ((FOUR[0], 2048), (FOUR[1], 1)):
        _, out = convert(tmp_path, tiny_llama, part, gaps=gaps, **given)
        assert drift.vocabulary_of(next(out.glob("*.onnx"))) == rows


@pytest.mark.usefixtures("no_dlc")
def test_a_part_that_lost_its_signal_fails(tiny_llama: Parts, tmp_path: Path) -> None:
    """Scales a thousand times too wide: all weights round to 0."""
    given = encodings(tmp_path / "coarse")
    file = given / "model.encodings"
    document = json.loads(file.read_text())
    for one in document["param_encodings"]:
        if one["enc_type"] == "PER_CHANNEL":
            one["scale"] = [1000 * scale for scale in one["scale"]]
    file.write_text(json.dumps(document))
    with pytest.raises(DriftError, match=r"keeps .* dB of its signal"):
        convert(tmp_path, tiny_llama, FOUR[1], encodings=given)


def test_an_infinite_mask_is_refused_before_any_work(tiny_llama: Parts, tmp_path: Path) -> None:
    given = encodings(tmp_path / "inf", file=FIXTURES / "encodings" / "w8a16-inf-mask.encodings")
    with pytest.raises(BadEncodings, match="infinite attention mask"):
        convert(tmp_path, tiny_llama, FOUR[1], encodings=given)


FEATURES: dict[str, dict[str, Any]] = {
    "qwen and phi": {"qkv_bias": True, "qk_norm": True, "tied": True, "rotary_dim": 8},
    "gemma2": {"softcap": 50.0, "final_softcap": 30.0, "post_norms": True, "embedding_scale": True,
               "windows": (8, 0), "tied": True},
    "two tables": {"interleaved": True, "windows": (8, 0), "local_theta": 1e6, "kv_heads": 4},
}  # fmt: skip


@pytest.mark.qnn
@pytest.mark.parametrize("features", FEATURES)
def test_every_feature_of_an_architecture_reaches_the_device(tmp_path: Path, features: str) -> None:
    """Calibrated, and accepted by the vendor's library node by node."""
    random_core_model(tmp_path / "core", layers=2, vocab=256, **FEATURES[features])
    parts = Parts(tmp_path, tmp_path / "core")
    part = split(1, 0, 2, count=1)
    with pytest.raises(BadInput, match="no text to calibrate with"):
        convert(tmp_path / "none", parts, part, gaps=Gaps.CALIBRATE, core=parts.core)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    np.save(tokens / "calibration.npy", np.random.default_rng(0).integers(0, 256, (8, 24)))
    inputs = {"core": parts.core, "calibration": tokens}
    result, _ = convert(tmp_path, parts, part, gaps=Gaps.CALIBRATE, **inputs)
    assert all(ratio > 15 for ratio in result.notes["signalToNoiseDb"].values())
    assert result.notes["calibrated"]
