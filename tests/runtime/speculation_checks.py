"""What every method of speculation owes, as checks that each one's own tests call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Row, Tokens, Tree, Want
from genai_runtime.generate import Generation, generate
from genai_runtime.sampling import Sampling
from genai_runtime.session import SlotSession
from genai_runtime.speculation.control import Counts, Room, Speculation
from genai_runtime.speculation.method import Draft, Foresee, Method

MakeExecutor = Callable[[], Executor]
MakeMethod = Callable[[], Method]


class Forced:
    """Guesses what it is told: an answer that is known, wrong from given places of it on.

    Args:
        answer: What plain decoding writes.
        wrong: Places of the answer at which a guess is another token.
        vocab_size: V.
    """

    name = "forced"
    free = True

    def branch_tokens(self, guesses: int) -> int:
        return 0

    def __init__(
        self, answer: Sequence[int], wrong: Sequence[int] = (), *, vocab_size: int
    ) -> None:
        self.answer, self.wrong, self.vocab_size = list(answer), set(wrong), vocab_size
        self.written = 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        self.written = 0

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        (key, count), *_ = wanted.items()
        guesses = []
        for place in range(self.written, min(self.written + count, len(self.answer))):
            off = place in self.wrong
            guesses.append((self.answer[place] + off) % self.vocab_size)
        return {key: Draft(tuple(guesses))} if guesses else {}

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        self.written += len(tokens)

    def finish(self, key: int) -> None:
        pass

    def cache_bytes(self, tokens: int) -> int:
        return 0

    def close(self) -> None:
        pass


class Recorded(SlotSession):
    """A session that keeps the logits behind each token that it holds now."""

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor)
        self.logits: list[np.ndarray] = []
        self.passes = 0

    def reset(self) -> None:
        super().reset()
        self.logits = []

    def forward(self, tokens: Tokens, tree: Tree | None = None) -> Logits:
        logits = super().forward(tokens, tree)
        self.logits += list(logits)
        self.passes += 1
        return logits

    def truncate(self, length: int) -> None:
        super().truncate(length)
        del self.logits[length:]


def text(executor: Executor, count: int, seed: int) -> np.ndarray:
    """Random tokens that repeat themselves, so that lookups have something to find."""
    piece = np.random.default_rng(seed).integers(0, executor.vocab_size, count)
    return np.concatenate([piece, piece[: count // 2], piece])


def ran(
    executor: Executor, prompt: np.ndarray, method: Method | None, *, most: int = 4, **given: Any
) -> tuple[Generation, Recorded]:
    session = Recorded(executor)
    speculation = None if method is None else Speculation(method, most=most, adaptive=False)
    result = generate(session, prompt, speculation=speculation, **given)
    return result, session


def spent(result: Generation) -> Counts:
    """What came of the drafts of an answer."""
    assert result.metrics.speculation is not None
    return result.metrics.speculation


def conforms(
    executor_of: MakeExecutor,
    method_of: MakeMethod,
    *,
    tokens: int = 24,
    prompt_of: Callable[[int], np.ndarray] | None = None,
) -> int:
    """Greedy and sampled answers, logits and cache are those of plain decoding, to the bit.

    Args:
        executor_of: The target, with empty slots.
        method_of: The method, new.
        tokens: Of an answer.
        prompt_of: Seed -> a prompt; random tokens unless given.

    Returns:
        Guesses that were accepted in all of it.
    """
    accepted = 0
    settings = [
        Sampling(),
        Sampling(temperature=0.8, seed=3),
        Sampling(temperature=1.0, top_k=5, top_p=0.9, seed=4),
        Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
    ]
    for seed, sampling in enumerate(settings):
        prompt = prompt_of(seed) if prompt_of else text(executor_of(), 9 + seed, seed)
        plain, alone = ran(executor_of(), prompt, None, max_tokens=tokens, sampling=sampling)
        result, session = ran(
            executor_of(), prompt, method_of(), max_tokens=tokens, sampling=sampling
        )
        assert result.tokens == plain.tokens, sampling
        accepted += spent(result).accepted
        assert session.length == alone.length == prompt.size + tokens - 1
        assert session.passes == alone.passes - spent(result).accepted
        for place, (here, there) in enumerate(zip(session.logits, alone.logits, strict=True)):
            np.testing.assert_array_equal(here, there, err_msg=f"token {place}")
        # What is in the cache now answers as that of plain decoding does.
        behind = text(executor_of(), 3, 9)
        np.testing.assert_array_equal(session.forward(behind), alone.forward(behind))
    ends_where_plain_decoding_ends(executor_of, method_of, tokens=tokens)
    several_sequences_are_kept_apart(executor_of, method_of)
    return accepted


def ends_where_plain_decoding_ends(
    executor_of: MakeExecutor, method_of: MakeMethod, *, tokens: int
) -> None:
    """Limits and end tokens within a draft, and a full context."""
    prompt = text(executor_of(), 9, 0)
    plain, _ = ran(executor_of(), prompt, None, max_tokens=tokens)
    for most in range(1, 8):
        result, _ = ran(executor_of(), prompt, method_of(), max_tokens=most)
        assert result.tokens == plain.tokens[:most]
    for place in range(1, 8):
        stop = {plain.tokens[place]}
        expected, alone = ran(executor_of(), prompt, None, max_tokens=tokens, stop_tokens=stop)
        heard: list[int] = []
        result, session = ran(
            executor_of(),
            prompt,
            method_of(),
            max_tokens=tokens,
            stop_tokens=stop,
            on_token=heard.append,
        )
        assert (result.tokens, result.stopped) == (expected.tokens, True)
        assert tuple(heard) == result.tokens
        assert session.length == alone.length
    long = np.resize(prompt, executor_of().context_length - 6)
    expected, _ = ran(executor_of(), long, None, max_tokens=99)
    result, session = ran(executor_of(), long, method_of(), max_tokens=99)
    assert result.tokens == expected.tokens
    assert session.length == session.context_length


def several_sequences_are_kept_apart(executor_of: MakeExecutor, method_of: MakeMethod) -> None:
    """Packed passes over sequences that begin and end at different times; one is not speculated."""
    executor, method = executor_of(), method_of()
    speculation = Speculation(method, most=3, adaptive=False)
    prompts = {key: text(executor, 5 + key, key) for key in range(4)}
    expected = {
        key: ran(executor_of(), prompt, None, max_tokens=10 + key)[0].tokens
        for key, prompt in prompts.items()
    }
    slots = {key: executor.open() for key in prompts}
    written: dict[int, list[int]] = {}
    for key, prompt in prompts.items():
        (output,) = executor.forward([Row(slots[key], prompt)])
        written[key] = [int(output.logits[-1].argmax())]
        if key != 2:
            speculation.start(key, prompt.tolist())
            speculation.extend(key, written[key])
    running = set(prompts)
    while running:
        rooms = {
            key: Room(
                answer=len(expected[key]) - len(written[key]) - 1,
                slot=executor.context_length - executor.length(slots[key]) - 1,
            )
            for key in running
        }
        granted = speculation.wanted(rooms)
        drafts = speculation.propose(granted, list(running))
        rows, keys = [], sorted(running)
        for key in keys:
            draft = drafts.get(key, Draft())
            start = executor.length(slots[key])
            rows.append(
                Row(
                    slots[key],
                    draft.row(written[key][-1]),
                    want=Want.ALL,
                    tree=draft.tree(start),
                )
            )
        starts = {key: executor.length(slots[key]) for key in keys}
        for key, output in zip(keys, executor.forward(rows), strict=True):
            draft = drafts.get(key, Draft())
            new = []
            for place in range(len(draft.tokens) + 1):
                new.append(int(output.logits[place].argmax()))
                if place == len(draft.tokens) or new[-1] != draft.tokens[place]:
                    break
            written[key] += new
            executor.truncate(slots[key], starts[key] + len(new))
            branch = output.logits[1 + len(draft.tokens) :] if draft.branch else None
            speculation.extend(key, new, branch)
            if len(written[key]) >= len(expected[key]):
                running.discard(key)
                speculation.finish(key)
                executor.free(slots[key])
    assert {key: tuple(tokens) for key, tokens in written.items()} == expected
    speculation.close()
