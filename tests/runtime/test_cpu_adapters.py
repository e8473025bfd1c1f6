"""Adapters in packed rows: the base to the bit without one, each row's own whoever is beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import tiny_llama
from numpy.typing import NDArray
from safetensors.numpy import save_file

from genai_core.errors import BadInput, BadModel, CorruptBlob
from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import CpuSession, open_executor, sessions
from genai_runtime.cpu.adapter_files import read_adapter, read_shape
from genai_runtime.cpu.bank import AdapterBank, AdapterWeights, bank_bytes
from genai_runtime.cpu.branches import branched
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.executor.adapter_weights import AdapterShape, NoRoom
from genai_runtime.executor.rows import AdapterUse, Logits, Row, Tokens, Want

FEATURES = processor.features()
EXACT = processor.saturates(FEATURES)
LAYER = "/model/layers.{}/self_attn/{}_proj/MatMul_output_0"
SIZES = {"q": 192, "k": 64, "v": 64, "o": 192}


@pytest.fixture(scope="module", params=[Precision.INT8, Precision.FLOAT], ids=lambda p: p.value)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp(f"lora-{request.param.value}"), request.param)


def weights(seed: int, rank: int, linears: str = "qkvo") -> AdapterWeights:
    random = np.random.default_rng(seed)
    return AdapterWeights(
        {
            LAYER.format(layer, kind): (
                (random.standard_normal((192, rank)) * 0.1).astype(np.float32),
                (random.standard_normal((rank, SIZES[kind])) * 0.1).astype(np.float32),
            )
            for layer in range(6)
            for kind in linears
        }
    )


ADAPTERS = {"wide": weights(1, 16), "narrow": weights(2, 4, "qv"), "third": weights(3, 8, "o")}


def executor_of(
    path: Path,
    adapters: Mapping[str, AdapterWeights],
    *,
    threads: int = 1,
    sizes: tuple[int, ...] = (1, 2, 4),
    columns: int = 64,
) -> CpuExecutor:
    opened = read_model(path)
    bank = AdapterBank(adapters, threads=threads, columns=columns)
    made = PlainSessions(
        opened, threads=threads, exact=EXACT, sizes=sizes, linears=bank.linears, parts=bank.parts
    )
    return CpuExecutor(opened, made, context_length=200, bank=bank)


def alone(executor: CpuExecutor, ids: Tokens, adapters: tuple[AdapterUse, ...] = ()) -> Logits:
    slot = executor.open()
    (output,) = executor.forward([Row(slot, ids, want=Want.ALL, adapters=adapters)])
    executor.free(slot)
    return output.logits


IDS = np.random.default_rng(0).integers(7, 2000, 24)


def test_rows_without_an_adapter_equal_the_base_to_the_bit(model: Path) -> None:
    base = alone(executor_of(model, {}), IDS)
    adapted = executor_of(model, ADAPTERS)
    np.testing.assert_array_equal(alone(adapted, IDS), base)
    np.testing.assert_array_equal(alone(adapted, IDS, (AdapterUse("wide", 0.0),)), base)
    assert np.abs(alone(adapted, IDS, (AdapterUse("wide"),)) - base).max() > 0.1


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_a_row_yields_the_same_bits_whoever_is_beside_it(model: Path, threads: int) -> None:
    executor = executor_of(model, ADAPTERS, threads=threads)
    wearing = [
        (AdapterUse("wide"),),
        (),
        (AdapterUse("narrow", 0.5), AdapterUse("third", -1.0)),
        (AdapterUse("wide", 0.25),),
    ]
    pieces = [IDS[:9], IDS[3:4], IDS[5:24], IDS[2:3]]
    expected = [alone(executor, ids, worn) for ids, worn in zip(pieces, wearing, strict=True)]
    slots = [executor.open() for _ in pieces]
    rows = [
        Row(slot, ids, want=Want.ALL, adapters=worn)
        for slot, ids, worn in zip(slots, pieces, wearing, strict=True)
    ]
    for output, want in zip(executor.forward(rows), expected, strict=True):
        np.testing.assert_array_equal(output.logits, want)


def test_a_prompt_in_chunks_yields_the_same_bits_when_it_wears_an_adapter(model: Path) -> None:
    executor = executor_of(model, ADAPTERS)
    worn = (AdapterUse("wide", 0.7),)
    whole = alone(executor, IDS, worn)
    slot = executor.open()
    parts = [
        executor.forward([Row(slot, chunk, want=Want.ALL, adapters=worn)])[0].logits
        for chunk in np.split(IDS, [1, 2, 9, 10])
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_adapters_that_are_worn_together_add_up(model: Path) -> None:
    """Two adapters with alphas are one whose matrices stand beside one another."""
    one, other = ADAPTERS["wide"], ADAPTERS["narrow"]
    joined = {}
    for linear, (a, b) in one.branches.items():
        a2, b2 = other.branches.get(linear, (np.zeros((192, 0)), np.zeros((0, b.shape[1]))))
        joined[linear] = (
            np.concatenate([a * np.float32(0.5), a2 * np.float32(2.0)], axis=1, dtype=np.float32),
            np.concatenate([b, b2], dtype=np.float32),
        )
    want = alone(executor_of(model, {"both": AdapterWeights(joined)}), IDS, (AdapterUse("both"),))
    worn = (AdapterUse("wide", 0.5), AdapterUse("narrow", 2.0))
    got = alone(executor_of(model, ADAPTERS), IDS, worn)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max() + 0.05


def test_prepared_graphs_with_branches_equal_plain_ones(model: Path, tmp_path: Path) -> None:
    made = open_executor(
        model, cache=tmp_path, identity="one", context_length=200, threads=1, adapters=ADAPTERS
    )
    worn = (AdapterUse("wide"), AdapterUse("third", 0.5))
    np.testing.assert_array_equal(
        alone(made, IDS, worn), alone(executor_of(model, ADAPTERS), IDS, worn)
    )
    base = open_executor(model, cache=tmp_path, identity="one", context_length=200, threads=1)
    np.testing.assert_array_equal(alone(base, IDS), alone(made, IDS))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2, (
        "graphs with branches are others"
    )


def test_forward_refuses_an_adapter_that_is_not_there(model: Path) -> None:
    executor = executor_of(model, ADAPTERS)
    with pytest.raises(BadInput, match="no such adapter"):
        alone(executor, IDS, (AdapterUse("nope"),))


def test_a_session_wears_its_adapters_in_every_pass(model: Path) -> None:
    worn = [AdapterUse("wide", 0.5)]
    session = CpuSession(model, context_length=64, threads=1, adapters=ADAPTERS, worn=worn)
    got = np.concatenate([session.forward(IDS[:10]), session.forward(IDS[10:])])
    np.testing.assert_array_equal(got, alone(executor_of(model, ADAPTERS), IDS, tuple(worn)))


def test_branched_refuses_what_is_no_linear(model: Path) -> None:
    proto = onnx.load(str(model), load_external_data=False)  # noqa: TID251 - no weights inside
    with pytest.raises(BadModel, match="no linear"):
        branched(proto, ["/model/layers.0/Add_output_0"])
    with pytest.raises(BadModel, match="no linear"):
        branched(proto, ["nowhere"])


def test_bank_refuses_adapters_of_different_models() -> None:
    linear = "x"
    one = AdapterWeights({linear: (np.zeros((4, 2), np.float32), np.zeros((2, 4), np.float32))})
    other = AdapterWeights({linear: (np.zeros((5, 2), np.float32), np.zeros((2, 4), np.float32))})
    with pytest.raises(BadInput, match="different sizes"):
        AdapterBank({"one": one, "other": other})


@pytest.mark.parametrize(("columns", "blocks"), [(0, [2]), (100, [7]), (130, [8, 1])])
@pytest.mark.parametrize("threads", [1, 16])
def test_bank_has_as_many_columns_as_were_asked_for_whatever_the_threads(
    threads: int, columns: int, blocks: list[int]
) -> None:
    bank = AdapterBank(ADAPTERS, threads=threads, columns=columns)
    assert bank.columns == 16 * sum(blocks)
    shapes = [value.shape() for value in bank.values.values()]
    assert bank.bytes == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert bank.bytes == bank_bytes(map(AdapterShape.of, ADAPTERS.values()), bank.columns)
    assert bank.parts == len(blocks)
    assert [shape[0] for shape in shapes if shape[-1] == 16][: len(blocks)] == blocks


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
def test_products_of_a_bank_give_a_row_the_same_bits_whatever_the_rows_and_threads(
    tmp_path: Path, threads: int
) -> None:
    """The products alone, as branches have them, with sums that are long enough to be cut."""
    random = np.random.default_rng(0)
    inputs, outputs, most = 2049, 300, 140
    made = random.standard_normal((inputs, outputs)).astype(np.float32)
    branches = {
        name: AdapterWeights(
            {
                "y": (
                    random.standard_normal((inputs, rank)).astype(np.float32),
                    random.standard_normal((rank, outputs)).astype(np.float32),
                )
            }
        )
        for name, rank in (("one", 20), ("two", 100), ("three", 10))
    }
    bank = AdapterBank(branches, threads=threads)
    assert bank.parts == 2
    session = _products(made, threads)
    states = random.standard_normal((1, most, inputs)).astype(np.float32)

    def run(rows: int, name: str) -> Logits:
        wide = np.arange(rows)
        feeds = bank.inputs([((AdapterUse(name, 0.5),), rows)], wide)
        feeds |= {"x": states[:, :rows], "packed.kept": wide}
        values = {key: value.numpy() for key, value in bank.values.items()}
        logits: Logits = session.run(None, {**feeds, **values})[0]
        return logits

    for name in branches:
        whole = run(most, name)
        for rows in (2, 3, 5, 15, 16, 17, 24, 31, 32, 33, 64, 100):
            np.testing.assert_array_equal(
                run(rows, name), whole[:, :rows], err_msg=f"{name} {rows}"
            )


def _products(weight: NDArray[np.float32], threads: int) -> ort.InferenceSession:
    """A linear `y` with a branch of two parts."""
    value, float32 = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [value("x", float32, [1, "N", "K"]), value("packed.kept", onnx.TensorProto.INT64, ["N"])],
        [value("y", float32, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    options = sessions.session_options(threads, exact=EXACT)
    made = branched(model, ["y"], parts=2).SerializeToString()
    return sessions.open_session(made, options, where=Path("one"))


def test_an_adapter_yields_the_same_bits_in_whichever_part_of_the_ranks_it_lies(
    model: Path,
) -> None:
    worn = (AdapterUse("late", 0.5),)
    late = weights(9, 40)
    expected = alone(executor_of(model, {"late": late}), IDS, worn)
    beside = {"first": weights(4, 100), "second": weights(5, 3)}
    executor = executor_of(model, {**beside, "late": late})
    assert executor.adapter_columns[0] == 176, "it may not lie on both sides of rank 128"
    np.testing.assert_array_equal(alone(executor, IDS, worn), expected)
    executor.unload_adapter("first")
    executor.load_adapter("again", late)
    np.testing.assert_array_equal(alone(executor, IDS, (AdapterUse("again", 0.5),)), expected)


def test_read_adapter_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    with pytest.raises(BadInput, match="no adapter"):
        read_adapter(path)
    save_file({"x.A": np.zeros((4, 2), np.float32)}, path)
    with pytest.raises(BadInput, match="do not belong together"):
        read_adapter(path)
    pair = {"x.A": np.zeros((4, 2), np.float32), "x.B": np.zeros((2, 4), np.float32)}
    save_file({**pair, "y": np.zeros(1, np.float32)}, path)
    with pytest.raises(BadInput, match="more than pairs"):
        read_adapter(path)
    save_file(pair, path)
    assert read_adapter(path).rank == 2
    assert read_shape(path) == AdapterShape.of(read_adapter(path))
    assert read_shape(path) == AdapterShape(2, {"x": (4, 4)}, 64)
    for broken in ({"x.A": pair["x.A"]}, {**pair, "x.B": np.zeros((3, 4), np.float32)}):
        save_file(broken, path)
        with pytest.raises(BadInput, match="do not belong together"):
            read_shape(path)


def test_reserve_lays_adapters_side_by_side_and_rows_wear_them_once_they_are_filled() -> None:
    """Where a part of the ranks has no room for all of them, they begin in the next."""
    bank = AdapterBank({}, columns=200, branches=[AdapterShape.of(weights(1, 16, "q"))])
    assert (bank.columns, bank.parts, len(bank.linears)) == (208, 2, 6)
    assert not bank.names
    bank.reserve({"one": 100})
    bank.reserve({"two": 20, "three": 20})
    assert [bank._columns[name] for name in ("two", "three")] == [slice(128, 148), slice(148, 168)]
    assert bank.names == set()
    before = bank.free
    with pytest.raises(NoRoom, match="rank 60, and of 208 columns 68 are free"):
        bank.reserve({"four": 30, "five": 30})
    assert bank.free == before
    bank.fill("two", weights(2, 20, "q"))
    assert bank.names == {"two"}
    bank.take_out("three")
    bank.reserve({"four": 30, "five": 30})


def test_an_adapter_that_comes_later_yields_what_it_yields_from_the_start(model: Path) -> None:
    """Whatever had its columns before, and whoever is beside it."""
    worn = (AdapterUse("late", 0.5),)
    started = {**ADAPTERS, "late": weights(9, 6)}
    expected = alone(executor_of(model, started), IDS, worn)
    executor = executor_of(model, ADAPTERS)
    before = {name: alone(executor, IDS, (AdapterUse(name),)) for name in ADAPTERS}
    base = alone(executor, IDS)
    executor.load_adapter("late", weights(9, 6))
    np.testing.assert_array_equal(alone(executor, IDS, worn), expected)
    executor.unload_adapter("late")
    executor.load_adapter("another", weights(10, 8, "q"))
    executor.unload_adapter("another")
    executor.load_adapter("late", weights(9, 6))
    np.testing.assert_array_equal(alone(executor, IDS, worn), expected)
    np.testing.assert_array_equal(alone(executor, IDS), base)
    for name, logits in before.items():
        np.testing.assert_array_equal(alone(executor, IDS, (AdapterUse(name),)), logits)
    executor.unload_adapter("late")
    with pytest.raises(BadInput, match="no such adapter"):
        alone(executor, IDS, worn)


def test_a_small_adapter_leaves_nothing_of_a_large_one_in_its_columns(model: Path) -> None:
    worn = (AdapterUse("late"),)
    expected = alone(executor_of(model, {**ADAPTERS, "late": weights(9, 8, "v")}), IDS, worn)
    executor = executor_of(model, ADAPTERS)
    executor.load_adapter("large", weights(11, 8, "qkvo"))
    executor.unload_adapter("large")
    executor.load_adapter("late", weights(9, 8, "v"))
    np.testing.assert_array_equal(alone(executor, IDS, worn), expected)


def test_lay_in_refuses_what_does_not_fit_and_changes_nothing() -> None:
    bank = AdapterBank({"one": weights(1, 16, "qv"), "two": weights(2, 40, "qv")}, columns=96)
    columns = [slice(0, 16), slice(16, 56)]
    assert (bank.columns, bank.free) == (96, 40)
    wrong = {LAYER.format(0, "q"): (np.zeros((9, 2), np.float32), np.zeros((2, 192), np.float32))}
    for name, adapter, words in (
        ("one", weights(3, 1, "q"), "is loaded already"),
        ("new", weights(3, 1, "qk"), "^adapter new: 6 of the 12 linears that it touches have no"),
        ("new", weights(3, 97, "q"), "it has rank 97, and a pass holds 96"),
        ("new", AdapterWeights(wrong), "takes 192 values"),
        ("new", weights(3, 41, "q"), "of 96 columns 40 are free"),
    ):
        with pytest.raises(BadInput, match=words):
            bank.lay_in(name, adapter)
    assert bank.names == {"one", "two"}
    with pytest.raises(BadInput, match="is not loaded"):
        bank.take_out("new")
    bank.take_out("one")
    bank.lay_in("new", weights(3, 12, "q"))
    bank.lay_in("last", weights(3, 40, "q"))
    assert bank.free == 4
    with pytest.raises(BadInput, match="4 are free"):
        bank.lay_in("more", weights(3, 5, "q"))
    assert [bank._columns[name] for name in ("new", "two")] == [slice(0, 12), columns[1]]


def test_read_adapter_takes_the_same_numbers_whether_it_compares_a_digest_or_not(
    tmp_path: Path,
) -> None:
    """Two readers: safetensors' own, and one that copies nothing."""
    path = tmp_path / "one.safetensors"
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, (a, b) in weights(1, 3).branches.items():
        tensors |= {f"{name}.A": a, f"{name}.B": b}
    save_file(tensors, path, metadata={"format": "pt"})
    verified = read_adapter(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    plain = read_adapter(path)
    assert verified.branches.keys() == plain.branches.keys() == weights(1, 3).branches.keys()
    for name, pair in plain.branches.items():
        for mine, theirs in zip(verified.branches[name], pair, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def broken(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes
    head = json.dumps({"x.A": entry}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"[[[[",
        b"\xff" * 64,
        broken(dtype="F16"),
        broken(shape=[2, -2]),
        broken(shape=[2, 3]),
        broken(shape="22"),
        broken(shape=[1 << 62, 4]),
        broken(data_offsets=[0, 20], shape=[5]),
        broken(data_offsets=[-16, 0]),
        broken(data_offsets=[8, 4]),
        broken(data_offsets=[0]),
        broken(data_offsets=None),
        broken(),
    ],
)
def test_read_adapter_refuses_what_has_the_digest_and_is_no_adapter(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "one.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"no adapter|do not belong together"):
        read_adapter(path, sha256=hashlib.sha256(data).hexdigest())


def test_read_adapter_compares_the_digest_of_the_bytes_that_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"x.A": np.zeros((4, 2), np.float32), "x.B": np.zeros((2, 4), np.float32)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_adapter(path, sha256=digest).rank == 2
    with pytest.raises(CorruptBlob, match="not 0000"):
        read_adapter(path, sha256="0" * 64)
