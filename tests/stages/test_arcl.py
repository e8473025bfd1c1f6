"""Static graphs of several ARs and CLs compute what the source computes, and are truly static."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import DriftError, InvalidSpec
from genai_core.facts import TensorSource
from genai_core.operations import ArclConfig, GraphConfig, IngestConfig
from genai_stages.graph.core_graph import read_core, read_facts, write_proto
from genai_stages.graph.provenance import read_provenance
from genai_stages.operations import arcl, ingest
from genai_stages.stage import Context
from genai_stages.static.compare_static import FEW_PASSES, TOKENS, compare_static, schedule
from genai_stages.static.static_graph import emit_static
from genai_stages.testing import assemble_step1, random_core_model

REPOSITORY = Path(__file__).parents[2]
TINY_LLAMA = REPOSITORY / "examples/tiny-llama/model"
STEP1 = REPOSITORY / "tests/fixtures/step1"
ARCHITECTURES = REPOSITORY / "tests/fixtures/architectures"

GEMMA = {
    "qk_norm": True,
    "post_norms": True,
    "embedding_scale": True,
    "tied": True,
    "softcap": 5.0,
    "final_softcap": 3.0,
    "windows": (4, 0),
    "local_theta": 100.0,
}


def static(core: Path, out: Path, *, ar: int, cl: int) -> Path:
    """Run the operation; the graph, with its weights put beside it."""
    out.mkdir(exist_ok=True)
    config = ArclConfig(graph=GraphConfig(ar=ar, cl=cl))
    if cl > 2 * ar:
        arcl.run({"model": core}, config, out, Context(scratch=out))
    else:
        write_proto(emit_static(*read_core(core), ar=ar, cl=cl).model, out / f"ar{ar}_cl{cl}.onnx")
    shutil.copytree(core / "weights", out / "weights")
    return out / f"ar{ar}_cl{cl}.onnx"


def session(path: Path, weights: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights)
    )
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def drive(path: Path, core: Path, tokens: np.ndarray) -> np.ndarray:
    """Logits of a text, pass by pass; the driver that a device would have, written anew here."""
    facts = read_facts(core)
    sess = session(path, core)
    shapes = {i.name: tuple(i.shape) for i in sess.get_inputs()}
    ar = shapes["input_ids"][1]
    cl = next(s for n, s in shapes.items() if n.startswith("attention_mask"))[3]
    caches = {n: np.full(s, 7.0, np.float32) for n, s in shapes.items() if n.startswith("past_")}
    rows = []
    for start in range(0, len(tokens), ar):
        chunk = tokens[start : start + ar]
        feeds = dict(caches)
        feeds["input_ids"] = np.zeros((1, ar), np.int32)
        feeds["input_ids"][0, : len(chunk)] = chunk
        position = np.arange(start, start + ar)
        slots = np.concatenate([np.arange(cl - ar), position])
        filled = np.concatenate([np.arange(cl - ar) < start, np.ones(ar, bool)])
        for name in shapes:
            if name.startswith("attention_mask"):
                window = int(name.rpartition("_w")[2]) if "_w" in name else 10**9
                age = position[:, None] - slots[None]
                visible = filled[None] & (age >= 0) & (age < window)
                feeds[name] = np.where(visible, 0, -100).astype(np.float32)[None, None]
            elif name.startswith("position_ids_"):
                kind, _, table = name.removeprefix("position_ids_").partition("_")
                rope = facts.rope[table or "default"]
                angle = np.outer(position, rope.inv_freq)
                values = getattr(np, kind)(angle) * rope.attention_factor
                feeds[name] = values.astype(np.float32)[None, None]
        found = dict(zip([o.name for o in sess.get_outputs()], sess.run(None, feeds), strict=True))
        rows.append(found["logits"][0, : len(chunk)])
        for name, cache in caches.items():
            new = found[name.replace("_in", "_out")]
            count = min(len(chunk), max(0, cl - ar - start))
            if name.startswith("past_key"):
                cache[..., start : start + count] = new[..., :count]
            else:
                cache[:, :, start : start + count] = new[:, :, :count]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    ingest.run({"source": TINY_LLAMA}, IngestConfig(), folder, Context(scratch=folder))
    return folder


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """96 tokens, and the logits of tiny-llama as it was exported."""
    tokens = np.random.default_rng(0).integers(7, 2048, 96)
    source = ort.InferenceSession(TINY_LLAMA / "model.onnx", providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, 96), np.int64),
        "position_ids": np.arange(96)[None],
    }
    for value in source.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return tokens, source.run(["logits"], feeds)[0][0]


def test_four_graphs_of_tiny_llama_prefill_96_tokens_like_the_source(
    tiny_llama: Path, tmp_path: Path, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    tokens, logits = expected
    for ar in (32, 1):
        for cl in (128, 256):
            path = static(tiny_llama, tmp_path / f"{ar}_{cl}", ar=ar, cl=cl)
            np.testing.assert_allclose(drive(path, tiny_llama, tokens), logits, atol=1e-4)


@pytest.mark.parametrize("variant", ["left-pad", "right-pad"])
def test_vendors_static_form_gives_the_same_graphs_as_the_dynamic_one(
    tmp_path: Path, expected: tuple[np.ndarray, np.ndarray], variant: str
) -> None:
    assemble_step1(STEP1 / variant, TINY_LLAMA, tmp_path / "source")
    core = tmp_path / "core"
    core.mkdir()
    ingest.run({"source": tmp_path / "source"}, IngestConfig(), core, Context(scratch=tmp_path))
    tokens, logits = expected
    for ar in (32, 1):
        path = static(core, tmp_path / f"out_{ar}", ar=ar, cl=128)
        np.testing.assert_allclose(drive(path, core, tokens), logits, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "glm", "phi4-mini"])
def test_static_graphs_yield_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    folder = ARCHITECTURES / name
    core = tmp_path / "core"
    core.mkdir()
    ingest.run({"source": folder}, IngestConfig(), core, Context(scratch=tmp_path))
    reference = np.load(folder / "reference.npz")
    path = static(core, tmp_path / "out", ar=16, cl=64)
    logits = drive(path, core, reference["tokens"])
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


@pytest.mark.parametrize(("ar", "cl"), [(1, 64), (8, 64), (8, 130), (16, 16)])
def test_interface_is_static_and_as_promised(tmp_path: Path, ar: int, cl: int) -> None:
    core = tmp_path / "core"
    random_core_model(core, **GEMMA)
    path = static(core, tmp_path / "out", ar=ar, cl=cl)
    model = onnx.load(path, load_external_data=False)  # noqa: TID251 - weights stay outside
    assert model.graph.name == f"ar{ar}_cl{cl}"
    onnx.checker.check_model(str(path), full_check=True)

    def described(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, tuple[int, ...]]]:
        return {
            v.name: (
                v.type.tensor_type.elem_type,
                tuple(d.dim_value for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        }

    past = cl - ar
    inputs = {
        "input_ids": (6, (1, ar)),
        "attention_mask": (1, (1, 1, ar, cl)),
        "attention_mask_w4": (1, (1, 1, ar, cl)),
        "position_ids_cos": (1, (1, 1, ar, 8)),
        "position_ids_cos_local": (1, (1, 1, ar, 8)),
        "position_ids_sin": (1, (1, 1, ar, 8)),
        "position_ids_sin_local": (1, (1, 1, ar, 8)),
    }
    if past:
        for layer in range(2):
            inputs[f"past_key_{layer}_in"] = (1, (2, 1, 16, past))
            inputs[f"past_value_{layer}_in"] = (1, (2, 1, past, 16))
    outputs: dict[str, tuple[int, tuple[int, ...]]] = {"logits": (1, (1, ar, 512))}
    for layer in range(2):
        outputs[f"past_key_{layer}_out"] = (1, (2, 1, 16, ar))
        outputs[f"past_value_{layer}_out"] = (1, (2, 1, ar, 16))
    assert described(model.graph.input) == inputs
    assert described(model.graph.output) == outputs
    named = described(model.graph.value_info) | described(model.graph.output)
    for node in model.graph.node:
        assert node.domain == ""
        for output in node.output:
            assert all(dim > 0 for dim in named[output][1]), output


def test_tensors_have_the_same_names_in_every_graph(tmp_path: Path) -> None:
    random_core_model(tmp_path, **GEMMA)
    core, facts = read_core(tmp_path)
    names = []
    for ar, cl in ((1, 64), (32, 64), (32, 200)):
        model = emit_static(core, facts, ar=ar, cl=cl).model
        names.append([value.name for node in model.graph for value in node.outputs])
    assert names[0] == names[1] == names[2]


def test_artifact_has_no_weights_and_the_same_bytes_twice(tmp_path: Path) -> None:
    core = tmp_path / "core"
    random_core_model(core, hidden=256, intermediate=1024)
    content = []
    for name in ("a", "b"):
        static(core, tmp_path / name, ar=8, cl=64)
        files = sorted(path for path in (tmp_path / name).iterdir() if path.is_file())
        assert [path.name for path in files] == ["ar8_cl64.onnx", "provenance.json"]
        content.append([path.read_bytes() for path in files])
    assert content[0] == content[1]
    assert len(content[0][0]) < 100_000
    model = ir.load(core / "model.onnx")
    made = ir.load(tmp_path / "a" / "ar8_cl64.onnx")
    for name, value in made.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            source = model.graph.initializers[name].const_value
            assert isinstance(source, ir.ExternalTensor)
            assert (tensor.location, tensor.offset) == (source.location, source.offset)


def test_provenance_leads_inputs_and_outputs_to_the_sources_cache(tmp_path: Path) -> None:
    core = tmp_path / "core"
    facts = random_core_model(core)
    static(core, tmp_path / "out", ar=8, cl=64)
    provenance = read_provenance(tmp_path / "out")
    roles = facts.attention[1].roles
    assert provenance["past_key_1_in"] == TensorSource(source=roles["past_key"])
    assert provenance["past_value_1_out"] == TensorSource(source=roles["value_new"])
    model = ir.load(tmp_path / "out/ar8_cl64.onnx")
    names = {value.name for node in model.graph for value in node.outputs}
    assert {roles["query_rotated"], roles["scores"], roles["probs"], roles["key_all"]} <= names
    assert provenance["layers.1.attention.query_heads"].source == roles["query"]


def test_provenance_of_a_fused_projection_is_kept(tmp_path: Path) -> None:
    facts = random_core_model(tmp_path)
    core, _ = read_core(tmp_path)
    weight = "model.layers.0.self_attn.q_proj.weight"
    fused = TensorSource(source="qkv.weight", rows=(0, 64))
    facts = facts.model_copy(update={"provenance": {weight: fused}})
    assert emit_static(core, facts, ar=8, cl=64).provenance[weight] == fused


def test_tensor_called_like_an_input_makes_room_for_it(tmp_path: Path) -> None:
    facts = random_core_model(tmp_path)
    core, _ = read_core(tmp_path)
    name = facts.boundaries[1]
    for node in core.graph:
        for value in node.outputs:
            if value.name == name:
                value.name = "hidden_states_1"
    boundaries = [*facts.boundaries[:1], "hidden_states_1", *facts.boundaries[2:]]
    facts = facts.model_copy(update={"boundaries": boundaries})
    made = emit_static(core, facts, ar=8, cl=64)
    assert made.provenance["hidden_states_1.source"] == TensorSource(source="hidden_states_1")
    compare_static(core, facts, made, weights=tmp_path, ar=8, cl=64)


@pytest.mark.parametrize(
    ("ar", "cl", "message"),
    [(65, 64, "AR 65 is larger than CL 64"), (32, 64, "CL 64 is at most twice the largest AR 32")],
)
def test_context_that_is_too_short_is_refused(
    tmp_path: Path, ar: int, cl: int, message: str
) -> None:
    random_core_model(tmp_path)
    config = ArclConfig(graph=GraphConfig(ar=ar, cl=cl))
    with pytest.raises(InvalidSpec, match=message):
        arcl.run({"model": tmp_path}, config, tmp_path, Context(scratch=tmp_path))


def test_context_below_four_times_the_pass_gets_a_warning(tmp_path: Path) -> None:
    random_core_model(tmp_path)
    config = ArclConfig(graph=GraphConfig(ar=32, cl=100))
    result = arcl.run({"model": tmp_path}, config, tmp_path, Context(scratch=tmp_path))
    assert len(result.warnings) == 1
    assert "CL 100 is less than four times" in result.warnings[0]


def test_drift_is_found_and_its_layer_named(tmp_path: Path) -> None:
    facts = random_core_model(tmp_path, layers=3)
    core, _ = read_core(tmp_path)
    made = emit_static(core, facts, ar=8, cl=64)
    cos, sin = (v for v in made.model.graph.inputs if (v.name or "").startswith("position_ids_"))
    for node in made.model.graph:
        if node.metadata_props["genai.group"] == "layer_001" and node.op_type == "Mul":
            for index, value in enumerate(node.inputs):
                if value in (cos, sin):
                    node.replace_input_with(index, sin if value is cos else cos)
    with pytest.raises(DriftError, match="ar8_cl64, from layer 1 on"):
        compare_static(core, facts, made, weights=tmp_path, ar=8, cl=64)


def test_drift_check_of_a_large_model_begins_behind_the_core_graphs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_stages.static.compare_static.LARGE", 1)
    facts = random_core_model(tmp_path, **GEMMA)
    core, _ = read_core(tmp_path)
    made = emit_static(core, facts, ar=1, cl=128)
    compared = compare_static(core, facts, made, weights=tmp_path, ar=1, cl=128)
    assert (compared.tokens, compared.passes) == (96, FEW_PASSES)
    assert compared.drift < 1e-4
    broken = dataclasses.replace(made, model=emit_static(core, facts, ar=1, cl=128).model)
    concat = next(node for node in broken.model.graph if (node.name or "").startswith("Concat:")
                  and node.metadata_props["genai.role"] == "cache")  # fmt: skip
    past, new = concat.inputs
    concat.replace_input_with(0, new)
    concat.replace_input_with(1, past)
    with pytest.raises(DriftError):
        compare_static(core, facts, broken, weights=tmp_path, ar=1, cl=128)


@given(ar=st.integers(1, 300), more=st.integers(0, 600), large=st.booleans())
def test_schedule_covers_its_tokens_in_passes_that_fit(ar: int, more: int, large: bool) -> None:
    cl = ar + more
    plan = schedule(ar, cl, large=large)
    assert plan.passes[0][0] == plan.given
    assert plan.tokens <= cl
    for (start, stop), following in zip(plan.passes, [*plan.passes[1:], None], strict=True):
        assert 0 < stop - start <= ar
        assert start <= cl - ar
        assert following is None or following[0] == stop
    assert plan.passes[-1][0] > 0 or more == 0
    if large:
        assert len(plan.passes) <= FEW_PASSES
        assert ar <= TOKENS or len(plan.passes) == 1
