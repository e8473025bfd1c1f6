"""What guesses bring: the engine's tokens a second with them and without, in the same run.

    python benchmarks/speculation.py CONTAINER [--threads 1] [--clients 1 8] [--rounds 3]
    python benchmarks/speculation.py CONTAINER [--draft DRAFT] --tokens eval.npy

The first form forces the model along recorded traces: passes, caches and sampling are real, and
the logits are replaced by ones whose most likely token is the trace's next. So a model of random
weights and of a real size costs what it costs, and guesses are as right as the text allows. The
edit trace is a file of this repository with some words renamed, behind that file as its prompt;
the prose trace goes on with a text that its prompt began. `scripted` guesses the trace itself,
wrong with a probability of 0.2 a token; its ceiling is E[tokens] / cost of such a pass.

The second form lets a real model write and a real draft model guess, and tells tokens a pass. With
`--draft CONTAINER/draft` an EAGLE head that the container carries guesses; a model that was trained
to forecast guesses for itself.

Methods take turns within a round, so that what else runs on the machine meets all of them; figures
are medians of rounds. With one thread, seconds are this process's own CPU time: others on the
machine do not count. Ratios hold, tokens a second do not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recorded_traces import ANSWER, PROMPT, RIGHT, Forced, Scripted, traces

from genai_core.files.digest_cache import FileCache
from genai_runtime import processor
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_executor
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Row, Want
from genai_runtime.generate import generate
from genai_runtime.session import SlotSession
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.eagle import Eagle, Head
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import Method
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.ssd import Ssd
from genai_runtime.speculation.suffix import Suffix
from genai_serving.engine import Engine
from genai_serving.requests import AnswerRequest, Ended
from genai_serving.scheduler import ServingLimits

GUESSES = 4


clock = time.process_time
"""Of all figures; `main` sets it."""


class Heard:
    """The end of an answer, and when its first token came."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.done = threading.Event()
        self.first = self.last = 0.0

    def on_prompt(self, logprobs: Any) -> None:
        """Not asked for."""

    def on_token(self, token: int, logprobs: Any) -> bool:
        """Note the time."""
        self.last = clock()
        self.first = self.first or self.last
        self.tokens.append(token)
        return False

    def on_end(self, ended: Ended) -> None:
        """Note it."""
        self.done.set()


def written_per_second(engine: Engine, texts: Sequence[np.ndarray]) -> float:
    """Tokens a second between the first token of the last prompt read and the end."""
    heard = [Heard() for _ in texts]
    for text, listener in zip(texts, heard, strict=True):
        engine.submit(AnswerRequest(text[:PROMPT].astype(np.int64), ANSWER), listener)
    for text, listener in zip(texts, heard, strict=True):
        listener.done.wait()
        assert listener.tokens == text[PROMPT:].tolist(), "an answer is not its trace"
    began, ended = min(h.first for h in heard), max(h.last for h in heard)
    return len(texts) * (ANSWER - 1) / (ended - began)


def methods(texts: Sequence[np.ndarray]) -> dict[str, Callable[[], Method] | None]:
    return {
        "plain": None,
        "ngram": lambda: Ngram(least=2, most=4),
        "suffix": Suffix,
        "scripted": lambda: Scripted(texts),
    }


def forced(executor: Executor, clients: Sequence[int], rounds: int) -> None:
    """Traces at several numbers of clients."""
    for kind in ("edit", "prose"):
        for count in clients:
            texts = traces(kind, count)
            rates: dict[str, list[float]] = {name: [] for name in methods(texts)}
            told: dict[str, str] = {}
            for _ in range(rounds):
                for name, make in methods(texts).items():
                    speculation = (
                        None if make is None else Speculation(make(), most=GUESSES, clock=clock)
                    )
                    rate, guessed = one_run(executor, texts, speculation)
                    rates[name].append(rate)
                    told[name] = guessed
            plain = np.asarray(rates["plain"])
            for name, values in rates.items():
                ratios = np.asarray(values) / plain
                print(
                    f"{kind:6}{len(texts):2} clients {name:10}{np.median(values):8.1f} tokens/s"
                    f"{np.median(ratios):7.2f} x plain ({ratios.min():.2f} to {ratios.max():.2f})"
                    f"  {told[name]}",
                    flush=True,
                )


def one_run(
    executor: Executor, texts: Sequence[np.ndarray], speculation: Speculation | None
) -> tuple[float, str]:
    """Tokens a second, and what came of guesses."""
    forced_executor = Forced(Kept(executor), texts)
    limits = ServingLimits(
        sequences=len(texts),
        tokens=128,
        waiting=8,
        cache_bytes=len(texts) * executor.cache_bytes(PROMPT + ANSWER),
    )
    engine = Engine(forced_executor, limits, clock=clock, speculation=speculation)
    rate = written_per_second(engine, texts)
    counts = engine.guessed
    engine.close()
    if counts is None or not counts.guessed:
        return rate, ""
    return rate, f"{counts.accepted} of {counts.guessed} guesses right"


class Kept:
    """An executor that is not closed with its engine."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def close(self) -> None:
        """Leave it open."""


def costs(executor: Executor, rows: int) -> list[float]:
    """Time of a pass with 0 .. GUESSES further tokens a row, as multiples of one token's."""
    random = np.random.default_rng(0)
    slots = [executor.open() for _ in range(rows)]
    for slot in slots:
        tokens = random.integers(0, executor.vocab_size, PROMPT)
        executor.forward([Row(slot, tokens, want=Want.NONE)])
    taken: list[list[float]] = [[] for _ in range(GUESSES + 1)]
    for _ in range(9):
        for extra in range(GUESSES + 1):
            tokens = np.zeros(1 + extra, np.int64)
            began = clock()
            executor.forward([Row(slot, tokens, want=Want.ALL) for slot in slots])
            taken[extra].append(clock() - began)
            for slot in slots:
                executor.truncate(slot, PROMPT)
    for slot in slots:
        executor.free(slot)
    medians = [float(np.median(values)) for values in taken]
    return [value / medians[0] for value in medians]


def ceilings(executor: Executor, clients: Sequence[int]) -> None:
    """E[tokens] / cost, for guesses that are right with probability RIGHT."""
    for rows in clients:
        measured = costs(executor, rows)
        gains = [
            sum(RIGHT**place for place in range(extra + 1)) / cost
            for extra, cost in enumerate(measured)
        ]
        print(
            f"{rows} rows: passes of 1 to {GUESSES + 1} tokens take "
            f"{', '.join(f'{cost:.2f}' for cost in measured)}; at {RIGHT} the ceiling is "
            f"{max(gains):.2f} with {int(np.argmax(gains))} guesses",
            flush=True,
        )


def guesser(
    target: Executor, draft: Executor, opened: Container
) -> dict[str, Callable[[], Method]]:
    """A draft model, or an EAGLE head, by its name."""
    kept, head = Kept(draft), opened.metadata.head
    if head is None:
        return {"draft_model": lambda: DraftModel(kept, vocab_size=target.vocab_size)}
    driven = Head(kept, head.features, head.hidden, head.feedback, opened.token_map())
    return {f"eagle {head.version}": lambda: Eagle(driven, vocab_size=target.vocab_size)}


def forecasting(target: Executor, opened: Container) -> dict[str, Callable[[], Method]]:
    """SSD, where the model was trained for it."""
    if opened.metadata.forecast is None:
        return {}
    return {"ssd": lambda: Ssd(target, forecasts=GUESSES)}


def real(target: Executor, guessing: dict[str, Callable[[], Method]], tokens: np.ndarray) -> None:
    """Tokens a pass of the target, with real guesses of greedy answers."""
    offered: dict[str, Callable[[], Method]] = {
        "ngram": lambda: Ngram(least=2, most=4),
        "suffix": Suffix,
        "lookahead": lambda: Lookahead(window=8, ngram=5, gcap=8),
        **guessing,
    }
    prompts = tokens[:30, :32].astype(np.int64)
    session = SlotSession(target)
    plain = [generate(session, prompt, max_tokens=64).tokens for prompt in prompts]
    for name, make in offered.items():
        speculation = Speculation(make(), most=GUESSES, adaptive=False)
        written = passes = 0
        for prompt, expected in zip(prompts, plain, strict=True):
            result = generate(session, prompt, max_tokens=64, speculation=speculation)
            assert result.tokens == expected
            counts = result.metrics.speculation
            assert counts is not None
            written += len(result.tokens)
            passes += len(result.tokens) - counts.accepted
        total = speculation.counts
        places = ", ".join(f"{count / max(total.drafts, 1):.2f}" for count in total.positions[:4])
        print(
            f"{name:12}{written / passes:6.2f} tokens a pass, {total.accepted} of {total.guessed} "
            f"guesses right; accepted by place {places}; answers equal to plain ones",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("container", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--tokens", type=Path, help="integers [pieces, length], for prompts")
    given = parser.parse_args()
    global clock  # noqa: PLW0603 - one program, one clock
    clock = time.process_time if given.threads == 1 else time.perf_counter
    told = sorted(processor.features() & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"})
    print(f"{os.cpu_count()} processors, {', '.join(told)}; {given.threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        files = FileCache(Path(folder) / "files.sqlite")

        def opened(path: Path) -> Executor:
            return open_executor(
                containers.load(path),
                cache=Path(folder) / "cpu",
                threads=given.threads,
                digest_of=files.digest,
            )

        target = opened(given.container)
        if given.tokens is not None:
            guessing = forecasting(target, containers.load(given.container))
            if given.draft is not None:
                guessing |= guesser(target, opened(given.draft), containers.load(given.draft))
            real(target, guessing, np.load(given.tokens))
        else:
            ceilings(target, given.clients)
            forced(target, given.clients, given.rounds)
        target.close()


if __name__ == "__main__":
    main()
