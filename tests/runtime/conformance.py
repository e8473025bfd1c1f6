"""What every executor owes, as checks that each one's own tests call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from genai_core.errors import BadInput
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse, Row, Tree, Want

Same = Callable[[np.ndarray, np.ndarray], bool]

bits: Same = np.array_equal


def tokens_for(executor: Executor, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, executor.vocab_size, count)


def alone(executor: Executor, tokens: np.ndarray) -> np.ndarray:
    """Logits of every token, in one pass of its own."""
    slot = executor.open()
    (output,) = executor.forward([Row(slot, tokens, want=Want.ALL)])
    executor.free(slot)
    return output.logits


def rows_equal_each_alone(
    executor: Executor, same: Same, sizes: Sequence[int] = (5, 1, 9, 2, 1)
) -> None:
    """Ragged rows side by side, over several passes, in changing order and company."""
    texts = [tokens_for(executor, 2 * size + 4, seed) for seed, size in enumerate(sizes)]
    expected = [alone(executor, text) for text in texts]
    slots = [executor.open() for _ in texts]
    got: list[list[np.ndarray]] = [[] for _ in texts]

    def run(members: list[int], counts: list[int]) -> None:
        rows = []
        for index, count in zip(members, counts, strict=True):
            start = executor.length(slots[index])
            rows.append(Row(slots[index], texts[index][start : start + count], want=Want.ALL))
        for index, output in zip(members, executor.forward(rows), strict=True):
            got[index].append(output.logits)

    run(list(range(len(sizes))), list(sizes))
    run([2, 0], [1, 1])
    run(list(range(len(sizes)))[::-1], [1] * len(sizes))
    run([1], [1])
    run([3, 1], [3, 1])
    for index, text in enumerate(texts):
        left = text.size - executor.length(slots[index])
        if left:
            run([index], [left])
        assert executor.length(slots[index]) == text.size
        assert same(expected[index], np.concatenate(got[index])), f"row {index} depends on others"
    for slot in slots:
        executor.free(slot)


def wanted_places_are_those_of_all(executor: Executor) -> None:
    text = tokens_for(executor, 6, 3)
    slots = [executor.open() for _ in range(3)]
    wants = [Want.ALL, Want.LAST, Want.NONE]
    hidden = executor.hidden_size > 0
    rows = [Row(s, text, want=w, hidden=hidden) for s, w in zip(slots, wants, strict=True)]
    every, last, none = executor.forward(rows)
    assert every.logits.shape == (6, executor.vocab_size)
    assert every.logits.dtype == np.float32
    np.testing.assert_array_equal(last.logits, every.logits[-1:])
    assert none.logits.shape == (0, executor.vocab_size)
    if hidden:
        assert every.hidden is not None
        assert last.hidden is not None
        assert every.hidden.shape == (6, executor.hidden_size)
        np.testing.assert_array_equal(last.hidden, every.hidden[-1:])
    (only,) = executor.forward([Row(slots[2], text[:1], want=Want.NONE)])
    assert only.logits.shape == (0, executor.vocab_size)
    assert only.hidden is None
    for slot in slots:
        executor.free(slot)


def slots_truncate_grow_and_free(executor: Executor, same: Same) -> None:
    text = tokens_for(executor, 8, 4)
    first, second = executor.open(), executor.open()
    assert first != second
    executor.grow(first, executor.context_length)
    executor.forward([Row(first, text), Row(second, text[:3])])
    executor.truncate(first, 4)
    executor.move(second, 2, [])
    assert (executor.length(first), executor.length(second)) == (4, 2)
    whole = alone(executor, text)
    again = executor.forward([Row(second, text[2:6]), Row(first, text[4:], want=Want.ALL)])
    assert same(whole[4:], again[1].logits)
    assert same(whole[5:6], again[0].logits)
    executor.free(first)
    with pytest.raises(BadInput, match="not open"):
        executor.length(first)
    fresh = executor.open()
    assert executor.length(fresh) == 0
    (output,) = executor.forward([Row(fresh, text, want=Want.ALL)])
    assert same(whole, output.logits), "a new slot remembers the one before it"
    executor.free(fresh)
    executor.free(second)


def copies_go_on_by_themselves(executor: Executor, same: Same) -> None:
    text, other = tokens_for(executor, 8, 9), tokens_for(executor, 4, 10)
    slot = executor.open()
    executor.forward([Row(slot, text)])
    copied, empty = executor.copy(slot, 4), executor.copy(slot, 0)
    assert len({slot, copied, empty}) == 3
    assert [executor.length(s) for s in (slot, copied, empty)] == [8, 4, 0]
    assert executor.slot_bytes(copied) >= executor.cache_bytes(4)
    (branch,) = executor.forward([Row(copied, other, want=Want.ALL)])
    executor.free(copied)
    (behind,) = executor.forward([Row(slot, other, want=Want.ALL)])
    assert same(alone(executor, np.concatenate([text[:4], other]))[4:], branch.logits)
    assert same(alone(executor, np.concatenate([text, other]))[8:], behind.logits)
    for length in (-1, 13):
        with pytest.raises(BadInput):
            executor.copy(slot, length)
    executor.free(slot)
    executor.free(empty)


def refusals_leave_every_slot_alone(executor: Executor) -> None:
    held = executor.open()
    other = executor.open()
    text = tokens_for(executor, 3, 5)
    executor.forward([Row(held, text), Row(other, text)])
    long = np.zeros(executor.context_length - 2, np.int64)
    good = Row(other, text)
    chain = Tree(np.arange(3, 6), np.tril(np.ones((3, 3), np.bool_)))
    loop = Tree(chain.positions, np.ones((3, 3), np.bool_))
    bad = [
        [],
        [good, Row(99, text)],
        [good, Row(other, text)],
        [good, Row(held, np.array([], np.int64))],
        [good, Row(held, np.array([executor.vocab_size]))],
        [good, Row(held, np.array([[1]]))],
        [good, Row(held, long)],
        [good, Row(held, text, adapters=(AdapterUse("nobody"),))],
        [good, Row(held, text, tree=loop)],
        [good, Row(held, text[:2], tree=chain)],
    ]
    if not executor.hidden_size:
        bad.append([good, Row(held, text, hidden=True)])
    if not executor.trees:
        bad.append([good, Row(held, text, tree=chain)])
    for rows in bad:
        with pytest.raises(BadInput):
            executor.forward(rows)
    changes: tuple[Callable[[], object], ...] = (
        lambda: executor.truncate(held, 4),
        lambda: executor.truncate(held, -1),
        lambda: executor.move(held, 1, [2, 1]),
        lambda: executor.move(held, 1, [0]),
        lambda: executor.move(held, 1, [3]),
        lambda: executor.grow(held, executor.context_length + 1),
        lambda: executor.free(99),
    )
    for change in changes:
        with pytest.raises(BadInput):
            change()
    assert (executor.length(held), executor.length(other)) == (3, 3)
    executor.free(held)
    executor.free(other)


def a_tree_equals_each_of_its_chains(executor: Executor, same: Same, *, chain_same: Same) -> None:
    """Root, two children of it, a child of each; then the second branch is kept.

    Args:
        same: For nodes of the tree: a masked sibling between two keys changes the order of sums.
        chain_same: For the chain beside it, and for the first branch, which has no sibling before.
    """
    prompt, nodes = tokens_for(executor, 7, 6), tokens_for(executor, 5, 7)
    parents = [-1, 0, 0, 1, 2]
    sees = np.eye(5, dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    tree = Tree(prompt.size + sees.sum(axis=1) - 1, sees)
    slot, neighbour = executor.open(), executor.open()
    executor.forward([Row(slot, prompt), Row(neighbour, prompt[:4])])
    beside, output = executor.forward(
        [Row(neighbour, prompt[4:]), Row(slot, nodes, want=Want.ALL, tree=tree)]
    )
    assert chain_same(alone(executor, prompt)[-1:], beside.logits)
    for node in range(5):
        chain = np.concatenate([prompt, nodes[sees[node]]])
        judge = chain_same if node < 2 else same
        assert judge(alone(executor, chain)[-1:], output.logits[node : node + 1]), f"node {node}"
    executor.move(slot, prompt.size + 1, [prompt.size + 2, prompt.size + 4])
    assert executor.length(slot) == prompt.size + 3
    behind = tokens_for(executor, 2, 8)
    (after,) = executor.forward([Row(slot, behind, want=Want.ALL)])
    chain = np.concatenate([prompt, nodes[[0, 2, 4]], behind])
    assert same(alone(executor, chain)[-2:], after.logits)
    executor.free(slot)
    executor.free(neighbour)
