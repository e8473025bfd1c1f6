"""Embeddings in tokens' places: the numbers of a plain graph, for any chunks and neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_model
from numpy.typing import NDArray

from genai_core.container.vision_info import Preprocessing, VisionInfo
from genai_core.errors import BadInput
from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import CpuSession, open_executor
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.sessions import session_options
from genai_runtime.executor.rows import Embeddings, Row, Want
from genai_runtime.generate import generate
from genai_runtime.prefixes.cache import Held, common
from genai_runtime.rope import cos_sin
from genai_runtime.session import SlotSession, in_chunks
from genai_runtime.testing import ScriptedExecutor
from genai_runtime.vision.places import MarkedTokens, with_pictures

HIDDEN, LENGTH = 64, 40
EXACT = processor.saturates(processor.features())
PLACES = np.array([2, 3, 4, 9, 20, 21])


@pytest.fixture(scope="module", params=[Precision.FLOAT, Precision.INT8])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def executor(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuExecutor]:
    """Prepared graphs, which take embeddings."""
    cache = tmp_path_factory.mktemp("cache")
    with closing(
        open_executor(model, cache=cache, identity="x", context_length=64, threads=1, pictures=True)
    ) as opened:
        yield opened


def tokens(seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 512, LENGTH)


def pictures(seed: int = 0) -> Embeddings:
    values = np.random.default_rng(seed).normal(size=(PLACES.size, HIDDEN)).astype(np.float32)
    return Embeddings(PLACES, 0.05 * values)


def with_another_table(
    path: Path, ids: NDArray[np.int64], given: Embeddings
) -> NDArray[np.float32]:
    """Logits by plain ONNX Runtime of the container's own model, reading rows of its own table.

    The rows that stand for pictures lie behind those of the vocabulary, so that nothing of the
    graph is changed but the table.
    """
    proto = onnx.load(path, load_external_data=True)  # noqa: TID251 - a test's own file
    (gather,) = [n for n in proto.graph.node if n.op_type == "Gather" and "input_ids" in n.input]
    (table,) = [t for t in proto.graph.initializer if t.name == gather.input[0]]
    rows = onnx.numpy_helper.to_array(table)
    (after,) = [n for n in proto.graph.node if gather.output[0] in n.input][:1]
    widened = np.concatenate([np.asarray(rows, np.float32), given.values])
    table.CopyFrom(onnx.numpy_helper.from_array(widened, table.name))
    if rows.dtype == np.float16:
        assert after.op_type == "Cast"
    session = ort.InferenceSession(
        proto.SerializeToString(),
        session_options(1, exact=EXACT),
        providers=["CPUExecutionProvider"],
    )
    replaced = ids.copy()
    replaced[given.places] = len(rows) + np.arange(given.places.size)
    feeds = {
        "input_ids": replaced[None],
        "seqlens_k": np.array([ids.size - 1], np.int32),
        "total_sequence_length": np.array([ids.size], np.int32),
    }
    cos, sin = cos_sin(np.arange(ids.size), read_model(path).rope["default"])
    feeds |= {"cos_cache": cos, "sin_cache": sin}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            shape = [1, value.shape[1], ids.size, value.shape[3]]
            feeds[value.name] = np.zeros(shape, np.float32)
    logits: NDArray[np.float32] = session.run(["logits"], feeds)[0][0]
    return logits


def logits_of(
    executor: CpuExecutor, ids: NDArray[np.int64], given: Embeddings | None, cuts: list[int]
) -> NDArray[np.float32]:
    slot = executor.open()
    parts = []
    for start, stop in zip([0, *cuts], [*cuts, ids.size], strict=True):
        part = given and given.between(start, stop)
        row = Row(slot, ids[start:stop], want=Want.ALL, embeddings=part)
        parts.append(executor.forward([row])[0].logits)
    executor.free(slot)
    return np.concatenate(parts)


def test_a_pass_reads_embeddings_as_a_plain_graph_reads_rows_of_its_table(
    executor: CpuExecutor, model: Path
) -> None:
    expected = with_another_table(model, tokens(), pictures())
    found = logits_of(executor, tokens(), pictures(), [])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = logits_of(executor, tokens(), None, [])
    assert np.abs(found - plain).max() > 0.01, "they are read"
    np.testing.assert_array_equal(found[:2], plain[:2])


@pytest.mark.parametrize("cuts", [[3], [1, 4, 20, 21], list(range(1, LENGTH))])
def test_chunks_of_a_prompt_with_pictures_yield_the_same_bits(
    executor: CpuExecutor, cuts: list[int]
) -> None:
    whole = logits_of(executor, tokens(), pictures(), [])
    np.testing.assert_array_equal(logits_of(executor, tokens(), pictures(), cuts), whole)


def test_rows_with_and_without_pictures_keep_their_bits_beside_one_another(
    executor: CpuExecutor,
) -> None:
    wanted = [(tokens(1), pictures(1)), (tokens(2)[:7], None), (tokens(3), pictures(4))]
    alone = [logits_of(executor, ids, given, []) for ids, given in wanted]
    slots = [executor.open() for _ in wanted]
    rows = [
        Row(slot, ids, want=Want.ALL, embeddings=given)
        for slot, (ids, given) in zip(slots, wanted, strict=True)
    ]
    for expected, output in zip(alone, executor.forward(rows), strict=True):
        np.testing.assert_array_equal(output.logits, expected)
    for slot in slots:
        executor.free(slot)


def test_text_yields_the_bits_of_graphs_that_take_no_embeddings(
    executor: CpuExecutor, model: Path, tmp_path: Path
) -> None:
    with closing(
        open_executor(model, cache=tmp_path, identity="x", context_length=64, threads=1)
    ) as plain:
        assert (plain.embedding_size, executor.embedding_size) == (0, HIDDEN)
        for cuts in ([], [5], [1, 2, 3]):
            np.testing.assert_array_equal(
                logits_of(executor, tokens(), None, cuts), logits_of(plain, tokens(), None, cuts)
            )


def test_a_session_without_a_cache_reads_them_likewise(executor: CpuExecutor, model: Path) -> None:
    whole = logits_of(executor, tokens(), pictures(), [])
    with closing(CpuSession(model, context_length=64, threads=1, pictures=True)) as session:
        parts = list(in_chunks(session, tokens(), pictures()))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        made = generate(session, tokens(), max_tokens=1, embeddings=pictures())
        assert made.tokens[0] == int(whole[-1].argmax())
        again = generate(session, tokens(), max_tokens=1, kept=3, embeddings=pictures())
        assert again.tokens == made.tokens, "the first picture is in the cache in part"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Embeddings(np.array([1]), np.zeros((1, 5), np.float32)), r"values \[1, 5\], the model's"),
        (Embeddings(np.array([1]), np.zeros((2, HIDDEN), np.float32)), r"1 places have values \[2"),
        (Embeddings(np.array([LENGTH]), np.zeros((1, HIDDEN), np.float32)), "do not lie, ascend"),
        (Embeddings(np.array([3, 3]), np.zeros((2, HIDDEN), np.float32)), "do not lie, ascending"),
        (Embeddings(np.array([-1]), np.zeros((1, HIDDEN), np.float32)), "do not lie, ascending"),
    ],
)
def test_a_pass_refuses_embeddings_that_do_not_fit(
    executor: CpuExecutor, given: Embeddings, told: str
) -> None:
    slot = executor.open()
    with pytest.raises(BadInput, match=told):
        executor.forward([Row(slot, tokens(), embeddings=given)])
    assert executor.length(slot) == 0
    executor.free(slot)


def test_a_pass_refuses_embeddings_where_none_are_read() -> None:
    executor = ScriptedExecutor()
    with pytest.raises(BadInput, match="reads tokens alone"):
        executor.forward([Row(executor.open(), np.array([1, 2]), embeddings=pictures())])


INFO = VisionInfo(
    image_token="<image>",
    image_token_id=7,
    in_vocabulary=True,
    input="a",
    output="b",
    tokens=None,
    hidden_size=2,
    preprocessing=Preprocessing(
        size=(1, 1), resample="box", scale=1, mean=(0, 0, 0), std=(1, 1, 1)
    ),
)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[MarkedTokens, list[NDArray[np.float32]]]:
    texts = draw(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=4))
    ids: list[int] = []
    marks, encoded = [], []
    for number, text in enumerate(texts):
        if number:
            marks.append(len(ids))
            ids.append(7)
            kind = draw(st.integers(0, 2))
            encoded.append(np.full((draw(st.integers(1, 3)), 2), kind, np.float32))
        ids += text
    return MarkedTokens(np.array(ids, np.int64), tuple(marks)), encoded


@given(prompts(), prompts())
def test_common_is_as_long_as_what_two_prompts_read_is_equal(
    one: tuple[MarkedTokens, list[NDArray[np.float32]]],
    other: tuple[MarkedTokens, list[NDArray[np.float32]]],
) -> None:
    """Never longer than the reading is equal, and no shorter than to the picture that differs."""
    read = [with_pictures(*prompt, INFO, where="a") for prompt in (one, other)]
    seen: list[list[object]] = []
    for prompt in read:
        found: list[object] = list(prompt.tokens.tolist())
        if prompt.embeddings is not None:
            for place, value in zip(
                prompt.embeddings.places.tolist(), prompt.embeddings.values, strict=True
            ):
                found[place] = ("picture", *value.tolist())
        seen.append(found)
    equal = next(
        (n for n, (a, b) in enumerate(zip(*seen, strict=False)) if a != b), min(map(len, seen))
    )
    shared = common(read[0].tokens, read[1].tokens, (read[0].pictures, read[1].pictures))
    assert shared <= equal
    starts = [0] + [place for prompt in read for place, _ in prompt.pictures]
    assert shared == equal or shared in starts
    assert Held(0, None, read[0].tokens, read[0].pictures).shared(
        Held(1, None, read[1].tokens, read[1].pictures)
    ) == shared  # fmt: skip


@given(prompts())
def test_with_pictures_puts_each_into_its_places(
    prompt: tuple[MarkedTokens, list[NDArray[np.float32]]],
) -> None:
    marked, encoded = prompt
    read = with_pictures(marked, encoded, INFO, where="a")
    assert read.tokens.size == marked.tokens.size - len(encoded) + sum(map(len, encoded))
    kept = np.delete(marked.tokens, marked.marks)
    places = np.zeros(0, np.int64) if read.embeddings is None else read.embeddings.places
    np.testing.assert_array_equal(np.delete(read.tokens, places), kept)
    if read.embeddings is not None:
        np.testing.assert_array_equal(read.embeddings.values, np.concatenate(encoded))
        assert set(read.tokens[places].tolist()) == {7}
    with pytest.raises(BadInput, match=f"{len(encoded) + 1} .* for {len(encoded)} <image>"):
        with_pictures(marked, [*encoded, np.zeros((1, 2), np.float32)], INFO, where="a")


def test_scripted_sessions_tell_pictures_apart() -> None:
    session = SlotSession(ScriptedExecutor(embedding_size=2))
    one = Embeddings(np.array([1]), np.ones((1, 2), np.float32))
    other = Embeddings(np.array([1]), np.zeros((1, 2), np.float32))
    first = session.forward_embedded(np.array([1, 0, 3]), one)
    session.reset()
    assert (first != session.forward_embedded(np.array([1, 0, 3]), other)).any()
