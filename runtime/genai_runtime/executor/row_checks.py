"""The checks that every executor owes, before it changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Embeddings, Row, Tokens


def checked_rows(rows: Sequence[Row], executor: Executor) -> list[NDArray[np.int64]]:
    """The tokens of each row as int64, after the checks that every executor's `forward` owes.

    Raises:
        BadInput: No row; a slot twice or not open; tokens that are no vector of ids inside the
            vocabulary; more than the context holds; an adapter that is not there; hidden states,
            embeddings or a tree where there are none; a tree or embeddings that do not fit.
    """
    if not rows:
        raise BadInput("a pass needs at least one row")
    slots = [row.slot for row in rows]
    if len(set(slots)) != len(slots):
        twice = next(slot for slot in slots if slots.count(slot) > 1)
        raise BadInput("is in two rows of one pass", where=f"slot {twice}")
    checked = []
    limits = _TokenLimits(executor.context_length, executor.token_count)
    for row in rows:
        checked.append(checked_tokens(row.tokens, limits, executor.length(row.slot)))
        for use in row.adapters:
            if use.name not in executor.adapters:
                raise BadInput(
                    f"no such adapter; there are {sorted(executor.adapters) or 'none'}",
                    where=f"adapter {use.name}",
                )
        if row.hidden and not executor.hidden_size:
            raise BadInput("the model gives no hidden states out", where=f"slot {row.slot}")
        _check_states(row, checked[-1].size, executor)
        if row.tree is not None:
            _check_tree(row, checked[-1].size, executor)
        if row.embeddings is not None:
            _check_embeddings(row.embeddings, row, checked[-1].size, executor)
    return checked


@dataclass(frozen=True)
class _TokenLimits:
    context_length: int
    vocab_size: int


class TokenLimits(Protocol):
    """What tokens are checked against: an executor, or a session."""

    @property
    def context_length(self) -> int:
        """The most tokens of a sequence."""
        ...

    @property
    def vocab_size(self) -> int:
        """Ids lie below it."""
        ...


def checked_tokens(tokens: Tokens, limits: TokenLimits, length: int) -> NDArray[np.int64]:
    """The tokens as int64, if they can follow on a cache of `length` tokens.

    Raises:
        BadInput: They are no vector of integers, none at all, outside the vocabulary, or too many
            for the context.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise BadInput(
            f"expected a vector of token ids, got {array.dtype} {list(array.shape)}",
            remedy="pass at least one token, as integers",
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limits.vocab_size:
        raise BadInput(
            f"token id {low if low < 0 else high} is outside the vocabulary of {limits.vocab_size}",
            remedy="use the tokenizer of this model",
        )
    if length + array.size > limits.context_length:
        raise BadInput(
            f"{length} tokens in the cache and {array.size} new ones exceed the context "
            f"length of {limits.context_length}",
            remedy="shorten the prompt, or build for a longer context",
        )
    return array.astype(np.int64)


def checked_truncation(length: int, held: int) -> int:
    """The new length of a cache that holds `held` tokens.

    Raises:
        BadInput: It is negative or beyond the cache.
    """
    if not 0 <= length <= held:
        raise BadInput(f"cannot keep {length} of the {held} tokens in the cache")
    return length


def checked_places(start: int, places: Sequence[int], held: int) -> NDArray[np.intp]:
    """The places of `Executor.move` as an index, for a cache that holds `held` tokens.

    Raises:
        BadInput: See `Executor.move`.
    """
    index = np.asarray(places, dtype=np.intp).reshape(-1)
    chain = np.concatenate([[start - 1], index, [held]])
    if not 0 <= start <= held or (np.diff(chain) < 1).any():
        raise BadInput(
            f"places {list(places)[:8]} behind the first {start} tokens do not lie, ascending, in "
            f"a cache of {held}"
        )
    return index


def _check_states(row: Row, count: int, executor: Executor) -> None:
    where = f"slot {row.slot}"
    if row.states and not executor.states:
        raise BadInput("the model gives no states out", where=where)
    wanted = {name: (count, width) for name, width in executor.given.items()}
    given = {name: values.shape for name, values in row.given.items()}
    if wanted and not given:
        raise BadInput(
            f"the model reads {', '.join(wanted)} of another model beside tokens",
            where=where,
            remedy="an EAGLE head guesses for its model and is not run alone",
        )
    if wanted != given:
        raise BadInput(f"the model reads {wanted} beside tokens, got {given}", where=where)


def _check_embeddings(embeddings: Embeddings, row: Row, count: int, executor: Executor) -> None:
    where = f"slot {row.slot}: embeddings"
    places, values = embeddings.places, embeddings.values
    if not executor.embedding_size:
        raise BadInput("the model reads tokens alone", where=where)
    if values.shape != (places.size, executor.embedding_size):
        raise BadInput(
            f"{places.size} places have values {list(values.shape)}, the model's have the size "
            f"{executor.embedding_size}",
            where=where,
        )
    chain = np.concatenate([[-1], places, [count]])
    if (np.diff(chain) < 1).any():
        raise BadInput(f"their places do not lie, ascending, in {count} tokens", where=where)


def _check_tree(row: Row, count: int, executor: Executor) -> None:
    tree = row.tree
    assert tree is not None
    where = f"slot {row.slot}: tree"
    if not executor.trees:
        raise BadInput("this executor verifies chains only", where=where)
    if not 0 <= tree.prefixed <= count or (tree.prefixed and not executor.prefix):
        raise BadInput(
            f"{tree.prefixed} of {count} tokens are to see a prefix of {executor.prefix} places",
            where=where,
        )
    if tree.positions.shape != (count,) or tree.sees.shape != (count, count):
        raise BadInput(f"positions and mask are not those of {count} tokens", where=where)
    if int(tree.positions.min()) < 0 or int(tree.positions.max()) >= executor.context_length:
        raise BadInput("a position lies outside the context", where=where)
    if not tree.sees.diagonal().all() or np.triu(tree.sees, 1).any():
        raise BadInput("a token sees itself and earlier ones only", where=where)
