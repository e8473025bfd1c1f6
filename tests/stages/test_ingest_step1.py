"""The vendor's static form and an ordinary export of one model become the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.architectures.detect import detect
from genai_stages.graph.core_graph import read_core, read_facts
from genai_stages.ingest.folding.resize_static import resize, resized_sizes
from genai_stages.ingest.output.compare_source import compare_source
from genai_stages.ingest.source.source_model import read_config, read_source
from genai_stages.ingest.source_to_core import source_to_core
from genai_stages.operations.ingest import run
from genai_stages.stage import Context, StageResult
from genai_stages.testing import assemble_step1, core_logits

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
STEP1 = ROOT / "tests" / "fixtures" / "step1"
FORMS = ("example", "left-pad", "right-pad")
Folders = dict[str, tuple[Path, StageResult, ModelFacts]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made: Folders = {}
    for form in FORMS:
        base = tmp_path_factory.mktemp(form)
        source = EXAMPLE
        if form != "example":
            source = assemble_step1(STEP1 / form, EXAMPLE, base / "source", encodings="w8a16")
        out = base / "out"
        out.mkdir()
        result = run({"source": source}, IngestConfig(), out, Context(scratch=base / "scratch"))
        made[form] = (out, result, read_facts(out))
    return made


def test_all_forms_have_the_same_logits(folders: Folders) -> None:
    tokens = np.load(ROOT / "tests" / "fixtures" / "tokens" / "eval.npy")[3, :150]
    expected = core_logits(folders["example"][0], tokens, chunks=(96, 1, 32))
    for form in ("left-pad", "right-pad"):
        have = core_logits(folders[form][0], tokens)
        np.testing.assert_allclose(have, expected, atol=1e-4)
        assert folders[form][1].notes["drift"] < 2e-6


def test_facts_tell_the_form_apart(folders: Folders) -> None:
    shape = {
        form: (facts.source_form, facts.native_ar, facts.native_cl)
        for form, (_, _, facts) in folders.items()
    }
    assert shape == {
        "example": ("dynamic", None, None),
        "left-pad": ("static", 73, 173),
        "right-pad": ("static", 73, 173),
    }
    for _, _, facts in folders.values():
        assert (facts.layers, facts.hidden_size, facts.vocab_size) == (6, 192, 2048)
        one = facts.attention[5]
        assert (one.num_heads, one.kv_heads, one.head_dim, one.window) == (6, 2, 32, 0)
        assert facts.rope["default"].theta == 10000.0


def test_weights_are_equal_whatever_the_source_calls_them(folders: Folders) -> None:
    files = sorted(p.name for p in (folders["example"][0] / "weights").iterdir())
    assert files == ["embed.data", "head.data", *(f"layer_{i:03d}.data" for i in range(6))]
    for name in files:
        contents = {(folder / "weights" / name).read_bytes() for folder, _, _ in folders.values()}
        assert len(contents) == 1


def test_every_projection_and_norm_keeps_a_name_with_an_encoding(folders: Folders) -> None:
    """What carries quantization: each weight and each of these outputs is named in the file."""
    from genai_stages.aimet.read import read_encodings

    for folder, _, facts in folders.values():
        encodings = read_encodings(folder / "encodings" / "model.encodings")
        model, _ = read_core(folder)
        for node in model.graph:
            if node.op_type not in ("Linear", "RMSNormalization", "Add", "Mul", "Sigmoid"):
                continue
            for value in [*node.inputs[1:2], *node.outputs]:
                assert value is not None
                assert value.name is not None
                source = facts.provenance.get(value.name)
                assert (value.name if source is None else source.source) in encodings
        assert {"past_key", "past_value", "key_all", "value_all", "probs", "masked"} <= {
            role for role, name in facts.attention[3].roles.items() if name in encodings
        }


def test_assets_go_along(folders: Folders) -> None:
    out, result, _ = folders["example"]
    assert (out / "assets" / "tokenizer.json").read_bytes() == (
        EXAMPLE / "tokenizer.json"
    ).read_bytes()
    assert result.notes["encodings"] == 314


@pytest.mark.parametrize("form", ["left-pad", "right-pad"])
def test_large_static_sources_are_read_at_smaller_sizes(
    form: str, folders: Folders, tmp_path: Path
) -> None:
    """AR 211 and CL 463 written into the fixture's graph, as the vendor's script would."""
    source = assemble_step1(STEP1 / form, EXAMPLE, tmp_path / "source")
    path = source / "model.onnx"
    model = onnx.load(path, load_external_data=False)  # noqa: TID251 - the graph alone
    for tensor in [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute)]:
        if list(tensor.dims) == [73] and not tensor.external_data:
            tensor.CopyFrom(numpy_helper.from_array(np.arange(211), tensor.name))
    resize(model, {73: 211, 173: 463, 100: 252})
    path.write_bytes(model.SerializeToString())
    ort.InferenceSession(str(path))  # it is a model still
    read = read_source(path, read_config(source))
    for large, tokens in ((1 << 30, 211), (10_000, 31)):
        out = tmp_path / str(tokens)
        out.mkdir()
        found = source_to_core(read, detect(read.config)[0], out, large=large)
        compared = compare_source(found.source, found.inputs, found.ropes, out)
        assert compared.passes[0][0] == tokens
        assert compared.drift < 2e-6
        assert (found.facts.native_ar, found.facts.native_cl) == (211, 463)
        for name in ("embed", "layer_003", "head"):
            assert (out / f"weights/{name}.data").read_bytes() == (
                folders["example"][0] / f"weights/{name}.data"
            ).read_bytes()


@pytest.mark.parametrize("form", ["left-pad", "right-pad"])
def test_a_past_as_long_as_a_head_is_wide_is_read(form: str, tmp_path: Path) -> None:
    """Then the shape of the cache does not tell whether its keys are turned."""
    source = assemble_step1(STEP1 / form, EXAMPLE, tmp_path / "source")
    path = source / "model.onnx"
    model = onnx.load(path, load_external_data=False)  # noqa: TID251 - the graph alone
    resize(model, {173: 105, 100: 32})
    path.write_bytes(model.SerializeToString())
    out = tmp_path / "out"
    out.mkdir()
    result = run({"source": source}, IngestConfig(), out, Context(tmp_path / "scratch"))
    assert result.notes["drift"] < 2e-6


def test_sizes_that_are_widths_too_are_left_alone(tmp_path: Path) -> None:
    model = onnx.load(STEP1 / "left-pad" / "model.onnx", load_external_data=False)  # noqa: TID251
    assert resized_sizes(model, (211, 463), large=100) == {211: 31, 463: 83, 252: 52}
    assert resized_sizes(model, (211, 463)) is None
    assert resized_sizes(model, (192, 463), large=100) is None
    assert resized_sizes(model, (211, 422), large=100) is None


@pytest.mark.parametrize(
    ("architecture", "windows", "warned"),
    [("MistralForCausalLM", [50] * 6, False), ("Gemma2ForCausalLM", [0] * 6, True)],
)
def test_windows_of_a_mask_that_is_an_input(
    architecture: str, windows: list[int], warned: bool, tmp_path: Path
) -> None:
    """One mask for all layers can stand for one window, and not for two."""
    source = assemble_step1(STEP1 / "left-pad", EXAMPLE, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": [architecture], "sliding_window": 50}
    (source / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    result = run({"source": source}, IngestConfig(), out, Context(tmp_path / "scratch"))
    assert [one.window for one in read_facts(out).attention] == windows
    assert any("one mask" in warning for warning in result.warnings) == warned
    assert result.notes["drift"] < 2e-6
