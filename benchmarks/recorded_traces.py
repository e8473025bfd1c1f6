"""Texts that answers follow, an executor that is held to them, and guesses of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Row, RowOutput
from genai_runtime.speculation.method import Draft
from genai_runtime.tokenizer import TextTokenizer

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
PROMPT, ANSWER = 320, 160
"""Tokens."""
RIGHT = 0.8
"""Probability that a scripted guess is the trace's token."""


class Forced:
    """An executor whose logits follow a trace: [slot's first tokens] -> the whole text.

    Attributes:
        texts: Prompt and answer of each request, told apart by their prompts.
    """

    def __init__(self, executor: Executor, texts: Sequence[np.ndarray]) -> None:
        self._executor = executor
        self._texts = {text[:PROMPT].tobytes(): text for text in texts}
        self._held: dict[int, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def open(self) -> int:
        """A slot of which the text is kept."""
        slot = self._executor.open()
        self._held[slot] = []
        return slot

    def truncate(self, slot: int, length: int) -> None:
        """Also of the text."""
        del self._held[slot][length:]
        self._executor.truncate(slot, length)

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        """A real pass, whose logits are bent."""
        outputs = self._executor.forward(rows)
        for row, output in zip(rows, outputs, strict=True):
            held = self._held[row.slot]
            held += [int(token) for token in row.tokens]
            count = row.want.count(len(row.tokens))
            if not count:
                continue
            text = self._texts[np.asarray(held[:PROMPT], np.int64).tobytes()]
            for place in range(count):
                # Behind a wrong guess any token will do: nobody takes it.
                behind = len(held) - count + place + 1
                output.logits[place, text[min(behind, text.size - 1)]] = 1e4
        return outputs


class Scripted:
    """Guesses the trace, each token wrong with a probability."""

    name = "scripted"
    free = True

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def __init__(self, texts: Sequence[np.ndarray]) -> None:
        self._texts = {text[:PROMPT].tobytes(): text for text in texts}
        self._random = np.random.default_rng(0)
        self._known: dict[int, tuple[np.ndarray, int]] = {}

    def start(self, key: int, tokens: Sequence[int], foresee: Any = None) -> None:
        """Find its trace."""
        self._known[key] = (self._texts[np.asarray(tokens, np.int64).tobytes()], PROMPT)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """The trace, with errors."""
        drafts = {}
        for key, count in wanted.items():
            text, place = self._known[key]
            right = self._random.random(count) < RIGHT
            guesses = np.where(right, text[place : place + count], 1)
            drafts[key] = Draft(tuple(int(guess) for guess in guesses))
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Any = None) -> None:
        """Go on."""
        text, place = self._known[key]
        self._known[key] = (text, place + len(tokens))

    def finish(self, key: int) -> None:
        """Forget it."""
        self._known.pop(key, None)

    def cache_bytes(self, tokens: int) -> int:
        """None."""
        return 0

    def close(self) -> None:
        """Forget all."""
        self._known.clear()


def traces(kind: str, count: int) -> list[np.ndarray]:
    """Texts of PROMPT + ANSWER tokens."""
    tokenizer = TextTokenizer.of_folder(EXAMPLE)
    assert tokenizer is not None
    made = []
    if kind == "edit":
        files = sorted((ROOT / "runtime" / "genai_runtime").glob("*.py"))
        for path in files:
            tokens = tokenizer.encode(path.read_text(encoding="utf-8"), special=False)
            source = tokenizer.decode(tokens[-PROMPT:].tolist())
            edited = re.sub(r"\b(tokens|slot|path|name)\b", lambda m: m[0] + "_new", source)
            prompt = tokenizer.encode(source, special=False)[-PROMPT:]
            answer = tokenizer.encode(edited, special=False)[:ANSWER]
            if prompt.size == PROMPT and answer.size == ANSWER:
                made.append(np.concatenate([prompt, answer]))
    else:
        text = "".join(p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("docs/*.md")))
        tokens = tokenizer.encode(text, special=False)
        made = [
            tokens[start : start + PROMPT + ANSWER]
            for start in range(0, tokens.size - PROMPT - ANSWER, 4 * (PROMPT + ANSWER))
        ]
    return made[:count]
