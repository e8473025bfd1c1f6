"""Models with LoRA inputs and adapters by their names: the base below, equal numbers, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from branched_model import (
    TARGETS,
    Floats,
    logits_of,
    names_of,
    random_weights,
    write_branched,
    write_roles,
)
from models import compiled_float

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import BadAdapter, BadModel, UnsupportedOperator
from genai_core.operations import IngestConfig, LoraImportConfig
from genai_runtime.cpu import CpuSession
from genai_runtime.cpu.adapter_files import read_adapter
from genai_runtime.executor.rows import AdapterUse
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.fidelity.worn_source import Worn
from genai_stages.graph.core_graph import read_facts
from genai_stages.lora.importing import read_widths
from genai_stages.operations import ingest, lora_import
from genai_stages.stage import Context, StageResult

PLAIN = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
RANK, SCALE = 4, 2.0
IDS = np.random.default_rng(1).integers(0, 256, 12)


@dataclass(frozen=True)
class Branched:
    """A model with branches, what ingest made of it, and the sizes of its linears."""

    source: Path
    core: Path
    sizes: dict[str, tuple[int, int]]


def ingested(source: Path, out: Path, *, branches: bool) -> Path:
    out.mkdir()
    ingest.run({"source": source}, IngestConfig(branches=branches), out, Context(out.parent, 1))
    return out


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    folder = tmp_path_factory.mktemp("branched")
    write_branched(PLAIN, folder / "model", rank=RANK, scale=SCALE)
    core = ingested(folder / "model", folder / "core", branches=True)
    sizes = {
        one.a.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): (
            one.inputs, one.outputs,
        )
        for one in read_facts(core).lora
    }  # fmt: skip
    return Branched(folder / "model", core, sizes)


def imported(branched: Branched, out: Path, weights: dict[str, Floats]) -> StageResult:
    out.mkdir(exist_ok=True)
    inputs = {"adapter": write_roles(out / "roles", weights), "core": branched.core}
    return lora_import.run(inputs, LoraImportConfig(), out, Context(out, 1))


def test_ingest_takes_branches_off_and_writes_the_base(branched: Branched, tmp_path: Path) -> None:
    facts = read_facts(branched.core)
    assert len(facts.lora) == 2 * len(TARGETS)
    assert {one.scale for one in facts.lora} == {SCALE}
    plain = ingested(PLAIN, tmp_path / "plain", branches=False)
    assert '"lora"' not in (plain / "facts.json").read_text()
    weights = sorted(path.name for path in (plain / "weights").iterdir())
    for name in weights:
        ours = (branched.core / "weights" / name).read_bytes()
        assert ours == (plain / "weights" / name).read_bytes()


def test_adapter_by_input_names_computes_what_the_source_does_with_it(
    branched: Branched, tmp_path: Path
) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=3)
    for half in names_of("layers.0.self_attn.v_proj"):
        weights[half] = np.zeros_like(weights[half])
    result = imported(branched, tmp_path / "import", weights)
    assert result.facts["rank"] == 3, "columns that are zero are left out"
    assert result.facts["linears"] == 2 * len(TARGETS) - 1, "and so are modules"
    model = compiled_float(tmp_path / "model", branched.core, layers=2)
    adapter = read_adapter(tmp_path / "import" / ADAPTER_FILE)
    for alpha, given in ((1.0, weights), (0.0, {})):
        session = CpuSession(
            model, context_length=16, threads=1, adapters={"one": adapter},
            worn=[AdapterUse("one", alpha)],
        )  # fmt: skip
        expected = logits_of(branched.source / "model.onnx", IDS, given)
        np.testing.assert_allclose(session.forward(IDS), expected, atol=1e-4)
        session.close()
    reference = SourceReference(
        branched.core, tmp_path / "scratch", adapters=[Worn(adapter.branches, 1.0)]
    )
    assert reference.lost == []
    [found] = reference.logits([IDS])
    expected = logits_of(branched.source / "model.onnx", IDS, weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    moved = logits_of(branched.source / "model.onnx", IDS, weights)
    assert np.abs(moved - logits_of(branched.source / "model.onnx", IDS, {})).max() > 0.1


def refused(branched: Branched, out: Path, weights: dict[str, Floats]) -> str:
    with pytest.raises(BadAdapter) as caught:
        imported(branched, out, weights)
    assert not (out / ADAPTER_FILE).exists()
    return str(caught.value)


def test_import_refuses_keys_that_match_in_part_with_their_number(
    branched: Branched, tmp_path: Path
) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=4)
    for number in (7, 8):
        for half in names_of(f"layers.{number}.mlp.up_proj"):
            weights[half] = np.ones((2, 2), np.float32)
    said = refused(branched, tmp_path / "part", weights)
    assert "4 of its 16 tensors are no LoRA tensors of the model" in said
    assert "base_model.model.layers.7.mlp.up_proj.lora_A.weight" in said
    foreign = {name.replace("layers", "blocks"): array for name, array in weights.items()}
    assert "16 of its 16 tensors" in refused(branched, tmp_path / "none", foreign)


def test_import_refuses_sizes_with_both_numbers(branched: Branched, tmp_path: Path) -> None:
    wide = random_weights(branched.sizes, rank=6, used=6)
    said = refused(branched, tmp_path / "rank", wide)
    assert "it is 64 x 6, the model's input takes 64 x 4" in said
    weights = random_weights(branched.sizes, rank=RANK, used=4)
    a, b = names_of("layers.1.self_attn.o_proj")
    weights[b] = weights[b][:, :-1].copy()
    assert "it is 4 x 63, the model's input takes 4 x 64" in refused(
        branched, tmp_path / "out", weights
    )
    del weights[b]
    said = refused(branched, tmp_path / "half", weights)
    assert f"it has {a} and not {b}" in said


def test_import_refuses_an_adapter_that_changes_nothing(branched: Branched, tmp_path: Path) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=0)
    assert "all of its branches are zero" in refused(branched, tmp_path / "zero", weights)


def entry(width: float) -> dict[str, object]:
    """As AIMET writes an activation's into an adapter's file."""
    scale = width / 32768
    return {"dtype": "INT", "bw": 16, "is_sym": True, "scale": [scale], "offset": [-32768.0],
            "enc_type": "PER_TENSOR"}  # fmt: skip


def as_0_6_1(width: float) -> list[dict[str, object]]:
    return [{"bitwidth": 16, "dtype": "int", "is_symmetric": "True", "scale": width / 32768,
             "offset": -32768, "min": -width, "max": width * 32767 / 32768}]  # fmt: skip


def as_2_0_0(width: float) -> dict[str, object]:
    return {"output_dtype": "int16", "y_scale": width / 32768}


@pytest.mark.parametrize("form", [entry, as_0_6_1, as_2_0_0])
def test_import_takes_the_ranges_of_branches_from_the_adapter_s_own_encodings(
    branched: Branched, tmp_path: Path, form: Callable[[float], object]
) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=4)
    roles = write_roles(tmp_path / "one" / "roles", weights)
    first, second, *_ = read_facts(branched.core).lora
    assert len(first.tensors) == 3, "x A, its product with B, and that times the factor"
    given = {first.tensors[0]: form(3.0), first.tensors[1]: form(50.0), first.tensors[2]: form(7.0)}
    given |= {second.tensors[0]: form(2.0)}  # what it adds is not said: measured
    (roles / "lora.encodings").write_text(json.dumps(given))
    imported(branched, tmp_path / "one", weights)
    found = read_widths(tmp_path / "one")
    assert list(found) == [f"{first.linear.removesuffix('.base')}.base"]
    assert found[first.linear] == pytest.approx((3.0, 7.0), rel=1e-4)
    plain = imported(branched, tmp_path / "two", weights)
    assert plain.facts["rank"] == RANK
    assert not read_widths(tmp_path / "two"), "PEFT's and others have none"


def test_import_refuses_encodings_that_cannot_be_read(branched: Branched, tmp_path: Path) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=4)
    roles = write_roles(tmp_path / "one" / "roles", weights)
    tensors = read_facts(branched.core).lora[0].tensors
    wrong = {**entry(1.0), "scale": [-1.0]}
    (roles / "lora.encodings").write_text(json.dumps({tensors[0]: entry(1.0), tensors[2]: wrong}))
    assert tensors[2] in refused(branched, tmp_path / "one", weights)


def test_import_refuses_encodings_of_another_export(branched: Branched, tmp_path: Path) -> None:
    weights = random_weights(branched.sizes, rank=RANK, used=4)
    roles = write_roles(tmp_path / "one" / "roles", weights)
    known: dict[str, dict[str, object]] = {name: {"bw": 16} for name in weights}
    known |= {name: entry(1.0) for one in read_facts(branched.core).lora for name in one.tensors}
    (roles / "lora.encodings").write_text(json.dumps(known))
    assert imported(branched, tmp_path / "one", weights).facts["rank"] == RANK
    (roles / "lora.encodings").write_text(json.dumps(known | {"x.lora_A.weight": {}}))
    (tmp_path / "one" / ADAPTER_FILE).unlink()
    said = refused(branched, tmp_path / "one", weights)
    assert f"1 of its {len(known) + 1} entries are no LoRA tensors" in said


def test_import_refuses_input_names_when_the_model_had_no_branches(tmp_path: Path) -> None:
    plain = ingested(PLAIN, tmp_path / "plain", branches=False)
    weights = random_weights({"layers.0.self_attn.q_proj": (64, 64)}, rank=RANK, used=4)
    said = refused(Branched(PLAIN, plain, {}), tmp_path / "out", weights)
    assert "the model's graph had none" in said


def test_ingest_refuses_branches_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="its graph has no LoRA branches"):
        ingested(PLAIN, tmp_path / "out", branches=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("Mul", "Relu makes"),
        ("Add", "which no linear makes of"),
    ],
)
def test_ingest_refuses_a_branch_of_another_form(
    branched: Branched, tmp_path: Path, change: str, words: str
) -> None:
    model = onnx.load(branched.source / "model.onnx")  # noqa: TID251 - a few kB
    node = next(n for n in model.graph.node if any(x.endswith(".scaled") for x in n.output))
    if change == "Mul":
        node.op_type = "Relu"
        del node.input[1:]
    else:
        add = next(n for n in model.graph.node if any(x.endswith(".added") for x in n.output))
        add.input[0] = next(n.output[0] for n in model.graph.node if n.op_type == "Sqrt")
    (tmp_path / "model").mkdir()
    onnx.save(model, tmp_path / "model" / "model.onnx")
    (tmp_path / "model" / "config.json").write_text((PLAIN / "config.json").read_text())
    with pytest.raises(UnsupportedOperator, match=words) as caught:
        ingested(tmp_path / "model", tmp_path / "out", branches=True)
    assert "lora_A.weight" in str(caught.value)
