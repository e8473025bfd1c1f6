"""Packed rows on the CPU: bit for bit what each row yields alone, by plain ONNX Runtime too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import random_model, tiny_llama
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import CpuSession, open_executor
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.layout import RowPart, lay_out
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.prepared import PreparedSessions, prepare
from genai_runtime.cpu.sessions import PlainSessions, session_options
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Row, Tokens, Want
from genai_runtime.rope import cos_sin
from genai_runtime.steadiness import try_out, try_out_prompts

FEATURES = processor.features()
EXACT = processor.saturates(FEATURES)


@pytest.fixture(scope="module", params=list(Precision), ids=lambda p: p.value)
def precision(request: pytest.FixtureRequest) -> Precision:
    param: Precision = request.param
    return param


@pytest.fixture(scope="module")
def llama(precision: Precision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp(f"llama-{precision.value}"), precision)


@pytest.fixture(scope="module")
def prepared(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(read_model(llama), cache, identity=str(llama), features=FEATURES, exact=EXACT)


def executor_of(
    path: Path,
    folder: Path | None = None,
    *,
    threads: int = 1,
    sizes: tuple[int, ...] = (1, 2, 4),
    context_length: int = 200,
) -> CpuExecutor:
    model = read_model(path)
    sessions = (
        PlainSessions(model, threads=threads, exact=EXACT, sizes=sizes)
        if folder is None
        else PreparedSessions(folder, threads=threads, exact=EXACT)
    )
    return CpuExecutor(model, sessions, context_length=context_length)


def test_rows_of_a_prompt_keep_their_bits_where_lone_tokens_are_not_doubled(
    llama: Path, prepared: Path
) -> None:
    steady = try_out_prompts(executor_of(llama, prepared))
    model = read_model(llama)
    sessions = PreparedSessions(prepared, threads=1, exact=EXACT)
    executor = CpuExecutor(model, sessions, context_length=200, doubled=False)
    assert try_out_prompts(executor) == steady
    doubled = executor_of(llama, prepared)
    assert executor.numerics != doubled.numerics
    ids = np.random.default_rng(2).integers(0, model.vocab_size, 40)
    found: list[tuple[Logits, Logits]] = []
    for one in (executor, doubled):
        slot = one.open()
        read = one.forward([Row(slot, ids[:39], want=Want.ALL)])[0].logits
        found.append((read, one.forward([Row(slot, ids[39:])])[0].logits))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=0.2)


def test_lay_out_gives_a_lone_token_once_where_it_is_not_doubled() -> None:
    lone = RowPart(np.array([5]), 7, Want.LAST)
    for doubled, width in ((True, 2), (False, 1)):
        layout = lay_out([lone, None], trees=False, doubled=doubled)
        assert layout.inputs["packed.lengths"].tolist() == [width, width]
        assert layout.inputs["packed.total.0"] == 7 + width
        assert layout.inputs["packed.kept"].tolist() == [0]


def plain_onnxruntime(path: Path, ids: Tokens) -> Logits:
    """Logits of one pass of the container's own file, with no code of the executor's."""
    session = ort.InferenceSession(
        str(path), session_options(1, exact=EXACT), providers=["CPUExecutionProvider"]
    )
    feeds: dict[str, np.ndarray] = {
        "input_ids": ids[None],
        "seqlens_k": np.array([ids.size - 1], np.int32),
        "total_sequence_length": np.array([ids.size], np.int32),
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            shape = [1, value.shape[1], ids.size, value.shape[3]]
            feeds[value.name] = np.zeros(shape, np.float32)
    for name, table in read_model(path).rope.items():
        suffix = "" if name == "default" else f"_{name}"
        cos, sin = cos_sin(np.arange(ids.size), table)
        feeds |= {f"cos_cache{suffix}": cos, f"sin_cache{suffix}": sin}
    names = {value.name for value in session.get_inputs()}
    read = {name: value for name, value in feeds.items() if name in names}
    logits: Logits = session.run(["logits"], read)[0][0]
    return logits


def steady(precision: Precision) -> bool:
    """Where bits must hold: always for Int8 and Float; for Int4 where products do not saturate."""
    return precision is not Precision.INT4 or not EXACT


def conforms(executor: Executor, same: conformance.Same = conformance.bits) -> None:
    assert isinstance(executor, Executor)
    conformance.rows_equal_each_alone(executor, same)
    conformance.wanted_places_are_those_of_all(executor)
    conformance.slots_truncate_grow_and_free(executor, same)
    conformance.copies_go_on_by_themselves(executor, same)
    conformance.refusals_leave_every_slot_alone(executor)
    if executor.trees:
        # A step of an 8-bit activation is the largest that rounding may make of it.
        conformance.a_tree_equals_each_of_its_chains(executor, close, chain_same=same)


def close(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return bool(np.abs(a - b).max() < 0.1)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_prepared_rows_are_bit_equal_whatever_runs_beside_them(
    precision: Precision, llama: Path, prepared: Path, threads: int
) -> None:
    executor = executor_of(llama, prepared, threads=threads)
    found = try_out(executor)
    if steady(precision):
        assert (found.chunks, found.neighbours) == (True, True)
        conforms(executor)
    else:
        conforms(executor, lambda a, b: bool(np.abs(a - b).max() < 1))


def test_prepared_and_plain_graphs_equal_plain_onnxruntime_to_the_bit(
    llama: Path, prepared: Path
) -> None:
    executor = executor_of(llama, prepared)
    ids = conformance.tokens_for(executor, 41, 9)
    expected = plain_onnxruntime(llama, ids)
    np.testing.assert_array_equal(conformance.alone(executor, ids), expected)
    np.testing.assert_array_equal(conformance.alone(executor_of(llama), ids), expected)
    np.testing.assert_array_equal(
        CpuSession(llama, context_length=64, threads=1).forward(ids), expected
    )


def test_token_by_token_equals_one_pass_to_the_bit(precision: Precision, llama: Path) -> None:
    session = CpuSession(llama, context_length=64, threads=1)
    ids = np.random.default_rng(3).integers(0, session.vocab_size, 48)
    whole = session.forward(ids)
    session.reset()
    steps = np.concatenate([session.forward(ids[i : i + 1]) for i in range(ids.size)])
    if steady(precision):
        np.testing.assert_array_equal(steps, whole)


RANDOM = {
    "norms, biases": {"qk_norm": True, "qkv_bias": True},
    "two biases' worth": {"qkv_bias": True, "kv_heads": 4},
    "windows, two tables": {"windows": (4, 0), "local_theta": 500.0},
    "rotary outside": {"rotary_dim": 8},
    "padded heads": {"head_dim": 12},
    "soft caps, tied": {"softcap": 3.0, "final_softcap": 5.0, "tied": True},
    "no rotary": {"rotary_dim": 0},
}


@pytest.mark.parametrize("features", RANDOM.values(), ids=RANDOM.keys())
def test_rows_are_bit_equal_for_every_form_of_attention(
    features: dict[str, Any], tmp_path: Path
) -> None:
    path = random_model(tmp_path, Precision.INT8, **features)
    model = read_model(path)
    folder = prepare(model, tmp_path / "cache", identity="a", features=FEATURES, exact=EXACT)
    executor = executor_of(path, folder, context_length=64)
    assert executor.trees is ("windows" not in features)
    conforms(executor)
    ids = conformance.tokens_for(executor, 33, 1)
    np.testing.assert_array_equal(conformance.alone(executor, ids), plain_onnxruntime(path, ids))


def test_more_rows_than_the_largest_graph_take_several_runs(llama: Path) -> None:
    executor = executor_of(llama, sizes=(1, 2))
    conformance.rows_equal_each_alone(
        executor, lambda a, b: bool(np.abs(a - b).max() < 1), sizes=(3, 1, 2, 5, 1)
    )


def test_the_context_can_be_filled_to_its_last_token_and_no_further(llama: Path) -> None:
    executor = executor_of(llama, context_length=127)
    slot = executor.open()
    ids = conformance.tokens_for(executor, 127, 2)
    executor.forward([Row(slot, ids[:126], want=Want.NONE)])
    (last,) = executor.forward([Row(slot, ids[126:])])
    np.testing.assert_allclose(last.logits, conformance.alone(executor, ids)[-1:], atol=1e-3)
    with pytest.raises(BadInput, match="context length of 127"):
        executor.forward([Row(slot, ids[:1])])
    assert executor.length(slot) == 127


def test_slots_grow_in_buckets_and_leave_their_neighbours_buffers_alone(llama: Path) -> None:
    executor = executor_of(llama)
    first, second = executor.open(), executor.open()
    assert executor.cache_bytes(127) < executor.cache_bytes(128) == executor.cache_bytes(200)
    ids = conformance.tokens_for(executor, 140, 4)
    executor.forward([Row(first, ids[:100]), Row(second, ids[:3])])
    neighbour = executor._slots[second].buffers["0.key"]
    before = executor._slots[first].buffers["0.key"]
    executor.forward([Row(first, ids[100:]), Row(second, ids[3:4])])
    assert executor._slots[first].buffers["0.key"].shape[2] == 256
    assert before.shape[2] == 128
    assert executor._slots[second].buffers["0.key"] is neighbour
    total = sum(buffer.nbytes for buffer in executor._slots[first].buffers.values())
    assert total == executor.cache_bytes(140)


def test_a_freed_slot_s_memory_is_held_by_no_graph(llama: Path) -> None:
    import gc
    import weakref

    executor = executor_of(llama)
    slots = [executor.open() for _ in range(2)]
    executor.forward([Row(slot, np.array([1, 2, 3])) for slot in slots])
    executor.forward([Row(slots[0], np.array([4]))])
    buffer = weakref.ref(executor._slots[slots[0]].buffers["0.key"])
    executor.free(slots[0])
    gc.collect()
    assert buffer() is None


def test_a_cache_full_of_nan_is_never_read_by_packed_rows(llama: Path) -> None:
    executor = executor_of(llama)
    slots = [executor.open() for _ in range(3)]
    for slot in slots:
        for buffer in executor._slots[slot].buffers.values():
            buffer[:] = np.nan
    ids = conformance.tokens_for(executor, 9, 5)
    for count in (4, 1, 1):
        for output in executor.forward([Row(slot, ids[:count], Want.ALL) for slot in slots]):
            assert np.isfinite(output.logits).all()


def test_hidden_states_are_what_the_output_layer_reads(tmp_path: Path) -> None:
    path = random_model(tmp_path, Precision.FLOAT)
    executor = executor_of(path)
    slot = executor.open()
    (output,) = executor.forward([Row(slot, np.arange(6), want=Want.ALL, hidden=True)])
    head = next(
        node for node in read_model(path).proto.graph.node if node.output[0] == "logits"
    ).input[1]
    tensor = next(t for t in read_model(path).proto.graph.initializer if t.name == head)
    place = {entry.key: entry.value for entry in tensor.external_data}
    weight = np.memmap(
        path.parent / place["location"],
        np.float32,
        mode="r",
        offset=int(place["offset"]),
        shape=tuple(tensor.dims),
    )
    assert output.hidden is not None
    assert output.hidden.shape == (6, executor.hidden_size)
    np.testing.assert_allclose(output.hidden @ weight, output.logits, atol=1e-4)


def test_executor_refuses_a_context_without_a_place(llama: Path) -> None:
    with pytest.raises(BadInput, match="at least 1"):
        executor_of(llama, context_length=0)


def test_read_model_refuses_unreadable_rotary_tables_by_name(llama: Path, tmp_path: Path) -> None:
    model = read_model(llama).proto
    for prop in model.metadata_props:
        if prop.key == "genai.rope":
            prop.value = "{"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadModel, match=r"genai\.rope"):
        read_model(tmp_path / "model.onnx")


def initializer(model: onnx.ModelProto) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(t for t in model.graph.initializer if t.external_data)
    return tensor


def constant(model: onnx.ModelProto) -> onnx.TensorProto:
    """In a branch of a branch, where initializers alone are not looked at."""
    tensor = onnx.TensorProto(name="hidden", data_location=onnx.TensorProto.EXTERNAL)
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], []
    )
    outer = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)],
        "outer", [], [],
    )  # fmt: skip
    node = onnx.helper.make_node("If", ["b"], ["y"], then_branch=outer, else_branch=outer)
    model.graph.node.append(node)
    branch = model.graph.node[-1].attribute[0].g.node[0].attribute[0].g
    held: onnx.TensorProto = branch.node[0].attribute[0].t
    return held


@pytest.mark.parametrize("find", [initializer, constant])
@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../outside.data", "leaves its folder"),
        ("/etc/passwd", "not a relative path"),
        ("a/../../outside.data", "leaves its folder"),
        ("beside.data", "not in the container's manifest"),
    ],
)
def test_a_containers_data_lies_in_files_of_its_manifest(
    llama: Path,
    tmp_path: Path,
    find: Callable[[onnx.ModelProto], onnx.TensorProto],
    location: str,
    words: str,
) -> None:
    """It is mapped and linked by name before ONNX Runtime looks at it."""
    model = read_model(llama, holds=lambda name: name == "model.data").proto
    tensor = find(model)
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    box = tmp_path / "box"
    box.mkdir()
    (box / "model.onnx").write_bytes(model.SerializeToString())
    for name in ("beside.data", "model.data", "../outside.data"):
        (box / name).write_bytes(b"\0" * 64)
    with pytest.raises(BadModel, match=words) as caught:
        open_executor(
            box / "model.onnx", cache=tmp_path / "cache", identity="x", context_length=8,
            holds=lambda name: name == "model.data",
        )  # fmt: skip
    assert tensor.name in caught.value.message
    assert not (tmp_path / "cache").exists()
