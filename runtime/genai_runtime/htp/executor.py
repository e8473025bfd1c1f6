"""Drives the static graphs of a Snapdragon container as one sequence, in the emulator.

A pass of AR tokens at context length CL needs: the tokens (padded), an additive mask, cosines and
sines of their positions, and the cache of at most CL - AR earlier tokens. Past tokens sit at the
front of the CL axis, the new ones at its end; a pass returns the new tokens' slice of the cache.
The splits of a model are chained by handing boundary tensors on as raw integers.

The executor picks, for each piece of the input, the smallest CL that holds it, and cuts the input
by the largest AR, finishing with the smallest AR that takes the rest in one pass: what Genie does
on the device. It is a `genai_runtime.session.Session`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_runtime import masks, rope
from genai_runtime.htp import emulation
from genai_runtime.htp.client import Emulator
from genai_runtime.htp.metadata import GraphMetadata, TensorMetadata
from genai_runtime.session import Logits, Tokens, checked_tokens, checked_truncation

Integers = NDArray[np.generic]


def quantize(values: NDArray[np.floating], tensor: TensorMetadata) -> Integers:
    """Float values as the integers (or floats) that a tensor takes, clipped to its range."""
    dtype = np.dtype(tensor.dtype)
    if tensor.scale is None or tensor.offset is None:
        return np.asarray(values, dtype)
    limits = np.iinfo(dtype)
    steps = np.rint(np.asarray(values, np.float64) / tensor.scale) - tensor.offset
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype)


def dequantize(values: Integers, tensor: TensorMetadata) -> NDArray[np.float32]:
    """Integers (or floats) of a tensor as float32."""
    if tensor.scale is None or tensor.offset is None:
        return np.asarray(values, np.float32)
    steps = np.asarray(values, np.int64) + tensor.offset
    return (steps * np.float64(tensor.scale)).astype(np.float32)


class Runner(Protocol):
    """What runs a graph: `genai_runtime.htp.client.Emulator`, or a stand-in."""

    def run(self, graph: str, inputs: Mapping[str, Integers]) -> dict[str, Integers]:
        """One pass: arrays in, arrays out, by name."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Executor:
    """One sequence in the emulator."""

    def __init__(
        self,
        folder: Path,
        *,
        constants: Mapping[str, NDArray[np.floating]] | None = None,
        context_length: int | None = None,
        run_timeout: float = 600.0,
        runner: Runner | None = None,
    ) -> None:
        """Open a container's `emulation/` folder.

        Args:
            folder: See `genai_runtime.htp.emulation`.
            constants: Float values of further inputs, the same in every pass (weights of adapters);
                an input that is not named gets zeros.
            context_length: Fewer slots than the longest CL offers; None = all of them.
            run_timeout: Seconds that one pass of one split may take.
            runner: Runs the graphs; None = the vendor's emulator in a child process.

        Raises:
            NotRunnableHere: No twin in the container, or no vendor libraries on this machine.
            BadModel: The graphs do not fit together.
            BadInput: The context length is below 1.
        """
        if context_length is not None and context_length < 1:
            raise BadInput("must be at least 1", where="context length")
        self._facts = emulation.load(folder)
        self._graphs = _by_size(self._facts)
        self._constants = dict(constants or {})
        self._sizes = sorted(self._graphs)
        self._context = max(cl for _, cl in self._sizes)
        self._limit = (
            self._context if context_length is None else min(context_length, self._context)
        )
        last = self._graphs[self._sizes[0]][-1]
        self._vocabulary = int(_tensor(last.outputs, "logits", last.name).shape[-1])
        self._cache = _empty_caches(self._graphs, self._context)
        self._tokens = np.zeros(0, np.int64)
        models = {g.name: folder / f"{g.name}.onnx" for gs in self._graphs.values() for g in gs}
        self._runner: Runner = runner or Emulator(
            models, soc_model=self._facts.soc_model, run_timeout=run_timeout
        )

    @property
    def context_length(self) -> int:
        """The longest CL of the container, or what it was opened with."""
        return self._limit

    @property
    def vocab_size(self) -> int:
        """V of the logits."""
        return self._vocabulary

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self._tokens.size)

    def reset(self) -> None:
        """Empty the cache."""
        self.truncate(0)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens; what stands behind them is masked from then on."""
        self._tokens = self._tokens[: checked_truncation(length, self)]

    def forward(self, tokens: Tokens) -> Logits:
        """Append tokens [T]; returns float32 logits [T, V]. See `Session.forward`."""
        new = checked_tokens(tokens, self)
        pieces = []
        while new.size:
            size = self._choose(int(new.size))
            ar, cl = size
            # Without a small AR the end of the context is reached by computing some tokens again.
            start = min(self.length, cl - ar)
            again = self._tokens[start:]
            taken = new[: ar - again.size]
            run = np.concatenate([again, taken])
            pieces.append(self._pass(size, start, run)[again.size :])
            self._tokens = np.concatenate([self._tokens, taken])
            new = new[taken.size :]
        return np.concatenate(pieces)

    def prefill(self, tokens: Tokens) -> Logits:
        """`forward` on an emptied cache."""
        self.reset()
        return self.forward(tokens)

    def decode(self, token: int) -> Logits:
        """`forward` of one token; logits [1, V]."""
        return self.forward(np.array([token]))

    def close(self) -> None:
        """End the emulator."""
        self._runner.close()

    def _choose(self, wanted: int) -> tuple[int, int]:
        """(AR, CL) for the next piece: smallest CL, then the AR that needs the fewest passes."""
        for context in sorted({cl for _, cl in self._sizes}):
            fitting = [ar for ar, cl in self._sizes if cl == context and self.length <= cl - ar]
            if not fitting:
                continue
            whole = [ar for ar in fitting if ar >= wanted]
            best = min(whole) if whole else max(fitting)
            if whole or context == self._context or self.length + wanted <= context:
                return best, context
        return min(ar for ar, cl in self._sizes if cl == self._context), self._context

    def _pass(self, size: tuple[int, int], start: int, tokens: NDArray[np.int64]) -> Logits:
        """One pass of all splits; the cache holds `start` tokens before it."""
        ar, cl = size
        count = int(tokens.size)
        padded = np.zeros(ar, np.int64)
        padded[:count] = tokens
        queries = np.full(ar, masks.EMPTY, np.int64)
        queries[:count] = np.arange(start, start + count)
        keys = np.full(cl, masks.EMPTY, np.int64)
        keys[:start] = np.arange(start)
        keys[cl - ar :] = queries
        positions = np.maximum(queries, 0)
        handed: dict[str, Integers] = {}
        for graph in self._graphs[size]:
            feeds: dict[str, Integers] = {}
            for tensor in graph.inputs:
                name = tensor.name
                if name in handed:
                    feeds[name] = handed[name]
                elif name == "input_ids":
                    feeds[name] = padded.astype(tensor.dtype).reshape(tensor.shape)
                elif name.startswith("attention_mask"):
                    window = int(name.partition("_w")[2] or 0)
                    values = masks.additive_mask(queries, keys, window=window)
                    feeds[name] = quantize(values, tensor)
                elif name.startswith("position_ids_"):
                    feeds[name] = quantize(self._rotary(name, positions), tensor).reshape(
                        tensor.shape
                    )
                elif name in self._cache:
                    past = self._cache[name]
                    slots = past[..., : cl - ar] if _is_key(name) else past[:, :, : cl - ar]
                    feeds[name] = np.ascontiguousarray(slots)
                else:
                    given = self._constants.get(name)
                    floats = np.zeros(tensor.shape) if given is None else np.asarray(given)
                    feeds[name] = quantize(floats, tensor)
            outputs = self._runner.run(graph.name, feeds)
            self._remember(outputs, start, count)
            handed |= outputs
        final = self._graphs[size][-1]
        logits = dequantize(handed["logits"], _tensor(final.outputs, "logits", final.name))
        return np.ascontiguousarray(logits.reshape(ar, -1)[:count])

    def _remember(self, outputs: dict[str, Integers], start: int, count: int) -> None:
        for name in [n for n in outputs if n.startswith(("past_key_", "past_value_"))]:
            new = outputs.pop(name)
            cache = self._cache[name.removesuffix("_out") + "_in"]
            if _is_key(name):
                cache[..., start : start + count] = new[..., :count]
            else:
                cache[:, :, start : start + count] = new[:, :, :count]

    def _rotary(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        kind, _, suffix = name.removeprefix("position_ids_").partition("_")
        tables = self._facts.rope
        key = suffix or ("default" if "default" in tables else next(iter(tables), ""))
        if key not in tables or kind not in ("cos", "sin"):
            raise BadModel(f"no rotary table for it; known are {sorted(tables)}", where=name)
        cosines, sines = rope.cos_sin(positions, tables[key])
        return cosines if kind == "cos" else sines


def _is_key(name: str) -> bool:
    return name.startswith("past_key_")


def _tensor(tensors: tuple[TensorMetadata, ...], name: str, graph: str) -> TensorMetadata:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise BadModel(f"the graph has no {name}", where=graph)


def _by_size(facts: emulation.Emulation) -> dict[tuple[int, int], list[GraphMetadata]]:
    """(AR, CL) -> the graphs of all splits, in order."""
    found: dict[tuple[int, int], list[GraphMetadata]] = {}
    for index, part in enumerate(facts.parts, 1):
        for graph in part.binary.graphs:
            key = emulation.graph_key(graph.name)
            chain = found.setdefault((key.ar, key.cl), [])
            if len(chain) != index - 1 or key.split != index or key.splits != len(facts.parts):
                raise BadModel("the graph does not follow on the split before it", where=graph.name)
            chain.append(graph)
    for (ar, cl), chain in found.items():
        if len(chain) != len(facts.parts):
            raise BadModel(f"AR {ar}, CL {cl} is missing in some splits", where=chain[-1].name)
    if not found:
        raise BadModel("there are no graphs", where="emulation")
    return found


def _empty_caches(
    graphs: Mapping[tuple[int, int], list[GraphMetadata]], context: int
) -> dict[str, Integers]:
    """Input name -> zeros (as integers) for `context` tokens; one encoding a tensor everywhere."""
    encodings: dict[str, tuple[str, float | None, int | None]] = {}
    caches: dict[str, Integers] = {}
    for chain in graphs.values():
        for graph in chain:
            for tensor in (*graph.inputs, *graph.outputs):
                if not tensor.name.startswith(("past_key_", "past_value_")):
                    continue
                if tensor.layout != "flat":
                    raise BadInput("a native cache cannot be emulated", where=tensor.name)
                name = tensor.name.removesuffix("_in").removesuffix("_out") + "_in"
                encoding = (tensor.dtype, tensor.scale, tensor.offset)
                if encodings.setdefault(name, encoding) != encoding:
                    raise BadModel(
                        "its encoding differs between graphs", where=f"{graph.name}: {tensor.name}"
                    )
                if name not in caches:
                    shape = list(tensor.shape)
                    shape[-1 if _is_key(name) else 2] = context
                    caches[name] = quantize(np.zeros(shape), tensor)
    return caches
