"""Adapters in packed rows: the base to the bit without one, each row's own whoever is beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import tiny_llama
from safetensors.numpy import save_file

from genai_core.errors import BadInput, BadModel, CorruptBlob
from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import CpuSession, open_executor
from genai_runtime.cpu.bank import AdapterBank, AdapterWeights, read_adapter
from genai_runtime.cpu.branches import branched
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.executor import AdapterUse, Row, Want

FEATURES = processor.features()
EXACT = processor.saturates(FEATURES)
LAYER = "/model/layers.{}/self_attn/{}_proj/MatMul_output_0"
SIZES = {"q": 192, "k": 64, "v": 64, "o": 192}


@pytest.fixture(scope="module", params=[Precision.INT8, Precision.FLOAT], ids=lambda p: p.value)
def model(request, tmp_path_factory):
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


def executor_of(path: Path, adapters, *, threads: int = 1, sizes=(1, 2, 4)) -> CpuExecutor:
    opened = read_model(path)
    bank = AdapterBank(adapters, threads=threads)
    sessions = PlainSessions(
        opened, threads=threads, exact=EXACT, sizes=sizes, linears=bank.linears
    )
    return CpuExecutor(opened, sessions, context_length=200, bank=bank)


def alone(executor: CpuExecutor, ids, adapters=()):
    slot = executor.open()
    (output,) = executor.forward([Row(slot, ids, want=Want.ALL, adapters=adapters)])
    executor.free(slot)
    return output.logits


IDS = np.random.default_rng(0).integers(7, 2000, 24)


def test_rows_without_an_adapter_equal_the_base_to_the_bit(model) -> None:
    base = alone(executor_of(model, {}), IDS)
    adapted = executor_of(model, ADAPTERS)
    np.testing.assert_array_equal(alone(adapted, IDS), base)
    np.testing.assert_array_equal(alone(adapted, IDS, (AdapterUse("wide", 0.0),)), base)
    assert np.abs(alone(adapted, IDS, (AdapterUse("wide"),)) - base).max() > 0.1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_yields_the_same_bits_whoever_is_beside_it(model, threads: int) -> None:
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


def test_a_prompt_in_chunks_yields_the_same_bits_when_it_wears_an_adapter(model) -> None:
    executor = executor_of(model, ADAPTERS)
    worn = (AdapterUse("wide", 0.7),)
    whole = alone(executor, IDS, worn)
    slot = executor.open()
    parts = [
        executor.forward([Row(slot, chunk, want=Want.ALL, adapters=worn)])[0].logits
        for chunk in np.split(IDS, [1, 2, 9, 10])
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_adapters_that_are_worn_together_add_up(model) -> None:
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


def test_prepared_graphs_with_branches_equal_plain_ones(model, tmp_path: Path) -> None:
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


def test_forward_refuses_an_adapter_that_is_not_there(model) -> None:
    executor = executor_of(model, ADAPTERS)
    with pytest.raises(BadInput, match="no such adapter"):
        alone(executor, IDS, (AdapterUse("nope"),))


def test_a_session_wears_its_adapters_in_every_pass(model) -> None:
    worn = [AdapterUse("wide", 0.5)]
    session = CpuSession(model, context_length=64, threads=1, adapters=ADAPTERS, worn=worn)
    got = np.concatenate([session.forward(IDS[:10]), session.forward(IDS[10:])])
    np.testing.assert_array_equal(got, alone(executor_of(model, ADAPTERS), IDS, tuple(worn)))


def test_branched_refuses_what_is_no_linear(model) -> None:
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


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_bank_pads_columns_so_that_products_are_equal_to_the_bit(threads: int) -> None:
    bank = AdapterBank(ADAPTERS, threads=threads)
    assert bank.columns == max(96 * threads, 28)
    for value in bank.values.values():
        assert bank.columns in value.shape()


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


def test_an_adapter_that_comes_later_yields_what_it_yields_from_the_start(model) -> None:
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


def test_a_small_adapter_leaves_nothing_of_a_large_one_in_its_columns(model) -> None:
    worn = (AdapterUse("late"),)
    expected = alone(executor_of(model, {**ADAPTERS, "late": weights(9, 8, "v")}), IDS, worn)
    executor = executor_of(model, ADAPTERS)
    executor.load_adapter("large", weights(11, 8, "qkvo"))
    executor.unload_adapter("large")
    executor.load_adapter("late", weights(9, 8, "v"))
    np.testing.assert_array_equal(alone(executor, IDS, worn), expected)


def test_lay_in_refuses_what_does_not_fit_and_changes_nothing() -> None:
    bank = AdapterBank({"one": weights(1, 16, "qv"), "two": weights(2, 40, "qv")})
    columns = [slice(0, 16), slice(16, 56)]
    assert (bank.columns, bank.free) == (96, 40)
    wrong = {LAYER.format(0, "q"): (np.zeros((9, 2), np.float32), np.zeros((2, 192), np.float32))}
    for name, adapter, words in (
        ("one", weights(3, 1, "q"), "is loaded already"),
        ("new", weights(3, 1, "k"), "which no adapter of the container does"),
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


def test_read_adapter_compares_the_digest_of_the_bytes_that_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"x.A": np.zeros((4, 2), np.float32), "x.B": np.zeros((2, 4), np.float32)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_adapter(path, sha256=digest).rank == 2
    with pytest.raises(CorruptBlob, match="not 0000"):
        read_adapter(path, sha256="0" * 64)
