"""What a large adapter costs those who are answered while it is read, compared and laid in.

    python benchmarks/scale_model.py MODEL && genai build MODEL --target cpu -o OUT
    python benchmarks/adapters.py OUT/MODEL/cpu [--megabytes 300] [--threads 1]

One client is answered without an adapter. Meanwhile an adapter of so many megabytes is loaded from
a file, then one that wears it waits for it to be laid in. Told is what a pass of so many ranks
takes beside one without adapters; and how long the engine's thread stands still between two tokens
of the client before, while the adapter is read and compared, and while it is laid in.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import save_file

from genai_runtime import processor
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_executor
from genai_runtime.cpu.adapter_files import read_adapter, read_shape
from genai_runtime.executor.adapter_weights import AdapterShape
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse, Row, Want
from genai_runtime.sampling import TokenLogprob
from genai_serving.adapters.cache import AdapterCache, AdapterLoader
from genai_serving.engine import Engine
from genai_serving.requests import AnswerRequest, Ended
from genai_serving.scheduler import ServingLimits

_BLOCK = 16
_FIRST = 40
"""Tokens before the first adapter comes."""


class Client:
    """Remembers when its tokens came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.busy: list[float] = []
        """Seconds that the engine's thread has computed, or waited for a processor, by then."""
        self.ended: Ended | None = None
        self.done = threading.Event()

    def on_prompt(self, logprobs: list[list[TokenLogprob]]) -> None:
        """Nothing is asked of prompts."""

    def on_token(self, token: int, logprobs: list[TokenLogprob] | None) -> bool:
        """One more."""
        computed, queued, _ = Path("/proc/thread-self/schedstat").read_text("ascii").split()
        self.busy.append((int(computed) + int(queued)) / 1e9)
        self.times.append(time.perf_counter())
        return False

    def on_end(self, ended: Ended) -> None:
        """The last call."""
        self.ended = ended
        self.done.set()


def linears_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Linears of attention and MLP: output tensor -> what it takes and gives."""
    path = folder / containers.CPU_MODEL_FILE
    graph = onnx.load(str(path), load_external_data=False).graph  # noqa: TID251 - no weights inside
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type != "MatMul" or "proj" not in node.output[0]:
            continue
        name = node.input[1]
        while name in made:
            name = made[name].input[0]
        if len(shapes.get(name, ())) == 2:
            found[node.output[0]] = (shapes[name][0], shapes[name][1])
    return found


def write_adapter(path: Path, linears: dict[str, tuple[int, int]], megabytes: int) -> AdapterShape:
    """An adapter of random numbers, of at least so many megabytes; its rank is a multiple of 16."""
    a_rank = 4 * sum(inputs + outputs for inputs, outputs in linears.values())
    rank = -(-(megabytes * 1_000_000) // (a_rank * _BLOCK)) * _BLOCK
    random = np.random.default_rng(0)
    tensors = {}
    for name, (inputs, outputs) in linears.items():
        tensors[f"{name}.A"] = random.standard_normal((inputs, rank), np.float32) * 0.01
        tensors[f"{name}.B"] = random.standard_normal((rank, outputs), np.float32) * 0.01
    save_file(tensors, path)
    return read_shape(path)


def told(name: str, client: Client, spans: list[tuple[float, float]]) -> None:
    """Of each span the longest that the engine's thread stood still between two tokens.

    That is neither computing nor waiting for a processor, which a busy machine is to blame for.
    """
    longest, tokens = [], 0
    for start, end in spans:
        stood = [0.0]
        for (t, after), (b, busy) in zip(
            itertools.pairwise(client.times), itertools.pairwise(client.busy), strict=True
        ):
            if after >= start and t <= end:
                stood.append(after - t - (busy - b))
        longest.append(1e3 * max(stood))
        tokens += len(stood) - 1
    seconds = np.median([end - start for start, end in spans])
    print(
        f"{name:42}{seconds:8.2f} s, {tokens} tokens, stood still at most {min(longest):.1f}, "
        f"median {np.median(longest):.1f}, {max(longest):.1f} ms in {len(spans)} turns"
    )


def step(executor: Executor, slot: int) -> Callable[[], None]:
    def run() -> None:
        executor.forward([Row(slot, np.array([7]), want=Want.LAST)])
        executor.truncate(slot, executor.length(slot) - 1)

    return run


def median(work: Callable[[], None], times: int = 15) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1e3 * float(np.median(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("container", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    found = sorted(processor.features() & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"})
    print(f"{os.cpu_count()} processors, {', '.join(found)}; {given.threads} thread(s)")
    opened = containers.load(given.container)
    linears = linears_of(opened.folder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.safetensors"
        shape = write_adapter(path, linears, given.megabytes)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{len(linears)} linears, rank {shape.rank}, {shape.bytes / 1e6:.0f} MB")
        plain = None
        for columns in (0, 16, 64, shape.rank):
            made = open_executor(
                opened,
                cache=Path(folder) / "cpu",
                threads=given.threads,
                adapters=[],
                adapter_columns=columns,
                branches=[shape] if columns else [],
            )
            slot = made.open()
            made.forward([Row(slot, np.arange(7, 71), want=Want.NONE)])
            taken = median(step(made, slot))
            plain = plain or taken
            name = f"1 row, 1 token, a pass of {columns} ranks"
            print(f"{name:42}{taken:8.1f} ms{taken / plain:8.2f}")
            if columns != shape.rank:
                made.close()
        made.free(slot)
        engine = Engine(
            made,
            ServingLimits(sequences=4, tokens=64, waiting=8, cache_bytes=1 << 32),
            adapters=AdapterCache(2 * shape.bytes),
        )
        client = Client()
        engine.submit(AnswerRequest(np.arange(7, 15), made.context_length - 8), client)
        while len(client.times) < _FIRST:
            client.done.wait(0.01)
        source = AdapterLoader(shape, lambda: read_adapter(path, sha256=digest))
        reading, laying = [], []
        for turn in range(given.turns):
            began, name = time.perf_counter(), f"large-{turn}"
            engine.load_adapter(name, source).result()
            loaded, wearer = time.perf_counter(), Client()
            wears = (AdapterUse(name),)
            engine.submit(AnswerRequest(np.arange(7, 15), 2, adapters=wears), wearer)
            wearer.done.wait()
            reading.append((began, loaded))
            laying.append((loaded, time.perf_counter()))
            engine.retire_adapter(name)
        engine.close()
        told("before", client, [(client.times[8], client.times[_FIRST - 1])])
        told("while it is read and compared", client, reading)
        told("while it is laid in and worn", client, laying)


if __name__ == "__main__":
    main()
