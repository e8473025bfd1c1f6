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

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights
from genai_runtime.executor.rows import Row, RowOutput


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

    @property
    def embedding_size(self) -> int:
        """Width of the embeddings that may stand in tokens' places; 0 = none may."""
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
