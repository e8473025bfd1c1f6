"""Adapters on the core graph of many exports: found by name or place, equal to merged weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from adapter_files import Floats, write_peft
from onnx import numpy_helper
from safetensors.numpy import load_file

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import BadAdapter, DriftError
from genai_core.operations import IngestConfig, LoraImportConfig
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.fidelity.worn_source import Worn
from genai_stages.graph.core_graph import read_core
from genai_stages.lora import modules
from genai_stages.lora.modules import LinearPlace, parts_of, places_of
from genai_stages.operations import ingest, lora_import
from genai_stages.stage import Context

FIXTURES = Path(__file__).parents[1] / "fixtures" / "architectures"
Core = Callable[[str], Path]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    known: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in known:
            known[name] = tmp_path_factory.mktemp(name)
            context = Context(scratch=tmp_path_factory.mktemp("scratch"), threads=1)
            ingest.run({"source": FIXTURES / name}, IngestConfig(), known[name], context)
        return known[name]

    return made


def places(folder: Path) -> list[LinearPlace]:
    return places_of(*read_core(folder))


def found(folder: Path, module: str, size: tuple[int, int]) -> list[tuple[int | None, str]]:
    parts = parts_of(module, *size, places(folder))
    return [(part.place.layer, part.place.kind) for part in parts]


SEPARATE = {
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.o_proj": "out", "mlp.gate_proj": "gate", "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "dynamo-llama", "olmo2"])
def test_parts_of_finds_every_projection_whether_names_are_kept_or_not(
    core: Core, name: str
) -> None:
    every = places(core(name))
    for layer in (0, 1):
        for module, kind in SEPARATE.items():
            place = next(p for p in every if p.layer == layer and p.kind == kind)
            size = (place.site.outputs, place.site.inputs)
            whole = f"model.layers.{layer}.{module}"
            assert found(core(name), whole, size) == [(layer, kind)], whole


@pytest.mark.parametrize(
    ("name", "module", "kinds"),
    [
        ("phi3", "self_attn.qkv_proj", ["query", "key", "value"]),
        ("phi3", "mlp.gate_up_proj", ["gate", "up"]),
        ("gpt-neox", "attention.query_key_value", ["query", "key", "value"]),
        ("baichuan", "self_attn.W_pack", ["query", "key", "value"]),
    ],
)
def test_parts_of_cuts_a_fused_projection_as_the_core_graph_does(
    core: Core, name: str, module: str, kinds: list[str]
) -> None:
    every = places(core(name))
    chosen = [next(p for p in every if p.layer == 1 and p.kind == kind) for kind in kinds]
    size = (sum(p.site.outputs for p in chosen), chosen[0].site.inputs)
    parts = parts_of(f"model.layers.1.{module}", *size, every)
    assert sorted(p.place.kind for p in parts) == sorted(kinds)
    assert {p.place.layer for p in parts} == {1}
    taken = sorted(row for part in parts for row in part.rows or ())
    assert taken == list(range(size[0])), "each row of B goes to one linear"


@pytest.fixture(scope="module")
def nameless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt-neox as exporters write it that keep no names: rows of query, key and value by head."""
    folder, out = tmp_path_factory.mktemp("nameless"), tmp_path_factory.mktemp("core")
    shutil.copytree(FIXTURES / "gpt-neox", folder, dirs_exist_ok=True)
    (folder / "model.onnx").unlink()  # it may be a hard link
    proto = onnx.load(FIXTURES / "gpt-neox" / "model.onnx")  # noqa: TID251 - a few kB
    kept = {"", *(value.name for value in [*proto.graph.input, *proto.graph.output])}
    names = Numbered()
    for node in proto.graph.node:
        node.name = ""
        for held in (node.input, node.output):
            held[:] = [name if name in kept else names[name] for name in held]
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
    del proto.graph.value_info[:]
    onnx.save(proto, folder / "model.onnx")
    context = Context(scratch=tmp_path_factory.mktemp("scratch"), threads=1)
    ingest.run({"source": folder}, IngestConfig(), out, context)
    return out


class Numbered(dict[str, str]):
    """A new name for each."""

    def __missing__(self, name: str) -> str:
        self[name] = f"val_{len(self)}"
        return self[name]


def test_parts_of_keeps_the_sources_rows_when_place_alone_tells(core: Core, nameless: Path) -> None:
    module = "gpt_neox.layers.1.attention.query_key_value"
    rows = []
    for folder in (core("gpt-neox"), nameless):
        every = places(folder)
        head = next(p for p in every if p.layer == 1 and p.kind == "query")
        parts = parts_of(module, 3 * head.site.outputs, head.site.inputs, every)
        rows.append({part.place.kind: part.rows for part in parts})
    assert rows[1] == rows[0] != {}
    query = rows[1]["query"]
    assert query is not None
    assert query[16] == 48, "each head has its query, key and value together"


@pytest.mark.parametrize(("name", "told"), [("query_key_value", False), ("qkv_proj", True)])
def test_parts_of_guesses_no_order_of_rows_when_the_source_has_three_projections(
    core: Core, name: str, told: bool
) -> None:
    every = places(core("llama"))
    chosen = [next(p for p in every if p.layer == 1 and p.kind == k) for k in modules._KINDS[name]]
    size = (sum(p.site.outputs for p in chosen), chosen[0].site.inputs)
    parts = parts_of(f"model.layers.1.self_attn.{name}", *size, every)
    assert [p.place.kind for p in parts] == (["query", "key", "value"] if told else [])


def test_parts_of_is_empty_when_name_or_size_fits_nothing(core: Core) -> None:
    folder = core("llama")
    size = found(folder, "model.layers.0.self_attn.q_proj", (64, 64))
    assert size == [(0, "query")]
    assert found(folder, "model.layers.0.self_attn.q_proj", (65, 64)) == []
    assert found(folder, "model.layers.7.self_attn.q_proj", (64, 64)) == []
    assert found(folder, "model.layers.0.self_attn.x_proj", (64, 64)) == []


@pytest.mark.parametrize(
    "module",
    ["vision_tower.encoder.layers.0.self_attn.q_proj", "model.visual.blocks.0.attn.q_proj",
     "base.audio_tower.layers.0.self_attn.q_proj", "model.layers.0.cross_attn.q_proj"],
)  # fmt: skip
def test_parts_of_is_empty_when_a_module_is_an_encoders(core: Core, module: str) -> None:
    assert found(core("llama"), module, (64, 64)) == []


def test_parts_of_tells_projections_of_one_name_apart(core: Core, nameless: Path) -> None:
    for folder in (core("phi"), nameless):
        out, down = (
            next(p for p in places(folder) if p.layer == 1 and p.kind == k) for k in ("out", "down")
        )
        for module, place in (("attn.c_proj", out), ("mlp.c_proj", down)):
            size = (place.site.outputs, place.site.inputs)
            assert found(folder, f"transformer.h.1.{module}", size) == [(1, place.kind)]


MERGED = {
    "llama": (list(SEPARATE), 7),
    "phi3": (["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"], 7),
    "gpt-neox": (["attention.query_key_value", "attention.dense", "mlp.dense_4h_to_h"], 5),
}
"""Fixture -> modules of an adapter, linears of a layer that they are in the core graph."""
PREFIX = {"gpt-neox": "gpt_neox"}


def sizes(folder: Path, modules: list[str], prefix: str) -> dict[str, tuple[int, int]]:
    """Of the source's own weights, by the path of the node that reads each."""
    proto = onnx.load(folder / "model.onnx")  # noqa: TID251 - a few kB
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        path = node.name.strip("/").replace("/", ".")
        for layer in (0, 1):
            for module in modules:
                if node.op_type == "MatMul" and path == f"{prefix}.layers.{layer}.{module}.MatMul":
                    inputs, outputs = shapes[node.input[1]]
                    found[f"{prefix}.layers.{layer}.{module}"] = (outputs, inputs)
    return found


def merged(source: Path, out: Path, deltas: Mapping[str, Floats], prefix: str) -> Path:
    """The source with W + scale * B A in place of W: what PEFT's merge_and_unload computes."""
    proto = onnx.load(source / "model.onnx")  # noqa: TID251 - a few kB
    readers = {
        node.name.strip("/").replace("/", ".").removesuffix(".MatMul"): node.input[1]
        for node in proto.graph.node
        if node.op_type == "MatMul"
    }
    tensors = {t.name: t for t in proto.graph.initializer}
    for module, delta in deltas.items():
        tensor = tensors[readers[module]]
        array = numpy_helper.to_array(tensor) + delta.T
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(proto, out / "model.onnx")
    return out / "model.onnx"


def logits_of(path: Path, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name == "input_ids":
            feeds[value.name] = ids[None]
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, ids.size), np.int64)
        elif value.name == "position_ids":
            feeds[value.name] = np.arange(ids.size)[None]
        else:
            shape = [dim if isinstance(dim, int) else 0 for dim in value.shape]
            feeds[value.name] = np.zeros([1, shape[1], 0, shape[3]], np.float32)
    logits: np.ndarray = session.run(["logits"], feeds)[0][0]
    return logits


@pytest.mark.parametrize("name", list(MERGED))
def test_imported_adapter_computes_what_the_merged_source_does(
    core: Core, tmp_path: Path, name: str
) -> None:
    from models import compiled_float

    from genai_runtime.cpu import CpuSession
    from genai_runtime.cpu.adapter_files import read_adapter
    from genai_runtime.executor.rows import AdapterUse

    modules, linears = MERGED[name]
    prefix = PREFIX.get(name, "model")
    shapes = sizes(FIXTURES / name, modules, prefix)
    assert len(shapes) == 2 * len(modules)
    ranks = {module: 2 + number % 3 for number, module in enumerate(shapes)}
    written = write_peft(
        tmp_path / "adapter", shapes, rank=ranks, r=99, lora_alpha=6,
        rank_pattern=ranks,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    result = lora_import.run(
        {"adapter": tmp_path / "adapter", "core": core(name)},
        LoraImportConfig(), tmp_path / "out", Context(scratch=tmp_path),
    )  # fmt: skip
    assert result.facts["linears"] == 2 * linears
    deltas = {module: 6 / ranks[module] * (b @ a) for module, (a, b) in written.items()}
    (tmp_path / "merged").mkdir()
    expected = merged(FIXTURES / name, tmp_path / "merged", deltas, prefix)
    ids = np.random.default_rng(1).integers(0, 256, 12)
    session = CpuSession(
        compiled_float(tmp_path / "cpu", core(name), layers=2),
        context_length=32, threads=1,
        adapters={"one": read_adapter(tmp_path / "out" / ADAPTER_FILE)},
        worn=[AdapterUse("one")],
    )  # fmt: skip
    got = session.forward(ids)
    want = logits_of(expected, ids)
    plain = logits_of(FIXTURES / name / "model.onnx", ids)
    assert np.abs(got - want).max() < 1e-4 * max(1.0, np.abs(want).max())
    assert np.abs(plain - want).max() > 100 * np.abs(got - want).max(), "it must matter"
    branches = read_adapter(tmp_path / "out" / ADAPTER_FILE).branches
    reference = SourceReference(core(name), tmp_path / "scratch", adapters=[Worn(branches)])
    assert reference.lost == []
    [worn] = reference.logits([ids])
    assert np.abs(worn - want).max() < 1e-4 * max(1.0, np.abs(want).max()), "drift's yardstick"


def adapter_of(tmp_path: Path, modules: Mapping[str, tuple[int, int]]) -> Path:
    write_peft(tmp_path / "adapter", modules)
    return tmp_path / "adapter"


def run(core_folder: Path, adapter: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    lora_import.run(
        {"adapter": adapter, "core": core_folder}, LoraImportConfig(), out, Context(scratch=out)
    )


def test_import_says_how_many_modules_are_of_another_model(core: Core, tmp_path: Path) -> None:
    modules = {
        "model.layers.0.self_attn.q_proj": (64, 64),
        "model.layers.1.self_attn.q_proj": (96, 64),
        "model.layers.9.self_attn.q_proj": (64, 64),
    }
    with pytest.raises(BadAdapter, match="2 of its 3 modules") as raised:
        run(core("llama"), adapter_of(tmp_path, modules), tmp_path / "out")
    assert "model.layers.1.self_attn.q_proj" in str(raised.value)
    assert "96 x 64" in str(raised.value)
    assert "64 x 64" in str(raised.value), "the size of the linear that bears that name"
    assert not list((tmp_path / "out").iterdir()), "nothing half-written"


def test_import_refuses_two_modules_of_one_linear(core: Core, tmp_path: Path) -> None:
    modules = {
        "model.layers.0.self_attn.q_proj": (64, 64),
        "layers.0.self_attn.q_proj": (64, 64),
    }
    with pytest.raises(BadAdapter, match="both stand for the linear"):
        run(core("llama"), adapter_of(tmp_path, modules), tmp_path / "out")


def test_import_fails_when_what_it_wrote_departs(
    core: Core, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_stages.lora import attach

    made = attach._site_branch

    def wrong(*given: Any) -> object:
        branch = made(*given)
        branch.b[0] *= 1.001
        return branch

    monkeypatch.setattr(attach, "_site_branch", wrong)
    adapter = adapter_of(tmp_path, {"model.layers.0.self_attn.q_proj": (64, 64)})
    with pytest.raises(DriftError, match="departs"):
        run(core("llama"), adapter, tmp_path / "out")


def test_import_of_equal_adapters_is_an_equal_file(core: Core, tmp_path: Path) -> None:
    modules = {"model.layers.0.mlp.down_proj": (64, 96)}
    place = next(p for p in places(core("llama")) if p.layer == 0 and p.kind == "down")
    modules = {"model.layers.0.mlp.down_proj": (place.site.outputs, place.site.inputs)}
    files = []
    for number, base in enumerate(("somebody/base", "another/name")):
        folder = tmp_path / str(number)
        write_peft(folder, modules, base_model_name_or_path=base)
        run(core("llama"), folder, tmp_path / f"out{number}")
        files.append((tmp_path / f"out{number}" / ADAPTER_FILE).read_bytes())
    assert files[0] == files[1]
    tensors = load_file(tmp_path / "out0" / ADAPTER_FILE)
    assert sorted(t.shape for t in tensors.values()) == sorted(
        [(place.site.inputs, 4), (4, place.site.outputs)]
    )


@pytest.mark.parametrize(
    ("trained_on", "called", "other"),
    [
        ("somebody/base", "another/Model-8B", True),
        ("/srv/llama-3-8b/", "meta-llama/Llama-3-8B", False),
        ("somebody/base", "", False),
        ("somebody/base", "./", False),
        ("", "another/model", False),
        ("C:\\models\\Base", "somebody/base", False),
    ],
)
def test_import_warns_when_the_adapter_names_another_base(
    trained_on: str, called: str, other: bool, core: Core, tmp_path: Path
) -> None:
    write_peft(
        tmp_path / "a",
        {"model.layers.0.self_attn.q_proj": (64, 64)},
        base_model_name_or_path=trained_on,
    )
    (tmp_path / "assets" / "assets").mkdir(parents=True)
    (tmp_path / "assets" / "assets" / "config.json").write_text(
        json.dumps({"_name_or_path": called})
    )
    (tmp_path / "out").mkdir()
    inputs = {"adapter": tmp_path / "a", "core": core("llama")}
    context = Context(scratch=tmp_path)
    result = lora_import.run(
        {**inputs, "assets": tmp_path / "assets"}, LoraImportConfig(), tmp_path / "out", context
    )
    assert len(result.warnings) == other
    if other:
        assert repr(trained_on) in result.warnings[0]
        assert repr(called) in result.warnings[0]
    (tmp_path / "bare").mkdir()
    assert lora_import.run(inputs, LoraImportConfig(), tmp_path / "bare", context).warnings == ()


def test_linears_before_looks_at_each_tensor_once() -> None:
    """A stranger's graph of 60 doublings has 2 to the 60 ways back."""
    last = ir.Value(name="x")
    makers = {"x": ir.node("Linear", [], domain="genai", outputs=[last])}
    for number in range(60):
        value = ir.Value(name=f"v{number}")
        makers[f"v{number}"] = ir.node("Mul", [last, last], outputs=[value])
        last = value
    assert list(modules._linears_before(last, makers)) == ["x"]
    assert modules._is_gated(last, makers)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gpt-neox", "dynamo-llama"])
def test_places_of_a_container_never_lead_elsewhere_than_the_core_graphs(
    core: Core, tmp_path: Path, name: str
) -> None:
    from models import compiled_float

    from genai_stages.lora.container_places import places_of_container

    every = places(core(name))
    told = places_of_container(compiled_float(tmp_path / "model", core(name), layers=2))
    size_of = {place.site.output: (place.site.outputs, place.site.inputs) for place in every}
    assert {p.site.output: (p.site.outputs, p.site.inputs) for p in told} == size_of
    agreed = 0
    for place in every:
        for path in place.paths:
            size = (place.site.outputs, place.site.inputs)
            by_names = parts_of(path, *size, told)
            by_core = parts_of(path, *size, every)
            if by_names:
                agreed += 1
                assert [p.place.site.output for p in by_names] == [
                    p.place.site.output for p in by_core
                ]
    assert (agreed > 0) == (name != "dynamo-llama"), "torch.export keeps no names"
