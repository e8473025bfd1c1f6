"""The driver of the static graphs, with ONNX Runtime's CPU in the emulator's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import conformance
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import BadInput, BadModel, NotRunnableHere
from genai_core.facts import RopeTable
from genai_runtime.executor.executor import Executor as ExecutorProtocol
from genai_runtime.executor.rows import Row, Tree
from genai_runtime.htp import emulation, testing
from genai_runtime.htp.arithmetic import Integers, dequantize, quantize
from genai_runtime.htp.emulation import EmulatedPart, Emulation
from genai_runtime.htp.executor import HtpExecutor, HtpSession
from genai_runtime.htp.metadata import BinaryMetadata, GraphMetadata, TensorMetadata
from genai_runtime.session import Session

IDS = np.random.default_rng(1).integers(0, testing.VOCAB, 128)


class CpuRunner:
    """Runs the QDQ models of the tiny decoder, and notes which graphs were run."""

    def __init__(self, sizes: Sequence[tuple[int, int]], splits: int) -> None:
        self.sessions = {}
        self.calls: list[str] = []
        for ar, cl in sizes:
            for index, part in enumerate(testing.SPLITS[splits], 1):
                name = testing.graph_name(ar, cl, index, splits=splits)
                model = testing.quantized(ar, cl, part).SerializeToString()
                self.sessions[name] = ort.InferenceSession(
                    model, providers=["CPUExecutionProvider"]
                )

    def run(self, graph: str, inputs: Mapping[str, Integers]) -> dict[str, Integers]:
        self.calls.append(graph)
        session = self.sessions[graph]
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        self.sessions.clear()


def _binary(graphs: Sequence[GraphMetadata], soc_model: int = 69) -> BinaryMetadata:
    return BinaryMetadata(
        soc_model=soc_model,
        build_id="v0",
        core_api_version="2.0.0",
        backend_api_version="5.0.0",
        blob_version="1.0.0",
        size=0,
        graphs=tuple(graphs),
    )


def _write(
    folder: Path, parts: Sequence[Sequence[GraphMetadata]], rope: dict[str, RopeTable]
) -> None:
    made = [
        EmulatedPart(file=f"part_{i}_of_{len(parts)}.bin", binary=_binary(graphs))
        for i, graphs in enumerate(parts, 1)
    ]
    facts = Emulation(soc_model=69, rope=rope, parts=tuple(made))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / emulation.METADATA).write_text(facts.model_dump_json())


def _open(
    folder: Path, sizes: Sequence[tuple[int, int]] = ((32, 128), (1, 128)), splits: int = 1
) -> tuple[HtpSession, CpuRunner]:
    parts = [
        [
            testing.graph_metadata(testing.graph_name(ar, cl, i, splits=splits), ar, cl, part)
            for ar, cl in sizes
        ]
        for i, part in enumerate(testing.SPLITS[splits], 1)
    ]
    _write(folder, parts, {"default": testing.rope_table()})
    runner = CpuRunner(sizes, splits)
    return HtpSession(folder, runner=runner), runner


def _float_logits(ids: np.ndarray) -> np.ndarray:
    """The float decoder in one pass: no cache, no quantization, no code of the executor."""
    ar, cl = len(ids), 2 * len(ids)
    model = testing.float_model(ar, cl).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    cos, sin = testing.rotary(np.arange(ar))
    feeds = {
        "input_ids": ids.astype(np.int32)[None],
        "position_ids_cos": cos,
        "position_ids_sin": sin,
        "attention_mask": testing.mask(ar, cl, 0),
    }
    for value in session.get_inputs():
        feeds.setdefault(value.name, np.zeros(value.shape, np.float32))
    logits: np.ndarray = session.run(["logits"], feeds)[0][0]
    return logits


def _decibels(reference: np.ndarray, other: np.ndarray) -> float:
    noise = ((reference - other) ** 2).sum()
    return float(10 * np.log10((reference**2).sum() / noise)) if noise else np.inf


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> HtpSession:
    return _open(tmp_path_factory.mktemp("small"))[0]


def test_it_is_a_session(small: HtpSession) -> None:
    assert isinstance(small, Session)
    assert (small.context_length, small.vocab_size) == (128, testing.VOCAB)


def test_prompt_and_decoding_follow_the_float_model(small: HtpSession) -> None:
    logits = np.concatenate([small.prefill(IDS[:45]), *(small.decode(t) for t in IDS[45:50])])
    reference = _float_logits(IDS[:50])
    assert logits.shape == (50, testing.VOCAB)
    assert logits.dtype == np.float32
    assert _decibels(reference, logits) > 20
    assert (reference.argmax(-1) == logits.argmax(-1)).mean() > 0.85
    assert small.length == 50


@pytest.mark.parametrize("pieces", [[40], [1, 39], [33, 7], [5, 5, 30], [32, 1, 1, 6]])
def test_the_cut_of_the_input_does_not_matter(small: HtpSession, pieces: list[int]) -> None:
    small.reset()
    one_by_one = np.concatenate([small.decode(token) for token in IDS[:40]])
    small.reset()
    start, logits = 0, []
    for size in pieces:
        logits.append(small.forward(IDS[start : start + size]))
        start += size
    assert _decibels(one_by_one, np.concatenate(logits)) > 40


def test_a_chain_of_splits_equals_the_whole(small: HtpSession, tmp_path: Path) -> None:
    chained, runner = _open(tmp_path, splits=3)
    np.testing.assert_array_equal(chained.prefill(IDS[:34]), small.prefill(IDS[:34]))
    assert runner.calls[:3] == [f"prompt_ar32_cl128_{k}_of_3" for k in (1, 2, 3)]


def test_truncating_forgets(small: HtpSession) -> None:
    small.prefill(IDS[:40])
    small.truncate(33)
    after = small.forward(IDS[60:64])
    fresh = small.prefill(np.concatenate([IDS[:33], IDS[60:64]]))[33:]
    assert _decibels(fresh, after) > 40
    with pytest.raises(BadInput):
        small.truncate(38)


def test_smallest_context_that_holds_the_input(tmp_path: Path) -> None:
    sizes = [(ar, cl) for cl in (256, 128) for ar in (1, 32)]
    executor, runner = _open(tmp_path, sizes)
    assert executor.context_length == 256
    executor.prefill(IDS[:70])
    assert runner.calls == ["prompt_ar32_cl128_1_of_1"] * 3
    for token in IDS[70:]:
        executor.decode(token)
    runner.calls.clear()
    executor.decode(1)
    assert runner.calls == ["token_ar1_cl256_1_of_1"], "128 tokens of past need the longer graph"
    runner.calls.clear()
    executor.prefill(np.concatenate([IDS, IDS[:22]]))
    assert set(runner.calls) == {"prompt_ar32_cl256_1_of_1"}
    assert len(runner.calls) == 5


def test_fewer_slots_than_the_container_offers(tmp_path: Path) -> None:
    sizes = [(ar, cl) for cl in (256, 128) for ar in (1, 32)]
    _, runner = _open(tmp_path, sizes)
    limited = HtpSession(tmp_path, runner=runner, context_length=70)
    limited.prefill(IDS[:70])
    assert (limited.context_length, limited.length) == (70, 70)
    with pytest.raises(BadInput, match="context length of 70"):
        limited.decode(1)
    with pytest.raises(BadInput, match="at least 1"):
        HtpSession(tmp_path, runner=runner, context_length=0)


def test_both_contexts_agree(tmp_path: Path, small: HtpSession) -> None:
    longer, _ = _open(tmp_path, [(32, 256), (1, 256)])
    assert _decibels(small.prefill(IDS[:50]), longer.prefill(IDS[:50])) > 40


def test_the_context_can_be_filled_but_not_exceeded(small: HtpSession) -> None:
    small.prefill(IDS[:127])
    small.decode(IDS[127])
    assert small.length == 128
    with pytest.raises(BadInput, match="context length of 128"):
        small.decode(1)
    assert small.length == 128


def test_without_a_small_graph_the_end_of_the_context_is_still_reached(
    tmp_path: Path, small: HtpSession
) -> None:
    only32, runner = _open(tmp_path, [(32, 128)])
    logits = [only32.forward(IDS[:100]), only32.forward(IDS[100:127]), only32.decode(IDS[127])]
    assert only32.length == 128
    assert _decibels(small.prefill(IDS), np.concatenate(logits)) > 40
    assert set(runner.calls) == {"prompt_ar32_cl128_1_of_1"}


@pytest.mark.parametrize(
    "tokens", [np.array([], np.int64), np.array([testing.VOCAB]), np.array([[1]]), np.array([0.5])]
)
def test_bad_tokens_leave_the_cache_alone(small: HtpSession, tokens: np.ndarray) -> None:
    small.prefill(IDS[:3])
    with pytest.raises(BadInput):
        small.forward(tokens)
    assert small.length == 3


class Recorder:
    """Answers zeros and keeps what it was fed."""

    def __init__(self, graph: GraphMetadata) -> None:
        self.graph = graph
        self.feeds: dict[str, np.ndarray] = {}

    def run(self, graph: str, inputs: Mapping[str, Integers]) -> dict[str, Integers]:
        self.feeds = dict(inputs)
        return {t.name: np.zeros(t.shape, t.dtype) for t in self.graph.outputs}

    def close(self) -> None: ...


def test_windows_further_rotary_tables_and_constants(tmp_path: Path) -> None:
    def tensor(name: str, *shape: int) -> TensorMetadata:
        return TensorMetadata(name=name, shape=shape, dtype="float32")

    graph = GraphMetadata(
        name="ar4_cl12_1_of_1",
        inputs=(
            TensorMetadata(name="input_ids", shape=(1, 4), dtype="int32"),
            tensor("attention_mask", 1, 1, 4, 12),
            tensor("attention_mask_w3", 1, 1, 4, 12),
            tensor("position_ids_cos", 1, 1, 4, 2),
            tensor("position_ids_sin_local", 1, 1, 4, 1),
            tensor("lora_alpha", 1),
            tensor("lora_a", 2, 2),
        ),
        outputs=(tensor("logits", 1, 4, 5),),
    )
    tables = {
        "default": RopeTable(rotary_dim=4, inv_freq=[1.0, 0.1]),
        "local": RopeTable(rotary_dim=2, inv_freq=[0.5], attention_factor=2.0),
    }
    _write(tmp_path, [[graph]], tables)
    recorder = Recorder(graph)
    executor = HtpSession(tmp_path, runner=recorder, constants={"lora_alpha": np.array([0.5])})
    executor.forward(np.array([1, 2, 3, 4]))
    executor.forward(np.array([1, 2]))
    feeds = recorder.feeds
    np.testing.assert_array_equal(feeds["input_ids"], [[1, 2, 0, 0]])
    see = feeds["attention_mask"][0, 0] == 0
    np.testing.assert_array_equal(np.flatnonzero(see[0]), [0, 1, 2, 3, 8])
    np.testing.assert_array_equal(np.flatnonzero(see[1]), [0, 1, 2, 3, 8, 9])
    near = feeds["attention_mask_w3"][0, 0] == 0
    np.testing.assert_array_equal(np.flatnonzero(near[0]), [2, 3, 8])
    np.testing.assert_array_equal(np.flatnonzero(near[1]), [3, 8, 9])
    assert not see[2:].any()
    np.testing.assert_allclose(feeds["position_ids_cos"][0, 0, 0], np.cos([4, 0.4]), atol=1e-6)
    np.testing.assert_allclose(
        feeds["position_ids_sin_local"][0, 0, :2, 0], 2 * np.sin([2.0, 2.5]), atol=1e-6
    )
    np.testing.assert_array_equal(feeds["lora_alpha"], [0.5])
    assert not feeds["lora_a"].any()


def test_a_container_without_a_twin_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunnableHere, match="no twin that x86 can run") as caught:
        HtpSession(tmp_path)
    assert caught.value.exit_code == 2


def test_graphs_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    names = [testing.graph_name(32, 128, i, splits=3) for i in (1, 2, 3)]
    parts = [
        [testing.graph_metadata(name, 32, 128, part)]
        for name, part in zip(names, testing.SPLITS[3], strict=True)
    ]
    rope = {"default": testing.rope_table()}
    one = testing.graph_metadata(
        testing.graph_name(1, 128, 2, splits=3), 1, 128, testing.SPLITS[3][1]
    )
    _write(tmp_path, [parts[0], [*parts[1], one], parts[2]], rope)
    with pytest.raises(BadModel, match=r"token_ar1_cl128_2_of_3"):
        HtpSession(tmp_path, runner=Recorder(one))
    other = [
        t.model_copy(update={"scale": 0.5}) if t.name.startswith("past_key") else t
        for t in one.inputs
    ]
    changed = one.model_copy(update={"name": "token_ar1_cl128_1_of_1", "inputs": tuple(other)})
    whole = parts[1][0].model_copy(update={"name": "prompt_ar32_cl128_1_of_1"})
    logits = TensorMetadata(name="logits", shape=(1, 32, 4), dtype="float32")
    whole = whole.model_copy(update={"outputs": (*whole.outputs, logits)})
    changed = changed.model_copy(update={"outputs": (*changed.outputs, logits)})
    _write(tmp_path, [[whole, changed]], rope)
    with pytest.raises(BadModel, match="encoding differs between graphs"):
        HtpSession(tmp_path, runner=Recorder(whole))
    with pytest.raises(BadModel, match="does not tell AR, CL and split"):
        emulation.graph_key("main_graph")


def test_describe_needs_every_split(tmp_path: Path) -> None:
    rope = {"default": testing.rope_table()}
    for index in (1, 3):
        graph = testing.graph_metadata(
            testing.graph_name(32, 128, index, splits=3), 32, 128, testing.SPLITS[3][index - 1]
        )
        (tmp_path / f"part_{index}_of_3.json").write_text(_binary([graph]).model_dump_json())
    with pytest.raises(BadModel, match="not the whole model"):
        emulation.describe(tmp_path, rope)
    graph = testing.graph_metadata("prompt_ar32_cl128_2_of_3", 32, 128, testing.SPLITS[3][1])
    (tmp_path / "part_2_of_3.json").write_text(_binary([graph], 43).model_dump_json())
    with pytest.raises(BadModel, match=r"different chips: \[43, 69\]"):
        emulation.describe(tmp_path, rope)
    (tmp_path / "part_2_of_3.json").write_text(_binary([graph]).model_dump_json())
    made = emulation.describe(tmp_path, rope)
    assert [part.file for part in made.parts] == [f"part_{k}_of_3.bin" for k in (1, 2, 3)]
    assert emulation.load(tmp_path) == made


@given(
    st.floats(-50, 50),
    st.floats(1e-4, 1.0),
    st.integers(-65535, 0),
    st.sampled_from(["uint8", "uint16"]),
)
def test_quantization_is_within_half_a_step_or_clipped(
    value: float, scale: float, offset: int, dtype: str
) -> None:
    tensor = TensorMetadata(name="x", shape=(1,), dtype=dtype, scale=scale, offset=offset)
    limits = np.iinfo(dtype)
    low, high = (limits.min + offset) * scale, (limits.max + offset) * scale
    back = float(dequantize(quantize(np.array([value]), tensor), tensor)[0])
    assert abs(back - min(max(value, low), high)) <= 0.5 * scale * (1 + 1e-6) + abs(back) * 1e-6


def test_htp_executor_conforms_row_by_row(tmp_path: Path) -> None:
    sizes = [(32, 128), (1, 128)]
    _, runner = _open(tmp_path, sizes)
    executor = HtpExecutor(tmp_path, runner=runner)
    assert isinstance(executor, ExecutorProtocol)

    # Passes of other sizes round 8-bit caches at other places.
    def close(expected: np.ndarray, got: np.ndarray) -> bool:
        return _decibels(expected, got) > 40

    conformance.rows_equal_each_alone(executor, close)
    conformance.wanted_places_are_those_of_all(executor)
    conformance.slots_truncate_grow_and_free(executor, close)
    conformance.copies_go_on_by_themselves(executor, close)
    conformance.refusals_leave_every_slot_alone(executor)
    conformance.a_tree_equals_each_of_its_chains(executor, close, chain_same=close)
    assert executor.cache_bytes(1) == executor.cache_bytes(128) > 0


def test_htp_executor_refuses_a_tree_when_no_graph_takes_it_in_one_pass(tmp_path: Path) -> None:
    _, runner = _open(tmp_path, [(1, 128)])
    executor = HtpExecutor(tmp_path, runner=runner)
    slot = executor.open()
    tree = Tree(np.array([0, 1]), np.tril(np.ones((2, 2), np.bool_)))
    with pytest.raises(BadInput, match="no graph takes a tree of 2 tokens"):
        executor.forward([Row(slot, IDS[:2], tree=tree)])
    assert executor.length(slot) == 0
