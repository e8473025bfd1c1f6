"""An executor and a session that need no model, for tests of whatever drives one."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_runtime.executor.adapter_weights import AdapterShape, NoRoom
from genai_runtime.executor.row_checks import checked_places, checked_rows, checked_truncation
from genai_runtime.executor.rows import AdapterUse, Logits, Row, RowOutput, Tokens, Tree
from genai_runtime.executor.slot_table import SlotTable
from genai_runtime.session import SlotSession

_MODULUS = 257
_PREFIXED = 100
"""Stands for a trained prefix in a state."""


class ScriptedExecutor:
    """Logits that depend on a slot's whole history through a small recurrent sum.

    Row i depends on tokens 0 .. i of its slot, on what each of them wore when it was read, and on
    nothing else, so chunks, neighbours, truncation and resetting must give what one pass gives, as
    with a real model. Its hidden state is that sum.

    Args:
        vocab_size: V.
        context_length: Of each slot.
        seed: Of the table that maps states to logits.
        adapters: What rows may wear; another state for each name and alpha.
        trees: Take trees: a token's state is then that of the tokens it sees.
        states: Give the state of every token out.
        forecasts: Ids behind the vocabulary that rows may have too.
        prefix: Places of a trained prefix: who sees it has another state.
        embedding_size: Of what may stand in tokens' places, which has another state.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 17,
        context_length: int = 64,
        seed: int = 0,
        adapters: Collection[str] = (),
        trees: bool = False,
        states: bool = False,
        forecasts: int = 0,
        prefix: int = 0,
        embedding_size: int = 0,
    ) -> None:
        random = np.random.default_rng(seed)
        self._adapters = set(adapters)
        self._reserved: set[str] = set()
        self._contents: dict[str, str] = {}
        self.most_adapters = 8
        self._trees = trees
        self._states = states
        self._forecasts, self._prefix = forecasts, prefix
        self._embedding_size = embedding_size
        self._table: NDArray[np.float64] = random.normal(size=(_MODULUS, vocab_size))
        self._context_length = context_length
        self._slots: SlotTable[list[tuple[int, int]]] = SlotTable()
        self.passes: list[dict[int, int]] = []
        """Slot -> tokens, of each call of `forward`."""
        self.closed = False

    @property
    def context_length(self) -> int:
        """The most tokens of a slot."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Last axis of the logits."""
        return int(self._table.shape[1])

    @property
    def hidden_size(self) -> int:
        """One number."""
        return 1

    @property
    def adapters(self) -> frozenset[str]:
        """As given, and as they came and went."""
        return frozenset(self._adapters)

    @property
    def adapter_columns(self) -> tuple[int, int]:
        """Of rank 1, as many as `most_adapters`."""
        return self.most_adapters, self.most_adapters - len(self._adapters | self._reserved)

    @property
    def adapter_bytes(self) -> int:
        """None."""
        return 0

    def check_adapter(self, name: str, shape: AdapterShape) -> None:
        """Any may come."""

    def reserve_adapters(self, ranks: Mapping[str, int]) -> None:
        """A place for each."""
        taken = self._adapters | self._reserved
        if taken & set(ranks):
            raise BadInput("is loaded already", where=f"adapter {min(taken & set(ranks))}")
        if len(taken) + len(ranks) > self.most_adapters:
            raise NoRoom("there is no room", where=f"adapter {min(ranks)}")
        self._reserved.update(ranks)

    def fill_adapter(self, name: str, weights: object) -> None:
        """Know one more; a text is its content, and else its name."""
        assert name in self._reserved
        self._contents[name] = weights if isinstance(weights, str) else name
        self._reserved.discard(name)
        self._adapters.add(name)

    def load_adapter(self, name: str, weights: object) -> None:
        """Know one more."""
        self.reserve_adapters({name: 1})
        self.fill_adapter(name, weights)

    def unload_adapter(self, name: str) -> None:
        """Know one less."""
        if name not in self._adapters | self._reserved:
            raise BadInput("is not loaded", where=f"adapter {name}")
        self._adapters.discard(name)
        self._reserved.discard(name)
        self._contents.pop(name, None)

    @property
    def trees(self) -> bool:
        """As given."""
        return self._trees

    @property
    def token_count(self) -> int:
        """As many as there are logits, and those to forecast with."""
        return self.vocab_size + self._forecasts

    @property
    def prefix(self) -> int:
        """As given."""
        return self._prefix

    @property
    def states(self) -> Mapping[str, int]:
        """The sum behind each token, where asked for."""
        return {"sum": 1} if self._states else {}

    @property
    def given(self) -> Mapping[str, int]:
        """Tokens alone."""
        return {}

    @property
    def embedding_size(self) -> int:
        """As given."""
        return self._embedding_size

    @property
    def open_slots(self) -> frozenset[int]:
        """Numbers of the slots that are open."""
        return frozenset(self._slots.open_slots)

    def cache_bytes(self, tokens: int) -> int:
        """A byte a token."""
        return tokens

    def open(self) -> int:
        """An empty slot."""
        return self._slots.add([])

    def copy(self, slot: int, length: int) -> int:
        """A new slot with the first tokens of another."""
        held = self._slots[slot]
        return self._slots.add(held[: checked_truncation(length, len(held))])

    def slot_bytes(self, slot: int) -> int:
        """A byte a token."""
        return len(self._slots[slot])

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        return len(self._slots[slot])

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        """Append tokens; logits of the wanted ones."""
        checked = checked_rows(rows, self)
        self.passes.append({row.slot: t.size for row, t in zip(rows, checked, strict=True)})
        outputs = []
        for row, tokens in zip(rows, checked, strict=True):
            held, states = self._slots[row.slot], []
            start = len(held)
            prefixed = 0 if row.tree is None else row.tree.prefixed
            for place, token in enumerate(_read(row, tokens)):
                held.append((token, self._worn(row.adapters)))
                seen = held
                if row.tree is not None:
                    sees = row.tree.sees[place]
                    seen = held[:start] + [
                        item for item, there in zip(held[start:], sees, strict=False) if there
                    ]
                sees_prefix = place >= len(tokens) - prefixed
                states.append(_state([*seen, (_PREFIXED, 0)] if sees_prefix else seen))
            del held[len(held) - prefixed :]
            wanted = np.asarray(states[len(states) - row.want.count(tokens.size) :], dtype=np.intp)
            outputs.append(
                RowOutput(
                    self._table[wanted].astype(np.float32),
                    wanted.astype(np.float32)[:, None] if row.hidden else None,
                    np.asarray(states, np.float32)[:, None] if row.states else None,
                )
            )
        return outputs

    def _worn(self, adapters: Sequence[AdapterUse]) -> int:
        contents = [(self._contents.get(use.name, use.name), use.alpha) for use in adapters]
        return sum(zlib.crc32(text.encode()) + round(97 * alpha) for text, alpha in contents)

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens."""
        held = self._slots[slot]
        del held[checked_truncation(length, len(held)) :]

    def grow(self, slot: int, tokens: int) -> None:
        """Only checks: a list grows by itself."""
        if tokens > self._context_length:
            raise BadInput(f"the context length is {self._context_length}", where=f"slot {slot}")

    def move(self, slot: int, start: int, places: Sequence[int]) -> None:
        """Keep the first tokens and those at `places`."""
        held = self._slots[slot]
        kept = [held[place] for place in checked_places(start, places, len(held))]
        held[start:] = kept

    numerics: Mapping[str, Any] = {"scripted": 1}

    def keys_values(self, slot: int) -> list[NDArray[np.float32]]:
        """Tokens and what they wore, as bytes of one head."""
        held = np.array(self._slots[slot], np.int64).reshape(1, -1, 2)
        return [held.view(np.float32)]

    def lay_in(self, slot: int, values: Sequence[NDArray[np.float32]]) -> None:
        """Append what was read out elsewhere."""
        pairs = np.ascontiguousarray(values[0]).view(np.int64)[0].tolist()
        self.grow(slot, self.length(slot) + len(pairs))
        self._slots[slot].extend((token, worn) for token, worn in pairs)

    def free(self, slot: int) -> None:
        """Close a slot."""
        self._slots.pop(slot)

    def close(self) -> None:
        """Remember that it was called."""
        self.closed = True


def _read(row: Row, tokens: NDArray[np.int64]) -> list[int]:
    """What stands in each place: a token, or a number of the embedding there."""
    found = [int(token) for token in tokens]
    if row.embeddings is not None:
        for place, value in zip(row.embeddings.places, row.embeddings.values, strict=True):
            found[int(place)] = zlib.crc32(value.tobytes())
    return found


def _state(held: Sequence[tuple[int, int]]) -> int:
    state = 1
    for token, worn in held:
        state = (state * 31 + token + 7 + worn) % _MODULUS
    return state


class ScriptedSession(SlotSession):
    """A slot of a `ScriptedExecutor`; same arguments."""

    def __init__(self, *, vocab_size: int = 17, context_length: int = 64, seed: int = 0) -> None:
        self._scripted = ScriptedExecutor(
            vocab_size=vocab_size, context_length=context_length, seed=seed
        )
        super().__init__(self._scripted)
        self.passes: list[int] = []
        """Tokens of each call of `forward`."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._scripted.closed

    def forward(self, tokens: Tokens, tree: Tree | None = None) -> Logits:
        """Append tokens; logits of each."""
        logits = super().forward(tokens, tree)
        self.passes.append(logits.shape[0])
        return logits
