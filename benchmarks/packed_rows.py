"""What a pass of packed rows costs, beside the same rows one after another.

    python benchmarks/scale_model.py MODEL && genai build MODEL --target cpu -o OUT
    python benchmarks/packed_rows.py OUT/MODEL/cpu [--threads 1] [--past 256]

Every figure is a median of one run, on one executor; ratios hold, milliseconds do not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from genai_core.files.digest_cache import FileCache
from genai_runtime import processor
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_executor
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Row, Want
from genai_runtime.steadiness import try_out

ROWS = 8
CHUNK = 32
DRAFT = 4


def median(work: Callable[[], None], times: int) -> float:
    """Milliseconds."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1e3 * float(np.median(taken))


class Bench:
    """Eight slots with some tokens each."""

    def __init__(self, executor: Executor, past: int) -> None:
        self.executor, self.past = executor, past
        random = np.random.default_rng(0)
        self.slots = [executor.open() for _ in range(ROWS)]
        for slot in self.slots:
            text = random.integers(0, executor.vocab_size, past)
            executor.forward([Row(slot, text, want=Want.NONE)])

    def together(self, counts: list[int]) -> None:
        """One pass."""
        rows = [
            Row(slot, np.zeros(count, np.int64), want=Want.ALL if count <= DRAFT else Want.LAST)
            for slot, count in zip(self.slots, counts, strict=False)
        ]
        self.executor.forward(rows)
        self.back(len(counts))

    def apart(self, counts: list[int]) -> None:
        """A pass for each row."""
        for slot, count in zip(self.slots, counts, strict=False):
            want = Want.ALL if count <= DRAFT else Want.LAST
            self.executor.forward([Row(slot, np.zeros(count, np.int64), want=want)])
        self.back(len(counts))

    def back(self, rows: int) -> None:
        """Forget what a pass added."""
        for slot in self.slots[:rows]:
            self.executor.truncate(slot, self.past)

    def prefill(self) -> None:
        """Read a prompt of `past` tokens from an empty slot."""
        self.executor.truncate(self.slots[0], 0)
        self.executor.forward([Row(self.slots[0], np.zeros(self.past, np.int64))])


def proportional_set() -> int:
    """MB of this process, shared pages counted once however often they are mapped."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) // 1024
    return 0


def without(exact: Bench, loose: Bench, count: int, times: int) -> str:
    """A pass of lone tokens that are not doubled, beside one where they are."""
    counts = [1] * count
    # By turns, so that both see the same machine.
    pairs = [
        [median(lambda bench=bench: bench.together(counts), 3) for bench in (exact, loose)]  # type: ignore[misc]
        for _ in range(times)
    ]
    one, other = (float(value) for value in np.median(np.array(pairs), axis=0))
    return f"{other:8.1f} ms{other / one:8.2f} of exact"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("container", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--past", type=int, default=256, help="tokens in each slot")
    parser.add_argument("--times", type=int, default=11)
    given = parser.parse_args()
    told = sorted(processor.features() & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"})
    print(f"{os.cpu_count()} processors, {', '.join(told)}; {given.threads} thread(s)")
    opened = containers.load(given.container)
    with tempfile.TemporaryDirectory() as folder:
        files = FileCache(Path(folder) / "files.sqlite")
        for name in ("first start", "second start, files are read", "later start"):
            time.sleep(2.5)  # a digest is remembered once a file has been left alone so long
            began = time.perf_counter()
            executor = open_executor(
                opened, cache=Path(folder) / "cpu", threads=given.threads, digest_of=files.digest
            )
            print(f"{name:34}{time.perf_counter() - began:8.2f} s")
        print(f"{'resident, proportional':34}{proportional_set():8} MB")
        print(f"bits: {try_out(executor)}")
        bench = Bench(executor, given.past)
        one = median(lambda: bench.together([1]), given.times)
        print(f"{'1 row, 1 token':34}{one:8.1f} ms")
        for name, counts in (
            ("2 rows, 1 token", [1] * 2),
            ("4 rows, 1 token", [1] * 4),
            ("8 rows, 1 token", [1] * ROWS),
            (f"8 rows, {DRAFT} tokens", [DRAFT] * ROWS),
            (f"7 rows and a chunk of {CHUNK}", [1] * (ROWS - 1) + [CHUNK]),
        ):
            together = median(lambda c=counts: bench.together(c), given.times)  # type: ignore[misc]
            apart = median(lambda c=counts: bench.apart(c), given.times)  # type: ignore[misc]
            print(
                f"{name:34}{together:8.1f} ms{together / apart:8.2f} of one after another"
                f"{one * len(counts) / together:8.2f} x the rows a second of one"
            )
        print(f"{f'prefill of {given.past}':34}{median(bench.prefill, 5):8.1f} ms")
        loose = open_executor(
            opened,
            cache=Path(folder) / "cpu",
            threads=given.threads,
            doubled=False,
            digest_of=files.digest,
        )
        other = Bench(loose, given.past)
        for count in (1, ROWS):
            ratio = without(bench, other, count, given.times)
            print(f"{f'{count} row(s), 1 token, not exact':34}{ratio}")
        loose.close()
        print(f"{'resident, proportional':34}{proportional_set():8} MB")
        executor.close()


if __name__ == "__main__":
    main()
