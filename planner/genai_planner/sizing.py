"""How large things become, and what a task needs: estimates from the model's sizes.

Sizes of binaries decide how many splits there are, so they err on the large side. Memory decides
what runs side by side on one machine, and what a pod asks for. Stages stream: what counts is what
one has in memory at a time, which is a weights group (a layer, the table, the head), the weights of
a split in the vendor's library, or a whole built model in ONNX Runtime. Factors were measured on
models of 3 million to 8 billion weights (docs/benchmarks.md) and are linear beyond a process's own
base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from genai_core.names import Gaps, Precision
from genai_planner.plan import Demand
from genai_planner.shape import ModelShape

__all__ = [
    "BinarySizes",
    "binary_sizes",
    "bytes_text",
    "cpu_model_bytes",
    "demand",
    "fidelity_demand",
]

MIB = 1 << 20
_FLOAT = 4
_BASE = 260 * MIB
"""A worker that has imported the graph libraries, with its libraries' pages."""

_PER_FLOAT_BYTE = {
    "ingest": 2.5,
    "arcl": 1.5,
    "transform": 2.5,
    "convert-htp": 5.0,
    "compile-htp": 4.0,
    "convert-cpu": 1.25,
    "compile-cpu": 1.25,
    "fidelity": 1.5,
    "fidelity-simulated": 3.5,
    "fidelity-emulated": 3.0,
    "package": 1.5,
    "lora_import": 6.0,
    "lora_graph": 0.5,
    "lora_ranges": 1.5,
    "forecast_import": 2.0,
    "vision_import": 2.0,
}
"""Peak memory beyond the base, in bytes for each byte of float weights that is held at once."""

_SESSION = 1.1
"""Memory of a built model in ONNX Runtime, for each byte of its file: weights lie mapped, or packed
by the kernels instead."""
_GROUP_BYTES = 256 * MIB
"""What fidelity's yardstick holds at a time where its layers are smaller."""
_CPU_BYTES = {Precision.FLOAT: (4.0, 4.0), Precision.INT8: (2.0, 1.0), Precision.INT4: (2.0, 0.65)}
"""Bytes of a weight in a cpu model: of the table, of the rest (scales included)."""

_START_SECONDS = {
    "ingest": 2.0,
    "arcl": 1.0,
    "transform": 0.7,
    "convert-htp": 3.0,
    "compile-htp": 5.0,
    "convert-cpu": 0.5,
    "compile-cpu": 1.0,
    "fidelity": 8.0,
    "package": 5.0,
    "lora_import": 0.5,
    "lora_graph": 0.5,
    "lora_ranges": 3.0,
    "forecast_import": 0.5,
    "vision_import": 1.0,
}
"""What even a tiny model takes: sessions, emulators, and the prompts that are recorded."""

_CODE = 1.03
"""A binary also holds the graphs themselves: 51.7 MB were measured for 50.3 MB of weights."""

_RATE = {
    "ingest": 100.0,
    "arcl": 400.0,
    "transform": 200.0,
    "convert-htp": 40.0,
    "compile-htp": 20.0,
    "convert-cpu": 40.0,
    "compile-cpu": 200.0,
    "fidelity": 20.0,
    "package": 100.0,
    "lora_import": 100.0,
    "lora_graph": 1000.0,
    "lora_ranges": 20.0,
    "forecast_import": 100.0,
    "vision_import": 100.0,
}
"""MiB of float weights that one core gets through in a second."""


@dataclass(frozen=True)
class BinarySizes:
    """Bytes of each part of the model in a context binary.

    Attributes:
        embedding: The table; two bytes a weight.
        layers: Each layer.
        head: Final norm and lm_head; at least one byte a weight.
        assumed: The assumption behind the numbers, for people.
    """

    embedding: int
    layers: tuple[int, ...]
    head: int
    assumed: str


def binary_sizes(
    shape: ModelShape, weight_bits: int | None, *, gaps: Gaps, copies: int = 1
) -> BinarySizes:
    """Predict sizes.

    Args:
        shape: Numbers of weights.
        weight_bits: Of the encodings; None where there are none.
        gaps: Without encodings, Float means float16; otherwise 8 bits are assumed.
        copies: Graphs that each hold weights of their own (no weight sharing), else 1.
    """
    if weight_bits is None and gaps is Gaps.FLOAT:
        layer, head, assumed = 2.0, 2.0, "16 bits a weight"
    else:
        bits = weight_bits or 8
        layer, head = bits / 8, max(bits, 8) / 8
        assumed = f"{bits} bits a weight"
        if bits < 8:
            assumed += f" in layers and {int(head * 8)} in lm_head"
    table = shape.vocab_size * shape.hidden_size
    return BinarySizes(
        embedding=int(shape.embedding * 2.0 * _CODE) * copies,
        layers=tuple(int(weights * layer * _CODE) * copies for weights in shape.layers),
        head=int((table * head + max(shape.head - table, 0) * 2.0) * _CODE) * copies,
        assumed=assumed,
    )


def demand(operation: str, weights: int, *, largest: int | None = None, session: int = 0) -> Demand:
    """What a task on so many weights needs.

    Args:
        operation: A name out of `_PER_FLOAT_BYTE`.
        weights: That it works on in all.
        largest: Where it streams: weights that it holds at one time.
        session: Bytes of a built model that it runs before or after that.
    """
    held = _FLOAT * (weights if largest is None else largest)
    memory = max(_PER_FLOAT_BYTE[operation] * held, _SESSION * session)
    return Demand(memory_bytes=_BASE + int(memory), seconds=_seconds(operation, weights))


def fidelity_demand(
    shape: ModelShape, *, session: int | None, simulated: bool, text_given: bool
) -> Demand:
    """What a fidelity task needs.

    Args:
        shape: Of the model.
        session: Bytes of the built model; None = an emulator runs it, whose memory follows the
            whole model's.
        simulated: There are encodings, so that weights are rounded before they are run.
        text_given: Else the float model writes it, which lies mapped as a whole: every token reads
            all of it.
    """
    whole = _FLOAT * shape.parameters
    group = min(whole, max(_GROUP_BYTES, _FLOAT * shape.largest))
    factor = _PER_FLOAT_BYTE["fidelity-simulated" if simulated else "fidelity"]
    writer = 0 if text_given else _SESSION * whole
    emulated = _PER_FLOAT_BYTE["fidelity-emulated"] * whole
    run = emulated if session is None else _SESSION * session
    memory = max(factor * group, run, writer)
    return Demand(_BASE + int(memory), _seconds("fidelity", shape.parameters))


def _seconds(operation: str, weights: int) -> float:
    return _START_SECONDS[operation] + _FLOAT * weights / MIB / _RATE[operation]


def cpu_model_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes of a cpu model's weights."""
    table, rest = _CPU_BYTES[precision]
    return int(table * shape.embedding + rest * (sum(shape.layers) + shape.head))


def bytes_text(sizes: Iterable[int]) -> str:
    """Sizes for people, e.g. `1.05, 0.87 GB`, or in MB where all are small."""
    values = list(sizes)
    unit, name = (1e9, "GB") if max(values) >= 1e9 else (1e6, "MB")
    return f"{', '.join(f'{v / unit:.2f}' for v in values)} {name}"
