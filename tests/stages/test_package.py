"""Fidelity and packaging of small models, from compile's output to a container that runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from genai_core.container.manifest import Manifest
from genai_core.errors import BadInput, BadModel, CorruptBlob, NotRunnableHere
from genai_core.names import Backend, Precision
from genai_core.operations import (
    ChipConfig,
    CompileCpuConfig,
    ConvertCpuConfig,
    FidelityConfig,
    PackageConfig,
    SplitConfig,
)
from genai_runtime.container import container, inspection
from genai_runtime.container.backend import open_session
from genai_runtime.evaluate import evaluate
from genai_runtime.golden import replay
from genai_runtime.htp.metadata import BinaryMetadata, GraphMetadata, TensorMetadata
from genai_runtime.sampling import Sampling, choose
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.fidelity.written_text import write_pieces
from genai_stages.graph.core_graph import read_core
from genai_stages.measured import note_measurements
from genai_stages.operations import compile_cpu, convert_cpu, fidelity, package
from genai_stages.quantize.segments import SegmentedModel
from genai_stages.stage import Context, StageResult
from genai_stages.testing import keep_expanded, random_core_model

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
CHIP = ChipConfig(soc_model=69, dsp_arch=79)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with tiny-llama's vocabulary, compiled in float."""
    root = tmp_path_factory.mktemp("built")
    random_core_model(root / "core", vocab=2048, hidden=32, layers=1, intermediate=48)
    keep_expanded(root / "core")
    for name in ("convert", "compile", "source"):
        (root / name).mkdir()
    convert_cpu.run(
        {"model": root / "core"},
        ConvertCpuConfig(precision=Precision.FLOAT, first=0, last=1, embedding=True, lm_head=True),
        root / "convert",
        Context(scratch=root / "s1"),
    )
    compiled = compile_cpu.run(
        {"model": root / "core", "weights": root / "convert"},
        CompileCpuConfig(precision=Precision.FLOAT),
        root / "compile",
        Context(scratch=root / "s2"),
    )
    # As the runner does it behind every operation.
    note_measurements("compile/cpu", {}, root / "compile", result=compiled, cost={"seconds": 1})
    for name in ("tokenizer.json", "config.json", "generation_config.json"):
        shutil.copy(EXAMPLE / name, root / "source" / name)
    return root


def packaged(
    built: Path, out: Path, *, source: bool = True, **changes: int | tuple[()]
) -> StageResult:
    out.mkdir(parents=True)
    config = PackageConfig(
        **{
            "target": "cpu",
            "backend": Backend.CPU,
            "context_length": 48,
            "golden_prompts": ("def f(x):", "import"),
            "golden_max_tokens": 5,
            **changes,
        }
    )
    inputs = {"model": built / "core", "compiled": built / "compile"}
    if source:
        inputs["source"] = built / "source"
    scratch = out.with_name(f"{out.name}-scratch")
    return package.run(inputs, config, out, Context(scratch=scratch, threads=1))


def test_a_long_context_takes_the_factors_made_for_it(built: Path, tmp_path: Path) -> None:
    """As the model would be, had its table the long factors from the start."""
    random = np.random.default_rng(0)
    long = random.uniform(1.0, 40.0, 8)
    source = shutil.copytree(built, tmp_path / "short")
    facts = json.loads((source / "core" / "facts.json").read_text())
    table = facts["rope"]["default"]
    table["scaling"] = {
        "type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": long.tolist(),
        "original_max_position_embeddings": 40,
    }
    (source / "core" / "facts.json").write_text(json.dumps(facts))
    other = shutil.copytree(source / "core", tmp_path / "long")
    table["inv_freq"] = (np.array(table["inv_freq"]) / long).astype(np.float32).tolist()
    (other / "facts.json").write_text(json.dumps(facts))
    tokens = random.integers(0, 2048, 36)
    for length, core in ((40, source / "core"), (41, other)):
        result = packaged(source, tmp_path / str(length), context_length=length, golden_prompts=())
        assert any("long factors" in one for one in result.warnings) == (length == 41)
        with closing(open_session(container.load(tmp_path / str(length)), threads=1)) as session:
            found = session.forward(tokens)
        (wanted,) = SegmentedModel(core, tmp_path / f"scratch{length}").logits([tokens])
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def tokens_input(tmp_path: Path, array: NDArray[np.integer]) -> Path:
    folder = tmp_path / "tokens"
    folder.mkdir()
    np.save(folder / "eval.npy", array)
    return folder


def score(built: Path, tmp_path: Path, **inputs: Path) -> StageResult:
    out = tmp_path / "fidelity"
    out.mkdir()
    result = fidelity.run(
        {"model": built / "core", "compiled": built / "compile", **inputs},
        FidelityConfig(backend=Backend.CPU, pieces=3, length=20),
        out,
        Context(scratch=tmp_path / "scratch", threads=1),
    )
    assert json.loads((out / "fidelity.json").read_text()) == result.facts
    return result


def test_a_float_model_loses_nothing_on_given_tokens(built: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 2048, (5, 30)).astype(np.uint16)
    facts = score(built, tmp_path, tokens=tokens_input(tmp_path, tokens)).facts
    assert facts["tokens"] == 3 * 19
    assert facts["within"] is True
    assert facts["natsPerToken"] == pytest.approx(facts["floatNats"], abs=2e-5)
    assert facts["baselineNats"] == facts["floatNats"]
    assert facts["text"] == "given"
    assert facts["yardstick"] == "the source itself"


def test_fidelity_names_its_yardstick_when_pieces_do_not_fit_the_source(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SourceReference, "fits", lambda _, pieces: False)
    tokens = np.random.default_rng(0).integers(0, 2048, (3, 20))
    (warning,) = score(built, tmp_path, tokens=tokens_input(tmp_path, tokens)).warnings
    assert "cannot take 19 tokens" in warning
    facts = json.loads((tmp_path / "fidelity" / "fidelity.json").read_text())
    assert facts["yardstick"] == "the core graph made from the source"


def test_without_tokens_the_float_model_writes_text_that_it_predicts_well(
    built: Path, tmp_path: Path
) -> None:
    facts = score(built, tmp_path).facts
    assert facts["text"] == "written by the float model"
    # Random tokens cost a random model about ln 2048 = 7.6 nats or more; its own samples less.
    assert facts["natsPerToken"] < 7.6


def test_written_text_is_the_same_again_and_drawn_from_the_model(
    built: Path, tmp_path: Path
) -> None:
    first = write_pieces(built / "core", tmp_path / "a", pieces=2, length=12)
    again = write_pieces(built / "core", tmp_path / "b", pieces=2, length=12)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert len(np.unique(first.tokens)) > 10


def test_pieces_written_side_by_side_are_those_that_the_reference_would_write(
    built: Path, tmp_path: Path
) -> None:
    text = write_pieces(built / "core", tmp_path / "a", pieces=3, length=12)
    written = text.tokens
    reference = SegmentedModel(built / "core", tmp_path / "b")
    logits = np.stack(list(reference.logits(list(written))))
    random = np.random.default_rng(0)
    expected = np.zeros_like(written)
    expected[:, 0] = random.integers(2048, size=3)
    for position in range(11):
        for piece in range(3):
            row = logits[piece, position]
            expected[piece, position + 1] = choose(row, Sampling(temperature=1.0), random)
    np.testing.assert_array_equal(written, expected)
    # Its loss, by the definition.
    rows = logits[:, :-1].astype(np.float64)
    chosen = np.take_along_axis(rows, written[:, 1:, None], axis=-1)[..., 0]
    nats = np.log(np.exp(rows).sum(axis=-1)) - chosen
    assert text.nats == pytest.approx(nats.mean(), abs=1e-5)


def test_a_model_that_lost_too_much_is_not_within(built: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(built / "compile", spoilt)
    values = np.fromfile(spoilt / "model.data", dtype=np.float32)
    values[: 2048 * 32] *= -1
    values.tofile(spoilt / "model.data")
    facts = score(built, tmp_path, compiled=spoilt).facts
    assert facts["within"] is False
    assert facts["natsPerToken"] > facts["baselineNats"] + 0.01


def test_tokens_beyond_the_vocabulary_are_refused(built: Path, tmp_path: Path) -> None:
    folder = tokens_input(tmp_path, np.full((2, 9), 2048))
    with pytest.raises(BadInput, match="below 2048"):
        score(built, tmp_path, tokens=folder)


def test_text_as_tokens_goes_through_the_model_s_tokenizer(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "text.txt").write_text("def double(value):\n    return 2 * value\n" * 40)
    facts = score(built, tmp_path, tokens=folder, source=built / "source").facts
    assert facts["text"] == "given"
    (folder / "text.txt").write_text("too short")
    shutil.rmtree(tmp_path / "fidelity")
    with pytest.raises(BadInput, match="less than a piece"):
        score(built, tmp_path, tokens=folder, source=built / "source")


def test_segments_equal_the_whole_model(built: Path, tmp_path: Path) -> None:
    model = SegmentedModel(built / "core", tmp_path / "segments")
    pieces = [np.array([1, 2, 3]), np.array([4, 5])]
    seen = []
    read = read_core(built / "core")[0].graph[-1].inputs[0]
    assert read is not None
    name = read.name
    assert name is not None
    logits = list(model.logits(pieces, observed=[name], observer=lambda n, v: seen.append((n, v))))
    assert [rows.shape for rows in logits] == [(3, 2048), (2, 2048)]
    assert [(n, v.shape) for n, v in seen] == [(name, (1, 3, 32)), (name, (1, 2, 32))]
    session = open_session(container.load(_simple(built, tmp_path)), threads=1)
    np.testing.assert_allclose(session.forward(pieces[0]), logits[0], atol=1e-4)


def _simple(built: Path, tmp_path: Path) -> Path:
    packaged(built, tmp_path / "container", golden_prompts=())
    return tmp_path / "container"


def test_a_container_runs_and_answers_its_golden_prompts_again(built: Path, tmp_path: Path) -> None:
    result = packaged(built, tmp_path / "container")
    opened = container.load(tmp_path / "container")
    opened.verify()
    assert result.facts["revision"] == opened.revision
    assert result.facts["verified"] == "Cpu"
    report = json.loads((tmp_path / "container" / "report.json").read_text())
    assert report["stages"]["compile/cpu"]["largestDifference"] < 1e-4
    assert report["linears"] == report["stages"]["compile/cpu"]["linears"]
    assert report["linears"].keys() == {"float"}
    assert report["stages"]["package"]["generationTokensPerSecond"] > 0
    assert opened.manifest.target.precision is Precision.FLOAT
    assert opened.stop_tokens() == {2, 6}
    golden = opened.golden()
    tokenizer = opened.tokenizer()
    assert golden is not None
    assert tokenizer is not None
    assert [entry.prompt for entry in golden.prompts] == ["def f(x):", "import"]
    assert golden.prompts[0].prompt_tokens == tokenizer.encode("def f(x):").tolist()
    session = open_session(opened, threads=1)
    assert session.context_length == 48
    assert replay(session, golden).passed
    assert evaluate(session, np.array([golden.prompts[0].prompt_tokens])).tokens > 3


def test_the_revision_follows_from_content_alone(built: Path, tmp_path: Path) -> None:
    first = packaged(built, tmp_path / "a" / "one")
    again = packaged(built, tmp_path / "b" / "two")
    assert first.facts["revision"] == again.facts["revision"]
    other = packaged(built, tmp_path / "c" / "three", context_length=47)
    assert other.facts["revision"] != first.facts["revision"]
    manifest = Manifest.model_validate_json((tmp_path / "a" / "one" / "manifest.json").read_bytes())
    present = {p.name for p in (tmp_path / "a" / "one").iterdir()}
    assert present - set(manifest.files) == {"manifest.json", "report.json", "golden.json"}


def test_golden_prompts_that_do_not_fit_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="do not fit into 8"):
        packaged(built, tmp_path / "container", context_length=8)


def test_without_a_tokenizer_golden_prompts_are_a_warning(built: Path, tmp_path: Path) -> None:
    result = packaged(built, tmp_path / "container", source=False)
    assert "tokenizer.json" in result.warnings[0]
    opened = container.load(tmp_path / "container")
    assert opened.tokenizer() is None
    assert opened.golden() is None


def test_packaging_the_core_graph_alone_is_refused(built: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(BadModel, match="compiled cpu model"):
        package.run(
            {"model": built / "core"},
            PackageConfig(target="cpu", backend=Backend.CPU, context_length=8),
            tmp_path / "out",
            Context(scratch=tmp_path / "scratch"),
        )


def test_damaged_containers_are_refused_by_file(built: Path, tmp_path: Path) -> None:
    folder = _simple(built, tmp_path)
    copy = tmp_path / "copy"

    def damaged(change: Callable[..., Any]) -> Path:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change()
        return copy

    with pytest.raises(BadInput, match=r"model\.data: is missing"):
        container.load(damaged((copy / "model.data").unlink))
    with pytest.raises(BadInput, match=r"model\.data: has 1 bytes"):
        container.load(damaged(lambda: (copy / "model.data").write_bytes(b"x")))
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        container.load(damaged((copy / "manifest.json").unlink))
    with pytest.raises(BadInput, match=r"manifest\.json"):
        container.load(damaged(lambda: (copy / "manifest.json").write_text("{}")))
    with pytest.raises(BadInput, match=r"metadata\.json: is missing"):
        container.load(damaged((copy / "metadata.json").unlink))

    def flip() -> None:
        data = bytearray((copy / "model.data").read_bytes())
        data[100] ^= 1
        (copy / "model.data").write_bytes(data)

    with pytest.raises(CorruptBlob, match=r"model\.data"):
        container.load(damaged(flip))


def test_a_longer_context_than_built_for_is_refused(built: Path, tmp_path: Path) -> None:
    opened = container.load(_simple(built, tmp_path))
    assert open_session(opened, context_length=10, threads=1).context_length == 10
    with pytest.raises(BadInput, match="built for 48"):
        open_session(opened, context_length=49)


def test_inspection_tells_what_a_container_takes_and_gives(built: Path, tmp_path: Path) -> None:
    packaged(built, tmp_path / "container")
    facts = inspection.describe(tmp_path / "container")
    json.dumps(facts)
    assert facts["kind"] == "container"
    assert facts["runsBy"] == "onnxruntime"
    assert facts["target"]["precision"] == "Float"
    model = facts["modelFiles"]["model.onnx"]["model"]
    assert model["inputs"]["input_ids"] == {"shape": [1, "T"], "dtype": "int64"}
    assert model["outputs"]["logits"] == {"shape": [1, "T", 2048], "dtype": "float32"}
    assert facts["golden"][1]["prompt"] == "import"
    alone = inspection.describe(tmp_path / "container" / "model.onnx")
    assert alone["inputs"] == model["inputs"]


def test_inspection_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "file.txt"):
        with pytest.raises(BadInput):
            inspection.describe(path)
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(BadModel, match=r"model\.onnx"):
        inspection.describe(tmp_path / "model.onnx")


def test_inspection_reads_a_cache_entry(built: Path, tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    shutil.copytree(built / "compile", entry)
    (entry / "builder_cache_info.json").write_text('{"operation": "compile"}')
    facts = inspection.describe(entry)
    assert facts["record"] == {"operation": "compile"}
    assert set(facts["files"]) == {"model.onnx", "model.data", "measured.json"}
    assert "logits" in facts["graphs"]["model.onnx"]["outputs"]


def part(folder: Path, index: int, count: int, *, soc_model: int = 69) -> Path:
    """A made-up binary with the description that compile leaves beside it."""
    folder.mkdir()
    logits = TensorMetadata(name="logits", shape=(1, 1, 2048), dtype="uint16", scale=0.5, offset=-3)
    graphs = tuple(
        GraphMetadata(name=f"{name}_{index}_of_{count}", inputs=(), outputs=(logits,))
        for name in ("prompt_ar32_cl64", "token_ar1_cl64")
    )
    described = BinaryMetadata(
        soc_model=soc_model,
        build_id="v2.50",
        core_api_version="2.36.0",
        backend_api_version="5.50.0",
        blob_version="3.3.6",
        size=3,
        graphs=graphs,
    )
    (folder / f"part_{index}_of_{count}.bin").write_bytes(b"bin")
    (folder / f"part_{index}_of_{count}.json").write_text(described.model_dump_json())
    return folder


def htp_config(count: int) -> PackageConfig:
    splits = tuple(
        SplitConfig(index=i, count=count, first=0, last=1, embedding=i == 1, lm_head=i == count)
        for i in range(1, count + 1)
    )
    return PackageConfig(
        target="sm8750", backend=Backend.HTP, chip=CHIP, splits=splits, context_length=64
    )


def test_an_htp_container_lists_its_graphs_and_configures_genie(
    built: Path, tmp_path: Path
) -> None:
    inputs = {
        "model": built / "core",
        "source": built / "source",
        "b": part(tmp_path / "b", 1, 2),
        "a": part(tmp_path / "a", 2, 2),
    }
    out = tmp_path / "container"
    out.mkdir()
    result = package.run(inputs, htp_config(2), out, Context(scratch=tmp_path / "scratch"))
    assert result.facts["verified"] == "Metadata"
    opened = container.load(out)
    assert [g.file for g in opened.manifest.graphs] == ["part_1_of_2.bin"] * 2 + [
        "part_2_of_2.bin"
    ] * 2
    assert opened.manifest.graphs[0].ar == 32
    assert opened.manifest.target.library["blob"] == "3.3.6"
    info = opened.metadata.model_files["part_2_of_2.bin"]["token_ar1_cl64_2_of_2"]
    assert info.outputs["logits"].scale == 0.5
    genie = json.loads((out / "genie_config.json").read_text())
    assert genie["dialog"]["context"]["eos-token"] == [2, 6]
    binary = genie["dialog"]["engine"]["model"]["binary"]
    assert binary["ctx-bins"] == ["part_1_of_2.bin", "part_2_of_2.bin"]
    assert not any(text.startswith("/") for text in binary["ctx-bins"])
    extensions = json.loads((out / "htp_backend_ext_config.json").read_text())
    assert extensions["devices"][0]["soc_model"] == 69
    with pytest.raises(NotRunnableHere, match="sm8750"):
        open_session(opened)
    assert inspection.describe(out)["runsBy"] == "device"


def test_a_missing_or_foreign_part_is_refused(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "container"
    out.mkdir()
    context = Context(scratch=tmp_path / "scratch")
    one = {"model": built / "core", "a": part(tmp_path / "a", 2, 2)}
    with pytest.raises(BadModel, match="not the whole model"):
        package.run(one, htp_config(2), out, context)
    other = {"model": built / "core", "a": part(tmp_path / "c", 1, 1, soc_model=57)}
    with pytest.raises(BadModel, match="SoC 57, not for 69"):
        package.run(other, htp_config(1), out, context)


def test_without_a_tokenizer_genie_gets_no_configuration_and_the_reason_is_told(
    built: Path, tmp_path: Path
) -> None:
    out = tmp_path / "container"
    out.mkdir()
    inputs = {"model": built / "core", "a": part(tmp_path / "a", 1, 1)}
    result = package.run(inputs, htp_config(1), out, Context(scratch=tmp_path / "scratch"))
    assert not (out / "genie_config.json").exists()
    assert any("tokenizer.json" in warning for warning in result.warnings)
