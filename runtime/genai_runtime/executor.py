"""What runs a model for several sequences: slots, and passes over rows of any length.

A slot is one sequence with its key/value cache. A pass takes rows, one a slot: a chunk of a prompt,
the next token, a draft to verify. The rows of a pass lie behind one another (packed, nothing is
padded), and what a row yields depends on its own slot alone.

    slot = executor.open()
    first = executor.forward([Row(slot, prompt)])[0].logits[0]      # [V], behind the last token
    both = executor.forward([Row(slot, next_token), Row(other, chunk, want=Want.NONE)])
    executor.truncate(slot, 5)
    executor.free(slot)
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput

Tokens = NDArray[np.integer]
"""Token ids, [T], any integer dtype."""

Logits = NDArray[np.float32]
"""[W, V]; row i is the model's opinion of the token that follows the i-th wanted one."""


class Want(enum.Enum):
    """The places of a row whose logits (and hidden states) are wanted."""

    NONE = "none"
    LAST = "last"
    ALL = "all"

    def count(self, tokens: int) -> int:
        """W, of a row of so many tokens."""
        return {Want.NONE: 0, Want.LAST: 1, Want.ALL: tokens}[self]


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that a row wears.

    Attributes:
        name: As the executor lists it.
        alpha: What its branch is multiplied by.
    """

    name: str
    alpha: float = 1.0


class AdapterWeights:
    """One adapter in memory.

    Attributes:
        rank: The largest of its branches.
        branches: Linear -> A [in, rank], B [rank, out], float32.
    """

    def __init__(
        self, branches: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> None:
        self.branches = branches
        self.rank = max((int(a.shape[1]) for a, _ in branches.values()), default=0)


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter takes.

    Attributes:
        rank: The largest of its branches.
        sizes: Linear -> what it takes and gives.
        bytes: Of its matrices.
    """

    rank: int
    sizes: Mapping[str, tuple[int, int]]
    bytes: int

    @classmethod
    def of(cls, weights: AdapterWeights) -> AdapterShape:
        """Of an adapter in memory."""
        pairs = weights.branches.items()
        sizes = {name: (int(a.shape[0]), int(b.shape[1])) for name, (a, b) in pairs}
        return cls(weights.rank, sizes, sum(a.nbytes + b.nbytes for _, (a, b) in pairs))


class NoRoom(BadInput):
    """Adapters want more columns or memory than there are."""

    code = "NoRoom"


@dataclass(frozen=True)
class Tree:
    """How the tokens of a row relate where they are no chain: a tree of drafts to verify.

    A node's numbers are those of its chain to rounding, not to the bit: hidden tokens that stand
    between its ancestors change the order of sums. Rows beside a tree keep their bits.

    Attributes:
        positions: [T] places in the text; those of siblings are equal.
        sees: bool [T, T]; token i attends to token j of this row, itself included, never to a
            later one. All of the slot's earlier tokens are seen.
        prefixed: So many of the row's tokens, the last ones, also see the executor's trained
            prefix. Neither they nor the prefix stay in the slot.
    """

    positions: NDArray[np.integer]
    sees: NDArray[np.bool_]
    prefixed: int = 0


@dataclass(frozen=True)
class Row:
    """What one slot does in a pass.

    Attributes:
        slot: Whose cache it reads, and appends to.
        tokens: [T], T >= 1.
        want: The places that yield logits.
        hidden: Yield the hidden states of these places too.
        adapters: What the row wears; nothing is the base.
        tree: Only where the tokens are no chain.
        states: Yield the states that the executor names, of every token.
        given: What its model reads beside the tokens, by name, float32 [T, width].
    """

    slot: int
    tokens: Tokens
    want: Want = Want.LAST
    hidden: bool = False
    adapters: tuple[AdapterUse, ...] = ()
    tree: Tree | None = None
    states: bool = False
    given: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class RowOutput:
    """What a row yields. The arrays belong to the caller.

    Attributes:
        logits: float32 [W, V].
        hidden: float32 [W, H], the states that the output layer reads; None unless asked for.
        states: float32 [T, S], the executor's `states` beside one another; likewise.
    """

    logits: Logits
    hidden: NDArray[np.float32] | None = None
    states: NDArray[np.float32] | None = None


@runtime_checkable
class Executor(Protocol):
    """Slots and passes over them. Not thread safe."""

    @property
    def context_length(self) -> int:
        """The most tokens that a slot can hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the last axis of the logits."""
        ...

    @property
    def token_count(self) -> int:
        """Ids of rows lie below it: rows of the embedding table.

        V, but where a head guesses from a smaller vocabulary, or behind the text's tokens stand
        those that a model forecasts with.
        """
        ...

    @property
    def hidden_size(self) -> int:
        """H of the hidden states; 0 where the model does not give them out."""
        ...

    @property
    def adapters(self) -> frozenset[str]:
        """What a row may wear."""
        ...

    @property
    def trees(self) -> bool:
        """Whether a row may be a tree."""
        ...

    @property
    def prefix(self) -> int:
        """Places of trained keys and values that tokens of a tree may see; 0 = there are none."""
        ...

    @property
    def states(self) -> Mapping[str, int]:
        """States that the model gives out by name, and their widths; in the order of an output's.

        A container built with an EAGLE head has the hidden states that the head reads.
        """
        ...

    @property
    def given(self) -> Mapping[str, int]:
        """What the model reads beside tokens, and the widths: an EAGLE head's hidden states."""
        ...

    def cache_bytes(self, tokens: int) -> int:
        """Memory that a slot of so many tokens occupies."""
        ...

    def open(self) -> int:
        """A new slot, empty; its number is not that of any other open slot."""
        ...

    def copy(self, slot: int, length: int) -> int:
        """A new slot that holds the first `length` tokens of another, which stays as it is.

        Raises:
            BadInput: The length is negative or beyond what the slot holds.
        """
        ...

    def slot_bytes(self, slot: int) -> int:
        """Memory that a slot occupies now: by the most tokens that it had, not by its length."""
        ...

    def length(self, slot: int) -> int:
        """Tokens in a slot.

        Raises:
            BadInput: It is not open; so for all that take a slot.
        """
        ...

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        """One pass: append each row's tokens to its slot; outputs in the order of the rows.

        Raises:
            BadInput: See `checked_rows`. Every slot is then as it was.
        """
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a slot.

        Raises:
            BadInput: It is negative or beyond what the slot holds.
        """
        ...

    def grow(self, slot: int, tokens: int) -> None:
        """Make room for so many tokens at once, instead of bit by bit as they come.

        Raises:
            BadInput: The context length would be exceeded.
        """
        ...

    def move(self, slot: int, start: int, places: Sequence[int]) -> None:
        """Keep the first `start` tokens and behind them those at `places` (ascending, >= start).

        What a verified tree leaves: the accepted nodes, wherever they stood.

        Raises:
            BadInput: The places are not ascending, or outside what the slot holds.
        """
        ...

    def free(self, slot: int) -> None:
        """Close a slot and give its memory back."""
        ...

    def close(self) -> None:
        """Give everything back; the executor is unusable afterwards."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """An executor whose adapters come and go. Not while a pass runs, but for `fill_adapter`."""

    @property
    def adapter_columns(self) -> tuple[int, int]:
        """Ranks of all adapters together, at most; and what is left of that."""
        ...

    @property
    def adapter_bytes(self) -> int:
        """Memory of all columns, taken whether an adapter has them or not."""
        ...

    def check_adapter(self, name: str, shape: AdapterShape) -> None:
        """Whether an adapter could be taken in if no other were there.

        Raises:
            NoRoom: It has more ranks than there are columns.
            BadInput: It touches linears that have no branch here, or that have another size.
        """
        ...

    def reserve_adapters(self, ranks: Mapping[str, int]) -> None:
        """Columns for adapters, side by side in this order; rows may not wear them yet.

        Raises:
            NoRoom: So many are not free side by side. Nothing has changed then.
            BadInput: A name is taken.
        """
        ...

    def fill_adapter(self, name: str, weights: AdapterWeights) -> None:
        """Lay an adapter into its columns, also while passes run; rows may wear it from now on."""
        ...

    def load_adapter(self, name: str, weights: AdapterWeights) -> None:
        """All three at once.

        Raises:
            BadInput: The name is taken, there is no room, or it does not fit the model.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Let an adapter, or its columns, go; no row wears it any more.

        Raises:
            BadInput: It is not there.
        """
        ...


@runtime_checkable
class KeyValueHost(Protocol):
    """An executor whose keys and values may be read out of a slot and laid into another."""

    @property
    def numerics(self) -> Mapping[str, Any]:
        """What keys and values depend on to the bit, beside model, tokens and adapters; JSON."""
        ...

    def keys_values(self, slot: int) -> list[NDArray[np.float32]]:
        """What a slot holds, by cache tensor [heads, tokens, width].

        These are no copies. They stay as they are, and in memory, as long as somebody holds them,
        whatever becomes of the slot, unless it is truncated below its length and read on.
        """
        ...

    def lay_in(self, slot: int, values: Sequence[NDArray[np.float32]]) -> None:
        """Append keys and values that were read out elsewhere to a slot.

        Args:
            slot: Open.
            values: As `keys_values` has them, of the tokens that follow on what it holds.

        Raises:
            BadInput: The context length would be exceeded.
        """
        ...


_S = TypeVar("_S")


@dataclass
class SlotTable(Generic[_S]):
    """The open slots of an executor, by number. A freed number is used again, the lowest first."""

    open_slots: dict[int, _S] = field(default_factory=dict)

    def add(self, slot: _S) -> int:
        """File a slot under a free number."""
        number = next(n for n in range(len(self.open_slots) + 1) if n not in self.open_slots)
        self.open_slots[number] = slot
        return number

    def __getitem__(self, number: int) -> _S:
        """The slot of a number.

        Raises:
            BadInput: It is not open.
        """
        try:
            return self.open_slots[number]
        except KeyError:
            raise BadInput("is not open", where=f"slot {number}") from None

    def pop(self, number: int) -> _S:
        """Take a slot out.

        Raises:
            BadInput: It is not open.
        """
        slot = self[number]
        del self.open_slots[number]
        return slot


def checked_rows(rows: Sequence[Row], executor: Executor) -> list[NDArray[np.int64]]:
    """The tokens of each row as int64, after the checks that every executor's `forward` owes.

    Raises:
        BadInput: No row; a slot twice or not open; tokens that are no vector of ids inside the
            vocabulary; more than the context holds; an adapter that is not there; hidden states or
            a tree where there are none; a tree whose parts do not fit.
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
