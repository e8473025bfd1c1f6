"""One sequence on the CPU: a dynamic-T model with GroupQueryAttention and buffers of our own.

Past and present are the same buffers, bound once: the kernel writes new keys and values in place
and nothing is copied between passes. Truncating is forgetting: the slots behind `length` are
written over by the next pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from pydantic import TypeAdapter, ValidationError

from genai_core.errors import BadInput, BadModel
from genai_core.facts import RopeTable
from genai_runtime import processor
from genai_runtime.executor import Logits, Tokens, checked_tokens, checked_truncation
from genai_runtime.rope import cos_sin

ROPE_KEY = "genai.rope"
"""Metadata of the model: JSON of its rotary tables."""

EXACT_KEY = "genai.exact_int8"
"""Metadata of the model: "1" where its int8 weights are wide enough to saturate."""

_TABLES = TypeAdapter(dict[str, RopeTable])


class CpuSession:
    """A `Session` over one model file.

    Args:
        model: `model.onnx` beside its data.
        context_length: Slots of the cache; its memory is layers x 2 x KV x D x 4 bytes a slot,
            touched as tokens come in.
        threads: Of ONNX Runtime; 0 = as many as there are cores.
        rope: Rotary tables; None = those that the model itself states.
        features: Of the processor (see `processor.features`); None = of this one.

    Raises:
        BadModel: ONNX Runtime cannot load the file, or it is not a model of this form.
        BadInput: The context length is below 1.
    """

    def __init__(
        self,
        model: Path,
        *,
        context_length: int,
        threads: int = 0,
        rope: Mapping[str, RopeTable] | None = None,
        features: frozenset[str] | None = None,
    ) -> None:
        if context_length < 1:
            raise BadInput("must be at least 1", where="context length")
        known = processor.features() if features is None else features
        options = session_options(threads, exact=_wide(model) and processor.saturates(known))
        try:
            self._session: Any = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many kinds, all plain Exceptions
            raise BadModel(
                f"ONNX Runtime cannot load it: {' '.join(str(error).split())[:300]}",
                where=str(model),
            ) from error
        self._context_length = context_length
        self._length = 0
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        if not {"input_ids", "seqlens_k", "total_sequence_length"} <= set(inputs):
            raise BadModel("not a dynamic model with GroupQueryAttention", where=str(model))
        self._vocab_size = int(self._session.get_outputs()[0].shape[2])
        self._binding: Any = self._session.io_binding()
        self._bind_tables(self._stated_tables(model) if rope is None else rope, set(inputs))
        self._bind_cache(inputs, outputs)

    @property
    def context_length(self) -> int:
        """Slots of the cache."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Last axis of the logits."""
        return self._vocab_size

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    def reset(self) -> None:
        """Empty the cache."""
        self._length = 0

    def forward(self, tokens: Tokens) -> Logits:
        """Append tokens; logits of each. See `Session.forward`."""
        array = checked_tokens(tokens, self, self._length)
        total = self._length + array.size
        binding = self._binding
        binding.bind_cpu_input("input_ids", array[None])
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], dtype=np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([total], dtype=np.int32))
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        self._length = total
        # A copy: numpy() may be a view of memory that the next pass reuses.
        logits: Logits = np.array(binding.get_outputs()[self._logits].numpy()[0], dtype=np.float32)
        return logits

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._length = checked_truncation(length, self._length)

    def close(self) -> None:
        """Free model and cache."""
        self._binding = None
        self._session = None
        self._buffers: list[Any] = []

    def _stated_tables(self, model: Path) -> dict[str, RopeTable]:
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            return _TABLES.validate_python(json.loads(metadata.get(ROPE_KEY, "{}")))
        except (ValueError, ValidationError) as error:
            raise BadModel(f"its metadata {ROPE_KEY} is not readable", where=str(model)) from error

    def _bind_tables(self, tables: Mapping[str, RopeTable], inputs: set[str]) -> None:
        """Rotary tables for every position of the context, bound once."""
        positions = np.arange(self._context_length)
        for name, table in tables.items():
            suffix = "" if name == "default" else f"_{name}"
            cos, sin = cos_sin(positions, table)
            for kind, values in (("cos_cache", cos), ("sin_cache", sin)):
                if f"{kind}{suffix}" in inputs:
                    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
                    self._binding.bind_ortvalue_input(f"{kind}{suffix}", value)

    def _bind_cache(self, inputs: dict[str, Any], outputs: list[str]) -> None:
        """One buffer for each key and value, past and present at once."""
        self._binding.bind_output("logits", "cpu")
        self._logits = 0
        self._buffers = []
        for name in outputs[1:]:
            past = name.replace("present.", "past_key_values.", 1)
            _, heads, _, width = inputs[past].shape
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(
                [1, heads, self._context_length, width], np.float32, "cpu"
            )
            self._binding.bind_ortvalue_input(past, buffer)
            self._binding.bind_ortvalue_output(name, buffer)
            self._buffers.append(buffer)


def session_options(threads: int, *, exact: bool) -> ort.SessionOptions:
    """Options of every session of a CPU model.

    Args:
        threads: 0 = as many as there are cores.
        exact: Take kernels in which u8 x s8 products never saturate. AVX2's own saturate in 16
            bits, which costs 0.02 nats on a model with full-range int8 weights and moves logits by
            up to 0.6; exact ones take 1.4 times as long there. With VNNI or AMX nothing saturates:
            logits are the same bits, and this option would cost 1.2 to 2.2 times the time (VNNI),
            up to 4.5 times (AMX).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _wide(model: Path) -> bool:
    """Whether its int8 weights may saturate; read before the session, whose options are fixed."""
    try:
        proto = onnx.load(str(model), load_external_data=False)  # noqa: TID251 - no weights inside
    except Exception as error:  # protobuf and the file system raise their own kinds
        raise BadModel("not an ONNX file", where=str(model)) from error
    return any(prop.key == EXACT_KEY and prop.value == "1" for prop in proto.metadata_props)
