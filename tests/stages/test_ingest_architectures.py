"""Exports of many architectures become core graphs with the logits of their PyTorch models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_runtime.rope import for_context
from genai_stages.architectures.detect import detect
from genai_stages.architectures.rope import ropes_of
from genai_stages.graph.core_graph import FACTS_FILE, read_core, read_facts
from genai_stages.operations.ingest import run
from genai_stages.stage import Context, StageResult
from genai_stages.testing import core_logits

Ingested = Callable[[str], tuple[Path, StageResult, ModelFacts]]
FIXTURES = Path(__file__).parents[1] / "fixtures" / "architectures"

EXPECTED: dict[str, tuple[str, list[int], list[str]]] = {
    "baichuan": ("baichuan", [0, 0], ["default", "default"]),
    "cohere": ("generic", [0, 0], ["default", "default"]),
    "dynamo-gemma2": ("gemma2", [8, 0], ["default", "default"]),
    "dynamo-gemma3": ("gemma3", [8, 0], ["local", "default"]),
    "dynamo-llama": ("llama", [0, 0], ["default", "default"]),
    "dynamo-opset23": ("qwen3", [0, 0], ["default", "default"]),
    "gemma2": ("gemma2", [8, 0], ["default", "default"]),
    "gemma3": ("gemma3", [8, 0], ["local", "default"]),
    "glm": ("generic", [0, 0], ["default", "default"]),
    "gpt-neox": ("generic", [0, 0], ["default", "default"]),
    "granite": ("generic", [0, 0], ["default", "default"]),
    "llama": ("llama", [0, 0], ["default", "default"]),
    "llama3-rope": ("llama", [0, 0], ["default", "default"]),
    "mistral": ("mistral", [8, 8], ["default", "default"]),
    "olmo2": ("generic", [0, 0], ["default", "default"]),
    "phi": ("generic", [0, 0], ["default", "default"]),
    "phi3": ("phi3", [0, 0], ["default", "default"]),
    "phi3-longrope": ("phi3", [0, 0], ["default", "default"]),
    "phi4-mini": ("phi3", [0, 0], ["default", "default"]),
    "qwen2": ("qwen2", [0, 0], ["default", "default"]),
    "qwen2-yarn": ("qwen2", [0, 0], ["default", "default"]),
    "qwen3": ("qwen3", [0, 0], ["default", "default"]),
    "smollm3": ("generic", [0, 0], ["default", ""]),
    "stablelm": ("generic", [0, 0], ["default", "default"]),
}
"""Fixture -> architecture, window and rotary table of each layer."""

DROPPED_CAP = {"gemma2"}
"""Optimum's export of gemma2 computes without the soft cap, so it departs from PyTorch."""


def ingest(source: Path, out: Path, **config: str) -> tuple[StageResult, ModelFacts]:
    out.mkdir(exist_ok=True)
    context = Context(scratch=out.parent / "scratch")
    result = run({"source": source}, IngestConfig(**config), out, context)
    return result, read_facts(out)


@pytest.mark.parametrize("name", ["phi3-longrope", "phi4-mini"])
def test_long_texts_take_the_factors_made_for_them(
    ingested: Ingested, tmp_path: Path, name: str
) -> None:
    """Of 600 tokens, where the short factors are for 512: transformers' logits."""
    core, _, facts = ingested(name)
    (table,) = facts.rope.values()
    assert for_context(table, 512) is table
    with np.load(FIXTURES / name / "long.npz") as reference:
        tokens, logits = reference["tokens"], reference["logits"]
    long = shutil.copytree(core, tmp_path / "long")
    changed = facts.model_copy(update={"rope": {"default": for_context(table, 1024)}})
    (long / FACTS_FILE).write_text(changed.model_dump_json())
    found = core_logits(long, tokens)[-len(logits) :]
    np.testing.assert_allclose(found, logits, atol=1e-4)
    short = core_logits(core, tokens)[-len(logits) :]
    assert np.abs(short - logits).max() > 0.01


def test_every_fixture_is_expected() -> None:
    made = {folder.name for folder in FIXTURES.iterdir() if (folder / "model.onnx").exists()}
    assert made == set(EXPECTED)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    """Ingest each fixture once."""
    done: dict[str, tuple[Path, StageResult, ModelFacts]] = {}

    def one(name: str) -> tuple[Path, StageResult, ModelFacts]:
        if name not in done:
            out = tmp_path_factory.mktemp(name) / "out"
            done[name] = (out, *ingest(FIXTURES / name, out))
        return done[name]

    return one


@pytest.mark.parametrize("name", EXPECTED)
def test_core_graph_has_the_logits_of_the_pytorch_model(name: str, ingested: Ingested) -> None:
    out, result, facts = ingested(name)
    architecture, windows, ropes = EXPECTED[name]
    assert facts.architecture == architecture
    assert [one.window for one in facts.attention] == windows
    assert [one.rope for one in facts.attention] == ropes
    assert result.notes["drift"] < 2e-6
    assert "UnknownArchitecture" not in " ".join(result.warnings)

    reference = np.load(FIXTURES / name / "reference.npz")
    tokens, expected = reference["tokens"], reference["logits"]
    have = core_logits(out, tokens, chunks=(len(tokens) - 2, 1, 1))
    if name in DROPPED_CAP:
        assert 1e-5 < np.abs(have - expected).max() < 1e-3
        assert any("attn_logit_softcapping" in warning for warning in result.warnings)
    else:
        np.testing.assert_allclose(have, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rotary_tables_of_the_graph_are_those_of_config_json(name: str, ingested: Ingested) -> None:
    """The graph's constants and the published rules know nothing of each other."""
    _, _, facts = ingested(name)
    config = json.loads((FIXTURES / name / "config.json").read_text())
    configured = ropes_of(config, detect(config)[0])
    for key, table in facts.rope.items():
        np.testing.assert_allclose(table.inv_freq, configured[key].inv_freq, rtol=2e-6)
        assert table.attention_factor == pytest.approx(configured[key].attention_factor, rel=1e-5)
        assert table.theta == configured[key].theta


def test_core_graph_holds_only_declared_operators(ingested: Ingested) -> None:
    for name in ("phi3", "gemma3", "glm"):
        model, facts = read_core(ingested(name)[0])
        kinds = {(node.domain, node.op_type) for node in model.graph}
        assert kinds <= {
            ("", "Gather"), ("", "RMSNormalization"), ("", "Add"), ("", "Mul"), ("", "Sigmoid"),
            ("", "Gelu"), ("", "Tanh"), ("", "Pow"), ("genai", "Linear"), ("genai", "Attention"),
        }  # fmt: skip
        assert [value.name for value in model.graph.inputs] == ["input_ids"]
        assert [value.name for value in model.graph.outputs] == ["logits"]
        assert len(facts.boundaries) == facts.layers + 1


def test_fused_projections_are_cut_into_rows_with_provenance(ingested: Ingested) -> None:
    out, _, facts = ingested("phi3")
    model, _ = read_core(out)
    weights = [node.inputs[1] for node in model.graph if node.op_type == "Linear"]
    names = [weight.name for weight in weights if weight is not None]
    sources = [facts.provenance[name] for name in names if name in facts.provenance]
    rows = [source.rows for source in sources if source.rows is not None]
    qkv = [(0, 64), (64, 128), (128, 192)]
    assert len(rows) == len(sources)
    assert sorted(rows) == sorted([*qkv, (0, 96), (96, 192)] * 2)
    for role in ("query", "key", "value"):
        name = facts.attention[0].roles[role]
        assert facts.provenance[name].source == "/model/layers.0/self_attn/qkv_proj/MatMul_output_0"


def test_interleaved_fused_rows_are_listed_one_by_one(ingested: Ingested) -> None:
    """GPT-NeoX holds query, key and value of each head in turn."""
    _, _, facts = ingested("gpt-neox")
    index = facts.provenance[facts.attention[0].roles["key"]].index
    assert index == tuple(head * 48 + 16 + d for head in range(4) for d in range(16))


def test_tied_embedding_shares_its_bytes(ingested: Ingested) -> None:
    out, _, facts = ingested("qwen3")
    model, _ = read_core(out)
    assert facts.tied_embedding
    gather = next(node for node in model.graph if node.op_type == "Gather")
    head = [node for node in model.graph if node.op_type == "Linear"][-1]
    places = []
    for value in (gather.inputs[0], head.inputs[1]):
        assert value is not None
        assert isinstance(value.const_value, ir.ExternalTensor)
        places.append((value.const_value.location, value.const_value.offset))
    assert places[0] == places[1]


def test_unknown_architecture_goes_on_with_a_warning(tmp_path: Path) -> None:
    source = tmp_path / "foo"
    shutil.copytree(FIXTURES / "llama", source)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["FooForCausalLM"], "model_type": "foo"}
    (source / "config.json").write_text(json.dumps(config))
    result, facts = ingest(source, tmp_path / "out")
    assert facts.architecture == "generic"
    (warning,) = result.warnings
    assert warning.startswith("UnknownArchitecture")
    assert "FooForCausalLM" in warning
    other, named = ingest(source, tmp_path / "named", architecture="llama")
    assert named.architecture == "llama"
    assert other.warnings == ()


def test_output_bytes_do_not_depend_on_the_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ingest(FIXTURES / "phi3", tmp_path / name)
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_roles_name_tensors_of_the_source(ingested: Ingested) -> None:
    _, _, facts = ingested("qwen3")
    prefix = "/model/layers.1/self_attn"
    roles = dict(facts.attention[1].roles)
    assert roles == {
        "query": f"{prefix}/q_proj/MatMul_output_0",
        "key": f"{prefix}/k_proj/MatMul_output_0",
        "value": f"{prefix}/v_proj/MatMul_output_0",
        "query_normed": f"{prefix}/q_norm/Mul_1_output_0",
        "key_normed": f"{prefix}/k_norm/Mul_1_output_0",
        "query_rotated": f"{prefix}/Add_output_0",
        "key_rotated": f"{prefix}/Add_1_output_0",
        "past_key": "past_key_values.1.key",
        "past_value": "past_key_values.1.value",
        "key_all": "present.1.key",
        "value_all": "present.1.value",
        "key_new": "present.1.key",
        "value_new": "present.1.value",
        "scaled": f"{prefix}/MatMul_output_0",
        "masked": f"{prefix}/Add_2_output_0",
        "probs": f"{prefix}/Softmax_output_0",
        "context": f"{prefix}/MatMul_1_output_0",
        "context_flat": f"{prefix}/Reshape_7_output_0",
    }


def halved(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = np.clip(numpy_helper.to_array(tensor), -65504, 65504)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))


def test_float16_exports_are_read_as_exactly_as_float32_ones(tmp_path: Path) -> None:
    """The graph of llama with every float made 16 bits wide."""
    source = tmp_path / "half"
    shutil.copytree(FIXTURES / "llama", source)
    model = onnx.load(source / "model.onnx")  # noqa: TID251 - a tiny model, to change it
    for tensor in model.graph.initializer:
        halved(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                halved(attribute.t)
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del model.graph.value_info[:]
    onnx.save(model, source / "model.onnx")
    result, _ = ingest(source, tmp_path / "out")
    # Source and core are compared in float32, both from the 16 bit weights.
    assert result.notes["drift"] < 1e-5
    reference = np.load(source / "reference.npz")
    have = core_logits(tmp_path / "out", reference["tokens"])
    np.testing.assert_allclose(have, reference["logits"], atol=2e-2)
